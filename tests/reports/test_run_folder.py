from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade_runs import MS, FakeClock, HandMade, every_part, four_requests, request_row, step

from reports.figures import why_missing
from reports.rows import REQUEST_COLUMNS, STEP_COLUMNS, RunFolderError, digest_entry, digest_text, read_requests
from reports.run import look_up
from reports.run_folder import FLUSH_S, GAPS_S, RunWriter, load_run
from reports.summary import verdict
from scheduler.plan import DigestEntry, StepFeatures


def test_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    four_requests(tmp_path / "run", {"name": "mine"}).close()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"manifest.json", "requests.csv", "steps.csv", "gaps.json", "summary.json", "report.html"}
    assert names == expected
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == {"name": "mine"}


def test_pandas_reads_the_tables(tmp_path: Path) -> None:
    four_requests(tmp_path / "run").close(report=False)
    requests = pd.read_csv(tmp_path / "run" / "requests.csv")
    steps = pd.read_csv(tmp_path / "run" / "steps.csv")
    assert tuple(requests.columns) == REQUEST_COLUMNS
    assert tuple(steps.columns) == STEP_COLUMNS
    assert set(StepFeatures._fields) <= set(steps.columns)
    rejected = requests[requests["outcome"] == "rejected"].iloc[0]
    assert pd.isna(rejected["first_token_ns"])
    assert rejected["reason"] == "100 tokens are more than the model's context of 64"
    assert steps["repeat"].tolist() == [1, 2]
    assert steps["end_ns"].tolist() == [100 * MS, 300 * MS]


def test_a_closed_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    closed = four_requests(tmp_path / "run").close(report=False)
    read = load_run(tmp_path / "run")
    assert not read.partial
    assert read.summary == json.loads(json.dumps(closed.summary))
    pd.testing.assert_frame_equal(read.requests, closed.requests)
    pd.testing.assert_frame_equal(read.steps, closed.steps)
    assert read.gaps is not None
    assert read.gaps.describe(1.0) == closed.gaps.describe(1.0)


def test_names_that_a_csv_must_quote_come_back(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    names = ['a,b "c"', "two\nlines", "NA", "007", "üñ 模型 🚀"]
    for number, name in enumerate(names):
        made.request(number, 0, 0, 1, 2, output=2, name=name, tenant=name)
    run = made.close(report=False)
    assert run.requests["id"].tolist() == names
    assert run.requests["tenant"].tolist() == names


def test_a_step_that_was_planned_ahead_starts_as_the_one_before_ends(tmp_path: Path) -> None:
    run = every_part(tmp_path / "run").close(report=False)
    assert run.steps["overlap"].tolist() == [0, 1, 0, 0, 0]
    assert run.steps["start_ns"].tolist() == [0, 100 * MS, 200 * MS, 400 * MS, 500 * MS]
    assert run.steps["kind"].tolist() == ["prefill", "mixed", "decode", "mixed", "mixed"]
    assert run.steps["decode_rows"].tolist() == [0, 1, 2, 2, 1]
    assert run.steps["swapped_tokens"].tolist() == [0, 0, 0, 9, 9]


def test_tables_from_before_mixed_steps_are_read(tmp_path: Path) -> None:
    closed = four_requests(tmp_path / "run").close(report=False)
    for name, new in (
        ("steps.csv", ["decode_rows", "decode_context_tokens", "swapped_tokens", "overlap"]),
        ("requests.csv", ["priority", "swapped_out", "swapped_in", "prefix_hit_tokens"]),
    ):
        path = tmp_path / "run" / name
        pd.read_csv(path).drop(columns=new).to_csv(path, index=False)
    read = load_run(tmp_path / "run")
    pd.testing.assert_frame_equal(read.steps, closed.steps, check_like=True)
    pd.testing.assert_frame_equal(read.requests, closed.requests, check_like=True)


# -- a run that is killed


def test_rows_reach_the_disk_when_the_clock_says_so(tmp_path: Path) -> None:
    clock = FakeClock()
    made = HandMade(tmp_path / "run", clock=clock)
    made.request(0, 0, 0, 1, 2, output=2)
    assert len(read_requests(tmp_path / "run")) == 0
    clock.now += FLUSH_S
    made.request(1, 0, 0, 1, 2, output=2)
    assert len(read_requests(tmp_path / "run")) == 2


def test_gaps_reach_the_disk_every_second(tmp_path: Path) -> None:
    clock = FakeClock()
    made = HandMade(tmp_path / "run", clock=clock)
    made.writer.gaps(np.array([MS]), 1)
    clock.now += GAPS_S
    made.step(0, 0, [1])
    assert load_run(tmp_path / "run").gaps.count == 1


def test_a_killed_run_gives_a_report_of_what_was_written(tmp_path: Path) -> None:
    four_requests(tmp_path / "run").writer.flush()
    run = load_run(tmp_path / "run")
    assert run.partial
    assert verdict(run.summary).startswith("Partial")
    assert run.summary["requests"]["finished"] == 2
    assert look_up(run.summary, "e2e_ms.max") == 300
    assert look_up(run.summary, "padding_waste.prefill") == 1 - 14 / 16
    for path in ("itl_ms.mean", "kv.peak_tokens", "starvation.longest_gap_s", "preemptions", "requests.submitted"):
        assert look_up(run.summary, path) is None, path
        assert "the run did not end" in why_missing(run.summary, path), path


def test_a_killed_run_says_what_of_its_parts_is_in_no_row(tmp_path: Path) -> None:
    every_part(tmp_path / "run").writer.flush()
    summary = load_run(tmp_path / "run").summary
    assert summary["steps"]["mixed"] == 3
    assert summary["swapped"]["tokens"] == 18
    for path in ("swapped.out", "prefix.hit_tokens", "overlap.wasted_rows", "kv.time_weighted.utilisation"):
        assert look_up(summary, path) is None, path
        assert "the run did not end" in why_missing(summary, path), path


def test_a_killed_runs_digest_is_that_of_its_steps(tmp_path: Path) -> None:
    made = four_requests(tmp_path / "run")
    made.writer.flush()
    assert load_run(tmp_path / "run").summary["plan_digest"] == made.digest.hexdigest()


@pytest.mark.parametrize("name", ["requests.csv", "steps.csv"])
def test_a_file_cut_anywhere_can_still_be_read(tmp_path: Path, name: str) -> None:
    made = four_requests(tmp_path / "run")
    made.request(9, 0, 0, 1, 2, output=2, name='quoted "two\nlines"')
    made.writer.flush()
    path = tmp_path / "run" / name
    data = path.read_bytes()
    table = "requests" if name.startswith("requests") else "steps"
    rows = []
    for size in range(0, len(data) + 1, 37):
        path.write_bytes(data[:size])
        rows.append(len(getattr(load_run(tmp_path / "run"), table)))
    path.write_bytes(data)
    assert rows == sorted(rows)
    assert rows[0] == 0
    assert len(getattr(load_run(tmp_path / "run"), table)) == (5 if table == "requests" else 2)


def test_leaving_the_context_early_keeps_the_rows(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RunWriter(tmp_path / "run", {}, FakeClock()) as writer:
            writer.ended(request_row(0, 0, 0, 1, 2, output=2))
            writer.gaps(np.array([MS]), 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    run = load_run(tmp_path / "run")
    assert run.partial
    assert len(run.requests) == 1
    assert run.gaps is not None


# -- what cannot be written or read


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty; name a new or an empty folder"):
        RunWriter(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        RunWriter(folder, {}).abandon()
        assert (folder / "manifest.json").is_file()


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_in_the_way_is_named(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file") as caught:
        RunWriter(tmp_path / "file" / "run" if inside else tmp_path / "file", {})
    assert "\n" not in str(caught.value)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make writes beyond ``size`` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_line_and_loses_nothing_written(tmp_path: Path) -> None:
    clock = FakeClock()
    writer = RunWriter(tmp_path / "run", {}, clock)
    plan, outcome = step(0, 0, [1])

    def fill() -> None:
        for _ in range(100):
            clock.now += 1
            writer.stepped(plan, 1, outcome)

    with files_of_at_most(2000), pytest.raises(RunFolderError, match="cannot write") as caught:
        fill()
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    writer.abandon()
    assert len(load_run(tmp_path / "run").steps) >= 10


def test_what_is_no_run_folder_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder: it has no manifest"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", "{", "is not JSON"),
        ("manifest.json", "[]", "must hold a JSON object"),
        ("summary.json", '{"schema_version": 99}', "schema version 99"),
        ("gaps.json", "{}", "histogram"),
        ("requests.csv", "id,number\nx,1\n", "lacks the column 'tenant'"),
        ("steps.csv", ",".join(STEP_COLUMNS) + "\n" + ",".join(["x"] * len(STEP_COLUMNS)) + "\n", "steps.csv"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    four_requests(tmp_path / "run").close(report=False)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(RunFolderError, match=message) as caught:
        load_run(tmp_path / "run")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digest_survives_its_cell() -> None:
    entry = DigestEntry("decode", 3, (1 << 64) - 1, 5, 7, 9)
    assert digest_entry(digest_text(entry, 4)) == entry._replace(repeat=4)
    with pytest.raises(ValueError, match="not a plan digest"):
        digest_entry("decode:1:2")
