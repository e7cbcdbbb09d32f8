"""The same configuration in both worlds, from the command line: recorded, measured and simulated on a random model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench
from reports.rows import read_steps
from reports.run_folder import load_run

pytestmark = pytest.mark.usefixtures("small_model")


def trace(folder: Path, requests: int = 12, prompt: int = 90, output: int = 14) -> Path:
    """Requests that all arrive at once, so that no decision hangs on time."""
    path = folder / "trace.csv"
    rows = (f"0,{prompt + 7 * (i % 5)},{output + i % 9}\n" for i in range(requests))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(rows))
    return path


def validate(folder: Path, *flags: str | Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Summaries of the real and of the simulated run, and the folder of both."""
    out = folder / "out"
    argv = ["--mode", "validate", "--quiet", "--max-running", "6", "--out", out, *flags]
    assert bench.main([str(argument) for argument in argv]) == 0
    runs = {load_run(path.parent).world: load_run(path.parent) for path in out.glob("*-fcfs-paged/summary.json")
            if not path.parent.name.startswith("costs")}  # fmt: skip
    return dict(runs["real"].summary), dict(runs["simulated"].summary), out


def manifest(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return data


def test_mixed_steps_are_recorded_before_they_are_predicted(tmp_path: Path) -> None:
    flags = ("--policy", "fcfs", "--phase", "mixed", "--chunk-tokens", "64", "--requests", "12")
    real, simulated, out = validate(tmp_path, "--workload", trace(tmp_path), *flags)
    assert real["steps"]["mixed"] > 10
    assert (read_steps(out / "costs-mixed-paged")["kind"] == "mixed").sum() >= 3
    assert "paged mixed" in manifest(out / "sim-fcfs-paged")["fit_error"]
    assert real["plan_digest"] == simulated["plan_digest"]
    assert {**real["steps"], "rows_written": None} == {**simulated["steps"], "rows_written": None}
    assert real["counters"]["decode_rows"] == simulated["counters"]["decode_rows"]


def test_both_worlds_run_under_one_configuration(tmp_path: Path) -> None:
    flags = ("--policy", "fcfs", "--phase", "mixed", "--chunk-tokens", "32", "--overlap", "--prefix-cache")
    real, simulated, out = validate(tmp_path, "--workload", trace(tmp_path, 6), *flags)
    configs = [manifest(out / f"{world}-fcfs-paged")["config"] for world in ("real", "sim")]
    assert configs[0] == configs[1]
    assert (configs[0]["phase"], configs[0]["chunk_tokens"], configs[0]["overlap"]) == ("mixed", 32, True)
    assert real["scheduler"] == simulated["scheduler"]
    for name in ("fcfs", "sjf", "mixed"):
        assert manifest(out / f"costs-{name}-paged")["config"]["overlap"] is False, "host time would not show"
    assert real["plan_digest"] == simulated["plan_digest"]


def test_swaps_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    flags = ("--policy", "fcfs", "--preemption", "swap", "--kv-tokens", "480")
    real, simulated, out = validate(tmp_path, "--workload", trace(tmp_path), *flags)
    assert real["swapped"]["out"] > 0
    assert real["swapped"] == simulated["swapped"]
    assert real["tokens"]["recomputed"] == 0
    assert (read_steps(out / "costs-swap-paged")["swapped_tokens"] > 0).any()
    assert manifest(out / "sim-fcfs-paged")["swaps"].endswith("ns a token, recorded")
    assert real["plan_digest"] == simulated["plan_digest"]


def test_plain_runs_are_calibrated_as_before(tmp_path: Path) -> None:
    _, _, out = validate(tmp_path, "--workload", trace(tmp_path, 4), "--policy", "fcfs")
    assert sorted(path.name for path in out.glob("costs-*")) == ["costs-fcfs-paged", "costs-sjf-paged"]


def test_costs_of_another_model_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    played = ("--workload", trace(tmp_path), "--max-running", "6", "--quiet")
    assert bench.main(list(map(str, ("--mode", "real", *played, "--out", tmp_path / "costs")))) == 0
    recorded = manifest(tmp_path / "costs") | {"model": "large", "dtype": "float16"}
    (tmp_path / "costs" / "manifest.json").write_text(json.dumps(recorded))
    argv = ("--mode", "validate", *played, "--costs", tmp_path / "costs", "--out", tmp_path / "out")
    assert bench.main(list(map(str, argv))) == bench.USAGE
    assert "recorded with the model large (simulated: small), the dtype float16 (simulated:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert bench.main([*map(str, argv), "--force", "--jitter"]) == 0
    noted = manifest(tmp_path / "out" / "sim-fcfs-paged")
    assert noted["forced"].startswith("recorded with the model large (simulated: small)")
    assert noted["jitter"] == {"seed": 0}
