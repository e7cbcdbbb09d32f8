"""The device that work is launched on, and small tensors on their way there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy.typing as npt
import torch


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the one that kernels of our own, events and streams belong to, in this thread.

    Which one is current is each thread's own, and tensors on another do not change it.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def upload(values: Sequence[object] | npt.NDArray[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``values`` (a list, perhaps of lists, or an array) as a tensor on ``device``.

    It does not wait for what the device does now.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.as_tensor(values, dtype=dtype).pin_memory().to(device, non_blocking=True)


def refill(buffer: torch.Tensor, values: npt.NDArray[Any]) -> None:
    """Copy ``values`` to ``buffer``, of their shape and type, as :func:`upload` does."""
    given = torch.from_numpy(values)
    buffer.copy_(given.pin_memory() if buffer.is_cuda else given, non_blocking=True)


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory for what ``device`` copies there, pinned where it does so by itself."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
