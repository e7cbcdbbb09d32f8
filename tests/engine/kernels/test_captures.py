"""Graphs that are captured, and what is left of a capture that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.faults import free_unused, is_out_of_memory
from engine.kernels import captures
from engine.kernels.captures import captured

DEVICE = torch.device("cuda", 0)


class Cuda:
    """What ``torch.cuda`` does with streams; a capture with an error in it cannot be ended, as with CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = self.first = self.made()
        self.used: list[Any] = []
        for name, fake in {
            "device": lambda device: nullcontext(), "current_stream": lambda: self.current, "Stream": self.made,
            "stream": self.stream, "set_stream": self.set_stream, "graph": self.graph, "CUDAGraph": object,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, fake)
        captures._stream.cache_clear()

    def made(self, device: Any = DEVICE) -> Any:
        return SimpleNamespace(device=device, wait_stream=lambda other: None)

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, stream: Any, **_: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        self.used.append(stream)
        try:
            yield
        except RuntimeError:
            raise RuntimeError("CUDA error: the capture has failed")  # noqa: B904
        self.current = before


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    runs = []

    def work() -> int:
        runs.append(cuda.current)
        if len(runs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(runs)

    with pytest.raises(RuntimeError, match="the capture has failed") as failed:
        captured(work, DEVICE)
    assert is_out_of_memory(failed.value)
    assert cuda.current is cuda.first
    assert captured(work, DEVICE)[1] == 4
    # whatever a library keeps for each stream, it keeps once
    assert len({id(stream) for stream in (*runs, *cuda.used)}) == 1
    assert cuda.current is cuda.first
    captures._stream.cache_clear()


@pytest.mark.gpu
def test_memory_that_is_too_short_in_a_capture_is_given_back() -> None:
    runs = []

    def work() -> torch.Tensor:
        runs.append(torch.empty(1 << 26, dtype=torch.int8, device=DEVICE))
        return torch.empty(1 << (20 if len(runs) != 2 else 50), dtype=torch.int8, device=DEVICE)

    free_unused(DEVICE)
    stream, before = torch.cuda.current_stream(), torch.cuda.memory_reserved(DEVICE)
    with pytest.raises(RuntimeError) as failed:
        captured(work, DEVICE)
    assert is_out_of_memory(failed.value)
    assert torch.cuda.current_stream() == stream
    del failed
    runs.clear()
    free_unused(DEVICE)
    assert torch.cuda.memory_reserved(DEVICE) <= before + (2 << 20)
    runs += [torch.zeros(1, device=DEVICE)] * 2
    graph, result = captured(work, DEVICE)
    graph.replay()
    assert result.numel() == 1 << 20


@pytest.mark.gpu
def test_many_graphs_of_products_take_one_workspace_of_the_library() -> None:
    x = torch.randn(64, 512, dtype=torch.bfloat16, device=DEVICE)
    captured(lambda: x @ x.T, DEVICE)
    free_unused(DEVICE)
    before = torch.cuda.memory_reserved(DEVICE)
    for _ in range(40):
        captured(lambda: x @ x.T, DEVICE)
    free_unused(DEVICE)
    assert torch.cuda.memory_reserved(DEVICE) <= before + (8 << 20)
