"""The reference kernels against transformers' own modules, bit for bit where they round, in float32 and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.glm4.modeling_glm4 import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as rotate_halves

from engine.kernels import Heads, Rotary, kernels_for, reference

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_round_as_transformers(dtype: torch.dtype) -> None:
    x, residual, update = torch.randn(3, 5, 48).to(dtype)
    llama, gemma = LlamaRMSNorm(48, 1e-5).to(dtype), Gemma2RMSNorm(48, 1e-5).to(dtype)
    for norm, offset in ((llama, 0.0), (gemma, 1.0)):
        norm.weight.data.normal_()
        weight = norm.weight.data
        assert torch.equal(reference.rms_norm(x, weight, 1e-5, offset=offset), norm(x))
        ours = residual.clone()
        normed = reference.add_rms_norm(update, ours, weight, 1e-5, offset=offset)
        assert torch.equal(ours, residual + update)
        assert torch.equal(normed, norm(residual + update))
        ours = residual.clone()
        reference.add_rms_norm(update, ours, weight, 1e-5, offset=offset, post_norm=weight)
        assert torch.equal(ours, residual + norm(update))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [8, 16])
def test_rotation_rounds_as_transformers(dtype: torch.dtype, interleaved: bool, dims: int) -> None:
    heads, tokens, block_tokens = Heads(4, 2, 16), 6, 4
    qkv = torch.randn(tokens, heads.columns).to(dtype)
    angles = torch.rand(32, dims // 2) * 6
    rotary = Rotary(angles.cos().to(dtype), angles.sin().to(dtype), dims, interleaved)
    positions = torch.tensor([0, 1, 2, 9, 31, 0])
    slots = torch.tensor([5, 4, 11, 0, 2, -1])
    keys, values = torch.zeros(2, 3, heads.key_value, block_tokens, heads.dim).to(dtype)
    query = reference.rotate_and_store(qkv, rotary, positions, slots, keys, values, heads)

    cos, sin = (torch.cat((table, table), -1)[positions][None] for table in (rotary.cos, rotary.sin))
    q, k, v = (part.view(1, tokens, -1, 16).transpose(1, 2) for part in qkv.split((64, 32, 32), dim=1))
    q, k = (rotate_interleaved if interleaved else rotate_halves)(q, k, cos, sin)
    assert torch.equal(query, q[0].transpose(0, 1))
    for place, slot in enumerate(slots[:5].tolist()):
        assert torch.equal(keys[slot // 4, :, slot % 4], k[0, :, place])
        assert torch.equal(values[slot // 4, :, slot % 4], v[0, :, place])
    assert not keys.transpose(1, 2).flatten(0, 1)[[1, 3, 6, 7, 8, 9, 10]].any()


def test_chunked_prefill_and_decode_see_what_plain_attention_sees() -> None:
    heads, tokens, block_tokens, window = Heads(4, 2, 16), 11, 4, 5
    query = torch.randn(tokens, 4, 16)
    key, value = torch.randn(2, tokens, 2, 16)
    table = torch.tensor([[4, 0, 2]], dtype=torch.int32)
    keys, values = torch.full((2, 5, 2, block_tokens, 16), torch.nan)
    for place in range(tokens):
        block = table[0, place // 4]
        keys[block, :, place % 4], values[block, :, place % 4] = key[place], value[place]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask &= ~mask.tril(-window)
    expected = scaled_dot_product_attention(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(0, 1)
    for start in range(tokens):
        chunk = reference.prefill_attention(
            query[start:], keys, values, table, torch.tensor([start]), torch.tensor([0, tokens - start]), tokens,
            scale=0.3, window=window,
        )  # fmt: skip
        torch.testing.assert_close(chunk, expected[start:])
        row = reference.decode_attention(
            query[start : start + 1], keys, values, table, torch.tensor([start + 1]), scale=0.3, window=window
        )
        torch.testing.assert_close(row[0], expected[start])
    assert not reference.decode_attention(query[:1], keys, values, table, torch.tensor([0]), scale=0.3).any()
    assert heads.columns == 128


def test_a_cpu_gets_the_reference() -> None:
    assert kernels_for(torch.device("cpu")) is reference
