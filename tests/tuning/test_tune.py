"""``--mode tune`` from its flags to its folder: what it finds, what it writes, and that the commands are accepted."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from core.arguments import given_flags, parse_arguments
from reports.run_folder import load_run
from serving.arguments import parse_command
from tuning.commands import commands_for
from tuning.setting import Setting
from tuning.tune import Tuning


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


def mistake(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    assert run(*argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def tuned(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    return found


def answer(folder: Path) -> dict[str, Any]:
    """All that may not hang on who simulated it, and when."""
    found = tuned(folder)
    found.pop("seconds")
    found.pop("command")
    found.pop("commands")
    return found


@pytest.fixture(scope="module")
def finished(command: tuple[str, ...], space: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuning that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(*command, "--space", space, "--out", folder) == 0
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of its folder."""
    return shutil.copytree(finished, tmp_path / "out")


def test_a_recommendation_comes_with_all_that_makes_it_sure(out: Path) -> None:
    found = tuned(out)
    best = found["recommended"]
    assert found["search"]["settings"] == 12
    assert found["search"]["full_runs"] < 12 + 2
    assert [one["title"] for one in found["baselines"]] == ["fcfs", "fcfs, chunked prefill"]
    assert found["baselines"][0]["setting"] == {"policy": "fcfs", "max_prefill_tokens": 2048, "max_running": 256}
    assert len(best["held_out_gain"]["parts"]) == len(found["workload"]["held_out"]) == 2
    assert {one["knob"] for one in found["sensitivity"]} <= {"policy", "max_running", "phase"}
    assert found["seeds"] == 1
    assert best["over_seeds"] is None
    values = [one["values"][0] for one in found["finalists"]]
    assert max(values) >= found["baselines"][0]["values"][0]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for part in ("Settings beside each other", "How to use it", "What each knob does", found["commands"]["serve"]):
        assert part in text
    assert "What was searched" in page
    whole = load_run(out / "recommended").summary
    assert whole["requests"]["submitted"] == 630
    assert page.count("<svg") == 1
    rows = (out / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 + 2


def test_the_simulation_of_the_command_gives_what_was_found(out: Path, tmp_path: Path) -> None:
    found = tuned(out)
    argv = shlex.split(found["commands"]["simulate"])[2:]
    searched = str(found["workload"]["searched"])
    assert run(*argv, "--requests", searched, "--quiet", "--out", tmp_path / "run") == 0
    summary = load_run(tmp_path / "run").summary
    assert summary["plan_digest"] == found["recommended"]["figures"]["digest"]
    assert summary["goodput_per_s"] == found["recommended"]["values"][0]


@pytest.mark.usefixtures("small_model")
def test_the_commands_and_the_files_are_accepted(out: Path) -> None:
    commands = tuned(out)["commands"]
    for name in ("simulate", "run"):
        argv = shlex.split(commands[name])
        assert argv[:2] == ["python", "bench.py"]
        assert run(*argv[2:], "--dry-run", "--quiet") == 0
    workload = shlex.split(commands["run"])[5]
    assert run("--mode", "real", "--workload", workload, "--config", out / "bench.yaml", "--dry-run") == 0
    argv = shlex.split(commands["serve"])
    assert argv[:2] == ["python", "api_server.py"]
    from_flags = parse_command(argv[2:], {}).settings.engine.scheduler
    from_file = parse_command(["--config", str(out / "serve.yaml")], {}).settings.engine.scheduler
    assert from_flags == from_file
    setting = tuned(out)["recommended"]["setting"]
    assert {name: from_flags[name] for name in setting} == setting
    assert from_flags["overlap"] is False, "which the simulations did without"


@pytest.mark.parametrize("bucket", ["equal-mass:4", 64, "pow2", "adaptive"])
def test_a_server_takes_every_kind_of_bucket(bucket: int | str, given: list[str]) -> None:
    tuning = Tuning(parse_arguments(given), given_flags(given), "")
    setting = Setting.of({"policy": "sjf-bucket", "bucket": bucket, "max_running": 8})
    commands = commands_for(setting, tuning.space, tuning.args, tuning.workload, tuning.first_costs, "out")
    scheduler = parse_command(shlex.split(commands.serve)[2:], {}).settings.engine.scheduler
    if bucket == "equal-mass:4":
        assert str(scheduler["bucket"]).startswith("edges:"), "a server has no workload to take masses from"
    else:
        assert scheduler["bucket"] == bucket
    parse_arguments(shlex.split(commands.simulate)[2:])


def test_two_workers_give_the_same_answer_as_one(out: Path, given: list[str], space: Path, tmp_path: Path) -> None:
    argv = [*given, "--space", str(space), "--out", str(tmp_path / "two")]
    argv[argv.index("--workers") + 1] = "2"
    assert run(*argv) == 0
    assert answer(tmp_path / "two") == answer(out)


def test_the_same_command_goes_on_with_its_folder(out: Path, given: list[str], space: Path) -> None:
    before = answer(out)
    (out / "tuning.json").unlink()
    assert run(*given, "--space", space, "--out", out) == 0
    assert answer(out) == before
    larger = [*given, "--space", str(space), "--out", str(out)]
    larger[larger.index("--budget") + 1] = "20"
    assert run(*larger) == 0
    assert tuned(out)["search"]["settings"] == 20


def test_a_folder_of_another_tuning_is_refused(
    out: Path, given: list[str], space: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    line = mistake(capsys, *given, "--space", space, "--seed", "5", "--out", out)
    assert "is of another tuning: " in line
    assert "give another --out" in line


def test_a_finished_search_needs_no_optuna(
    out: Path, given: list[str], space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert run(*given, "--space", space, "--out", out) == 0
    line = mistake(capsys, *given, "--space", space, "--out", tmp_path / "new")
    assert line.endswith("searching needs Optuna: pip install 'lockstep[tune]'")


def test_several_objectives_give_the_trade_off(given: list[str], space: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [*given, "--space", str(space), "--objective", "goodput,latency:ttft_ms.p90", "--out", str(out)]
    assert run(*argv) == 0
    found = tuned(out)
    values = [point["values"] for point in found["front"]]
    assert values
    assert values == sorted(values, key=lambda one: one[0])
    assert all(a[1] < b[1] for a, b in pairwise(values)), "more of one costs some of the other"
    assert "The trade-off" in (out / "report.html").read_text()
    assert (out / "report.html").read_text().count("<svg") == 2


def test_replicas_are_tuned_with_router_and_autoscaler(given: list[str], space: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [*given, "--space", str(space), "--replicas", "1:3", "--out", str(out)]
    argv[argv.index("--budget") + 1] = "30"
    assert run(*argv) == 0
    found = tuned(out)
    assert found["objectives"][0]["name"] == "cost"
    assert found["baselines"][0]["setting"]["replicas"] == 3
    assert {"replicas", "router", "scaling"} <= set(found["space"])
    assert found["recommended"]["values"][0] <= found["baselines"][0]["values"][0]
    parse_arguments([*shlex.split(found["commands"]["simulate"])[2:]])


def test_several_replicas_are_served_with_their_files(given: list[str], tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("policy: [fcfs]\nscaling: autoscale\nreplicas: 2:4\nrouter: [least-outstanding]\n"
                    "autoscale.target_ongoing_requests: [4, 8]\nautoscale.upscale_delay_s: 10\nphase: default\n"
                    "autoscale.downscale_delay_s: default\nmax_prefill_tokens: 2048\nmax_running: 32\n"
                    "admission: default\nchunk_tokens: default\nkv_tokens: default\n")  # fmt: skip
    out = tmp_path / "out"
    assert run(*given, "--space", path, "--objective", "cost", "--out", out) == 0
    found = tuned(out)
    if not found["recommended"]["is_baseline"]:
        assert found["commands"]["serve"].startswith(f"python deploy/ray_serve.py --autoscale {out}/autoscale.yaml")
        settings = yaml.safe_load((out / "autoscale.yaml").read_text())
        assert settings["min_replicas"] == 2
        assert run(*shlex.split(found["commands"]["simulate"])[2:], "--dry-run", "--quiet") == 0


def test_an_slo_that_nobody_can_meet_is_said_at_once(
    given: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    argv = [*given, "--out", str(tmp_path / "out")]
    argv[argv.index("--slo") + 1] = "ttft_ms=0.5,tpot_ms=30"
    line = mistake(capsys, *argv)
    assert "no schedule can meet ttft_ms <= 0.5, tpot_ms <= 30" in line
    assert not (tmp_path / "out").exists()
    nearest = line.rpartition("--slo ")[2]
    argv[argv.index("--slo") + 1] = nearest
    assert run(*argv, "--dry-run") == 0
    loosest = dict(part.split("=") for part in nearest.split(","))
    argv[argv.index("--slo") + 1] = f"ttft_ms={0.97 * float(loosest['ttft_ms'])},tpot_ms=30"
    assert "no schedule can meet" in mistake(capsys, *argv, "--dry-run")


def test_a_trace_too_short_for_the_confidence_is_said(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, *given, "--confidence", "0.99")
    assert "has 630 requests, too few for a confidence of 0.99" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "5x"], "is neither a time such as 5m nor a number of settings"),
        (["--budget", "0"], "out of range"),
        (["--rounds", "2"], "--rounds has no effect without --validate-top"),
        (["--validate-s", "20"], "--validate-s has no effect without --validate-top"),
        (["--validate-top", "1", "--validate-s", "20", "--validate-requests", "5"], "leave one out"),
        (["--tune", "bucket", "--replicas", "1:2"], "--replicas has no effect with --tune bucket"),
        (["--tune", "capacity", "--objective", "cost"], "--objective has no effect with --tune capacity"),
        (["--tune", "widths"], "unknown tuning"),
        (["--objective", "profit"], "unknown objective"),
        (["--ray", "local", "--workers", "2"], "--workers has no effect with --ray"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    flags: list[str], said: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    argv = [*given]
    for name in flags[::2]:
        if name in argv:
            place = argv.index(name)
            argv[place : place + 2] = []
    if "--ray" in flags:
        argv += ["--workers", "2"]
        flags = ["--ray", "local"]
        place = argv.index("--workers")
        argv[place : place + 2] = ["--workers", "2"]
    for name in ("--budget", "--confidence", "--slo") if {"bucket", "capacity"} & set(flags) else ():
        place = argv.index(name)
        argv[place : place + 2] = []
    assert said in mistake(capsys, *argv, *flags, "--out", tmp_path / "out")


def test_a_tuning_needs_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mode tune needs --costs" in mistake(capsys, "--mode", "tune", "--slo", "ttft_ms=500")
