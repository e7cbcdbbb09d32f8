"""Every figure of a run that is small enough to be worked out by hand (see ``four_requests``)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_runs import MS, HandMade, every_part, four_requests

from reports.figures import COUNTERS, FIGURES, LATENCIES, latency_paths, why_missing
from reports.run import look_up
from reports.slo import Slo
from reports.summary import verdict
from scheduler.config import SchedulerConfig


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    four_requests(tmp_path / "run").close(slo=Slo.parse("ttft_ms=120"), report=False)
    data: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return data


def test_requests_are_accounted_for(summary: dict[str, Any]) -> None:
    assert summary["requests"] == {"submitted": 4, "finished": 2, "rejected": 1, "aborted": 1}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("makespan_s", 0.3),
        ("output_tokens_per_s", 4 / 0.3),
        ("total_tokens_per_s", 34 / 0.3),
        ("requests_per_s", 2 / 0.3),
        ("ttft_ms.mean", 125.0),
        ("ttft_ms.p50", 100.0),
        ("ttft_ms.max", 150.0),
        ("e2e_ms.mean", 225.0),
        ("queue_ms.mean", 25.0),
        ("normalized_latency_ms.max", 150.0),
        ("tpot_ms.mean", 100.0),
        ("itl_ms.mean", 100.0),
        ("itl_ms.n", 2),
        # prefill: 2 rows of 8 and 6 tokens, padded to 8
        ("padding_waste.prefill", 1 - 14 / 16),
        # decode: contexts 9 and 7, then 10 and 8, each padded to the longer
        ("padding_waste.decode", 1 - (16 + 18) / (18 + 20)),
        ("steps.total", 3),
        ("steps.prefill", 1),
        ("steps.decode", 2),
        ("steps.mixed", 0),
        ("tokens.useful", 14 + 4),
        ("tokens.computed", 16 + 4),
        ("mean_decode_batch", 2.0),
        ("batch_occupancy", 1.0),
        ("preemptions", 0),
        ("kv.peak_tokens", 40),
        ("kv.utilisation", 0.75),
        ("kv.fragmentation.internal", 0.25),
        ("kv.fragmentation.external", 0.2),
        ("kv.time_weighted.utilisation", 0.8),
        ("kv.time_weighted.fragmentation.internal", 0.2),
        ("kv.time_weighted.fragmentation.external", 0.25),
        ("kv.reuse", 0.25),
        ("swapped.tokens", 0),
        ("overlap.wasted_rows", 0),
        ("starvation.longest_wait_s", 0.05),
        ("starvation.longest_gap_s", 0.1),
        ("goodput_per_s", 1 / 0.3),
        ("slo_attainment.good", 1),
        ("slo_attainment.share", 0.25),
        ("time.device_s", 0.2997),
        ("time.host_s", 0.0003),
        # 3 ms of next_step and complete over 3 steps
        ("scheduler_us_per_step", 1000.0),
        ("wall_clock.seconds", 1.5),
    ],
)
def test_figure_has_the_value_worked_out_by_hand(summary: dict[str, Any], path: str, value: float) -> None:
    assert look_up(summary, path) == pytest.approx(value, rel=1e-12)


def test_fairness_compares_the_tenants_speeds(summary: dict[str, Any]) -> None:
    speeds = [3 / 0.3, 1 / 0.15]
    assert summary["starvation"]["jain_index"] == pytest.approx(sum(speeds) ** 2 / (2 * sum(s * s for s in speeds)))


def test_tpot_of_one_token_is_left_out_not_zero(summary: dict[str, Any]) -> None:
    assert summary["tpot_ms"]["n"] == 1
    assert summary["tpot_ms"]["p50"] is None
    assert "p50 needs 2" in summary["tpot_ms"]["note"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("ttft_ms.p99", "n too small: n = 2"),
        ("padding_waste.graph", "not available: steps were not run as graphs"),
        ("padding_waste.time", "not available: no cost model was given"),
        ("kv.prefix_hit", "not available: the run had no prefix cache"),
        ("prefix.hit_tokens", "not available: the run had no prefix cache"),
        ("scheduler", "not available: the manifest does not hold the scheduler's settings"),
    ],
)
def test_what_is_not_defined_is_null_with_a_reason(summary: dict[str, Any], path: str, reason: str) -> None:
    assert look_up(summary, path) is None
    assert why_missing(summary, path).startswith(reason)


def test_every_null_figure_has_a_reason_of_its_own(summary: dict[str, Any]) -> None:
    for path in [*(figure.path for figure in FIGURES), *latency_paths()]:
        if look_up(summary, path) is None:
            assert why_missing(summary, path) != "not available", path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps.total", 6),
        ("steps.prefill", 1),
        ("steps.decode", 2),
        ("steps.mixed", 3),
        # prompts of 10, 8, 4 and 4; decode rows 1, 2 x 2, 2 and 1
        ("tokens.useful", 26 + 8),
        ("counters.linear_useful_prefill", 26),
        ("counters.attention_useful_decode", 11 + (21 + 23) + 24 + 14),
        ("mean_decode_batch", 8 / 5),
        ("batch_occupancy", 1.0),
        ("padding_waste.decode", 0.0),
        ("swapped.out", 1),
        ("swapped.in", 1),
        ("swapped.tokens", 18),
        ("prefix.hit_tokens", 16),
        ("prefix.query_tokens", 40),
        ("prefix.hit_ratio", 0.4),
        ("kv.prefix_hit", 0.4),
        ("overlap.wasted_rows", 2),
        ("kv.utilisation", 0.75),
        ("kv.time_weighted.utilisation", 0.9),
        ("kv.time_weighted.fragmentation.external", 0.0),
        ("kv.reuse", 0.3),
        ("kv.reuse_after_preemption", 0.2),
    ],
)
def test_parts_have_their_figures(tmp_path: Path, path: str, value: float) -> None:
    summary = every_part(tmp_path / "run").close(report=False).summary
    assert look_up(summary, path) == pytest.approx(value, rel=1e-12)


def test_a_prefix_cache_that_nobody_could_use_has_no_hit_ratio(tmp_path: Path) -> None:
    config = SchedulerConfig(prefix_cache=True).as_dict()
    summary = four_requests(tmp_path / "run", {"config": config}).close(report=False).summary
    assert summary["prefix"] == {"hit_tokens": 0, "query_tokens": 0, "hit_ratio": None}
    assert "no request that was admitted had a full block" in why_missing(summary, "kv.prefix_hit")


def test_summary_has_every_key_of_the_interface(summary: dict[str, Any]) -> None:
    keys = {
        "requests", "makespan_s", "output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "ttft_ms", "tpot_ms",
        "itl_ms", "e2e_ms", "queue_ms", "padding_waste", "steps", "tokens", "mean_decode_batch", "preemptions", "kv",
        "goodput_per_s", "slo_attainment", "starvation", "scheduler_us_per_step", "plan_digest", "swapped", "prefix",
        "overlap", "scheduler",
    }  # fmt: skip
    assert keys <= set(summary)
    assert set(summary["padding_waste"]) == {"prefill", "decode", "graph", "time"}
    assert {"mean", "p50", "p90", "p95", "p99", "max", "n"} <= set(summary["ttft_ms"])
    assert {"peak_tokens", "utilisation", "fragmentation", "reuse", "prefix_hit"} <= set(summary["kv"])
    assert {"longest_wait_s", "longest_gap_s", "over_threshold"} <= set(summary["starvation"])


def test_catalogue_names_only_what_a_summary_has(summary: dict[str, Any]) -> None:
    for path in [*(figure.path for figure in FIGURES), *COUNTERS, *(f"{latency.key}.p50" for latency in LATENCIES)]:
        where, _, key = path.rpartition(".")
        assert key in (look_up(summary, where) if where else summary), path


def test_a_run_without_a_finished_request_has_no_zeros(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    made.request(0, 0, state="rejected", reason="too long")
    summary = made.close(report=False).summary
    for path in ("makespan_s", "output_tokens_per_s", "ttft_ms.mean", "padding_waste.decode", "mean_decode_batch"):
        assert look_up(summary, path) is None, path
        assert why_missing(summary, path) != "not available", path
    assert verdict(summary) == "No request finished: 1 rejected, 0 aborted."


def test_summary_is_the_same_apart_from_the_wall_clock(tmp_path: Path) -> None:
    first = four_requests(tmp_path / "a", {"name": "x"}).close(report=False).summary
    second = four_requests(tmp_path / "b", {"name": "x"}).close(report=False, wall=None).summary
    differ = {key for key in first if first[key] != second[key]}
    assert differ == {"wall_clock", "scheduler_us_per_step", "not_available"}


def test_a_saturated_run_says_so_instead_of_presenting_its_latency_as_stable(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    for number in range(200):
        # one arrives every 100 ms, one leaves every 300 ms
        start = 300 * number
        made.request(number, 100 * number, start, start + 100, start + 300, output=2)
        made.step(number, start, [start + 300])
    summary = made.close(report=False).summary
    assert summary["load"]["saturated"] is True
    assert summary["load"]["queue_growth_per_s"] == pytest.approx(10 - 10 / 3, rel=0.02)
    assert "more than the hardware can carry: the queue grows by 6.6" in verdict(summary)


def test_gaps_enter_with_their_weight(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    made.request(0, 0, 0, 1, 2, output=2)
    made.writer.gaps(np.array([10, 20]) * MS, 3)
    made.writer.gaps(np.array([90]) * MS, 1)
    summary = made.close(report=False).summary
    assert summary["itl_ms"]["n"] == 7
    assert math.isclose(summary["itl_ms"]["mean"], (3 * 10 + 3 * 20 + 90) / 7)
    assert summary["itl_ms"]["max"] == 90
