"""The fused decoder against transformers, for a tiny random model of every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import DEVICE, VARIANTS, DecoderSequence, Variant, build, prompt
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError
from engine.fused.architecture import FAMILIES, missing_features, read_architecture
from engine.fused.decoder import Decoder
from engine.fused.device import DecodeInputs, DeviceSettings, FusedDevice, MixedInputs
from engine.fused.packing import COLUMNS, SLOT, PromptSizes, prompt_lines
from engine.fused.prompts import nothing
from engine.kernels import reference
from engine.models import load_model, loaded


def test_every_family_has_a_variant() -> None:
    assert {variant.family for variant in VARIANTS} == set(FAMILIES)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_and_greedy_tokens_are_transformers(variant: Variant) -> None:
    """Chunks of a prompt longer than any window, then decode rows; float32."""
    with torch.inference_mode():
        ids = prompt()
        model = build(variant, torch.float32, "eager")
        expected = model.generate(
            torch.tensor([ids], device=DEVICE), max_new_tokens=12, do_sample=False, use_cache=True
        )[0]
        reference = model(expected[None], use_cache=False).logits[0].float()

        ours = loaded(str(variant), model)
        sequence = DecoderSequence(Decoder(ours), ours)
        found = [sequence.run(ids[:17]), sequence.run(ids[17:18]), sequence.run(ids[18:])]
        tokens = list(ids)
        for _ in range(12):
            tokens.append(int(found[-1][-1].argmax()))
            found.append(sequence.run(tokens[-1:], as_row=True))

        assert tokens == expected.tolist()
        torch.testing.assert_close(torch.cat(found), reference, rtol=1e-3, atol=1e-3)
        # the merged weights still serve transformers
        torch.testing.assert_close(model(expected[None], use_cache=False).logits[0].float(), reference)


@pytest.mark.parametrize(
    ("family", "settings", "missing"),
    [
        ("gpt2", {}, "the architecture gpt2"),
        ("mixtral", {}, "the architecture mixtral with its mixture of experts"),
        ("llama", {"hidden_act": "relu2"}, "the activation relu2"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rotary positions of kind dynamic"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(family: str, settings: dict[str, Any], missing: str) -> None:
    config = AutoConfig.for_model(family, **settings)
    assert missing in ", ".join(missing_features(config))


def test_a_model_of_another_kind_is_refused() -> None:
    config = AutoConfig.for_model("opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
                                  ffn_dim=32, word_embed_proj_dim=32)  # fmt: skip
    with pytest.raises(ModelError, match="the architecture opt"):
        read_architecture(AutoModelForCausalLM.from_config(config))


class Products:
    """The plain kernels; remembers the products for few rows: which, the weight's shape, and whether in parts."""

    def __init__(self) -> None:
        self.met: list[tuple[int, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def skinny_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: Any = None, *, parts: bool = False) -> Any:
        self.met.append((len(x), ("linear", *weight.shape, bias is None, parts)))
        return reference.skinny_linear(x, weight, bias)

    def skinny_gated(self, x: torch.Tensor, weight: torch.Tensor, activation: Any) -> Any:
        self.met.append((len(x), ("gated", *weight.shape)))
        return reference.skinny_gated(x, weight, activation)


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gemma2", "llama"])
def test_what_is_tuned_before_are_the_products_of_a_decode_step(family: str) -> None:
    variant = next(variant for variant in VARIANTS if variant.family == family)
    with torch.inference_mode():
        model = loaded(family, build(variant, torch.float32, "eager"))
        kernels: Any = Products()
        decoder = Decoder(model, kernels)
        sequence = DecoderSequence(decoder, model)
        sequence.run(prompt()[:5])
        kernels.met.clear()
        sequence.run(prompt()[5:6], as_row=True)
        needed = {product for _, product in kernels.met}
        kernels.met.clear()
        decoder.tune(100)
    assert {rows for rows, _ in kernels.met} == {16, 32, 64, 128}
    assert {product for rows, product in kernels.met if rows == 16} == needed


@pytest.mark.gpu
def test_no_tiles_are_searched_once_an_executor_is_made() -> None:
    """Not in a capture, nor where a step's memory is measured."""
    from engine.kernels.skinny import best_tiles

    model = load_model("shape:tiny", device="cuda")
    device = FusedDevice(model, DeviceSettings(64, 16, 100, 100))
    searched = best_tiles.cache_info().misses
    assert searched
    with torch.inference_mode():
        for rows in (1, 16, 17, 33, 64, 65, 100):
            numbers = np.zeros((COLUMNS, rows), dtype=np.int64)
            numbers[SLOT] = -1
            device.compute(DecodeInputs(numbers))
    assert best_tiles.cache_info().misses == searched


@pytest.mark.gpu
def test_no_attention_is_compiled_once_an_executor_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for prompts beside rows either, whatever their numbers: that took a second while somebody waited."""
    from engine.kernels import launching

    monkeypatch.setattr(launching, "_COMPILED", {})

    def attention() -> set[Any]:
        return {key for key in launching._COMPILED if key[0].__name__ in ("_decode_kernel", "_prefill_kernel")}

    device = FusedDevice(load_model("shape:tiny", device="cuda"), DeviceSettings(64, 16, 100, 100))
    compiled = attention()
    assert compiled
    for chunks, rows in ((1, 1), (1, 2), (2, 40), (3, 7), (4, 100), (5, 33)):
        sizes = PromptSizes(8 * chunks + rows, chunks, rows, 0)
        numbers = nothing(sizes, 100)
        lines = prompt_lines(numbers, sizes)
        lines.offsets[:] = range(rows, rows + 8 * chunks + 1, 8)
        lines.lengths[:] = 1
        with torch.inference_mode():
            device.compute(MixedInputs(numbers, sizes, 8))
    assert attention() == compiled
