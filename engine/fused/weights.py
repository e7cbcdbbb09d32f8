"""The weights of a transformers model, merged where one product does for several.

What is merged is not held twice: the model's own parameters become views into the merged tensors, layer by layer, so
that transformers can still run the model. At most one layer is there twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.fused.architecture import Family


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer. Matrices are ``[outputs, inputs]``; ``norms`` as :class:`~engine.fused.architecture.Family` lists."""

    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    norms: tuple[Tensor, Tensor | None, Tensor, Tensor | None]


def merge_layer(layer: Any, family: Family) -> LayerWeights:
    """The weights of a decoder layer, merged in place."""
    attention, mlp = layer.self_attn, layer.mlp
    _move(attention, mlp)
    q, k, v = ("q_proj", "k_proj", "v_proj")
    qkv, qkv_bias = _merged(attention, ("qkv_proj",) if hasattr(attention, "qkv_proj") else (q, k, v))
    gate_up, gate_up_bias = _merged(
        mlp, ("gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")
    )
    before_attention, after_attention, before_mlp, after_mlp = (
        None if name is None else getattr(layer, name).weight.data for name in family.norms
    )
    if before_attention is None or before_mlp is None:
        raise TypeError("every layer has a norm before attention and one before the MLP")
    return LayerWeights(
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=_norm(attention, "q_norm"),
        k_norm=_norm(attention, "k_norm"),
        o=attention.o_proj.weight.data,
        o_bias=_bias(attention.o_proj),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=mlp.down_proj.weight.data,
        down_bias=_bias(mlp.down_proj),
        norms=(before_attention, after_attention, before_mlp, after_mlp),
    )


def _move(attention: Any, mlp: Any) -> None:
    """On a GPU, move what stays as it is in a layer that is about to be merged for the first time.

    A checkpoint is read into one piece of memory. If those matrices stayed where they are, the holes between them would
    be too small for the next layer's merged ones, and some gigabytes of a 7B model's would be lost for KV. A layer that
    moves as a whole leaves a hole into which the next one fits.
    """
    separate = hasattr(attention, "q_proj") and _memory(attention.q_proj) != _memory(attention.k_proj)
    if attention.o_proj.weight.is_cuda and separate:
        for module in (attention.o_proj, mlp.down_proj):
            module.weight.data = module.weight.data.clone()


def _memory(module: Any) -> int:
    """Where the memory begins that a module's weight lies in."""
    begin: int = module.weight.untyped_storage().data_ptr()
    return begin


def _merged(owner: nn.Module, names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """Weights and biases of the owner's projections, one below the other."""
    modules: list[Any] = [getattr(owner, name) for name in names]
    if len(modules) == 1:
        return modules[0].weight.data, _bias(modules[0])
    weight = torch.cat([module.weight.data for module in modules])
    biased = [module for module in modules if module.bias is not None]
    bias = torch.cat([module.bias.data for module in biased]) if biased else None
    if biased and len(biased) != len(modules):
        raise TypeError(f"only some of {', '.join(names)} have a bias")
    first = 0
    for module in modules:
        last = first + len(module.weight)
        module.weight.data = weight[first:last]
        if bias is not None:
            module.bias.data = bias[first:last]
        first = last
    return weight, bias


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else module.bias.data


def _norm(owner: nn.Module, name: str) -> Tensor | None:
    module: Any = getattr(owner, name, None)
    return None if module is None else module.weight.data
