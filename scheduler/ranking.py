"""Heaps whose items can change rank or go away: what waiting lanes, cohorts and leaders are found by."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Ranking(Generic[Item]):
    """Items by rank, smallest first; equal ranks by the items themselves.

    An entry of the heap is stale unless its item is in with just that rank.
    """

    __slots__ = ("_heap", "_ranks")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, Item]] = []
        self._ranks: dict[Item, Any] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, item: Item) -> bool:
        return item in self._ranks

    def set(self, item: Item, rank: Any) -> None:
        """Put ``item`` in at ``rank``, or move it there."""
        ranks, heap = self._ranks, self._heap
        if item in ranks and ranks[item] == rank:
            return
        ranks[item] = rank
        heappush(heap, (rank, item))
        if len(heap) > 4 * len(ranks) + 64:
            self._heap = [(rank, item) for item, rank in ranks.items()]
            heapify(self._heap)

    def discard(self, item: Item) -> None:
        """Take ``item`` out, if it is in."""
        self._ranks.pop(item, None)

    def first(self) -> Item:
        """The item of the smallest rank. Raises ``IndexError`` when empty."""
        heap, ranks = self._heap, self._ranks
        while True:
            rank, item = heap[0]
            if item in ranks and ranks[item] == rank:
                return item
            heappop(heap)


class Extreme:
    """The smallest of the numbers that are keys of ``members`` (or the largest), for those that want to know it.

    Nothing is kept until somebody asks; from then on every number that comes in has to be added.
    """

    __slots__ = ("_heap", "_members", "_sign")

    def __init__(self, members: Mapping[int, object], largest: bool = False) -> None:
        self._members = members
        self._sign = -1 if largest else 1
        self._heap: list[int] | None = None

    def add(self, number: int) -> None:
        """``number`` is a key now."""
        heap = self._heap
        if heap is None:
            return
        heappush(heap, self._sign * number)
        if len(heap) > 4 * len(self._members) + 64:
            self._heap = None

    def first(self) -> int:
        """The extreme number. Raises ``IndexError`` when there is none."""
        members, sign, heap = self._members, self._sign, self._heap
        if heap is None:
            heap = self._heap = sorted([sign * number for number in members])
        while sign * heap[0] not in members:
            heappop(heap)
        return sign * heap[0]
