"""The paged executor on a GPU: merged weights, our own kernels, and decode steps that are one CUDA graph each.

A step may be launched before the one before has given its result: a token that was sampled stays on the device, where
the next step reads it, and a copy goes to the host meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.executors.base import Copy, DeviceTimer, HostCopies, PendingStep, SequenceState, StepResult
from engine.executors.paged import PrivateBlocks
from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.fused.graphs import DecodeSteps, Memory, columns, temperature_bits
from engine.models import LoadedModel
from engine.sampling import Draw, Sampler, row_key
from engine.tensors import upload
from scheduler.kv import PoolKind
from scheduler.plan import Chunk, Layout, StepPlan, Swap


@dataclass(eq=False)
class _Step:
    """A step that has been launched. A :class:`~engine.executors.base.PendingStep`."""

    timer: DeviceTimer
    numbers: list[int]
    tokens: Tensor | None

    def result(self) -> StepResult:
        device_ns = self.timer.elapsed_ns()
        tokens = [] if self.tokens is None else self.tokens.tolist()
        return StepResult(dict(zip(self.numbers, tokens, strict=True)), device_ns)


class FusedExecutor:
    """Runs plans of the ``paged`` layout through :class:`~engine.fused.decoder.Decoder`.

    ``kv_tokens`` and ``block_tokens`` are the scheduler's; ``kv_pool`` says whether its plans carry block tables.
    ``graph_rows``: sizes that decode steps are filled up to; on a GPU each is captured as a CUDA graph when the
    executor is made.
    """

    layout: Layout = "paged"
    #: a step may be launched before the one before has given its result
    launches_ahead = True

    def __init__(
        self,
        model: LoadedModel,
        *,
        kv_tokens: int,
        max_running: int,
        max_rows: int | None = None,
        block_tokens: int = 16,
        kv_pool: PoolKind = "paged",
        graph_rows: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.device = model.device
        self.block_tokens = block_tokens
        self.host_copies = HostCopies()
        self.decoder = Decoder(model)
        blocks = kv_tokens // block_tokens
        self._private: PrivateBlocks | None = None
        if kv_pool != "paged":
            blocks += max_running + 1
            self._private = PrivateBlocks(blocks, block_tokens)
        self.cache = KvCache(model, blocks, block_tokens)
        width = -(-model.context_tokens // block_tokens) + 1
        self._memory = Memory(
            torch.zeros(max_running + 1, width, dtype=torch.int32, device=self.device),
            torch.zeros(max_running + 1, dtype=torch.int64, device=self.device),
        )
        #: of sequences that hold KV: their place, and those of their blocks that the device's table names
        self._places: dict[int, int] = {}
        self._tables: dict[int, list[int]] = {}
        self._free_places = list(range(max_running - 1, -1, -1))
        self._decodes = DecodeSteps(
            self.decoder,
            self.cache,
            self._memory,
            min(max_running, max_rows or max_running),
            model.context_tokens,
            graph_rows,
        )

    def execute(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> StepResult:
        """Run one step and wait for what it gives."""
        return self.launch(plan, states).result()

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> PendingStep:
        """Start one step; see :class:`~engine.executors.base.Executor`. It waits for nothing on the device."""
        with torch.inference_mode():
            timer = DeviceTimer(self.device)
            timer.start()
            copies = [self._swap_out(swap) for swap in plan.swapped_out]
            for number in plan.released:
                self.host_copies.drop(number)
                self._leave(number)
            copies += [self._swap_in(swap) for swap in plan.swapped_in]
            for copy in copies:
                copy()
            chunks = plan.chunks
            self._name_blocks(plan, chunks)
            tokens: Tensor | None
            if plan.kind == "decode":
                numbers, tokens = self._decode(chunks, states)
            else:
                numbers, tokens = self._mixed(chunks, states)
            # to pinned memory, so that nobody waits here
            host = None if tokens is None else tokens.to("cpu", non_blocking=True, copy=True)
            timer.stop()
        return _Step(timer, numbers, host)

    # -- what a step is made of

    def _decode(self, chunks: list[Chunk], states: Mapping[int, SequenceState]) -> tuple[list[int], Tensor]:
        """Rows of one token each, all of which sample."""
        size, rows, draws, filtered = self.block_tokens, [], [], False
        for sequence, start, _, _ in chunks:
            number = sequence.number
            state = states[number]
            known, params = state.token_ids, state.sampling
            rows.append((
                known[start] if start < len(known) else -1,
                self._places[number],
                start,
                self._tables[number][start // size] * size + start % size,
                start + 1,
                temperature_bits(params.temperature),
                0 if params.temperature == 0 else row_key(state.seed, start + 1),
            ))  # fmt: skip
            draws.append(Draw(params, state.seed, start + 1))
            filtered = filtered or params.filters
        tokens, logits = self._decodes.run(columns(rows))
        if filtered:
            tokens = Sampler(draws, logits.shape[-1], self.device)(logits)
            self._memory.last[self._indices([row[1] for row in rows])] = tokens
        return [chunk.sequence.number for chunk in chunks], tokens

    def _mixed(self, chunks: list[Chunk], states: Mapping[int, SequenceState]) -> tuple[list[int], Tensor | None]:
        """Chunks of prompts, and rows that decode beside them."""
        prompts = [chunk for chunk in chunks if not self._is_row(chunk, states)]
        rows = [chunk for chunk in chunks if self._is_row(chunk, states)]
        ids: list[int] = []
        unknown: list[tuple[int, int]] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        offsets = [0]
        for sequence, start, tokens, samples in prompts + rows:
            end, number = start + tokens, sequence.number
            known = states[number].token_ids
            if end > len(known):
                unknown.append((len(ids), self._places[number]))
                ids.append(0)
            else:
                ids += known[start:end]
            positions += range(start, end)
            slots += self._slots(number, start, end)
            if samples:
                sampled.append(len(ids) - 1)
            offsets.append(len(ids))
        places = [self._places[chunk.sequence.number] for chunk in prompts + rows]
        tables = self._memory.tables[self._indices(places)]
        packed = self._indices(ids)
        if unknown:
            at, source = self._indices([u[0] for u in unknown]), self._indices([u[1] for u in unknown])
            packed[at] = self._memory.last[source]
        ends = [chunk.start + 1 for chunk in rows]
        split = len(prompts)
        step = StepTensors(
            packed,
            self._indices(positions),
            self._indices(slots),
            Chunks(
                offsets[split],
                tables[:split],
                upload([chunk.start for chunk in prompts], torch.int32, self.device),
                upload(offsets[: split + 1], torch.int32, self.device),
                max(chunk.tokens for chunk in prompts),
            ) if prompts else None,
            Rows(tables[split:], upload(ends, torch.int32, self.device)) if rows else None,
        )  # fmt: skip
        hidden = self.decoder.forward(step, self.cache)
        if not sampled:
            return [], None
        sampling = [chunk for chunk in prompts + rows if chunk.samples]
        draws = []
        for sequence, start, tokens, _ in sampling:
            state = states[sequence.number]
            draws.append(Draw(state.sampling, state.seed, start + tokens))
        logits = self.decoder.logits(hidden[self._indices(sampled)])
        chosen = Sampler(draws, logits.shape[-1], self.device)(logits)
        self._memory.last[self._indices([self._places[chunk.sequence.number] for chunk in sampling])] = chosen
        return [chunk.sequence.number for chunk in sampling], chosen

    @staticmethod
    def _is_row(chunk: Chunk, states: Mapping[int, SequenceState]) -> bool:
        """Whether decode attention serves it: one token behind others."""
        return chunk.tokens == 1 and chunk.start > 0

    # -- memory

    def _name_blocks(self, plan: StepPlan, chunks: list[Chunk]) -> None:
        """Give every sequence of the step a place, and tell the device's table of the blocks that it has got since."""
        at_place: list[int] = []
        at_index: list[int] = []
        blocks: list[int] = []
        for sequence, start, tokens, _ in chunks:
            number = sequence.number
            if number not in self._places:
                self._places[number] = self._free_places.pop()
                self._tables[number] = []
            needed = -(-(start + tokens) // self.block_tokens)
            held = self._tables[number]
            named = len(held)
            if needed <= named:
                continue
            table = plan.block_table(sequence) if self._private is None else self._private.table(number, start + tokens)
            held += table[named:needed]
            at_place += [self._places[number]] * (needed - named)
            at_index += range(named, needed)
            blocks += held[named:]
        if blocks:
            places, indices = self._indices(at_place), self._indices(at_index)
            self._memory.tables[places, indices] = upload(blocks, torch.int32, self.device)

    def _slots(self, number: int, start: int, end: int) -> list[int]:
        size, table = self.block_tokens, self._tables[number]
        return [table[position // size] * size + position % size for position in range(start, end)]

    def _leave(self, number: int) -> None:
        """The sequence holds no KV on the device any more."""
        place = self._places.pop(number, None)
        if place is not None:
            self._free_places.append(place)
        self._tables.pop(number, None)
        if self._private is not None:
            self._private.release(number)

    def _swap_out(self, swap: Swap) -> Copy:
        """Copy the KV to host memory, ``[2, layers, blocks, *block shape]``: keys, then values."""
        blocks = self._swapped_blocks(swap)
        self._leave(swap.number)
        cache = self.cache
        shape = (2, len(cache.keys), len(blocks), *cache.keys[0].shape[1:])
        host = torch.empty(shape, dtype=self.model.dtype, pin_memory=self.device.type == "cuda")
        self.host_copies.put(swap.number, host)

        def copy() -> None:
            for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
                host[0, layer].copy_(keys.index_select(0, blocks), non_blocking=True)
                host[1, layer].copy_(values.index_select(0, blocks), non_blocking=True)

        return copy

    def _swap_in(self, swap: Swap) -> Copy:
        """Copy the KV back from host memory, into the blocks that the sequence has now."""
        blocks = self._swapped_blocks(swap)
        host = self.host_copies.take(swap.number)
        cache = self.cache

        def copy() -> None:
            for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
                keys.index_copy_(0, blocks, host[0, layer].to(self.device, non_blocking=True))
                values.index_copy_(0, blocks, host[1, layer].to(self.device, non_blocking=True))

        return copy

    def _swapped_blocks(self, swap: Swap) -> Tensor:
        """``int64[blocks]``: where the tokens to be moved lie on the device."""
        count = -(-swap.tokens // self.block_tokens)
        table = swap.blocks if self._private is None else self._private.table(swap.number, swap.tokens)
        return self._indices(list(table[:count]))

    def _indices(self, values: list[int]) -> Tensor:
        return upload(values, torch.int64, self.device)
