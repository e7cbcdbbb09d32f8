"""A validation matrix from the command line, on a random model: run, stopped, gone on with, and refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from core import matrix
from core.runs import Session
from engine.models import LoadedModel
from simulator.profiles import profile_path

CELLS = """
rounds: 2
cells:
  - {workload: TRACE, policy: [fcfs, srpt], load: [0.5, 1.2], requests: 30}
  - {workload: TRACE, policy: fcfs, layout: padded, load: 0.5, requests: 30, max_running: 4, label: few}
"""


pytestmark = pytest.mark.usefixtures("small_model")


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The command, but for ``--out``."""
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{i},{20 + i % 7},{3 + i % 5}\n" for i in range(40))
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    path = tmp_path / "cells.yaml"
    path.write_text(CELLS.replace("TRACE", str(trace)))
    return [
        "--mode", "validate", "--quiet", "--max-running", "6", "--costs", "roofline:l4:qwen2.5-0.5b",
        "--matrix", str(path), "--seed", "1",
    ]  # fmt: skip


def test_every_cell_is_run_in_rounds_and_simulated(given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bench.main([*given, "--out", str(out)]) == 0
    cells = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/cell.json")}
    assert set(cells) == {
        "trace-fcfs-paged-50", "trace-fcfs-paged-120", "trace-srpt-paged-50", "trace-srpt-paged-120",
        "trace-fcfs-padded-50-few",
    }  # fmt: skip
    for name, about in cells.items():
        assert about["replayed"] == {"1": True, "2": True}
        assert about["rate_per_s"] == pytest.approx(about["load"] * about["capacity_per_s"])
        for place in ("real-1", "real-2", "sim"):
            assert (out / name / place / "requests.csv").is_file()
    table = pd.read_csv(out / "matrix.csv")
    assert set(table["rounds"]) == {2}
    throughput = table[table["figure"] == "output_tokens_per_s"]
    assert len(throughput) == 5
    assert set(throughput["policy"]) == {"fcfs", "srpt", "fcfs few"}
    assert "in every round of 5 of 5 cells" in (out / "matrix.md").read_text()


def test_one_that_was_stopped_goes_on(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    measured: list[str] = []
    measure = matrix.CellRun.measure

    def counted(self: Any, round_: int, costs: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(f"{self.cell.name} {round_}")
        return measure(self, round_, costs)

    monkeypatch.setattr(matrix.CellRun, "measure", counted)
    assert bench.main([*given, "--out", str(out)]) == 130
    assert len(pd.read_csv(out / "matrix.csv")["policy"]) > 0
    rates = {path: json.loads(path.read_text())["rate_per_s"] for path in out.glob("*/cell.json")}
    monkeypatch.setattr(
        matrix.CellRun,
        "measure",
        lambda self, r, costs: measured.append(f"{self.cell.name} {r}") or measure(self, r, costs),
    )
    assert bench.main([*given, "--out", str(out)]) == 0
    assert len(measured) == len(set(measured)) == 10
    assert rates == {path: json.loads(path.read_text())["rate_per_s"] for path in out.glob("*/cell.json")}
    # nothing is left to run
    assert bench.main([*given, "--out", str(out)]) == 0
    assert len(measured) == 10


def test_its_report_is_made_again_without_the_engine(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench.main([*given, "--out", str(out)]) == 0
    first = (out / "matrix.csv").read_text()
    (out / "matrix.csv").unlink()

    def nothing(self: Session) -> LoadedModel:
        raise AssertionError("there is no engine here")

    monkeypatch.setattr(Session, "model", nothing)
    moved = out.rename(tmp_path / "elsewhere")
    report = ["--mode", "report", "--quiet", str(moved)]
    assert bench.main(report) == 0
    assert (moved / "matrix.csv").read_text() == first
    assert bench.main([*report, "--costs", "roofline:t4:qwen2.5-0.5b"]) == 0
    others = pd.read_csv(moved / "matrix.csv")
    assert list(others["mean"]) == list(pd.read_csv(io.StringIO(first))["mean"])
    assert list(others["simulated"]) != list(pd.read_csv(io.StringIO(first))["simulated"])
    capsys.readouterr()
    assert bench.main([*report, "--out", str(tmp_path / "page.html")]) == 2
    assert "--out has no effect on the report of a matrix" in capsys.readouterr().err
    (moved / "matrix.json").write_text("{}")
    assert bench.main(report) == 2
    assert "matrix.json cannot be read" in capsys.readouterr().err
    assert bench.main(["--mode", "report", str(moved / "trace-fcfs-paged-50" / "sim"), "--costs", "h100-qwen-7b"]) == 2
    assert "--costs has no effect on a report of runs" in capsys.readouterr().err


def test_profiles_kept_with_it_are_taken_for_the_same_model_only(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench.main([*given, "--out", str(out)]) == 0
    about = json.loads((out / "matrix.json").read_text())
    (out / "matrix.json").write_text(json.dumps({**about, "costs": "mine.csv.xz"}))
    (out / "mine.csv.xz").write_bytes(profile_path("h100-qwen-7b").read_bytes())
    capsys.readouterr()
    assert bench.main(["--mode", "report", "--quiet", str(out)]) == 2
    error = capsys.readouterr().err
    assert "mine.csv.xz were recorded with" in error
    assert "the model shape:qwen-7b (simulated: small)" in error


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("cells: 5", "must have 'cells', a list"),
        ("cells: []", "has no cells"),
        ("cells: [5]", "a cell must be a mapping of flags to values, not 5"),
        ("cells: [{policy: fcfs, load: 1}]", "a cell lacks workload"),
        ("cells: [{workload: seed, policy: fcfs, load: high}]", "load is 'high'; must be a share"),
        ("cells: [{workload: seed, policy: fcfs, load: 0}]", "load is 0; must be a share"),
        ("cells: [{workload: seed, policy: fcfs, load: [0.5, 0.5]}]", "has the cell seed-fcfs-paged-50 twice"),
        ("cells: [{workload: seed, policy: fcfs, load: 1, label: a b}]", "label 'a b' must be letters"),
        ("cells: [{workload: seed, policy: fcfs, load: 1, colour: red}]", "unknown flag 'colour'"),
        ("cells: [{workload: seed, policy: fifo, load: 1}]", "fifo"),
        ("rounds: 0\ncells: [{workload: seed, policy: fcfs, load: 1}]", "rounds is 0; must be a whole number >= 1"),
        ("round: 2\ncells: []", "unknown key 'round'"),
        ("cells: [", "is not YAML"),
    ],
)
def test_a_matrix_with_a_mistake_gets_one_line(
    cells: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(cells)
    argv = ["--mode", "validate", "--quiet", "--costs", "roofline:l4:qwen2.5-0.5b", "--matrix", str(path)]
    assert bench.main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_what_the_cells_say_is_refused_beside_them(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*given, "--policy", "fcfs"]) == 2
    assert "--policy has no effect with --matrix" in capsys.readouterr().err
    assert bench.main(["--mode", "validate", "--matrix", str(tmp_path / "cells.yaml")]) == 2
    assert "--matrix needs --costs" in capsys.readouterr().err
    out = tmp_path / "out"
    assert bench.main([*given, "--out", str(out), "--dry-run"]) == 0
    other = out / "trace-fcfs-paged-50"
    other.mkdir(parents=True)
    (other / "cell.json").write_text(json.dumps({"flags": {"policy": "srpt"}, "load": 0.5, "replayed": {}}))
    capsys.readouterr()
    assert bench.main([*given, "--out", str(out)]) == 2
    assert "is of a cell with other flags" in capsys.readouterr().err
