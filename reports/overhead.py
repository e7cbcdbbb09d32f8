"""How long the scheduler itself takes, in a real run and in a simulated one."""

from __future__ import annotations

import time

from scheduler.config import SchedulerConfig
from scheduler.journal import JournaledScheduler
from scheduler.observer import Observer
from scheduler.plan import StepOutcome, StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence


class TimedScheduler(Scheduler):
    """A scheduler that adds up the wall time of its ``next_step`` and ``complete``, in :attr:`spent_ns`."""

    def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
        super().__init__(config, observer)
        self.spent_ns = 0

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        start = time.perf_counter_ns()
        plan = super().next_step(now_ns, max_repeat)
        self.spent_ns += time.perf_counter_ns() - start
        return plan

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        start = time.perf_counter_ns()
        ended = super().complete(plan, outcome, now_ns)
        self.spent_ns += time.perf_counter_ns() - start
        return ended


class TimedJournaledScheduler(JournaledScheduler, TimedScheduler):
    """The same, writing a journal, whose own time is not counted."""
