"""What a journal keeps of requests and of plans in flight; that it replays is tested beside it."""

from __future__ import annotations

import io
import json
from random import Random
from typing import Any

import pytest

from scheduler.config import SchedulerConfig
from scheduler.journal import BlockNumbers, JournaledScheduler, JournalError, replay
from scheduler.plan import StepOutcome, StepPlan, StopReason, iter_sampled
from scheduler.request import HeadStart, Request
from scheduler.scheduler import Scheduler

CONFIG: dict[str, Any] = {"kv_tokens": 64, "block_tokens": 4, "max_running": 5, "max_prefill_tokens": 16}


class Delivered(Scheduler):
    """Keeps the requests that it was handed."""

    requests: list[Request]

    def submit(self, request: Request, now_ns: int) -> Any:
        self.__dict__.setdefault("requests", []).append(request)
        return super().submit(request, now_ns)


def journal_of(*requests: Request, **settings: Any) -> list[str]:
    stream = io.StringIO()
    scheduler = JournaledScheduler(SchedulerConfig.from_dict({**CONFIG, **settings}), stream)
    for request in requests:
        scheduler.submit(request, 5)
    scheduler.next_step(5)
    return stream.getvalue().splitlines(keepends=True)


def test_deadlines_and_priorities_come_back() -> None:
    sent = [
        Request("plain", 0, 5),
        Request("all", 1, 6, 7, 3, "eos", "tenant", -2, 99, (7, 8)),
        Request("due", 2, 7, deadline_ns=0),
        Request("hashed", 3, 8, block_hashes=(7, 9)),
    ]
    lines = journal_of(*sent)
    again = replay(lines, world=Delivered)
    assert again.exact
    requests = again.scheduler.requests  # type: ignore[attr-defined]
    assert [(r.id, r.deadline_ns, r.priority, r.stop_kind) for r in requests] == [
        (r.id, r.deadline_ns, r.priority, r.stop_kind) for r in sent
    ]
    assert [r.block_hashes for r in requests] == [(), (0, 1), (), (0, 2)]


def test_a_head_start_from_elsewhere_comes_back() -> None:
    sent = [
        Request("with KV", 9, 5, head_start=HeadStart(2, True, 1, 3, 4)),
        Request("hashed", 9, 8, block_hashes=(7,), deadline_ns=11, head_start=HeadStart(0, False, 2)),
        Request("plain", 9, 5),
    ]
    again = replay(journal_of(*sent), world=Delivered)
    assert again.exact
    requests = again.scheduler.requests  # type: ignore[attr-defined]
    assert [(r.head_start, r.deadline_ns) for r in requests] == [(r.head_start, r.deadline_ns) for r in sent]


def test_a_request_without_deadline_and_hashes_takes_no_room_for_them() -> None:
    (submit,) = json.loads(journal_of(Request("plain", 0, 5))[1])["in"]
    assert submit[-1] == 0, "its priority is the last"
    (submit,) = json.loads(journal_of(Request("due", 0, 5, deadline_ns=17))[1])["in"]
    assert submit[-2:] == [0, 17]


def test_block_hashes_are_written_as_runs() -> None:
    source = Random(1)
    shared = [source.getrandbits(64) for _ in range(200)]
    own = [[source.getrandbits(64) for _ in range(100)] for _ in range(3)]
    numbers = BlockNumbers()
    assert numbers.runs(shared) == [0, 200]
    assert numbers.runs(shared[:150] + own[0]) == [0, 150, 200, 100]
    # right behind each other by chance
    assert numbers.runs(shared + own[0]) == [0, 300]
    assert numbers.runs(own[1]) == [300, 100]
    assert numbers.runs([]) == []


def test_runs_keep_what_is_equal_equal_whatever_the_hashes_are() -> None:
    source = Random(2)
    numbers = BlockNumbers()
    prompts = [[source.randrange(30) for _ in range(source.randrange(12))] for _ in range(200)]
    back = [BlockNumbers.expand(numbers.runs(prompt)) for prompt in prompts]
    names: dict[int, int] = {}
    for prompt, numbered in zip(prompts, back, strict=True):
        assert len(prompt) == len(numbered)
        assert all(names.setdefault(block, number) == number for block, number in zip(prompt, numbered, strict=True))
    assert len(set(names.values())) == len(names)


# -- plans in flight


def overlapping_run(seed: int, **settings: Any) -> tuple[list[str], JournaledScheduler]:
    """A world that asks for the next plan before it completes the one in flight, with stops and aborts."""
    rng, stream = Random(seed), io.StringIO()
    scheduler = JournaledScheduler(SchedulerConfig.from_dict({**CONFIG, "overlap": True, **settings}), stream)
    pending = []
    for n in range(16):
        hidden, stop_kind = rng.choice(((None, "length"), (4, "length"), (4, "eos")))
        pending.append(Request(f"r{n}", n * 700, rng.randint(1, 24), rng.randint(3, 20), hidden, stop_kind))
    ids = [request.id for request in pending]
    now, running = 0, None
    while pending or not scheduler.idle:
        while pending and pending[0].arrival_ns <= now:
            scheduler.submit(pending.pop(0), now)
        if rng.random() < 0.04:
            scheduler.abort(rng.choice(ids), now, rng.choice(("aborted", "error")))
        following = scheduler.next_step(now)
        if running is not None:
            complete(scheduler, running, now + rng.randint(400, 1600), rng)
        now += rng.randint(1600, 1700)
        running = following
    return stream.getvalue().splitlines(keepends=True), scheduler


def complete(scheduler: Scheduler, plan: StepPlan, end_ns: int, rng: Random) -> None:
    live = [s.number for s in iter_sampled(plan) if not s.ended]
    reasons: tuple[StopReason, ...] = ("eos", "error")
    stops = {number: rng.choice(reasons) for number in live if rng.random() < 0.05}
    scheduler.complete(plan, StepOutcome([end_ns], 300, 7, stops), end_ns)


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "srpt", "mlfq"])
def test_runs_with_a_plan_in_flight_replay_exactly(policy: str) -> None:
    wasted = 0
    for seed in range(8):
        lines, scheduler = overlapping_run(seed, policy=policy)
        again = replay(lines)
        assert again.exact, again.first_difference
        assert again.scheduler.counters == scheduler.counters
        assert again.scheduler.digest.hexdigest() == scheduler.digest.hexdigest()
        wasted += scheduler.counters.wasted_rows
    assert wasted


def test_calls_stand_in_the_order_in_which_they_were_made() -> None:
    lines, _ = overlapping_run(3)
    entries = [json.loads(line) for line in lines[1:]]
    calls = [(entry["e"], entry.get("i")) for entry in entries]
    assert calls[:4] == [("plan", 0), ("plan", 1), ("complete", 0), ("plan", 2)]
    planned = [i for e, i in calls if e == "plan" and i is not None]
    completed = [i for e, i in calls if e == "complete"]
    assert planned == completed == list(range(len(planned)))
    # a question that found no plan moves the one in flight on, too
    assert any(entry["e"] == "plan" and "i" not in entry and not entry["in"] for entry in entries)


def test_a_world_that_knows_of_end_tokens_too_early_is_found() -> None:
    """As if every plan were made after the one before it had been completed."""
    found = 0
    for seed in range(8):
        lines, _ = overlapping_run(seed)
        early = list(lines)
        for at in range(2, len(early)):
            if '"complete"' in early[at] and '"plan"' in early[at - 1] and '"complete"' not in early[at - 2]:
                early[at - 1], early[at] = early[at], early[at - 1]
        assert sorted(early) == sorted(lines)
        try:
            found += not replay(early).exact
        except JournalError:
            found += 1
    assert found >= 6


@pytest.mark.parametrize("index", ["null", "7", "99", '"0"', "[]"])
def test_completing_a_plan_that_is_not_in_flight_is_named(index: str) -> None:
    lines, _ = overlapping_run(3)
    at = next(i for i, line in enumerate(lines) if '"complete"' in line)
    wrong = lines[at].replace('"i":0', f'"i":{index}')
    with pytest.raises(JournalError, match=f"^line {at + 1}: malformed"):
        replay([*lines[:at], wrong, *lines[at + 1 :]])


def test_a_shortened_stretch_replays() -> None:
    stream = io.StringIO()
    scheduler = JournaledScheduler(SchedulerConfig.from_dict({**CONFIG, "overlap": True}), stream)
    scheduler.submit(Request("a", 0, 4, 40), 0)
    first = scheduler.next_step(0, 100)
    assert first is not None
    scheduler.complete(first, StepOutcome([10], 5, 5), 10)
    stretch = scheduler.next_step(10, 100)
    assert stretch is not None
    assert stretch.repeat > 3
    scheduler.shorten(stretch, 2)
    following = scheduler.next_step(15, 100)
    scheduler.complete(stretch, StepOutcome([20, 30], 10, 10), 30)
    assert following is not None
    lines = stream.getvalue().splitlines(keepends=True)
    again = replay(lines)
    assert again.exact, again.first_difference
    assert again.scheduler.digest.hexdigest() == scheduler.digest.hexdigest()
    assert not replay([line for line in lines if '"shorten"' not in line]).exact
