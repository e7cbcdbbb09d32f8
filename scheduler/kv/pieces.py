"""Memory that is handed out in one piece a sequence, reserved up front."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from scheduler.kv.pool import Freed, KvPool
from scheduler.sequence import Sequence


class ReleaseHistory:
    """How each stretch of a memory was last given back, as runs: ``None`` where it never was."""

    def __init__(self) -> None:
        self._starts = [0]
        self._states: list[Freed | None] = [None]

    def add(self, start: int, end: int, freed: Freed) -> None:
        """The slots from ``start`` to ``end`` are given back."""
        starts, states = self._starts, self._states
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        ends_a_run = last < len(starts) and starts[last] == end
        beyond = states[last] if ends_a_run else states[last - 1]
        if ends_a_run:
            last += 1
        runs: list[tuple[int, Freed | None]] = []
        if not first or states[first - 1] != freed:
            runs.append((start, freed))
        if beyond != freed:
            runs.append((end, beyond))
        starts[first:last] = [at for at, _ in runs]
        states[first:last] = [state for _, state in runs]

    def of(self, start: int, end: int) -> Freed | None:
        """How the slot ``start`` was last given back, if all slots from there to ``end`` ever were."""
        first, last = bisect_right(self._starts, start) - 1, bisect_left(self._starts, end)
        return None if None in self._states[first:last] else self._states[first]


class PiecePool(KvPool):
    """A memory of which each sequence gets a contiguous piece. Blocks are single tokens here."""

    grows = False

    def __init__(self, kv_tokens: int) -> None:
        super().__init__(kv_tokens, block_tokens=1)
        #: (start, length) by sequence number
        self._pieces: dict[int, tuple[int, int]] = {}
        self._history = ReleaseHistory()

    @abstractmethod
    def _take(self, length: int) -> int | None:
        """Take a piece of ``length`` slots; where it starts, or ``None`` if there is none."""

    @abstractmethod
    def _give_back(self, start: int, length: int) -> None:
        """The piece is free again, joined with free neighbours as far as the pool does that."""

    @abstractmethod
    def _free_pieces(self) -> Iterable[tuple[int, int]]:
        """Free pieces as (length, how many)."""

    def blocks_for(self, tokens: int) -> int:
        return tokens

    def can_book(self, sequence: Sequence, tokens: int) -> bool:
        needed = self.blocks_for(tokens)
        return any(length >= needed for length, _ in self._free_pieces())

    def book(self, sequence: Sequence, tokens: int) -> None:
        length = self.blocks_for(tokens)
        start = self._take(length)
        if start is None:
            raise RuntimeError(f"no free piece of {length} KV tokens")
        self._pieces[sequence.number] = (start, length)
        sequence.pool_blocks = length
        self.free_blocks -= length
        self.allocations += 1
        freed = self._history.of(start, start + length)
        self.reused += freed == "finished"
        self.reused_after_preemption += freed == "evicted"

    def grow(self, blocks: int) -> None:
        raise RuntimeError(f"a contiguous reservation does not grow ({blocks} blocks wanted)")

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        start, length = self._pieces.pop(sequence.number)
        if blocks != length:
            raise RuntimeError(f"{sequence!r} gives back {blocks} KV tokens of the {length} that it booked")
        sequence.pool_blocks = 0
        self.free_blocks += length
        self._history.add(start, start + length, freed)
        self._give_back(start, length)

    def unusable_tokens(self, tokens: int) -> int:
        needed = self.blocks_for(tokens)
        if self.free_blocks < needed:
            return 0
        return sum(length * count for length, count in self._free_pieces() if length < needed)

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        raise RuntimeError(
            f"sequence {sequence.id} has no block table ({blocks} blocks asked for): the pool is contiguous"
        )
