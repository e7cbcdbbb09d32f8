"""Resident sequences, held by cohort: a lane whose decode step is one ``tick += 1``, whatever its size."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, NamedTuple

from scheduler.plan import NEVER
from scheduler.policy import Order, View
from scheduler.ranking import Ranking
from scheduler.sequence import UNSET, Sequence

MASK64 = (1 << 64) - 1

#: (key, sequence number, join, sequence): stale once the sequence has left the cohort or joined again
Entry = tuple[int, int, int, Sequence]


class Cohort:
    """A lane of resident sequences.

    A member's length is ``offset + tick``, so sums over the lengths, their maximum, the next end and the KV blocks
    that the next steps take are kept without touching members. Heaps hold entries that may be stale.
    """

    __slots__ = (
        "finishes",
        "fresh",
        "held_blocks",
        "ids",
        "key",
        "leaves",
        "longest_first",
        "members",
        "oldest_first",
        "position_hash",
        "residues",
        "served_ns",
        "sum_offsets",
        "tick",
    )

    def __init__(self, key: Any, block_tokens: int) -> None:
        self.key = key
        self.tick = 0
        self.members: dict[int, Sequence] = {}
        self.sum_offsets = 0
        self.ids = 0
        self.position_hash = 0
        #: how many members have an offset of i modulo the block size
        self.residues = [0] * block_tokens
        #: blocks that hold the members' computed tokens
        self.held_blocks = 0
        self.finishes: list[Entry] = []
        self.longest_first: list[Entry] = []
        self.leaves: list[Entry] = []
        self.oldest_first: list[Entry] = []
        #: members that have not been served since they joined; all others were served at ``served_ns``
        self.fresh: dict[int, Sequence] = {}
        self.served_ns = UNSET

    @property
    def count(self) -> int:
        return len(self.members)

    @property
    def tokens(self) -> int:
        return self.sum_offsets + len(self.members) * self.tick

    @property
    def oldest(self) -> int:
        return self._top(self.oldest_first)[0]

    @property
    def longest(self) -> int:
        """Largest number of known tokens among the members."""
        return self.tick - self._top(self.longest_first)[0]

    @property
    def starts(self) -> int:
        """Sum of h(id) x start position of the members' next decode step, modulo 2**64."""
        return (self.position_hash + (self.tick - 1) * self.ids) & MASK64

    def _top(self, heap: list[Entry]) -> Entry:
        while True:
            entry = heap[0]
            if entry[3].cohort is self and entry[3].join == entry[2]:
                return entry
            heappop(heap)

    def steps_to_finish(self) -> int:
        """Steps until the first member ends."""
        return self._top(self.finishes)[0] - self.tick

    def steps_to_leave(self) -> int:
        """Steps until the first member belongs to another lane."""
        while self.leaves:
            entry = self.leaves[0]
            if entry[3].cohort is self and entry[3].join == entry[2]:
                return entry[0] - self.tick
            heappop(self.leaves)
        return NEVER

    def due(self, heap: list[Entry]) -> list[Sequence]:
        """Take the members out of ``heap`` whose key the tick has reached."""
        found = []
        while heap and heap[0][0] <= self.tick:
            _, _, join, sequence = heappop(heap)
            if sequence.cohort is self and sequence.join == join:
                found.append(sequence)
        return found

    @property
    def blocks(self) -> int:
        """Blocks that the members' next step reads and writes."""
        residues = self.residues
        return self.held_blocks + residues[(1 - self.tick) % len(residues)]

    def new_blocks(self, steps: int) -> tuple[int, int]:
        """KV blocks that ``steps`` steps allocate, and the sum over them of the steps that they are held.

        A member takes a block in the step that starts with a multiple of the block size computed.
        """
        residues = self.residues
        size = len(residues)
        blocks = block_steps = 0
        computed = self.tick - 1
        for step in range(min(steps, size)):
            members = residues[(-(computed + step)) % size]
            if members:
                times = (steps - 1 - step) // size + 1
                blocks += members * times
                block_steps += members * (times * (steps - step) - size * (times * (times - 1) // 2))
        return blocks, block_steps

    def steps_within(self, blocks: int, steps: int) -> int:
        """The most steps, at most ``steps``, whose new blocks are no more than ``blocks``."""
        size = len(self.residues)
        if (steps // size + 1) * len(self.members) <= blocks:
            return steps
        computed = self.tick - 1
        for step in range(steps):
            blocks -= self.residues[(-(computed + step)) % size]
            if blocks < 0:
                return step
        return steps


class Advance(NamedTuple):
    """What came of stepping cohorts."""

    ended: list[Sequence]
    blocks: int
    """KV blocks that the members grew into"""
    block_steps: int
    """the sum over those blocks of the steps that they were held"""


class Residents:
    """All sequences that can be stepped, in cohorts, under one :class:`~scheduler.policy.Order`."""

    def __init__(self, order: Order, view: View, block_tokens: int) -> None:
        self._order = order
        self._view = view
        self._block_tokens = block_tokens
        self._joins = 0
        self.cohorts: dict[Any, Cohort] = {}
        #: cohort keys in order, kept for uniform orders: the next one above is where a cohort will merge
        self._keys: list[int] = []
        self._by_rank: Ranking[Any] = Ranking()
        self._by_number: Ranking[int] = Ranking()
        self._newest_first: Ranking[int] = Ranking()
        self._sequences: dict[int, Sequence] = {}
        self.count = 0
        self.tokens = 0

    # -- membership

    def join(self, sequence: Sequence) -> None:
        """Take in a sequence whose next step computes its last known token."""
        self.tokens += sequence.known
        self.count += 1
        self._place(sequence, sequence.known)
        number = sequence.number
        self._sequences[number] = sequence
        self._by_number.set(number, 0)
        self._newest_first.set(number, -number)

    def _place(self, sequence: Sequence, known: int) -> None:
        key = self._order.lane(sequence, self._view)
        cohort = self.cohorts.get(key)
        if cohort is None:
            cohort = self._open(key)
        self._joins += 1
        self._insert(cohort, sequence, known, self._joins)
        self._ranked(cohort)

    def _insert(self, cohort: Cohort, sequence: Sequence, known: int, join: int) -> None:
        offset = known - cohort.tick
        number = sequence.number
        sequence.offset, sequence.cohort, sequence.join = offset, cohort, join
        cohort.members[number] = sequence
        cohort.sum_offsets += offset
        cohort.ids = (cohort.ids + sequence.hash64) & MASK64
        cohort.position_hash = (cohort.position_hash + sequence.hash64 * offset) & MASK64
        cohort.residues[offset % self._block_tokens] += 1
        cohort.held_blocks -= -(known - 1) // self._block_tokens
        heappush(cohort.finishes, (sequence.limit - offset, number, join, sequence))
        heappush(cohort.longest_first, (-offset, number, join, sequence))
        heappush(cohort.oldest_first, (number, number, join, sequence))
        if not self._order.uniform:
            steps = self._order.steps_in_lane(sequence)
            if steps < NEVER:
                heappush(cohort.leaves, (cohort.tick + steps, number, join, sequence))
        cohort.fresh[number] = sequence

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out; its lengths stay readable."""
        self.tokens -= self._unplace(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self.count -= 1
        del self._sequences[sequence.number]
        self._by_number.discard(sequence.number)
        self._newest_first.discard(sequence.number)

    def _unplace(self, sequence: Sequence) -> int:
        cohort = sequence.cohort
        if cohort is None:
            raise RuntimeError(f"{sequence!r} is not resident")
        known = self._remove(cohort, sequence)
        if cohort.members:
            self._ranked(cohort)
        else:
            self._close(cohort)
        return known

    def _remove(self, cohort: Cohort, sequence: Sequence) -> int:
        known = sequence.known
        offset = sequence.offset
        del cohort.members[sequence.number]
        cohort.sum_offsets -= offset
        cohort.ids = (cohort.ids - sequence.hash64) & MASK64
        cohort.position_hash = (cohort.position_hash - sequence.hash64 * offset) & MASK64
        cohort.residues[offset % self._block_tokens] -= 1
        cohort.held_blocks += -(known - 1) // self._block_tokens
        if cohort.fresh.pop(sequence.number, None) is None:
            sequence.last_served_ns = cohort.served_ns
        sequence.cohort = None
        sequence.place(known, known - 1)
        return known

    def _open(self, key: Any) -> Cohort:
        cohort = self.cohorts[key] = Cohort(key, self._block_tokens)
        if self._order.uniform:
            insort(self._keys, key)
        return cohort

    def _close(self, cohort: Cohort) -> None:
        del self.cohorts[cohort.key]
        self._by_rank.discard(cohort.key)
        if self._order.uniform:
            del self._keys[bisect_right(self._keys, cohort.key) - 1]

    # -- order

    def _ranked(self, cohort: Cohort) -> None:
        self._by_rank.set(cohort.key, self._order.lane_rank(cohort))

    def first(self) -> Cohort:
        """The cohort that goes first."""
        return self.cohorts[self._by_rank.first()]

    def ordered(self, leader: Cohort | None) -> list[Cohort]:
        """All cohorts as they go, the leader's first."""
        rank = self._order.lane_rank
        return sorted(self.cohorts.values(), key=lambda c: (c is not leader, rank(c), c.key))

    def ranked_members(self, cohort: Cohort, leader: Sequence | None) -> list[Sequence]:
        """The members of a cohort in the order's rank, the leader first."""
        order, view = self._order, self._view
        return sorted(cohort.members.values(), key=lambda s: (s is not leader, order.rank(s, view), s.number))

    def steps_to_merge(self, cohort: Cohort) -> int:
        """Steps until a cohort of a uniform order reaches the length of the next longer one."""
        index = bisect_right(self._keys, cohort.key)
        return self._keys[index] - cohort.key if index < len(self._keys) else NEVER

    def newest(self) -> Sequence:
        """The resident sequence that was submitted last."""
        return self._sequences[self._newest_first.first()]

    def oldest(self) -> Sequence:
        """The resident sequence that was submitted first."""
        return self._sequences[self._by_number.first()]

    def get(self, number: int) -> Sequence | None:
        """The resident sequence of that number."""
        return self._sequences.get(number)

    def last_served_ns(self, sequence: Sequence) -> int:
        """When a resident sequence got its last token."""
        cohort = sequence.cohort
        if cohort is None or sequence.number in cohort.fresh:
            return sequence.last_served_ns
        return cohort.served_ns

    def members(self) -> Iterable[Sequence]:
        """All resident sequences, in no order that anything may depend on."""
        return self._sequences.values()

    # -- progress

    def advance(self, cohorts: list[Cohort], steps: int, end_ns: int) -> Advance:
        """Every member goes ``steps`` tokens further. Those that ended are taken out.

        All cohorts move before any is put where it now belongs, longest first, so that none is merged into one that
        has yet to move.
        """
        ended: list[Sequence] = []
        blocks = block_steps = 0
        for cohort in cohorts:
            taken, held = cohort.new_blocks(steps)
            cohort.held_blocks += taken
            blocks += taken
            block_steps += held
            self.tokens += steps * len(cohort.members)
            cohort.tick += steps
            cohort.served_ns = end_ns
            cohort.fresh.clear()
            ended += cohort.due(cohort.finishes)
        for sequence in ended:
            self.leave(sequence)
        if self._order.uniform:
            for cohort in sorted(cohorts, key=lambda c: c.key, reverse=True):
                if cohort.members:
                    self._rekey(cohort, steps)
        else:
            for cohort in cohorts:
                for sequence in cohort.due(cohort.leaves):
                    self._place(sequence, self._unplace(sequence))
        return Advance(ended, blocks, block_steps)

    def _rekey(self, cohort: Cohort, steps: int) -> None:
        """Move a uniform cohort to its new length, and merge it into the one that is there, small into large."""
        self._close(cohort)
        key = cohort.key + steps
        other = self.cohorts.get(key)
        if other is None:
            cohort.key = key
            self.cohorts[key] = cohort
            insort(self._keys, key)
            self._ranked(cohort)
            return
        large, small = (cohort, other) if cohort.count > other.count else (other, cohort)
        for sequence in list(small.members.values()):
            known = self._remove(small, sequence)
            self._insert(large, sequence, known, sequence.join)
        large.key = key
        self.cohorts[key] = large
        self._ranked(large)

    def advance_one(self, sequence: Sequence, end_ns: int) -> bool:
        """One sequence goes a token further, without its cohort. Returns whether it ended (and was taken out)."""
        known = self._unplace(sequence) + 1
        sequence.place(known, known - 1)
        sequence.last_served_ns = end_ns
        if known >= sequence.limit:
            self.tokens -= known - 1
            self._forget(sequence)
            return True
        self.tokens += 1
        self._place(sequence, known)
        return False
