"""KV in blocks of a fixed size, any of which serves any sequence."""

from __future__ import annotations

from scheduler.kv.pool import Freed, KvPool
from scheduler.sequence import Sequence


class PagedPool(KvPool):
    """Blocks of a fixed size. Last freed goes first, never-used ones last. Counting costs the same for any number."""

    grows = True

    def __init__(self, kv_tokens: int, block_tokens: int) -> None:
        super().__init__(kv_tokens // block_tokens, block_tokens)
        #: free blocks that were used before, as a stack of runs [freed by, count]
        self._recycled: list[tuple[Freed, int]] = []
        self._tables: dict[int, list[int]] = {}
        self._free_ids: list[int] = []
        self._virgin_id = 0

    @property
    def largest_tokens(self) -> int:
        return self.capacity_blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def can_book(self, sequence: Sequence, tokens: int) -> bool:
        return self.blocks_for(tokens) <= self.free_blocks

    def book(self, sequence: Sequence, tokens: int) -> None:
        blocks = self.blocks_for(tokens)
        self.grow(blocks)
        sequence.pool_blocks = blocks

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
        self._recycle(blocks, freed)
        ids = self._tables.pop(sequence.number, None)
        if ids is not None:
            self._free_ids.extend(reversed(ids))

    def unusable_tokens(self, tokens: int) -> int:
        return 0

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        ids = self._tables.setdefault(sequence.number, [])
        while len(ids) < blocks:
            ids.append(self._next_id())
        return ids

    def _recycle(self, blocks: int, freed: Freed) -> None:
        """``blocks`` blocks are the next to be handed out."""
        if not blocks:
            return
        recycled = self._recycled
        if recycled and recycled[-1][0] == freed:
            blocks += recycled.pop()[1]
        recycled.append((freed, blocks))

    def _next_id(self) -> int:
        if self._free_ids:
            return self._free_ids.pop()
        if self._virgin_id == self.capacity_blocks:
            raise RuntimeError("a KV block id wanted, and all blocks are in use")
        self._virgin_id += 1
        return self._virgin_id - 1
