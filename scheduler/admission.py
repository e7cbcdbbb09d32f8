"""Who may be given KV memory, and how much is booked for it: one part of every policy."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable
from math import ceil

from scheduler import parts
from scheduler.sequence import Sequence


class Admission:
    """Decides on memory when a request is to be admitted; this one books what is known. Tokens everywhere."""

    #: whether blocks are added as a sequence grows, beyond those booked
    grows = True
    #: whether :meth:`consents` may change its mind because residents went further
    follows_progress = False

    def booking(self, sequence: Sequence) -> int:
        """Tokens to book."""
        return sequence.known

    def consents(self, sequence: Sequence, admitted: Iterable[Sequence]) -> bool:
        """Whether ``sequence`` may join those ``admitted`` before it, memory at hand apart."""
        return True

    def admitted(self, sequence: Sequence) -> None:
        """It was admitted."""

    def left(self, sequence: Sequence) -> None:
        """It ended or was evicted."""

    def finished(self, sequence: Sequence) -> None:
        """It ended by itself, with all of its output."""


class Reserve(Admission):
    """Books everything up front: the most that was declared, or what a sequence is known (``true`` oracle) to need."""

    grows = False

    def __init__(self, what: str) -> None:
        self._what = what

    def booking(self, sequence: Sequence) -> int:
        output = sequence.max_tokens
        if self._what == "reserve-pow2":
            output = min(output, 1 << (sequence.estimates[0] - 1).bit_length())
        elif self._what == "reserve-oracle":
            output = min(output, sequence.estimates[0])
        return max(sequence.known, sequence.prompt_tokens + output)


class PeakFuture(Admission):
    """Admits if the most that all will hold together, as predicted, fits into the memory (LightLLM).

    With the sequences by predicted tokens left, the most first: when the i-th ends, i are there, and each has grown by
    what it had left then. The peak is the largest of left_i x i + the sum of what the first i hold now.
    """

    follows_progress = True

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens

    def consents(self, sequence: Sequence, admitted: Iterable[Sequence]) -> bool:
        pairs = [(max(1, s.predicted - s.output_tokens), s.known) for s in admitted]
        if not pairs:
            return True
        pairs.append((max(1, sequence.predicted - sequence.output_tokens), sequence.known))
        pairs.sort(reverse=True)
        used = 0
        for count, (left, known) in enumerate(pairs, 1):
            used += known
            if used + left * count > self._capacity_tokens:
                return False
        return True


class Quantile(Admission):
    """Admits if a quantile of recent outputs, on top of each prompt, fits for all."""

    WINDOW = 1000
    FEWEST = 10

    def __init__(self, capacity_tokens: int, quantile: float) -> None:
        self._capacity_tokens = capacity_tokens
        self._quantile = quantile
        self._committed_tokens = 0
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def _commitment(self, sequence: Sequence) -> int:
        output = sequence.max_tokens
        if len(self._sorted) >= self.FEWEST:
            output = min(output, self._sorted[ceil(self._quantile * len(self._sorted)) - 1])
        return max(sequence.known, sequence.prompt_tokens + output)

    def consents(self, sequence: Sequence, admitted: Iterable[Sequence]) -> bool:
        if not self._committed_tokens:
            return True
        return self._committed_tokens + self._commitment(sequence) <= self._capacity_tokens

    def admitted(self, sequence: Sequence) -> None:
        sequence.committed_tokens = self._commitment(sequence)
        self._committed_tokens += sequence.committed_tokens

    def left(self, sequence: Sequence) -> None:
        self._committed_tokens -= sequence.committed_tokens
        sequence.committed_tokens = 0

    def finished(self, sequence: Sequence) -> None:
        self._recent.append(sequence.output_tokens)
        insort(self._sorted, sequence.output_tokens)
        if len(self._recent) > self.WINDOW:
            self._sorted.remove(self._recent.popleft())


def build_admission(which: parts.Admission, capacity_tokens: int) -> Admission:
    """The admission that ``which`` names, for a memory of ``capacity_tokens``."""
    match which.kind:
        case "now":
            return Admission()
        case "peak-future":
            return PeakFuture(capacity_tokens)
        case "quantile":
            return Quantile(capacity_tokens, which.share)
        case kind:
            return Reserve(kind)
