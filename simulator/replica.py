"""A replica in simulated time: a simpy process that runs the scheduler's plans for as long as they would take."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy
from simpy.events import NORMAL, EventPriority

from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.costs import CostModel, PerStep

#: after everything else that happens at the same time: what arrives as a step ends is seen by the next plan
LATE = EventPriority(NORMAL + 1)

#: no limit to a stretch
ANY = 1 << 40


#: what a simpy process is made of
Process = Generator[simpy.Event, Any, None]


class StepEnd(simpy.Event):
    """Happens ``delay`` nanoseconds from now, after all other events of that time, unless it is moved forward."""

    def __init__(self, env: simpy.Environment, delay: int) -> None:
        # as simpy.Event does, in one go
        self.env, self.callbacks = env, []
        self._ok, self._value, self._defused = True, None, False
        env.schedule(self, LATE, delay)

    def hasten(self, delay: int) -> None:
        """Happen ``delay`` nanoseconds from now already. Who waits for it is not woken in between."""
        StepEnd(self.env, delay).callbacks.append(self._happen)

    def _happen(self, _: simpy.Event) -> None:
        # when its first time comes nobody waits for it any more
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(self)


class Replica:
    """One scheduler on one simulated device.

    ``max_repeat`` 1 runs step by step; by default the replica fast-forwards through steps in which nothing can
    change. Both give the same result. The environment's time is in integer nanoseconds.
    """

    def __init__(self, env: simpy.Environment, scheduler: Scheduler, costs: CostModel, max_repeat: int = ANY) -> None:
        self._env = env
        self._costs = costs
        self._max_repeat = max_repeat
        #: plans in flight while the next one is made
        self._depth = int(scheduler.config.overlap)
        self._inbox: list[Request | str] = []
        self._arrival: simpy.Event | None = None
        #: the stretch that is running, which something that happens may end early
        self._stretch: StepPlan | None = None
        self._ends: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._end: StepEnd | None = None
        self.scheduler = scheduler
        self.process = env.process(self._run())

    @property
    def now_ns(self) -> int:
        """The simulated time."""
        return int(self._env.now)

    def submit(self, request: Request) -> None:
        """Hand in a request now; the next plan sees it."""
        self._deliver(request)
        if self._stretch is not None and self._stretch.arrival_matters:
            self._cut()

    def abort(self, request_id: str) -> None:
        """End a request early; the next plan sees it."""
        self._deliver(request_id)
        if self._stretch is not None:
            self._cut()

    def _deliver(self, message: Request | str) -> None:
        self._inbox.append(message)
        if self._arrival is not None:
            self._arrival.succeed()
            self._arrival = None

    def _cut(self) -> None:
        """End the stretch with the last step that was decided on by now.

        That is the first that ends now or later; with overlap the one after it, which was planned as that one began.
        """
        now_ns = self.now_ns
        steps = self._first_end_at(now_ns) + self._depth
        if steps < len(self._ends):
            self._ends = self._ends[:steps]
            if self._end is not None:
                self._end.hasten(int(self._ends[-1 - self._depth]) - now_ns)

    def _first_end_at(self, time_ns: int) -> int:
        """How many steps there are up to the first that ends at ``time_ns`` or later."""
        return int(self._ends.searchsorted(time_ns)) + 1

    def _run(self) -> Process:
        env = self._env
        while True:
            plan = self._next_plan()
            if plan is not None:
                yield from self._pipeline(plan) if self._depth else self._execute(plan)
            elif not self._inbox:
                yield self._idle()
                # whatever else happens at this time comes first
                yield StepEnd(env, 0)

    def _next_plan(self) -> StepPlan | None:
        """Hand over what has come in, and ask for the next plan."""
        now_ns, scheduler = self.now_ns, self.scheduler
        if self._inbox:
            for message in self._inbox:
                if isinstance(message, str):
                    scheduler.abort(message, now_ns)
                else:
                    scheduler.submit(message, now_ns)
            self._inbox.clear()
        return scheduler.next_step(now_ns, self._max_repeat)

    def _idle(self) -> simpy.Event:
        self._arrival = self._env.event()
        wakeup = self.scheduler.next_wakeup()
        if wakeup is None:
            return self._arrival
        return self._arrival | self._env.timeout(wakeup - self.now_ns)

    def _execute(self, plan: StepPlan) -> Process:
        """One plan after the other: the host's work and the device's add up."""
        env, columns = self._env, plan.columns()
        device, host = self._costs.device_ns(columns), self._costs.host_ns(columns)
        if plan.repeat == 1:
            yield StepEnd(env, int(device + host))
            now_ns = self.now_ns
            outcome = StepOutcome([now_ns], int(device), int(host))
        else:
            start_ns = self.now_ns
            ends = self._begin(plan, device + host)
            if plan.until_ns <= ends[-1]:
                self._ends = ends = ends[: self._first_end_at(plan.until_ns)]
            self._end = StepEnd(env, int(ends[-1]) - start_ns)
            yield self._end
            self._stretch = self._end = None
            now_ns = self.now_ns
            host_ns = _total(host, len(self._ends))
            outcome = StepOutcome(self._ends, now_ns - start_ns - host_ns, host_ns)
        self.scheduler.complete(plan, outcome, now_ns)

    def _pipeline(self, plan: StepPlan | None) -> Process:
        """Each plan is made as the one before begins its last step: the host's work is hidden under the device's."""
        overlapped = False
        while plan is not None:
            start_ns = self.now_ns
            columns = plan.columns()
            device, host = self._costs.device_ns(columns), self._costs.host_ns(columns)
            self._begin(plan, _larger(device, host))
            if not overlapped:
                # nothing ran while it was planned
                self._ends += _first(device) + _first(host) - _first(_larger(device, host))
            if self._ends.size > 1:
                self._ends = self._ends[: self._decided_on(plan, start_ns)]
            if self._ends.size > 1:
                # the next plan is made as the last step begins
                self._end = StepEnd(self._env, int(self._ends[-2]) - start_ns)
                yield self._end
            self._stretch = self._end = None
            self.scheduler.shorten(plan, len(self._ends))
            following = self._next_plan()
            yield StepEnd(self._env, int(self._ends[-1]) - self.now_ns)
            self.scheduler.complete(plan, self._outcome(device, host), self.now_ns)
            plan, overlapped = following, True

    def _decided_on(self, plan: StepPlan, start_ns: int) -> int:
        """How many steps of a stretch are sure as it begins: it was planned as the step before it began."""
        news = any(isinstance(message, str) or plan.arrival_matters for message in self._inbox)
        if news or plan.until_ns <= start_ns:
            return 1
        return self._first_end_at(plan.until_ns) + 1

    def _begin(self, plan: StepPlan, period: PerStep) -> npt.NDArray[np.int64]:
        """When the steps of ``plan`` end, if they begin now and nothing cuts them; ``period`` is used up."""
        ends = np.full(plan.repeat, period, np.int64) if isinstance(period, int) else period
        ends[0] += self.now_ns
        ends.cumsum(out=ends)
        self._ends, self._stretch = ends, plan
        return ends

    def _outcome(self, device: PerStep, host: PerStep) -> StepOutcome:
        steps = len(self._ends)
        return StepOutcome(self._ends, _total(device, steps), _total(host, steps))


def _larger(device: PerStep, host: PerStep) -> PerStep:
    if isinstance(device, int) and isinstance(host, int):
        return max(device, host)
    larger: npt.NDArray[np.int64] = np.maximum(device, host)
    return larger


def _first(each: PerStep) -> int:
    return each if isinstance(each, int) else int(each[0])


def _total(each: PerStep, steps: int) -> int:
    return each * steps if isinstance(each, int) else int(each[:steps].sum())


def arrivals(env: simpy.Environment, replica: Replica, requests: Iterable[Request]) -> Process:
    """The process that hands in ``requests``, in order of arrival, each at its time."""
    for request in requests:
        if request.arrival_ns > env.now:
            yield env.timeout(request.arrival_ns - env.now)
        replica.submit(request)


def aborts(env: simpy.Environment, replica: Replica, times: Iterable[tuple[int, str]]) -> Process:
    """The process that aborts requests: (time, id), in order of time."""
    for time_ns, request_id in times:
        if time_ns > env.now:
            yield env.timeout(time_ns - env.now)
        replica.abort(request_id)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Python's garbage collector looks at every live request again and again; a simulation makes little garbage."""
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def simulate(
    requests: Iterable[Request],
    scheduler: Scheduler,
    costs: CostModel,
    *,
    max_repeat: int = ANY,
    aborted: Iterable[tuple[int, str]] = (),
) -> Scheduler:
    """Run ``requests`` (in order of arrival) on one replica until all have ended. Returns the scheduler."""
    env = simpy.Environment(initial_time=0)
    replica = Replica(env, scheduler, costs, max_repeat)
    env.process(arrivals(env, replica, requests))
    env.process(aborts(env, replica, aborted))
    with _rare_collections():
        env.run()
    if not scheduler.idle:
        raise RuntimeError(f"the simulation stopped with {scheduler.waiting} waiting, {scheduler.resident} resident")
    return scheduler
