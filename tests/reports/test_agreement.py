from __future__ import annotations

from pathlib import Path

import pytest
from handmade_runs import four_requests

from reports.agreement import agree, summary_line


def test_a_twin_with_other_times_agrees_in_counters_and_plans(tmp_path: Path) -> None:
    measured = four_requests(tmp_path / "real").close(report=False)
    simulated = four_requests(tmp_path / "sim", slower=2).close(report=False)
    agreement = agree(measured, simulated, replayed=True)
    assert agreement.same_plans
    assert agreement.counters_equal
    assert agreement.prediction("ttft_ms.max").error == pytest.approx((350 - 150) / 150)
    assert agreement.prediction("output_tokens_per_s").error == pytest.approx(-0.5)
    assert agreement.worst.path == "queue_ms.mean"
    assert "same plans, all counters equal" in summary_line(agreement)


def test_a_run_agrees_with_itself_exactly(tmp_path: Path) -> None:
    run = four_requests(tmp_path / "run").close(report=False)
    agreement = agree(run, run)
    assert agreement.mean_error == 0
    assert agreement.replayed is None


def test_one_more_step_is_seen(tmp_path: Path) -> None:
    measured = four_requests(tmp_path / "real").close(report=False)
    other = four_requests(tmp_path / "sim")
    other.step(2, 300, [301])
    agreement = agree(measured, other.close(report=False))
    assert not agreement.same_plans
    differing = {check.path for check in agreement.counters if not check.equal}
    assert {"steps.total", "steps.decode", "tokens.useful"} <= differing
    assert "steps.prefill" not in differing
    assert "different plans" in summary_line(agreement)


def test_an_undefined_figure_has_no_error(tmp_path: Path) -> None:
    run = four_requests(tmp_path / "run").close(report=False)
    assert agree(run, run).prediction("ttft_ms.p99") is None
