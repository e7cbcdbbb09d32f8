"""A histogram of durations with a bounded relative error, for what is too many to keep: every inter-token gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from reports.percentiles import Distribution, describe_ranks

IntArray = npt.NDArray[np.int64]

#: sub-buckets of an octave: 2**7. A bucket is at most 1/128 of its lower edge wide, so its middle is at most 1/256 off
SUB_BITS = 7
SUB_BUCKETS = 1 << SUB_BITS
#: buckets for every non-negative int64
BUCKETS = (63 - SUB_BITS) * SUB_BUCKETS + SUB_BUCKETS
RELATIVE_ERROR = 1 / (2 * SUB_BUCKETS)

#: arrays and values that wait to be counted together, at most
_PENDING_ARRAYS = 4096
_PENDING_VALUES = 1 << 16


def bucket_of(values: IntArray) -> IntArray:
    """The bucket of each value, ``int64[n]``.

    Values below ``2 * SUB_BUCKETS`` have a bucket of their own; above, each octave is cut into ``SUB_BUCKETS`` equal
    ones, as HdrHistogram does it. The exponent comes from a float64, which may round a huge value up to the next
    power of two: the formula gives the same bucket either way.
    """
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    shift = np.maximum(exponent - (SUB_BITS + 1), 0)
    return (shift << SUB_BITS) + (values >> shift)


def bucket_edges(bucket: IntArray) -> tuple[IntArray, IntArray]:
    """First and last integer of each bucket, both inclusive, ``int64[n]``."""
    shift = np.maximum((bucket >> SUB_BITS) - 1, 0)
    lower = (bucket - (shift << SUB_BITS)) << shift
    return lower, lower + ((np.int64(1) << shift) - 1)


class Histogram:
    """Counts of non-negative integers in log-linear buckets.

    Percentiles are within :data:`RELATIVE_ERROR` (0.4 %); the count, the mean and the largest value are exact. Values
    are buffered and counted many arrays at a time, since most arrays that a scheduler reports are short.
    """

    def __init__(self) -> None:
        self._counts: IntArray = np.zeros(BUCKETS, np.int64)
        self._sum = 0
        self._max = 0
        self._min = -1
        self._pending: list[tuple[IntArray, int]] = []
        self._pending_values = 0

    def add(self, values: IntArray, weight: int = 1) -> None:
        """Count every value ``weight`` times. Raises ``ValueError`` for a negative value or weight, at the latest when
        a figure is read."""
        if weight < 0:
            raise ValueError(f"histogram weight is {weight}; must be >= 0")
        if not weight or not len(values):
            return
        self._pending.append((np.array(values, dtype=np.int64), weight))
        self._pending_values += len(values)
        if len(self._pending) >= _PENDING_ARRAYS or self._pending_values >= _PENDING_VALUES:
            self._count_pending()

    def _count_pending(self) -> None:
        if not self._pending:
            return
        arrays = [values for values, _ in self._pending]
        weights = np.repeat(np.array([weight for _, weight in self._pending], np.int64), [len(a) for a in arrays])
        values = np.concatenate(arrays)
        self._pending.clear()
        self._pending_values = 0
        least, largest = int(values.min()), int(values.max())
        if least < 0:
            raise ValueError(f"histogram value is {least}; must be >= 0")
        np.add.at(self._counts, bucket_of(values), weights)
        self._sum += _exact_dot(values, weights)
        self._max = max(self._max, largest)
        self._min = least if self._min < 0 else min(self._min, least)

    @property
    def count(self) -> int:
        """How many values were counted, weights included."""
        self._count_pending()
        return int(self._counts.sum())

    @property
    def sum(self) -> int:
        """The exact sum."""
        self._count_pending()
        return self._sum

    @property
    def max(self) -> int:
        """The exact largest value; 0 when empty."""
        self._count_pending()
        return self._max

    def values_at(self, ranks: IntArray) -> npt.NDArray[np.float64]:
        """The values of the given ranks (1 is the smallest), ``float64[n]``: the middle of the rank's bucket."""
        self._count_pending()
        cumulative = np.cumsum(self._counts)
        buckets = np.searchsorted(cumulative, ranks, side="left").astype(np.int64)
        lower, upper = bucket_edges(buckets)
        middle = (lower + upper) / 2
        return np.where(ranks == cumulative[-1], self._max, np.clip(middle, self._min, self._max))

    def describe(self, scale: float) -> Distribution:
        """Mean, percentiles and their intervals, each value divided by ``scale`` (1e6: nanoseconds to milliseconds)."""
        return describe_ranks(self.count, self.sum, self.max, self.values_at, scale)

    def curve(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The cumulative distribution: upper edges of the filled buckets, and the share of values up to each."""
        self._count_pending()
        filled = np.flatnonzero(self._counts)
        _, upper = bucket_edges(filled)
        share = np.cumsum(self._counts[filled]) / max(1, self.count)
        return np.minimum(upper, self._max).astype(np.float64), share

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; :meth:`from_dict` is the inverse."""
        self._count_pending()
        filled = np.flatnonzero(self._counts)
        counts = [[int(bucket), int(self._counts[bucket])] for bucket in filled]
        return {"sub_bits": SUB_BITS, "sum": self._sum, "min": self._min, "max": self._max, "counts": counts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """Rebuild a histogram; raises ``ValueError`` for one with other buckets."""
        if data.get("sub_bits") != SUB_BITS:
            raise ValueError(f"histogram has sub_bits {data.get('sub_bits')!r}; this version reads {SUB_BITS}")
        histogram = cls()
        for bucket, count in data["counts"]:
            histogram._counts[bucket] = count
        histogram._sum, histogram._min, histogram._max = data["sum"], data["min"], data["max"]
        return histogram


def _exact_dot(values: IntArray, weights: IntArray) -> int:
    """Sum of values x weights, exact also where int64 would overflow."""
    if int(values.max()) * int(weights.max()) * len(values) < 1 << 62:
        return int(np.dot(values, weights))
    return sum(value * weight for value, weight in zip(values.tolist(), weights.tolist(), strict=True))
