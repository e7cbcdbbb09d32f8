"""Watches the parts of a user's policy while it runs, so that a mistake is found where it is made.

An exception, or a promise of :class:`~scheduler.policy.Order` and :class:`~scheduler.policy.Policy` that is seen to be
broken, is a :class:`~scheduler.errors.PolicyError`. What would take more than a comparison a call is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from numbers import Real
from pathlib import Path
from traceback import extract_tb
from typing import Any, NamedTuple, TypeVar

import numpy as np

from scheduler.errors import PolicyError
from scheduler.plan import NEVER
from scheduler.policy import Lane, Ledger, LiveOrder, Order, Policy, Queue, View
from scheduler.sequence import Sequence

#: notes are kept of so many sequences or lanes, then begun anew: a long run must not fill the memory
NOTES = 1 << 16

Value = TypeVar("Value")


def described(error: BaseException, path: Path) -> str:
    """An exception in a line, with the place in the user's file that it came from."""
    own = [frame for frame in extract_tb(error.__traceback__) if frame.filename == str(path)]
    text = " ".join(str(error).split())
    where = f" ({path.name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


class Guard:
    """Wraps the parts of the policy ``name``, whose source is at ``path``."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        #: that of the last call: its time is the current one
        self.view: View | None = None

    def policy(self, policy: Policy) -> Policy:
        """``policy``, its orders, functions and ledger watched."""
        urgency, evictable, ledger = policy.urgency, policy.evictable, policy.ledger
        resident = watched(policy.resident, "resident", self)
        return replace(
            policy,
            waiting=watched(policy.waiting, "waiting", self),
            resident=resident,
            urgency=None if urgency is None else WatchedUrgency(urgency, resident, self),
            evictable=None if evictable is None else WatchedEvictable(evictable, self),
            ledger=None if ledger is None else WatchedLedger(ledger, self),
        )

    def sees(self, view: View) -> None:
        """A decision is made under this view."""
        self.view = view

    def call(
        self, hook: str, about: Sequence | Lane | str | None, function: Callable[..., Value], *given: Any
    ) -> Value:
        """What ``function`` says. Raises :class:`PolicyError` for an exception in it."""
        try:
            return function(*given)
        except (Exception, SystemExit) as error:
            raise self.error(hook, about, f"raised {described(error, self._path)}") from error

    def error(self, hook: str, about: Sequence | Lane | str | None, what: str) -> PolicyError:
        """The line that says what is wrong, with whom, when."""
        now_ns = 0 if self.view is None else self.view.now_ns
        if isinstance(about, Sequence):
            # the scheduler's time is that of the plan before it came
            now_ns = max(now_ns, about.arrival_ns)
        seconds = now_ns / 1e9
        return PolicyError(f"policy {self._name} at {seconds:.6f} s: {hook}{_of(about)} {what}")


def _of(about: Sequence | Lane | str | None) -> str:
    if about is None:
        return ""
    if isinstance(about, str):
        return f" of {about}"
    if isinstance(about, Sequence):
        return f" of request {about.id}"
    return f" of lane {about.key!r} (its oldest is request {about.eldest.id})"


class Noted(NamedTuple):
    """What a waiting sequence was given, and the state that it was in."""

    known: int
    epoch: int
    service_ns: int
    lane: Hashable
    rank: Any


class WatchedOrder(Order):
    """Another order, every answer looked at."""

    strict = True

    def __init__(self, order: Order, role: str, guard: Guard) -> None:
        self._order = order
        self._role = role
        self._guard = guard
        self.exclusive, self.min_rows = order.exclusive, order.min_rows
        self.uniform, self.live, self.sticky = order.uniform, order.live, order.sticky
        self.timed, self.numeric, self.drifts = order.timed, order.numeric, order.drifts
        self.shapes_lanes = order.shapes_lanes
        #: the first of each, which all others have to be comparable with
        self._first: dict[str, Any] = {}
        #: lane minus known tokens, the same for all of a uniform order
        self._offset: int | None = None
        #: what lanes were ranked, with the count and the oldest member at that time
        self._ranked: dict[Hashable, tuple[int, int, int, Any]] = {}
        #: known tokens at which a sequence is looked at again, by number
        self._until: dict[int, int] = {}
        self._waiting: dict[int, Noted] = {}

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The other order's."""
        return self._order.epoch

    def _error(self, hook: str, about: Sequence | Lane, what: str) -> PolicyError:
        return self._guard.error(f"{self._role}.{hook}", about, what)

    def _call(self, hook: str, about: Sequence | Lane, function: Callable[..., Value], *given: Any) -> Value:
        return self._guard.call(f"{self._role}.{hook}", about, function, *given)

    # -- lanes

    def lane(self, sequence: Sequence, view: View) -> Hashable:
        self._guard.sees(view)
        lane = self._call("lane", sequence, self._order.lane, sequence, view)
        try:
            hash(lane)
        except TypeError:
            raise self._error("lane", sequence, f"is {lane!r}, which cannot be a key: it is not hashable") from None
        self._comparable("lane", sequence, lane)
        if self.uniform:
            self._check_uniform(sequence, lane)
        return lane

    def _check_uniform(self, sequence: Sequence, lane: Hashable) -> None:
        if not isinstance(lane, int):
            raise self._error("lane", sequence, f"is {lane!r}; the lanes of a uniform order are lengths")
        offset = lane - sequence.known
        if self._offset is None:
            self._offset = offset
        elif offset != self._offset:
            raise self._error(
                "lane",
                sequence,
                f"is {lane} at {sequence.known} known tokens, a difference of {-offset}, where others have "
                f"{-self._offset}; the lanes of a uniform order are lengths",
            )

    def lane_rank(self, lane: Lane) -> Any:
        rank = self._call("lane_rank", lane, self._order.lane_rank, lane)
        self._comparable("lane_rank", lane, rank)
        if self.live or self.drifts:
            return rank
        state = (lane.count, lane.oldest, self.epoch)
        before = self._ranked.get(lane.key)
        if before is not None and before[:3] == state and before[3] != rank:
            raise self._error(
                "lane_rank",
                lane,
                f"is {rank!r} and was {before[3]!r}, and neither its count nor its oldest has changed; ranks that "
                f"change by themselves are for an order with live = True",
            )
        _note(self._ranked, lane.key, (*state, rank))
        return rank

    # -- sequences

    def rank(self, sequence: Sequence, view: View) -> Any:
        self._guard.sees(view)
        rank = self._call("rank", sequence, self._order.rank, sequence, view)
        self._comparable("rank", sequence, rank)
        return rank

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        self._guard.sees(view)
        steps = self._call("steps_in_lane", sequence, self._order.steps_in_lane, sequence, view)
        self._count("steps_in_lane", sequence, steps, 1)
        _note(self._until, sequence.number, sequence.known + steps)
        return steps

    def stays(self, sequence: Sequence, view: View) -> bool:
        """Whether a resident is where it belongs, and will not be put into a lane again before it is served."""
        if sequence.cohort is None or sequence.known >= self._until.get(sequence.number, NEVER):
            return False
        return bool(self._order.lane(sequence, view) == sequence.cohort.key)

    def time_in_lane(self, sequence: Sequence) -> int:
        time_ns = self._call("time_in_lane", sequence, self._order.time_in_lane, sequence)
        return self._count("time_in_lane", sequence, time_ns, 1)

    def first_service_ns(self, sequence: Sequence, view: View) -> int:
        self._guard.sees(view)
        service_ns = self._call("first_service_ns", sequence, self._order.first_service_ns, sequence, view)
        return self._count("first_service_ns", sequence, service_ns, 0)

    def _count(self, hook: str, sequence: Sequence, value: Any, least: int) -> int:
        if not isinstance(value, int) or value < least:
            raise self._error(hook, sequence, f"is {value!r}; must be a whole number >= {least}")
        return value

    def _comparable(self, hook: str, about: Sequence | Lane, value: Any) -> None:
        """Every rank and key has to have its place among the others."""
        first = self._first.setdefault(hook, value)
        try:
            ordered = value < first or first <= value
        except Exception:
            raise self._error(hook, about, f"is {value!r}, which cannot be compared with {first!r}") from None
        if not ordered or _has_nan(value):
            raise self._error(hook, about, f"is {value!r}, which is neither before nor after {first!r}")

    # -- who waits

    def queued(self, sequence: Sequence) -> None:
        self._call("queued", sequence, self._order.queued, sequence)

    def unqueued(self, sequence: Sequence) -> None:
        self._call("unqueued", sequence, self._order.unqueued, sequence)


class WatchedWaiting(WatchedOrder):
    """An order of waiting requests, whose ranks stay as they are until a request is served."""

    def rank(self, sequence: Sequence, view: View) -> Any:
        rank = super().rank(sequence, view)
        lane = self._call("lane", sequence, self._order.lane, sequence, view)
        noted = Noted(sequence.known, self.epoch, sequence.service_ns, lane, rank)
        _note(self._waiting, sequence.number, noted)
        return rank

    def unqueued(self, sequence: Sequence) -> None:
        """Looks once more, since nobody would see a rank that has changed."""
        noted, view = self._waiting.pop(sequence.number, None), self._guard.view
        state = (sequence.known, self.epoch, sequence.service_ns)
        if noted is not None and view is not None and state == noted[:3]:
            for hook, before in (("lane", noted.lane), ("rank", noted.rank)):
                now = self._call(hook, sequence, getattr(self._order, hook), sequence, view)
                if now != before:
                    raise self._error(
                        hook,
                        sequence,
                        f"is {now!r} and was {before!r} when it began to wait, and it has not been served; what "
                        f"changes by itself is for a LiveOrder",
                    )
        super().unqueued(sequence)


class WatchedLive(WatchedOrder, LiveOrder):
    """A live order of waiting requests."""

    def first(self, queue: Queue, view: View) -> Sequence:
        self._guard.sees(view)
        order = self._order
        if not isinstance(order, LiveOrder):
            raise TypeError(f"{order!r} is not live")
        first = self._guard.call("waiting.first", None, order.first, queue, view)
        if not isinstance(first, Sequence):
            raise self._guard.error("waiting.first", None, f"is {first!r}, which is no sequence")
        if queue.sequences.get(first.number) is not first:
            raise self._error("first", first, "says that it goes first, and it does not wait")
        return first


def watched(order: Order, role: str, guard: Guard) -> WatchedOrder:
    """``order`` in the role of ``waiting`` or ``resident``."""
    if isinstance(order, LiveOrder):
        return WatchedLive(order, role, guard)
    return (WatchedWaiting if role == "waiting" else WatchedOrder)(order, role, guard)


class WatchedUrgency:
    """A policy's urgency: a number that does not rise while a resident keeps its lane."""

    def __init__(self, urgency: Callable[[Sequence, View], Any], resident: WatchedOrder, guard: Guard) -> None:
        self._urgency = urgency
        self._resident = resident
        self._guard = guard
        #: by number, with the time that it joined its lane
        self._noted: dict[int, tuple[int, Any]] = {}

    def __call__(self, sequence: Sequence, view: View) -> Any:
        guard = self._guard
        guard.sees(view)
        urgency = guard.call("urgency", sequence, self._urgency, sequence, view)
        if not isinstance(urgency, Real) or math.isnan(urgency):
            raise guard.error("urgency", sequence, f"is {urgency!r}; must be a number")
        if sequence.cohort is not None:
            join, before = self._noted.get(sequence.number, (None, urgency))
            if join == sequence.join and urgency > before and self._resident.stays(sequence, view):
                raise guard.error(
                    "urgency",
                    sequence,
                    f"is {urgency!r} and was {before!r} in the same lane; it may rise only when its lane changes, so "
                    f"let lanes or steps_in_lane follow it",
                )
            _note(self._noted, sequence.number, (sequence.join, urgency))
        return urgency


class WatchedEvictable:
    """Whether a policy lets a sequence be evicted for rank."""

    def __init__(self, evictable: Callable[[Sequence, View], bool], guard: Guard) -> None:
        self._evictable = evictable
        self._guard = guard

    def __call__(self, sequence: Sequence, view: View) -> bool:
        self._guard.sees(view)
        said = self._guard.call("evictable", sequence, self._evictable, sequence, view)
        if not isinstance(said, (bool, np.bool_)):
            raise self._guard.error("evictable", sequence, f"is {said!r}; must be True or False")
        return bool(said)


class WatchedLedger:
    """A policy's accounts."""

    def __init__(self, ledger: Ledger, guard: Guard) -> None:
        self._ledger = ledger
        self._guard = guard

    def submitted(self, sequence: Sequence) -> None:
        self._guard.call("ledger.submitted", sequence, self._ledger.submitted, sequence)

    def admitted(self, sequence: Sequence, first: bool) -> None:
        self._guard.call("ledger.admitted", sequence, self._ledger.admitted, sequence, first)

    def evicted(self, sequence: Sequence) -> None:
        self._guard.call("ledger.evicted", sequence, self._ledger.evicted, sequence)

    def left(self, sequence: Sequence) -> None:
        self._guard.call("ledger.left", sequence, self._ledger.left, sequence)

    def served(self, tenant: str, output_tokens: int) -> None:
        self._guard.call("ledger.served", f"tenant {tenant!r}", self._ledger.served, tenant, output_tokens)


def _note(notes: dict[Any, Any], key: Any, value: Any) -> None:
    if len(notes) >= NOTES:
        notes.clear()
    notes[key] = value


def _has_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)
