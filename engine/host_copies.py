"""KV in host memory, of sequences that have been swapped out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.tensors import host_memory, upload


class HostCopies:
    """KV of the sequences that were swapped out, by sequence number."""

    def __init__(self) -> None:
        self._held: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the sequences of which something is held."""
        return tuple(self._held)

    def put(self, number: int, tensor: torch.Tensor) -> None:
        """Keep ``tensor``. Raises ``RuntimeError`` where the sequence has been swapped out already."""
        if number in self._held:
            raise RuntimeError(f"sequence number {number} was swapped out twice")
        self._held[number] = tensor

    def get(self, number: int) -> torch.Tensor:
        """What is kept of the sequence. Raises ``RuntimeError`` where there is nothing."""
        if number not in self._held:
            raise RuntimeError(f"sequence number {number} is to be swapped in, but was never swapped out")
        return self._held[number]

    def drop(self, number: int) -> None:
        """Forget the sequence; one that is not known is ignored."""
        self._held.pop(number, None)


def to_host(tensors: Sequence[Tensor], blocks: Sequence[int]) -> Tensor:
    """``[tensors, blocks, *block shape]`` in host memory: these ``blocks`` of each of ``tensors`` (blocks first).

    On a GPU the copy is under way when this returns.
    """
    first = tensors[0]
    indices = upload(blocks, torch.int64, first.device)
    host = host_memory((len(tensors), len(blocks), *first.shape[1:]), first.dtype, first.device)
    for place, tensor in enumerate(tensors):
        host[place].copy_(tensor.index_select(0, indices), non_blocking=True)
    return host


def from_host(tensors: Sequence[Tensor], blocks: Sequence[int], host: Tensor) -> None:
    """Copy what :func:`to_host` gave into these ``blocks``, which need not be the ones that it came from."""
    device = tensors[0].device
    indices = upload(blocks, torch.int64, device)
    for place, tensor in enumerate(tensors):
        tensor.index_copy_(0, indices, host[place].to(device, non_blocking=True))
