"""KV memory in counts: a paged pool and a contiguous one behind one interface.

A simulator needs no block ids, only how many blocks are free; an executor needs ids. So a pool counts, and hands out
ids for a sequence when somebody asks for its block table.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Literal, Protocol

from scheduler.sequence import Sequence

PoolKind = Literal["paged", "contiguous"]
Freed = Literal["finished", "evicted"]


class KvPool(Protocol):
    """Memory for the keys and values of resident sequences, in blocks of ``block_tokens`` tokens."""

    block_tokens: int
    capacity_blocks: int
    free_blocks: int
    #: allocations so far; those served from memory that a finished sequence gave back; that an evicted one gave back
    allocations: int
    reused: int
    reused_after_preemption: int
    #: whether a sequence is given blocks as it grows, beyond those that were booked at admission
    grows: bool

    @property
    def reserved_tokens(self) -> int:
        """Token slots that are handed out."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens need."""

    def can_book(self, tokens: int) -> bool:
        """Whether ``tokens`` tokens can be booked now."""

    def book(self, sequence: Sequence, tokens: int) -> None:
        """Reserve room for ``tokens`` tokens of ``sequence``."""

    def grow(self, blocks: int) -> None:
        """Hand out ``blocks`` more blocks to resident sequences."""

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        """Take back the ``blocks`` blocks of ``sequence``."""

    def unusable_tokens(self, tokens: int) -> int:
        """Free slots in pieces too small for a sequence of ``tokens`` tokens, where as many are free in all."""

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        """Ids of the first ``blocks`` blocks of ``sequence`` (paged pools only)."""


class PagedPool:
    """Blocks of a fixed size, any of which serves any sequence. Last freed goes first, never-used ones last."""

    grows = True

    def __init__(self, kv_tokens: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.capacity_blocks = kv_tokens // block_tokens
        self.free_blocks = self.capacity_blocks
        self.allocations = 0
        self.reused = 0
        self.reused_after_preemption = 0
        #: free blocks that were used before, as a stack of runs [freed by, count]
        self._recycled: list[tuple[Freed, int]] = []
        self._tables: dict[int, list[int]] = {}
        self._free_ids: list[int] = []
        self._virgin_id = 0

    @property
    def reserved_tokens(self) -> int:
        return (self.capacity_blocks - self.free_blocks) * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def can_book(self, tokens: int) -> bool:
        return self.blocks_for(tokens) <= self.free_blocks

    def book(self, sequence: Sequence, tokens: int) -> None:
        sequence.pool_blocks = self.blocks_for(tokens)
        self.grow(sequence.pool_blocks)

    def grow(self, blocks: int) -> None:
        if blocks > self.free_blocks:
            raise RuntimeError(f"{blocks} KV blocks wanted, {self.free_blocks} free")
        self.free_blocks -= blocks
        self.allocations += blocks
        recycled = self._recycled
        while blocks and recycled:
            freed, count = recycled.pop()
            used = min(blocks, count)
            if used < count:
                recycled.append((freed, count - used))
            if freed == "finished":
                self.reused += used
            else:
                self.reused_after_preemption += used
            blocks -= used

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        sequence.pool_blocks = 0
        self.free_blocks += blocks
        recycled = self._recycled
        if recycled and recycled[-1][0] == freed:
            blocks += recycled.pop()[1]
        recycled.append((freed, blocks))
        ids = self._tables.pop(sequence.number, None)
        if ids is not None:
            self._free_ids.extend(reversed(ids))

    def unusable_tokens(self, tokens: int) -> int:
        return 0

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        ids = self._tables.setdefault(sequence.number, [])
        while len(ids) < blocks:
            if self._free_ids:
                ids.append(self._free_ids.pop())
            else:
                ids.append(self._virgin_id)
                self._virgin_id += 1
        return ids


class ContiguousPool:
    """One stretch of memory; each sequence gets a contiguous piece of it, reserved up front, first fit.

    How frameworks held KV before paging, and the 'before' of its claims: what a sequence does not use of its
    reservation nobody else can use (internal fragmentation), and free pieces may be too small (external).
    Blocks are single tokens here.
    """

    grows = False
    block_tokens = 1

    def __init__(self, kv_tokens: int) -> None:
        self.capacity_blocks = kv_tokens
        self.free_blocks = kv_tokens
        self.allocations = 0
        self.reused = 0
        self.reused_after_preemption = 0
        #: free pieces as (start, length), by start, never adjacent
        self._free: list[tuple[int, int]] = [(0, kv_tokens)]
        self._start: dict[int, int] = {}
        self._high_water = 0

    @property
    def reserved_tokens(self) -> int:
        return self.capacity_blocks - self.free_blocks

    def blocks_for(self, tokens: int) -> int:
        return tokens

    def can_book(self, tokens: int) -> bool:
        return any(length >= tokens for _, length in self._free)

    def book(self, sequence: Sequence, tokens: int) -> None:
        index = next((i for i, (_, length) in enumerate(self._free) if length >= tokens), None)
        if index is None:
            raise RuntimeError(f"no free piece of {tokens} KV tokens")
        start, length = self._free[index]
        if length == tokens:
            del self._free[index]
        else:
            self._free[index] = (start + tokens, length - tokens)
        self._start[sequence.number] = start
        sequence.pool_blocks = tokens
        self.free_blocks -= tokens
        self.allocations += 1
        if start + tokens <= self._high_water:
            self.reused += 1
        self._high_water = max(self._high_water, start + tokens)

    def grow(self, blocks: int) -> None:
        raise RuntimeError(f"a contiguous reservation does not grow ({blocks} blocks wanted)")

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        start = self._start.pop(sequence.number)
        sequence.pool_blocks = 0
        self.free_blocks += blocks
        index = bisect_left(self._free, (start, 0))
        if index < len(self._free) and self._free[index][0] == start + blocks:
            blocks += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == start:
            start, before = self._free.pop(index - 1)
            blocks += before
        insort(self._free, (start, blocks))

    def unusable_tokens(self, tokens: int) -> int:
        if self.free_blocks < tokens:
            return 0
        return sum(length for _, length in self._free if length < tokens)

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        raise RuntimeError(
            f"sequence {sequence.id} has no block table ({blocks} blocks asked for): the pool is contiguous"
        )


def build_pool(kind: PoolKind, kv_tokens: int, block_tokens: int) -> KvPool:
    """The pool of ``kv_tokens`` tokens that ``kind`` names."""
    return PagedPool(kv_tokens, block_tokens) if kind == "paged" else ContiguousPool(kv_tokens)
