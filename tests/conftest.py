"""What all tests share: hypothesis without deadlines, a model that loads at once, and GPU tests that skip without one.

Without a GPU, Triton's kernels are run by its interpreter, which has to be said before anybody imports it.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("lockstep", deadline=None)
settings.load_profile("lockstep")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model instead of the embedded one; its tokens are bytes."""
    import torch
    from transformers import Qwen2Config
    from transformers.models.auto import AutoModelForCausalLM

    import engine.parallel.loading
    from engine.attention import ATTENTION
    from engine.models import LoadedModel, loaded

    config = Qwen2Config(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)

    def load(*_: object, **__: object) -> LoadedModel:
        return loaded("small", model)

    # by name, where it is used: whoever imports the module first would keep this one
    monkeypatch.setattr(engine.parallel.loading, "load_model", load)
