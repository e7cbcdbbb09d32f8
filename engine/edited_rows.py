"""What is done to the logits of a step, on the device: the edits that :mod:`engine.logit_edits` says for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.logit_edits import Edits, Ids, Values
from engine.tensors import upload


class EditedRows:
    """The edits of some rows of a step, on the device: (row, what is done to it)."""

    def __init__(self, edits: Sequence[tuple[int, Edits]], device: torch.device) -> None:
        rows = [edit for _, edit in edits]
        self._rows = upload([row for row, _ in edits], torch.int64, device)
        self._biased = _entries(device, [edit.biased for edit in rows], [edit.bias for edit in rows])
        repetitions = [np.full(len(edit.seen), edit.repetition, dtype=np.float32) for edit in rows]
        self._seen = _entries(device, [edit.seen for edit in rows], repetitions, [edit.lowered for edit in rows])
        self._banned = _entries(device, [edit.banned for edit in rows])
        guided = {place: edit.allowed for place, edit in enumerate(rows) if edit.allowed is not None}
        self._guided = upload(list(guided), torch.int64, device) if guided else None
        if guided:
            self._allowed = upload(np.stack(list(guided.values())), torch.int32, device)

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits`` ``float32[rows, vocab]`` with the edits; what is given is left as it is."""
        edited = logits[self._rows]
        if self._biased is not None:
            at, (bias,) = self._biased
            edited[at] += bias
        if self._seen is not None:
            at, (repetition, lowered) = self._seen
            found = edited[at]
            edited[at] = torch.where(found < 0, found * repetition, found / repetition) - lowered
        if self._banned is not None:
            edited[self._banned.at] = -torch.inf
        if self._guided is not None:
            edited[self._guided] = edited[self._guided].masked_fill(~self._bits(logits.shape[-1]), -torch.inf)
        return logits.index_copy(0, self._rows, edited)

    def _bits(self, vocab: int) -> Tensor:
        """``bool[guided rows, vocab]``: whether a token is allowed."""
        tokens = torch.arange(vocab, dtype=torch.int32, device=self._allowed.device)
        return (self._allowed[:, tokens >> 5] >> (tokens & 31) & 1).bool()


class _Entries(NamedTuple):
    """Some entries of ``[rows, vocab]``, each once, and numbers that belong to them."""

    at: tuple[Tensor, Tensor]
    values: list[Tensor]


def _entries(device: torch.device, token_ids: Sequence[Ids], *values: Sequence[Values]) -> _Entries | None:
    """Those at the ``token_ids`` of each row, with the ``values`` of each row; ``None`` if there are none."""
    if not any(map(len, token_ids)):
        return None
    rows = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    at = (upload(rows, torch.int64, device), upload(np.concatenate(token_ids), torch.int64, device))
    return _Entries(at, [upload(np.concatenate(parts), torch.float32, device) for parts in values])
