"""Distributions of lengths as a policy may know them: a table made before the run, or what has finished of late."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Sequence

#: entries of a table: from the smallest length to the largest in steps of 1/256
TABLE_SIZE = 257


def quantile_table(lengths: Iterable[int], size: int = TABLE_SIZE) -> tuple[int, ...]:
    """``size`` quantiles of ``lengths``, ascending and evenly spaced from the smallest to the largest (nearest rank).

    Raises ``ValueError`` without lengths.
    """
    ordered = sorted(lengths)
    if not ordered:
        raise ValueError("a table of quantiles needs at least one length")
    steps = size - 1
    return tuple(ordered[(2 * i * (len(ordered) - 1) + steps) // (2 * steps)] for i in range(size))


class QuantileTable:
    """A distribution by its ascending quantiles, linear in between, read both ways.

    Entry i of n stands for the share (i + 1/2) / n, the middle of its rank.
    """

    def __init__(self, quantiles: Sequence[int]) -> None:
        self._quantiles = quantiles

    def share(self, length: int, place: float) -> float:
        """The share of lengths below ``length``, in (0, 1).

        A length that the table has several times covers several ranks: ``place`` in (0, 1) says where among them it
        stands; 1/2 gives their average, and a place drawn uniformly keeps the distribution of shares uniform.
        """
        quantiles = self._quantiles
        low, high = bisect_left(quantiles, length), bisect_right(quantiles, length)
        if low < high:
            rank = low + place * (high - 1 - low)
        elif 0 < low < len(quantiles):
            rank = low - 1 + (length - quantiles[low - 1]) / (quantiles[low] - quantiles[low - 1])
        else:
            rank = float(min(low, len(quantiles) - 1))
        return (rank + 0.5) / len(quantiles)

    def length(self, share: float) -> int:
        """The length that ``share`` of all lengths are below: the inverse of :meth:`share`."""
        quantiles = self._quantiles
        last = len(quantiles) - 1
        rank = min(max(share * len(quantiles) - 0.5, 0.0), last)
        before = min(int(rank), last)
        after = min(before + 1, last)
        return quantiles[before] + round((rank - before) * (quantiles[after] - quantiles[before]))


class RecentLengths:
    """The last ``window`` lengths, kept in order of size too."""

    def __init__(self, window: int = 1000) -> None:
        self._window = window
        self._recent: deque[int] = deque()
        self._ordered: list[int] = []

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, length: int) -> None:
        """Take in one more; the oldest beyond the window is forgotten."""
        self._recent.append(length)
        insort(self._ordered, length)
        if len(self._recent) > self._window:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]

    def quantile(self, share: float) -> int:
        """The smallest length that at least ``share`` (in (0, 1]) of them do not exceed; ``IndexError`` without any."""
        return self._ordered[math.ceil(share * len(self._ordered)) - 1]
