"""Which part of a model's weights belongs to which rank.

Query heads, KV heads and the MLP's columns are divided; so are the inputs of the two products after them, whose results
are partial sums until the ranks have added them up. The output layer is divided by vocabulary: at few rows its weights
are what a step waits for, and they are much larger than the logits that the ranks then have to exchange. Embeddings and
norms, which are read a row at a time or are small, are in every rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.fused.architecture import missing_features
from engine.models import LoadedModel


class Division(NamedTuple):
    """Rank ``rank`` of ``size``. Spans are ``(first, last + 1)``."""

    rank: int
    size: int

    def span(self, whole: int) -> tuple[int, int]:
        """This rank's part of ``whole`` things, of which there is the same number in each rank."""
        part = whole // self.size
        return self.rank * part, (self.rank + 1) * part

    def kv_span(self, kv_heads: int) -> tuple[int, int]:
        """This rank's KV heads. Where there are fewer than ranks, several ranks have the same one."""
        first = self.rank * kv_heads // self.size
        return first, first + max(1, kv_heads // self.size)


def refuse_division(name: str, config: Any, size: int) -> None:
    """Raise :class:`ModelError` where a model of this transformers configuration cannot be divided over ``size`` ranks.

    The message names the numbers.
    """
    missing = missing_features(config)
    if missing:
        raise ModelError(f"model {name!r} cannot be divided over {size} ranks: it has {', '.join(missing)}")
    heads, intermediate = config.num_attention_heads, config.intermediate_size
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    reasons = []
    if heads % size:
        reasons.append(f"its {heads} query heads are not a multiple of {size}")
    if kv_heads % size and size % kv_heads:
        reasons.append(f"its {kv_heads} KV heads are neither a multiple nor a divisor of {size}")
    if intermediate % size:
        reasons.append(f"the {intermediate} columns of its MLP are not a multiple of {size}")
    if reasons:
        raise ModelError(f"model {name!r} cannot be divided over {size} ranks: {', and '.join(reasons)}")


def divide_model(model: LoadedModel, division: Division, device: torch.device) -> LoadedModel:
    """This rank's share of ``model``, on ``device``. ``model`` itself is used up.

    Layer by layer a share is copied and the whole let go of, so that no more than one product is held twice. Afterwards
    transformers cannot run the model any more.

    Raises:
        ModelError: see :func:`refuse_division`.
    """
    causal: Any = model.model
    config = causal.config
    refuse_division(model.name, config, division.size)
    dim, heads, kv_heads = model.head_dim, model.heads, model.kv_heads
    q, kv, columns = division.span(heads), division.kv_span(kv_heads), division.span(config.intermediate_size)
    query = (q[0] * dim, q[1] * dim)
    key_value = (kv[0] * dim, kv[1] * dim)
    first = division.rank == 0
    for layer in causal.base_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):
            key = [heads * dim + end for end in key_value]
            value = [(heads + kv_heads) * dim + end for end in key_value]
            _keep_rows(attention.qkv_proj, [query, key, value], device)
        else:
            _keep_rows(attention.q_proj, [query], device)
            _keep_rows(attention.k_proj, [key_value], device)
            _keep_rows(attention.v_proj, [key_value], device)
        if hasattr(mlp, "gate_up_proj"):
            _keep_rows(mlp.gate_up_proj, [columns, [config.intermediate_size + end for end in columns]], device)
        else:
            _keep_rows(mlp.gate_proj, [columns], device)
            _keep_rows(mlp.up_proj, [columns], device)
        _keep_inputs(attention.o_proj, query, first, device)
        _keep_inputs(mlp.down_proj, columns, first, device)
    _divide_head(causal.get_output_embeddings(), division, device)
    causal.to(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return replace(model, heads=q[1] - q[0], kv_heads=kv[1] - kv[0])


def head_span(vocab: int, division: Division) -> tuple[int, int]:
    """The rows of the output layer in this rank: as many in each, but for the last ranks where they do not go round."""
    part = -(-vocab // division.size)
    return min(division.rank * part, vocab), min((division.rank + 1) * part, vocab)


def _divide_head(head: Any, division: Division, device: torch.device) -> None:
    """Rows of the output layer, filled up with zeros to as many as the other ranks have.

    The weights may be the embedding's too, which stay as they are.
    """
    vocab = len(head.weight)
    first, last = head_span(vocab, division)
    part = -(-vocab // division.size)
    for name in ("weight", "bias"):
        whole = getattr(head, name)
        if whole is not None:
            share = whole.data[first:last].to(device)
            filler = share.new_zeros(part - len(share), *share.shape[1:])
            setattr(head, name, _parameter(torch.cat((share, filler))))


def _keep_rows(module: Any, spans: Iterable[Iterable[int]], device: torch.device) -> None:
    """Some outputs of a product: rows of its weight, and of its bias."""
    cuts = [slice(*span) for span in spans]
    for name in ("weight", "bias"):
        whole = getattr(module, name)
        if whole is not None:
            setattr(module, name, _parameter(torch.cat([whole.data[cut].to(device) for cut in cuts])))


def _keep_inputs(module: Any, span: tuple[int, int], keeps_bias: bool, device: torch.device) -> None:
    """Some inputs of a product. Its bias is one rank's, so that it is added once."""
    share = module.weight.data[:, slice(*span)]
    module.weight = _parameter(torch.empty(share.shape, dtype=share.dtype, device=device).copy_(share))
    if not keeps_bias:
        module.bias = None


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
