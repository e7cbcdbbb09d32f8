"""Orders that policies are composed of."""

from __future__ import annotations

from typing import Any

from scheduler.config import ConfigError, unknown_name
from scheduler.policy import Lane, Order, View
from scheduler.sequence import Sequence

BUCKET_ORDERS = ("lowest", "fullest", "oldest")


class ByLength(Order):
    """Lanes of one length (width 1) or one bucket of lengths, one lane a step.

    A lane holds known lengths ``key * width + 1`` to ``(key + 1) * width``: 0-32, 33-64, ... for a width of 32.

    ``pick`` says which lane goes first: ``lowest`` is plain shortest first, ``fullest`` has the most members,
    ``oldest`` holds the request that came first. A prefill group is packed in arrival order whatever the lane's;
    ``shortest_first`` orders the members by length where not all of them fit into a step.
    """

    exclusive = True

    def __init__(self, width: int, pick: str, min_rows: int = 0, shortest_first: bool = False) -> None:
        if pick not in BUCKET_ORDERS:
            raise ConfigError(unknown_name("bucket order", pick, BUCKET_ORDERS))
        self.width = width
        self.uniform = width == 1
        self.pick = pick
        self.min_rows = min_rows
        self.shortest_first = shortest_first

    def lane(self, sequence: Sequence, view: View) -> int:
        return (sequence.known - 1) // self.width

    def lane_rank(self, lane: Lane) -> Any:
        if self.pick == "lowest":
            return lane.key
        if self.pick == "fullest":
            return (-lane.count, lane.oldest)
        return lane.oldest

    def rank(self, sequence: Sequence, view: View) -> Any:
        return (sequence.known, sequence.number) if self.shortest_first else sequence.number

    def steps_in_lane(self, sequence: Sequence) -> int:
        return self.width - (sequence.known - 1) % self.width


class ByRemaining(Order):
    """One lane; the fewest predicted output tokens left first."""

    def rank(self, sequence: Sequence, view: View) -> int:
        return remaining(sequence, view)


def remaining(sequence: Sequence, view: View) -> int:
    """Predicted output tokens left, at least 1."""
    return max(1, view.predicted(sequence) - sequence.output_tokens)
