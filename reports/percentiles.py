"""Percentiles as order statistics, with intervals that assume no shape of the distribution.

A percentile is the nearest rank: the smallest value that at least p percent of the values do not exceed. Its interval
is the pair of order statistics between which the true quantile lies with at least 95 % probability, by the binomial
distribution of how many values fall below it (David and Nagaraja, Order Statistics, section 7.1). It takes the values
as independent; within one run, requests that shared a queue are not quite, so it is a lower bound of the uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, bdtrik, ndtri

FloatArray = npt.NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.95


def samples_needed(percent: int) -> int:
    """How many values a percentile needs, so that one of them is expected at or beyond it: 1 / (1 - p)."""
    return -(-100 // (100 - percent))


def nearest_rank(percent: int, n: int) -> int:
    """The rank (1 is the smallest) of a percentile among ``n`` >= 1 values."""
    return max(1, -(-percent * n // 100))


def rank_interval(percent: int, n: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Ranks between which the true quantile lies; ``None`` where ``n`` values have no such pair."""
    p, tail = percent / 100, (1 - confidence) / 2
    lower, upper = _binomial_quantile(tail, n, p), _binomial_quantile(1 - tail, n, p) + 1
    return (lower, upper) if lower >= 1 and upper <= n else None


def _binomial_quantile(q: float, n: int, p: float) -> int:
    """The smallest k with P(X <= k) >= q for X ~ binomial(n, p)."""
    if bdtr(0, n, p) >= q:
        return 0
    k = math.ceil(float(bdtrik(q, n, p)) - 1e-9)
    while bdtr(k, n, p) < q:
        k += 1
    while k > 0 and bdtr(k - 1, n, p) >= q:
        k -= 1
    return k


@dataclass(frozen=True)
class Distribution:
    """A figure's mean, percentiles and largest value, in the figure's unit. ``None`` is "not defined", never 0.

    ``intervals`` has the 95 % interval of each percentile that has one; ``note`` says why something is missing.
    """

    n: int
    mean: float | None
    percentiles: dict[int, float | None]
    max: float | None
    intervals: dict[int, tuple[float, float] | None]
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As ``summary.json`` holds it: mean, p50 ... p99, max, n, ci, note."""
        values = {f"p{percent}": value for percent, value in self.percentiles.items()}
        intervals = {
            f"p{percent}": None if interval is None else list(interval) for percent, interval in self.intervals.items()
        }
        return {"mean": self.mean, **values, "max": self.max, "n": self.n, "ci": intervals, "note": self.note}


def missing(reason: str, n: int = 0) -> Distribution:
    """A distribution of which nothing is known, and why."""
    nothing = dict.fromkeys(PERCENTILES)
    return Distribution(n, None, dict(nothing), None, dict(nothing), f"not available: {reason}")


def describe(values: npt.NDArray[np.int64] | FloatArray, scale: float, empty: str) -> Distribution:
    """The distribution of ``values`` (any order), each divided by ``scale``; ``empty`` says why there may be none."""
    n = len(values)
    if not n:
        return missing(empty)
    ordered = np.sort(values)
    total = int(ordered.sum()) if ordered.dtype == np.int64 else math.fsum(ordered.tolist())
    return describe_ranks(n, total, float(ordered[-1]), lambda ranks: ordered[ranks - 1].astype(np.float64), scale)


def describe_ranks(
    n: int,
    total: float,
    largest: float,
    values_at: Callable[[npt.NDArray[np.int64]], FloatArray],
    scale: float,
) -> Distribution:
    """The distribution of ``n`` values of which ``values_at`` tells the value of each rank."""
    if not n:
        return missing("no values")

    def value(rank: int) -> float:
        return float(values_at(np.array([rank], np.int64))[0]) / scale

    percentiles: dict[int, float | None] = {}
    intervals: dict[int, tuple[float, float] | None] = {}
    for percent in PERCENTILES:
        enough = n >= samples_needed(percent)
        percentiles[percent] = value(nearest_rank(percent, n)) if enough else None
        ranks = rank_interval(percent, n) if enough else None
        intervals[percent] = None if ranks is None else (value(ranks[0]), value(ranks[1]))
    return Distribution(n, total / n / scale, percentiles, largest / scale, intervals, _too_small(n))


def _too_small(n: int) -> str | None:
    short = [f"p{percent} needs {samples_needed(percent)}" for percent in PERCENTILES if n < samples_needed(percent)]
    return f"n too small: n = {n}, {', '.join(short)}" if short else None


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, for ``n`` >= 1 trials (Wilson 1927)."""
    z = float(ndtri((1 + confidence) / 2))
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
