"""Work on a GPU as CUDA graphs, all of which are captured on one stream of the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def captured(work: Callable[[], Result], device: torch.device, pool: Any = None) -> tuple[Any, Result]:
    """The graph of ``work`` on ``device``, and what ``work`` returned when it was captured.

    It is run once before, so that nothing is loaded, compiled or tuned in the capture. ``pool``: the memory pool, for
    graphs that run one after the other.
    """
    with torch.cuda.device(device):
        before: Any = torch.cuda.current_stream()
        stream = _stream(before.device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            work()
        before.wait_stream(stream)
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # other threads may use the GPU meanwhile: a group of ranks watches its collectives from one
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            # where a capture fails to end, its stream is still the current one
            torch.cuda.set_stream(before)
    return graph, result


@cache
def _stream(device: torch.device) -> Any:
    """One for all, since a library keeps some memory for each stream that it has been used on, and for good."""
    return torch.cuda.Stream(device)
