"""One stretch of memory, first fit."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from scheduler.kv.pieces import PiecePool


class ContiguousPool(PiecePool):
    """One stretch of memory; each sequence gets a contiguous piece of it, reserved up front, first fit.

    How frameworks held KV before paging, and the 'before' of its claims: what a sequence does not use of its
    reservation nobody else can use (internal fragmentation), and free pieces may be too small (external).
    """

    def __init__(self, kv_tokens: int) -> None:
        super().__init__(kv_tokens)
        #: free pieces as (start, length), by start, never adjacent
        self._free: list[tuple[int, int]] = [(0, kv_tokens)]

    @property
    def largest_tokens(self) -> int:
        return self.capacity_blocks

    def _take(self, length: int) -> int | None:
        index = next((i for i, (_, free) in enumerate(self._free) if free >= length), None)
        if index is None:
            return None
        start, free = self._free[index]
        if free == length:
            del self._free[index]
        else:
            self._free[index] = (start + length, free - length)
        return start

    def _give_back(self, start: int, length: int) -> None:
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            start, before = self._free.pop(index - 1)
            length += before
        insort(self._free, (start, length))

    def _free_pieces(self) -> Iterable[tuple[int, int]]:
        return ((length, 1) for _, length in self._free)
