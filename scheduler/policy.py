"""A policy as data: two orders of two levels, and the parts that go with any of them.

The source of the two levels: the seed picks a *group* by size and orders inside it, and so do fair queueing,
multi-level feedback queues and multi-bin batching.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from scheduler.plan import NEVER
from scheduler.sequence import Sequence

Mode = Literal["iteration", "run-to-completion"]


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


class Order:
    """Who goes first: lanes, ranked, and sequences ranked inside a lane.

    A lane's rank may depend on the lane's key, count and oldest member, and a sequence's rank may change only when it
    is served. Smaller goes first; keys and sequence numbers break ties.
    """

    #: a step takes its rows from one lane only ...
    exclusive = False
    #: ... and from the next ones while it has fewer rows than this
    min_rows = 0
    #: all members of a lane have the same length, so that a lane moves as one when it is served
    uniform = False

    def lane(self, sequence: Sequence, view: View) -> Hashable:
        """The lane of a sequence; one lane for all by default."""
        return 0

    def lane_rank(self, lane: Lane) -> Any:
        """The rank of a lane."""
        return 0

    def rank(self, sequence: Sequence, view: View) -> Any:
        """The rank of a sequence in its lane; arrival order by default."""
        return sequence.number

    def steps_in_lane(self, sequence: Sequence) -> int:
        """Steps that ``sequence`` can be served before :meth:`lane` changes for it."""
        return NEVER


@dataclass(frozen=True)
class Ageing:
    """A request counts as aged once it has been in the system for ``threshold_ns``, until it ends.

    The oldest aged sequence leads: waiting, it is the first to be admitted; resident, its lane is the one stepped.
    """

    threshold_ns: int


@dataclass(frozen=True)
class Policy:
    """One policy. The parts that it leaves at their default it does not have.

    ``waiting`` orders who is prefilled, ``resident`` who is stepped. ``reserve`` gives the tokens booked at
    admission; by default those that are known, and blocks are added as the sequence grows. ``urgency`` ranks
    sequences for eviction: a waiting one that cannot be admitted evicts a resident one of larger urgency that has
    been served at least ``quantum`` tokens since its admission.

    ``mode`` ``run-to-completion``: a batch fills until nobody waits or nothing more fits, is closed by its first
    decode step and runs until its last member ends. It starts when ``min_batch`` requests wait or the oldest has
    waited for ``max_wait_ns``.
    """

    name: str
    waiting: Order = field(default_factory=Order)
    resident: Order = field(default_factory=Order)
    mode: Mode = "iteration"
    reserve: Callable[[Sequence], int] | None = None
    ageing: Ageing | None = None
    urgency: Callable[[Sequence, View], Any] | None = None
    quantum: int = 0
    min_batch: int = 1
    max_wait_ns: int = 0


def reserve_max(sequence: Sequence) -> int:
    """Book everything that the request may come to need: prompt and declared ``max_tokens``."""
    return sequence.prompt_tokens + sequence.max_tokens
