"""Attention of heads that share keys and values: the plain formula, and on a GPU never torch's slow way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.attention import grouped_attention


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
