"""``docs/models.md``: its tables are what these tests find.

After a change that is meant: ``PYTHONPATH=. python tests/engine/test_models_doc.py``, then read the difference.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from refused_models import REFUSED
from tiny_models import (
    COMMON,
    DEVICE,
    Reference,
    Variant,
    assert_greedy,
    build,
    logit_errors,
    prompts_of,
    reference_of,
    served,
    variants,
)
from transformers import AutoConfig

from engine.errors import ModelError
from engine.executors import FusedExecutor, PaddedExecutor, PagedExecutor, build_executor
from engine.features import PLAIN_ARCHITECTURES, beyond_plain_attention, refuse_dtype, refuse_unsupported
from engine.fused.architecture import FAMILIES, Architecture, read_architecture, rotary_kinds
from engine.models import LoadedModel
from scheduler.config import SchedulerConfig

FILE = Path(__file__).parents[2] / "docs" / "models.md"
#: what is covered by a family, as its makers call it
MODELS = {
    "llama": "Llama 2, Llama 3 to 3.3 without vision, Yi, SmolLM2, DeepSeek-R1-Distill-Llama",
    "mistral": "Mistral 7B v0.1 to v0.3, Mistral Nemo, Mistral Small 2409 and 2501",
    "qwen2": "Qwen1.5, Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    "qwen3": "Qwen3, the dense ones",
    "phi3": "Phi-3 with 4k and 8k context, Phi-4 (14B)",
    "glm": "GLM-4-9B as converted for transformers (`glm-4-9b-chat-hf`)",
    "glm4": "GLM-4-0414, GLM-Z1",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3; of 4B and larger ones the text part",
}
PLAIN_MODELS = {
    "opt": "OPT",
    "gpt_neox": "Pythia, GPT-NeoX",
    "starcoder2": "StarCoder2",
    "olmo2": "OLMo 2",
    "smollm3": "SmolLM3",
    "mixtral": "Mixtral: a mixture of experts",
    "qwen3_moe": "Qwen3-30B-A3B and 235B-A22B: a mixture of experts",
}
#: what architectures without a family need beside the common sizes
PLAIN_EXTRAS: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2, "num_key_value_heads": 4},
    "gpt_neox": {"rotary_pct": 0.5, "num_key_value_heads": 4},
    "starcoder2": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "decoder_sparse_step": 1},
}
#: settings of a family that are refused, with the words for it
REFUSED_SETTINGS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "phi3": [({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
                                   "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}},
              "longrope (the 128k models, Phi-4-mini)")],
    "gemma3_text": [({"use_bidirectional_attention": True}, "bidirectional attention (EmbeddingGemma)")],
}  # fmt: skip
#: refused in every family
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
#: in float32; a KV memory in which requests push each other out, prompts in chunks
TIGHT: dict[str, Any] = {
    "policy": "fcfs", "kv_pool": "paged", "kv_tokens": 112, "block_tokens": 4, "max_prefill_tokens": 16,
}  # fmt: skip
PROMPT_LENGTHS = (3, 17, 33, 48)


# -- what is found out about a family


def fused(model: LoadedModel, config: SchedulerConfig) -> FusedExecutor:
    return FusedExecutor(
        model, kv_tokens=config.capacity_tokens, max_running=config.max_running, max_rows=config.rows,
        block_tokens=config.block_tokens, kv_pool=config.pool, graphs=config.graphs,
    )  # fmt: skip


def runs_plain(reference: Reference) -> bool:
    """Serve it through transformers' own modules in both layouts, or see that they refuse it; which of the two."""
    config: Any = reference.ours.model.config
    if beyond_plain_attention(config):
        with pytest.raises(ModelError, match="cannot be run in this layout"):
            PaddedExecutor(reference.ours, max_running=2)
        return False
    prompts = prompts_of(config.vocab_size, PROMPT_LENGTHS)
    for layout in ("padded", "paged"):
        tokens, scheduler = served(reference.ours, plain, prompts, layout=layout, **TIGHT)
        assert_greedy(reference, tokens, prompts)
        assert scheduler.counters.preemptions
    return True


def plain(model: LoadedModel, config: SchedulerConfig) -> Any:
    """An executor on transformers' own modules."""
    if config.layout == "padded":
        return build_executor(model, config)
    return PagedExecutor(
        model, kv_tokens=config.capacity_tokens, max_running=config.max_running, block_tokens=config.block_tokens,
        kv_pool=config.pool,
    )  # fmt: skip


def is_no_worse(family: str, dtype: torch.dtype) -> str:
    """Measure the error of logits against float32, beside transformers' own."""
    for variant in variants(family):
        errors = logit_errors(variant, dtype)
        print(
            f"{variant} in {dtype}: {errors.ratio:.2f} of transformers' error ({errors.ours:.3g}, {errors.theirs:.3g})"
        )
        assert errors.ours <= 1.05 * errors.theirs
    return "no worse"


def float16(family: str) -> str:
    """Whether the family is refused in float16; the same measurement if not."""
    try:
        refuse_dtype(AutoConfig.for_model(family), torch.float16, family)
    except ModelError:
        return "refused: overflows"
    return is_no_worse(family, torch.float16)


def row_of_family(family: str) -> str:
    """Serve all variants of a family, compare them with transformers, and say so."""
    attention: list[str] = []
    rotary: list[str] = []
    weights: list[str] = []
    in_padded: dict[bool, list[Variant]] = {True: [], False: []}
    for variant in variants(family):
        reference = reference_of(variant)
        in_padded[runs_plain(reference)].append(variant)
        model: Any = reference.ours.model
        prompts = prompts_of(model.config.vocab_size, PROMPT_LENGTHS)
        tokens, scheduler = served(reference.ours, fused, prompts, **TIGHT)
        assert_greedy(reference, tokens, prompts)
        assert scheduler.counters.preemptions
        architecture = read_architecture(model)
        attention += attention_of(model, architecture)
        rotary += rotary_of(model, architecture)
        weights += weights_of(model, architecture)
    for settings in (*(settings for settings, _ in REFUSED_SETTINGS.get(family, ())), *dynamic_rotary(family)):
        with pytest.raises(ModelError):
            refuse_unsupported(AutoConfig.for_model(family, **COMMON | settings), family)
    refused = [words for _, words in REFUSED_SETTINGS.get(family, ())]
    cells = [
        f"`{family}`",
        MODELS[family],
        listed(attention) or "plain",
        listed(rotary),
        listed(weights) or "none",
        layouts(in_padded),
        "equal",
        is_no_worse(family, torch.bfloat16),
        float16(family),
        listed(refused) or "",
    ]
    return line(cells)


def dynamic_rotary(family: str) -> list[dict[str, Any]]:
    """Settings that ask for it, where transformers lets a family have it."""
    if family == "phi3":
        return []
    if family == "gemma3_text":
        return [{"rope_parameters": {"sliding_attention": DYNAMIC, "full_attention": DYNAMIC}}]
    return [{"rope_parameters": DYNAMIC}]


def attention_of(model: Any, architecture: Architecture) -> list[str]:
    found = []
    windows = sum(window is not None for window in architecture.windows)
    if windows:
        found.append(f"sliding windows in {'all' if windows == architecture.layers else 'some'} layers")
    if architecture.softcap is not None:
        found.append("soft-capped scores")
    if architecture.final_softcap is not None:
        found.append("soft-capped logits")
    if hasattr(model.base_model.layers[0].self_attn, "q_norm"):
        found.append("norms on queries and keys")
    return found


def rotary_of(model: Any, architecture: Architecture) -> list[str]:
    found = list(rotary_kinds(model.config))
    if architecture.rotaries[0].dims < architecture.heads.dim:
        found.append("part of each head")
    if architecture.family.interleaved:
        found.append("neighbours in pairs")
    if len({id(rotary.cos) for rotary in architecture.rotaries}) > 1:
        found.append("different ones by layer")
    return found


def weights_of(model: Any, architecture: Architecture) -> list[str]:
    layer = model.base_model.layers[0]
    found = []
    qkv = getattr(layer.self_attn, "qkv_proj", None) or layer.self_attn.q_proj
    if qkv.bias is not None:
        found.append("QKV biases")
    if layer.self_attn.o_proj.bias is not None or layer.mlp.down_proj.bias is not None:
        found.append("other biases")
    if hasattr(layer.self_attn, "qkv_proj"):
        found.append("QKV merged in the file")
    if hasattr(layer.mlp, "gate_up_proj"):
        found.append("gate and up merged in the file")
    if architecture.family.norms[1] is not None:
        found.append("norms behind attention and MLP")
    if architecture.family.norm_offset:
        found.append("norm weights from 1")
    if architecture.embedding_scale != 1.0:
        found.append("scaled embeddings")
    if model.config.tie_word_embeddings:
        found.append("tied embeddings")
    return found


def layouts(in_padded: dict[bool, list[Variant]]) -> str:
    if not in_padded[True]:
        return "`paged`"
    if not in_padded[False]:
        return "`paged`, `padded`"
    assert all(variant.name == "windows" for variant in in_padded[False])
    return "`paged`; `padded` without windows"


def row_of_plain_architecture(kind: str) -> str:
    """Serve an architecture that the fused decoder does not know, compare it with transformers, and say so."""
    variant = Variant(kind, "", PLAIN_EXTRAS.get(kind, {}))
    assert kind not in FAMILIES
    assert runs_plain(reference_of(variant))
    return line([f"`{kind}`", PLAIN_MODELS[kind], "`paged`, `padded`", "equal"])


def listed(words: list[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# -- the document


FAMILY_COLUMNS = ["`model_type`", "models", "attention", "rotary positions", "weights", "layouts",
                  "greedy tokens, float32", "bfloat16", "float16", "refused"]  # fmt: skip
PLAIN_COLUMNS = ["`model_type`", "models", "layouts", "greedy tokens, float32"]
REFUSED_COLUMNS = ["feature", "models that have it", "what the message says is missing"]


def table(columns: list[str], rows: list[str]) -> str:
    return "\n".join([line(columns), "|---" * len(columns) + "|", *rows])


def refused_table() -> str:
    """The words are those that :mod:`test_refused_models` looks for."""
    return table(REFUSED_COLUMNS, [line([name, case.models, case.missing]) for name, case in REFUSED.items()])


def part(name: str) -> str:
    """What stands between the marks of a generated part."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", FILE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"docs/models.md has no part {name}"
    return found[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_what_the_document_says(family: str) -> None:
    assert row_of_family(family) in part("families").splitlines(), "see this module's docstring"


@pytest.mark.parametrize("kind", PLAIN_ARCHITECTURES)
def test_another_architecture_is_what_the_document_says(kind: str) -> None:
    assert row_of_plain_architecture(kind) in part("others").splitlines(), "see this module's docstring"


def test_the_document_has_nothing_else() -> None:
    for name, columns, kinds in (
        ("families", FAMILY_COLUMNS, FAMILIES),
        ("others", PLAIN_COLUMNS, PLAIN_ARCHITECTURES),
    ):
        lines = part(name).splitlines()
        assert "\n".join(lines[:2]) == table(columns, [])
        assert [re.findall("`([^`]+)`", row)[0] for row in lines[2:]] == list(kinds)
    assert part("refused") == refused_table(), "see this module's docstring"


def test_the_whole_of_a_family_is_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that leaves out the window is found out: the comparison can fail."""
    (variant,) = (variant for variant in variants("mistral") if variant.name == "windows")
    reference = reference_of(variant)
    prompts = prompts_of(COMMON["vocab_size"], PROMPT_LENGTHS)  # type: ignore[arg-type]

    def forgetful(model: LoadedModel, config: SchedulerConfig) -> FusedExecutor:
        executor = fused(model, config)
        object.__setattr__(executor._device.decoder.architecture, "windows", (None,) * model.layers)
        return executor

    tokens, _ = served(reference.ours, forgetful, prompts, **TIGHT)
    with pytest.raises(AssertionError):
        assert_greedy(reference, tokens, prompts)


# -- float16


def test_norms_behind_a_layer_carry_activations_out_of_float16() -> None:
    """Why such families are refused in it: nothing bounds what such a norm adds to the residual."""
    logits = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = build(Variant("gemma2", "", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
                      dtype, "eager")  # fmt: skip
        for layer in model.base_model.layers:
            layer.post_feedforward_layernorm.weight.data.fill_(3e4)
        with torch.inference_mode():
            logits[dtype] = model(torch.tensor([[5, 9, 2]], device=DEVICE), use_cache=False).logits
    assert not logits[torch.float16].isfinite().all()
    assert logits[torch.bfloat16].isfinite().all()


def _write() -> None:
    text = FILE.read_text(encoding="utf-8")
    tables = {
        "families": table(FAMILY_COLUMNS, [row_of_family(family) for family in FAMILIES]),
        "others": table(PLAIN_COLUMNS, [row_of_plain_architecture(kind) for kind in PLAIN_ARCHITECTURES]),
        "refused": refused_table(),
    }
    for name, content in tables.items():
        before, _, after = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{content}\n<!-- end -->{after.partition('<!-- end -->')[2]}"
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _write()
