"""Small random models that every rank can make by itself: what ranks are divided from, and compared with."""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto import AutoModelForCausalLM

from engine.models import LoadedModel, loaded

#: not a multiple of the ranks: the last one's part of the output layer is filled up
VOCAB = 211
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
}  # fmt: skip
#: what a family has of its own; Gemma 2 here has fewer KV heads than ranks
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "glm": {"attention_bias": True},
    "glm4": {"attention_bias": True},
    "phi3": {"sliding_window": 20, "partial_rotary_factor": 1.0},
    "gemma2": {"num_key_value_heads": 1, "sliding_window": 20, "attn_logit_softcapping": 3.0,
               "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 24, "tie_word_embeddings": True},
}  # fmt: skip
#: torch's random numbers are the process's
_SEEDING = threading.Lock()


def build(
    device: torch.device, family: str, dtype: torch.dtype = torch.float32, attention: str = "eager", **settings: Any
) -> LoadedModel:
    """The same weights in every process and on every device, biases and norms included."""
    config = AutoConfig.for_model(family, **{**COMMON, **EXTRAS.get(family, {}), **settings})
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
                if "gemma" not in family and not name.endswith("bias"):
                    parameter.data += 1
    return loaded(f"small {family}", model.to(device, dtype))


def fail_to_build(_device: torch.device) -> LoadedModel:
    raise MemoryError("no room for the weights")
