"""Buckets of lengths: which lengths count as alike, and how far a growing sequence stays in its bucket."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Protocol

from scheduler.errors import ConfigError, unknown_name
from scheduler.plan import NEVER

#: the last length of a bucket without end
NO_END = NEVER

#: what the setting ``bucket`` takes, one line each
BUCKETS = {
    "N": "N lengths each: 1 to N, N + 1 to 2 N, ...",
    "pow2": "up to each power of two: 1, 2, 3 to 4, 5 to 8, ...",
    "edges:A,B,...": "up to A, above it up to B, ..., and all that is longer",
    "equal-mass:N": "N buckets with the same share of the workload's token steps each",
    "adaptive": "split at the midpoint while many short ones wait (BucketServe)",
}


class Buckets(Protocol):
    """A division of the lengths 1, 2, ... into intervals."""

    @property
    def epoch(self) -> int:
        """Rises whenever the key of some length has changed."""

    def key(self, length: int) -> int:
        """Names the bucket of ``length``; larger for the buckets of larger lengths."""

    def first(self, key: int) -> int:
        """The smallest length in the bucket that ``key`` names."""

    def last(self, length: int) -> int:
        """The largest length in the bucket of ``length``; :data:`NO_END` if it has none."""

    def submitted(self, length: int) -> None:
        """A request of ``length`` waits. Buckets that do not adapt ignore it."""

    def removed(self, length: int) -> None:
        """A request of ``length`` waits no longer."""


class _Fixed:
    """Buckets that stay as they are."""

    epoch = 0

    def submitted(self, length: int) -> None:
        """Of no interest."""

    def removed(self, length: int) -> None:
        """Of no interest."""


class FixedWidth(_Fixed):
    """``width`` lengths each; of 32, the first bucket is the seed's 0-32, which 32 belongs to."""

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ConfigError(f"bucket is {width}; must be >= 1")
        self.width = width

    def key(self, length: int) -> int:
        return (length - 1) // self.width

    def first(self, key: int) -> int:
        return key * self.width + 1

    def last(self, length: int) -> int:
        return (self.key(length) + 1) * self.width


class PowersOfTwo(_Fixed):
    """Up to a power of two each: 1; 2; 3 and 4; 5 to 8; 9 to 16; ..."""

    def key(self, length: int) -> int:
        return (length - 1).bit_length()

    def first(self, key: int) -> int:
        return (1 << key >> 1) + 1

    def last(self, length: int) -> int:
        return 1 << self.key(length)


class Edges(_Fixed):
    """``edges`` are the largest lengths of the buckets, increasing; above the last one is a bucket without end."""

    def __init__(self, edges: Sequence[int]) -> None:
        if any(edge < 1 for edge in edges) or any(a >= b for a, b in pairwise(edges)):
            raise ConfigError(f"bucket edges are {','.join(map(str, edges))}; must be >= 1 and increase")
        self.edges = tuple(edges)

    def key(self, length: int) -> int:
        return bisect_left(self.edges, length)

    def first(self, key: int) -> int:
        return self.edges[key - 1] + 1 if key else 1

    def last(self, length: int) -> int:
        key = self.key(length)
        return self.edges[key] if key < len(self.edges) else NO_END


class AdaptiveSplit:
    """Buckets that follow what waits: narrow where many short requests wait, one bucket while few do.

    At first one bucket holds all lengths, for the sake of its midpoint those up to ``longest``. One that holds more
    than ``limit`` waiting requests, over half of them at or below its midpoint, is split there, if both halves are
    at least ``least_width`` wide. All are merged into one again when fewer than ``limit`` wait. A bucket's key is its
    lower edge.

    Source: BucketServe (arXiv 2507.17120), whose buckets are adjusted from time to time and are bounded by the
    model's context; here with every request that comes or goes.
    """

    def __init__(self, limit: int = 16, longest: int = 1 << 20, least_width: int = 16) -> None:
        self.epoch = 0
        self._limit = limit
        self._least_width = least_width
        #: lower edges, and the end of the last bucket: bucket i holds the lengths in (edges[i], edges[i + 1]]
        self._whole = [0, longest]
        self._edges = [*self._whole]
        self._waiting: list[int] = []

    def key(self, length: int) -> int:
        return self._edges[self._index(length)]

    def first(self, key: int) -> int:
        return key + 1

    def last(self, length: int) -> int:
        index = self._index(length)
        return NO_END if index == len(self._edges) - 2 else self._edges[index + 1]

    def submitted(self, length: int) -> None:
        insort(self._waiting, length)
        self._split(self._index(length))

    def removed(self, length: int) -> None:
        del self._waiting[bisect_left(self._waiting, length)]
        if len(self._waiting) >= self._limit:
            self._split(self._index(length))
        elif len(self._edges) > 2:
            self._edges = [*self._whole]
            self.epoch += 1

    def _index(self, length: int) -> int:
        return min(bisect_left(self._edges, length), len(self._edges) - 1) - 1

    def _split(self, index: int) -> None:
        """Split this bucket, then its halves, as long as the rule says so."""
        low, high = self._edges[index : index + 2]
        middle = (low + high) // 2
        if middle - low < self._least_width:
            return
        first = bisect_right(self._waiting, low)
        end = bisect_right(self._waiting, high) if index < len(self._edges) - 2 else len(self._waiting)
        short = bisect_right(self._waiting, middle) - first
        if end - first > self._limit and 2 * short > end - first:
            self._edges.insert(index + 1, middle)
            self.epoch += 1
            self._split(index + 1)
            self._split(index)


def parse_buckets(setting: int | str) -> Buckets:
    """From the setting ``bucket``, as :data:`BUCKETS` lists them. Raises :class:`ConfigError`.

    ``equal-mass:N`` depends on a workload: the command line turns it into edges, see :func:`equal_mass_edges`.
    """
    if isinstance(setting, int):
        return FixedWidth(setting)
    text = str(setting)
    scheme, colon, values = text.partition(":")
    if text == "pow2":
        return PowersOfTwo()
    if text == "adaptive":
        return AdaptiveSplit()
    if scheme == "edges" and colon:
        return Edges([_whole_number(text, value) for value in values.split(",")])
    if equal_mass_buckets(setting) is not None:
        raise ConfigError(f"bucket is {text}, which needs a workload; give the edges: edges:A,B,...")
    if scheme.lstrip("-").isdecimal() and not colon:
        return FixedWidth(_whole_number(text, scheme))
    raise ConfigError(unknown_name("bucket", text, BUCKETS))


def equal_mass_buckets(setting: int | str) -> int | None:
    """How many buckets ``equal-mass:N`` asks for; ``None`` for every other setting. Raises :class:`ConfigError`."""
    scheme, colon, value = str(setting).partition(":")
    if scheme != "equal-mass" or not colon:
        return None
    buckets = _whole_number(str(setting), value)
    if buckets < 2:
        raise ConfigError(f"bucket is {setting}; must be at least equal-mass:2")
    return buckets


def _whole_number(setting: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"bucket is {setting}; {text!r} is not a whole number") from None


def equal_mass_edges(lengths_and_spans: Iterable[tuple[int, int]], buckets: int) -> tuple[int, ...]:
    """Edges of ``buckets`` buckets (the last one without end) that each have the same share of token steps.

    A pair is a request: its prompt's length, and over how many lengths it is stepped, one token each: its output. So
    it weighs one at each length from prompt to prompt + output - 1. A bucket's share is off by less than what weighs
    at one length; where a single length has more than a share there are fewer edges, but at least one.
    """
    changes: dict[int, int] = defaultdict(int)
    total = 0
    for length, span in lengths_and_spans:
        changes[length] += 1
        changes[length + span] -= 1
        total += span
    if buckets < 1 or not total:
        raise ValueError(f"{total} token steps cannot be divided into {buckets} buckets; both must be at least 1")
    edges: list[int] = []
    weight = below = 0
    for start, end in pairwise(sorted(changes)):
        weight += changes[start]
        after = below + weight * (end - start)
        # the shares that end within start..end - 1: an edge is the first length by which its share is full
        while weight and len(edges) < buckets - 1 and (share := (len(edges) + 1) * total) <= after * buckets:
            edges.append(start - 1 + -((below * buckets - share) // (weight * buckets)))
        below = after
    return tuple(sorted(set(edges))) or (max(changes) - 1,)


def quantile_edges(quantiles: Sequence[int], bins: int) -> tuple[int, ...]:
    """Edges of ``bins`` bins (the last one without end) with as many of the ascending ``quantiles`` in each.

    Equal edges are one, where a length has more than a bin's share.
    """
    edges = (quantiles[-(-number * len(quantiles) // bins) - 1] for number in range(1, bins))
    return tuple(dict.fromkeys(edges))
