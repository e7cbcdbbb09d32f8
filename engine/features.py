"""Which models can be run: what a configuration asks for, and a sentence for what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

from engine.errors import ModelError
from engine.fused.architecture import FAMILIES, missing_features, unfixed_rotary_kinds

#: architectures that tests run through transformers' own modules, beside the families of the fused decoder
PLAIN_ARCHITECTURES = ("opt", "gpt_neox", "starcoder2", "olmo2", "smollm3", "mixtral", "qwen3_moe")
#: features that an architecture has without a word in its configuration
_OWN_FEATURES = {
    "gpt_oss": "attention sinks",
    "bloom": "ALiBi position biases",
    "mpt": "ALiBi position biases",
    "doge": "an attention mask made from the values",
    "rwkv": "a recurrence in place of attention",
    "recurrent_gemma": "recurrent layers",
}
_LAYER_KINDS = {
    "linear_attention": "linear attention layers",
    "chunked_attention": "attention within chunks of the context",
    "conv": "convolution layers",
    "hybrid": "layers that mix attention with a recurrence",
}
#: architectures whose code comes with their checkpoints, and their makers' models that transformers carries
_CARRIED_INSTEAD = {
    "qwen": "use Qwen1.5, Qwen2 or Qwen2.5 (model_type qwen2) or Qwen3 (qwen3)",
    "chatglm": "use GLM-4 as converted for transformers (names ending in -hf, model_type glm) or GLM-4-0414 (glm4)",
}


def refuse_description(description: Mapping[str, Any], name: str) -> None:
    """Refuse what the words of a ``config.json`` rule out, before transformers makes anything of them.

    Raises:
        ModelError: the architecture is not one that transformers carries, or the weights are quantised.
    """
    kind = description.get("model_type")
    if kind is None:
        raise ModelError(f"model {name!r}: its config.json names no model_type, so that nobody knows what it is")
    if kind not in CONFIG_MAPPING:
        if "auto_map" in description:
            instead = _CARRIED_INSTEAD.get(kind, "use a model whose architecture transformers carries")
            raise ModelError(
                f"model {name!r} cannot be run by this engine: its architecture ({kind}) is code that comes with the "
                f"checkpoint (trust_remote_code), which is never run here; {instead}"
            )
        raise ModelError(
            f"model {name!r} cannot be run by this engine: transformers {transformers.__version__} does not carry the "
            f"architecture {kind}; a newer transformers may"
        )
    quantization = description.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else "?"
        raise ModelError(
            f"model {name!r} cannot be run by this engine: it has quantised weights ({method}); use the checkpoint in "
            "bfloat16, float16 or float32 that it was made from"
        )


def refuse_unsupported(config: PreTrainedConfig, name: str) -> None:
    """Raise :class:`~engine.errors.ModelError` for a model that no executor computes, naming what it has."""
    found = beyond_any_executor(config)
    if found:
        raise ModelError(f"model {name!r} cannot be run by this engine: it has {', '.join(found)}")
    beyond = beyond_plain_attention(config)
    missing = missing_features(config) if beyond else []
    if missing:
        raise ModelError(
            f"model {name!r} cannot be run by this engine: it has {', '.join(beyond)}, which only the fused decoder "
            f"computes, and that lacks {', '.join(missing)}"
        )


def refuse_dtype(config: PreTrainedConfig, dtype: torch.dtype, name: str) -> None:
    """Raise :class:`~engine.errors.ModelError` for a model whose activations leave the range of ``dtype``.

    Norms behind attention and MLP add outputs of any size to the residual: trained models of such families go beyond
    float16's 65,504.
    """
    family = FAMILIES.get(config.model_type)
    if dtype == torch.float16 and family is not None and family.norms[1] is not None:
        raise ModelError(
            f"model {name!r} cannot be run in float16: the activations of {config.model_type} models overflow it; use "
            "--dtype bfloat16 or float32"
        )


def beyond_any_executor(config: PreTrainedConfig) -> list[str]:
    """What a model of this configuration needs that no executor computes; empty if nothing is known."""
    found = []
    parts = sorted(key.removesuffix("_config") for key in config.sub_configs if key != "text_config")
    if config.is_encoder_decoder:
        found.append("an encoder beside its decoder")
    elif "text_config" in config.sub_configs:
        found.append(f"parts beside its text decoder ({', '.join(parts) or config.model_type})")
    if getattr(config, "quantization_config", None) is not None:
        found.append("quantised weights")
    if getattr(config, "kv_lora_rank", None):
        found.append(f"multi-head latent attention (kv_lora_rank = {config.kv_lora_rank})")
    if getattr(config, "alibi", False):
        found.append("ALiBi position biases")
    if getattr(config, "num_kv_shared_layers", 0):
        found.append(f"layers that share keys and values (num_kv_shared_layers = {config.num_kv_shared_layers})")
    if getattr(config, "use_bidirectional_attention", False) or type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        found.append("attention in both directions")
    if _is_state_space(config):
        found.append("state-space (Mamba) layers")
    else:
        others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        found += [_LAYER_KINDS.get(kind, f"layers of kind {kind}") for kind in sorted(others)]
    found += [
        f"rotary positions of kind {kind}, which change with the length of a sequence"
        for kind in unfixed_rotary_kinds(config)
    ]
    if config.model_type in _OWN_FEATURES:
        found.append(_OWN_FEATURES[config.model_type])
    return found or _unknown_attention(config)


def _is_state_space(config: PreTrainedConfig) -> bool:
    return "mamba" in config.model_type or any(key.startswith(("mamba_", "ssm_")) for key in config.to_dict())


def _unknown_attention(config: PreTrainedConfig) -> list[str]:
    """What shows that a model does not have the attention that executors put their own in the place of."""
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [f"an architecture ({kind}) that transformers does not carry as a causal language model"]
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not causal.is_backend_compatible():
        return [f"an attention of its own ({kind}), in whose place no other can be put"]
    if not isinstance(getattr(config, "num_attention_heads", None), int) or hasattr(config, "attn_config"):
        return [f"an architecture ({kind}) without plain decoder attention"]
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        return [f"an architecture ({kind}) that names no longest context"]
    return []


def beyond_plain_attention(config: PreTrainedConfig) -> list[str]:
    """What a model of this configuration needs that the executors on transformers' own modules do not compute."""
    found = beyond_any_executor(config)
    if found:
        return found
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and _slides(config):
        found.append(f"a sliding window of {window} tokens")
    for field, plain in (("attn_logit_softcapping", None), ("final_logit_softcapping", None),
                         ("logits_scaling", 1.0), ("logit_scale", 1.0), ("lm_head_multiplier", 1.0)):  # fmt: skip
        value = getattr(config, field, plain)
        if value is not None and value != plain:
            found.append(f"{field} = {value}")
    return found


def is_tested(config: PreTrainedConfig) -> bool:
    """Whether tests compare models of this architecture with transformers; see ``docs/models.md``."""
    return config.model_type in FAMILIES or config.model_type in PLAIN_ARCHITECTURES


def _slides(config: PreTrainedConfig) -> bool:
    """Whether a layer really uses the window that the configuration names."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return "sliding_attention" in layer_types
    return bool(getattr(config, "use_sliding_window", True))
