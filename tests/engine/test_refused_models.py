"""What no executor computes is refused by name, from a model's ``config.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refused_models import REFUSED, SIZES
from transformers import AutoConfig

from engine.checkpoints import WEIGHTS
from engine.errors import ModelError
from engine.features import refuse_dtype
from engine.models import load_model


def refusal(folder: Path, description: dict[str, Any]) -> str:
    """What loading a folder with this ``config.json`` says."""
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("feature", REFUSED)
def test_a_missing_feature_is_named(tmp_path: Path, feature: str) -> None:
    case = REFUSED[feature]
    said = refusal(tmp_path, case.description)
    assert case.missing in said
    assert said.startswith(f"model '{tmp_path}' cannot be run by this engine: ")
    assert "\n" not in said


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    """Not even where transformers has a model of that name too."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "modeling_llama.py").write_text(code)
    (tmp_path / "configuration_llama.py").write_text(code)
    mapped = {"AutoConfig": "configuration_llama.Config", "AutoModelForCausalLM": "modeling_llama.Model"}
    for model_type in ("llama", "nobodys"):
        refusal(tmp_path, {"model_type": model_type, "auto_map": mapped, **SIZES})
    assert not (tmp_path / "ran").exists()


def test_a_config_without_a_type_is_named(tmp_path: Path) -> None:
    assert "names no model_type" in refusal(tmp_path, SIZES)


def test_a_supported_model_without_weights_is_not_refused_for_a_feature(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"model_type": "llama", **SIZES})
    assert WEIGHTS in said or "tokenizer" in said


@pytest.mark.parametrize(
    ("family", "overflows"),
    [("llama", False), ("qwen2", False), ("qwen3", False), ("mistral", False), ("phi3", False), ("glm", False),
     ("gemma", False), ("glm4", True), ("gemma2", True), ("gemma3_text", True)],
)  # fmt: skip
def test_families_that_overflow_float16_are_refused_in_it(family: str, overflows: bool) -> None:
    config = AutoConfig.for_model(family)
    refuse_dtype(config, torch.bfloat16, "some model")
    if overflows:
        with pytest.raises(ModelError, match=f"activations of {family} models overflow it; use --dtype bfloat16"):
            refuse_dtype(config, torch.float16, "some model")
    else:
        refuse_dtype(config, torch.float16, "some model")
