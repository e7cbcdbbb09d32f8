from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from handmade_runs import HandMade
from scipy.stats import ttest_ind
from simulated_runs import simulated_run

from reports.effects import Effect, effects, groups_of
from reports.figures import figure_at
from reports.run import Run


def with_figure(run: Run, value: float, **manifest: Any) -> Run:
    """The run with another throughput and manifest."""
    summary = {**run.summary, "output_tokens_per_s": value}
    return Run(run.folder, {**run.manifest, **manifest}, summary, run.requests, run.steps, run.gaps, False)


def of(found: tuple[Effect, ...], path: str) -> Effect:
    return next(effect for effect in found if effect.figure.path == path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = HandMade(tmp_path / "run", {"workload": "four"})
    for number, took in enumerate((100, 200, 300, 400)):
        made.request(number, 0, 10, 20, took, output=3)
    return made.close(report=False)


def test_repeats_with_the_same_seeds_are_paired(run: Run) -> None:
    baseline = [with_figure(run, value, seed=seed, label="a") for seed, value in enumerate((100.0, 200.0, 300.0))]
    other = [with_figure(run, value, seed=seed, label="b") for seed, value in ((2, 339.0), (0, 112.0), (1, 222.0))]
    first, second = groups_of([*baseline, *other])
    found = of(effects(first, second), "output_tokens_per_s")
    # pairs: 12 %, 11 % and 13 %; t(2, 0.975) = 4.3027
    assert found.change == pytest.approx(0.12)
    assert found.half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert (found.n, found.over, found.verdict) == (3, "pairs of runs", "better")
    assert found.text() == "better by 12 % ± 2.5 (n = 3 pairs of runs)"


def test_repeats_with_other_seeds_are_compared_by_their_means(run: Run) -> None:
    baseline = [with_figure(run, value, seed=seed, label="a") for seed, value in enumerate((99.0, 100.0, 101.0))]
    other = [with_figure(run, value, seed=seed, label="b") for seed, value in ((7, 89.0), (8, 91.0))]
    first, second = groups_of([*baseline, *other])
    found = of(effects(first, second), "output_tokens_per_s")
    reference = ttest_ind([89.0, 91.0], [99.0, 100.0, 101.0], equal_var=False).confidence_interval()
    assert found.change == pytest.approx(-0.10)
    assert found.half_width == pytest.approx((reference.high - reference.low) / 2 / 100)
    assert (found.n, found.over, found.verdict) == (5, "runs", "worse")


def test_a_difference_within_the_interval_is_not_called_one(run: Run) -> None:
    baseline = [with_figure(run, value, seed=seed, label="a") for seed, value in enumerate((100.0, 200.0))]
    other = [with_figure(run, value, seed=seed, label="b") for seed, value in enumerate((140.0, 190.0))]
    first, second = groups_of([*baseline, *other])
    found = of(effects(first, second), "output_tokens_per_s")
    assert found.verdict == "not told apart"
    assert found.text().startswith("not told apart: +17.5 %")


def test_single_runs_are_compared_over_the_same_requests(tmp_path: Path) -> None:
    made = []
    for name, extra in (("a", (0, 0, 0, 0)), ("b", (20, 40, 20, 40))):
        one = HandMade(tmp_path / name, {"workload": "four", "label": name})
        for number, took in enumerate((100, 200, 300, 400)):
            one.request(number, 0, 10, 20, took + extra[number], output=3)
        made.append(one.close(report=False))
    first, second = groups_of(made)
    found = of(effects(first, second), "e2e_ms.mean")
    # differences 20, 40, 20, 40 of a mean of 250: 12 %, standard deviation 11.547
    assert found.change == pytest.approx(0.12)
    assert found.half_width == pytest.approx(3.182446 * 11.5470 / 2 / 250, rel=1e-4)
    assert (found.n, found.over, found.verdict) == (4, "pairs of requests", "worse")
    alone = of(effects(first, second), "output_tokens_per_s")
    assert (alone.half_width, alone.verdict) == (None, "lower")
    assert alone.text().endswith("(n = 1, no interval)")


def test_other_requests_are_not_paired(run: Run, tmp_path: Path) -> None:
    asked_more = with_figure(run, 1.0, label="b", workload="five")
    first, second = groups_of([with_figure(run, 1.0, label="a"), asked_more])
    assert of(effects(first, second), "e2e_ms.mean").half_width is None
    longer = HandMade(tmp_path / "longer", {"workload": "four", "label": "b"})
    for number in range(4):
        longer.request(number, 0, 10, 20, 500, output=9)
    first, second = groups_of([with_figure(run, 1.0, label="a"), longer.close(report=False)])
    assert of(effects(first, second), "e2e_ms.mean").half_width is None


def test_groups_are_runs_with_the_same_settings(tmp_path: Path) -> None:
    runs = [simulated_run(tmp_path / str(seed), 10, seed=seed, policy="fcfs") for seed in (0, 1)]
    runs += [simulated_run(tmp_path / "bucket", 10, policy="sjf-bucket", bucket=width) for width in ("16",)]
    runs.append(simulated_run(tmp_path / "wide", 10, policy="sjf-bucket", bucket="64"))
    assert [len(group.runs) for group in groups_of(runs)] == [2, 1, 1]


def test_large_changes_are_told_as_factors_and_shares_in_points() -> None:
    lengthened = Effect(figure_at("ttft_ms.mean"), 10, 53, 4.3, 0.36, 9, "pairs of requests", False)
    assert lengthened.text() == "worse: 5.3 times as much ± 0.36 (n = 9 pairs of requests)"
    padding = Effect(figure_at("padding_waste.decode"), 0.25, 0.04, -0.21, None, 1, "", True)
    assert padding.text() == "lower by 21.00 points (n = 1, no interval)"
    same = Effect(figure_at("e2e_ms.p50"), 1, 1, 0.0, None, 1, "", False)
    assert same.text() == "equal"
