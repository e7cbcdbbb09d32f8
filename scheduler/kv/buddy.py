"""Pieces of a power of two tokens, split in halves and merged again (Knowlton, 'A fast storage allocator', 1965)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from scheduler.kv.pieces import PiecePool


class BuddyPool(PiecePool):
    """Each sequence gets a contiguous piece, its reservation rounded up to a power of two tokens.

    What the rounding adds is internal fragmentation: it counts as reserved. A memory of another size is a row of
    areas of a power of two, the largest first. The smallest free area that is large enough is taken, of those the one
    at the lowest address, and halved until it fits; two free halves of one area are merged at once.

    The allocator that vLLM's paper assumes of Orca (SOSP'23, section 6.1).
    """

    def __init__(self, kv_tokens: int) -> None:
        super().__init__(kv_tokens)
        #: starts of the free areas of 1, 2, 4, ... tokens, lowest first
        self._free: list[list[int]] = [[] for _ in range(kv_tokens.bit_length())]
        start = 0
        for order in reversed(range(len(self._free))):
            if kv_tokens >> order & 1:
                self._free[order].append(start)
                start += 1 << order

    @property
    def largest_tokens(self) -> int:
        return 1 << (self.capacity_blocks.bit_length() - 1)

    def blocks_for(self, tokens: int) -> int:
        """``tokens`` rounded up to a power of two."""
        return 1 << (tokens - 1).bit_length() if tokens else 0

    def _take(self, length: int) -> int | None:
        wanted = length.bit_length() - 1
        order = next((order for order in range(wanted, len(self._free)) if self._free[order]), None)
        if order is None:
            return None
        start = self._free[order].pop(0)
        while order > wanted:
            order -= 1
            insort(self._free[order], start + (1 << order))
        return start

    def _give_back(self, start: int, length: int) -> None:
        order = length.bit_length() - 1
        while True:
            free, buddy = self._free[order], start ^ 1 << order
            index = bisect_left(free, buddy)
            # a whole area of the row has no buddy: behind it lie only smaller ones
            if index == len(free) or free[index] != buddy:
                insort(free, start)
                return
            del free[index]
            start = min(start, buddy)
            order += 1

    def _free_pieces(self) -> Iterable[tuple[int, int]]:
        return ((1 << order, len(starts)) for order, starts in enumerate(self._free) if starts)
