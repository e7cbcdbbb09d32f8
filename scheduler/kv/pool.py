"""What every KV pool can do."""

from __future__ import annotations

from typing import Literal, Protocol

from scheduler.sequence import Sequence

PoolKind = Literal["paged", "contiguous", "buddy"]
Freed = Literal["finished", "evicted"]


class KvPool(Protocol):
    """Memory for the keys and values of resident sequences, in blocks of ``block_tokens`` tokens.

    What does not fit, and calls in an order that would let two sequences write one block, raise ``RuntimeError``: the
    scheduler asks :meth:`can_book` first.
    """

    block_tokens: int
    capacity_blocks: int
    #: blocks that nobody uses; cached ones among them are overwritten when they are needed
    free_blocks: int
    #: allocations so far; those served from memory that a finished sequence gave back; that an evicted one gave back
    allocations: int
    reused: int
    reused_after_preemption: int

    @property
    def grows(self) -> bool:
        """Whether a sequence is given blocks as it grows, beyond those that were booked at admission."""

    @property
    def largest_tokens(self) -> int:
        """The most tokens that one sequence can book while the pool is empty."""

    @property
    def reserved_tokens(self) -> int:
        """Token slots that are handed out; those of a shared block count once."""

    @property
    def cached_blocks(self) -> int:
        """Blocks that a later prompt with the same beginning finds, in use or not."""

    @property
    def shared_blocks(self) -> int:
        """Blocks that sequences did not need because they share one: over all blocks, the users beyond the first."""

    @property
    def evictions(self) -> int:
        """Cached blocks that were overwritten so far."""

    def blocks_for(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens need."""

    def shortage(self, sequence: Sequence, tokens: int, shares: bool = True) -> int:
        """Blocks that are missing to book ``tokens`` tokens; ``shares``: cached blocks of its prompt need not be."""

    def freed_by(self, holdings: list[tuple[Sequence, int]], shared_with: Sequence | None = None) -> int:
        """Blocks that become free if these sequences, each holding so many blocks, are released together.

        Those that ``shared_with`` would find in the prefix cache are not counted: it takes them over.
        """

    def can_book(self, sequence: Sequence, tokens: int) -> bool:
        """Whether ``tokens`` tokens of ``sequence`` can be booked now, sharing the prefix that is cached."""

    def book(self, sequence: Sequence, tokens: int) -> None:
        """Reserve room for ``tokens`` tokens of ``sequence``, none of it shared. Sets ``sequence.pool_blocks``."""

    def book_cached(self, sequence: Sequence, tokens: int) -> int:
        """Reserve room for ``tokens`` tokens of ``sequence``, and share the longest prefix of it that is cached.

        Returns the tokens whose KV is there already: whole blocks, and fewer than the known tokens.
        """

    def cached_tokens(self, sequence: Sequence) -> int:
        """What :meth:`book_cached` would return now. A sequence that has KV (computed tokens) looks up nothing."""

    def computed(self, sequence: Sequence, tokens: int) -> None:
        """The step has ended after which the first ``tokens`` tokens of ``sequence`` hold KV: others may share it."""

    def grow(self, blocks: int) -> None:
        """Hand out ``blocks`` more blocks to resident sequences, before anybody asks for their ids."""

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        """Take back the ``blocks`` blocks that ``sequence`` holds, shared ones among them."""

    def unusable_tokens(self, tokens: int) -> int:
        """Free slots in pieces too small for a sequence of ``tokens`` tokens, where as many are free in all."""

    def table(self, sequence: Sequence, blocks: int) -> list[int]:
        """Ids of the first ``blocks`` blocks of ``sequence``, in token order (paged pools only)."""
