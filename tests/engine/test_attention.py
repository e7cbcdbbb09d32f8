"""Attention of heads that share keys and values: the plain formula, and on a GPU never torch's slow way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import attention
from engine.attention import grouped_attention, plans_nothing
from engine.executors import build_executor
from engine.loop import EngineLoop
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler

BACKENDS: Any = torch.backends.cuda


def tensors(heads: int, kv_heads: int, tokens: int, context: int, **where: Any) -> list[torch.Tensor]:
    """Query, keys, values as the padded layout has them, and a mask with a context of its own for each row."""
    rng = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(3, length, of, 16, generator=rng).to(**where).transpose(1, 2)
        for length, of in ((tokens, heads), (context, kv_heads), (context, kv_heads))
    )
    starts = torch.tensor([0, 2, context - tokens])
    columns = torch.arange(context)
    mask = columns <= (starts[:, None] + torch.arange(tokens))[:, :, None]
    return [query, keys, values, mask[:, None].to(query.device)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (7, 1)])
def test_attention_is_the_formula_for_each_head(heads: int, kv_heads: int, tokens: int, masked: bool) -> None:
    query, keys, values, mask = tensors(heads, kv_heads, tokens, 9)
    given = grouped_attention(query, keys, values, 0.3, mask=mask if masked else None)
    for head in range(heads):
        theirs = head * kv_heads // heads
        weights = 0.3 * query[:, head] @ keys[:, theirs].transpose(1, 2)
        if masked:
            weights = weights.masked_fill(~mask[:, 0], float("-inf"))
        torch.testing.assert_close(given[:, head], weights.softmax(-1) @ values[:, theirs])


def test_a_causal_prompt_sees_what_its_mask_would_say() -> None:
    query, keys, values, _ = tensors(6, 2, 9, 9)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    torch.testing.assert_close(
        grouped_attention(query, keys, values, 0.3, causal=True), grouped_attention(query, keys, values, 0.3, mask=mask)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("context", [9, 64])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("masked", [True, False])
def test_a_gpu_has_a_kernel_for_it(masked: bool, tokens: int, context: int) -> None:
    query, keys, values, mask = tensors(6, 2, tokens, context, device="cuda", dtype=torch.bfloat16)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        given = grouped_attention(query, keys, values, 0.3, mask=mask if masked else None)
    assert given.shape == query.shape


def test_attention_is_never_one_that_plans_each_shape() -> None:
    with plans_nothing():
        assert not BACKENDS.cudnn_sdp_enabled()
    assert BACKENDS.cudnn_sdp_enabled()


@pytest.mark.parametrize("layout", ["padded", "paged"])
def test_executors_ask_for_that(reference: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    seen = []

    def attend(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(BACKENDS.cudnn_sdp_enabled())
        return torch.nn.functional.scaled_dot_product_attention(*args, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    config = SchedulerConfig.from_dict({"layout": layout, "kv_tokens": 64, "context_tokens": 64, "max_running": 2})
    executor = build_executor(reference("qwen2").ours, config)
    EngineLoop(Scheduler(config), executor).run([Request("a", 0, 3, 2, prompt_token_ids=(1, 2, 3))])
    assert seen
    assert not any(seen)
