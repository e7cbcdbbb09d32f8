"""KV in host memory, of sequences that have been swapped out."""

from __future__ import annotations

import torch


class HostCopies:
    """KV of the sequences that were swapped out, by sequence number."""

    def __init__(self) -> None:
        self._held: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._held)

    def put(self, number: int, tensor: torch.Tensor) -> None:
        """Keep ``tensor``. Raises ``RuntimeError`` where the sequence has been swapped out already."""
        if number in self._held:
            raise RuntimeError(f"sequence number {number} was swapped out twice")
        self._held[number] = tensor

    def take(self, number: int) -> torch.Tensor:
        """Give it out for good. Raises ``RuntimeError`` where there is none."""
        if number not in self._held:
            raise RuntimeError(f"sequence number {number} is to be swapped in, but was never swapped out")
        return self._held.pop(number)

    def drop(self, number: int) -> None:
        """Forget the sequence; one that is not known is ignored."""
        self._held.pop(number, None)
