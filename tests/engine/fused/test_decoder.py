"""The fused decoder against transformers, for a tiny random model of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.fused.architecture import FAMILIES
from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.models import loaded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_TOKENS = 16
COMMON = {
    "vocab_size": 211, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
}  # fmt: skip
#: what a family has of its own
EXTRAS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "phi3": {"sliding_window": 20},
    "glm": {"attention_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "glm4": {"attention_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 20, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
               "query_pre_attn_scalar": 24, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 20, "query_pre_attn_scalar": 24, "tie_word_embeddings": True},
}  # fmt: skip


def build(family: str, dtype: torch.dtype, attention: str) -> Any:
    config = AutoConfig.for_model(family, **COMMON | EXTRAS.get(family, {}))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
            if "gemma" not in family and not name.endswith("bias"):
                parameter.data += 1
    return model.to(DEVICE, dtype).eval()


class Sequence:
    """One sequence that a decoder runs over paged KV in shuffled blocks."""

    def __init__(self, decoder: Decoder, model: Any) -> None:
        self.decoder = decoder
        self.cache = KvCache(model, 9, BLOCK_TOKENS)
        for tensor in self.cache.keys + self.cache.values:
            tensor.fill_(torch.nan)
        self.blocks = torch.tensor([5, 2, 7, 0, 8, 3, 1, 6], device=DEVICE)
        self.done = 0

    def run(self, ids: list[int], as_row: bool = False) -> torch.Tensor:
        """Logits after each of ``ids``, which are run as one chunk or (one of them) as a decode row."""
        positions = torch.arange(self.done, self.done + len(ids), device=DEVICE)
        slots = self.blocks[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        tables = self.blocks[None].int()
        chunks = rows = None
        if as_row:
            rows = Rows(tables, torch.tensor([self.done + 1], dtype=torch.int32, device=DEVICE))
        else:
            starts = torch.tensor([self.done], dtype=torch.int32, device=DEVICE)
            offsets = torch.tensor([0, len(ids)], dtype=torch.int32, device=DEVICE)
            chunks = Chunks(len(ids), tables, starts, offsets, len(ids))
        self.done += len(ids)
        step = StepTensors(torch.tensor(ids, device=DEVICE), positions, slots, chunks, rows)
        return self.decoder.logits(self.decoder.forward(step, self.cache)).float()


def prompt() -> list[int]:
    return torch.randint(0, 211, (45,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_transformers(family: str) -> None:
    """Chunks of a prompt longer than any window, then decode rows; float32."""
    with torch.inference_mode():
        ids = prompt()
        model = build(family, torch.float32, "eager")
        expected = model.generate(
            torch.tensor([ids], device=DEVICE), max_new_tokens=12, do_sample=False, use_cache=True
        )[0]
        reference = model(expected[None], use_cache=False).logits[0].float()

        ours = loaded(family, model)
        sequence = Sequence(Decoder(ours), ours)
        found = [sequence.run(ids[:17]), sequence.run(ids[17:18]), sequence.run(ids[18:])]
        tokens = list(ids)
        for _ in range(12):
            tokens.append(int(found[-1][-1].argmax()))
            found.append(sequence.run(tokens[-1:], as_row=True))

        assert tokens == expected.tolist()
        torch.testing.assert_close(torch.cat(found), reference, rtol=1e-3, atol=1e-3)
        # the merged weights still serve transformers
        torch.testing.assert_close(model(expected[None], use_cache=False).logits[0].float(), reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_worse_than_transformers(family: str) -> None:
    with torch.inference_mode():
        ids = prompt()
        exact = build(family, torch.float32, "eager")(torch.tensor([ids], device=DEVICE), use_cache=False).logits[0]
        model = build(family, torch.bfloat16, "eager")
        theirs = model(torch.tensor([ids], device=DEVICE), use_cache=False).logits[0].float()
        ours = loaded(family, model)
        found = Sequence(Decoder(ours), ours).run(ids)
        assert (found - exact).norm() <= 1.1 * (theirs - exact).norm()


@pytest.mark.parametrize(
    ("family", "settings", "missing"),
    [
        ("gpt2", {}, "the architecture gpt2"),
        ("mixtral", {}, "the architecture mixtral"),
        ("llama", {"hidden_act": "relu2"}, "the activation relu2"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rotary positions of kind dynamic"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(family: str, settings: dict[str, Any], missing: str) -> None:
    config = AutoConfig.for_model(family, **settings)
    from engine.fused.architecture import missing_features

    assert missing in ", ".join(missing_features(config))


def test_a_model_of_another_kind_is_refused() -> None:
    config = AutoConfig.for_model("opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
                                  ffn_dim=32, word_embed_proj_dim=32)  # fmt: skip
    from engine.fused.architecture import read_architecture

    with pytest.raises(ModelError, match="the architecture opt"):
        read_architecture(AutoModelForCausalLM.from_config(config))
