"""The paged executor: KV in blocks, a step is one packed row of tokens, and no slot is computed for padding.

A plan's tokens lie behind one another in ``[1, T]``. Chunks of one shape (same length, same start) are one batched
call of SDPA over their gathered blocks; so are the equal-length rows of a decode step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.executors.base import Batch, Copy, ExecutorWaste, ModelExecutor, SequenceState, draws_of
from engine.models import LoadedModel
from scheduler.kv import PoolKind
from scheduler.plan import Chunk, StepPlan, Swap


class Group(NamedTuple):
    """Chunks of one shape: rows of ``tokens`` queries each, at the end of ``end`` tokens of context."""

    tokens: int
    end: int
    slots: torch.Tensor | slice
    """where the queries are among the packed tokens: ``int64[rows * tokens]``, or a slice where they are in a row"""
    blocks: torch.Tensor
    """``int64[rows * blocks]``: the blocks that hold the context of each row"""
    rows: int
    mask: torch.Tensor | None
    """``bool[tokens, end]``; ``None`` where none is needed, or where the plain causal mask does"""


class PagedAttention:
    """One step's attention over a pool of KV blocks ``[blocks, block_tokens, 2, kv_heads, head_dim]`` per layer."""

    def __init__(
        self, pools: list[torch.Tensor], write_slots: torch.Tensor, groups: list[Group], longest_context: int
    ) -> None:
        self.longest_context = longest_context
        self._pools = pools
        self._write_slots = write_slots
        self._groups = groups

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store and attend; see :class:`~engine.attention.StepAttention`. ``batch`` is 1."""
        pool = self._pools[layer]
        fresh = torch.stack((key[0], value[0]), dim=0).permute(2, 0, 1, 3)
        pool.flatten(0, 1).index_copy_(0, self._write_slots, fresh)
        heads, total, head_dim = query.shape[1:]
        output = query.new_empty(total, heads, head_dim)
        packed = query[0].transpose(0, 1)
        for group in self._groups:
            output[group.slots] = self._attend_group(pool, packed[group.slots], group, scale)
        return output[None]

    @staticmethod
    def _attend_group(pool: torch.Tensor, queries: torch.Tensor, group: Group, scale: float) -> torch.Tensor:
        """``[rows * tokens, heads, head_dim]`` for one group of queries of that shape."""
        held = pool.index_select(0, group.blocks).reshape(group.rows, -1, *pool.shape[2:])[:, : group.end]
        attended = scaled_dot_product_attention(
            queries.reshape(group.rows, group.tokens, *queries.shape[1:]).transpose(1, 2),
            held[:, :, 0].transpose(1, 2),
            held[:, :, 1].transpose(1, 2),
            attn_mask=group.mask,
            is_causal=group.mask is None and group.tokens > 1,
            scale=scale,
            enable_gqa=queries.shape[1] != pool.shape[3],
        )
        return attended.transpose(1, 2).reshape(queries.shape)


class PrivateBlocks:
    """Blocks for sequences whose memory the scheduler accounts for without block ids (a contiguous or buddy pool).

    The scheduler bounds the tokens; rounding up to whole blocks takes at most one block more for each sequence.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self._free = list(range(blocks - 1, -1, -1))
        self._block_tokens = block_tokens
        self._tables: dict[int, list[int]] = {}

    def table(self, number: int, tokens: int) -> list[int]:
        """The block ids of the sequence, enough for ``tokens``."""
        table = self._tables.setdefault(number, [])
        while len(table) * self._block_tokens < tokens:
            table.append(self._free.pop())
        return table

    def release(self, number: int) -> None:
        self._free.extend(reversed(self._tables.pop(number, [])))


class PagedExecutor(ModelExecutor):
    """Runs plans of the ``paged`` layout.

    ``kv_tokens`` and ``block_tokens`` are the scheduler's; ``kv_pool`` says whether its plans carry block tables.
    """

    layout = "paged"

    def __init__(
        self,
        model: LoadedModel,
        *,
        kv_tokens: int,
        max_running: int,
        block_tokens: int = 16,
        kv_pool: PoolKind = "paged",
        overlap: bool = False,
    ) -> None:
        super().__init__(model, overlap)
        self.kv_tokens = kv_tokens
        self.block_tokens = block_tokens
        blocks = kv_tokens // block_tokens
        self._private: PrivateBlocks | None = None
        if kv_pool != "paged":
            blocks += max_running + 1
            self._private = PrivateBlocks(blocks, block_tokens)
        shape = (blocks, block_tokens, 2, model.kv_heads, model.head_dim)
        self._pools = [torch.empty(shape, dtype=model.dtype, device=self.device) for _ in range(model.layers)]

    def prepare(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Batch:
        """Pack the chunks' tokens into one row."""
        token_ids: list[int] = []
        positions: list[int] = []
        write_slots: list[int] = []
        sampled: list[int] = []
        numbers: list[int] = []
        members: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
        for chunk in plan.chunks:
            sequence, start, tokens, _ = chunk
            end = start + tokens
            table = self._table(plan, chunk)
            members.setdefault((tokens, end), []).append((len(token_ids), table))
            token_ids += states[sequence.number].token_ids[start:end]
            positions += range(start, end)
            write_slots += self._slots(table, start, end)
            if chunk.samples:
                sampled.append(len(token_ids) - 1)
                numbers.append(sequence.number)
        groups = [self._group(tokens, end, rows) for (tokens, end), rows in members.items()]
        attention = PagedAttention(self._pools, self.tensor(write_slots), groups, plan.features.longest_context)
        return Batch(
            self.tensor([token_ids]),
            self.tensor([positions]),
            attention,
            self.tensor(sampled),
            numbers,
            draws_of(plan.chunks, states),
        )

    def swap_out(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`. A host copy is ``[layers, blocks, *block shape]``."""
        held = self._swapped_blocks(swap)
        self.release(swap.number)

        def copy() -> None:
            blocks = self.tensor(held)
            host = self.host_tensor(len(self._pools), len(held), *self._pools[0].shape[1:])
            for layer, pool in enumerate(self._pools):
                host[layer].copy_(pool.index_select(0, blocks), non_blocking=True)
            self.host_copies.put(swap.number, host)

        return copy

    def swap_in(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`. The blocks need not be the ones that it had."""
        held = self._swapped_blocks(swap)

        def copy() -> None:
            host, blocks = self.host_copies.get(swap.number), self.tensor(held)
            for layer, pool in enumerate(self._pools):
                pool.index_copy_(0, blocks, host[layer].to(self.device, non_blocking=True))
            self.host_copies.drop(swap.number)

        return copy

    def fixed(self, plan: StepPlan) -> StepPlan:
        """The plan with the block tables of its chunks as they are now."""
        if self._private is not None:
            return plan.fixed()
        return plan.fixed({
            sequence.number: plan.block_table(sequence)[: -(-(start + tokens) // self.block_tokens)]
            for sequence, start, tokens, _ in plan.chunks
        })  # fmt: skip

    def _swapped_blocks(self, swap: Swap) -> list[int]:
        """Where the tokens to be moved lie on the device."""
        count = -(-swap.tokens // self.block_tokens)
        table = swap.blocks if self._private is None else self._private.table(swap.number, swap.tokens)
        return list(table[:count])

    def release(self, number: int) -> None:
        """Paged memory is the scheduler's; only private blocks are given back here."""
        if self._private is not None:
            self._private.release(number)

    def waste(self, plan: StepPlan) -> ExecutorWaste:
        """A chunk that continues a prompt is computed under a mask: the masked pairs of its own square are extra."""
        return ExecutorWaste(0, sum(c.tokens * (c.tokens - 1) // 2 for c in plan.chunks if c.start > 0))

    def _table(self, plan: StepPlan, chunk: Chunk) -> list[int]:
        end = chunk.start + chunk.tokens
        if self._private is not None:
            return self._private.table(chunk.sequence.number, end)
        return plan.block_table(chunk.sequence)[: -(-end // self.block_tokens)]

    def _slots(self, table: list[int], start: int, end: int) -> list[int]:
        size = self.block_tokens
        return [table[position // size] * size + position % size for position in range(start, end)]

    def _group(self, tokens: int, end: int, rows: list[tuple[int, list[int]]]) -> Group:
        offsets = [offset for offset, _ in rows]
        slots: torch.Tensor | slice
        if offsets == list(range(offsets[0], offsets[0] + len(rows) * tokens, tokens)):
            slots = slice(offsets[0], offsets[0] + len(rows) * tokens)
        else:
            slots = self.tensor([slot for offset in offsets for slot in range(offset, offset + tokens)])
        blocks = self.tensor([block for _, table in rows for block in table])
        mask = None
        if 1 < tokens < end:
            mask = torch.ones(tokens, end, dtype=torch.bool, device=self.device).tril(end - tokens)
        return Group(tokens, end, slots, blocks, len(rows), mask)
