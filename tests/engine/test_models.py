"""Loading models: the table of shapes is right, and what cannot be loaded is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, MistralConfig, Qwen2Config, T5Config
from transformers.models.auto import AutoModelForCausalLM

from engine import models
from engine.errors import ModelError
from engine.executors import PagedExecutor
from engine.features import beyond_plain_attention, refuse_unsupported
from engine.models import config_of_shape, load_model
from scheduler.model_shapes import MODEL_SHAPES, UnknownShapeError, model_shape


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_a_shape_has_the_parameters_of_the_model_built_from_it(name: str) -> None:
    shape = MODEL_SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of_shape(shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-2-7b", 6.738), ("llama-3-8b", 8.030), ("qwen2.5-7b", 7.616), ("mistral-7b", 7.242)]
)
def test_known_models_have_their_published_size(name: str, billions: float) -> None:
    assert model_shape(name).parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_kv_bytes_and_weight_bytes_of_llama() -> None:
    shape = model_shape("LLAMA-2-7B")
    assert shape.kv_bytes_per_token() == 524_288
    assert shape.weight_bytes("float32") == 4 * shape.parameters
    with pytest.raises(ValueError, match="float32"):
        shape.weight_bytes("float31")


def test_random_weights_repeat_with_their_seed() -> None:
    one, same, other = (load_model("shape:tiny", device="cpu", seed=seed) for seed in (1, 1, 2))
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.model.get_parameter(weight), same.model.get_parameter(weight))
    assert not torch.equal(one.model.get_parameter(weight), other.model.get_parameter(weight))


def test_loading_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    load_model("shape:tiny", device="cpu")
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_figures_of_a_loaded_model_are_its_shape() -> None:
    model = load_model("shape:tiny", device="cpu", dtype="bfloat16")
    shape = model_shape("tiny")
    assert (model.layers, model.heads, model.kv_heads, model.head_dim) == (2, 4, 2, 16)
    assert model.parameters == shape.parameters
    assert model.kv_bytes_per_token == shape.kv_bytes_per_token(2)
    assert model.dtype == torch.bfloat16
    assert model.tokenizer is None


def test_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean llama-2-7b"):
        load_model("shape:llama2-7b")
    with pytest.raises(UnknownShapeError, match=r"qwen2\.5-7b"):
        model_shape("qwen25-7b")


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "missing")
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file"):
        load_model(file)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_told_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    config = config_of_shape(model_shape("qwen-7b"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9_000_000_000, 24_000_000_000))
    with pytest.raises(ModelError) as caught, models._room_for_weights(
        "big", config, torch.bfloat16, torch.device("cuda:1")
    ):  # fmt: skip
        build()
    weights, device, advice = str(caught.value).replace(", and", ";").split("; ")
    assert weights == "the weights of model 'big' take 15.4 GB in bfloat16"
    assert device == "of the 24.0 GB of cuda:1 9.0 GB were free"
    assert "several GPUs" in advice


def test_unknown_device_and_dtype_are_named() -> None:
    with pytest.raises(ModelError, match="unknown device 'tpux'"):
        load_model("shape:tiny", device="tpux")
    with pytest.raises(ModelError, match="float32, float16, bfloat16"):
        load_model("shape:tiny", dtype="float17")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(sliding_window=64, max_position_embeddings=128, hidden_act="relu2"), "sliding window of 64"),
        (T5Config(), "encoder"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_mathematics_that_is_not_computed_is_refused_by_name(config: Any, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        refuse_unsupported(config, "some model")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MistralConfig(sliding_window=64, max_position_embeddings=128), "sliding window of 64"),
        (Gemma2Config(), "softcapping"),
        (Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1), "sliding window of 64"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_only_the_fused_decoder_computes(config: Any, what: str) -> None:
    refuse_unsupported(config, "some model")
    assert what in ", ".join(beyond_plain_attention(config))


def test_a_window_wider_than_the_context_does_not_matter() -> None:
    refuse_unsupported(MistralConfig(sliding_window=128, max_position_embeddings=128), "some model")


def test_an_executor_refuses_a_model_with_other_attention() -> None:
    with pytest.raises(ModelError, match="'sdpa'"):
        PagedExecutor(load_model("shape:tiny", device="cpu", attention="sdpa"), kv_tokens=64, max_running=1)
