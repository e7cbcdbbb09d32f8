"""Resident sequences, held by cohort: a lane whose decode step is one ``tick += 1``, whatever its size."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from scheduler.plan import NEVER
from scheduler.policy import Order, View
from scheduler.ranking import Extreme, Ranking
from scheduler.sequence import Sequence, Served

MASK64 = (1 << 64) - 1

#: (key, sequence number, join, sequence): stale once the sequence has left the cohort or joined again
Entry = tuple[int, int, int, Sequence]


class Cohort:
    """A lane of resident sequences.

    A member's length is ``offset + tick``, so sums over the lengths, their maximum, the next end and the KV blocks
    that the next steps take are kept without touching members. Heaps hold entries that may be stale.
    """

    __slots__ = (
        "_oldest",
        "clock_ns",
        "expiries",
        "finishes",
        "fresh",
        "held_blocks",
        "ids",
        "key",
        "leaves",
        "longest_first",
        "members",
        "position_hash",
        "quanta",
        "residues",
        "served",
        "sum_offsets",
        "tenants",
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
        self._oldest = Extreme(self.members)
        #: members that have not been served since they joined; all others were last served in ``served``
        self.fresh: dict[int, Sequence] = {}
        self.served = Served()
        #: time of the steps that the members were in together, and when it puts them into another lane (timed orders)
        self.clock_ns = 0
        self.expiries: list[Entry] = []
        #: when members have had their quantum since their admission, where that matters
        self.quanta: list[Entry] = []
        #: members by tenant, where somebody keeps account of them
        self.tenants: dict[str, int] = {}

    @property
    def count(self) -> int:
        return len(self.members)

    @property
    def tokens(self) -> int:
        return self.sum_offsets + len(self.members) * self.tick

    @property
    def oldest(self) -> int:
        return self._oldest.first()

    @property
    def eldest(self) -> Sequence:
        return self.members[self._oldest.first()]

    @property
    def longest(self) -> int:
        """Largest number of known tokens among the members."""
        return self.tick - self._top(self.longest_first)[0]

    @property
    def even(self) -> bool:
        """Whether all members have the same length."""
        return len(self.members) == 1 or len(self.members) * self.longest == self.tokens

    @property
    def starts(self) -> int:
        """Sum of h(id) x start position of the members' next decode step, modulo 2**64."""
        return (self.position_hash + (self.tick - 1) * self.ids) & MASK64

    def take_in(self, sequence: Sequence) -> None:
        """``sequence`` is a member."""
        self.members[sequence.number] = sequence
        self._oldest.add(sequence.number)

    def rank_by_length(self, sequence: Sequence, join: int) -> None:
        """A new member is one of those that :attr:`longest` looks at; who has left is forgotten now and then."""
        heap = self.longest_first
        heappush(heap, (-sequence.offset, sequence.number, join, sequence))
        if len(heap) > 4 * len(self.members) + 64:
            heap[:] = [entry for entry in heap if entry[3].cohort is self and entry[3].join == entry[2]]
            heapify(heap)

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
        return self._first_of(self.leaves) - self.tick

    def steps_to_quantum(self) -> int:
        """Steps until the next member has had its quantum."""
        return self._first_of(self.quanta) - self.tick

    def time_to_leave(self) -> int:
        """Nanoseconds of service until the first member belongs to another lane (timed orders)."""
        return self._first_of(self.expiries) - self.clock_ns

    def _first_of(self, heap: list[Entry]) -> int:
        while heap:
            entry = heap[0]
            if entry[3].cohort is self and entry[3].join == entry[2]:
                return entry[0]
            heappop(heap)
        return NEVER

    def due(self, heap: list[Entry], reached: int) -> list[Sequence]:
        """Take the members out of ``heap`` whose key is ``reached``."""
        found = []
        while heap and heap[0][0] <= reached:
            _, _, join, sequence = heappop(heap)
            if sequence.cohort is self and sequence.join == join:
                found.append(sequence)
        return found

    @property
    def blocks(self) -> int:
        """Blocks that the members' next step reads and writes."""
        return self.held_blocks + self.next_blocks

    @property
    def next_blocks(self) -> int:
        """New blocks that the members' next step takes."""
        residues = self.residues
        return residues[(1 - self.tick) % len(residues)]

    def growing(self, steps: int) -> list[int]:
        """How many members take a new block in each of the next ``steps`` steps (at most a block's worth of them).

        A member takes a block in the step that starts with a multiple of the block size computed.
        """
        residues = self.residues
        first = (1 - self.tick) % len(residues)
        period = residues[first::-1] + residues[:first:-1]
        return period if steps >= len(period) else period[:steps]

    def blocks_within(self, steps: int) -> int:
        """New blocks that the members' next ``steps`` steps take."""
        if steps == 1:
            return self.next_blocks
        whole, rest = divmod(steps, len(self.residues))
        return whole * len(self.members) + sum(self.growing(rest))


def growth(cohorts: list[Cohort], steps: int) -> list[int]:
    """New KV blocks of ``cohorts`` in each of the next ``steps`` steps; it repeats after a block's worth of them."""
    if len(cohorts) == 1:
        return cohorts[0].growing(steps)
    return [sum(blocks) for blocks in zip(*(cohort.growing(steps) for cohort in cohorts), strict=True)]


def steps_within(blocks: int, period: list[int], steps: int) -> int:
    """The most steps, at most ``steps``, whose new blocks, repeating after ``period``, are no more than ``blocks``."""
    each = sum(period)
    if not each or (steps // len(period) + 1) * each <= blocks:
        return steps
    whole = blocks // each
    blocks -= whole * each
    done = whole * len(period)
    for new in period:
        blocks -= new
        if blocks < 0:
            break
        done += 1
    return min(done, steps)


class Advance:
    """What came of stepping: who reached the end that was foreseen, and who one that was not."""

    __slots__ = ("ending", "hidden")

    def __init__(self) -> None:
        self.ending: list[Sequence] = []
        self.hidden: list[Sequence] = []


class Residents:
    """All sequences that can be stepped, in cohorts, under one :class:`~scheduler.policy.Order`."""

    def __init__(
        self,
        order: Order,
        view: View,
        block_tokens: int,
        *,
        urgency: Callable[[Sequence, View], Any] | None = None,
        quantum: int = 0,
        by_tenant: bool = False,
        together: bool = False,
    ) -> None:
        """``together``: every step takes all residents, so that lanes make no difference, and one cohort holds all."""
        self.order = order
        self._uniform = order.uniform
        self._timed = order.timed
        #: whether a cohort goes on through lanes that are free, and nothing hangs on the lane that it is in
        self.climbs = order.climbs and not order.timed and urgency is None and not together
        self._together = together
        self._view = view
        self._block_tokens = block_tokens
        self._by_tenant = by_tenant
        self._urgency = urgency
        self._quantum = quantum
        #: (-urgency at some time, -number, join, sequence) of all who have had their quantum: an upper bound, since
        #: urgency only falls inside a lane; several of one sequence where it changed lanes
        self._least_urgent: list[Entry] = []
        self._joins = 0
        self.cohorts: dict[Any, Cohort] = {}
        #: cohort keys in order, kept where cohorts climb or move: the next one above is where a cohort will merge
        self._keys: list[int] = []
        self._by_rank: Ranking[Any] = Ranking()
        self._sequences: dict[int, Sequence] = {}
        self._oldest = Extreme(self._sequences)
        self._newest = Extreme(self._sequences, largest=True)
        self._epoch = order.epoch
        self.count = 0
        self.tokens = 0
        #: raised when anybody comes, goes or changes lanes
        self.version = 0

    # -- membership

    def join(self, sequence: Sequence) -> None:
        """Take in a sequence whose next step computes its last known token."""
        self.tokens += sequence.known
        self.count += 1
        self.version += 1
        self._place(sequence)
        number = sequence.number
        self._sequences[number] = sequence
        self._oldest.add(number)
        self._newest.add(number)

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out; its lengths stay readable."""
        self._unplace(sequence)
        self.tokens -= sequence.known
        self.count -= 1
        self.version += 1
        del self._sequences[sequence.number]

    def relane(self, sequences: list[Sequence]) -> None:
        """Put resident sequences where they now belong."""
        if not sequences:
            return
        self.version += 1
        touched: dict[Any, Cohort] = {}
        for sequence in sequences:
            cohort = sequence.cohort
            if cohort is None:
                raise RuntimeError(f"{sequence!r} is not resident")
            self._remove(cohort, sequence)
            touched[cohort.key] = cohort
            key = self._lane(sequence)
            cohort = self.cohorts.get(key)
            if cohort is None:
                cohort = self._open(key)
            self._joins += 1
            self._insert(cohort, sequence, self._joins)
            touched[key] = cohort
        for cohort in touched.values():
            if cohort.members:
                self._ranked(cohort)
            else:
                self._close(cohort)

    def _move(self, cohort: Cohort, members: list[Sequence]) -> bool:
        """Let a cohort whose ``members`` all belong to another lane be that lane, if there is no such cohort yet."""
        if not self.climbs:
            return False
        key = self._lane(members[0])
        if key in self.cohorts or any(self._lane(sequence) != key for sequence in members[1:]):
            return False
        self.version += 1
        self._close(cohort)
        self._reopen(cohort, key)
        for sequence in members:
            self._time_lane(cohort, sequence, sequence.join)
        return True

    def _reopen(self, cohort: Cohort, key: Any) -> None:
        """A cohort that was closed is another lane, which is free."""
        cohort.key = key
        self.cohorts[key] = cohort
        insort(self._keys, key)
        self._ranked(cohort)

    def outlast(self, sequences: list[Sequence]) -> None:
        """Put resident sequences where they now belong, whose time in their lane is over: it was due in its cohort."""
        if not self._together:
            self.relane(sequences)
            return
        for sequence in sequences:
            cohort = sequence.cohort
            if cohort is None:
                raise RuntimeError(f"{sequence!r} is not resident")
            self.version += 1
            self._time_lane(cohort, sequence, sequence.join)
            if self._urgency is not None and sequence.known >= sequence.admitted_known + self._quantum:
                self._had_quantum(sequence)

    def follow_order(self) -> None:
        """Put everybody where they now belong if the order's lanes have changed as a whole."""
        if self.order.epoch == self._epoch:
            return
        self._epoch = self.order.epoch
        self.relane(sorted(self._sequences.values(), key=lambda s: s.number))

    def _place(self, sequence: Sequence) -> None:
        key = self._lane(sequence)
        cohort = self.cohorts.get(key)
        if cohort is None:
            cohort = self._open(key)
        self._joins += 1
        self._insert(cohort, sequence, self._joins)
        self._ranked(cohort)

    def _insert(self, cohort: Cohort, sequence: Sequence, join: int) -> None:
        known = sequence.known
        offset = known - cohort.tick
        number = sequence.number
        if not self._uniform:
            self._time_lane(cohort, sequence, join)
            if self._timed:
                sequence.set_service(sequence.service_ns - cohort.clock_ns)
        sequence.offset, sequence.cohort, sequence.join = offset, cohort, join
        cohort.take_in(sequence)
        cohort.sum_offsets += offset
        cohort.ids = (cohort.ids + sequence.hash64) & MASK64
        cohort.position_hash = (cohort.position_hash + sequence.hash64 * offset) & MASK64
        cohort.residues[offset % self._block_tokens] += 1
        cohort.held_blocks -= -(known - 1) // self._block_tokens
        heappush(cohort.finishes, (sequence.limit - offset, number, join, sequence))
        cohort.rank_by_length(sequence, join)
        cohort.fresh[number] = sequence
        if self._urgency is not None:
            due = sequence.admitted_known + self._quantum - offset
            if due <= cohort.tick:
                self._had_quantum(sequence)
            else:
                heappush(cohort.quanta, (due, number, join, sequence))
        if self._by_tenant:
            tenant = sequence.request.tenant
            cohort.tenants[tenant] = cohort.tenants.get(tenant, 0) + 1

    def _time_lane(self, cohort: Cohort, sequence: Sequence, join: int) -> None:
        """Remember when ``sequence`` will belong to another lane, unless it ends before."""
        order = self.order
        steps = order.steps_in_lane(sequence, self._view)
        if steps < sequence.foreseen - sequence.known:
            heappush(cohort.leaves, (cohort.tick + steps, sequence.number, join, sequence))
        if self._timed:
            due_ns = cohort.clock_ns + order.time_in_lane(sequence)
            heappush(cohort.expiries, (due_ns, sequence.number, join, sequence))

    def _lane(self, sequence: Sequence) -> Any:
        return 0 if self._together else self.order.lane(sequence, self._view)

    def _unplace(self, sequence: Sequence) -> None:
        cohort = sequence.cohort
        if cohort is None:
            raise RuntimeError(f"{sequence!r} is not resident")
        self._remove(cohort, sequence)
        if cohort.members:
            self._ranked(cohort)
        else:
            self._close(cohort)

    def _remove(self, cohort: Cohort, sequence: Sequence) -> None:
        known = sequence.known
        offset = sequence.offset
        del cohort.members[sequence.number]
        cohort.sum_offsets -= offset
        cohort.ids = (cohort.ids - sequence.hash64) & MASK64
        cohort.position_hash = (cohort.position_hash - sequence.hash64 * offset) & MASK64
        cohort.residues[offset % self._block_tokens] -= 1
        cohort.held_blocks += -(known - 1) // self._block_tokens
        if cohort.fresh.pop(sequence.number, None) is None:
            sequence.served = cohort.served
        if self._by_tenant:
            tenant = sequence.request.tenant
            cohort.tenants[tenant] -= 1
            if not cohort.tenants[tenant]:
                del cohort.tenants[tenant]
        service_ns = sequence.service_ns
        sequence.cohort = None
        sequence.set_service(service_ns)
        sequence.place(known, known - 1)

    def _open(self, key: Any) -> Cohort:
        cohort = self.cohorts[key] = Cohort(key, self._block_tokens)
        if self._uniform or self.climbs:
            insort(self._keys, key)
        return cohort

    def _close(self, cohort: Cohort) -> None:
        del self.cohorts[cohort.key]
        self._by_rank.discard(cohort.key)
        if self._uniform or self.climbs:
            del self._keys[bisect_right(self._keys, cohort.key) - 1]

    # -- order

    def _ranked(self, cohort: Cohort) -> None:
        if not self._together:
            self._by_rank.set(cohort.key, self.order.lane_rank(cohort))

    def first(self) -> Cohort:
        """The cohort that goes first."""
        return self.cohorts[0 if self._together else self._by_rank.first()]

    def ordered(self, leader: Cohort | None) -> list[Cohort]:
        """All cohorts as they go, the leader's first."""
        rank = self.order.lane_rank
        return sorted(self.cohorts.values(), key=lambda c: (c is not leader, rank(c), c.key))

    def ranked_members(self, cohort: Cohort, leader: Sequence | None) -> list[Sequence]:
        """The members of a cohort in the order's rank, the leader first."""
        order, view = self.order, self._view
        return sorted(cohort.members.values(), key=lambda s: (s is not leader, order.rank(s, view), s.number))

    def steps_to_merge(self, cohort: Cohort) -> int:
        """Steps until a cohort whose members have the same length reaches the lane of the next longer one."""
        index = bisect_right(self._keys, cohort.key)
        if index == len(self._keys):
            return NEVER
        above = self._keys[index]
        return above - cohort.key if self._uniform else self.order.steps_to_lane(cohort.longest, above)

    def none_above(self, bound: Any) -> bool:
        """Whether it is plain that :meth:`above` has nobody to show."""
        heap = self._least_urgent
        return not heap or bool(-heap[0][0] <= bound)

    def above(self, bound: Any, more: Callable[[Sequence], bool]) -> None:
        """Show ``more`` the residents who have had their quantum and whose urgency is more than ``bound``.

        The largest urgency first, the newest of equal ones first, until it says that it wants no more.
        """
        heap, taken = self._least_urgent, dict[int, Entry]()
        while heap and -heap[0][0] > bound and self._urgency is not None:
            entry = heap[0]
            sequence = entry[3]
            if sequence.cohort is None or sequence.join != entry[2] or sequence.number in taken:
                heappop(heap)
                continue
            urgency = self._urgency(sequence, self._view)
            if urgency != -entry[0]:
                heapreplace(heap, (-urgency, -sequence.number, entry[2], sequence))
                continue
            taken[sequence.number] = heappop(heap)
            if not more(sequence):
                break
        for entry in taken.values():
            heappush(heap, entry)

    def steps_to_quantum(self) -> int:
        """Steps, at the least, until another resident has had its quantum."""
        return min((cohort.steps_to_quantum() for cohort in self.cohorts.values()), default=NEVER)

    def _had_quantum(self, sequence: Sequence) -> None:
        if self._urgency is None:
            return
        heap, urgency, view = self._least_urgent, self._urgency, self._view
        heappush(heap, (-urgency(sequence, view), -sequence.number, sequence.join, sequence))
        if len(heap) > 4 * self.count + 64:
            current = {
                entry[3].number: entry[3] for entry in heap if entry[3].cohort is not None and entry[3].join == entry[2]
            }
            heap[:] = [(-urgency(s, view), -number, s.join, s) for number, s in current.items()]
            heapify(heap)

    def newest(self) -> Sequence:
        """The resident sequence that was submitted last."""
        return self._sequences[self._newest.first()]

    def oldest(self) -> Sequence:
        """The resident sequence that was submitted first."""
        return self._sequences[self._oldest.first()]

    def get(self, number: int) -> Sequence | None:
        """The resident sequence of that number."""
        return self._sequences.get(number)

    def members(self) -> Iterable[Sequence]:
        """All resident sequences, in no order that anything may depend on."""
        return self._sequences.values()

    @staticmethod
    def served(sequence: Sequence) -> Served | None:
        """The step that gave a resident sequence its last token."""
        cohort = sequence.cohort
        if cohort is None or sequence.number in cohort.fresh:
            return sequence.served
        return cohort.served

    # -- progress

    def advance(self, cohorts: list[Cohort], rows: list[Sequence], steps: int, served: Served) -> Advance:
        """Every member of ``cohorts``, and each of ``rows``, goes ``steps`` tokens further.

        Those that reach the end that was foreseen are taken out. All cohorts move before any is put where it now
        belongs, longest first, so that none is merged into one that has yet to move.
        """
        done = Advance()
        leaving: list[Sequence] = []
        for cohort in cohorts:
            cohort.held_blocks += cohort.blocks_within(steps)
            self.tokens += steps * len(cohort.members)
            cohort.tick += steps
            cohort.served = served
            cohort.fresh.clear()
            for sequence in cohort.due(cohort.finishes, cohort.tick):
                (done.ending if sequence.known >= sequence.foreseen else done.hidden).append(sequence)
            if cohort.quanta:
                for sequence in cohort.due(cohort.quanta, cohort.tick):
                    self._had_quantum(sequence)
        for sequence in done.ending:
            self.leave(sequence)
        if self._uniform:
            for cohort in sorted(cohorts, key=lambda c: c.key, reverse=True):
                if cohort.members:
                    self._rekey(cohort, steps)
        else:
            for cohort in cohorts:
                if cohort.leaves:
                    due = cohort.due(cohort.leaves, cohort.tick)
                    if due and (len(due) < cohort.count or not self._move(cohort, due)):
                        leaving.extend(due)
            if leaving:
                self.outlast(leaving)
        for sequence in rows:
            self._advance_row(sequence, steps, served, done)
        return done

    def _rekey(self, cohort: Cohort, steps: int) -> None:
        """Move a uniform cohort to its new length, and merge it into the one that is there, small into large."""
        self._close(cohort)
        key = cohort.key + steps
        other = self.cohorts.get(key)
        if other is None:
            self._reopen(cohort, key)
            return
        large, small = (cohort, other) if cohort.count > other.count else (other, cohort)
        for sequence in list(small.members.values()):
            join = sequence.join
            self._remove(small, sequence)
            self._insert(large, sequence, join)
        large.key = key
        self.cohorts[key] = large
        self._ranked(large)

    def _advance_row(self, sequence: Sequence, steps: int, served: Served, done: Advance) -> None:
        lane = sequence.cohort
        if self._urgency is not None and steps >= self.order.steps_in_lane(sequence, self._view):
            # its urgency may have risen
            self.version += 1
        self._unplace(sequence)
        known = sequence.known + steps
        sequence.place(known, known - 1)
        sequence.served = served
        self.tokens += steps
        self._place(sequence)
        self.version += sequence.cohort is not lane
        if known >= sequence.foreseen:
            done.ending.append(sequence)
            self.leave(sequence)
        elif known >= sequence.limit:
            done.hidden.append(sequence)


def sum_of(period: list[int], steps: int) -> int:
    """The sum of the first ``steps`` terms of a series that repeats after ``period``."""
    times, rest = divmod(steps, len(period))
    return times * sum(period) + sum(period[:rest])
