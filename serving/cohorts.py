"""Running sequences and waiting requests by their lengths: who can share a step, and how clusters form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.buckets import AdaptiveSplit, Buckets, PowersOfTwo, parse_buckets

#: bins that a picture of lengths has at most
MOST_BINS = 64


def buckets_of(config: Mapping[str, Any]) -> Buckets:
    """The buckets of a scheduler's settings; powers of two where it has none, or such as change all the time."""
    setting = config.get("bucket")
    buckets = PowersOfTwo() if setting is None else parse_buckets(setting)
    return PowersOfTwo() if isinstance(buckets, AdaptiveSplit) else buckets


def bin_width(config: Mapping[str, Any], longest: int) -> int:
    """How many lengths a bin has: the width of the policy's buckets, or one, doubled until the bins are few."""
    setting = config.get("bucket")
    width = int(str(setting)) if str(setting).isdecimal() else 1
    while longest > width * MOST_BINS:
        width *= 2
    return width


def binned(lengths: Sequence[int], width: int, bins: int) -> list[int]:
    """How many are in each bin; the first holds the lengths from 1 to ``width``."""
    counts = [0] * bins
    for length in lengths:
        counts[(length - 1) // width] += 1
    return counts


def by_power_of_two(lengths: Sequence[int], context_tokens: int) -> dict[int, int]:
    """How many are above the power of two before and up to each, from 16 to the first that is a whole context."""
    last = max(4, (context_tokens - 1).bit_length())
    counts = dict.fromkeys((1 << power for power in range(4, last + 1)), 0)
    for length in lengths:
        counts[1 << min(last, max(4, (length - 1).bit_length()))] += 1
    return counts


def cohorts(lengths: Sequence[int], buckets: Buckets) -> dict[str, Any]:
    """How far sequences are aligned: of the same length, and in the same bucket.

    ``aligned``: the share of sequences that are as long as another one.
    """
    same = Counter(lengths)
    filled = Counter(map(buckets.key, lengths))
    alone = sum(1 for count in same.values() if count == 1)
    length, size = max(same.items(), key=lambda item: (item[1], -item[0]), default=(None, 0))
    return {
        "lengths": len(same),
        "largest": size,
        "largest_length": length,
        "aligned": 1 - alone / len(lengths) if lengths else None,
        "buckets": len(filled),
        "fullest_bucket": max(filled.values(), default=0),
    }
