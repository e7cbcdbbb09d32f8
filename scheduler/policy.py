"""A policy as data: two orders of two levels, and the parts that go with any of them.

The source of the two levels: the seed picks a *group* by size and orders inside it, and so do fair queueing,
multi-level feedback queues and multi-bin batching.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from scheduler.plan import NEVER
from scheduler.sequence import Sequence

Phase = Literal["prefill-first", "decode-first", "mixed"]
Numeric = Literal["lane", "rank"]


class Lane(Protocol):
    """Sequences that belong together, as an order may see them; kept incrementally, cheap to read."""

    @property
    def key(self) -> Any:
        """What :meth:`Order.lane` gave for its members."""

    @property
    def count(self) -> int:
        """Members."""

    @property
    def oldest(self) -> int:
        """The smallest sequence number among them."""

    @property
    def eldest(self) -> Sequence:
        """That member."""


class View(Protocol):
    """All that a policy may read besides the sequence at hand."""

    @property
    def now_ns(self) -> int: ...

    @property
    def waiting(self) -> int:
        """Requests waiting to be prefilled."""

    @property
    def resident(self) -> int:
        """Sequences holding KV."""

    @property
    def free_blocks(self) -> int: ...

    def predicted(self, sequence: Sequence) -> int:
        """Output tokens in all, as the run's :class:`~scheduler.oracle.LengthOracle` sees it."""

    def cached_tokens(self, sequence: Sequence) -> int:
        """Tokens of the prompt whose KV the prefix cache holds now."""

    def prefill_ns(self, tokens: int) -> int:
        """What a prefill of so many tokens is taken to cost: a constant of the run."""


class Queue(Protocol):
    """Waiting requests as a :class:`LiveOrder` sees them; the columns are aligned with each other."""

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        """By number."""

    @property
    def numbers(self) -> npt.NDArray[np.int64]: ...

    @property
    def arrivals_ns(self) -> npt.NDArray[np.int64]: ...

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """Predicted output tokens, as of when the request came into the queue."""

    def oldest(self) -> Sequence:
        """The one that was submitted first."""


class Order:
    """Who goes first: lanes, ranked, and sequences ranked inside a lane.

    A lane's rank may depend on the lane's key, count and oldest member, and a sequence's rank may change only when it
    is served. Smaller goes first; keys and sequence numbers break ties.
    """

    #: a step takes its rows from one lane only ...
    exclusive: bool = False
    #: ... and from the next ones while it has fewer rows than this
    min_rows: int = 0
    #: all members of a lane have the same length, so that a lane moves as one when it is served
    uniform: bool = False
    #: a lane that is served becomes the next one up as its members leave it together, and keeps its place in the order
    #: until that one is taken, see :meth:`steps_to_lane`; an order that is watched is asked in each lane all the same
    climbs: bool = False
    #: the lanes' ranks change while others are served: they are read at each decision
    live: bool = False
    #: serving a sequence never puts it behind one of its lane that was not served
    sticky: bool = True
    #: lanes follow the time that a sequence has been served, see :meth:`time_in_lane`
    timed: bool = False
    #: which of the two ranks is a number of tokens, so that waiting can be weighed against it
    numeric: Numeric | None = None
    #: a lane may lose its rank to another because it is served, before the two meet
    drifts: bool = False
    #: lanes depend on who waits, see :meth:`queued`
    shapes_lanes: bool = False
    #: lanes are told apart also where every step takes all residents, and nothing depends on them
    strict: bool = False
    #: raised by the order when any lane may have changed
    epoch: int = 0

    def lane(self, sequence: Sequence, view: View) -> Hashable:
        """The lane of a sequence; one lane for all by default."""
        return 0

    def lane_rank(self, lane: Lane) -> Any:
        """The rank of a lane."""
        return 0

    def rank(self, sequence: Sequence, view: View) -> Any:
        """The rank of a sequence in its lane; arrival order by default."""
        return sequence.number

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        """Steps that ``sequence`` can be served before :meth:`lane` (or a prediction in :meth:`rank`) changes."""
        return NEVER

    def steps_to_lane(self, length: int, lane: Any) -> int:
        """Steps that ``length`` known tokens are away from ``lane``, which is above theirs, where lanes ``climb``."""
        return NEVER

    def time_in_lane(self, sequence: Sequence) -> int:
        """Nanoseconds of service before :meth:`lane` changes, where lanes are ``timed``."""
        return NEVER

    def first_service_ns(self, sequence: Sequence, view: View) -> int:
        """Service that a new request counts as having had already, where lanes are ``timed``."""
        return 0

    def queued(self, sequence: Sequence) -> None:
        """``sequence`` has begun to wait. For orders whose lanes depend on who waits."""

    def unqueued(self, sequence: Sequence) -> None:
        """``sequence`` waits no longer."""


class LiveOrder(Order):
    """An order of waiting requests whose ranks change with time or with what the cache holds."""

    live = True

    def first(self, queue: Queue, view: View) -> Sequence:
        """Who goes first now."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ageing:
    """A request counts as aged once it has been in the system for ``threshold_ns``, until it ends.

    The oldest aged sequence leads: waiting, it is the first to be admitted; resident, its lane is the one stepped.
    """

    threshold_ns: int


class Ledger(Protocol):
    """Accounts that a policy keeps of who was served; told of everything in a fixed order, once."""

    def submitted(self, sequence: Sequence) -> None:
        """A request has come in and waits."""

    def admitted(self, sequence: Sequence, first: bool) -> None:
        """It waits no longer; ``first``: it was never admitted before."""

    def evicted(self, sequence: Sequence) -> None:
        """It waits again."""

    def left(self, sequence: Sequence) -> None:
        """It was aborted while it waited."""

    def served(self, tenant: str, output_tokens: int) -> None:
        """The tenant's sequences were given so many output tokens."""


@dataclass(frozen=True)
class Policy:
    """One policy. The parts that it leaves at their default it does not have.

    ``waiting`` orders who is prefilled, ``resident`` who is stepped. ``urgency`` ranks sequences for eviction: a
    waiting one that cannot be admitted evicts a resident one of larger urgency that has been served at least
    ``quantum`` tokens since its admission and that ``evictable`` lets go. Urgency is a number; a resident's may
    rise only when its lane changes.

    ``run_to_completion``: a batch fills until nobody waits or nothing more fits, is closed by its first decode step
    and runs until its last member ends. It starts when a lane holds ``min_batch`` requests or the oldest has waited
    for ``max_wait_ns``. ``promote_ns``: a sequence without service for so long starts again in the first lane of a
    ``timed`` order. ``reserves``: the KV memory is booked up front by default.
    """

    name: str
    waiting: Order = field(default_factory=Order)
    resident: Order = field(default_factory=Order)
    run_to_completion: bool = False
    reserves: bool = False
    ageing: Ageing | None = None
    urgency: Callable[[Sequence, View], Any] | None = None
    evictable: Callable[[Sequence, View], bool] | None = None
    quantum: int = 0
    min_batch: int = 1
    max_wait_ns: int = 0
    promote_ns: int | None = None
    ledger: Ledger | None = None
    needs_prefix_cache: bool = False
