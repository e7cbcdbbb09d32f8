"""The seed's example: residents of 50, 52, 55, 60 and 100 tokens under sjf, and when their lengths align."""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome
from scheduler.request import Request
from scheduler.scheduler import Scheduler

STEP_NS = 1_000_000
LENGTHS = (50, 52, 55, 60, 100)


def residents() -> tuple[Scheduler, int]:
    """Five sequences of those lengths, and the time at which they have them: t = 0 of the example.

    A prefill emits the first output token, so a prompt of n - 1 tokens makes a sequence of n known ones. sjf prefills
    one length a step: five steps, all before the first decode step.
    """
    scheduler = Scheduler(SchedulerConfig(policy="sjf"))
    for length in LENGTHS:
        scheduler.submit(Request(f"length {length}", 0, length - 1, max_tokens=400), 0)
    now = 0
    for _ in LENGTHS:
        plan = scheduler.next_step(now)
        assert plan is not None
        assert plan.kind == "prefill"
        now += STEP_NS
        scheduler.complete(plan, StepOutcome([now], STEP_NS, 0), now)
    return scheduler, now


def test_four_align_at_10_and_five_at_50() -> None:
    """The seed prints t = 8 for the four; from 50 to 52 it takes 2 steps, to 55 3 more, to 60 5 more: 10."""
    scheduler, now = residents()
    members = sorted(scheduler._state.residents.members(), key=lambda s: s.number)
    lengths = {0: [s.known for s in members]}
    rows = []
    for t in range(1, 51):
        plan = scheduler.next_step(now)
        assert plan is not None
        assert plan.kind == "decode"
        rows.append(len(plan.chunks))
        now += STEP_NS
        scheduler.complete(plan, StepOutcome([now], STEP_NS, 0), now)
        lengths[t] = [s.known for s in members]

    assert lengths[0] == [50, 52, 55, 60, 100]
    assert lengths[1] == [51, 52, 55, 60, 100]
    assert lengths[2] == [52, 52, 55, 60, 100]
    assert lengths[5] == [55, 55, 55, 60, 100]
    assert lengths[8] == [58, 58, 58, 60, 100]
    assert lengths[9] == [59, 59, 59, 60, 100]
    assert lengths[10] == [60, 60, 60, 60, 100]
    assert lengths[49] == [99, 99, 99, 99, 100]
    assert lengths[50] == [100, 100, 100, 100, 100]
    for t, row in lengths.items():
        shortest = min(row)
        assert (row.count(shortest) >= 4) == (t >= 10)
        assert (row.count(shortest) == 5) == (t == 50)

    assert rows == [1] * 2 + [2] * 3 + [3] * 5 + [4] * 40
    assert sum(rows[:10]) == 23
    assert sum(rows) == 183


def test_the_same_in_stretches() -> None:
    """Fast-forward goes from one alignment to the next: 2, 3, 5 and 40 steps."""
    scheduler, now = residents()
    stretches = []
    for _ in range(4):
        plan = scheduler.next_step(now, 1000)
        assert plan is not None
        stretches.append((plan.features.rows, plan.repeat))
        ends = [now + STEP_NS * (step + 1) for step in range(plan.repeat)]
        now = ends[-1]
        scheduler.complete(plan, StepOutcome(ends, STEP_NS * plan.repeat, 0), now)
    assert stretches == [(1, 2), (2, 3), (3, 5), (4, 40)]
    assert sum(rows * repeat for rows, repeat in stretches) == 183
    assert sum(repeat for _, repeat in stretches) == 50


def test_a_shorter_newcomer_resets_the_batch_to_one() -> None:
    """Why pure sjf is slow: whoever comes in shorter takes the device from an aligned batch."""
    scheduler, now = residents()
    for _ in range(10):
        plan = scheduler.next_step(now)
        assert plan is not None
        now += STEP_NS
        scheduler.complete(plan, StepOutcome([now], STEP_NS, 0), now)
    scheduler.submit(Request("newcomer", now, 9, max_tokens=100), now)
    kinds = []
    for _ in range(3):
        plan = scheduler.next_step(now)
        assert plan is not None
        kinds.append((plan.kind, [chunk.sequence.id for chunk in plan.chunks]))
        now += STEP_NS
        scheduler.complete(plan, StepOutcome([now], STEP_NS, 0), now)
    assert kinds == [("prefill", ["newcomer"]), ("decode", ["newcomer"]), ("decode", ["newcomer"])]
