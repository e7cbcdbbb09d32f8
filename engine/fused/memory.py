"""What steps read and write on the device besides the KV, by the *place* that a sequence has while it holds KV."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


def table_width(context_tokens: int, block_tokens: int) -> int:
    """Blocks that a sequence may have, one more than a full context has."""
    return -(-context_tokens // block_tokens) + 1


class Memory(NamedTuple):
    """Of each place, and of one more for what only fills a graph up.

    ``tables`` ``int32[places + 1, max_blocks]``: blocks, of ``block_tokens`` each; ``last`` ``int64[places + 1]``: the
    last sampled token, read where the host does not know it yet.
    """

    tables: Tensor
    last: Tensor
    block_tokens: int

    @property
    def filler(self) -> int:
        """The extra place."""
        return len(self.last) - 1
