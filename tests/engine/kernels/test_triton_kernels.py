"""The Triton kernels against the reference in float32: compiled on a GPU, interpreted without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.fused.decoder import Chunks, Rows, attend
from engine.kernels import DecodeWorkspace, Heads, Rotary, Splits, kernels_for, reference

pytest.importorskip("triton")

from engine.kernels.skinny import Tiles, gated_product, product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = kernels_for(DEVICE, "triton")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


class Cache:
    """Paged KV of some rows in shuffled blocks; every slot that no row may read holds NaN."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, block_tokens: int) -> None:
        counts = [-(-length // block_tokens) for length in lengths]
        generator = torch.Generator().manual_seed(1)
        free = (torch.randperm(sum(counts) + 2, generator=generator)).tolist()
        # what lies behind a row's blocks in its table must not be looked up: it names no block
        self.tables = torch.full((len(lengths), max(counts) + 3), 2**30, dtype=torch.int32)
        shape = (sum(counts) + 2, kv_heads, block_tokens, dim)
        self.keys, self.values = (torch.full(shape, torch.nan) for _ in range(2))
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            blocks = [free.pop() for _ in range(count)]
            self.tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
            for token in range(length):
                block = blocks[token // block_tokens]
                self.keys[block, :, token % block_tokens] = torch.randn(kv_heads, dim, generator=generator)
                self.values[block, :, token % block_tokens] = torch.randn(kv_heads, dim, generator=generator)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        self.keys, self.values, self.tables = (t.to(DEVICE) for t in (self.keys, self.values, self.tables))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("hidden", [32, 72])
def test_norms(hidden: int, offset: float) -> None:
    x, update, residual = normal(3, 5, hidden)
    weight, post = normal(2, hidden, seed=1)
    close(KERNELS.rms_norm(x, weight, 1e-5, offset=offset), reference.rms_norm(x, weight, 1e-5, offset=offset))
    for added in (update, normal(3, 5, hidden, seed=2)):
        for post_norm in (None, post):
            ours, expected = residual.clone(), residual.clone()
            close(
                KERNELS.add_rms_norm(added, ours, weight, 1e-5, offset=offset, post_norm=post_norm),
                reference.add_rms_norm(added, expected, weight, 1e-5, offset=offset, post_norm=post_norm),
            )
            close(ours, expected)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated(activation: str) -> None:
    x = 4 * normal(3, 2 * 1030)
    close(KERNELS.gated(x, activation), reference.gated(x, activation))  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_take_in(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)

    def drawn(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (tokens,), generator=generator).to(DEVICE)

    ids, places, positions = drawn(-1, 4), drawn(0, 5), drawn(0, 64)
    # tokens of one block are in one block
    slots = torch.where(drawn(0, 4) > 0, (places * 4 + positions // 16) * 16 + positions % 16, -1)
    last = torch.arange(100, 105, device=DEVICE)
    ours, expected = (torch.full((5, 4), 99, dtype=torch.int32, device=DEVICE) for _ in range(2))
    found = KERNELS.take_in(ids, places, positions, slots, ours, last, 16)
    assert torch.equal(found, reference.take_in(ids, places, positions, slots, expected, last, 16))
    assert torch.equal(ours, expected)
    if tokens == 300:
        assert set(found.tolist()) > {100, 104}
        assert expected.max() == 19


def test_embed() -> None:
    ids, table = torch.tensor([3, 0, 6, 3], device=DEVICE), normal(7, 40)
    close(KERNELS.embed(ids, table, 6.25), reference.embed(ids, table, 6.25))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dims", "dim"), [(16, 16), (8, 16), (24, 24)])
@pytest.mark.parametrize("extras", [False, True])
def test_rotate_and_store(dims: int, dim: int, interleaved: bool, extras: bool) -> None:
    heads, tokens = Heads(4, 2, dim), 6
    qkv, bias = normal(tokens, heads.columns), normal(heads.columns, seed=1)
    angles = normal(32, dims // 2, seed=2) * 3
    rotary = Rotary(angles.cos(), angles.sin(), dims, interleaved)
    positions = torch.tensor([0, 1, 2, 9, 31, 0], device=DEVICE)
    slots = torch.tensor([5, 4, 11, 0, 2, -1], device=DEVICE)
    norms = {"bias": bias, "q_norm": normal(dim, seed=3), "k_norm": normal(dim, seed=4), "norm_offset": 1.0}
    ours, expected = (torch.zeros(2, 3, heads.key_value, 4, dim, device=DEVICE) for _ in range(2))
    arguments = norms if extras else {}
    query = KERNELS.rotate_and_store(qkv, rotary, positions, slots, *ours, heads, **arguments)  # type: ignore[arg-type]
    close(
        query,
        reference.rotate_and_store(qkv, rotary, positions, slots, *expected, heads, **arguments),  # type: ignore[arg-type]
    )
    close(ours, expected)


@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize("splits", [Splits(1), Splits(3), Splits(8), Splits(8, 100)])
@pytest.mark.parametrize(
    ("heads", "softcap", "window"),
    [(Heads(2, 2, 32), None, None), (Heads(6, 2, 24), None, 70), (Heads(4, 1, 16), 2.0, None)],
)
def test_decode_attention(
    heads: Heads, softcap: float | None, window: int | None, splits: Splits, block_tokens: int
) -> None:
    cache = Cache([1, 64, 65, 0, 200, 129], heads.key_value, heads.dim, block_tokens)
    query = normal(6, heads.query, heads.dim)
    workspace = DecodeWorkspace(8, heads, 8, DEVICE)
    settings = {"scale": 0.3, "softcap": softcap, "window": window}
    for _ in range(2):
        ours = KERNELS.decode_attention(
            query, cache.keys, cache.values, cache.tables, cache.lengths, workspace=workspace, splits=splits, **settings
        )  # type: ignore[arg-type]
        close(
            ours, reference.decode_attention(query, cache.keys, cache.values, cache.tables, cache.lengths, **settings)
        )  # type: ignore[arg-type]
    assert not workspace.arrivals.any()
    assert not ours[3].any()


@pytest.mark.parametrize("block_tokens", [16, 64])
@pytest.mark.parametrize(
    ("heads", "softcap", "window"),
    [(Heads(2, 2, 32), None, None), (Heads(6, 2, 24), None, 33), (Heads(4, 1, 16), 2.0, None)],
)
def test_prefill_attention(heads: Heads, softcap: float | None, window: int | None, block_tokens: int) -> None:
    chunks, starts = [70, 1, 33], [0, 64, 37]
    cache = Cache([s + c for s, c in zip(starts, chunks, strict=True)], heads.key_value, heads.dim, block_tokens)
    offsets = torch.tensor([0, 70, 71, 104], dtype=torch.int32, device=DEVICE)
    first = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    query = normal(104, heads.query, heads.dim)
    settings = {"scale": 0.3, "softcap": softcap, "window": window}
    place = (cache.keys, cache.values, cache.tables, first, offsets, 70)
    close(
        KERNELS.prefill_attention(query, *place, **settings),  # type: ignore[arg-type]
        reference.prefill_attention(query, *place, **settings),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_rows_and_chunks_of_a_graph_share_a_result(rows: int) -> None:
    """Rows that there is only room for see nothing, and what chunks give stands in their places."""
    heads, room = Heads(6, 2, 32), 6
    cache = Cache([*[90] * rows, *[0] * (room - rows), 30, 70], heads.key_value, heads.dim, 16)
    first = torch.tensor([20, 64], dtype=torch.int32, device=DEVICE)
    offsets = torch.tensor([rows, rows + 10, rows + 16], dtype=torch.int32, device=DEVICE)
    query = normal(24, heads.query, heads.dim)

    def attended(kernels: Any) -> torch.Tensor:
        chunks = Chunks(cache.tables[room:], first, offsets, 24)
        decoding = Rows(cache.tables[:room], cache.lengths[:room], DecodeWorkspace(room, heads, 4, DEVICE), Splits(4))
        result = attend(kernels, query, cache.keys, cache.values, chunks, decoding, scale=0.3)
        return result[: rows + 16]

    ours = attended(KERNELS)
    close(ours, attended(reference))
    place = (cache.keys, cache.values, cache.tables[:rows], cache.lengths[:rows])
    close(ours[:rows], reference.decode_attention(query[:rows], *place, scale=0.3))


def test_sample_is_the_samplers() -> None:
    logits = normal(6, 5000)
    temperature = torch.tensor([0.0, 0.7, 1.0, 0.0, 2.0, 0.1], device=DEVICE)
    keys = torch.tensor([1, 2**32 - 1, 77, 0, 123456789, 4000000000], device=DEVICE)
    assert torch.equal(KERNELS.sample(logits, temperature, keys), reference.sample(logits, temperature, keys))


def test_sampling_draws_from_the_distribution() -> None:
    """As the reference, token by token, over many keys."""
    logits = normal(1, 50).expand(200, 50).contiguous()
    keys = torch.arange(200, device=DEVICE) * 21474836
    heat = torch.ones(200, device=DEVICE)
    assert torch.equal(KERNELS.sample(logits, heat, keys), reference.sample(logits, heat, keys))


def test_the_first_of_equal_logits_is_taken() -> None:
    logits = torch.zeros(1, 9000, device=DEVICE)
    logits[0, [4100, 8999, 17]] = 5.0
    zero = torch.zeros(1, device=DEVICE)
    assert KERNELS.sample(logits, zero, zero.long()).tolist() == [17]


@pytest.mark.parametrize("rows", [1, 5, 16, 20])
@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(16, 32, 32, 1, 4, 2),
        Tiles(32, 16, 32, 2, 4, 2),
        Tiles(16, 16, 32, 4, 4, 2, bulk=True),
        Tiles(32, 64, 64, 1, 4, 2, bulk=True),
    ],
)
def test_skinny_products(rows: int, tiles: Tiles) -> None:
    x, weight, bias = normal(rows, 128), normal(72, 128, seed=1), normal(72, seed=2)
    found = product(x, weight, tiles)
    assert found.shape == ((rows, 72) if tiles.parts == 1 else (tiles.parts, rows, 72))
    torch.testing.assert_close(
        found.sum(0) if tiles.parts > 1 else found, reference.linear(x, weight), rtol=1e-4, atol=1e-4
    )
    if tiles.parts > 1:
        with pytest.raises(ValueError, match="in parts"):
            product(x, weight, tiles, bias)
        return
    torch.testing.assert_close(product(x, weight, tiles, bias), reference.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    for activation in ("silu", "gelu_tanh"):
        expected = reference.skinny_gated(x, weight, activation)  # type: ignore[arg-type]
        found = gated_product(x, weight, tiles, activation)  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 33, 100, 129])
@pytest.mark.parametrize(("columns", "depth"), [(896, 4864), (1000, 896), (4096, 4096)])
def test_whatever_tiles_are_the_fastest_the_product_is_right(rows: int, columns: int, depth: int) -> None:
    x = normal(rows, depth).bfloat16()
    weight = (normal(2 * columns, depth, seed=1) / depth**0.5).bfloat16()
    for found, expected in (
        (KERNELS.skinny_linear(x, weight), reference.linear(x.float(), weight.float())),
        (KERNELS.skinny_linear(x, weight, parts=True), reference.linear(x.float(), weight.float())),
        (KERNELS.skinny_gated(x, weight, "silu"), reference.skinny_gated(x.float(), weight.float(), "silu")),
    ):
        whole = found.sum(0) if found.dim() == 3 else found.float()
        assert (whole - expected).norm() < 5e-3 * expected.norm()
