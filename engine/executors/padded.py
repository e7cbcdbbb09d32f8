"""The padded executor: one dense slot of KV for each sequence, every row of a step as long as the longest.

This is how a plain framework batches, done without needless copies: keys and values are written in place, and where the
rows of a step lie in neighbouring slots attention reads them where they are. What it computes is exactly the layout's
formula: rows x longest chunk linear slots, rows x longest chunk x longest context attention slots, dead rows included.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.attention import grouped_attention
from engine.executors.base import Batch, Copy, ModelExecutor, draws_of
from engine.models import LoadedModel
from engine.steps import SequenceState
from engine.tensors import host_memory
from scheduler.plan import StepPlan, Swap

_FIRST_SLOT_TOKENS = 256


class DenseCache:
    """KV of one executor: two tensors ``[slots, slot_tokens, kv_heads, head_dim]`` for each layer.

    Slots grow by doubling, up to ``context_tokens``, when a sequence outgrows them; tensor by tensor, so that one for
    which there is no memory leaves a cache that can be used. They start as zeros, since a masked column still takes
    part in the product with its weight of zero.
    """

    def __init__(self, model: LoadedModel, slots: int) -> None:
        self._model = model
        self._slots = slots
        first = min(_FIRST_SLOT_TOKENS, model.context_tokens)
        self.keys = [self._zeros(first) for _ in range(model.layers)]
        self.values = [self._zeros(first) for _ in range(model.layers)]

    def fit(self, tokens: int) -> None:
        """Make room for sequences of ``tokens`` tokens."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                before = old.shape[1]
                if tokens > before:
                    grown = self._zeros(self._room(before, tokens))
                    grown[:, :before] = old
                    tensors[layer] = grown

    def _room(self, before: int, tokens: int) -> int:
        """Tokens of a slot that had ``before`` and has to hold ``tokens``."""
        room = before
        while room < tokens:
            room *= 2
        return max(tokens, min(room, self._model.context_tokens))

    def _zeros(self, tokens: int) -> torch.Tensor:
        model = self._model
        shape = (self._slots, tokens, model.kv_heads, model.head_dim)
        return torch.zeros(shape, dtype=model.dtype, device=model.device)


class PaddedAttention:
    """One step's attention over dense slots."""

    def __init__(
        self,
        cache: DenseCache,
        rows: torch.Tensor | slice,
        write: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        longest_context: int,
    ) -> None:
        """``rows``: the slot of each row. ``write``: row, column, slot and position of each real token.

        ``mask`` is ``bool[rows, 1, tokens, longest_context]``.
        """
        self.longest_context = longest_context
        self._cache = cache
        self._rows = rows
        self._write = write
        self._mask = mask

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store and attend; see :class:`~engine.attention.StepAttention`."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        row, column, slot, position = self._write
        keys[slot, position] = key[row, :, column]
        values[slot, position] = value[row, :, column]
        attended = grouped_attention(
            query,
            keys[self._rows, : self.longest_context].transpose(1, 2),
            values[self._rows, : self.longest_context].transpose(1, 2),
            scale,
            mask=self._mask,
        )
        return attended.transpose(1, 2)


class PaddedExecutor(ModelExecutor):
    """Runs plans of the ``padded`` layout, with at most ``max_running`` sequences holding KV."""

    layout = "padded"

    def __init__(self, model: LoadedModel, *, max_running: int, overlap: bool = False) -> None:
        super().__init__(model, overlap)
        self._cache = DenseCache(model, max_running)
        self._max_running = max_running
        self.reset()

    def reset(self) -> None:
        """See :class:`~engine.steps.Executor`."""
        super().reset()
        self._slot_of: dict[int, int] = {}
        self._free = list(range(self._max_running - 1, -1, -1))

    def prepare(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Batch:
        """Lay the chunks out as rows, in the order of their slots; then the dead rows of a closed batch."""
        features = plan.features
        self._cache.fit(features.longest_context)
        chunks = sorted(plan.chunks, key=lambda chunk: self._slot(chunk.sequence.number))
        slots = [self._slot(chunk.sequence.number) for chunk in chunks]
        width = max(chunk.tokens for chunk in chunks)
        token_ids: list[list[int]] = []
        row_of: list[int] = []
        column_of: list[int] = []
        sampled: list[int] = []
        for row, (sequence, start, tokens, samples) in enumerate(chunks):
            ids = states[sequence.number].token_ids[start : start + tokens]
            token_ids.append(ids + [0] * (width - tokens))
            row_of += [row] * tokens
            column_of += range(tokens)
            if samples:
                sampled.append(row * width + tokens - 1)
        dead = features.rows_computed - len(chunks)
        token_ids += [[0] * width] * dead
        starts = self.tensor([chunk.start for chunk in chunks] + [0] * dead)
        positions = starts[:, None] + torch.arange(width, device=self.device)
        row_index, column_index = self.tensor(row_of), self.tensor(column_of)
        write = (row_index, column_index, self.tensor(slots)[row_index], positions[row_index, column_index])
        attention = PaddedAttention(
            self._cache, self._rows(slots, dead), write, self._mask(positions, features.longest_context),
            features.longest_context,
        )  # fmt: skip
        return Batch(
            self.tensor(token_ids),
            positions.clamp(max=features.longest_context - 1),
            attention,
            self.tensor(sampled),
            [chunk.sequence.number for chunk in chunks if chunk.samples],
            draws_of(chunks, states),
        )

    def swap_out(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`.

        A host copy is ``[2, layers, tokens, kv_heads, head_dim]``: keys, then values.
        """
        cache, slot, tokens = self._cache, self._slot(swap.number), swap.tokens
        self.release(swap.number)

        def copy() -> None:
            shape = (2, self.model.layers, tokens, self.model.kv_heads, self.model.head_dim)
            host = host_memory(shape, self.model.dtype, self.device)
            for layer in range(self.model.layers):
                host[0, layer].copy_(cache.keys[layer][slot, :tokens], non_blocking=True)
                host[1, layer].copy_(cache.values[layer][slot, :tokens], non_blocking=True)
            self.host_copies.put(swap.number, host)

        return copy

    def swap_in(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`. Any free slot will do."""
        cache, slot, tokens = self._cache, self._slot(swap.number), swap.tokens

        def copy() -> None:
            host = self.host_copies.get(swap.number)
            for layer in range(self.model.layers):
                cache.keys[layer][slot, :tokens].copy_(host[0, layer], non_blocking=True)
                cache.values[layer][slot, :tokens].copy_(host[1, layer], non_blocking=True)
            self.host_copies.drop(swap.number)

        return copy

    def release(self, number: int) -> None:
        """Give the sequence's slot back."""
        slot = self._slot_of.pop(number, None)
        if slot is not None:
            self._free.append(slot)
            self._free.sort(reverse=True)

    def _slot(self, number: int) -> int:
        if number not in self._slot_of:
            self._slot_of[number] = self._free.pop()
        return self._slot_of[number]

    def _rows(self, slots: list[int], dead: int) -> torch.Tensor | slice:
        """The slots of all rows; dead ones read the first row's. A slice where no copy is needed."""
        if not dead and slots[-1] - slots[0] == len(slots) - 1:
            return slice(slots[0], slots[-1] + 1)
        return self.tensor(slots + slots[:1] * dead)

    @staticmethod
    def _mask(positions: torch.Tensor, context: int) -> torch.Tensor:
        """``bool[rows, 1, tokens, context]``: each query sees the columns up to its own position."""
        return (torch.arange(context, device=positions.device) <= positions[:, :, None])[:, None]
