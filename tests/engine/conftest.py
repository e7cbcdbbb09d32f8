"""Small random models, and what transformers' own ``generate`` says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tiny_models import Reference
from transformers import Glm4Config, LlamaConfig, OPTConfig, PreTrainedConfig, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

from engine.attention import ATTENTION
from engine.models import load_model, loaded

# small products gain nothing from threads, and lose much where other processes want the cores
torch.set_num_threads(1)

VOCAB = 512


def _configs() -> dict[str, PreTrainedConfig]:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    opt = {key: value for key, value in common.items() if key not in ("intermediate_size", "num_key_value_heads")}
    return {
        "qwen2": Qwen2Config(**common),
        "llama": LlamaConfig(**common),
        "glm4": Glm4Config(head_dim=8, **common),
        "opt": OPTConfig(ffn_dim=96, word_embed_proj_dim=48, init_std=0.2, **opt),
    }


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Reference]:
    """A small random model by family, with its twin."""
    made: dict[str, Reference] = {}

    def make(family: str) -> Reference:
        if family not in made:
            config = _configs()[family]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                theirs = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
                ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION)
            ours.load_state_dict(theirs.state_dict())
            made[family] = Reference(loaded(f"small {family}", ours), loaded(f"small {family}", theirs))
        return made[family]

    return make


@pytest.fixture(scope="session")
def embedded() -> Reference:
    """The embedded model, with its twin."""
    return Reference(
        load_model(dtype="float32", device="cpu"), load_model(dtype="float32", device="cpu", attention="sdpa")
    )
