"""A token for each row of logits in two launches: the best of each piece of the vocabulary, then the best of those."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.launching import launch

_PIECE = 4096


if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def fast_log2(x):
        """The binary logarithm."""
        return tl.log2(x)

else:

    @triton.jit
    def fast_log2(x):
        """The binary logarithm, to some 22 bits: one instruction."""
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _mixed(words):
    """:func:`engine.sampling._mixed` in uint32."""
    words = (words ^ (words >> 16)) * tl.full((1,), 0x7FEB352D, tl.uint32)
    words = (words ^ (words >> 15)) * tl.full((1,), 0x45D9F3B5, tl.uint32)
    return words ^ (words >> 16)


@triton.jit
def _gumbel(token, key):
    """:func:`engine.sampling.gumbel_noise` of a row's key, but for some 1e-5."""
    words = _mixed((token.to(tl.uint32) * tl.full((1,), 0x1E3779B1, tl.uint32)) ^ key)
    words = _mixed(words + key)
    u = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # -log1p(-u): a series where u is small, since there the largest noise comes from
    series = 1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6)))))
    exponential = tl.where(u < 0.0625, u * series, -0.6931471805599453 * fast_log2(1.0 - u))
    return -0.6931471805599453 * fast_log2(exponential)


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
    launch(
        _best_of_piece_kernel, (pieces, rows),
        logits, temperature, keys, best, best_token, vocab, pieces, PIECE=_PIECE, num_warps=8,
    )  # fmt: skip
    launch(_best_kernel, (rows,), best, best_token, out, pieces, BLOCK=triton.next_power_of_2(pieces), num_warps=1)
    return out
