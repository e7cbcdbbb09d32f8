"""A world without a model: it runs plans on a jittered clock, and ends, aborts and stops requests as it pleases."""

from __future__ import annotations

from random import Random
from typing import Protocol

from scheduler.plan import StepOutcome, StepPlan, StopReason, iter_sampled
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence


class Watcher(Protocol):
    """Looks on; raises when something is not as it must be."""

    def submitted(self, sequence: Sequence) -> None:
        """A request has been handed in."""

    def before_plan(self, now_ns: int, aborting: bool) -> None:
        """The scheduler is about to be asked for a plan."""

    def planned(self, plan: StepPlan) -> None:
        """It has handed out this one."""

    def completed(self, plan: StepPlan, ended: list[Sequence]) -> None:
        """The plan has been run."""


def drive(
    scheduler: Scheduler,
    requests: list[Request],
    rng: Random,
    *,
    stop_chance: float = 0.0,
    abort_chance: float = 0.0,
    watcher: Watcher | None = None,
) -> list[Sequence]:
    """Run ``requests`` (in order of arrival) to their ends; returns their sequences.

    A step takes a random time of about a thousand nanoseconds, and the world a little between two. Each sampled token
    is the last one with ``stop_chance``. Before each plan somebody is aborted with ``abort_chance``: one that is there,
    one that is not yet or no longer, the same one twice.
    """
    pending = list(requests)
    ids = [request.id for request in requests] + ["nobody"]
    sequences: list[Sequence] = []
    now = rng.randrange(1000)
    while pending or not scheduler.idle:
        while pending and pending[0].arrival_ns <= now:
            sequences.append(scheduler.submit(pending.pop(0), now))
            if watcher is not None:
                watcher.submitted(sequences[-1])
        aborting = rng.random() < abort_chance
        for request_id in rng.choices(ids, k=rng.choice((1, 2))) if aborting else ():
            scheduler.abort(request_id, now)
        if watcher is not None:
            watcher.before_plan(now, aborting)
        plan = scheduler.next_step(now)
        if plan is None:
            wakeup = scheduler.next_wakeup()
            times = [request.arrival_ns for request in pending[:1]] + ([] if wakeup is None else [wakeup])
            if not times:
                assert scheduler.idle, "the scheduler has no plan, waits for nothing, and is not done"
                break
            now = max(now, min(times)) + rng.randrange(100)
            continue
        if watcher is not None:
            watcher.planned(plan)
        stops: dict[int, StopReason] = {s.number: "eos" for s in iter_sampled(plan) if rng.random() < stop_chance}
        end = now + rng.randrange(400, 1600)
        ended = scheduler.complete(plan, StepOutcome([end], end - now, 7, stops), end)
        if watcher is not None:
            watcher.completed(plan, ended)
        now = end + rng.randrange(60)
    return sequences
