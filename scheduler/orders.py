"""Orders that policies are composed of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from scheduler.buckets import AdaptiveSplit, Buckets, FixedWidth
from scheduler.config import ConfigError, unknown_name
from scheduler.plan import NEVER
from scheduler.policy import Lane, Numeric, Order, View
from scheduler.sequence import Sequence

BUCKET_ORDERS = ("lowest", "fullest", "oldest")


class ByLength(Order):
    """Lanes of one length or one bucket of lengths, one lane a step.

    ``pick`` says which lane goes first: ``lowest`` is plain shortest first, ``fullest`` has the most members,
    ``oldest`` holds the request that came first. A prefill group is packed in arrival order whatever the lane's;
    ``shortest_first`` orders the members by length where not all of them fit into a step. ``feeds``: the buckets
    follow who waits in this order.
    """

    exclusive = True

    def __init__(
        self, buckets: Buckets, pick: str, min_rows: int = 0, shortest_first: bool = False, feeds: bool = False
    ) -> None:
        if pick not in BUCKET_ORDERS:
            raise ConfigError(unknown_name("bucket order", pick, BUCKET_ORDERS))
        self.buckets = buckets
        self.uniform = isinstance(buckets, FixedWidth) and buckets.width == 1
        self.climbs = not self.uniform
        self.pick = pick
        self.min_rows = min_rows
        self.shortest_first = shortest_first
        self.sticky = not shortest_first
        self.numeric = "lane" if pick == "lowest" else None
        self.shapes_lanes = isinstance(buckets, AdaptiveSplit)
        self._feeds = feeds and self.shapes_lanes

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The buckets'."""
        return self.buckets.epoch

    def lane(self, sequence: Sequence, view: View) -> int:
        return self.buckets.key(sequence.known)

    def lane_rank(self, lane: Lane) -> Any:
        if self.pick == "lowest":
            return lane.key
        if self.pick == "fullest":
            return (-lane.count, lane.oldest)
        return lane.oldest

    def rank(self, sequence: Sequence, view: View) -> Any:
        return (sequence.known, sequence.number) if self.shortest_first else sequence.number

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        known = sequence.known
        return self.buckets.last(known) - known + 1

    def steps_to_lane(self, length: int, lane: int) -> int:
        return self.buckets.first(lane) - length

    def queued(self, sequence: Sequence) -> None:
        if self._feeds and isinstance(self.buckets, AdaptiveSplit):
            self.buckets.submitted(sequence.known)

    def unqueued(self, sequence: Sequence) -> None:
        if self._feeds and isinstance(self.buckets, AdaptiveSplit):
            self.buckets.removed(sequence.known)


class ByRemaining(Order):
    """One lane; the fewest predicted output tokens left first."""

    numeric: Numeric | None = "rank"

    def rank(self, sequence: Sequence, view: View) -> int:
        return remaining(sequence, view)

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        """Until it outlives its prediction and has a new one."""
        return remaining(sequence, view)


class ByPrediction(Order):
    """One lane; the shortest predicted output first, whatever of it is done."""

    numeric: Numeric | None = "rank"

    def rank(self, sequence: Sequence, view: View) -> int:
        return view.predicted(sequence)

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        """Until it outlives its prediction and has a new one."""
        return remaining(sequence, view)


class ByService(Order):
    """Lanes by output tokens so far, in quanta; the fewest first."""

    numeric: Numeric | None = "lane"

    def __init__(self, quantum: int) -> None:
        self.quantum = max(1, quantum)

    def lane(self, sequence: Sequence, view: View) -> int:
        return sequence.output_tokens // self.quantum

    def lane_rank(self, lane: Lane) -> Any:
        return lane.key

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        return self.quantum - sequence.output_tokens % self.quantum


class ByDeadline(Order):
    """One lane; the earliest deadline first, those without one last."""

    def rank(self, sequence: Sequence, view: View) -> int:
        return deadline(sequence, view)


class ByPriority(Order):
    """One lane; the smallest priority number first."""

    def rank(self, sequence: Sequence, view: View) -> int:
        return priority(sequence, view)


class LinearAgeing(Order):
    """Another order, in which each second since arrival weighs as much as ``weight`` tokens of its rank.

    Between two sequences that difference never changes, so a rank stays as it is: tokens + weight x arrival time.
    """

    def __init__(self, order: Order, weight: float) -> None:
        if order.numeric is None:
            raise ConfigError("linear ageing needs a rank in tokens to weigh waiting against")
        self._order = order
        self._weight = weight
        self.exclusive, self.min_rows = order.exclusive, order.min_rows
        self.uniform, self.sticky = order.uniform, order.sticky
        self.live, self.timed, self.numeric = order.live, order.timed, order.numeric
        self.shapes_lanes = order.shapes_lanes
        self.drifts = order.numeric == "lane"

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The other order's."""
        return self._order.epoch

    def _aged(self, tokens: int, arrival_ns: int) -> int:
        return tokens * 1_000_000_000 + round(self._weight * arrival_ns)

    def lane(self, sequence: Sequence, view: View) -> Hashable:
        return self._order.lane(sequence, view)

    def lane_rank(self, lane: Lane) -> Any:
        rank = self._order.lane_rank(lane)
        if self.numeric != "lane":
            return rank
        eldest = lane.eldest
        tokens = rank * self._order.quantum if isinstance(self._order, ByService) else rank
        if isinstance(self._order, ByLength):
            tokens = self._order.buckets.last(eldest.known)
        return self._aged(tokens, eldest.arrival_ns)

    def rank(self, sequence: Sequence, view: View) -> Any:
        rank = self._order.rank(sequence, view)
        return self._aged(rank, sequence.arrival_ns) if self.numeric == "rank" else rank

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        return self._order.steps_in_lane(sequence, view)

    def queued(self, sequence: Sequence) -> None:
        self._order.queued(sequence)

    def unqueued(self, sequence: Sequence) -> None:
        self._order.unqueued(sequence)


def remaining(sequence: Sequence, view: View) -> int:
    """Predicted output tokens left, at least 1."""
    return max(1, view.predicted(sequence) - sequence.output_tokens)


def deadline(sequence: Sequence, view: View) -> int:
    """When the first token is due; :data:`~scheduler.plan.NEVER` without a deadline."""
    due = sequence.request.deadline_ns
    return NEVER if due is None else due


def attained(quantum: int) -> Callable[[Sequence, View], int]:
    """Output tokens so far, in quanta of ``quantum``."""

    def quanta(sequence: Sequence, view: View) -> int:
        return sequence.output_tokens // quantum

    return quanta


def priority(sequence: Sequence, view: View) -> int:
    """The request's priority number; a smaller one is more important."""
    return sequence.request.priority


def submission(sequence: Sequence, view: View) -> int:
    """The place in the order of submission."""
    return sequence.number


def before_share(share: float) -> Callable[[Sequence, View], bool]:
    """Whether less than ``share`` of the output that was predicted at first has been made."""

    def early(sequence: Sequence, view: View) -> bool:
        return sequence.output_tokens < share * sequence.estimates[0]

    return early
