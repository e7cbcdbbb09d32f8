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

    def planned(self, plan: StepPlan | None) -> None:
        """It has handed out this one, or none."""

    def prepared(self, plan: StepPlan) -> None:
        """The plan is about to be run; the one before it has been completed."""

    def completed(self, plan: StepPlan, ended: list[Sequence]) -> None:
        """The plan has been run."""


class Onlooker:
    """Sees everything and says nothing."""

    def submitted(self, sequence: Sequence) -> None: ...

    def before_plan(self, now_ns: int, aborting: bool) -> None: ...

    def planned(self, plan: StepPlan | None) -> None: ...

    def prepared(self, plan: StepPlan) -> None: ...

    def completed(self, plan: StepPlan, ended: list[Sequence]) -> None: ...


class World:
    """Runs ``requests`` (in order of arrival) to their ends.

    A step takes a random time of about a thousand nanoseconds, and the world a little between two. Each sampled token
    is the last one with ``stop_chance``. Before each plan somebody is aborted with ``abort_chance``: one that is there,
    one that is not yet or no longer, the same one twice. With overlap each plan is asked for while the one before it
    is in flight.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        requests: list[Request],
        rng: Random,
        stop_chance: float,
        abort_chance: float,
        watcher: Watcher,
    ) -> None:
        self.scheduler = scheduler
        self.pending = list(requests)
        self.ids = [request.id for request in requests] + ["nobody"]
        self.rng = rng
        self.stop_chance = stop_chance
        self.abort_chance = abort_chance
        self.watcher = watcher
        self.sequences: list[Sequence] = []
        self.now = rng.randrange(1000)

    def run(self) -> list[Sequence]:
        plan: StepPlan | None = None
        while plan is not None or self.pending or not self.scheduler.idle:
            if plan is None:
                plan = self.ask()
            if plan is None:
                if not self.wait():
                    break
                continue
            self.watcher.prepared(plan)
            sampled = list(iter_sampled(plan))
            ahead = self.ask() if self.scheduler.config.overlap else None
            self.end(plan, sampled)
            plan = ahead
        return self.sequences

    def ask(self) -> StepPlan | None:
        """Hand in what has come, and ask for a plan; its chunks are read at once."""
        scheduler, rng, watcher = self.scheduler, self.rng, self.watcher
        while self.pending and self.pending[0].arrival_ns <= self.now:
            self.sequences.append(scheduler.submit(self.pending.pop(0), self.now))
            watcher.submitted(self.sequences[-1])
        aborting = rng.random() < self.abort_chance
        for request_id in rng.choices(self.ids, k=rng.choice((1, 2))) if aborting else ():
            scheduler.abort(request_id, self.now)
        watcher.before_plan(self.now, aborting)
        plan = scheduler.next_step(self.now)
        watcher.planned(plan)
        return plan

    def wait(self) -> bool:
        """Nothing to do: go on to when there may be. Returns whether that will ever be."""
        wakeup = self.scheduler.next_wakeup()
        times = [request.arrival_ns for request in self.pending[:1]] + ([] if wakeup is None else [wakeup])
        if not times:
            assert self.scheduler.idle, "the scheduler has no plan, waits for nothing, and is not done"
            return False
        self.now = max(self.now, min(times)) + self.rng.randrange(100)
        return True

    def end(self, plan: StepPlan, sampled: list[Sequence]) -> None:
        rng = self.rng
        going = [sequence for sequence in sampled if not sequence.ended]
        stops: dict[int, StopReason] = {s.number: "eos" for s in going if rng.random() < self.stop_chance}
        end = self.now + rng.randrange(400, 1600)
        ended = self.scheduler.complete(plan, StepOutcome([end], end - self.now, 7, stops), end)
        self.watcher.completed(plan, ended)
        self.now = end + rng.randrange(60)


def drive(
    scheduler: Scheduler,
    requests: list[Request],
    rng: Random,
    *,
    stop_chance: float = 0.0,
    abort_chance: float = 0.0,
    watcher: Watcher | None = None,
) -> list[Sequence]:
    """Run ``requests`` to their ends in a :class:`World`; returns their sequences."""
    return World(scheduler, requests, rng, stop_chance, abort_chance, watcher or Onlooker()).run()
