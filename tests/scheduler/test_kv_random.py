"""Random calls against pools that are written down naively: every block, and every token of a piece, has an owner."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kv_sequences import sequence
from random_runs import examples

from scheduler.kv import BuddyPool, ContiguousPool, Freed, KvPool, build_pool
from scheduler.sequence import Sequence

BLOCK = 2
#: the deepest prompt, in blocks
DEPTH = 4
FREED = st.sampled_from(["finished", "evicted"])
#: the kinds of a prompt's blocks
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=DEPTH)
#: how many of a prompt's blocks have no hash
LATE_BLOCKS = st.sampled_from([0, 0, 0, 1])
#: one of those that are there
PICK = st.integers(0, 11)


def chain_hashes(symbols: tuple[int, ...]) -> tuple[int, ...]:
    """A hash for each block of a prompt whose blocks are of two kinds, which stands for all blocks so far."""
    return tuple(int("1" + "".join(map(str, symbols[: i + 1])), 2) for i in range(len(symbols)))


EVERY_HASH = range(2, 2 << DEPTH)


class NaiveBlocks:
    """Every block by its index: who uses it, which hash it holds, how it was left."""

    def __init__(self, capacity: int, caching: bool) -> None:
        self.caching = caching
        self.users = [0] * capacity
        self.left: list[Freed | None] = [None] * capacity
        self.hash: list[int | None] = [None] * capacity
        self.unused = list(reversed(range(capacity)))
        self.idle: list[int] = []
        self.tables: dict[int, list[int]] = {}
        self.taken: Counter[Freed | None] = Counter()
        self.evictions = 0

    @property
    def free(self) -> int:
        return self.users.count(0)

    def cached(self, value: int) -> int | None:
        return self.hash.index(value) if value in self.hash else None

    def hits(self, member: Sequence) -> list[int]:
        found: list[int] = []
        if not self.caching or member.computed:
            return found
        for value in member.request.block_hashes[: (member.known - 1) // BLOCK]:
            block = self.cached(value)
            if block is None:
                break
            found.append(block)
        return found

    def fits(self, member: Sequence, tokens: int, hits: list[int]) -> bool:
        free = {block for block, users in enumerate(self.users) if not users}
        return -(-tokens // BLOCK) - len(hits) <= len(free - set(hits))

    def book(self, member: Sequence, tokens: int, hits: list[int]) -> None:
        for block in hits:
            self.users[block] += 1
            if block in self.idle:
                self.idle.remove(block)
        self.tables[member.number] = list(hits)
        for _ in range(-(-tokens // BLOCK) - len(hits)):
            self.grow(member)

    def grow(self, member: Sequence) -> None:
        if self.unused:
            block = self.unused.pop()
        else:
            block = self.idle.pop(0)
            self.hash[block] = None
            self.evictions += 1
        self.taken[self.left[block]] += 1
        self.users[block] = 1
        self.tables[member.number].append(block)

    def computed(self, member: Sequence, tokens: int) -> None:
        if self.caching:
            for block, value in zip(self.tables[member.number], member.request.block_hashes, strict=False):
                tokens -= BLOCK
                if tokens >= 0 and value not in self.hash:
                    self.hash[block] = value

    def release(self, member: Sequence, freed: Freed) -> None:
        for block in reversed(self.tables.pop(member.number)):
            self.users[block] -= 1
            if not self.users[block]:
                self.left[block] = freed
                (self.unused if self.hash[block] is None else self.idle).append(block)


class PagedPools(RuleBasedStateMachine):
    """Sequences come, are computed in chunks, grow, lose their KV and end, in any order."""

    caching = False

    @initialize(capacity=st.integers(1, 12), asks=st.sampled_from(["always", "sometimes", "never"]))
    def start(self, capacity: int, asks: str) -> None:
        self.pool: KvPool = build_pool("paged", capacity * BLOCK + 1, BLOCK, prefix_cache=self.caching)
        self.model = NaiveBlocks(capacity, self.caching)
        #: whether steps ask for the block tables, as an executor does
        self.asks = asks
        self.waiting: list[Sequence] = []
        self.holders: list[Sequence] = []
        #: how many ids of each table are known
        self.asked: dict[int, int] = {}
        #: what a step has written into the block of an id
        self.memory: dict[int, object] = {}
        self.numbers = 0

    # -- what a scheduler does

    @rule(symbols=PROMPTS, extra=st.integers(0, 2), without_hashes=LATE_BLOCKS, ask=st.booleans())
    def serve(self, symbols: list[int], extra: int, without_hashes: int, ask: bool) -> None:
        """A request that can be admitted is prefilled at once; the others wait."""
        member = self.submitted(symbols, extra, without_hashes)
        if self.admitted(member, member.known, True, ask):
            self.compute(member, member.known, ask)
        elif len(self.waiting) < 3:
            self.waiting.append(member)

    @rule(symbols=PROMPTS, extra=st.integers(0, 2), without_hashes=LATE_BLOCKS)
    def submit(self, symbols: list[int], extra: int, without_hashes: int) -> None:
        if len(self.waiting) < 3:
            self.waiting.append(self.submitted(symbols, extra, without_hashes))

    @precondition(lambda self: self.waiting)
    @rule(pick=PICK, more=st.integers(0, 3), cached=st.booleans(), ask=st.booleans())
    def admit(self, pick: int, more: int, cached: bool, ask: bool) -> None:
        member = self.waiting[pick % len(self.waiting)]
        if self.admitted(member, member.known + more, cached, ask):
            self.waiting.remove(member)

    @precondition(lambda self: any(s.computed < s.known for s in self.holders))
    @rule(pick=PICK, tokens=st.integers(1, 9), ask=st.booleans())
    def compute_chunk(self, pick: int, tokens: int, ask: bool) -> None:
        unfinished = [s for s in self.holders if s.computed < s.known]
        member = unfinished[pick % len(unfinished)]
        self.compute(member, min(member.known, member.computed + tokens), ask)

    @precondition(lambda self: any(s.computed == s.known for s in self.holders))
    @rule(chosen=st.integers(1, 127), steps=st.integers(1, 4), ask=st.booleans())
    def decode(self, chosen: int, steps: int, ask: bool) -> None:
        ready = [s for s in self.holders if s.computed == s.known]
        members = [s for index, s in enumerate(ready) if chosen >> index % 7 & 1]
        for _ in range(steps):
            new = [s for s in members if s.known + 1 > len(self.model.tables[s.number]) * BLOCK]
            if len(new) > self.model.free:
                return
            self.pool.grow(len(new))
            for member in new:
                self.model.grow(member)
            for member in members:
                self.write(member, member.known, member.known + 1, ask)
                member.place(member.known + 1, member.known + 1)

    @precondition(lambda self: self.holders)
    @rule(pick=PICK, freed=FREED, to=st.sampled_from(["nowhere", "waiting", "host"]))
    def leave(self, pick: int, freed: Freed, to: str) -> None:
        member = self.holders[pick % len(self.holders)]
        self.release(member, freed)
        if to == "waiting":
            member.place(member.known, 0)
        if to != "nowhere" and len(self.waiting) < 3:
            self.waiting.append(member)

    # -- how it does that

    def submitted(self, symbols: list[int], extra: int, without_hashes: int) -> Sequence:
        hashes = chain_hashes(tuple(symbols))
        self.numbers += 1
        return sequence(self.numbers, len(symbols) * BLOCK + extra, hashes[: len(hashes) - without_hashes])

    def admitted(self, member: Sequence, tokens: int, cached: bool, ask: bool) -> bool:
        hits, swapped = self.model.hits(member), member.computed > 0
        if not cached:
            hits = []
        if not self.model.fits(member, tokens, hits):
            return False
        self.holders.append(member)
        if cached:
            assert self.pool.book_cached(member, tokens) == len(hits) * BLOCK
        else:
            self.pool.book(member, tokens)
        self.model.book(member, tokens, hits)
        assert member.pool_blocks == len(self.model.tables[member.number])
        if swapped:
            self.write(member, 0, member.computed, ask)
        else:
            member.place(member.known, len(hits) * BLOCK)
            self.asked[member.number] = len(self.pool.table(member, 0))
        return True

    def compute(self, member: Sequence, end: int, ask: bool) -> None:
        self.write(member, member.computed, end, ask)
        member.place(member.known, end)
        self.pool.computed(member, end)
        self.model.computed(member, end)

    def write(self, member: Sequence, start: int, end: int, ask: bool) -> None:
        """A step computes tokens: it asks for the table, perhaps ahead of what the pool has handed out."""
        if self.asks == "never" or (self.asks == "sometimes" and not ask):
            return
        blocks = -(-end // BLOCK)
        ids = self.pool.table(member, blocks)
        assert len(set(ids)) == len(ids)
        self.asked[member.number] = max(blocks, self.asked.get(member.number, 0))
        hashes = member.request.block_hashes
        for index in range(start // BLOCK, blocks):
            self.memory[ids[index]] = hashes[index] if index < len(hashes) else (member.number, index)

    def release(self, member: Sequence, freed: Freed) -> None:
        self.holders.remove(member)
        self.asked.pop(member.number, None)
        self.pool.release(member, len(self.model.tables[member.number]), freed)
        self.model.release(member, freed)
        assert member.pool_blocks == 0

    # -- what must hold after each call

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        pool, model = self.pool, self.model
        assert pool.free_blocks == model.free >= 0
        assert pool.reserved_tokens == (pool.capacity_blocks - model.free) * BLOCK
        taken = model.taken
        assert (pool.reused, pool.reused_after_preemption) == (taken["finished"], taken["evicted"])
        assert pool.allocations == taken.total()
        assert pool.cached_blocks == sum(value is not None for value in model.hash)
        assert pool.evictions == model.evictions
        assert pool.shared_blocks == sum(users - 1 for users in model.users if users)
        for member in self.holders:
            table = model.tables[member.number]
            assert pool.freed_by([(member, len(table))]) == sum(model.users[block] == 1 for block in table)

    @invariant()
    def the_cache_holds_the_same_blocks(self) -> None:
        for value in EVERY_HASH:
            found = self.pool.cached_tokens(sequence(-1, BLOCK + 1, (value,)))
            assert found == (BLOCK if self.model.cached(value) is not None else 0)

    @invariant()
    def whoever_waits_is_told_the_truth(self) -> None:
        for member in self.waiting:
            hits = self.model.hits(member)
            assert self.pool.cached_tokens(member) == len(hits) * BLOCK
            for tokens in range(member.known, member.known + 12):
                assert self.pool.can_book(member, tokens) == self.model.fits(member, tokens, hits)

    @invariant()
    def a_block_has_one_id_and_an_id_one_block(self) -> None:
        pairs = set()
        for member in self.holders:
            known = self.asked.get(member.number, 0)
            pairs |= set(zip(self.model.tables[member.number][:known], self.pool.table(member, 0)[:known], strict=True))
        assert len(pairs) == len({block for block, _ in pairs}) == len({block_id for _, block_id in pairs})
        assert all(0 <= block_id < self.pool.capacity_blocks for _, block_id in pairs)

    @invariant()
    def nobody_has_lost_what_was_computed(self) -> None:
        if self.asks != "always":
            return
        for member in self.holders:
            hashes = member.request.block_hashes
            full = min(member.computed // BLOCK, len(hashes))
            ids = self.pool.table(member, 0)[:full]
            assert [self.memory[block_id] for block_id in ids] == list(hashes[:full])

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for member in list(self.holders):
            self.release(member, "finished")
        assert (self.pool.free_blocks, self.pool.reserved_tokens) == (self.pool.capacity_blocks, 0)
        assert self.pool.shared_blocks == 0


class CachingPools(PagedPools):
    caching = True


class NaivePieces:
    """Every token of the memory: who has it, and how it was left."""

    def __init__(self, capacity: int) -> None:
        self.owner: list[int | None] = [None] * capacity
        self.left: list[Freed | None] = [None] * capacity
        self.taken: Counter[Freed | None] = Counter()

    def length(self, tokens: int) -> int:
        return tokens

    def pieces(self) -> list[range]:
        """The free pieces, by address."""
        found: list[range] = []
        for slot, owner in enumerate(self.owner):
            if owner is None:
                first = found.pop().start if found and found[-1].stop == slot else slot
                found.append(range(first, slot + 1))
        return found

    def place(self, tokens: int) -> range | None:
        """Where a piece for ``tokens`` tokens would be taken."""
        return next((piece[:tokens] for piece in self.pieces() if len(piece) >= tokens), None)

    def book(self, member: Sequence, tokens: int) -> None:
        piece = self.place(tokens)
        assert piece is not None
        used = all(self.left[slot] for slot in piece)
        self.taken[self.left[piece.start] if used else None] += 1
        for slot in piece:
            self.owner[slot] = member.number

    def release(self, member: Sequence, freed: Freed) -> None:
        for slot, owner in enumerate(self.owner):
            if owner == member.number:
                self.owner[slot], self.left[slot] = None, freed


class NaiveBuddies(NaivePieces):
    """The same with the rule for pieces: a free area is the largest one of which nothing is used."""

    def length(self, tokens: int) -> int:
        size = 1
        while size < tokens:
            size *= 2
        return size

    def pieces(self) -> list[range]:
        found: list[range] = []
        start, rest = 0, len(self.owner)
        while rest:
            size = 1
            while size * 2 <= rest:
                size *= 2
            found += self.free_in(range(start, start + size))
            start, rest = start + size, rest - size
        return found

    def free_in(self, area: range) -> list[range]:
        if all(self.owner[slot] is None for slot in area):
            return [area]
        half = len(area) // 2
        return self.free_in(area[:half]) + self.free_in(area[half:]) if half else []

    def place(self, tokens: int) -> range | None:
        size = self.length(tokens)
        fitting = [piece for piece in self.pieces() if len(piece) >= size]
        return min(fitting, key=lambda piece: (len(piece), piece.start))[:size] if fitting else None


class Pieces(RuleBasedStateMachine):
    """Reservations come and go."""

    kind: type[ContiguousPool | BuddyPool] = ContiguousPool
    naive = NaivePieces

    @initialize(capacity=st.integers(1, 24))
    def start(self, capacity: int) -> None:
        self.pool = self.kind(capacity)
        self.model = self.naive(capacity)
        self.holders: list[Sequence] = []
        self.numbers = 0

    @rule(tokens=st.integers(1, 10))
    def book(self, tokens: int) -> None:
        if self.model.place(tokens) is None:
            return
        member = sequence(self.numbers)
        self.numbers += 1
        assert self.pool.book_cached(member, tokens) == 0
        self.model.book(member, tokens)
        self.holders.append(member)
        assert member.pool_blocks == self.model.length(tokens)

    @precondition(lambda self: self.holders)
    @rule(pick=PICK, freed=FREED)
    def release(self, pick: int, freed: Freed) -> None:
        member = self.holders.pop(pick % len(self.holders))
        self.pool.release(member, member.pool_blocks, freed)
        self.model.release(member, freed)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        pool, model = self.pool, self.model
        pieces = model.pieces()
        assert pool.free_blocks == sum(len(piece) for piece in pieces) >= 0
        assert pool.reserved_tokens == sum(owner is not None for owner in model.owner)
        taken = model.taken
        assert (pool.reused, pool.reused_after_preemption) == (taken["finished"], taken["evicted"])
        assert pool.allocations == taken.total()
        for tokens in range(1, pool.capacity_blocks + 1):
            needed = model.length(tokens)
            assert pool.can_book(sequence(-1), tokens) == (model.place(tokens) is not None)
            small = sum(len(piece) for piece in pieces if len(piece) < needed)
            assert pool.unusable_tokens(tokens) == (small if pool.free_blocks >= needed else 0)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        empty = self.kind(self.pool.capacity_blocks)
        for member in self.holders:
            self.pool.release(member, member.pool_blocks, "finished")
        assert self.pool.free_blocks == self.pool.capacity_blocks
        assert list(self.pool._free_pieces()) == list(empty._free_pieces()), "all merged again"
        assert self.pool.can_book(sequence(-1), self.pool.largest_tokens)
        assert not self.pool.can_book(sequence(-1), self.pool.largest_tokens + 1)


class Buddies(Pieces):
    kind = BuddyPool
    naive = NaiveBuddies


TestPagedPools = PagedPools.TestCase
TestCachingPools = CachingPools.TestCase
TestContiguousPools = Pieces.TestCase
TestBuddyPools = Buddies.TestCase
TestPagedPools.settings = TestContiguousPools.settings = TestBuddyPools.settings = examples(25)
TestCachingPools.settings = examples(60)
