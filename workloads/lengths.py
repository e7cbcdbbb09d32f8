"""Distributions of lengths, in tokens.

They use nothing but addition and multiplication, so a seeded stream gives the same lengths on every machine: no
logarithm or exponential of a C library that may differ in the last bit.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from workloads.random_source import RandomSource


class LengthDistribution(Protocol):
    """Draws a length of at least one token; takes exactly one number of the random source for it."""

    def draw(self, rng: RandomSource) -> int:
        """The next length, in tokens."""

    def __str__(self) -> str:
        """As a person would say it."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from ``low`` to ``high``, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"uniform lengths from {self.low} to {self.high}; must be 1 <= low <= high")

    def draw(self, rng: RandomSource) -> int:
        return self.low + int(rng.random() * (self.high - self.low + 1))

    def __str__(self) -> str:
        return f"uniform {self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution given by its quantiles, uniform between neighbouring ones.

    ``probabilities`` start with 0 and end with 1, ``tokens`` are the lengths at them: the least, ..., the largest.
    Fits what no textbook shape does: traces of real services have several modes, and a heap at the context limit.
    """

    probabilities: tuple[float, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        p, t = self.probabilities, self.tokens
        if len(p) != len(t) or len(p) < 2 or p[0] != 0 or p[-1] != 1 or t[0] < 1:
            raise ValueError("quantiles need as many lengths >= 1 as probabilities, the first of them 0 and the last 1")
        if any(a >= b for a, b in pairwise(p)) or any(a > b for a, b in pairwise(t)):
            raise ValueError("quantiles need rising probabilities and lengths that never fall")

    def draw(self, rng: RandomSource) -> int:
        share = rng.random()
        right = bisect_right(self.probabilities, share)
        low, high = self.probabilities[right - 1], self.probabilities[right]
        short, long = self.tokens[right - 1], self.tokens[right]
        return int(short + (long - short) * ((share - low) / (high - low)) + 0.5)

    def __str__(self) -> str:
        return f"{self.tokens[0]}-{self.tokens[-1]} by {len(self.tokens)} quantiles"
