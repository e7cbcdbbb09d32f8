"""Causal attention of packed chunks over paged KV, in tiles with a running softmax (FlashAttention)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.decode_attention import load_tile
from engine.kernels.hopper import has_copy_engine
from engine.kernels.launching import launch


@triton.jit
def _fold(
    q, keys, values, table, n0, end, positions, first_seen, acc, best, total, d, kv_head, kv_heads, scale, softcap,
    D: tl.constexpr, BLOCK_TOKENS: tl.constexpr, TILE: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    BULK: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values taken into the running softmax."""
    n = n0 + tl.arange(0, TILE)
    k = load_tile(keys, table, n0, 0, end, kv_head, kv_heads, D, d, BLOCK_TOKENS, TILE, BULK)
    v = load_tile(values, table, n0, 0, end, kv_head, kv_heads, D, d, BLOCK_TOKENS, TILE, BULK)
    if BULK and MASKED:
        v = tl.where(n[:, None] < end, v, 0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
    scores = scores * 1.4426950408889634
    if MASKED:
        seen = (n[None, :] <= positions[:, None]) & (n[None, :] >= first_seen[:, None])
        scores = tl.where(seen, scores, -1.0e30)
    new_best = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - new_best[:, None])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    shrink = tl.exp2(best - new_best)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_best, total


@triton.jit
def _prefill_kernel(
    query, keys, values, tables, starts, offsets, out, scale, softcap, window, table_stride, heads, kv_heads,
    D: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    # the longest rows of tiles first
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    chunk = tl.program_id(2)
    begin = tl.load(offsets + chunk)
    tokens = tl.load(offsets + chunk + 1) - begin
    if tile * ROWS < tokens:
        start = tl.load(starts + chunk)
        kv_head = head // (heads // kv_heads)
        table = tables + chunk.to(tl.int64) * table_stride
        m = tile * ROWS + tl.arange(0, ROWS)
        d = tl.arange(0, PADDED)
        real = (m[:, None] < tokens) & (d[None, :] < D)
        places = ((begin + m).to(tl.int64)[:, None] * heads + head) * D + d[None, :]
        q = tl.load(query + places, mask=real, other=0.0)
        positions = start + m
        first_seen = m * 0
        low = 0
        if WINDOW:
            first_seen = tl.maximum(positions - window + 1, 0)
            low = tl.maximum(start + tile * ROWS - window + 1, 0) // TILE * TILE
        end = start + tl.minimum(tokens, (tile + 1) * ROWS)
        best = tl.full((ROWS,), -1.0e30, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, PADDED), tl.float32)
        # tiles that every row sees in full need no mask
        clear = low
        if not WINDOW:
            clear = (start + tile * ROWS + 1) // TILE * TILE
            for n0 in tl.range(low, clear, TILE, num_stages=STAGES):
                acc, best, total = _fold(
                    q, keys, values, table, n0, end, positions, first_seen, acc, best, total, d, kv_head, kv_heads,
                    scale, softcap, D, BLOCK_TOKENS, TILE, SOFTCAP, False, BULK,
                )  # fmt: skip
        for n0 in tl.range(clear, end, TILE, num_stages=STAGES):
            acc, best, total = _fold(
                q, keys, values, table, n0, end, positions, first_seen, acc, best, total, d, kv_head, kv_heads,
                scale, softcap, D, BLOCK_TOKENS, TILE, SOFTCAP, True, BULK,
            )  # fmt: skip
        tl.store(out + places, (acc / total[:, None]).to(out.dtype.element_ty), mask=real)


def tiles_of(pages: Tensor, tile: int) -> Any:
    """``pages`` ``[blocks, HKV, block_tokens, D]`` as the copy engine is told of it, in tiles of ``tile`` tokens."""
    return TensorDescriptor.from_tensor(pages.view(-1, pages.shape[-1]), [tile, pages.shape[-1]])


def can_bulk(pages: Tensor, tile: int) -> bool:
    """Whether the copy engine (sm_90 and later) can fetch tiles of ``tile`` tokens: each in one block, D in full."""
    block_tokens, dim = pages.shape[2:]
    whole = block_tokens % tile == 0 and dim == triton.next_power_of_2(dim) and dim >= 16
    return whole and has_copy_engine(pages.device)


def prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    starts: Tensor,
    offsets: Tensor,
    longest_chunk: int,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.prefill_attention`."""
    _, heads, dim = query.shape
    kv_heads, block_tokens = keys.shape[1], keys.shape[2]
    out = torch.empty_like(query) if out is None else out
    wide = query.dtype == torch.float32 or dim > 128
    tile = 32 if wide else 64
    bulk = can_bulk(keys, tile)
    # rows of a tile, warps, stages
    rows, warps, stages = (32, 4, 2) if wide else (64, 4, 2 if bulk else 3)
    if longest_chunk > 1024 and not wide:
        rows, warps, stages = (128, 4 if bulk else 8, 3)
    launch(
        _prefill_kernel, (triton.cdiv(longest_chunk, rows), heads, len(starts)),
        query, tiles_of(keys, tile) if bulk else keys, tiles_of(values, tile) if bulk else values, block_tables,
        starts, offsets, out, scale, softcap or 1.0, window or 0, block_tables.stride(0), heads, kv_heads,
        D=dim, PADDED=max(16, triton.next_power_of_2(dim)), BLOCK_TOKENS=block_tokens, ROWS=rows, TILE=tile,
        SOFTCAP=softcap is not None, WINDOW=window is not None,
        num_warps=warps, STAGES=stages, BULK=bulk,
    )  # fmt: skip
    return out
