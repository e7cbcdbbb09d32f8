"""Length oracles: how well they know the lengths is what was asked for, and learning is worked out by hand."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.oracle import LearnedLengths, LengthOracle, NoisyLengths, build_oracle, parse_oracle, prediction
from scheduler.quantiles import quantile_table
from scheduler.request import Request
from scheduler.sequence import Sequence

ROOT = Path(__file__).resolve().parents[2]
MOST = 1 << 20


def sequence(
    output: int | None, name: str = "r", prompt: int = 10, max_tokens: int = MOST, tenant: str = ""
) -> Sequence:
    return Sequence(Request(name, 0, prompt, max_tokens, output, tenant=tenant), 0, 0, 1 << 30)


def finish(oracle: LengthOracle, output: int, prompt: int = 10, tenant: str = "") -> None:
    ended = sequence(output, prompt=prompt, tenant=tenant)
    ended.place(prompt + output, prompt + output - 1)
    oracle.finished(ended)


def lengths_of(shape: str) -> list[int]:
    rng = random.Random(1)
    draws = {
        "lognormal": lambda: max(1, round(rng.lognormvariate(5, 1))),
        "uniform": lambda: rng.randint(1, 2000),
        # heavy ties: a third is cut at the declared most; two lengths only; five lengths, two of them frequent
        "cut": lambda: min(1000, max(1, round(rng.lognormvariate(6.5, 1)))),
        "two": lambda: rng.choice([10, 500]),
        "five": lambda: rng.choices([10, 20, 50, 100, 500], [4, 3, 1, 1, 1])[0],
    }
    return [draws[shape]() for _ in range(2000)]


def first_estimates(lengths: list[int], tau: float, seed: int = 0) -> list[int]:
    oracle = NoisyLengths(quantile_table(lengths), tau, seed)
    return [oracle.estimates(sequence(length, f"r{i}"))[0] for i, length in enumerate(lengths)]


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(
    ("shape", "seeds", "tolerance"),
    [
        ("lognormal", 1, 0.03),
        ("uniform", 1, 0.03),
        ("cut", 1, 0.03),
        # what 2,000 requests of two lengths show of tau varies by 0.02 from seed to seed
        ("two", 6, 0.03),
        # tau is that of the places in the distribution, equal lengths in random order; so tau-b, which leaves ties
        # out, is a little higher where only a few lengths exist
        ("five", 1, 0.06),
    ],
)
def test_noisy_lengths_have_the_rank_correlation_that_was_asked_for(
    shape: str, seeds: int, tolerance: float, tau: float
) -> None:
    lengths = lengths_of(shape)
    found = [kendalltau(lengths, first_estimates(lengths, tau, seed)).statistic for seed in range(seeds)]
    assert sum(found) / seeds == pytest.approx(tau, abs=tolerance)


def test_the_rank_correlation_does_not_hang_on_the_seed() -> None:
    lengths = lengths_of("lognormal")
    found = [kendalltau(lengths, first_estimates(lengths, 0.6, seed)).statistic for seed in range(6)]
    assert sum(found) / len(found) == pytest.approx(0.6, abs=0.01)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "cut", "two", "five"])
def test_at_tau_1_the_first_estimate_is_the_true_length(shape: str) -> None:
    lengths = lengths_of(shape)
    assert first_estimates(lengths, 1.0) == lengths


@pytest.mark.parametrize("tau", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("shape", ["lognormal", "uniform", "cut", "two", "five"])
def test_noise_keeps_the_distribution_of_lengths(shape: str, tau: float) -> None:
    lengths = lengths_of(shape)
    estimated = sorted(first_estimates(lengths, tau))
    ordered = sorted(lengths)
    # the largest gap between the two distributions, at 2,000 each: Kolmogorov and Smirnov would doubt one above 0.043
    gap = max(
        abs(sum(each <= length for each in estimated) - sum(each <= length for each in ordered)) / 2000
        for length in ordered[::50]
    )
    assert gap < 0.043


def test_a_frequent_length_is_sometimes_mistaken() -> None:
    """Its requests are spread over its ranks; with the mid-rank for all of them none would be."""
    lengths = [10] * 1800 + [500] * 200
    estimates = first_estimates(lengths, 0.8)
    assert 0 < sum(estimate == 500 for estimate in estimates[:1800]) < 100
    assert sum(estimates) == pytest.approx(sum(lengths), rel=0.1)


def test_noise_depends_on_the_id_and_the_seed_and_nothing_else() -> None:
    lengths = lengths_of("uniform")
    oracle = NoisyLengths(quantile_table(lengths), 0.5, 3)
    first = oracle.estimates(sequence(700, "a", prompt=9))
    for other in range(100):
        oracle.estimates(sequence(other + 1, f"b{other}"))
        oracle.finished(sequence(5))
    assert oracle.estimates(sequence(700, "a", prompt=8, tenant="t")) == first
    assert oracle.estimates(sequence(700, "c")) != first
    assert NoisyLengths(quantile_table(lengths), 0.5, 4).estimates(sequence(700, "a")) != first


def test_noise_is_the_same_in_processes_with_other_hash_seeds() -> None:
    program = (
        "from scheduler.oracle import NoisyLengths; from scheduler.request import Request;"
        "from scheduler.sequence import Sequence;"
        "o = NoisyLengths(tuple(range(1, 258)), 0.4, 7);"
        "print([o.estimates(Sequence(Request(f'r{i}', 0, 5, 4096, 1 + i), i, 0, 1 << 30)) for i in range(200)])"
    )

    def output(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert output("1") == output("4242") != ""


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(1, 5000),
    st.integers(1, 6000),
    st.text(max_size=5),
)
def test_estimates_rise_and_end_with_what_the_request_declares(
    lengths: list[int], tau: float, output: int, max_tokens: int, name: str
) -> None:
    estimates = NoisyLengths(quantile_table(lengths), tau).estimates(sequence(output, name, max_tokens=max_tokens))
    assert 1 <= estimates[0] <= estimates[-1] == max_tokens
    assert all(a < b for a, b in pairwise(estimates))
    assert all(b == 2 * a for a, b in pairwise(estimates[:-1]))


def test_true_and_none_say_one_thing_each() -> None:
    asked = sequence(30, max_tokens=50)
    assert build_oracle(SchedulerConfig()).estimates(asked) == (30,)
    assert build_oracle(SchedulerConfig(oracle="none")).estimates(asked) == (50,)
    assert build_oracle(SchedulerConfig(oracle="true")).estimates(sequence(None, max_tokens=50)) == (50,)


def test_a_prediction_is_the_first_estimate_that_has_not_been_outgrown() -> None:
    estimates = (4, 8, 12)
    assert [prediction(estimates, output) for output in (0, 3, 4, 7, 8, 11, 12, 20)] == [4, 4, 8, 8, 12, 12, 13, 21]


def test_history_knows_nothing_before_eight_have_finished() -> None:
    oracle = LearnedLengths()
    for output in range(1, 8):
        finish(oracle, output)
    assert oracle.estimates(sequence(None, max_tokens=99)) == (99,)
    finish(oracle, 8)
    # of 1..8: the 4th, the 6th, the 8th and the 8th
    assert oracle.estimates(sequence(None, max_tokens=99)) == (4, 6, 8, 99)


def test_history_learns_by_tenant_and_class_of_prompt_then_by_tenant_then_from_all() -> None:
    oracle = LearnedLengths()
    for _ in range(8):
        finish(oracle, 10, prompt=9, tenant="a")  # 9 to 16
        finish(oracle, 20, prompt=17, tenant="a")  # 17 to 32
        finish(oracle, 30, prompt=9, tenant="b")
    assert oracle.estimates(sequence(None, prompt=16, tenant="a")) == (10, MOST)
    assert oracle.estimates(sequence(None, prompt=32, tenant="a")) == (20, MOST)
    # a class that a has sent nothing of: a's 10s and 20s
    assert oracle.estimates(sequence(None, prompt=33, tenant="a")) == (10, 20, MOST)
    # a tenant that nobody knows: eight each of 10, 20, 30, whose 12th is 20, 18th 30
    assert oracle.estimates(sequence(None, prompt=9, tenant="c")) == (20, 30, MOST)


def test_history_takes_no_estimate_beyond_what_is_declared() -> None:
    oracle = LearnedLengths()
    for output in (5, 10, 15, 20, 25, 30, 35, 40):
        finish(oracle, output)
    assert oracle.estimates(sequence(None, max_tokens=30)) == (20, 30)
    assert oracle.estimates(sequence(None, max_tokens=3)) == (3,)


def test_history_forgets_what_finished_a_thousand_requests_ago() -> None:
    oracle = LearnedLengths()
    for _ in range(1000):
        finish(oracle, 500)
    for _ in range(499):
        finish(oracle, 7)
    assert oracle.estimates(sequence(None)) == (500, MOST)
    finish(oracle, 7)
    assert oracle.estimates(sequence(None)) == (7, 500, MOST)
    for _ in range(500):
        finish(oracle, 7)
    assert oracle.estimates(sequence(None)) == (7, MOST)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ture", "unknown oracle 'ture'; did you mean true?"),
        ("nois", "unknown oracle 'nois'; did you mean noisy:TAU[:SEED]?"),
        ("true:1", "unknown oracle 'true:1'; did you mean true?"),
        ("noisy:0.5:1:2", "unknown oracle"),
        ("noisy", "oracle is noisy; must be noisy:TAU[:SEED] with TAU from 0 to 1"),
        ("noisy:1.1", "oracle is noisy:1.1; must be"),
        ("noisy:-0.1", "oracle is noisy:-0.1; must be"),
        ("noisy:nan", "oracle is noisy:nan; must be"),
        ("noisy:half", "oracle is noisy:half; must be"),
        ("noisy:0.5:x", "oracle is noisy:0.5:x; must be"),
    ],
)
def test_a_name_that_is_no_oracle_is_told(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_oracle(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_names_say_tau_and_seed() -> None:
    assert parse_oracle("noisy:0.6") == ("noisy", 0.6, 0)
    assert parse_oracle("noisy:1:42") == ("noisy", 1.0, 42)
    assert parse_oracle("history").kind == "history"


def test_noise_needs_a_distribution_to_keep_to() -> None:
    with pytest.raises(ConfigError, match=r"oracle noisy:0\.5 needs length_quantiles"):
        build_oracle(SchedulerConfig(oracle="noisy:0.5"))
    oracle = build_oracle(SchedulerConfig(oracle="noisy:1", length_quantiles=(5, 10, 20)))
    assert oracle.estimates(sequence(10, max_tokens=30)) == (10, 20, 30)
