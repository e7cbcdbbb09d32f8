"""What every KV pool can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from scheduler.sequence import Sequence

PoolKind = Literal["paged", "contiguous", "buddy"]
Freed = Literal["finished", "evicted"]


class KvPool(ABC):
    """Memory for the keys and values of resident sequences, in blocks of ``block_tokens`` tokens.

    What does not fit, and calls in an order that would let two sequences write one block, raise ``RuntimeError``: the
    scheduler asks :meth:`can_book` first.
    """

    #: whether a sequence is given blocks as it grows, beyond those that were booked at admission
    grows: bool

    def __init__(self, capacity_blocks: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.capacity_blocks = capacity_blocks
        #: blocks that nobody uses; cached ones among them are overwritten when they are needed
        self.free_blocks = capacity_blocks
        #: allocations so far; those served from memory that a finished sequence gave back, or an evicted one
        self.allocations = 0
        self.reused = 0
        self.reused_after_preemption = 0

    @property
    @abstractmethod
    def largest_tokens(self) -> int:
        """The most tokens that one sequence can book while the pool is empty."""

    @property
    def reserved_tokens(self) -> int:
        """Token slots that are handed out; those of a shared block count once."""
        return (self.capacity_blocks - self.free_blocks) * self.block_tokens

    @property
    def cached_blocks(self) -> int:
        """Blocks that a later prompt with the same beginning finds, in use or not."""
        return 0

    @property
    def shared_blocks(self) -> int:
        """Blocks that sequences did not need because they share one: over all blocks, the users beyond the first."""
        return 0

    @property
    def shared_tokens(self) -> int:
        """Their tokens."""
        return self.shared_blocks * self.block_tokens

    @property
    def evictions(self) -> int:
        """Cached blocks that were overwritten so far."""
        return 0

    @abstractmethod
    def blocks_for(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens need."""

    def shortage(self, sequence: Sequence, tokens: int, shares: bool = True) -> int:
        """Blocks that are missing to book ``tokens`` tokens; ``shares``: cached blocks of its prompt need not be."""
        return self.blocks_for(tokens) - self.free_blocks

    def freed_by(self, holdings: list[tuple[Sequence, int]], shared_with: Sequence | None = None) -> int:
        """Blocks that become free if these sequences, each holding so many blocks, are released together.

        Those that ``shared_with`` would find in the prefix cache are not counted: it takes them over.
        """
        return sum(blocks for _, blocks in holdings)

    @abstractmethod
    def can_book(self, sequence: Sequence, tokens: int) -> bool:
        """Whether ``tokens`` tokens of ``sequence`` can be booked now, sharing the prefix that is cached."""

    @abstractmethod
    def book(self, sequence: Sequence, tokens: int) -> None:
        """Reserve room for ``tokens`` tokens of ``sequence``, none of it shared. Sets ``sequence.pool_blocks``."""

    def book_cached(self, sequence: Sequence, tokens: int) -> int:
        """Reserve room for ``tokens`` tokens of ``sequence``, and share the longest prefix of it that is cached.

        Returns the tokens whose KV is there already: whole blocks, and fewer than the known tokens.
        """
        self.book(sequence, tokens)
        return 0

    def cached_tokens(self, sequence: Sequence) -> int:
        """What :meth:`book_cached` would return now. A sequence that has KV (computed tokens) looks up nothing."""
        return 0

    def computed(self, sequence: Sequence, tokens: int) -> None:  # noqa: B027
        """The step has ended after which the first ``tokens`` tokens of ``sequence`` hold KV: others may share it."""

    @abstractmethod
    def grow(self, blocks: int) -> None:
        """Hand out ``blocks`` more blocks to resident sequences, before anybody asks for their ids."""

    @abstractmethod
    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        """Take back the ``blocks`` blocks that ``sequence`` holds, shared ones among them."""

    @abstractmethod
    def unusable_tokens(self, tokens: int) -> int:
        """Free slots in pieces too small for a sequence of ``tokens`` tokens, where as many are free in all."""

    @abstractmethod
    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        """Ids of the first ``blocks`` blocks of ``sequence``, in token order (paged pools only)."""
