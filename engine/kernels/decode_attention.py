"""Attention of one query a row over paged KV: contexts cut into parts, the last part to arrive puts them together.

No length is baked in: how many parts a launch may have is fixed, and each row takes as many as its context asks for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.hopper import launch_options, release, wait
from engine.kernels.interface import DecodeWorkspace, Splits
from engine.kernels.launching import launch

_TILE = 64


@triton.jit
def load_tile(
    pages, table, n0, first, end, kv_head, kv_heads, D: tl.constexpr, d, BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr, BULK: tl.constexpr,
):  # fmt: skip
    """The keys or values ``[TILE, D]`` of the tokens from ``n0`` on. No block is looked up past ``end``.

    Tokens before ``first`` and from ``end`` on are zeros, but with ``BULK`` (``pages`` describes ``[tokens, D]`` of the
    pool to the copy engine) they are whatever the block holds.
    """
    if BULK:
        block = tl.load(table + n0 // BLOCK_TOKENS)
        tile = pages.load([(block * kv_heads + kv_head) * BLOCK_TOKENS + n0 % BLOCK_TOKENS, 0])
    else:
        n = n0 + tl.arange(0, TILE)
        if BLOCK_TOKENS >= TILE:
            block = tl.load(table + n0 // BLOCK_TOKENS).to(tl.int64)
            start = (block * kv_heads + kv_head) * BLOCK_TOKENS
            offsets = (start + n % BLOCK_TOKENS)[:, None] * D + d[None, :]
        else:
            blocks = tl.load(table + n // BLOCK_TOKENS, mask=n < end, other=0).to(tl.int64)
            starts = (blocks * kv_heads + kv_head) * BLOCK_TOKENS + n % BLOCK_TOKENS
            offsets = starts[:, None] * D + d[None, :]
        tile = tl.load(pages + offsets, mask=((n >= first) & (n < end))[:, None] & (d[None, :] < D), other=0.0)
    return tile


@triton.jit
def _decode_kernel(
    query, keys, values, tables, lengths, out, part_out, part_max, part_sum, arrivals,
    scale, softcap, window, table_stride, kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    if DEPENDENT:
        wait()
    length = tl.load(lengths + row)
    first = 0
    if WINDOW:
        first = tl.maximum(length - window, 0)
    first_tile = first // TILE
    tiles = tl.cdiv(length, TILE) - first_tile
    tiles_a_split = tl.maximum(tl.cdiv(tiles, SPLITS), LEAST)
    splits = tl.maximum(tl.cdiv(tiles, tiles_a_split), 1)
    d = tl.arange(0, PADDED)
    g = tl.arange(0, ROWS)
    real = (g[:, None] < GROUP) & (d[None, :] < D)
    heads = kv_heads * GROUP
    places = (row * heads + kv_head * GROUP + g[:, None]) * D + d[None, :]
    if split < splits:
        q = tl.load(query + places, mask=real, other=0.0)
        start = (first_tile + split * tiles_a_split) * TILE
        end = tl.minimum(length, start + tiles_a_split * TILE)
        best = tl.full((ROWS,), -1.0e30, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, PADDED), tl.float32)
        table = tables + row * table_stride
        for n0 in tl.range(start, end, TILE, num_stages=STAGES):
            n = n0 + tl.arange(0, TILE)
            seen = (n < end) & (n >= first)
            k = load_tile(keys, table, n0, first, end, kv_head, kv_heads, D, d, BLOCK_TOKENS, TILE, False)
            v = load_tile(values, table, n0, first, end, kv_head, kv_heads, D, d, BLOCK_TOKENS, TILE, False)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if SOFTCAP:
                scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
            scores = tl.where(seen[None, :], scores * 1.4426950408889634, -1.0e30)
            new_best = tl.maximum(best, tl.max(scores, 1))
            weights = tl.where(seen[None, :], tl.exp2(scores - new_best[:, None]), 0.0)
            shrink = tl.exp2(best - new_best)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            best = new_best
        if DEPENDENT:
            release()
        if splits == 1:
            whole = tl.where(total > 0, total, 1.0)
            tl.store(out + places, (acc / whole[:, None]).to(out.dtype.element_ty), mask=real)
        else:
            part = (row * heads + kv_head * GROUP + g) * SPLITS + split
            tl.store(part_out + part[:, None] * D + d[None, :], acc, mask=real)
            tl.store(part_max + part, best, mask=g < GROUP)
            tl.store(part_sum + part, total, mask=g < GROUP)
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + row * kv_heads + kv_head, 1, sem="acq_rel")
            if arrived == splits - 1:
                base = (row * heads + kv_head * GROUP + g) * SPLITS
                best = tl.full((ROWS,), -1.0e30, tl.float32)
                for i in range(splits):
                    best = tl.maximum(
                        best, tl.load(part_max + base + i, mask=g < GROUP, other=-1.0e30, cache_modifier=".cg")
                    )
                total = tl.zeros((ROWS,), tl.float32)
                acc = tl.zeros((ROWS, PADDED), tl.float32)
                for i in range(splits):
                    top = tl.load(part_max + base + i, mask=g < GROUP, other=-1.0e30, cache_modifier=".cg")
                    shrink = tl.exp2(top - best)
                    total += shrink * tl.load(part_sum + base + i, mask=g < GROUP, other=0.0, cache_modifier=".cg")
                    piece = part_out + (base + i)[:, None] * D + d[None, :]
                    acc += shrink[:, None] * tl.load(piece, mask=real, other=0.0, cache_modifier=".cg")
                whole = tl.where(total > 0, total, 1.0)
                tl.store(out + places, (acc / whole[:, None]).to(out.dtype.element_ty), mask=real)
                tl.store(arrivals + row * kv_heads + kv_head, 0)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    workspace: DecodeWorkspace | None = None,
    splits: Splits | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.decode_attention`."""
    rows, heads, dim = query.shape
    kv_heads, block_tokens = keys.shape[1], keys.shape[2]
    if splits is None:
        splits = Splits(1 if workspace is None else workspace.splits)
    out = torch.empty_like(query) if out is None else out
    parts = (out, out, out, out) if workspace is None else (
        workspace.outputs, workspace.maxima, workspace.sums, workspace.arrivals
    )  # fmt: skip
    if splits.most > 1 and (workspace is None or workspace.splits < splits.most or workspace.rows < rows):
        raise ValueError(f"{rows} rows in {splits.most} parts need a workspace of that size")
    tile = _TILE if dim <= 128 else 32
    launch(
        _decode_kernel, (kv_heads, rows, splits.most),
        query, keys, values, block_tables, lengths, out, *parts,
        scale, softcap or 1.0, window or 0, block_tables.stride(0), kv_heads,
        GROUP=heads // kv_heads, ROWS=max(16, triton.next_power_of_2(heads // kv_heads)),
        D=dim, PADDED=max(16, triton.next_power_of_2(dim)), BLOCK_TOKENS=block_tokens,
        TILE=tile, SPLITS=splits.most, LEAST=triton.cdiv(splits.tokens, tile),
        SOFTCAP=softcap is not None, WINDOW=window is not None, STAGES=3 if dim <= 128 else 2, num_warps=4,
        **launch_options(rows, query.device),
    )  # fmt: skip
    return out
