"""The two short paths: the width of buckets, and how much can be carried."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import bench
from scheduler.counters import RunCounters
from tuning.bucket import Width, knee, result_of, waste
from tuning.capacity import STEP, Planner, _edge

COSTS = "roofline:l4:qwen2.5-0.5b"


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# -- buckets


def widths(latencies: dict[int, float]) -> list[Width]:
    return [Width(bucket, 0.0, ms, ms, 0.0, 1.0) for bucket, ms in latencies.items()]


def test_the_knee_is_where_the_curve_turns_flat() -> None:
    found = widths({16: 1000.0, 32: 500.0, 64: 120.0, 128: 100.0, 256: 95.0, 512: 90.0})
    assert knee(found, lambda width: width.mean_ms).bucket == 64
    assert result_of([*found, Width("pow2", 0.0, 80.0, 80.0, 0.0, 1.0)], {})["best"] == "pow2"


def test_waste_is_what_was_computed_for_nothing() -> None:
    counters = RunCounters()
    assert waste(counters) == 0
    counters.linear_useful_prefill, counters.linear_computed_prefill = 30, 40
    counters.attention_useful_decode, counters.attention_computed_decode = 50, 60
    assert waste(counters) == pytest.approx(0.2)


def test_wider_buckets_waste_more_and_all_are_reported(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--mode", "tune", "--tune", "bucket", "--quiet", "--workload", trace, "--requests", "120", "--costs", COSTS]
    assert run(*argv, "--workers", "1", "--max-running", "32", "--out", out) == 0
    found = read(out / "buckets.json")
    by_width = {one["bucket"]: one for one in found["widths"]}
    assert found["about"]["layout"] == "padded"
    assert by_width[1]["waste"] == 0
    assert by_width[1]["waste"] < by_width[64]["waste"] < by_width[512]["waste"]
    assert all(0 < one["fairness"] <= 1 for one in found["widths"])
    assert found["best"] == min(found["widths"], key=lambda one: one["mean_ms"])["bucket"]
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 4
    assert f"--bucket {found['best']}" in page


# -- capacity


@pytest.mark.parametrize("highest", [0.003, 0.3, 1.0, 7.7, 400.0])
def test_bisection_finds_the_edge(highest: float) -> None:
    found = _edge(lambda speed: speed <= highest)
    assert found <= highest < found * (1 + 2 * STEP)
    assert _edge(lambda speed: False) == 0


def test_a_plan_says_what_is_carried_what_it_takes_and_what_an_slo_costs(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["--mode", "tune", "--tune", "capacity", "--quiet", "--workload", trace, "--costs", COSTS, "--max-running",
            "4", "--slo", "ttft_ms=300,tpot_ms=30", "--replicas", "1:4", "--gpu-hour-price", "2"]  # fmt: skip
    assert run(*argv, "--requests", "300", "--out", out) == 0
    found = read(out / "capacity.json")
    top = found["highest"]
    assert 0 < top["requests_per_s"] < top["beyond_per_s"]
    assert top["low"] >= 0.9
    rates = [one["requests_per_s"] for one in found["prices"]]
    assert all(a <= b * (1 + 2 * STEP) for a, b in pairwise(rates)), "a looser SLO carries more"
    for one in found["prices"]:
        if one["gpu_hours_per_million"] is not None:
            assert one["price_per_million"] == pytest.approx(2 * one["gpu_hours_per_million"])
    needed, tried = found["replicas"]["needed"], found["replicas"]["tried"]
    assert 1 <= needed <= 4
    enough = {one["replicas"]: one["low"] >= 0.9 for one in tried}
    assert enough[needed]
    assert not enough.get(needed - 1, False)
    assert found["replicas"]["gpus"] == needed
    assert "What an SLO costs" in (out / "report.md").read_text()


def test_a_fleet_that_is_too_small_is_said(trace: Path, tmp_path: Path) -> None:
    from core.arguments import parse_arguments

    argv = ["--mode", "tune", "--tune", "capacity", "--quiet", "--workload", str(trace), "--costs", COSTS,
            "--max-running", "1", "--slo", "ttft_ms=300,tpot_ms=30", "--replicas", "1:2"]  # fmt: skip
    needed, tried = Planner(parse_arguments(argv)).replicas_needed()
    assert needed is None
    assert [count for count, _ in tried] == [1, 2]


def test_bad_commands_are_refused(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--mode", "tune", "--quiet", "--workload", trace, "--costs", COSTS, "--tune"]
    for flags, said in (
        (["capacity"], "--tune capacity needs --slo"),
        (["capacity", "--slo", "ttft_ms=300", "--policy", "fcfs,srpt"], "plans for one policy"),
        (["capacity", "--slo", "ttft_ms=300", "--requests", "50"], "too few to tell a rate"),
        (["bucket", "--policy", "fcfs"], "which is about sjf-bucket"),
        (["bucket", "--bucket", "8"], "which tries them all"),
        (["bucket", "--slo", "ttft_ms=300"], "--slo has no effect with --tune bucket"),
    ):
        assert run(*argv, *flags) == 2
        assert said in capsys.readouterr().err
