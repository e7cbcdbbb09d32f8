"""``--costs project:...``: everything that it gives says that it is a projection, and mistakes are told in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import bench
from core.costs import read_costs
from reports.run_folder import load_run
from simulator.profiles import profile_path, read_profile

SPEC = "project:h100-qwen-7b:a100-80gb"
SIM = ["--mode", "sim", "--workload", "tour", "--costs", SPEC]
WHAT = "qwen-7b on an NVIDIA A100 80 GB SXM, calibrated on NVIDIA H100 80GB HBM3"


def run(*argv: str | Path) -> int:
    return bench.main([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projected") / "run"
    assert run(*SIM, "--quiet", "--out", folder) == 0
    return folder


def test_the_folder_says_that_it_is_a_projection(folder: Path) -> None:
    manifest, summary = (json.loads((folder / name).read_text()) for name in ("manifest.json", "summary.json"))
    for projection in (manifest["projection"], summary["projection"]):
        assert projection.startswith(WHAT)
        assert projection.endswith("not measured on that GPU")
    assert 0 < manifest["calibration"]["paged"]["weights"] <= 1
    assert 0 < manifest["calibration_error"]["paged decode"] < 0.15
    assert len(manifest["sha256"]["costs"]) == 64
    assert load_run(folder).label == "fcfs on paged, projected"


def test_the_report_says_it_first(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "projected time" in html
    assert "simulated time · " not in html
    assert html.index("Projection.") < html.index("TTFT P50")
    assert WHAT in html


def test_the_terminal_says_it_of_costs_runs_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SIM, "--policy", "fcfs,sjf", "--out", tmp_path / "both") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"Projection {SPEC}: {WHAT}")
    assert "Mean error on the recording itself: paged decode" in out
    assert "fcfs on paged, projected" in out
    assert f"Projection: {WHAT}" in out


def test_a_comparison_says_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("--mode", "sim", "--workload", "tour", "--costs", "h100-qwen-7b", "--quiet", "--out", tmp_path / "b") == 0
    )
    capsys.readouterr()
    assert run("--mode", "report", tmp_path / "b", folder, "--out", tmp_path / "c.html") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "fcfs on paged, projected" in out
    assert f"Projection: {WHAT}" in out
    assert f"fcfs on paged, projected: {WHAT}" in (tmp_path / "c.html").read_text()


def test_a_roofline_says_it_too(tmp_path: Path) -> None:
    costs = "roofline:a100-40gb:qwen-7b"
    assert run("--mode", "sim", "--workload", "tour", "--costs", costs, "--quiet", "--out", tmp_path / "run") == 0
    assert load_run(tmp_path / "run").label == "fcfs on paged, projected"
    assert "Projection." in (tmp_path / "run" / "report.html").read_text()


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", "costs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("a projection" in line for line in lines if line.startswith(("project:", "roofline:"))) == 3


def test_profiles_are_named_or_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv.xz"
    shutil.copy(profile_path("h100-qwen2.5-7b"), file)
    by_name = read_costs("project:h100-qwen2.5-7b:l40s")
    by_file = read_costs(f"project:{file}:l40s")
    assert by_file.kv_tokens == by_name.kv_tokens
    assert by_file.name == f"project:{file}:l40s"


def test_a_run_folder_is_projected_as_the_profile_that_it_makes(tmp_path: Path) -> None:
    about, steps = read_profile(profile_path("h100-qwen-7b"))
    folder = tmp_path / "recorded"
    folder.mkdir()
    steps.assign(repeat=1).to_csv(folder / "steps.csv", index=False)
    config = {name: about[name] for name in ("context_tokens", "block_tokens", "max_running", "graph_rows")}
    manifest = {name: about[name] for name in ("hardware", "model", "dtype", "tp")}
    manifest |= {"world": "real", "kv_capacity_tokens": about["kv_tokens"], "config": config}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    of_folder, of_profile = read_costs(f"project:{folder}:a100-80gb"), read_costs(SPEC)
    assert of_folder.kv_tokens == of_profile.kv_tokens
    assert of_folder.shares == of_profile.shares  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ("project:h100-qwen7b:a100-80gb", "did you mean h100-qwen-7b?"),
        ("project:h100-qwen-7b:a100-80g", "did you mean a100-80gb?"),
        ("project:h100-qwen-7b:a100-80gb:lama-2-7b", "did you mean llama-2-7b?"),
        ("project:h100-qwen-7b", "a projection is project:PROFILE:GPU or project:PROFILE:GPU:MODEL"),
        ("project:h100-qwen-7b:a100-80gb:", "a projection is project:PROFILE:GPU or project:PROFILE:GPU:MODEL"),
        ("project:no/such.csv.xz:a100-80gb", "no/such.csv.xz is no cost profile"),
        ("project:h100-qwen-7b:t4", "leaves no room for KV on an NVIDIA T4"),
    ],
)
def test_mistakes_are_told_in_one_line(costs: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--mode", "sim", "--workload", "tour", "--costs", costs) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_layout_that_was_not_recorded_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(*SIM, "--layout", "padded", "--quiet", "--out", tmp_path / "run") == 2
    assert f"{SPEC} has too few padded prefill steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
