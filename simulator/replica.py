"""A replica in simulated time: a simpy process that runs the scheduler's plans for as long as they would take."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import simpy
from simpy.events import NORMAL, EventPriority

from scheduler.plan import NEVER, Ends, StepColumns, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.costs import CostModel, DecodeLine, LinearDecode, PerStep, TellsOverlap
from simulator.jitter import Jitter
from simulator.warmth import Heat, Warmth

#: after everything else that happens at the same time: what arrives as a step ends is seen by the next plan
LATE = EventPriority(NORMAL + 1)

#: no limit to a stretch
ANY = 1 << 40

#: stretches of more steps than this are reckoned by NumPy: below, its calls take longer than the steps one by one
SHORT: Final = 512

#: a float of less than 2**51 plus this, minus this, is rounded to a whole number as ``round`` does it: in doubles there
#: is no room for a fraction beside it
WHOLE: Final = 6755399441055744.0

#: what a simpy process is made of
Process = Generator[simpy.Event, Any, None]
#: one that says at last whether its steps were run
Steps = Generator[simpy.Event, Any, bool]


class StepEnd(simpy.Event):
    """Happens ``delay`` nanoseconds from now, after all other events of that time, unless it is moved forward.

    Of several replicas' steps that end at one time, that of the lower ``priority`` is first, whenever they began.
    """

    def __init__(self, env: simpy.Environment, delay: int, priority: EventPriority) -> None:
        # as simpy.Event does, in one go
        self.env, self.callbacks = env, []
        self._ok, self._value, self._defused = True, None, False
        self._priority = priority
        env.schedule(self, priority, delay)

    def hasten(self, delay: int) -> None:
        """Happen ``delay`` nanoseconds from now already. Who waits for it is not woken in between."""
        StepEnd(self.env, delay, self._priority).callbacks.append(self._happen)

    def _happen(self, _: simpy.Event) -> None:
        # when its first time comes nobody waits for it any more
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(self)


class Conditions(Protocol):
    """What a replica's hardware goes through: known beforehand, so that a stretch ends where it changes."""

    @property
    def ends_ns(self) -> int:
        """When the replica is lost: a step that has not ended before never does."""

    def factor_at(self, time_ns: int) -> float:
        """How many times as long as usual a step takes that begins at ``time_ns``."""

    def next_change_ns(self, time_ns: int) -> int:
        """When the factor is next another one, after ``time_ns``."""


class Overlapping(NamedTuple):
    """What steps take that overlap: of the device, of the host before the device can begin, and of the host after that,
    while it launches the rest of them."""

    device: PerStep
    host: PerStep
    launch: PerStep


class Replica:
    """One scheduler on one simulated device.

    ``max_repeat`` 1 runs step by step; by default the replica fast-forwards through steps in which nothing can
    change. Both give the same result, with ``jitter`` too. The environment's time is in integer nanoseconds. ``number``
    is its place among others, ``conditions`` what its hardware goes through (default: nothing).
    """

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: Scheduler,
        costs: CostModel,
        max_repeat: int = ANY,
        number: int = 0,
        conditions: Conditions | None = None,
        jitter: Jitter | None = None,
    ) -> None:
        self._env = env
        #: what a step of the device and the host's work for the step after it take at once
        self._together: Callable[[StepColumns, PerStep, PerStep], PerStep] = _larger
        #: what the host goes on launching of a step that the device has begun
        self._launching: Callable[[StepColumns], PerStep] = _at_once
        #: what a rest of the card does to large steps, and how warm it is
        self._warmth: Warmth | None = None
        self._heat = Heat()
        if scheduler.config.overlap and isinstance(costs, TellsOverlap):
            costs = costs.overlapped()
            if costs.warmth is not None:
                self._warmth, self._heat = costs.warmth, Heat(costs.warmth.time_ns)
            self._launching = costs.launching_ns
            if jitter is None:
                self._together = costs.together_ns
            else:
                jitter = jitter.around(costs)
        self._costs = costs
        self._jitter = jitter
        #: what tells the line that decode steps lie on, where each takes what the costs say
        self._linear = costs if isinstance(costs, LinearDecode) and jitter is None and conditions is None else None
        #: that have ended
        self._steps = 0
        # with overlap, how long the last step of a stretch takes shows when the next is planned: where one will be lost
        # with the replica, each step is a stretch of its own
        lost = conditions is not None and conditions.ends_ns < NEVER
        self._max_repeat = 1 if lost and scheduler.config.overlap else max_repeat
        self._priority = EventPriority(LATE + number)
        self._conditions = conditions
        self._stopped = False
        #: plans in flight while the next one is made
        self._depth = int(scheduler.config.overlap)
        self._inbox: list[Request | str] = []
        self._arrival: simpy.Event | None = None
        #: the stretch that is running, which something that happens may end early
        self._stretch: StepPlan | None = None
        self._ends: Ends = []
        self._end: StepEnd | None = None
        #: the host's part of each step
        self._host: PerStep = 0
        self.scheduler = scheduler
        self.process = env.process(self._run())

    @property
    def now_ns(self) -> int:
        """The simulated time."""
        return int(self._env.now)

    def submit(self, request: Request, late: bool = False) -> None:
        """Hand in a request now; the next plan sees it. ``late``: after the steps that end now."""
        self._deliver(request)
        if self._stretch is not None and self._stretch.arrival_matters:
            self._cut(late)

    def abort(self, request_id: str, late: bool = False) -> None:
        """End a request early; the next plan sees it."""
        self._deliver(request_id)
        if self._stretch is not None:
            self._cut(late)

    def stop(self) -> list[Request | str]:
        """Nothing runs from now on. Returns what the scheduler has not been told: requests, and ids to abort."""
        self._stopped = True
        return self._inbox

    def kv_tokens(self, late: bool = False) -> int:
        """KV tokens held after the steps so far. ``late``: with those that end now."""
        held = self.scheduler.kv_tokens
        if self._stretch is None:
            return held
        # with overlap, a step counts as it begins
        steps = bisect_left(self._ends, self.now_ns + late) + self._depth
        return held + self._stretch.features.rows * steps

    def waiting_tokens(self) -> int:
        """Known tokens of requests that wait to be admitted."""
        return self.scheduler.waiting_tokens + sum(_known_tokens(m) for m in self._inbox if isinstance(m, Request))

    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return self.scheduler.waiting + sum(isinstance(message, Request) for message in self._inbox)

    def _deliver(self, message: Request | str) -> None:
        self._inbox.append(message)
        if self._arrival is not None:
            self._arrival.succeed()
            self._arrival = None

    def _cut(self, late: bool) -> None:
        """End the stretch with the last step that was decided on by now.

        That is the first that ends now or later (``late``: later than now); with overlap the one after it, which was
        planned as that one began.
        """
        now_ns = self.now_ns
        steps = self._first_end_at(now_ns + late) + self._depth
        if steps < len(self._ends):
            self._ends = self._ends[:steps]
            if self._end is not None:
                self._end.hasten(int(self._ends[-1 - self._depth]) - now_ns)

    def _first_end_at(self, time_ns: int) -> int:
        """How many steps there are up to the first that ends at ``time_ns`` or later."""
        return bisect_left(self._ends, time_ns) + 1

    def _run(self) -> Process:
        env = self._env
        while not self._stopped:
            plan = self._next_plan()
            if plan is not None and self._depth:
                if not (yield from self._pipeline(plan)):
                    return
            elif plan is not None:
                end = self._begin(plan)
                if end is None:
                    return
                yield end
                self._complete(plan)
            elif not self._inbox:
                yield self._idle()
                # whatever else happens at this time comes first
                yield StepEnd(env, 0, self._priority)

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

    def _times(self, columns: StepColumns, first: int) -> tuple[PerStep, PerStep]:
        """What a plan's steps take on the device and on the host as things are now; ``first``: its first of the run."""
        device, host = self._costs.device_ns(columns), self._costs.host_ns(columns)
        if self._jitter is not None:
            device, host = self._jitter.times(columns, first, device, host)
        return self._as_now(device), self._as_now(host)

    def _as_now(self, each: PerStep) -> PerStep:
        """Usual times as they are under the conditions at this time."""
        factor = 1.0 if self._conditions is None else self._conditions.factor_at(self.now_ns)
        return each if factor == 1 else _scaled(each, factor)

    def _begin(self, plan: StepPlan) -> StepEnd | None:
        """Run a plan from now on, the host's work and the device's after each other; ``None`` if it never ends."""
        start_ns = plan.now_ns
        line = None
        if self._linear is not None and plan.repeat <= SHORT and plan.features.kind == "decode":
            line = self._linear.decode_line(plan.features)
        if line is not None:
            self._host = line[-1]
            self._ends = ends_on_line(line, plan, start_ns)
        else:
            device, self._host = self._times(plan.columns(), self._steps)
            self._ends = _ends(plan, start_ns, device + self._host)
            if plan.until_ns <= int(self._ends[-1]):
                self._ends = self._ends[: self._first_end_at(plan.until_ns)]
            if not self._endures():
                return None
        end = StepEnd(self._env, int(self._ends[-1]) - start_ns, self._priority)
        if plan.repeat > 1:
            self._stretch, self._end = plan, end
        return end

    def _complete(self, plan: StepPlan) -> None:
        """Tell the scheduler of the plan whose last step ends now."""
        self._stretch = self._end = None
        now_ns = int(self._ends[-1])
        host_ns = _total(self._host, len(self._ends))
        outcome = StepOutcome(self._ends, now_ns - plan.now_ns - host_ns, host_ns)
        self._steps += len(self._ends)
        self.scheduler.complete(plan, outcome, now_ns)

    def _endures(self) -> bool:
        """End the stretch with the last step that begins before the conditions change, and that is not lost.

        Returns whether there is any.
        """
        if self._conditions is not None:
            change_ns = self._conditions.next_change_ns(self.now_ns)
            kept = min(self._first_end_at(change_ns), bisect_left(self._ends, self._conditions.ends_ns))
            self._ends = self._ends[:kept]
            if not kept:
                self._stretch = None
        return len(self._ends) > 0

    def _pipeline(self, plan: StepPlan) -> Steps:
        """Each plan is made as the one before begins its last step.

        What a step of the device hides is the host's work for the step *after* it. Returns whether all plans were run.
        """
        times = self._overlapping(plan, self._steps)
        # nothing runs while the first step is planned and launched
        begin_ns, late_ns = self.now_ns + _at(times.host, 0), _at(times.launch, 0)
        while True:
            start_ns = self.now_ns
            if self._warmth is not None:
                times = self._warmed(self._warmth, plan.columns(), times, begin_ns)
            late = self._begin_overlapped(plan, times, begin_ns, late_ns)
            if not self._endures():
                return False
            if len(self._ends) > 1:
                self._ends = self._ends[: self._decided_on(plan, start_ns)]
            if len(self._ends) > 1:
                # the next plan is made as the last step begins
                self._end = StepEnd(self._env, int(self._ends[-2]) - start_ns, self._priority)
                yield self._end
                # fewer steps, if something came in between
                begin_ns = self.now_ns
            self._stretch = self._end = None
            steps = len(self._ends)
            self.scheduler.shorten(plan, steps)
            following = self._next_plan()
            took_ns, late_ns, after = _at(times.device, steps - 1), late[steps - 1], None
            if following is None:
                took_ns = max(took_ns, late_ns)
            else:
                after = self._overlapping(following, self._steps + steps)
                took_ns, late_ns = self._hiding(following.columns(), took_ns, late_ns, after, 0)
            end_ns = begin_ns + took_ns
            if self._conditions is not None:
                # what the device has done before the replica is lost is told, if the host has to leave the next step
                end_ns = min(end_ns, self._conditions.ends_ns - 1)
            self._ends[-1] = end_ns
            yield StepEnd(self._env, end_ns - self.now_ns, self._priority)
            self._steps += steps
            self.scheduler.complete(plan, self._outcome(times), self.now_ns)
            if following is None or after is None:
                return True
            plan, begin_ns = following, self.now_ns
            times = after if self._conditions is None else self._overlapping(plan, self._steps)

    def _overlapping(self, plan: StepPlan, first: int) -> Overlapping:
        """What a plan's steps take as things are now; ``first``: its first of the run."""
        columns = plan.columns()
        device, host = self._times(columns, first)
        return Overlapping(device, host, self._as_now(self._launching(columns)))

    def _warmed(self, warmth: Warmth, columns: StepColumns, times: Overlapping, begin_ns: int) -> Overlapping:
        """What a plan's steps take that begin then, on a card as warm as the steps before have made it."""
        if not warmth.warms(columns):
            return times
        factor = warmth.factor(self._heat.during(begin_ns, _at(times.device, 0)))
        device = _scaled(times.device, factor)
        self._heat.run(begin_ns, _total(device, columns.repeat))
        return times._replace(device=device)

    def _hiding(
        self, after: StepColumns, device_ns: int, late_ns: int, times: Overlapping, step: int
    ) -> tuple[int, int]:
        """What a step takes beside the host's work for ``step`` of ``after``, and how late the host is with that one.

        The host is ``late_ns`` when it begins to work: it is still launching the step that runs.
        """
        took_ns = late_ns + int(self._together(after, device_ns - late_ns, _at(times.host, step)))
        return took_ns, max(0, late_ns + _at(times.host, step) + _at(times.launch, step) - took_ns)

    def _begin_overlapped(self, plan: StepPlan, times: Overlapping, begin_ns: int, late_ns: int) -> list[int]:
        """Set when the plan's steps end; returns how late the host is with each, which is ``late_ns`` with the first.

        What the host does for the plan after it is not known yet: the last ends when device and host are done with it.
        """
        columns, repeat = plan.columns(), plan.repeat
        late = [late_ns] + [0] * (repeat - 1)
        if isinstance(times.launch, int) and times.launch == 0:
            both = self._together(columns, times.device, _shifted(times.host))
            self._ends = _ends(plan, begin_ns, both)
            last_ns = int(self._ends[-2]) if repeat > 1 else begin_ns
        else:
            self._ends, last_ns = [], begin_ns
            for step in range(1, repeat):
                device_ns = _at(times.device, step - 1)
                took_ns, late[step] = self._hiding(columns, device_ns, late[step - 1], times, step)
                last_ns += took_ns
                self._ends.append(last_ns)
            self._ends.append(last_ns)
        self._ends[-1] = last_ns + max(_at(times.device, repeat - 1), late[-1])
        self._stretch = plan
        return late

    def _decided_on(self, plan: StepPlan, start_ns: int) -> int:
        """How many steps of a stretch are sure as it begins: it was planned as the step before it began."""
        news = any(isinstance(message, str) or plan.arrival_matters for message in self._inbox)
        if news or plan.until_ns <= start_ns:
            return 1
        return self._first_end_at(plan.until_ns) + 1

    def _outcome(self, times: Overlapping) -> StepOutcome:
        steps = len(self._ends)
        return StepOutcome(self._ends, _total(times.device, steps), _total(times.host, steps))


def _known_tokens(request: Request) -> int:
    return request.prompt_tokens + (0 if request.head_start is None else request.head_start.output_tokens)


def ends_on_line(line: DecodeLine, plan: StepPlan, start_ns: int) -> list[int]:
    """When the steps of a decode plan end that begins now, up to the first that ends at its ``until_ns`` or later."""
    fixed, column, unit_ns, host_ns = line
    columns, grown, until_ns = plan.features.kv_columns_computed, plan.columns_grown, plan.until_ns
    end_ns = start_ns
    ends = []
    for _ in range(plan.repeat):
        end_ns += host_ns + int((fixed + columns * column) * unit_ns + WHOLE - WHOLE)
        ends.append(end_ns)
        if end_ns >= until_ns:
            break
        columns += grown
    return ends


def _ends(plan: StepPlan, start_ns: int, period: PerStep) -> Ends:
    """When the steps of ``plan`` end, if they begin at ``start_ns``; ``period`` is used up."""
    if isinstance(period, int):
        return [start_ns + period * step for step in range(1, plan.repeat + 1)]
    period[0] += start_ns
    period.cumsum(out=period)
    return period


def _scaled(each: PerStep, factor: float) -> PerStep:
    """Rounded step by step, to the even nanosecond if halfway."""
    if isinstance(each, int):
        return round(each * factor)
    scaled: npt.NDArray[np.int64] = np.rint(each * factor).astype(np.int64)
    return scaled


def _larger(_columns: StepColumns, device: PerStep, host: PerStep) -> PerStep:
    if isinstance(device, int) and isinstance(host, int):
        return max(device, host)
    larger: npt.NDArray[np.int64] = np.maximum(device, host)
    return larger


def _at_once(_columns: StepColumns) -> PerStep:
    return 0


def _at(each: PerStep, step: int) -> int:
    return each if isinstance(each, int) else int(each[step])


def _shifted(each: PerStep) -> PerStep:
    """Of each step what the one after it takes, and of the last its own."""
    if isinstance(each, int):
        return each
    shifted: npt.NDArray[np.int64] = np.append(each[1:], each[-1:])
    return shifted


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
def rare_collections() -> Iterator[None]:
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
    jitter: Jitter | None = None,
    until_ns: int | None = None,
) -> Scheduler:
    """Run ``requests`` (in order of arrival) on one replica until all have ended. Returns the scheduler.

    ``jitter`` lets step times vary; without, each step takes what ``costs`` say. With ``until_ns`` the run is left
    there, whatever has not ended.
    """
    env = simpy.Environment(initial_time=0)
    replica = Replica(env, scheduler, costs, max_repeat, jitter=jitter)
    env.process(arrivals(env, replica, requests))
    env.process(aborts(env, replica, aborted))
    with rare_collections():
        env.run(until_ns)
    if until_ns is None and not scheduler.idle:
        raise RuntimeError(f"the simulation stopped with {scheduler.waiting} waiting, {scheduler.resident} resident")
    return scheduler
