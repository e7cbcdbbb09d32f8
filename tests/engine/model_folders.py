"""Model folders on disk, for what is read from them: tiny random weights in shards, and a tokenizer of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto import AutoModelForCausalLM

from engine.embedded import quiet_transformers

NO_SPECIAL_TOKENS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
TINY = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, **NO_SPECIAL_TOKENS,
)  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are the numbers below 64."""
    words = Tokenizer(models.WordLevel({str(number): number for number in range(64)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def write_model(folder: Path, config: PreTrainedConfig = TINY, shard: str = "8KB") -> Any:
    """Random weights of ``config`` in shards of at most ``shard``; the model that they are of."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return model


def write_large_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, shard: str) -> None:
    """The same without drawing random numbers, which takes long: weights are all alike."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
