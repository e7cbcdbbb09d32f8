"""Prompt blocks that later prompts with the same beginning share (vLLM's automatic prefix caching).

A block hash stands for its block and all before it, so the cached prefix of a prompt is the longest run of its leading
hashes that are there: a trie without its edges. Only full prompt blocks are cached, from the end of the step on that
computed them. A block without a user stays cached until its memory is needed: the one that was used least recently
goes first, and of one sequence's blocks the last, because the first are in more prompts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from scheduler.kv.paged import PagedPool
from scheduler.kv.pool import Freed
from scheduler.sequence import Sequence


class CachedBlock:
    """A block that holds the KV of a full prompt block, and how many sequences use it."""

    __slots__ = ("freed", "hash", "id", "users")

    def __init__(self, hash: int, id: int) -> None:
        self.hash = hash
        #: the block's id in tables
        self.id = id
        self.users = 1
        #: how the last user left
        self.freed: Freed = "finished"


class PrefixCache:
    """The cached blocks by hash, and those without a user in the order in which they are overwritten."""

    def __init__(self) -> None:
        self._blocks: dict[int, CachedBlock] = {}
        self._idle: OrderedDict[int, CachedBlock] = OrderedDict()
        #: users beyond the first, over all blocks
        self.shared = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def idle(self) -> int:
        """Blocks without a user."""
        return len(self._idle)

    def leading(self, hashes: tuple[int, ...], most: int) -> list[CachedBlock]:
        """The blocks of the longest run of leading ``hashes`` that are cached, at most ``most``."""
        found = []
        for block_hash in hashes[:most]:
            block = self._blocks.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def enter(self, hash: int, id: int) -> CachedBlock | None:
        """Cache the block ``id`` of one user, or return ``None`` where that hash has a block already."""
        if hash in self._blocks:
            return None
        block = self._blocks[hash] = CachedBlock(hash, id)
        return block

    def use(self, block: CachedBlock) -> bool:
        """One user more. Returns whether it is the only one: the block was idle."""
        block.users += 1
        if block.users > 1:
            self.shared += 1
            return False
        del self._idle[block.hash]
        return True

    def leave(self, block: CachedBlock, freed: Freed) -> bool:
        """One user less. Returns whether none is left: the block is idle, and the last to be evicted."""
        block.users -= 1
        if block.users:
            self.shared -= 1
            return False
        block.freed = freed
        self._idle[block.hash] = block
        return True

    def evict(self) -> CachedBlock:
        """Forget the idle block that was used least recently, and return it."""
        block_hash, block = self._idle.popitem(last=False)
        del self._blocks[block_hash]
        self.evictions += 1
        return block


class CachingPagedPool(PagedPool):
    """A paged pool whose full prompt blocks are shared, and kept for later prompts as long as nothing else needs them.

    Free blocks that are not cached are handed out first. Admission, completion and release cost time in proportion to
    the blocks of the prompt, growth to the cached blocks that it overwrites.
    """

    def __init__(self, kv_tokens: int, block_tokens: int) -> None:
        super().__init__(kv_tokens, block_tokens)
        self._cache = PrefixCache()
        #: the leading blocks of a sequence that hold KV to share; ``None`` where its own block stays private, because
        #: another one with that hash was cached first
        self._prompts: dict[int, list[CachedBlock | None]] = {}

    @property
    def cached_blocks(self) -> int:
        return len(self._cache)

    @property
    def shared_blocks(self) -> int:
        return self._cache.shared

    @property
    def evictions(self) -> int:
        return self._cache.evictions

    def shortage(self, sequence: Sequence, tokens: int, shares: bool = True) -> int:
        hits = self._hits(sequence) if shares else []
        idle = len({block for block in hits if not block.users})
        return self.blocks_for(tokens) - len(hits) - (self.free_blocks - idle)

    def freed_by(self, holdings: list[tuple[Sequence, int]], shared_with: Sequence | None = None) -> int:
        kept = set() if shared_with is None else set(self._hits(shared_with))
        leaving = Counter(block for s, _ in holdings for block in self._prompts.get(s.number, ()) if block is not None)
        cached = sum(leaving.values())
        freed = sum(count == block.users and block not in kept for block, count in leaving.items())
        return sum(blocks for _, blocks in holdings) - cached + freed

    def can_book(self, sequence: Sequence, tokens: int) -> bool:
        return self._fits(self._hits(sequence), tokens)

    def book_cached(self, sequence: Sequence, tokens: int) -> int:
        hits = self._hits(sequence)
        if not self._fits(hits, tokens):
            raise RuntimeError(f"{sequence!r}: no KV blocks for {tokens} tokens, {self.free_blocks} free")
        for block in hits:
            self.free_blocks -= self._cache.use(block)
        if hits:
            self._prompts[sequence.number] = list(hits)
            self._tables[sequence.number] = [block.id for block in hits]
        blocks = self.blocks_for(tokens)
        self.grow(blocks - len(hits))
        sequence.pool_blocks = blocks
        return len(hits) * self.block_tokens

    def cached_tokens(self, sequence: Sequence) -> int:
        return len(self._hits(sequence)) * self.block_tokens

    def computed(self, sequence: Sequence, tokens: int) -> None:
        blocks = min(tokens // self.block_tokens, self._hashed_blocks(sequence))
        if not blocks:
            return
        if not sequence.pool_blocks:
            raise RuntimeError(f"{sequence!r} holds no blocks whose KV could be shared")
        prompt = self._prompts.setdefault(sequence.number, [])
        if len(prompt) < blocks:
            hashes, ids = sequence.request.block_hashes, self.table(sequence, blocks)
            prompt += [self._cache.enter(hashes[i], ids[i]) for i in range(len(prompt), blocks)]

    def grow(self, blocks: int) -> None:
        overwritten = blocks - (self.free_blocks - self._cache.idle)
        if overwritten > 0 and blocks <= self.free_blocks:
            # all others that are free are handed out with them, so it does not matter that these are on top
            evicted = [self._cache.evict() for _ in range(overwritten)]
            self._free_ids += [block.id for block in evicted]
            for block in evicted:
                self._recycle(1, block.freed)
        super().grow(blocks)

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        prompt = self._prompts.pop(sequence.number, [])
        cached = {index: block for index, block in enumerate(prompt) if block is not None}
        if cached:
            for block in reversed(cached.values()):
                self.free_blocks += self._cache.leave(block, freed)
            ids = self._tables[sequence.number]
            self._tables[sequence.number] = [block_id for index, block_id in enumerate(ids) if index not in cached]
        super().release(sequence, blocks - len(cached), freed)

    def _hits(self, sequence: Sequence) -> list[CachedBlock]:
        """The cached blocks that ``sequence`` would share: at least one token is left to be computed."""
        if sequence.computed:
            return []
        most = min((sequence.known - 1) // self.block_tokens, self._hashed_blocks(sequence))
        return self._cache.leading(sequence.request.block_hashes, most)

    def _fits(self, hits: list[CachedBlock], tokens: int) -> bool:
        """Whether the blocks besides ``hits`` are there, once idle ones among ``hits`` are no longer free."""
        idle = len({block for block in hits if not block.users})
        return self.blocks_for(tokens) - len(hits) <= self.free_blocks - idle

    def _hashed_blocks(self, sequence: Sequence) -> int:
        return min(len(sequence.request.block_hashes), sequence.prompt_tokens // self.block_tokens)
