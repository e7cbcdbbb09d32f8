"""A heap whose items can change rank or go away: what waiting lanes, cohorts and leaders are found by."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Ranking(Generic[Item]):
    """Items by rank, smallest first; equal ranks by the items themselves.

    An entry is stale once its item has been ranked again or discarded: each carries the number of its push, since an
    item that left and came back must not be found under its old rank.
    """

    __slots__ = ("_heap", "_push", "_pushes")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, Item, int]] = []
        self._push: dict[Item, int] = {}
        self._pushes = 0

    def __len__(self) -> int:
        return len(self._push)

    def __contains__(self, item: Item) -> bool:
        return item in self._push

    def set(self, item: Item, rank: Any) -> None:
        """Put ``item`` in at ``rank``, or move it there."""
        self._pushes += 1
        self._push[item] = self._pushes
        heappush(self._heap, (rank, item, self._pushes))
        if len(self._heap) > 4 * len(self._push) + 64:
            self._heap = [entry for entry in self._heap if self._push.get(entry[1]) == entry[2]]
            heapify(self._heap)

    def discard(self, item: Item) -> None:
        """Take ``item`` out, if it is in."""
        self._push.pop(item, None)

    def first(self) -> Item:
        """The item of the smallest rank. Raises ``IndexError`` when empty."""
        heap = self._heap
        while True:
            _, item, push = heap[0]
            if self._push.get(item) == push:
                return item
            heappop(heap)
