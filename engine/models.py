"""Loading a model: the embedded one, a Hugging Face name or folder, or a shape with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GlmConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from engine.attention import ATTENTION
from engine.cpu_linear import turn_linears
from engine.embedded import EMBEDDED_NAME, default_cache_folder, embedded_model_folder, quiet_transformers, say
from engine.errors import ModelError
from engine.faults import refusing_what_does_not_fit
from engine.fused.architecture import missing_features
from engine.tokenizer import Tokenizer
from scheduler.model_shapes import ModelShape, UnknownShapeError, model_shape

SHAPE_PREFIX = "shape:"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be run by an executor, and the figures of its shape that others need.

    ``tokenizer`` is ``None`` for random weights: their prompts are token ids.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer | None
    context_tokens: int
    eos_token_ids: frozenset[int]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    parameters: int

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token holds over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


@refusing_what_does_not_fit
def load_model(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    attention: str = ATTENTION,
    cache: Path | None = None,
    seed: int = 0,
    notify: Callable[[str], None] = say,
) -> LoadedModel:
    """Load a model for inference.

    ``name`` is ``None`` (the embedded model), ``shape:NAME`` (random weights of a known shape, from ``seed``), a
    folder, or a name on the Hugging Face hub. ``dtype`` defaults to float32 on a CPU and to bfloat16 elsewhere,
    ``device`` to a GPU where there is one. ``attention`` is the attention implementation: the executors need
    :data:`~engine.attention.ATTENTION`; ``"sdpa"`` gives transformers' own, for comparisons.

    Raises:
        ModelError: no such model or device, or one whose attention this engine does not compute.
        DeviceMemoryError: the device has no memory for the weights.
    """
    place = _device(device)
    precision = _dtype(dtype, place)
    if name is None or str(name) == EMBEDDED_NAME:
        folder = embedded_model_folder(cache or default_cache_folder(), notify)
        return _load_pretrained(EMBEDDED_NAME, str(folder), precision, place, attention)
    if str(name).startswith(SHAPE_PREFIX):
        return _load_shape(str(name), precision, place, attention, seed)
    return _load_pretrained(str(name), _pretrained_place(name), precision, place, attention)


def config_of_shape(shape: ModelShape) -> PreTrainedConfig:
    """The transformers configuration of a model of this shape.

    Weights are drawn with standard deviation ``hidden ** -0.5``, which keeps activations at one scale at any width.
    """
    common: dict[str, Any] = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context_tokens,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.family == "opt":
        return OPTConfig(
            ffn_dim=shape.intermediate, word_embed_proj_dim=shape.hidden, init_std=shape.hidden**-0.5, **common
        )
    common |= {
        "intermediate_size": shape.intermediate,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "initializer_range": shape.hidden**-0.5,
    }
    rope = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.family == "glm":
        rope["partial_rotary_factor"] = 0.5
        return GlmConfig(attention_bias=shape.qkv_bias, rope_parameters=rope, **common)
    classes: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    config: PreTrainedConfig = classes[shape.family](rope_parameters=rope, **common)
    return config


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {str(device)!r} (valid: cpu, cuda, cuda:N)") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {str(device)!r}: no CUDA device is available here; use cpu")
    return place


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r} (valid: {', '.join(DTYPES)})")
    return DTYPES[dtype]


def _pretrained_place(name: str | Path) -> str:
    """What ``from_pretrained`` is given; a path that is there must be a model folder."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the weights")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is not a model folder: it has no config.json")
        return str(path)
    if isinstance(name, Path) or path.is_absolute() or str(name).startswith((".", "~")):
        raise ModelError(f"{name} does not exist; give a model folder, a Hugging Face name or shape:NAME")
    return str(name)


def _load_pretrained(name: str, place: str, dtype: torch.dtype, device: torch.device, attention: str) -> LoadedModel:
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(place)
            refuse_unsupported(config, name)
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, attn_implementation=attention)
            tokenizer = Tokenizer(AutoTokenizer.from_pretrained(place))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"cannot load model {name!r}: {reason[:300]} (a model is a local folder, a Hugging Face name, which needs "
            "the network unless it is in its cache, or shape:NAME)"
        ) from error
    return loaded(name, _placed(model, device, attention), tokenizer)


def _placed(model: Any, device: torch.device, attention: str) -> Any:
    """The model on its device; for the executors on a CPU, with the products that suit few rows."""
    if device.type == "cpu" and attention == ATTENTION:
        turn_linears(model)
    return model.to(device)


def _load_shape(name: str, dtype: torch.dtype, device: torch.device, attention: str, seed: int) -> LoadedModel:
    try:
        shape = model_shape(name.removeprefix(SHAPE_PREFIX))
    except UnknownShapeError as error:
        raise ModelError(str(error)) from error
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config_of_shape(shape), dtype=dtype, attn_implementation=attention)
    return loaded(name, _placed(model, device, attention), None)


def loaded(name: str, model: Any, tokenizer: Tokenizer | None = None) -> LoadedModel:
    """A :class:`LoadedModel` of a transformers model that is there already, on its device, with its dtype.

    Raises:
        ModelError: the executors do not compute this model's attention.
    """
    config = model.config
    refuse_unsupported(config, name)
    model.eval().requires_grad_(False)
    heads = config.num_attention_heads
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        context_tokens=config.max_position_embeddings,
        eos_token_ids=_end_tokens(model),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _end_tokens(model: Any) -> frozenset[int]:
    """The end tokens of the generation config, which is the one that chat models keep right."""
    generation: GenerationConfig | None = model.generation_config
    ids = generation.eos_token_id if generation is not None else None
    if ids is None:
        return frozenset()
    return frozenset(ids) if isinstance(ids, list) else frozenset([ids])


def refuse_unsupported(config: PreTrainedConfig, name: str) -> None:
    """Raise :class:`ModelError` for a model whose mathematics no executor computes, naming what it is."""
    found = beyond_plain_attention(config)
    if found and missing_features(config):
        raise ModelError(f"model {name!r} cannot be run by this engine: it uses {', '.join(found)}")


def beyond_plain_attention(config: PreTrainedConfig) -> list[str]:
    """What a model of this configuration needs that the executors on transformers' own modules do not compute."""
    found = []
    if config.is_encoder_decoder:
        found.append("an encoder beside its decoder")
    if not isinstance(getattr(config, "num_attention_heads", None), int):
        found.append(f"an architecture ({config.model_type}) without plain decoder attention")
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        found.append(f"an architecture ({config.model_type}) that names no longest context")
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if other:
        found.append(f"layers of other kinds ({', '.join(sorted(other))})")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and _slides(config):
        found.append(f"a sliding window of {window} tokens")
    for field, plain in (("attn_logit_softcapping", None), ("final_logit_softcapping", None),
                         ("logits_scaling", 1.0), ("logit_scale", 1.0), ("alibi", False)):  # fmt: skip
        value = getattr(config, field, plain)
        if value is not None and value != plain:
            found.append(f"{field} = {value}")
    return found


def _slides(config: PreTrainedConfig) -> bool:
    """Whether a layer really uses the window that the configuration names."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return "sliding_attention" in layer_types
    return bool(getattr(config, "use_sliding_window", True))
