"""Bias, norms of queries and keys, rotation, and the write into the KV cache: a program a head and token."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.dependent_launch import launch_options, release, wait
from engine.kernels.interface import Heads, Rotary


@triton.jit
def _partner(d, DIMS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """For each place of a head: the place it is rotated with, its column in the tables, and the sign of the sine."""
    if INTERLEAVED:
        partner = d ^ 1
        column = d // 2
        sign = tl.where(d % 2 == 0, -1.0, 1.0)
    else:
        first = d < DIMS // 2
        partner = tl.where(first, d + DIMS // 2, d - DIMS // 2)
        column = tl.where(first, d, d - DIMS // 2)
        sign = tl.where(first, -1.0, 1.0)
    return partner, column, sign


@triton.jit
def _rotate_kernel(
    qkv, bias, q_norm, k_norm, cos, sin, positions, slots, keys, values, query,
    query_heads, kv_heads, block_tokens, eps, offset,
    D: tl.constexpr, PADDED: tl.constexpr, DIMS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr, NORM: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, PADDED)
    inside = d < D
    rotated = d < DIMS
    partner, column, sign = _partner(d, DIMS, INTERLEAVED)
    dtype = query.dtype.element_ty
    if DEPENDENT:
        wait()
        release()
    row = token * (query_heads + 2 * kv_heads) * D + head * D
    x = tl.load(qkv + row + d, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(qkv + row + partner, mask=rotated, other=0.0).to(tl.float32)
    if BIAS:
        x = (x + tl.load(bias + head * D + d, mask=inside, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
        other += tl.load(bias + head * D + partner, mask=rotated, other=0.0).to(tl.float32)
        other = other.to(dtype).to(tl.float32)
    is_query = head < query_heads
    is_value = head >= query_heads + kv_heads
    if not is_value:
        if NORM:
            weight = q_norm if is_query else k_norm
            scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
            x = x * scale * (tl.load(weight + d, mask=inside, other=0.0).to(tl.float32) + offset)
            other = other * scale * (tl.load(weight + partner, mask=rotated, other=0.0).to(tl.float32) + offset)
            x = x.to(dtype).to(tl.float32)
            other = other.to(dtype).to(tl.float32)
        position = tl.load(positions + token).to(tl.int64)
        c = tl.load(cos + position * (DIMS // 2) + column, mask=rotated, other=1.0).to(tl.float32)
        s = tl.load(sin + position * (DIMS // 2) + column, mask=rotated, other=0.0).to(tl.float32)
        x = x * c + other * s * sign
    if is_query:
        tl.store(query + (token * query_heads + head) * D + d, x.to(dtype), mask=inside)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        kv_head = head - query_heads
        if is_value:
            kv_head -= kv_heads
        place = ((slot // block_tokens) * kv_heads + kv_head) * block_tokens + slot % block_tokens
        written = inside & (d * 0 + slot >= 0)
        if is_value:
            tl.store(values + place * D + d, x.to(dtype), mask=written)
        else:
            tl.store(keys + place * D + d, x.to(dtype), mask=written)


def rotate_and_store(
    qkv: Tensor,
    rotary: Rotary,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: Heads,
    *,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    norm_offset: float = 0.0,
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.rotate_and_store`. Rotated in float32, rounded once."""
    tokens = qkv.shape[0]
    query = torch.empty(tokens, heads.query, heads.dim, dtype=qkv.dtype, device=qkv.device)
    kernel: Any = _rotate_kernel
    kernel[(heads.query + 2 * heads.key_value, tokens)](
        qkv, qkv if bias is None else bias, qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm,
        rotary.cos, rotary.sin, positions, slots, keys, values, query,
        heads.query, heads.key_value, keys.shape[2], norm_eps, norm_offset,
        D=heads.dim, PADDED=triton.next_power_of_2(heads.dim), DIMS=rotary.dims, INTERLEAVED=rotary.interleaved,
        BIAS=bias is not None, NORM=q_norm is not None, num_warps=1,
        **launch_options(tokens, qkv.device),
    )  # fmt: skip
    return query
