"""Where randomness comes from: a seeded generator that the caller hands in."""

from __future__ import annotations

from typing import Protocol


class RandomSource(Protocol):
    """A stream of uniform numbers. ``random.Random(seed)`` is one, and keeps its stream in every Python version.

    Nothing but :meth:`random` is used: the other methods of ``random.Random`` may draw differently in the next version.
    """

    def random(self) -> float:
        """The next number of the stream, uniform in [0, 1)."""
