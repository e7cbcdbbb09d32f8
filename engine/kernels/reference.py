"""The kernels in plain torch: what a CPU runs, and what the others are tested against.

Rounding is that of transformers' modules in every dtype. Attention is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.kernels.interface import Activation, DecodeWorkspace, Heads, Rotary, Splits
from engine.sampling import gumbel_noise


def take_in(
    ids: Tensor, places: Tensor, positions: Tensor, slots: Tensor, tables: Tensor, last: Tensor, block_tokens: int
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.take_in`."""
    named = slots >= 0
    tables[places[named], positions[named] // block_tokens] = (slots[named] // block_tokens).int()
    return torch.where(ids < 0, last[places], ids)


def embed(ids: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.embed`."""
    rows = table[ids]
    return rows if scale == 1.0 else rows * torch.tensor(scale, dtype=table.dtype, device=table.device)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.rms_norm`."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset == 0:
        return weight * wide.to(x.dtype)
    return (wide * (offset + weight.float())).to(x.dtype)


def add_rms_norm(
    update: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    post_norm: Tensor | None = None,
) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.add_rms_norm`."""
    if update.dim() == 3:
        update = update.sum(0).to(residual.dtype)
    if post_norm is not None:
        update = rms_norm(update, post_norm, eps, offset=offset)
    residual += update
    return rms_norm(residual, weight, eps, offset=offset)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.gated`."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none") * up


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
    """See :meth:`~engine.kernels.interface.Kernels.rotate_and_store`."""
    if bias is not None:
        qkv = qkv + bias
    by_head = qkv.view(len(qkv), -1, heads.dim)
    query, key, value = by_head.split((heads.query, heads.key_value, heads.key_value), dim=1)
    if q_norm is not None:
        query = rms_norm(query, q_norm, norm_eps, offset=norm_offset)
    if k_norm is not None:
        key = rms_norm(key, k_norm, norm_eps, offset=norm_offset)
    written = slots >= 0
    block_tokens = keys.shape[2]
    blocks, offsets = slots[written] // block_tokens, slots[written] % block_tokens
    keys[blocks, :, offsets] = _rotated(key, rotary, positions)[written]
    values[blocks, :, offsets] = value[written]
    return _rotated(query, rotary, positions)


def _rotated(x: Tensor, rotary: Rotary, positions: Tensor) -> Tensor:
    """``x`` ``[T, heads, D]``, rotated to its positions."""
    cos, sin = rotary.cos[positions, None], rotary.sin[positions, None]
    turned, rest = x[..., : rotary.dims], x[..., rotary.dims :]
    if rotary.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, dim=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.stack(pair, dim=-1).flatten(-2) if rotary.interleaved else torch.cat(pair, dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


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
    """See :meth:`~engine.kernels.interface.Kernels.decode_attention`. ``splits`` changes nothing here."""
    output = torch.zeros_like(query) if out is None else out.zero_()
    for row, length in enumerate(lengths.tolist()):
        if length:
            output[row] = _attended(
                query[row : row + 1], keys, values, block_tables[row], length - 1, scale, softcap, window
            )[0]
    return output


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
    output = torch.zeros_like(query) if out is None else out
    ends = offsets.tolist()
    for chunk, start in enumerate(starts.tolist()):
        rows = slice(ends[chunk], ends[chunk + 1])
        if rows.start == rows.stop:
            continue
        output[rows] = _attended(query[rows], keys, values, block_tables[chunk], start, scale, softcap, window)
    return output


def _attended(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    start: int,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """``query`` ``[tokens, HQ, D]`` at the positions from ``start`` on, over the blocks ``table``: the same shape."""
    tokens, heads, dim = query.shape
    end = start + tokens
    blocks = table[: -(-end // keys.shape[2])].long()
    key = keys[blocks].transpose(0, 1).flatten(1, 2)[:, :end].float()
    value = values[blocks].transpose(0, 1).flatten(1, 2)[:, :end].float()
    grouped = query.float().transpose(0, 1).reshape(keys.shape[1], -1, dim)
    scores = (grouped @ key.transpose(1, 2) * scale).view(heads, tokens, end)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    position = torch.arange(start, end, device=query.device)[:, None]
    column = torch.arange(end, device=query.device)
    seen = column <= position
    if window is not None:
        seen &= column > position - window
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    attended = weights.view(keys.shape[1], -1, end) @ value
    return attended.view(heads, tokens, dim).transpose(0, 1).to(query.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.linear`."""
    return functional.linear(x, weight, bias)


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, parts: bool = False) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.skinny_linear`. Never in parts here."""
    return linear(x, weight, bias)


def skinny_gated(x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.skinny_gated`."""
    return gated(linear(x, weight), activation)


def sample(logits: Tensor, temperature: Tensor, keys: Tensor) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.sample`."""
    logits = logits.float()
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    noisy = scaled + gumbel_noise(keys, logits.shape[-1])
    return torch.where(greedy, logits.argmax(dim=-1), noisy.argmax(dim=-1))
