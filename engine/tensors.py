"""Small tensors on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def upload(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``values`` (a list, perhaps of lists) as a tensor on ``device``, without waiting for what the device does now."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory for what ``device`` copies there, pinned where it does so by itself."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")
