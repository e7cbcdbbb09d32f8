"""Waiting requests, in the ranked lanes of one order."""

from __future__ import annotations

from typing import Any

from scheduler.policy import Order, View
from scheduler.ranking import Ranking
from scheduler.sequence import Sequence


class WaitingLane:
    """Requests that may be prefilled together."""

    __slots__ = ("_by_number", "_by_rank", "key", "members")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.members: dict[int, Sequence] = {}
        self._by_rank: Ranking[int] = Ranking()
        self._by_number: Ranking[int] = Ranking()

    @property
    def count(self) -> int:
        return len(self.members)

    @property
    def oldest(self) -> int:
        return self._by_number.first()

    @property
    def head(self) -> Sequence:
        """The request that goes first."""
        return self.members[self._by_rank.first()]

    def push(self, sequence: Sequence, rank: Any) -> None:
        self.members[sequence.number] = sequence
        self._by_rank.set(sequence.number, rank)
        self._by_number.set(sequence.number, 0)

    def remove(self, sequence: Sequence) -> None:
        del self.members[sequence.number]
        self._by_rank.discard(sequence.number)
        self._by_number.discard(sequence.number)


class Waiting:
    """All requests that wait to be admitted, under one :class:`~scheduler.policy.Order`."""

    def __init__(self, order: Order, view: View) -> None:
        self._order = order
        self._view = view
        self._lanes: dict[Any, WaitingLane] = {}
        self._lane_of: dict[int, WaitingLane] = {}
        self._by_rank: Ranking[Any] = Ranking()
        self._by_number: Ranking[int] = Ranking()

    def __len__(self) -> int:
        return len(self._lane_of)

    def push(self, sequence: Sequence) -> None:
        key = self._order.lane(sequence, self._view)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = WaitingLane(key)
        lane.push(sequence, self._order.rank(sequence, self._view))
        self._lane_of[sequence.number] = lane
        self._by_number.set(sequence.number, 0)
        self._by_rank.set(key, self._order.lane_rank(lane))

    def remove(self, sequence: Sequence) -> None:
        lane = self._lane_of.pop(sequence.number)
        lane.remove(sequence)
        self._by_number.discard(sequence.number)
        if lane.members:
            self._by_rank.set(lane.key, self._order.lane_rank(lane))
        else:
            del self._lanes[lane.key]
            self._by_rank.discard(lane.key)

    def first_lane(self) -> WaitingLane:
        """The lane that goes first."""
        return self._lanes[self._by_rank.first()]

    def lane_of(self, sequence: Sequence) -> WaitingLane:
        """The lane that ``sequence`` waits in."""
        return self._lane_of[sequence.number]

    def oldest(self) -> Sequence:
        """The waiting request that was submitted first."""
        number = self._by_number.first()
        return self._lane_of[number].members[number]
