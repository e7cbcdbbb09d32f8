"""What a decoder of one of the known families computes, read from a transformers model; or which feature is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from engine.errors import ModelError
from engine.kernels import Activation, Heads, Rotary


class Family(NamedTuple):
    """How a family of models differs from Llama."""

    norms: tuple[str, str | None, str, str | None] = ("input_layernorm", None, "post_attention_layernorm", None)
    """modules of a layer: before attention, after it, before the MLP, after it"""
    norm_offset: float = 0.0
    interleaved: bool = False
    """rotated pairs are neighbours"""
    same_window: bool = False
    """the configuration's sliding window is every layer's"""


_SANDWICH = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
FAMILIES = {
    "llama": Family(),
    "mistral": Family(same_window=True),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(same_window=True),
    "glm": Family(interleaved=True),
    "glm4": Family(
        ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
        interleaved=True,
    ),
    "gemma": Family(norm_offset=1.0),
    "gemma2": Family(_SANDWICH, norm_offset=1.0),
    "gemma3_text": Family(_SANDWICH, norm_offset=1.0),
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
#: kinds of rotary positions whose tables do not depend on how long a sequence is
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}


@dataclass(frozen=True)
class Architecture:
    """The sizes and switches of a decoder. A value for each layer comes in a tuple."""

    family: Family
    heads: Heads
    hidden: int
    layers: int
    norm_eps: float
    activation: Activation
    scale: float
    """of the attention scores"""
    embedding_scale: float
    softcap: float | None
    """of the attention scores"""
    final_softcap: float | None
    windows: tuple[int | None, ...]
    """how many tokens a position sees, itself included"""
    rotaries: tuple[Rotary, ...]


def missing_features(config: Any) -> list[str]:
    """What the fused decoder lacks for a model of this configuration; empty if nothing."""
    if config.model_type not in FAMILIES:
        return [f"the architecture {config.model_type}{_experts(config)} (known: {', '.join(FAMILIES)})"]
    missing = []
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in _ACTIVATIONS:
        missing.append(f"the activation {activation}")
    missing += [f"rotary positions of kind {kind}" for kind in unfixed_rotary_kinds(config)]
    return missing


def _experts(config: Any) -> str:
    """Words for a mixture of experts, which is what a newcomer's architecture most often has of its own."""
    fields = ("num_experts", "num_local_experts", "n_routed_experts")
    return " with its mixture of experts" if any(getattr(config, field, None) for field in fields) else ""


def rotary_kinds(config: Any) -> list[str]:
    """The kinds of rotary positions that layers of the model have, sorted."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = parameters.values() if parameters and all(isinstance(v, dict) for v in parameters.values()) else [parameters]
    return sorted({(each_one or {}).get("rope_type", "default") for each_one in each})


def unfixed_rotary_kinds(config: Any) -> list[str]:
    """Those of them whose tables depend on how long a sequence is."""
    return [kind for kind in rotary_kinds(config) if kind not in _FIXED_ROTARY]


def read_architecture(model: Any) -> Architecture:
    """The architecture of a transformers causal model.

    Raises :class:`~engine.errors.ModelError` naming what the decoder lacks for it.
    """
    config = model.config
    missing = missing_features(config)
    if missing:
        raise ModelError(f"the fused decoder does not have {', '.join(missing)}")
    family = FAMILIES[config.model_type]
    body = model.base_model
    attentions = [layer.self_attn for layer in body.layers]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    windows = tuple(
        config.sliding_window if family.same_window else getattr(attention, "sliding_window", None)
        for attention in attentions
    )
    scale = getattr(body.embed_tokens, "embed_scale", None)
    return Architecture(
        family=family,
        heads=Heads(config.num_attention_heads, config.num_key_value_heads, head_dim),
        hidden=config.hidden_size,
        layers=len(attentions),
        norm_eps=config.rms_norm_eps,
        activation=_ACTIVATIONS[activation],
        scale=float(attentions[0].scaling),
        embedding_scale=1.0 if scale is None else float(scale),
        softcap=getattr(config, "attn_logit_softcapping", None),
        final_softcap=getattr(config, "final_logit_softcapping", None),
        windows=windows,
        rotaries=_rotaries(body, config, family),
    )


def _rotaries(body: Any, config: Any, family: Family) -> tuple[Rotary, ...]:
    """The tables of each layer, by the model's own module; layers of one type share theirs."""
    device = body.embed_tokens.weight.device
    by_type: dict[str | None, Rotary] = {}
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = bool(parameters) and all(isinstance(value, dict) for value in parameters.values())
    types = list(config.layer_types) if by_layer_type else [None] * config.num_hidden_layers
    for kind in dict.fromkeys(types):
        positions = torch.arange(config.max_position_embeddings, device=device)[None]
        like = torch.empty(0, dtype=torch.float32, device=device)
        cos, sin = body.rotary_emb(like, positions, *([kind] if kind is not None else []))
        dims = cos.shape[-1]
        half = (cos[0, :, : dims // 2].contiguous(), sin[0, :, : dims // 2].contiguous())
        by_type[kind] = Rotary(*half, dims, family.interleaved)
    return tuple(by_type[kind] for kind in types)
