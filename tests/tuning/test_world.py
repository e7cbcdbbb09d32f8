"""A trial is the simulation that ``--mode sim`` runs, with light recording: the same plans and the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench
from core.arguments import given_flags, parse_arguments
from tuning.objectives import Objective, parse_objectives
from tuning.setting import Setting
from tuning.tune import Tuning
from tuning.world import Job, Part, counted


def tuning_of(given: list[str], *flags: str) -> Tuning:
    argv = [*given, *flags]
    return Tuning(parse_arguments(argv), given_flags(argv), "the command")


def summary_of(given: list[str], folder: Path, *flags: str) -> dict[str, Any]:
    """Of ``--mode sim``."""
    workload = given[given.index("--workload") + 1]
    slo = given[given.index("--slo") + 1]
    argv = ["--mode", "sim", "--quiet", "--workload", workload, "--costs", "roofline:l4:qwen2.5-0.5b", "--slo", slo]
    assert bench.main([*argv, *flags, "--out", str(folder)]) == 0
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"policy": "fcfs", "max_running": 16}, "--policy fcfs --max-running 16"),
        ({"policy": "sjf-bucket", "bucket": "equal-mass:4", "aging_s": 5, "max_running": 16},
         "--policy sjf-bucket --bucket equal-mass:4 --aging-s 5 --max-running 16"),
        ({"policy": "srpt", "oracle": "history", "phase": "mixed", "chunk_tokens": 256, "max_running": 16},
         "--policy srpt --oracle history --phase mixed --chunk-tokens 256 --max-running 16"),
        ({"policy": "fcfs", "max_running": 16, "replicas": 2, "router": "least-outstanding"},
         "--policy fcfs --max-running 16 --replicas 2 --router least-outstanding"),
    ],
)  # fmt: skip
def test_a_trial_is_what_a_simulation_is(
    values: dict[str, Any], flags: str, given: list[str], tmp_path: Path
) -> None:  # fmt: skip
    tuning = tuning_of(given, *(["--replicas", "1:2", "--objective", "goodput"] if "replicas" in values else []))
    result = tuning.world.evaluate(Job(Setting.of(values), Part(0, len(tuning.workload), whole=True), 0))
    summary = summary_of(given, tmp_path / "run", *flags.split())
    assert not result.failed
    assert result.figures["digest"] == summary["plan_digest"]
    assert result.values[0] == summary["goodput_per_s"]
    assert result.figures["attainment"] == summary["slo_attainment"]["share"]
    for figure in ("ttft_ms.p99", "tpot_ms.p50", "e2e_ms.mean"):
        latency, statistic = figure.split(".")
        assert result.figures[figure] == pytest.approx(summary[latency][statistic])
    if "replicas" in values:
        assert result.figures["gpu_s"] == pytest.approx(summary["cluster"]["gpu_seconds"])


def test_of_a_part_only_what_comes_in_full_swing_counts(given: list[str]) -> None:
    tuning = tuning_of(given)
    part = Part(100, 200)
    played = tuning.world.play(Job(Setting.of({"policy": "fcfs", "max_running": 8}), part, 0))
    late, gpu_s = counted(played, part)
    assert len(played.requests) == 100
    assert list(late["number"]) == list(range(50, 100))
    assert 0 < gpu_s < played.gpu_s
    assert played.requests["arrival_ns"].iloc[0] == 0, "a part begins when its first request comes"


def test_a_queue_that_grows_is_not_rewarded_by_a_short_part(given: list[str]) -> None:
    tuning = tuning_of(given)
    slow = Setting.of({"policy": "fcfs", "max_running": 1})
    part = Part(0, 120)
    played = tuning.world.play(Job(slow, part, 0))
    late, gpu_s = counted(played, part)
    objective = tuning.objectives[0]
    assert objective.value(played.requests, played.gpu_s) > 0, "those that came first were served in time"
    assert objective.value(late, gpu_s) == 0


def test_what_has_not_ended_at_the_limit_is_judged_as_if_it_had_then(given: list[str]) -> None:
    """A run that is left says what it was worth until then, and how many it left."""
    tuning = tuning_of(given)
    job = Job(Setting.of({"policy": "fcfs", "max_running": 1}), Part(0, 120, whole=True), 0)
    whole = tuning.world.play(job)
    ends = whole.requests["finish_ns"].to_numpy()
    limit_ns = int(sorted(ends)[40])
    left = tuning.world.play(job._replace(limit_ns=limit_ns))
    what = ["id", "arrival_ns", "output_tokens"]
    done = ends < limit_ns
    assert left.overdue == 120 - done.sum()
    assert left.requests["finish_ns"].to_numpy()[done].tolist() == ends[done].tolist()
    assert set(left.requests["finish_ns"].to_numpy()[~done]) == {limit_ns}
    assert left.requests[what].equals(whole.requests[what])
    result = tuning.world.evaluate(job._replace(limit_ns=limit_ns))
    assert (result.overdue, result.failed) == (left.overdue, "")
    # with time enough it is the run that it always was
    again = tuning.world.play(job._replace(limit_ns=int(ends.max()) + 1))
    assert (again.overdue, again.digest) == (0, whole.digest)
    assert again.requests.equals(whole.requests)


def test_what_cannot_be_is_a_failed_evaluation(given: list[str]) -> None:
    tuning = tuning_of(given)
    result = tuning.world.evaluate(Job(Setting.of({"policy": "fcfs", "kv_tokens": 64}), Part(0, 50), 0))
    assert "cannot hold the longest request" in result.failed
    assert result.simulated == 0


def test_throughput_within_an_slo_is_the_highest_that_is_kept(given: list[str]) -> None:
    tuning = tuning_of(given, "--objective", "throughput", "--attainment", "0.8")
    setting, part = Setting.of({"policy": "fcfs", "max_running": 16}), Part(0, 200)
    (found,) = tuning.world.evaluate(Job(setting, part, 0)).values

    def share(speed: float) -> tuple[float, float]:
        late, _ = counted(tuning.world.play(Job(setting, part, 0), speed), part)
        span_s = (late["finish_ns"].max() - late["arrival_ns"].min()) / 1e9
        return float(tuning.objectives[0].good(late).mean()), float(late["output_tokens"].sum()) / span_s

    from tuning.world import highest_rate

    rate = highest_rate(tuning.world, Job(setting, part, 0), tuning.objectives[0])
    assert share(rate.speed)[0] >= 0.8
    assert share(rate.speed)[1] == pytest.approx(found)
    assert share(rate.speed * 1.1)[0] < 0.8


def test_costs_count_the_tokens_of_good_requests(given: list[str]) -> None:
    tuning = tuning_of(given, "--objective", "cost", "--gpu-hour-price", "2", "--attainment", "0.01")
    played = tuning.world.play(Job(Setting.of({"policy": "fcfs", "max_running": 3}), Part(0, 300, whole=True), 0))
    (objective,) = tuning.objectives
    good = played.requests["output_tokens"].to_numpy()[objective.good(played.requests)].sum()
    assert objective.value(played.requests, played.gpu_s) == pytest.approx(2 * played.gpu_s / 3600 / good * 1e6)
    strict = Objective("cost", objective.slo, target=0.999, price=2)
    assert strict.value(played.requests, played.gpu_s) > objective.value(played.requests, played.gpu_s)


def test_replicas_are_paid_for_as_long_as_they_are_held(given: list[str]) -> None:
    tuning = tuning_of(given, "--replicas", "1:3")
    part = Part(0, 300, whole=True)
    three = Setting.of({"policy": "fcfs", "max_running": 8, "replicas": 3})
    fixed = tuning.world.play(Job(three, part, 0))
    assert fixed.replicas == pytest.approx(3, rel=0.02)
    scaled = tuning.world.play(
        Job(three.replaced("scaling", "autoscale").replaced("autoscale.target_ongoing_requests", 64)
            .replaced("autoscale.downscale_delay_s", 0), part, 0)
    )  # fmt: skip
    assert scaled.gpu_s < fixed.gpu_s


def test_several_objectives_are_parsed_and_wrong_ones_refused() -> None:
    from reports.slo import Slo
    from tuning.errors import TuningError

    slo = Slo.parse("ttft_ms=100")
    names = [o.name for o in parse_objectives(["goodput", "latency:ttft_ms.p99", "cost"], slo, 0.9, None, False)]
    assert names == ["goodput", "latency:ttft_ms.p99", "cost"]
    for wrong, said in (("speed", "unknown objective"), ("goodput:x", "takes nothing after a colon"),
                        ("latency:e2e_ms.p42", "unknown statistic"), ("latency:age", "unknown latency")):  # fmt: skip
        with pytest.raises(TuningError, match=said):
            parse_objectives([wrong], slo, 0.9, None, False)
    with pytest.raises(TuningError, match="goodput needs --slo"):
        parse_objectives(["goodput"], None, 0.9, None, False)
    with pytest.raises(TuningError, match="goodput is given twice"):
        parse_objectives(["goodput", "goodput"], slo, 0.9, None, False)
    with pytest.raises(TuningError, match="--gpu-hour-price has no effect"):
        parse_objectives(["goodput"], slo, 0.9, 2.0, False)
