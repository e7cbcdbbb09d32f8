"""A token for each row of logits in two launches: the best of each piece of the vocabulary, then the best of those."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIECE = 4096


@triton.jit
def _mixed(words):
    """:func:`engine.sampling._mixed` in uint32."""
    words = (words ^ (words >> 16)) * tl.full((1,), 0x7FEB352D, tl.uint32)
    words = (words ^ (words >> 15)) * tl.full((1,), 0x45D9F3B5, tl.uint32)
    return words ^ (words >> 16)


@triton.jit
def _gumbel(token, key):
    """:func:`engine.sampling.gumbel_noise` of a row's key."""
    words = _mixed((token.to(tl.uint32) * tl.full((1,), 0x1E3779B1, tl.uint32)) ^ key)
    words = _mixed(words + key)
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # log1p of -uniform, to full precision where that is small
    rest = 1.0 - uniform
    exact = rest == 1.0
    logarithm = tl.log(rest) * uniform / tl.where(exact, 1.0, 1.0 - rest)
    exponential = tl.where(exact, uniform, -logarithm)
    return -tl.log(exponential)


@triton.jit
def _best_of_piece_kernel(logits, temperature, keys, best, best_token, vocab, pieces, PIECE: tl.constexpr):
    piece = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    token = piece * PIECE + tl.arange(0, PIECE)
    x = tl.load(logits + row * vocab + token, mask=token < vocab, other=-float("inf")).to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        key = tl.load(keys + row).to(tl.uint32)
        x = x / heat + _gumbel(token, key)
        x = tl.where(token < vocab, x, -float("inf"))
    value, index = tl.max(x, 0, return_indices=True)
    tl.store(best + row * pieces + piece, value)
    tl.store(best_token + row * pieces + piece, piece * PIECE + index)


@triton.jit
def _best_kernel(best, best_token, out, pieces, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, BLOCK)
    x = tl.load(best + row * pieces + piece, mask=piece < pieces, other=-float("inf"))
    _, index = tl.max(x, 0, return_indices=True)
    tl.store(out + row, tl.load(best_token + row * pieces + index).to(tl.int64))


def sample(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.sample`."""
    rows, vocab = logits.shape
    pieces = triton.cdiv(vocab, _PIECE)
    best = torch.empty(rows, pieces, dtype=torch.float32, device=logits.device)
    best_token = torch.empty(rows, pieces, dtype=torch.int32, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    first: Any = _best_of_piece_kernel
    second: Any = _best_kernel
    first[(pieces, rows)](logits, temperature, keys, best, best_token, vocab, pieces, PIECE=_PIECE, num_warps=8)
    second[(rows,)](best, best_token, out, pieces, BLOCK=triton.next_power_of_2(pieces), num_warps=1)
    return out
