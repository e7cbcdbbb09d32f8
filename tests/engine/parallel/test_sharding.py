"""Shares of a model: together they compute what the whole does, and what cannot be divided is refused with numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import divided_models
import pytest
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.fused.architecture import FAMILIES
from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.models import LoadedModel
from engine.parallel.sharding import Division, divide_model, refuse_division

CPU = torch.device("cpu")


class Meeting:
    """Where the ranks, each a thread, put their tensors together."""

    def __init__(self, size: int) -> None:
        self.tensors: list[Tensor | None] = [None] * size
        self._barrier = threading.Barrier(size)

    def exchange(self, rank: int, tensor: Tensor) -> list[Any]:
        self.tensors[rank] = tensor
        self._barrier.wait()
        found = list(self.tensors)
        self._barrier.wait()
        return found


class ThreadGroup:
    """What a rank asks of its group, without processes."""

    workers = None

    def __init__(self, division: Division, meeting: Meeting) -> None:
        self.rank, self.size = division
        self._meeting = meeting

    def reduce(self, update: Tensor) -> Tensor:
        total: Tensor = sum(self._meeting.exchange(self.rank, update))
        return total

    def gather(self, logits: Tensor) -> Tensor:
        return torch.cat(self._meeting.exchange(self.rank, logits), dim=-1)[:, : divided_models.VOCAB]


def logits_of(model: LoadedModel) -> Tensor:
    """Of a prompt in a chunk, and of a decode row after it."""
    ids = torch.arange(20, 51)
    with torch.inference_mode():
        decoder, cache = Decoder(model), KvCache(model, 4, 16)
        tables = torch.tensor([[2, 0, 3]], dtype=torch.int32)
        slots = tables[0].long()[torch.arange(32) // 16] * 16 + torch.arange(32) % 16
        starts, offsets = torch.tensor([0], dtype=torch.int32), torch.tensor([0, 31], dtype=torch.int32)
        prompt = StepTensors(ids, torch.arange(31), slots[:31], Chunks(tables, starts, offsets, 31), None)
        row = StepTensors(
            torch.tensor([7]), torch.tensor([31]), slots[31:], None, Rows(tables, torch.tensor([32], dtype=torch.int32))
        )  # fmt: skip
        return torch.cat([decoder.logits(decoder.forward(step, cache)) for step in (prompt, row)])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_shares_together_are_the_whole(family: str, size: int) -> None:
    expected = logits_of(divided_models.build(CPU, family))
    meeting = Meeting(size)
    shares = []
    for rank in range(size):
        division = Division(rank, size)
        share: Any = divide_model(divided_models.build(CPU, family), division, CPU)
        assert share.heads == 4 // size
        shares.append(replace(share, group=ThreadGroup(division, meeting)))
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(logits_of, shares))
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(logits, found[0]) for logits in found), "ranks must sample from the same logits"


def test_a_share_holds_its_part_of_the_weights_and_of_the_kv() -> None:
    whole = divided_models.build(CPU, "qwen2")
    kv_bytes = whole.kv_bytes_per_token
    outside = sum(p.numel() for name, p in whole.model.named_parameters() if "embed" in name or "norm" in name)
    share = divide_model(whole, Division(1, 2), CPU)
    held = sum(p.numel() for p in share.model.parameters())
    filler = 64  # a row of the output layer, so that both ranks have as many
    assert share.kv_bytes_per_token == kv_bytes // 2
    assert held == outside + (share.parameters - outside + filler) // 2


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        (
            {},
            3,
            "its 4 query heads are not a multiple of 3, and its 2 KV heads are neither a multiple nor a divisor of",
        ),
        ({"intermediate_size": 98}, 4, "the 98 columns of its MLP are not a multiple of 4"),
        (
            {"num_attention_heads": 12, "hidden_size": 96, "num_key_value_heads": 3},
            2,
            "its 3 KV heads are neither a multiple nor",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_numbers(settings: Any, size: int, message: str) -> None:
    build: Callable[..., LoadedModel] = divided_models.build
    config: Any = build(CPU, "llama", **settings).model.config
    with pytest.raises(ModelError, match=f"'m' cannot be divided over {size} ranks: .*{message}"):
        refuse_division("m", config, size)


def test_an_architecture_without_a_fused_decoder_is_refused(reference: Any) -> None:
    with pytest.raises(ModelError, match="the architecture opt"):
        divide_model(reference("opt").ours, Division(0, 2), CPU)
