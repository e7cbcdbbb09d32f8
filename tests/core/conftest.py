"""A model that loads at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

import engine.parallel.loading
from engine.attention import ATTENTION
from engine.models import LoadedModel, loaded


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model instead of the embedded one; its tokens are bytes."""
    config = Qwen2Config(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)

    def load(*_: Any, **__: Any) -> LoadedModel:
        return loaded("small", model)

    # by name, where it is used: whoever imports the module first would keep this one
    monkeypatch.setattr(engine.parallel.loading, "load_model", load)
