"""Merged weights are not held beside the ones that they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.auto import AutoModelForCausalLM

from engine.fused.architecture import FAMILIES
from engine.fused.weights import LayerWeights, merge_layer

LAYERS = 6
#: 4 x 8 MB of attention and 3 x 16 MB of MLP a layer, in bfloat16
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=2048, intermediate_size=4096, num_hidden_layers=LAYERS, num_attention_heads=16,
    num_key_value_heads=16, max_position_embeddings=64,
)  # fmt: skip


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind ``tensors``, each piece of it once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def tensors_of(weights: LayerWeights) -> list[Tensor]:
    values: list[Any] = [getattr(weights, field.name) for field in fields(weights)]
    each = [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]
    return [tensor for tensor in each if tensor is not None]


def test_after_each_layer_the_weights_are_there_once() -> None:
    config = LlamaConfig.from_dict({**CONFIG.to_dict(), "hidden_size": 64, "intermediate_size": 96})
    model: Any = AutoModelForCausalLM.from_config(config)
    before = held_bytes(model.parameters())
    merged: list[Tensor] = []
    for layer in model.base_model.layers:
        merged += tensors_of(merge_layer(layer, FAMILIES["llama"]))
        assert held_bytes([*model.parameters(), *merged]) == before


@pytest.mark.gpu
def test_merging_takes_the_memory_of_one_layer(tmp_path: Any) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    model.save_pretrained(tmp_path)
    del model
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cuda"}, dtype=torch.bfloat16)
    layer_bytes = held_bytes(model.base_model.layers[0].parameters())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = [merge_layer(layer, FAMILIES["llama"]) for layer in model.base_model.layers]
    assert len(kept) == LAYERS
    assert torch.cuda.max_memory_allocated() - before <= layer_bytes
    assert torch.cuda.memory_allocated() == before
