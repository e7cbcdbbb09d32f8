"""The forward pass of a packed step over paged KV: a loop over layers, each of some ten kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engine.fused.architecture import read_architecture
from engine.fused.weights import LayerWeights, merge_layer
from engine.kernels import DecodeWorkspace, Heads, Kernels, Splits, kernels_for
from engine.models import LoadedModel


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of prompts of a step, behind its rows; see ``prefill_attention``."""

    tables: Tensor
    starts: Tensor
    offsets: Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one token at the beginning of a step; see ``decode_attention``.

    There may be room for more of them, of length 0, if the chunks come behind those that there are.
    """

    tables: Tensor
    lengths: Tensor
    workspace: DecodeWorkspace | None = None
    splits: Splits | None = None


@dataclass(frozen=True, eq=False)
class StepTensors:
    """A step: its tokens, packed, rows first. ``ids``, ``positions`` and ``slots`` (in the KV) are ``int64[T]``."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    chunks: Chunks | None
    rows: Rows | None


class KvCache:
    """Keys and values of all layers, each ``[blocks, kv_heads, block_tokens, head_dim]``."""

    def __init__(self, model: LoadedModel, blocks: int, block_tokens: int) -> None:
        shape = (blocks, model.kv_heads, block_tokens, model.head_dim)
        self.keys = [torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(model.layers)]
        self.values = [torch.empty(shape, dtype=model.dtype, device=model.device) for _ in range(model.layers)]

    @property
    def tensors(self) -> list[Tensor]:
        """All keys, then all values."""
        return self.keys + self.values


def attend(
    kernels: Kernels,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    chunks: Chunks | None,
    rows: Rows | None,
    **settings: Any,
) -> Tensor:
    """Attention of a step's packed queries ``[T, query heads, head_dim]``: its rows', then its chunks'.

    ``settings`` are those of both kernels: ``scale``, ``softcap``, ``window``.
    """
    out = torch.empty_like(query)
    if rows is not None:
        count = len(rows.lengths)
        kernels.decode_attention(
            query[:count], keys, values, rows.tables, rows.lengths, workspace=rows.workspace, splits=rows.splits,
            out=out[:count], **settings,
        )  # fmt: skip
    if chunks is not None:
        # behind them: it writes over the rows that there is only room for
        kernels.prefill_attention(
            query, keys, values, chunks.tables, chunks.starts, chunks.offsets, chunks.longest, out=out, **settings
        )
    return out


class Decoder:
    """A model whose weights have been merged. Raises ``ModelError`` for one that it cannot compute."""

    def __init__(self, model: LoadedModel, kernels: Kernels | None = None) -> None:
        causal: Any = model.model
        architecture = read_architecture(causal)
        self.architecture = replace(architecture, heads=Heads(model.heads, model.kv_heads, architecture.heads.dim))
        group = model.group
        self._reduce: Callable[[Tensor], Tensor] = _whole if group is None else group.reduce
        self._gather: Callable[[Tensor], Tensor] = _whole if group is None else group.gather
        self.kernels = kernels_for(model.device) if kernels is None else kernels
        body = causal.base_model
        self._layers = [merge_layer(layer, architecture.family) for layer in body.layers]
        self._embedding = body.embed_tokens.weight.data
        self._final_norm = body.norm.weight.data
        head = causal.get_output_embeddings()
        self._head, self._head_bias = head.weight.data, None if head.bias is None else head.bias.data

    def forward(self, step: StepTensors, cache: KvCache) -> Tensor:
        """Store the step's keys and values, and return ``[T, hidden]``, normalised for the head."""
        kernels, architecture = self.kernels, self.architecture
        eps, offset = architecture.norm_eps, architecture.family.norm_offset
        few = step.chunks is None
        linear: Any = kernels.skinny_linear if few else kernels.linear
        # the ranks add up whole results, or the parts would be summed twice over
        in_parts = {"parts": True} if few and self._reduce is _whole else {}
        residual = kernels.embed(step.ids, self._embedding, architecture.embedding_scale)
        x = kernels.rms_norm(residual, self._layers[0].norms[0], eps, offset=offset)
        for index, weights in enumerate(self._layers):
            last = index + 1 == len(self._layers)
            after = self._final_norm if last else self._layers[index + 1].norms[0]
            qkv = linear(x, weights.qkv)
            attended = self._attend(index, qkv, step, cache)
            update = self._reduce(linear(attended.flatten(1), weights.o, weights.o_bias, **in_parts))
            _, after_attention, before_mlp, after_mlp = weights.norms
            x = kernels.add_rms_norm(update, residual, before_mlp, eps, offset=offset, post_norm=after_attention)
            if few and weights.gate_up_bias is None:
                activated = kernels.skinny_gated(x, weights.gate_up, architecture.activation)
            else:
                gate_up = linear(x, weights.gate_up, weights.gate_up_bias)
                activated = kernels.gated(gate_up, architecture.activation)
            update = self._reduce(linear(activated, weights.down, weights.down_bias, **in_parts))
            x = kernels.add_rms_norm(update, residual, after, eps, offset=offset, post_norm=after_mlp)
        return x

    def tune(self, most_rows: int) -> None:
        """Meet all products of up to ``most_rows`` rows once: on a GPU their tiles are searched then.

        To be done before KV takes what is left. A search needs memory for twice the weights of a product or more, and
        gives it back, as it does with all that the allocator keeps: it would spoil what is measured of a step.
        """
        rows = 16
        with torch.inference_mode():
            while rows < 2 * max(most_rows, 16):
                self._meet_products(self._layers[0], rows)
                rows *= 2

    def _meet_products(self, weights: LayerWeights, rows: int) -> None:
        """Those of ``rows`` rows with a layer's ``weights``, and with the head's."""
        kernels, activation = self.kernels, self.architecture.activation
        in_parts = {"parts": True} if self._reduce is _whole else {}

        def input_of(weight: Tensor) -> Tensor:
            return weight.new_zeros(rows, weight.shape[1])

        kernels.skinny_linear(input_of(weights.qkv), weights.qkv)
        kernels.skinny_linear(input_of(weights.o), weights.o, weights.o_bias, **in_parts)
        if weights.gate_up_bias is None:
            kernels.skinny_gated(input_of(weights.gate_up), weights.gate_up, activation)
        else:
            kernels.skinny_linear(input_of(weights.gate_up), weights.gate_up, weights.gate_up_bias)
        kernels.skinny_linear(input_of(weights.down), weights.down, weights.down_bias, **in_parts)
        kernels.skinny_linear(input_of(self._head), self._head, self._head_bias)

    def _attend(self, index: int, qkv: Tensor, step: StepTensors, cache: KvCache) -> Tensor:
        """``[T, query heads, head_dim]`` of one layer."""
        kernels, architecture, weights = self.kernels, self.architecture, self._layers[index]
        keys, values = cache.keys[index], cache.values[index]
        query = kernels.rotate_and_store(
            qkv, architecture.rotaries[index], step.positions, step.slots, keys, values, architecture.heads,
            bias=weights.qkv_bias, q_norm=weights.q_norm, k_norm=weights.k_norm, norm_eps=architecture.norm_eps,
            norm_offset=architecture.family.norm_offset,
        )  # fmt: skip
        return attend(
            kernels, query, keys, values, step.chunks, step.rows, scale=architecture.scale,
            softcap=architecture.softcap, window=architecture.windows[index],
        )  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        """``[rows, vocab]`` of rows that :meth:`forward` gave."""
        logits = self._gather(self.kernels.skinny_linear(hidden, self._head, self._head_bias))
        cap = self.architecture.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _whole(tensor: Tensor) -> Tensor:
    """What a rank has is all there is."""
    return tensor
