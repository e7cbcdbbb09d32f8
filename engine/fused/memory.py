"""What steps read and write on the device besides the KV, by the *place* that a sequence has while it holds KV."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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

    def take_in(self, ids: Tensor, places: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
        """Name the blocks that a step's tokens are in, and return their ids ``int64[T]``, of which -1 is the last token
        that was sampled at its place. All arguments are ``int64[T]``; a slot of -1 is in no block."""
        blocks = torch.div(slots, self.block_tokens, rounding_mode="trunc")
        self.tables[places, positions // self.block_tokens] = blocks.int()
        return torch.where(ids < 0, self.last[places], ids)
