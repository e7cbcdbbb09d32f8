"""Loading a model: the embedded one, a Hugging Face name or folder, or a shape with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
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
from engine.checkpoints import read_model, text_part
from engine.cpu_linear import turn_linears
from engine.embedded import EMBEDDED_NAME, default_cache_folder, embedded_model_folder, quiet_transformers, say
from engine.errors import ModelError
from engine.faults import refusing_what_does_not_fit
from engine.features import is_tested, refuse_description, refuse_dtype, refuse_unsupported
from engine.pretrained import ask_hub, pretrained_place, read_tokenizer
from engine.tokenizer import Tokenizer
from scheduler.model_shapes import ModelShape, UnknownShapeError, model_shape

if TYPE_CHECKING:
    from engine.parallel.group import TensorGroup

SHAPE_PREFIX = "shape:"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be run by an executor, and the figures of its shape that others need.

    ``tokenizer`` is ``None`` for random weights: their prompts are token ids. Of a model that is divided over the ranks
    of a ``group``, ``model``, ``heads``, ``kv_heads`` and the KV bytes are this rank's share.
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
    group: TensorGroup | None = None

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
    progress: bool = True,
) -> LoadedModel:
    """Load a model for inference.

    ``name`` is ``None`` (the embedded model), ``shape:NAME`` (random weights of a known shape, from ``seed``), a
    folder, or a name on the Hugging Face hub. ``dtype`` defaults to float32 on a CPU and to bfloat16 elsewhere,
    ``device`` to a GPU where there is one. ``attention`` is the attention implementation: the executors need
    :data:`~engine.attention.ATTENTION`; ``"sdpa"`` gives transformers' own, for comparisons. ``progress``: a bar while
    weights are read, on standard error if that is a terminal.

    Weights in ``dtype`` on a CPU stay in the pages of their files: do not overwrite a model's files while it is in use.

    Raises:
        ModelError: no such model or device, one whose mathematics this engine does not compute, or a checkpoint with
            something missing. The message has one line.
        DeviceMemoryError: the device has no memory for the weights.
    """
    place = _device(device)
    precision = _dtype(dtype, place)
    if name is None or str(name) == EMBEDDED_NAME:
        folder = embedded_model_folder(cache or default_cache_folder(), notify)
        return _load_pretrained(EMBEDDED_NAME, str(folder), precision, place, attention, notify, progress)
    if str(name).startswith(SHAPE_PREFIX):
        return _load_shape(str(name), precision, place, attention, seed)
    return _load_pretrained(str(name), pretrained_place(name), precision, place, attention, notify, progress)


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


def _load_pretrained(
    name: str,
    place: str,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    notify: Callable[[str], None],
    progress: bool,
) -> LoadedModel:
    only_local = Path(place).is_dir() or ask_hub(place)
    with quiet_transformers():
        config = _configuration(name, place, only_local)
        text = text_part(config)
        refuse_unsupported(text, name)
        refuse_dtype(text, dtype, name)
        tokenizer = read_tokenizer(name, place, only_local)
    try:
        with _room_for_weights(name, text, dtype, device):
            model = read_model(
                name, place, config, dtype=dtype, device=device, attention=attention, notify=notify, progress=progress,
                only_local=only_local,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unreadable(name, place, only_local, error) from error
    if not is_tested(text):
        notify(f"{name}: no test compares {text.model_type} models with transformers' own; check some outputs first")
    return loaded(name, _placed(model, device, attention), tokenizer)


def _configuration(name: str, place: str, only_local: bool) -> PreTrainedConfig:
    """What ``config.json`` says, if transformers can make something of it."""
    try:
        description, _ = PreTrainedConfig.get_config_dict(place, local_files_only=only_local)
        refuse_description(description, name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place, local_files_only=only_local, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, StrictDataclassError) as error:
        raise _unreadable(name, place, only_local, error) from error
    return config


def _unreadable(name: str, place: str, only_local: bool, error: Exception) -> ModelError:
    """The error in a line, with what a model's name may be."""
    if only_local and not Path(place).is_dir():
        return ModelError(
            f"{name!r} is neither a folder nor complete in the cache of Hugging Face models, and the hub cannot be "
            "reached; give a model folder or shape:NAME, or connect once"
        )
    return ModelError(
        f"cannot load model {name!r}: {' '.join(str(error).split())[:300]} (a model is a local folder, a Hugging Face "
        "name, which needs the network unless it is in its cache, or shape:NAME)"
    )


@contextmanager
def _room_for_weights(name: str, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Turn a lack of device memory while weights are put there into a :class:`ModelError` with the numbers."""
    free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
    try:
        yield
    except torch.OutOfMemoryError as error:
        build: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            weights = sum(parameter.nbytes for parameter in build(config, dtype=dtype).parameters())
        raise ModelError(
            f"the weights of model {name!r} take {weights / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}, and of "
            f"the {total / 1e9:.1f} GB of {device} {free / 1e9:.1f} GB were free; free memory there, or use a smaller "
            "model, a shorter dtype or several GPUs"
        ) from error


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
    config = config_of_shape(shape)
    devices = [device] if device.type == "cuda" else []
    with _room_for_weights(name, config, dtype, device), torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config, dtype=dtype, attn_implementation=attention)
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
