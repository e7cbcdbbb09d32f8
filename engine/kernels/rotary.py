"""Bias, norms of queries and keys, rotation, and the write into the KV cache: a program some heads of a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.hopper import launch_options, release, wait
from engine.kernels.interface import Heads, Rotary
from engine.kernels.launching import launch


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
    BIAS: tl.constexpr, NORM: tl.constexpr, HEADS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, PADDED)
    partner, column, sign = _partner(d, DIMS, INTERLEAVED)
    is_query = head < query_heads
    is_key = (head >= query_heads) & (head < query_heads + kv_heads)
    is_value = head >= query_heads + kv_heads
    is_real = head < query_heads + 2 * kv_heads
    inside = is_real[:, None] & (d[None, :] < D)
    rotated = is_real[:, None] & (d[None, :] < DIMS)
    dtype = query.dtype.element_ty
    if BIAS:
        x_bias = tl.load(bias + head[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        other_bias = tl.load(bias + head[:, None] * D + partner[None, :], mask=rotated, other=0.0).to(tl.float32)
    if DEPENDENT:
        wait()
        release()
    row = (token * (query_heads + 2 * kv_heads) + head[:, None]) * D
    x = tl.load(qkv + row + d[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(qkv + row + partner[None, :], mask=rotated, other=0.0).to(tl.float32)
    if BIAS:
        x = (x + x_bias).to(dtype).to(tl.float32)
        other = (other + other_bias).to(dtype).to(tl.float32)
    before = x
    if NORM:
        of_query = tl.load(q_norm + d, mask=d < D, other=0.0).to(tl.float32) + offset
        of_key = tl.load(k_norm + d, mask=d < D, other=0.0).to(tl.float32) + offset
        of_query_partner = tl.load(q_norm + partner, mask=d < DIMS, other=0.0).to(tl.float32) + offset
        of_key_partner = tl.load(k_norm + partner, mask=d < DIMS, other=0.0).to(tl.float32) + offset
        scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
        x = x * scale[:, None] * tl.where(is_query[:, None], of_query[None, :], of_key[None, :])
        other = other * scale[:, None] * tl.where(is_query[:, None], of_query_partner[None, :], of_key_partner[None, :])
        x = x.to(dtype).to(tl.float32)
        other = other.to(dtype).to(tl.float32)
    position = tl.load(positions + token).to(tl.int64)
    c = tl.load(cos + position * (DIMS // 2) + column, mask=d < DIMS, other=1.0).to(tl.float32)
    s = tl.load(sin + position * (DIMS // 2) + column, mask=d < DIMS, other=0.0).to(tl.float32)
    x = x * c[None, :] + other * (s * sign)[None, :]
    x = tl.where(is_value[:, None], before, x).to(dtype)
    place = query + (token * query_heads + head[:, None]) * D + d[None, :]
    tl.store(place, x, mask=inside & is_query[:, None])
    slot = tl.load(slots + token).to(tl.int64)
    kv_head = tl.where(is_value, head - query_heads - kv_heads, head - query_heads)
    block = (slot // block_tokens) * kv_heads + kv_head
    place = (block * block_tokens + slot % block_tokens)[:, None] * D + d[None, :]
    written = inside & (d * 0 + slot >= 0)[None, :]
    tl.store(keys + place, x, mask=written & is_key[:, None])
    tl.store(values + place, x, mask=written & is_value[:, None])


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
    # few tokens: small programs, so that all processors have some
    together, warps = (8, 4) if tokens > 32 else (2, 1)
    launch(
        _rotate_kernel, (triton.cdiv(heads.query + 2 * heads.key_value, together), tokens),
        qkv, qkv if bias is None else bias, qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm,
        rotary.cos, rotary.sin, positions, slots, keys, values, query,
        heads.query, heads.key_value, keys.shape[2], norm_eps, norm_offset,
        D=heads.dim, PADDED=triton.next_power_of_2(heads.dim), DIMS=rotary.dims, INTERLEAVED=rotary.interleaved,
        BIAS=bias is not None, NORM=q_norm is not None, HEADS=together, num_warps=warps,
        **launch_options(tokens, qkv.device),
    )  # fmt: skip
    return query
