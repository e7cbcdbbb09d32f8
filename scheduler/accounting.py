"""What a run is counted by: steps, slots, memory held, gaps between tokens, and who starved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from scheduler.cohorts import Cohort, Residents
from scheduler.counters import RunCounters
from scheduler.features import Draft
from scheduler.kv import KvPool
from scheduler.observer import Observer
from scheduler.plan import Ends
from scheduler.sequence import UNSET, Sequence


class Crowd:
    """Sequences that got their last token at the same time: the members of a cohort that are not fresh.

    ``kept`` lists them where they are looked at after the cohort has changed.
    """

    __slots__ = ("base_ns", "cohort", "kept", "size")

    def __init__(self, base_ns: int, size: int, cohort: Cohort, kept: list[Sequence] | None) -> None:
        self.base_ns = base_ns
        self.size = size
        self.cohort = cohort
        self.kept = kept

    def members(self) -> list[Sequence]:
        return _others(self.cohort) if self.kept is None else self.kept


class Waits:
    """Since when the decode rows of a step have waited for their next token."""

    __slots__ = ("crowds", "singles")

    def __init__(self, singles: list[tuple[int, Sequence]], crowds: list[Crowd]) -> None:
        self.singles = singles
        self.crowds = crowds

    @property
    def rows(self) -> int:
        rows = len(self.singles)
        for crowd in self.crowds:
            rows += crowd.size
        return rows

    def members(self) -> Iterator[Sequence]:
        """The sequence of each row."""
        yield from (sequence for _, sequence in self.singles)
        for crowd in self.crowds:
            yield from crowd.members()

    def without(self, numbers: set[int]) -> Waits:
        """The same, but for some sequences."""
        every = self.singles + [(crowd.base_ns, s) for crowd in self.crowds for s in crowd.members()]
        return Waits([entry for entry in every if entry[1].number not in numbers], [])


class Memory:
    """KV memory over the steps of a plan, as they begin.

    ``rows``: tokens held more after each step. ``growth``: blocks handed out in each step; it repeats.
    """

    __slots__ = ("growth", "held_tokens", "reserved_tokens", "rows", "unusable_tokens")

    def __init__(
        self, held_tokens: int, reserved_tokens: int, unusable_tokens: int, rows: int, growth: list[int]
    ) -> None:
        self.held_tokens = held_tokens
        self.reserved_tokens = reserved_tokens
        self.unusable_tokens = unusable_tokens
        self.rows = rows
        self.growth = growth


def waits_of(draft: Draft, residents: Residents, keep: bool) -> Waits:
    """The waits of a draft's decode rows, before they are advanced. ``keep``: they are looked at later, not now."""
    singles: list[tuple[int, Sequence]] = []
    crowds: list[Crowd] = []
    for cohort in draft.cohorts:
        fresh = cohort.fresh
        if fresh:
            singles.extend([(_end_ns(residents, sequence), sequence) for sequence in fresh.values()])
        count = cohort.count - len(fresh)
        if count:
            crowds.append(Crowd(cohort.served.end_ns, count, cohort, _others(cohort) if keep else None))
    if draft.rows:
        singles.extend([(_end_ns(residents, sequence), sequence) for sequence in draft.rows])
    return Waits(singles, crowds)


def _end_ns(residents: Residents, sequence: Sequence) -> int:
    served = residents.served(sequence)
    return UNSET if served is None else served.end_ns


def _others(cohort: Cohort) -> list[Sequence]:
    return [s for number, s in cohort.members.items() if number not in cohort.fresh]


def _grown(growth: list[int], start_ns: int, ends_ns: list[int]) -> tuple[int, int]:
    """What blocks that are handed out during a plan add, each from the start of its step to the end of the plan.

    Over the steps, and in block nanoseconds. ``growth``: blocks in each step, which repeats.
    """
    steps, period = len(ends_ns), len(growth)
    block_steps = block_ns = 0
    for first, blocks in enumerate(growth):
        if blocks:
            times = (steps - first + period - 1) // period
            block_steps += blocks * (times * (steps - first) - period * (times * (times - 1) // 2))
            began_ns = 0 if first else start_ns
            for before in range(first - 1 if first else period - 1, steps - 1, period):
                began_ns += ends_ns[before]
            block_ns += blocks * (times * ends_ns[-1] - began_ns)
    return block_steps, block_ns


class Account:
    """Counts a run, and tells its observer of gaps. Times are integer nanoseconds."""

    def __init__(self, counters: RunCounters, pool: KvPool, starvation_ns: int, observer: Observer | None) -> None:
        self._counters = counters
        self._pool = pool
        self._starvation_ns = starvation_ns
        self._observer = observer
        self._last_end_ns = 0
        #: a gap up to this is neither the longest nor beyond the threshold
        self._longest_ns = min(0, starvation_ns)

    # -- memory

    def memory(self, memory: Memory, start_ns: int, ends_ns: Ends) -> None:
        """Add up what was held and reserved in each step of a plan, by steps and by time."""
        counters, pool = self._counters, self._pool
        ends: list[int] = ends_ns if isinstance(ends_ns, list) else ends_ns.tolist()
        steps = len(ends)
        block = pool.block_tokens
        capacity = pool.capacity_blocks * block
        start_ns = max(start_ns, self._last_end_ns)
        self._last_end_ns = ends[-1]
        took = ends[-1] - start_ns
        rows = memory.rows
        held = memory.held_tokens + rows * steps
        counters.kv_peak_tokens = max(counters.kv_peak_tokens, held)
        held_sum, held_ns = held, held * took
        reserved, reserved_ns = memory.reserved_tokens * steps, memory.reserved_tokens * took
        if steps > 1:
            held_sum = memory.held_tokens * steps + rows * (steps * (steps + 1) // 2)
            # what a step adds counts from the start of it
            held_ns -= rows * (sum(ends) - ends[-1] - start_ns * (steps - 1))
        if memory.growth:
            grown, grown_ns = _grown(memory.growth, start_ns, ends)
            reserved += block * grown
            reserved_ns += block * grown_ns
        counters.kv_held_sum += held_sum
        counters.kv_reserved_sum += reserved
        counters.kv_free_sum += capacity * steps - reserved
        counters.kv_unusable_sum += memory.unusable_tokens * steps
        counters.kv_held_token_ns += held_ns
        counters.kv_reserved_token_ns += reserved_ns
        counters.kv_free_token_ns += capacity * took - reserved_ns
        counters.kv_unusable_token_ns += memory.unusable_tokens * took
        counters.kv_allocations = pool.allocations
        counters.kv_reused = pool.reused
        counters.kv_reused_after_preemption = pool.reused_after_preemption

    # -- gaps between output tokens

    def gaps(self, waits: Waits, ends_ns: Ends, dropped: set[int]) -> None:
        """The rows of a decode were served at ``ends_ns``; the last token of those ``dropped`` does not count."""
        if len(ends_ns) == 1:
            self._first_gaps(waits.without(dropped) if dropped else waits, int(ends_ns[0]))
            return
        first_ns, observer = int(ends_ns[0]), self._observer
        longest_ns = int(ends_ns[-1]) - first_ns
        if observer is None and longest_ns <= self._longest_ns:
            self._first_gaps(waits, first_ns)
            return
        ends = np.asarray(ends_ns, dtype=np.int64)
        if dropped or len(waits.crowds) != 1 or waits.singles:
            self._first_gaps(waits, first_ns)
            between = ends[1:] - ends[:-1]
            if dropped:
                self._common_gaps(waits.without(dropped), between[-1:])
                between = between[:-1]
            self._common_gaps(waits, between)
            return
        (crowd,) = waits.crowds
        gaps = np.empty_like(ends)
        np.subtract(ends[1:], ends[:-1], out=gaps[1:])
        gaps[0] = first_ns - crowd.base_ns
        if max(longest_ns, first_ns - crowd.base_ns) > self._longest_ns:
            longest_ns = int(gaps.max())
            if longest_ns > self._longest_ns:
                self._saw(longest_ns, crowd.members())
        if observer is not None:
            observer.gaps(gaps, crowd.size)

    def _first_gaps(self, waits: Waits, end_ns: int) -> None:
        """Since each row's last token."""
        observer = self._observer
        for base_ns, sequence in waits.singles:
            if end_ns - base_ns > self._longest_ns:
                self._saw(end_ns - base_ns, (sequence,))
        for crowd in waits.crowds:
            if end_ns - crowd.base_ns > self._longest_ns:
                self._saw(end_ns - crowd.base_ns, crowd.members())
        if observer is None:
            return
        if waits.singles:
            observer.gaps(np.array([end_ns - base_ns for base_ns, _ in waits.singles], dtype=np.int64), 1)
        for crowd in waits.crowds:
            observer.gaps(np.array([end_ns - crowd.base_ns], dtype=np.int64), crowd.size)

    def _common_gaps(self, waits: Waits, gaps_ns: npt.NDArray[np.int64]) -> None:
        """Between the steps of a stretch, the same for all rows."""
        rows = waits.rows
        if len(gaps_ns) and rows:
            longest = int(gaps_ns.max())
            if longest > self._longest_ns:
                self._saw(longest, waits.members())
            if self._observer is not None:
                self._observer.gaps(gaps_ns, rows)

    def gap_of(self, sequence: Sequence, gap_ns: int) -> None:
        """One sequence got its next token after ``gap_ns``."""
        if gap_ns > self._longest_ns:
            self._saw(gap_ns, (sequence,))
        if self._observer is not None:
            self._observer.gaps(np.array([gap_ns], dtype=np.int64), 1)

    def waited(self, sequence: Sequence, wait_ns: int) -> None:
        """A request was first admitted after ``wait_ns``."""
        self._counters.longest_wait_ns = max(self._counters.longest_wait_ns, wait_ns)
        if wait_ns > self._starvation_ns:
            self._starved(sequence)

    def _saw(self, gap_ns: int, members: Iterable[Sequence]) -> None:
        """A gap that is longer than any before, or than the threshold."""
        self._counters.longest_gap_ns = max(self._counters.longest_gap_ns, gap_ns)
        self._longest_ns = min(self._counters.longest_gap_ns, self._starvation_ns)
        if gap_ns > self._starvation_ns:
            for sequence in members:
                self._starved(sequence)

    def _starved(self, sequence: Sequence) -> None:
        if not sequence.over_threshold:
            sequence.over_threshold = True
            self._counters.over_threshold += 1
