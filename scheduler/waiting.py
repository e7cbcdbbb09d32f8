"""Waiting requests, in the ranked lanes of one order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler.policy import LiveOrder, Order, View
from scheduler.ranking import Extreme, Ranking
from scheduler.sequence import Sequence


class WaitingLane(ABC):
    """Requests that may be prefilled together."""

    def __init__(self, key: Any) -> None:
        self.key = key

    @property
    @abstractmethod
    def count(self) -> int: ...

    @property
    @abstractmethod
    def head(self) -> Sequence:
        """The request that goes first."""


class WaitingQueue(ABC):
    """All requests that wait to be admitted."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def push(self, sequence: Sequence) -> None: ...

    @abstractmethod
    def remove(self, sequence: Sequence) -> None: ...

    @abstractmethod
    def first_lane(self) -> WaitingLane:
        """The lane that goes first."""

    @abstractmethod
    def lane_of(self, sequence: Sequence) -> WaitingLane:
        """The lane that ``sequence`` waits in."""

    @abstractmethod
    def lane(self, key: Any) -> WaitingLane | None:
        """The lane of that key, if anybody waits in it."""

    @abstractmethod
    def oldest(self) -> Sequence:
        """The waiting request that was submitted first."""

    @abstractmethod
    def relane(self, sequence: Sequence) -> None:
        """Put a waiting request where it now belongs."""

    @abstractmethod
    def fullest_lane(self) -> int:
        """How many requests the lane holds that has most."""


class RankedLane(WaitingLane):
    """Requests of one lane, by rank."""

    def __init__(self, key: Any) -> None:
        super().__init__(key)
        self.members: dict[int, Sequence] = {}
        self._by_rank: Ranking[int] = Ranking()
        self._oldest = Extreme(self.members)

    @property
    def count(self) -> int:
        return len(self.members)

    @property
    def oldest(self) -> int:
        return self._oldest.first()

    @property
    def eldest(self) -> Sequence:
        return self.members[self.oldest]

    @property
    def head(self) -> Sequence:
        return self.members[self._by_rank.first()]

    def push(self, sequence: Sequence, rank: Any) -> None:
        self.members[sequence.number] = sequence
        self._by_rank.set(sequence.number, rank)
        self._oldest.add(sequence.number)

    def remove(self, sequence: Sequence) -> None:
        del self.members[sequence.number]
        self._by_rank.discard(sequence.number)


class RankedWaiting(WaitingQueue):
    """A :class:`WaitingQueue` under an :class:`~scheduler.policy.Order` whose ranks stay as they are.

    Only the ranks of its lanes may change (``order.live``); those are then read at each decision.
    """

    def __init__(self, order: Order, view: View) -> None:
        self.order = order
        self._live = order.live
        self._view = view
        self._lanes: dict[Any, RankedLane] = {}
        self._lane_of: dict[int, RankedLane] = {}
        self._by_rank: Ranking[Any] = Ranking()
        self._oldest = Extreme(self._lane_of)
        self._epoch = order.epoch

    def __len__(self) -> int:
        return len(self._lane_of)

    def push(self, sequence: Sequence) -> None:
        self.order.queued(sequence)
        self._place(sequence)
        self._oldest.add(sequence.number)
        self._follow_order()

    def remove(self, sequence: Sequence) -> None:
        self.order.unqueued(sequence)
        self._unplace(sequence)
        self._follow_order()

    def relane(self, sequence: Sequence) -> None:
        self._unplace(sequence)
        self._place(sequence)

    def _follow_order(self) -> None:
        if self.order.epoch == self._epoch:
            return
        self._epoch = self.order.epoch
        waiting = [sequence for lane in self._lanes.values() for sequence in lane.members.values()]
        for sequence in sorted(waiting, key=lambda s: s.number):
            self.relane(sequence)

    def _place(self, sequence: Sequence) -> None:
        key = self.order.lane(sequence, self._view)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = RankedLane(key)
        lane.push(sequence, self.order.rank(sequence, self._view))
        self._lane_of[sequence.number] = lane
        if not self._live:
            self._by_rank.set(key, self.order.lane_rank(lane))

    def _unplace(self, sequence: Sequence) -> None:
        lane = self._lane_of.pop(sequence.number)
        lane.remove(sequence)
        if not lane.members:
            del self._lanes[lane.key]
            self._by_rank.discard(lane.key)
        elif not self._live:
            self._by_rank.set(lane.key, self.order.lane_rank(lane))

    def first_lane(self) -> RankedLane:
        if self._live:
            rank = self.order.lane_rank
            return min(self._lanes.values(), key=lambda lane: (rank(lane), lane.key))
        return self._lanes[self._by_rank.first()]

    def lane_of(self, sequence: Sequence) -> RankedLane:
        return self._lane_of[sequence.number]

    def lane(self, key: Any) -> RankedLane | None:
        return self._lanes.get(key)

    def oldest(self) -> Sequence:
        number = self._oldest.first()
        return self._lane_of[number].members[number]

    def fullest_lane(self) -> int:
        return max((lane.count for lane in self._lanes.values()), default=0)


class LiveWaiting(WaitingQueue):
    """A :class:`WaitingQueue` of one lane under a :class:`~scheduler.policy.LiveOrder`: who goes first is found anew.

    Also the :class:`~scheduler.policy.Queue` that the order looks at; its columns are kept dense, in no order.
    """

    _FIRST_ROWS = 64

    def __init__(self, order: LiveOrder, view: View) -> None:
        self._order = order
        self._view = view
        self._row_of: dict[int, int] = {}
        self._columns = np.zeros((3, self._FIRST_ROWS), np.int64)
        self._sequences: dict[int, Sequence] = {}
        self._oldest = Extreme(self._sequences)
        self._lane = LiveLane(self)

    def __len__(self) -> int:
        return len(self._sequences)

    # -- the queue that the order sees

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        return self._sequences

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        return self._columns[0, : len(self)]

    @property
    def arrivals_ns(self) -> npt.NDArray[np.int64]:
        return self._columns[1, : len(self)]

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        return self._columns[2, : len(self)]

    def oldest(self) -> Sequence:
        return self._sequences[self._oldest.first()]

    # -- the queue that the scheduler sees

    def push(self, sequence: Sequence) -> None:
        row = len(self)
        if row == self._columns.shape[1]:
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)), axis=1)
        self._columns[:, row] = sequence.number, sequence.arrival_ns, self._view.predicted(sequence)
        self._row_of[sequence.number] = row
        self._sequences[sequence.number] = sequence
        self._oldest.add(sequence.number)

    def remove(self, sequence: Sequence) -> None:
        row, last = self._row_of.pop(sequence.number), len(self) - 1
        if row != last:
            self._columns[:, row] = self._columns[:, last]
            self._row_of[int(self._columns[0, row])] = row
        del self._sequences[sequence.number]

    def relane(self, sequence: Sequence) -> None:
        """There is one lane only."""

    def first_lane(self) -> WaitingLane:
        return self._lane

    def lane_of(self, sequence: Sequence) -> WaitingLane:
        return self._lane

    def lane(self, key: Any) -> WaitingLane:
        return self._lane

    def first(self) -> Sequence:
        """Who goes first now."""
        return self._order.first(self, self._view)

    def fullest_lane(self) -> int:
        return len(self)


class LiveLane(WaitingLane):
    """All of a live queue."""

    def __init__(self, queue: LiveWaiting) -> None:
        super().__init__(0)
        self._queue = queue

    @property
    def count(self) -> int:
        return len(self._queue)

    @property
    def head(self) -> Sequence:
        return self._queue.first()


def build_waiting(order: Order, view: View) -> WaitingQueue:
    """The queue that ``order`` needs."""
    return LiveWaiting(order, view) if isinstance(order, LiveOrder) else RankedWaiting(order, view)
