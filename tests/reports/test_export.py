"""Tables, charts and the summary of a report: documented, and the same bytes on every machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
from simulated_runs import simulated_run

import bench
from reports import tables
from reports.agreement import agree
from reports.export import export
from reports.html import render_report
from reports.markdown import markdown_summary
from reports.run import Run
from reports.tables import tables_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A 'real' run and its simulation, and repeats of another policy."""
    top = tmp_path_factory.mktemp("runs")
    simulated_run(top / "bucket-0", policy="sjf-bucket", layout="padded")
    simulated_run(top / "fcfs-0", policy="fcfs", layout="padded")
    simulated_run(top / "fcfs-1", seed=1, policy="fcfs", layout="padded")
    return sorted(top.iterdir())


def exported(folders: list[Path], out: Path, **environment: str) -> dict[str, bytes]:
    """The files of ``--tables`` by name, made in a process of its own."""
    command = [sys.executable, str(ROOT / "bench.py"), "--mode", "report", *map(str, folders), "--quiet"]
    command += ["--out", str(out / "report.html"), "--tables", str(out / "tables")]
    out.mkdir()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, timeout=300)
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # the command has the paths in it
    return {name: data.replace(str(out).encode(), b"OUT") for name, data in found.items()}


def test_the_same_folders_give_the_same_bytes_elsewhere(folders: list[Path], tmp_path: Path) -> None:
    """Another home, time zone, language, order of sets, and settings of matplotlib."""
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "matplotlibrc").write_text("font.size: 17\nxtick.direction: in\nfigure.dpi: 300\nsavefig.dpi: 50\n")
    here = exported(folders, tmp_path / "here", PYTHONHASHSEED="1")
    there = exported(
        folders, tmp_path / "there", PYTHONHASHSEED="2", TZ="Asia/Tokyo", LANG="C", LC_ALL="C",
        HOME=str(tmp_path), MPLCONFIGDIR=str(settings), MATPLOTLIBRC=str(settings), COLUMNS="40",
    )  # fmt: skip
    assert {Path(name).suffix for name in here} >= {".csv", ".svg", ".md", ".html"}
    # Parquet files name the library's version
    assert [name for name in here if here[name] != there.get(name) and not name.endswith(".parquet")] == []


def test_every_column_is_documented(folders: list[Path], tmp_path: Path) -> None:
    """A table has a heading in docs/report.md, and each of its columns a row below it."""
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    documented = {
        heading: set(re.findall(r"^\| `(\w+)`", below, re.MULTILINE))
        for heading, below in re.findall(r"^### `(\w+)\.csv`\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    runs = [bench.load_run(folder) for folder in folders]
    exported_tables = all_tables(runs)
    assert {name: set(table.columns) for name, table in exported_tables.items()} == documented


def all_tables(runs: list[Run]) -> dict[str, pd.DataFrame]:
    from reports.page.inside import insides_of
    from reports.page.series import series_of

    agreements = [agree(runs[1], runs[2])]
    return tables_of(runs, agreements, insides_of(series_of(runs, agreements)))


def test_tables_hold_what_the_runs_do(folders: list[Path]) -> None:
    runs = [bench.load_run(folder) for folder in folders]
    found = all_tables(runs)
    assert len(found["runs"]) == 3
    assert len(found["requests"]) == sum(len(run.requests) for run in runs)
    figures = found["figures"].set_index(["run", "figure"])
    for name, run in zip(found["runs"]["run"], runs, strict=True):
        assert figures.loc[(name, "e2e_ms.p50"), "value"] == run.summary["e2e_ms"]["p50"]
        mine = found["requests"][found["requests"]["run"] == name]
        assert mine["ttft_ms"].mean() == pytest.approx(run.summary["ttft_ms"]["mean"])
        stories = found["stories"][found["stories"]["run"] == name]
        spent = stories[[column for column in stories if column.endswith("_ms")]].sum(axis=1)
        both = mine.set_index("id").loc[stories["id"], "e2e_ms"]
        assert spent.to_numpy() == pytest.approx(both.to_numpy())
    missing = figures["value"].isna()
    assert (figures["note"] != "")[missing].all()
    assert (figures["note"] == "")[~missing].all()
    changes = found["changes"]
    assert set(changes["baseline"]) == {"sjf-bucket on padded"}
    assert set(changes["runs"]) == {2}


def test_charts_stand_alone(folders: list[Path], tmp_path: Path) -> None:
    runs = [bench.load_run(folder) for folder in folders]
    export(tmp_path / "out", render_report(runs), runs)
    charts = list((tmp_path / "out" / "charts").glob("*.svg"))
    assert {"cdf-ttft", "changes", "lanes", "lengths-0", "memory-0", "time-0", "trade", "waits"} <= {
        chart.stem for chart in charts
    }
    for chart in charts:
        text = chart.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "var(" not in text, chart.name


def test_the_summary_is_markdown_for_a_pull_request(folders: list[Path]) -> None:
    runs = [bench.load_run(folder) for folder in folders]
    text = markdown_summary(runs, command="python bench.py --mode report a | b")
    lines = text.splitlines()
    assert lines[0] == "## Lockstep report"
    tables_found = [line for line in lines if line.startswith("|")]
    widths = {line.count("|") - line.count("\\|") for line in tables_found}
    assert len(widths) == 2  # the runs, and the changes
    assert text.count("<details>") == text.count("</details>") == 1
    assert "(n = 1, no interval)" in text
    assert "```sh\npython bench.py --mode report a | b\n```" in text


def test_without_pyarrow_there_is_csv_alone(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    arguments = ["--mode", "report", str(folders[0]), "--quiet", "--out", str(tmp_path / "report.html")]
    assert bench.main([*arguments, "--tables", str(tmp_path / "out")]) == bench.OK
    assert "pip install 'lockstep[parquet]'" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.parquet"))
    assert list((tmp_path / "out").glob("*.csv"))


def test_parquet_holds_the_same_as_csv(folders: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    runs = [bench.load_run(folder) for folder in folders]
    found = all_tables(runs)
    tables.write_tables(tmp_path, found)
    for name, table in found.items():
        read = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(read.columns) == list(table.columns)
        assert len(read) == len(table)


def test_a_folder_that_cannot_be_written_is_told_in_a_line(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["--mode", "report", str(folders[0]), "--quiet", "--out", str(tmp_path / "report.html")]
    assert bench.main([*arguments, "--tables", str(tmp_path / "file")]) == bench.USAGE
    assert "cannot write" in capsys.readouterr().err
