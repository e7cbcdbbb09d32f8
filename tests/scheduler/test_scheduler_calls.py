"""The calls of a scheduler: refusals, aborts, wake-ups, stops, and what is said to those who misuse them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from random_runs import Recorder

from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import HeadStart, Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence


def scheduler_of(policy: str = "fcfs", **settings: Any) -> Scheduler:
    return Scheduler(SchedulerConfig.from_dict({"policy": policy, **settings}))


def request(name: str, prompt: int = 5, output: int = 3, arrival_ns: int = 0) -> Request:
    return Request(name, arrival_ns, prompt, max_tokens=output)


def step(scheduler: Scheduler, now: int, stops: dict[int, Any] | None = None) -> tuple[StepPlan, list[Sequence]]:
    """One step that ends at once, at ``now``."""
    plan = scheduler.next_step(now)
    assert plan is not None
    return plan, scheduler.complete(plan, StepOutcome([now], 1, 0, stops or {}), now)


def run_out(scheduler: Scheduler, now: int) -> None:
    while not scheduler.idle:
        now += 1
        step(scheduler, now)


def ids(plan: StepPlan) -> list[str]:
    return [chunk.sequence.id for chunk in plan.chunks]


# -- who is taken in


@pytest.mark.parametrize(
    ("wanted", "settings", "reason"),
    [
        (
            Request("x", 0, 50, max_tokens=60, output_tokens=51),
            {"context_tokens": 100},
            "101 tokens are more than the model's context of 100",
        ),
        (Request("x", 0, 100, max_tokens=9), {"context_tokens": 100},
         "101 tokens are more than the model's context of 100"),
        (Request("x", 0, 50, max_tokens=15), {"kv_tokens": 64}, "65 tokens are more than the KV memory of 64"),
        (Request("x", 0, 50, max_tokens=15), {"kv_tokens": 79}, "65 tokens are more than the KV memory of 64"),
        (
            Request("x", 0, 50, max_tokens=15, output_tokens=2),
            {"kv_tokens": 64, "layout": "padded"},
            "65 tokens are more than the KV memory of 64",
        ),
        (
            Request("x", 0, 50, max_tokens=15, output_tokens=2),
            {"kv_tokens": 64, "policy": "static"},
            "65 tokens are more than the KV memory of 64",
        ),
    ],
)  # fmt: skip
def test_what_can_never_be_served_is_rejected_with_the_reason(
    wanted: Request, settings: dict[str, Any], reason: str
) -> None:
    recorder = Recorder()
    scheduler = Scheduler(SchedulerConfig.from_dict({"policy": "fcfs", **settings}), recorder)
    assert scheduler.refusal(wanted) == reason
    sequence = scheduler.submit(wanted, 0)
    assert (sequence.state, sequence.reason) == ("rejected", reason)
    assert recorder.ended_ids == ["x"]
    assert scheduler.idle
    assert scheduler.next_step(0) is None
    assert (scheduler.counters.submitted, scheduler.counters.rejected) == (1, 1)


@pytest.mark.parametrize(
    ("wanted", "settings"),
    [
        (Request("x", 0, 50, max_tokens=60, output_tokens=50), {"context_tokens": 100}),
        (Request("x", 0, 99, max_tokens=2048), {"context_tokens": 100}),
        (Request("x", 0, 50, max_tokens=14), {"kv_tokens": 64}),
        (Request("x", 0, 50, max_tokens=2048, output_tokens=14), {"kv_tokens": 64}),
        (Request("x", 0, 50, max_tokens=14), {"kv_tokens": 64, "layout": "padded"}),
    ],
)
def test_what_just_fits_is_served(wanted: Request, settings: dict[str, Any]) -> None:
    scheduler = scheduler_of(**settings)
    sequence = scheduler.submit(wanted, 0)
    run_out(scheduler, 0)
    assert sequence.state == "finished"
    assert sequence.known == sequence.limit <= scheduler.config.context_tokens


def test_an_id_in_use_is_refused_and_an_ended_one_is_free_again() -> None:
    scheduler = scheduler_of()
    scheduler.submit(request("a"), 0)
    with pytest.raises(ValueError, match="request id 'a' is in use"):
        scheduler.submit(request("a"), 0)
    run_out(scheduler, 0)
    again = scheduler.submit(request("a"), 9)
    run_out(scheduler, 9)
    assert again.state == "finished"
    assert (scheduler.counters.submitted, scheduler.counters.finished) == (2, 2)


# -- misuse


def test_a_plan_has_to_be_completed_before_the_next() -> None:
    scheduler = scheduler_of()
    scheduler.submit(request("a"), 0)
    scheduler.next_step(0)
    with pytest.raises(RuntimeError, match="plan 0 has not been completed"):
        scheduler.next_step(1)


def test_only_the_plan_in_flight_can_be_completed_and_only_once() -> None:
    scheduler = scheduler_of()
    scheduler.submit(request("a"), 0)
    plan, _ = step(scheduler, 0)
    with pytest.raises(RuntimeError, match="plan 0 is not in flight"):
        scheduler.complete(plan, StepOutcome([1], 1, 0), 1)


@pytest.mark.parametrize("ends", [[], [1, 2, 3]])
def test_a_stretch_has_one_to_repeat_end_times(ends: list[int]) -> None:
    scheduler = scheduler_of()
    scheduler.submit(request("a"), 0)
    step(scheduler, 0)
    plan = scheduler.next_step(0, 2)
    assert plan is not None
    assert plan.repeat == 2
    with pytest.raises(ValueError, match=f"plan 1: {len(ends)} end times for a stretch of 2 steps"):
        scheduler.complete(plan, StepOutcome(ends, 1, 0), 3)
    assert [s.id for s in scheduler.complete(plan, StepOutcome([1, 2], 1, 0), 2)] == ["a"]


def test_a_stretch_may_end_early() -> None:
    scheduler = scheduler_of()
    sequence = scheduler.submit(request("a", output=10), 0)
    step(scheduler, 0)
    plan = scheduler.next_step(0, 100)
    assert plan is not None
    assert plan.repeat == 9
    scheduler.complete(plan, StepOutcome([1, 2, 3, 4], 1, 0), 4)
    assert sequence.output_tokens == 5
    assert scheduler.counters.steps_decode == 4


# -- aborts


def chunked() -> tuple[Scheduler, Sequence]:
    """One that is being prefilled in chunks, and another that waits behind it."""
    scheduler = scheduler_of(max_prefill_tokens=4, kv_tokens=64, block_tokens=4)
    sequence = scheduler.submit(request("a", prompt=10), 0)
    scheduler.submit(request("b"), 0)
    step(scheduler, 0)
    assert (sequence.state, sequence.computed) == ("prefilling", 4)
    return scheduler, sequence


def test_abort_of_one_that_waits() -> None:
    scheduler = scheduler_of(max_running=1)
    scheduler.submit(request("a"), 0)
    waiting = scheduler.submit(request("b"), 0)
    step(scheduler, 0)
    scheduler.abort("b", 1)
    assert waiting.state == "waiting", "an abort applies at the next plan"
    plan, _ = step(scheduler, 2)
    assert (waiting.state, waiting.finish_ns, waiting.reason) == ("aborted", 2, "aborted")
    assert plan.released == (), "it held no memory"
    run_out(scheduler, 3)
    assert (scheduler.counters.finished, scheduler.counters.aborted) == (1, 1)


def test_abort_between_two_chunks_gives_the_memory_back() -> None:
    scheduler, sequence = chunked()
    assert scheduler.pool.free_blocks == 16 - 3
    scheduler.abort("a", 1)
    plan, _ = step(scheduler, 1)
    assert sequence.state == "aborted"
    assert plan.released == (sequence.number,)
    assert ids(plan) == ["b"]
    run_out(scheduler, 2)
    assert scheduler.pool.free_blocks == 16


def test_abort_of_a_resident_gives_the_memory_back() -> None:
    scheduler = scheduler_of(kv_tokens=64, block_tokens=4)
    a, b = (scheduler.submit(request(name, output=20), 0) for name in "ab")
    for now in range(3):
        step(scheduler, now)
    scheduler.abort("a", 3)
    plan, _ = step(scheduler, 3)
    assert plan.released == (a.number,)
    assert ids(plan) == ["b"]
    assert (a.state, a.output_tokens, b.output_tokens) == ("aborted", 3, 4)
    run_out(scheduler, 4)
    assert scheduler.pool.free_blocks == 16


def test_aborts_of_the_unknown_the_ended_and_the_already_aborted_are_ignored() -> None:
    scheduler = scheduler_of()
    scheduler.submit(request("a"), 0)
    scheduler.submit(request("b"), 0)
    step(scheduler, 0)
    for name in ("nobody", "a", "a"):
        scheduler.abort(name, 1)
    run_out(scheduler, 1)
    scheduler.abort("b", 9)
    assert scheduler.next_step(9) is None
    assert (scheduler.counters.finished, scheduler.counters.aborted) == (1, 1)


def test_abort_of_the_only_one_leaves_nothing_to_do() -> None:
    scheduler, _ = chunked()
    scheduler.abort("a", 1)
    scheduler.abort("b", 1)
    assert scheduler.next_step(1) is None
    assert scheduler.idle
    assert scheduler.pool.free_blocks == scheduler.pool.capacity_blocks


def test_abort_of_a_whole_static_batch_opens_the_next() -> None:
    scheduler = scheduler_of("static", max_running=1)
    scheduler.submit(request("a", output=9), 0)
    scheduler.submit(request("b"), 0)
    for now in range(3):
        step(scheduler, now)
    scheduler.abort("a", 3)
    plan, _ = step(scheduler, 3)
    assert (plan.kind, ids(plan)) == ("prefill", ["b"])


# -- stops that nobody foresaw


def test_an_end_token_ends_a_sequence_at_once() -> None:
    scheduler = scheduler_of(kv_tokens=64, block_tokens=4)
    a, b = (scheduler.submit(request(name, output=20), 0) for name in "ab")
    _, ended = step(scheduler, 0, {b.number: "eos"})
    assert ended == [b]
    assert (b.state, b.reason, b.output_tokens, b.finish_ns) == ("finished", "eos", 1, 0)
    _, ended = step(scheduler, 1)
    assert ended == []
    _, ended = step(scheduler, 2, {a.number: "stop"})
    assert (a.reason, a.output_tokens) == ("stop", 3)
    assert scheduler.idle
    assert scheduler.pool.free_blocks == 16


def test_who_could_not_be_computed_ends_without_the_token_of_the_step() -> None:
    scheduler = scheduler_of(kv_tokens=64, block_tokens=4)
    a, b = (scheduler.submit(request(name, output=20), 0) for name in "ab")
    step(scheduler, 0)
    _, ended = step(scheduler, 1, {b.number: "error"})
    assert ended == [b]
    assert (b.state, b.reason, b.output_tokens, b.finish_ns) == ("aborted", "error", 1, 1)
    scheduler.abort("a", 2, "error")
    assert scheduler.next_step(2) is None
    assert (a.state, a.reason, a.output_tokens) == ("aborted", "error", 2)
    assert (scheduler.counters.finished, scheduler.counters.aborted) == (0, 2)
    assert scheduler.idle
    assert scheduler.pool.free_blocks == 16


@pytest.mark.parametrize("failed", [False, True])
def test_only_what_was_computed_is_shared(failed: bool) -> None:
    scheduler = scheduler_of(kv_tokens=64, block_tokens=4, prefix_cache=True)
    first, second = (Request(name, 0, 10, 3, block_hashes=(1, 2)) for name in "ab")
    number = scheduler.submit(first, 0).number
    step(scheduler, 0, {number: "error" if failed else "eos"})
    scheduler.submit(second, 1)
    plan, _ = step(scheduler, 1)
    assert [(chunk.start, chunk.tokens) for chunk in plan.chunks] == ([(0, 10)] if failed else [(8, 2)])


def test_the_blocks_of_a_row_that_is_planned_already_are_known_when_its_sequence_fails() -> None:
    scheduler = scheduler_of(kv_tokens=64, block_tokens=4, overlap=True)
    sequence = scheduler.submit(request("a", prompt=7, output=20), 0)
    running = scheduler.next_step(0)
    planned = scheduler.next_step(1)
    assert running is not None
    assert planned is not None
    scheduler.complete(running, StepOutcome([2], 1, 0, {sequence.number: "error"}), 2)
    (chunk,) = planned.chunks
    assert len(planned.block_table(sequence)) * 4 >= chunk.start + chunk.tokens
    scheduler.complete(planned, StepOutcome([3], 1, 0), 3)
    assert scheduler.next_step(4) is None
    assert scheduler.pool.free_blocks == 16


def test_those_that_end_in_a_step_come_in_row_order() -> None:
    scheduler = scheduler_of()
    members = [scheduler.submit(request(name, output=2 if name in "ac" else 9), 0) for name in "abcd"]
    step(scheduler, 0)
    _, ended = step(scheduler, 1, {members[1].number: "eos"})
    assert [(s.id, s.reason) for s in ended] == [("a", "length"), ("b", "eos"), ("c", "length")]


def test_all_that_ended_are_released_by_the_next_plan_once() -> None:
    scheduler = scheduler_of()
    members = [scheduler.submit(request(name, output=9 if name == "z" else 2), 0) for name in "abcdez"]
    step(scheduler, 0)
    assert step(scheduler, 1)[0].released == ()
    assert sorted(step(scheduler, 2)[0].released) == [s.number for s in members[:5]]
    assert step(scheduler, 3)[0].released == ()


# -- waiting for a batch


def test_a_batch_that_is_short_wakes_up_when_its_oldest_has_waited() -> None:
    scheduler = scheduler_of("static", min_batch=3, max_wait_s=1e-6)
    assert scheduler.next_wakeup() is None
    scheduler.submit(request("a", arrival_ns=100), 100)
    scheduler.submit(request("b", arrival_ns=400), 400)
    assert scheduler.next_step(400) is None
    assert scheduler.next_wakeup() == 1100
    assert scheduler.next_step(1099) is None
    plan = scheduler.next_step(1100)
    assert plan is not None
    assert ids(plan) == ["a", "b"]
    assert scheduler.next_wakeup() is None


def test_a_batch_that_is_full_does_not_wait() -> None:
    scheduler = scheduler_of("static", min_batch=2, max_wait_s=100.0)
    scheduler.submit(request("a"), 0)
    assert scheduler.next_step(0) is None
    scheduler.submit(request("b"), 1)
    assert scheduler.next_wakeup() is None
    assert scheduler.next_step(1) is not None


# -- preemption


def test_the_newest_loses_its_memory_and_is_computed_again_from_its_first_token() -> None:
    """Four blocks of four: both take two, and the older one's third leaves room for nobody else's."""
    scheduler = scheduler_of(kv_tokens=16, block_tokens=4)
    a, b = (scheduler.submit(request(name, prompt=7, output=8), 0) for name in "ab")
    step(scheduler, 0)
    step(scheduler, 1)
    assert (a.known, scheduler.pool.free_blocks) == (9, 0)
    plan, _ = step(scheduler, 2)
    assert (ids(plan), plan.released) == (["a"], (b.number,))
    assert (b.state, b.known, b.computed, b.preemptions, b.recomputed_tokens) == ("waiting", 9, 0, 1, 8)
    run_out(scheduler, 3)
    assert (b.state, b.output_tokens) == ("finished", 8)
    counters = scheduler.counters
    assert (counters.preemptions, counters.recomputed_tokens) == (1, 8)
    assert counters.linear_useful_prefill == 7 + 7 + 9, "what is recomputed counts as useful"
    assert counters.kv_reused_after_preemption > 0


# -- ageing


@pytest.mark.parametrize(("now", "leader"), [(999, "short"), (1000, "long")])
def test_a_request_is_aged_from_the_threshold_on(now: int, leader: str) -> None:
    scheduler = scheduler_of("sjf-aging", aging_s=1e-6)
    scheduler.submit(request("long", prompt=9, output=9), 0)
    scheduler.submit(request("short", prompt=2, output=9, arrival_ns=500), 500)
    for _ in range(2):
        assert step(scheduler, 500)[0].kind == "prefill"
    assert ids(step(scheduler, now)[0]) == [leader]


# -- service


def test_a_mixed_step_is_service_once_to_everybody_in_it_and_to_nobody_else() -> None:
    """Nobody goes without service for 3 s here, so that service is the time of the steps that a sequence was in."""
    scheduler = scheduler_of("mlfq", phase="mixed", quantum=2, kv_tokens=48, block_tokens=4, preemption="swap")
    sequences: list[Sequence] = []
    served: dict[int, int] = {}
    kinds, now = set(), 0
    while len(sequences) < 12 or not scheduler.idle:
        if len(sequences) < 12:
            sequences.append(scheduler.submit(request(f"r{len(sequences)}", 6, 9, now), now))
        plan = scheduler.next_step(now)
        assert plan is not None
        kinds.add(plan.kind)
        chunks, took = plan.chunks, 3_000_000 + plan.index
        now += took
        scheduler.complete(plan, StepOutcome([now], took, 0), now)
        for chunk in chunks:
            served[chunk.sequence.number] = served.get(chunk.sequence.number, 0) + took
        for sequence in sequences:
            if not sequence.ended:
                assert sequence.service_ns == served.get(sequence.number, 0)
    assert "mixed" in kinds
    assert scheduler.counters.swapped_in


# -- determinism

SCRIPT = """
from random import Random
from fake_world import drive
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
for policy in ("fcfs", "static", "sjf", "sjf-bucket", "sjf-aging", "srpt"):
    rng = Random(5)
    requests = [Request(f"name {i}", i * 700, rng.randint(1, 30), max_tokens=rng.randint(1, 20)) for i in range(25)]
    scheduler = Scheduler(SchedulerConfig(policy=policy, kv_tokens=96, block_tokens=4, max_running=6))
    drive(scheduler, requests, rng, stop_chance=0.02, abort_chance=0.05)
    print(policy, scheduler.digest.hexdigest(), scheduler.counters)
"""


def test_the_hash_seed_changes_nothing() -> None:
    here = Path(__file__).resolve().parent
    outputs = []
    for seed in ("0", "1", "4242"):
        path = os.pathsep.join([str(here), str(here.parents[1])])
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout)
    assert outputs[0].count("RunCounters") == 6
    assert outputs[0] == outputs[1] == outputs[2]


def test_kv_that_comes_with_a_request_is_booked_and_not_computed() -> None:
    scheduler = Scheduler(SchedulerConfig(kv_tokens=64, block_tokens=4))
    had = HeadStart(output_tokens=1, brings_kv=True, first_scheduled_ns=10, first_token_ns=20, last_token_ns=20)
    sequence = scheduler.submit(Request("a", 5, 12, max_tokens=4, head_start=had), 100)
    plan = scheduler.next_step(100)
    assert plan is not None
    assert (plan.kind, plan.features.kv_tokens_read, plan.features.swapped_tokens) == ("decode", 13, 0)
    assert (sequence.known, sequence.computed, sequence.first_scheduled_ns) == (13, 12, 10)
    now = 110
    while plan is not None:
        scheduler.complete(plan, StepOutcome([now], 10, 0), now)
        now += 10
        plan = scheduler.next_step(now)
    assert (sequence.state, sequence.output_tokens, sequence.first_token_ns) == ("finished", 4, 20)
    assert scheduler.counters.longest_gap_ns == 90, "since its last token elsewhere"
    assert scheduler.counters.linear_computed_prefill == 0
    assert scheduler.pool.reserved_tokens == 0


def test_tokens_that_come_without_their_kv_are_computed_with_the_prompt() -> None:
    scheduler = Scheduler(SchedulerConfig(kv_tokens=64))
    sequence = scheduler.submit(Request("a", 5, 12, max_tokens=4, head_start=HeadStart(3, False, 10, 20, 90)), 100)
    plan = scheduler.next_step(100)
    assert plan is not None
    assert (plan.kind, plan.features.new_tokens) == ("prefill", 15)
    (ended,) = scheduler.complete(plan, StepOutcome([150], 50, 0), 150)
    assert (ended, ended.output_tokens, ended.first_token_ns) == (sequence, 4, 20)
    assert scheduler.counters.longest_gap_ns == 60


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (HeadStart(4), "comes with 4 output tokens; must be >= 0 and < 4"),
        (HeadStart(-1), "must be >= 0"),
        (HeadStart(0, brings_kv=True), "it brings KV, and so must have an output token"),
    ],
)
def test_a_head_start_that_cannot_be_is_refused(start: HeadStart, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request("a", 0, 3, max_tokens=4, head_start=start)


def test_one_that_brings_kv_and_waits_is_aborted_like_any_other() -> None:
    scheduler = Scheduler(SchedulerConfig(kv_tokens=64))
    scheduler.submit(Request("a", 0, 3, max_tokens=4, head_start=HeadStart(1, True)), 0)
    scheduler.abort("a", 1)
    assert scheduler.next_step(1) is None
    assert (scheduler.counters.aborted, scheduler.idle, scheduler.pool.reserved_tokens) == (1, True, 0)
