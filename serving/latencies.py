"""Durations as they are seen by who waits for them: counted into buckets since the start, and over the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reports.percentiles import nearest_rank, samples_needed

#: percentiles that a live view shows
PERCENTILES = (50, 90, 99)
#: how long a duration counts as recent
RECENT_S = 60
#: durations that may wait to be counted
MANY = 8192

#: edges of the buckets that percentiles are taken from: 2 % wide, 10 us to 3 h
_FINE_NS = 1e4 * 1.02 ** np.arange(1050)

IntArray = npt.NDArray[np.int64]


class Durations:
    """Durations of one kind. Whoever has one appends it to :attr:`pending`, which costs next to nothing.

    ``edges_s`` are the upper edges, inclusive, of the buckets that are counted since the start; above the last one is
    another without end. Percentiles are those of the last minute, to the width of a fine bucket: within 1 %.
    """

    def __init__(self, edges_s: Sequence[float]) -> None:
        #: nanoseconds, not counted yet
        self.pending: list[int] = []
        self.edges_s = tuple(edges_s)
        #: how many were in each bucket
        self.counts: IntArray = np.zeros(len(edges_s) + 1, np.int64)
        self.sum_ns = 0
        self._edges_ns = np.round(np.array(edges_s) * 1e9)
        #: seconds of the clock, and what was counted in each
        self._seconds: deque[tuple[int, IntArray]] = deque()

    def settle(self, now_ns: int) -> None:
        """Count what is pending, as of ``now_ns``."""
        if not self.pending:
            return
        values = np.array(self.pending, np.int64)
        self.pending.clear()
        self.sum_ns += int(values.sum())
        self.counts += np.bincount(np.searchsorted(self._edges_ns, values), minlength=len(self.counts))
        fine = np.bincount(np.searchsorted(_FINE_NS, values), minlength=len(_FINE_NS) + 1)
        second = now_ns // 1_000_000_000
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1][:] += fine
        else:
            self._seconds.append((second, fine))
        self._forget(second)

    def recent(self, now_ns: int) -> dict[str, float | int | None]:
        """``n`` of the last minute, and its percentiles in milliseconds: ``None`` where ``n`` is too small for one."""
        self.settle(now_ns)
        self._forget(now_ns // 1_000_000_000)
        counts = np.zeros(len(_FINE_NS) + 1, np.int64)
        for _, fine in self._seconds:
            counts += fine
        ranks = counts.cumsum()
        n = int(ranks[-1])
        found: dict[str, float | int | None] = {"n": n}
        for percent in PERCENTILES:
            value = None
            if n >= samples_needed(percent):
                place = int(np.searchsorted(ranks, nearest_rank(percent, n)))
                value = float(_FINE_NS[min(place, len(_FINE_NS) - 1)] / 1.01 / 1e6)
            found[f"p{percent}"] = value
        return found

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - RECENT_S:
            self._seconds.popleft()


class Sizes:
    """Sizes of one kind, counted into buckets since the start: ``edges`` are the upper edges, inclusive."""

    def __init__(self, edges: Sequence[int]) -> None:
        self.edges = tuple(edges)
        self.counts: IntArray = np.zeros(len(edges) + 1, np.int64)
        self.sum = 0
        self._edges = np.array(edges)

    def add(self, size: int) -> None:
        self.counts[np.searchsorted(self._edges, size)] += 1
        self.sum += size


def one_two_five(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... up to ``most``."""
    sizes = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return tuple(size for size in sizes if size <= most)
