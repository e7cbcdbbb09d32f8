"""Whatever is missing, cut short or not ours: a report shows what there is and says what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade_runs import four_requests
from simulated_runs import simulated_run

import bench
from reports.html import render_report
from reports.rows import RunFolderError
from reports.salvage import salvage_run


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def spoilt_digest(folder: Path) -> None:
    (folder / "summary.json").unlink()
    text = (folder / "steps.csv").read_text()
    (folder / "steps.csv").write_text(text.replace("decode:", "encode:", 1))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (without("manifest.json"), "manifest.json is missing"),
    "half a manifest": (cut("manifest.json", 0.5), "manifest.json is not JSON"),
    "a manifest that is a list": (write("manifest.json", "[]"), "manifest.json must hold a JSON object, not list"),
    "no requests": (without("requests.csv"), "requests.csv is missing"),
    "half of the requests": (cut("requests.csv", 0.5), "where the summary counted 40"),
    "no steps": (without("steps.csv"), "steps.csv is missing"),
    "half of the steps": (cut("steps.csv", 0.5), "where the summary counted"),
    "another table": (write("steps.csv", "a,b\n1,2\n"), "steps.csv lacks the column"),
    "not a table": (write("requests.csv", "\x00\x01 rubbish"), "requests.csv has 0 rows where the summary counted 40"),
    "half a summary": (cut("summary.json", 0.5), "summary.json is not JSON"),
    "another version": (write("summary.json", '{"schema_version": 99}'), "schema version 99, this program reads 1"),
    "an empty summary": (write("summary.json", '{"schema_version": 1}'), "summary.json has no 'requests'"),
    "no gaps": (without("gaps.json"), "gaps.json is missing"),
    "other gaps": (write("gaps.json", '{"sub_bits": 3}'), "gaps.json is not a histogram of this version"),
    "a digest that is none": (spoilt_digest, "steps.csv, column digest: not a plan digest: 'encode:"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    simulated_run(folder, policy="fcfs", layout="padded")
    return folder


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_has_a_report_that_says_so(name: str, whole: Path, tmp_path: Path) -> None:
    damage, said = DAMAGE[name]
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    damage(folder)
    run = salvage_run(folder)
    assert any(said in problem for problem in run.problems)
    page = render_report([run])
    assert "Incomplete." in page
    assert said.replace("'", "&#x27;") in page
    # what can be read is there
    if name not in ("no requests", "half of the requests", "not a table"):
        assert len(run.requests) == 40
        assert run.summary["e2e_ms"]["n"] == 40


def test_a_whole_run_and_a_killed_one_have_no_problems(whole: Path, tmp_path: Path) -> None:
    assert salvage_run(whole).problems == ()
    four_requests(tmp_path / "killed").writer.flush()
    killed = salvage_run(tmp_path / "killed")
    assert killed.problems == ()
    assert killed.partial


def test_a_summary_that_cannot_be_read_is_made_again_from_the_rows(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    written = json.loads((folder / "summary.json").read_text())
    cut("summary.json", 0.9)(folder)
    made = salvage_run(folder).summary
    assert made["partial"]
    for key in ("ttft_ms", "e2e_ms", "itl_ms", "output_tokens_per_s", "plan_digest"):
        assert made[key] == written[key]


def test_what_is_no_run_folder_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "requests.csv").write_text("name,age\nx,1\n")
    for name, why in (
        ("none", "is not a run folder: it does not exist"),
        ("file", "is not a run folder: it is a file"),
        ("empty", "is not a run folder: manifest.json is missing"),
        ("other", "is not a run folder"),
    ):
        with pytest.raises(RunFolderError, match=why):
            salvage_run(tmp_path / name)


def test_of_several_folders_those_that_can_be_read_are_reported(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, foreign, out = tmp_path / "broken", tmp_path / "foreign", tmp_path / "report.html"
    shutil.copytree(whole, broken)
    without("gaps.json")(broken)
    foreign.mkdir()
    folders = [str(folder) for folder in (whole, broken, foreign)]
    assert bench.main(["--mode", "report", *folders, "--out", str(out), "--quiet"]) == bench.OK
    said = capsys.readouterr().err
    assert f"{broken}: gaps.json is missing" in said
    assert f"left out: {foreign} is not a run folder" in said
    assert "gaps.json is missing" in out.read_text()
    assert bench.main(["--mode", "report", str(foreign), "--out", str(out)]) == bench.USAGE


def test_a_spoilt_journal_is_no_reason_to_have_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = simulated_run(tmp_path / "real", journal=True)
    simulated_run(tmp_path / "sim")
    manifest = {**real.manifest, "world": "real"}
    (tmp_path / "real" / "manifest.json").write_text(json.dumps(manifest))
    cut("replay.jsonl", 0.4)(tmp_path / "real")
    with (tmp_path / "real" / "replay.jsonl").open("a") as journal:
        journal.write("\nrubbish\n")
    out = tmp_path / "report.html"
    runs = [str(tmp_path / name) for name in ("real", "sim")]
    assert bench.main(["--mode", "report", *runs, str(tmp_path / "sim"), "--out", str(out), "--quiet"]) == bench.OK
    assert "not replayed" in capsys.readouterr().err
    assert "not replayed" in out.read_text()
