"""The gate of a gated MLP, and the embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.interface import Activation
from engine.kernels.launching import launch

_BLOCK = 1024


@triton.jit
def activated(gate, ACTIVATION: tl.constexpr):
    """``gate`` in float32."""
    if ACTIVATION == "silu":
        result = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == "gelu":
        result = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        # tanh(x) = 1 - 2 / (1 + exp(2x))
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        result = gate * (1.0 - 1.0 / (1.0 + tl.exp(2.0 * inner)))
    return result


@triton.jit
def _gated_kernel(gate_up, out, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    dtype = out.dtype.element_ty
    gate = tl.load(gate_up + token * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    gate = activated(gate, ACTIVATION).to(dtype).to(tl.float32)
    tl.store(out + token * width + column, (gate * up).to(dtype), mask=inside)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.gated`."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    grid = (triton.cdiv(width, _BLOCK), tokens)
    launch(_gated_kernel, grid, gate_up, out, width, ACTIVATION=activation, BLOCK=_BLOCK, num_warps=4)
    return out


@triton.jit
def _embed_kernel(ids, table, out, hidden, scale, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64)
    x = tl.load(table + row * hidden + column, mask=column < hidden, other=0.0)
    dtype = out.dtype.element_ty
    x = x.to(tl.float32) * scale
    tl.store(out + token * hidden + column, x.to(dtype), mask=column < hidden)


def embed(ids: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.embed`."""
    hidden = table.shape[1]
    out = torch.empty(len(ids), hidden, dtype=table.dtype, device=table.device)
    rounded = torch.tensor(scale, dtype=table.dtype).item()
    block = triton.next_power_of_2(hidden)
    launch(_embed_kernel, (len(ids),), ids, table, out, hidden, rounded, BLOCK=block, num_warps=4)
    return out
