"""Presets: what they promise, and that the fits are as near as the docstring says."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from pathlib import Path

import pytest

import workloads.presets as presets
from workloads.errors import WorkloadError
from workloads.lengths import Quantiles
from workloads.presets import PRESETS, Preset, build_preset, find_preset
from workloads.traces import read_trace
from workloads.workload import Workload

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


def build(
    name: str, seed: int = 0, requests: int | None = None, arrivals: str | None = None, rate: float | None = None
) -> Workload:
    return build_preset(name, rng=random.Random(seed), requests=requests, arrivals=arrivals, rate=rate)


def test_every_preset_builds_with_its_own_settings_and_says_what_it_is() -> None:
    for name, preset in PRESETS.items():
        workload = build(name)
        assert workload.name == name
        assert len(workload) == preset.requests
        assert f"preset {name}: {preset.requests} requests" in workload.source
        assert "\n" not in preset.description
        assert 20 < len(preset.description) <= 120


def test_seed_is_the_benchmark_of_the_seed() -> None:
    workload = build("seed", requests=500)
    assert all(128 <= row.prompt_tokens <= 512 for row in workload.rows)
    assert all(64 <= row.output_tokens <= 512 == row.max_tokens for row in workload.rows)
    assert (workload.max_running, workload.min_rows, workload.max_rows, workload.temperature) == (16, 4, 16, 0.7)


def test_tour_is_small_greedy_and_at_once() -> None:
    workload = build("tour")
    assert len(workload) == 16
    assert all(32 <= row.prompt_tokens <= 128 for row in workload.rows)
    assert all(1 <= row.output_tokens <= 32 == row.max_tokens for row in workload.rows)
    assert {row.arrival_ns for row in workload.rows} == {0}
    assert workload.temperature == 0


def test_tour_refuses_more_than_sixteen_requests() -> None:
    with pytest.raises(WorkloadError, match="at most 16 requests and 17 were asked for"):
        build("tour", requests=17)


def test_presets_without_logarithms_are_pinned_bit_by_bit() -> None:
    assert build("seed").sha256() == "bc2ba365e11667511425394b69516216c2b7bdb95bcfc337c78f6af93a6dd875"
    assert build("tour").sha256() == "0124cab3fef4eaf4ec99d9b809f39d593279429725f9d6e008b7ca01407938dc"
    assert (
        build("chat", arrivals="all-at-once").sha256()
        == "57695abd9e376b9a5a05ae64555c16fdb3b2b824b400f2353236df291ac55cfa"
    )


def test_one_seed_gives_the_same_requests_whatever_their_arrivals() -> None:
    at_once = build("chat", requests=100, arrivals="all-at-once")
    spread = build("chat", requests=100, arrivals="poisson", rate=3.0)
    assert [row[1:] for row in at_once.rows] == [row[1:] for row in spread.rows]
    assert build("chat", seed=1, requests=100).sha256() != build("chat", seed=2, requests=100).sha256()


@pytest.mark.parametrize(
    ("name", "prompt", "output", "rate"),
    [
        ("chat", (2, 1020, 4142, 1154.7), (7, 129, 601, 211.1), 5.53),
        ("code", (3, 1469, 7436, 2047.8), (6, 13, 252, 27.9), 2.57),
    ],
)
def test_chat_and_code_draw_lengths_like_the_traces_published_figures(
    name: str, prompt: tuple[float, ...], output: tuple[float, ...], rate: float
) -> None:
    summary = build(name, requests=40_000).summary()
    for measured, (least, median, p99, mean) in ((summary.prompt, prompt), (summary.output, output)):
        assert least <= measured.min <= least + 2
        assert measured.median == pytest.approx(median, rel=0.03)
        assert measured.p99 == pytest.approx(p99, rel=0.08)
        assert measured.mean == pytest.approx(mean, rel=0.06)
    assert summary.rate_per_s == pytest.approx(rate, rel=0.04)


def documented_fit(label: str) -> tuple[list[float], float]:
    """The figures of a line of the module's table: trace and fit in turn, and the largest CDF gap."""
    assert presets.__doc__ is not None
    line = next(line for line in presets.__doc__.splitlines() if line.startswith(label))
    *pairs, gap = (float(number) for number in re.findall(r"[\d.]+", line))
    return pairs, gap


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not next to the checkout")
@pytest.mark.parametrize(
    ("label", "file", "column", "fit"),
    [
        ("chat, prompt", "conv", 1, presets.CHAT_PROMPT),
        ("chat, output", "conv", 2, presets.CHAT_OUTPUT),
        ("code, prompt", "code", 1, presets.CODE_PROMPT),
        ("code, output", "code", 2, presets.CODE_OUTPUT),
    ],
)
def test_the_fit_matches_the_trace_as_well_as_the_docstring_says(
    label: str, file: str, column: int, fit: Quantiles
) -> None:
    trace = read_trace(str(TRACES / f"AzureLLMInferenceTrace_{file}.csv"))
    lengths = sorted(int(row[column]) for row in trace.rows)
    count = len(lengths)

    class Grid:
        """Evenly spread numbers instead of random ones: the draws are then the distribution itself."""

        step = 0

        def random(self) -> float:
            self.step += 1
            return (self.step - 0.5) / 100_000

    grid = Grid()
    drawn = [fit.draw(grid) for _ in range(100_000)]
    documented, documented_gap = documented_fit(label)
    expected = [lengths[0], drawn[0], lengths[(count - 1) // 2], drawn[49_999], lengths[(99 * count - 1) // 100]]
    assert documented[:5] == expected
    assert documented[5] == pytest.approx(drawn[98_999], abs=1)
    assert documented[6:] == pytest.approx([sum(lengths) / count, sum(drawn) / 100_000], abs=0.06)
    gap = max(
        abs(bisect_right(lengths, length) / count - bisect_right(drawn, length) / 100_000) for length in set(lengths)
    )
    assert gap == pytest.approx(documented_gap, abs=0.001)


def test_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(
        WorkloadError, match=r"unknown preset 'chta'; did you mean 'chat'\? presets: seed, tour, chat, code"
    ):
        find_preset("chta")
    with pytest.raises(WorkloadError, match="unknown preset 'zzz'; presets: seed, tour, chat, code"):
        find_preset("zzz")


@pytest.mark.parametrize("requests", [0, -4])
def test_no_requests_are_refused(requests: int) -> None:
    with pytest.raises(WorkloadError, match=f"{requests} requests asked for; must be >= 1"):
        build("seed", requests=requests)


def test_descriptions_state_the_real_limits() -> None:
    def limits(preset: Preset) -> str:
        return " ".join(str(part) for part in (preset.prompt, preset.output))

    for name in ("chat", "code"):
        found = re.search(r"inputs (\d+-\d+) .*outputs (\d+-\d+) ", PRESETS[name].description)
        assert found is not None
        assert all(group in limits(PRESETS[name]) for group in found.groups())
