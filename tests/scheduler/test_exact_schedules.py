"""Schedules whose answer is known: one request at a time, a second a token, against closed forms and brute force."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations
from random import Random

import numpy as np
import numpy.typing as npt
import pytest

from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.costs import IntegerCosts
from simulator.replica import simulate

SECOND = 1_000_000_000
#: every step takes a second. A prefill emits a token as a decode step does, so that a job of n tokens takes n seconds,
#: and one that was evicted loses none: its prompt is computed again by the step that emits its next token
A_SECOND_A_TOKEN = IntegerCosts(step_ns=SECOND, row_ns=0, token_ns=0, column_ns=0)


@dataclass
class Ends:
    """An observer that keeps when requests ended."""

    finish_s: dict[str, int]

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None: ...

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None: ...

    def ended(self, sequence: Sequence) -> None:
        assert sequence.finish_ns % SECOND == 0
        self.finish_s[sequence.id] = sequence.finish_ns // SECOND


Job = tuple[int, int]


def finishes(policy: str, jobs: list[Job], **settings: int) -> list[int]:
    """Seconds at which jobs (arrival in seconds, tokens) end, one at a time."""
    ends = Ends({})
    config = SchedulerConfig.from_dict({"policy": policy, "max_running": 1, **settings})
    requests = [Request(str(i), at * SECOND, 1, max_tokens=tokens) for i, (at, tokens) in enumerate(jobs)]
    simulate(requests, Scheduler(config, ends), A_SECOND_A_TOKEN)
    return [ends.finish_s[str(i)] for i in range(len(jobs))]


def normalized_latency(jobs: list[Job], ends: list[int]) -> Fraction:
    """Mean over the jobs of (end - arrival) / tokens."""
    return sum((Fraction(end - at, n) for (at, n), end in zip(jobs, ends, strict=True)), Fraction(0)) / len(jobs)


def test_vllm_ltrs_example() -> None:
    """Jobs of 10, 2 and 1 tokens, the long one first: 6.67 s/token in order of arrival, 1.27 shortest first."""
    jobs = [(0, 10), (0, 2), (0, 1)]
    fcfs = finishes("fcfs", jobs)
    shortest = finishes("srpt", jobs)
    assert fcfs == [10, 12, 13]
    assert shortest == [13, 3, 1]
    assert normalized_latency(jobs, fcfs) == Fraction(20, 3)
    assert normalized_latency(jobs, shortest) == Fraction(19, 15)
    assert (round(float(Fraction(20, 3)), 2), round(float(Fraction(19, 15)), 2)) == (6.67, 1.27)


def random_jobs(seed: int, count: int, longest: int, spread: int) -> list[Job]:
    rng = Random(seed)
    return sorted((rng.randrange(spread), rng.randint(1, longest)) for _ in range(count))


@pytest.mark.parametrize("policy", ["fcfs", "static"])
@pytest.mark.parametrize("seed", range(5))
def test_one_server_in_order_of_arrival_follows_lindley(policy: str, seed: int) -> None:
    """end = max(arrival, end before) + service."""
    jobs = random_jobs(seed, 40, 12, 250)
    expected = []
    end = 0
    for at, tokens in jobs:
        end = max(at, end) + tokens
        expected.append(end)
    assert finishes(policy, jobs) == expected


@pytest.mark.parametrize("seed", range(5))
def test_shortest_first_without_eviction(seed: int) -> None:
    """A quantum that nobody reaches: at each end the shortest job that is there goes next, to its own end."""
    jobs = random_jobs(seed, 40, 12, 250)
    waiting = dict(enumerate(jobs))
    expected = [0] * len(jobs)
    now = 0
    while waiting:
        here = [(tokens, i) for i, (at, tokens) in waiting.items() if at <= now]
        if not here:
            now = min(at for at, _ in waiting.values())
            continue
        tokens, chosen = min(here)
        del waiting[chosen]
        now += tokens
        expected[chosen] = now
    assert finishes("srpt", jobs, quantum=1000) == expected


@pytest.mark.parametrize("seed", range(8))
def test_srpt_with_a_quantum_of_0_is_the_textbooks(seed: int) -> None:
    """Each second goes to the job with the least left; a tie keeps the one that is being served."""
    jobs = random_jobs(seed, 30, 15, 200)
    left = [tokens for _, tokens in jobs]
    expected = [0] * len(jobs)
    now, serving = 0, -1
    while any(left):
        here = [i for i, (at, _) in enumerate(jobs) if at <= now and left[i]]
        if here:
            serving = min(here, key=lambda i: (left[i], i != serving, i))
            left[serving] -= 1
            expected[serving] = now + 1
        now += 1
    assert finishes("srpt", jobs, quantum=0) == expected


@pytest.mark.parametrize("seed", range(6))
def test_shortest_first_has_the_least_mean_latency_of_all_orders(seed: int) -> None:
    """All there at once: of all 5,040 orders of seven jobs none does better than shortest first."""
    rng = Random(seed)
    jobs = [(0, rng.randint(1, 20)) for _ in range(7)]
    best = min(sum(sum(n for _, n in order[: i + 1]) for i in range(7)) for order in permutations(jobs))
    assert sum(finishes("srpt", jobs)) == best
    assert sum(finishes("fcfs", jobs)) >= best


def test_everyone_together_takes_the_longest() -> None:
    """With a slot for each, iteration level: all in one prefill, then all in each step until they end."""
    jobs = [(0, tokens) for tokens in (3, 9, 1, 4)]
    assert finishes("fcfs", jobs, max_running=4) == [3, 9, 1, 4]
    # in two slots, whoever ends makes room at once; each admission is a step in which the others pause
    assert finishes("fcfs", jobs, max_running=2) == [3, 11, 4, 8]


def test_a_static_batch_waits_for_its_longest() -> None:
    """Two at a time: 3 and 9 tokens end at 3 and 9, and only then come 1 and 4."""
    jobs = [(0, tokens) for tokens in (3, 9, 1, 4)]
    assert finishes("static", jobs, max_running=2) == [3, 9, 10, 13]
