"""What a policy may know of output lengths: an axis of an experiment, never the request itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scheduler.sequence import Sequence


class LengthOracle(Protocol):
    """Predicts output lengths."""

    def predict(self, sequence: Sequence) -> int:
        """Predicted output tokens of ``sequence`` in all, at least 1."""


class TrueLengths:
    """Knows the hidden length that a benchmark's row carries; ``max_tokens`` where there is none."""

    def predict(self, sequence: Sequence) -> int:
        return sequence.request.planned_output_tokens


class NoLengths:
    """Knows nothing but what was declared: ``max_tokens``."""

    def predict(self, sequence: Sequence) -> int:
        return sequence.request.max_tokens


ORACLES: dict[str, tuple[Callable[[], LengthOracle], str]] = {
    "true": (TrueLengths, "the true output length, which only a benchmark can know"),
    "none": (NoLengths, "no prediction: the declared max_tokens"),
}
