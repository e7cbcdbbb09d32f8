"""One run of the scheduler or of the slow reference as a list of steps that can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from random_runs import HostCosts, Recorder
from slow_reference import Reference

from scheduler.config import SchedulerConfig
from scheduler.plan import StepFeatures, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.costs import IntegerCosts
from simulator.replica import simulate

SECOND = 1_000_000_000


@dataclass
class Schedule:
    """What ran: per step its kind and, by request id, (start, tokens); when requests ended; and all counters."""

    steps: list[tuple[str, dict[str, tuple[int, int]]]] = field(default_factory=list)
    features: list[StepFeatures] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """of the steps, in units of time"""
    finish: dict[str, int] = field(default_factory=dict)
    """in units of time"""
    counters: Any = None

    @property
    def rows(self) -> list[str]:
        """The ids in each step, joined."""
        return ["".join(sorted(members)) for _, members in self.steps]


class Watched(Scheduler):
    """A scheduler whose plans are read as they are handed out."""

    def __init__(self, config: SchedulerConfig, recorder: Recorder) -> None:
        super().__init__(config, recorder)
        self.plans: list[tuple[StepPlan, dict[str, tuple[int, int]]]] = []
        self.all: list[Sequence] = []

    def submit(self, request: Request, now_ns: int) -> Sequence:
        self.all.append(super().submit(request, now_ns))
        return self.all[-1]

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        plan = super().next_step(now_ns, max_repeat)
        if plan is not None:
            self.plans.append((plan, {c.sequence.id: (c.start, c.tokens) for c in plan.chunks}))
        return plan


#: parametrizes a test over both writings of the semantics
both_writings = pytest.mark.parametrize("writing", ["reference", "scheduler"])


def run_by_hand(
    writing: str,
    requests: list[Request],
    *,
    unit_ns: int = SECOND,
    device: int = 1,
    host: int = 0,
    **settings: Any,
) -> Schedule:
    """Run ``requests``; each step takes ``device`` units of time on the device and ``host`` on the host."""
    config = SchedulerConfig.from_dict({"kv_tokens": 1000} | settings)
    costs = HostCosts(IntegerCosts(device * unit_ns, 0, 0, 0), host * unit_ns)
    schedule = Schedule()
    if writing == "reference":
        slow = Reference(config, costs, requests, []).run()
        schedule.steps, schedule.features, schedule.counters = slow.steps, slow.features, slow.counters
        schedule.ends = [end // unit_ns for _, end in slow.spans]
        schedule.finish = {job.id: job.finish // unit_ns for job in slow.jobs}
        return schedule
    recorder = Recorder()
    scheduler = Watched(config, recorder)
    simulate(requests, scheduler, costs, max_repeat=1)
    schedule.steps = [(plan.kind, members) for plan, members in scheduler.plans]
    schedule.features, schedule.counters = recorder.features, scheduler.counters
    schedule.ends = [step[0] // unit_ns for step in recorder.steps]
    schedule.finish = {s.id: s.finish_ns // unit_ns for s in scheduler.all}
    return schedule
