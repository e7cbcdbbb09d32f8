"""The paged executor: KV in blocks, a step is one packed row of tokens, and no slot is computed for padding."""

from __future__ import annotations

from collections.abc import Mapping

from engine.executors.base import Batch, Copy, ModelExecutor, draws_of
from engine.executors.paged_memory import GatheredMemory, KernelMemory, PackedChunk, PagedMemory, slots_of
from engine.host_copies import from_host, to_host
from engine.kernels import Kernels, kernels_for
from engine.models import LoadedModel
from engine.steps import ExecutorWaste, SequenceState
from scheduler.graphs import is_row
from scheduler.kv import PoolKind
from scheduler.plan import Chunk, StepPlan, Swap


class PrivateBlocks:
    """Blocks for sequences whose memory the scheduler accounts for without block ids (a contiguous or buddy pool).

    The scheduler bounds the tokens; rounding up to whole blocks takes at most one block more for each sequence.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self._blocks, self._block_tokens = blocks, block_tokens
        self.clear()

    def clear(self) -> None:
        """Take all blocks back."""
        self._free = list(range(self._blocks - 1, -1, -1))
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
    Attention is that of ``kernels``: by default our own on a GPU, and torch's over gathered blocks elsewhere.
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
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__(model, overlap)
        self.kv_tokens = kv_tokens
        self.block_tokens = block_tokens
        blocks = kv_tokens // block_tokens
        self._private: PrivateBlocks | None = None
        if kv_pool != "paged":
            blocks += max_running + 1
            self._private = PrivateBlocks(blocks, block_tokens)
        if kernels is None and self.device.type == "cuda":
            kernels = kernels_for(self.device)
        #: the blocks, and how attention reads them
        self.memory: PagedMemory = (
            GatheredMemory(model, blocks, block_tokens)
            if kernels is None
            else KernelMemory(model, blocks, block_tokens, kernels)
        )

    def reset(self) -> None:
        """See :class:`~engine.steps.Executor`."""
        super().reset()
        if self._private is not None:
            self._private.clear()

    def prepare(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Batch:
        """Pack the chunks' tokens into one row: the rows of one token, then those of prompts."""
        token_ids: list[int] = []
        positions: list[int] = []
        write_slots: list[int] = []
        sampled: list[int] = []
        numbers: list[int] = []
        packed: list[PackedChunk] = []
        chunks = sorted(plan.chunks, key=lambda chunk: not is_row(chunk.start, chunk.tokens))
        for chunk in chunks:
            sequence, start, tokens, _ = chunk
            end = start + tokens
            table = self._table(plan, chunk)
            packed.append(PackedChunk(len(token_ids), tokens, end, table))
            token_ids += states[sequence.number].token_ids[start:end]
            positions += range(start, end)
            write_slots += slots_of(table, start, end, self.block_tokens)
            if chunk.samples:
                sampled.append(len(token_ids) - 1)
                numbers.append(sequence.number)
        return Batch(
            self.tensor([token_ids]),
            self.tensor([positions]),
            self.memory.attention(packed, write_slots, plan.features.longest_context),
            self.tensor(sampled),
            numbers,
            draws_of(chunks, states),
        )

    def swap_out(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`."""
        held = self._swapped_blocks(swap)
        self.release(swap.number)
        return lambda: self.host_copies.put(swap.number, to_host(self.memory.tensors, held))

    def swap_in(self, swap: Swap) -> Copy:
        """See :class:`~engine.executors.base.ModelExecutor`. The blocks need not be the ones that it had."""
        held = self._swapped_blocks(swap)

        def copy() -> None:
            from_host(self.memory.tensors, held, self.host_copies.get(swap.number))
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
        """Pairs that attention computes under a mask."""
        return ExecutorWaste(0, self.memory.masked_pairs((chunk.start, chunk.tokens) for chunk in plan.chunks))

    def _table(self, plan: StepPlan, chunk: Chunk) -> list[int]:
        end = chunk.start + chunk.tokens
        if self._private is not None:
            return self._private.table(chunk.sequence.number, end)
        return plan.block_table(chunk.sequence)[: -(-end // self.block_tokens)]
