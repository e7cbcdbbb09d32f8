"""How a step begins: the ids of its tokens, and the names of the blocks that they are in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.launching import launch


@triton.jit
def _take_in_kernel(ids, places, positions, slots, tables, last, out, width, block_tokens):
    token = tl.program_id(0).to(tl.int64)
    known = tl.load(ids + token)
    place = tl.load(places + token)
    sampled = tl.load(last + place)
    tl.store(out + token, tl.where(known < 0, sampled, known))
    slot = tl.load(slots + token)
    entry = place * width + tl.load(positions + token) // block_tokens
    tl.store(tables + entry, (slot // block_tokens).to(tl.int32), mask=slot >= 0)


def take_in(
    ids: Tensor, places: Tensor, positions: Tensor, slots: Tensor, tables: Tensor, last: Tensor, block_tokens: int
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.take_in`."""
    out = torch.empty_like(ids)
    launch(
        _take_in_kernel, (len(ids),),
        ids, places, positions, slots, tables, last, out, tables.shape[1], block_tokens, num_warps=1,
    )  # fmt: skip
    return out
