from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade_runs import four_requests
from simulated_runs import simulated_run

from reports import chronicle
from reports.chronicle import COHORT, DECODE, OTHERS, PREEMPTED, PREFILL, QUEUED, SERVED, Piece, Story, merged, tell
from reports.run_folder import load_run
from reports.waste import column

SHORT_MEMORY = {"policy": "fcfs", "layout": "paged", "max_running": 16, "kv_tokens": 320, "block_tokens": 16}
KINDS = (
    {"policy": "fcfs", "layout": "padded"},
    {"policy": "sjf", "layout": "padded"},
    {"policy": "sjf-bucket", "layout": "padded", "bucket": "16"},
    {"policy": "fcfs", "layout": "paged", "phase": "mixed", "chunk_tokens": 32},
    SHORT_MEMORY,
)


@pytest.mark.parametrize("journal", [False, True], ids=["rows", "journal"])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_story_is_as_long_as_its_row_says(settings: dict[str, object], journal: bool, tmp_path: Path) -> None:
    run = simulated_run(tmp_path / "run", journal=journal, **settings)
    told = tell(run, column(run.requests, "number").tolist())
    assert (told.source, told.note) == ("the journal" if journal else "the rows", "")
    rows = run.requests.set_index("number")
    assert sorted(told.stories) == sorted(rows.index)
    for number, story in told.stories.items():
        row = rows.loc[number]
        assert story.end_ns == row["finish_ns"]
        assert sum(story.spent_ns) == row["finish_ns"] - row["arrival_ns"]
        assert story.spent_ns[QUEUED] == row["first_scheduled_ns"] - row["arrival_ns"]
        assert story.spent_ns[SERVED] == 0
        if not row["preemptions"]:
            # the first token is the prefill's
            assert story.steps == row["output_tokens"] - 1
            assert story.spent_ns[PREEMPTED] == 0
        assert story.pieces[-1].tokens == row["prompt_tokens"] + row["output_tokens"]


def test_the_journal_and_the_rows_tell_the_same(tmp_path: Path) -> None:
    for index, settings in enumerate(KINDS):
        runs = [simulated_run(tmp_path / f"{index}{journal}", journal=journal, **settings) for journal in (False, True)]
        by_rows, by_journal = (tell(run, range(40)) for run in runs)
        assert by_rows.stories == by_journal.stories
        assert by_rows.source != by_journal.source


def test_who_waits_for_a_cohort_and_who_for_prompts_is_told_apart(tmp_path: Path) -> None:
    together = tell(simulated_run(tmp_path / "fcfs", policy="fcfs", layout="padded"), range(40))
    alone = tell(simulated_run(tmp_path / "sjf", policy="sjf", layout="padded"), range(40))

    def total(told: chronicle.Chronicle, state: int) -> int:
        return sum(story.spent_ns[state] for story in told.stories.values())

    # first come, first served steps all that are resident: nobody waits but for the prompts of others
    assert total(together, COHORT) == 0
    assert total(together, OTHERS) > 0
    assert total(alone, COHORT) > total(alone, OTHERS) > 0


def test_a_preempted_request_has_its_time_without_memory(tmp_path: Path) -> None:
    run = simulated_run(tmp_path / "run", **SHORT_MEMORY)
    assert run.summary["preemptions"] > 0
    told = tell(run, range(40))
    often = run.requests[run.requests["preemptions"] > 0]["number"]
    assert {number for number, story in told.stories.items() if story.spent_ns[PREEMPTED]} == set(often)


@pytest.mark.parametrize(("journal", "exact"), [(True, 1e-9), (False, 1e-3)])
def test_memory_over_time_amounts_to_the_counters(journal: bool, exact: float, tmp_path: Path) -> None:
    """The rows do not say when the steps of a stretch ended, so that they are taken as equal."""
    run = simulated_run(tmp_path / "run", journal=journal, **SHORT_MEMORY)
    memory = tell(run, [0]).memory
    assert memory is not None
    took = np.diff(memory.edges_ns)
    counters = run.summary["counters"]
    for values, name in ((memory.held, "held"), (memory.reserved, "reserved"), (memory.free, "free")):
        assert float((values * took).sum()) == pytest.approx(counters[f"kv_{name}_token_ns"], rel=exact)


def test_rows_that_a_scheduler_would_not_plan_are_told_as_far_as_they_agree(tmp_path: Path) -> None:
    run = simulated_run(tmp_path / "run", policy="sjf", layout="padded")
    middle = len(run.steps) // 2
    run.steps.loc[middle, "digest"] = run.steps.loc[middle - 1, "digest"]
    told = tell(run, range(40))
    assert told.note.startswith(f"told for the first {middle} of {len(run.steps)} rows")
    early = run.requests[run.requests["finish_ns"] < run.steps["start_ns"][middle]]["number"]
    late = run.requests[run.requests["finish_ns"] > run.steps["end_ns"][middle]]["number"]
    assert len(early)
    assert all(told.stories[number].spent_ns[DECODE] > 0 for number in early)
    for number in late:
        row = run.requests.set_index("number").loc[number]
        assert told.stories[number].end_ns == row["finish_ns"]
        assert told.stories[number].spent_ns[SERVED] == row["finish_ns"] - row["first_token_ns"]


def test_only_so_many_steps_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "MOST_PLANS", 10)
    for journal, unit in ((False, "of"), (True, "steps")):
        told = tell(simulated_run(tmp_path / str(journal), journal=journal), range(40))
        assert told.note.startswith("told for the first 10 " + unit)
        assert told.detailed


def test_what_cannot_be_replayed_is_told_from_the_rows_with_the_reason(tmp_path: Path) -> None:
    plain = four_requests(tmp_path / "plain").close(report=False)
    reasons = {
        "the manifest does not hold the scheduler's settings": plain,
        "the run overlapped steps": simulated_run(tmp_path / "a", overlap=True),
        "the run had a prefix cache": simulated_run(tmp_path / "b", prefix_cache=True, layout="paged"),
    }
    for reason, run in reasons.items():
        told = tell(run, column(run.requests, "number").tolist())
        assert told.note.startswith(reason)
        assert not told.detailed
        assert told.memory is None
    story = tell(plain, [0]).stories[0]
    ms = 1_000_000
    assert story.pieces == [Piece(PREFILL, 100 * ms, 11), Piece(SERVED, 300 * ms, 13)]


def test_rows_that_no_scheduler_wrote_are_told_as_they_are(tmp_path: Path) -> None:
    run = simulated_run(tmp_path / "run", gap_ns=0)
    run.requests["id"] = "the same"
    told = tell(run, range(40))
    assert told.note.startswith("the rows cannot be replayed: request id 'the same' is in use")
    assert not told.detailed
    assert {story.end_ns for story in told.stories.values()} == set(run.requests["finish_ns"])


def test_a_spoilt_journal_is_named(tmp_path: Path) -> None:
    run = simulated_run(tmp_path / "run", journal=True)
    journal = tmp_path / "run" / chronicle.JOURNAL_FILE
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:30]) + "rubbish\n")
    told = tell(load_run(tmp_path / "run"), range(40))
    assert "line 31" in told.note
    assert told.detailed
    assert sorted(told.stories) == sorted(run.requests["number"])


def test_short_pieces_are_merged_and_the_ends_stay() -> None:
    story = Story(0, 0)
    for index in range(50):
        story.add((DECODE, OTHERS)[index % 2], story.end_ns + (100 if index % 9 else 1000), index)
    spent = list(story.spent_ns)
    few = merged(story.pieces, 0, 12)
    assert len(few) <= 12
    assert few[-1].end_ns == story.end_ns
    # the six long ones take turns
    assert [piece.state for piece in few] == [DECODE, OTHERS] * (len(few) // 2)
    assert len(few) >= 6
    assert spent == story.spent_ns
