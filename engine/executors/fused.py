"""The paged executor on a GPU: merged weights, our own kernels, and decode steps that are one CUDA graph each.

A step may be launched before the one before has given its result: a token that was sampled stays on the device, where
the next step reads it, and a copy goes to the host meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch

from engine.draws import TokenLogprobs, row_keys
from engine.executors.base import Booking, DeviceTimer, draws_of, halves
from engine.executors.paged import PrivateBlocks
from engine.executors.places import Places
from engine.faults import free_unused, is_out_of_memory
from engine.fused.decoder import Decoder, KvCache
from engine.fused.device import (
    DecodeInputs,
    DeviceSettings,
    FusedDevice,
    MixedInputs,
    Moved,
    Moves,
    Redrawn,
    RowInputs,
    StepInputs,
    TableUpdate,
)
from engine.fused.graphs import DecodeSteps
from engine.fused.memory import table_width
from engine.fused.packing import (
    COLUMNS,
    ID,
    KEY,
    LENGTH,
    PLACE,
    POSITION,
    SLOT,
    TEMPERATURE,
    PromptSizes,
    prompt_lines,
)
from engine.fused.prompts import PromptSteps, graph_room, nothing
from engine.host_copies import HostCopies
from engine.models import LoadedModel
from engine.parallel.workers import Workers
from engine.sampling import Sampled
from engine.steps import PendingStep, SequenceState, StepResult
from engine.tensors import current_device
from scheduler.graphs import NO_GRAPHS, Graphs, graph_tokens_for, is_row
from scheduler.kv import PoolKind
from scheduler.plan import Chunk, Kind, Layout, StepPlan, Swap

Words = npt.NDArray[np.int64]

_start = attrgetter("start")


@dataclass(eq=False)
class _Step:
    """A step that has been launched. A :class:`~engine.steps.PendingStep`."""

    timer: DeviceTimer
    #: what was sampled, in host memory, of the sequences of these numbers; of a step in pieces, for each
    sampled: list[tuple[list[int], Sampled]]
    workers: Workers | None

    def result(self) -> StepResult:
        if self.workers is not None:
            self.workers.wait_until(self.timer.done)
        device_ns = self.timer.elapsed_ns()
        tokens: dict[int, int] = {}
        logprobs: dict[int, TokenLogprobs] = {}
        for numbers, sampled in self.sampled:
            some_tokens, some_logprobs = sampled.by_number(numbers)
            tokens.update(some_tokens)
            logprobs.update(some_logprobs)
        return StepResult(tokens, device_ns, launch_ns=self.timer.launch_ns, logprobs=logprobs)


class FusedExecutor:
    """Runs plans of the ``paged`` layout through :class:`~engine.fused.decoder.Decoder`.

    This is the host's half: which sequence has which place and which blocks, and what that makes of a plan. The other
    half, :class:`~engine.fused.device.FusedDevice`, runs it; of a model that is divided over several ranks, there is
    one in each rank, and all are given the same.

    ``kv_tokens`` and ``block_tokens`` are the scheduler's; ``kv_pool`` says whether its plans carry block tables.
    ``graphs``: sizes that steps are filled up to; on a GPU each is captured as a CUDA graph when the executor is made.
    A model that is divided has one executor at a time: a new one ends the use of the one before.

    Raises :class:`~engine.errors.RankError` (also of :meth:`launch` and of its results) where another rank has failed.
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
        graphs: Graphs = NO_GRAPHS,
    ) -> None:
        self.model = model
        self.device = model.device
        self.block_tokens = block_tokens
        blocks = kv_tokens // block_tokens
        self._private: PrivateBlocks | None = None
        if kv_pool != "paged":
            blocks += max_running + 1
            self._private = PrivateBlocks(blocks, block_tokens)
        self._max_running = max_running
        self._width = table_width(model.context_tokens, block_tokens)
        #: swapped out by a scheduler before this one: every rank forgets them with its next step
        self._forgotten: tuple[int, ...] = ()
        self._forget()
        settings = DeviceSettings(
            blocks,
            block_tokens,
            max_running,
            min(max_running, max_rows or max_running),
            graphs,
        )
        self._most_rows, self._graphs = settings.most_rows, graphs
        self._workers = None if model.group is None else model.group.workers
        with current_device(self.device):
            if self._workers is None:
                self._device = FusedDevice(model, settings)
            else:
                self._device = self._workers.build(lambda: FusedDevice(model, settings), settings)

    @property
    def vocab(self) -> int:
        """See :class:`~engine.steps.Executor`."""
        return self.model.vocab

    @property
    def host_copies(self) -> HostCopies:
        """KV of the sequences that were swapped out (of this rank's heads)."""
        return self._device.host_copies

    @property
    def decoder(self) -> Decoder:
        """The model (or this rank's share)."""
        return self._device.decoder

    @property
    def decodes(self) -> DecodeSteps:
        """The decode steps and their graphs."""
        return self._device.decodes

    def prompt_steps(self, graphs: Graphs) -> PromptSteps:
        """Steps with prompts as other ``graphs``, over this executor's memory."""
        with current_device(self.device):
            return self._device.prompt_steps(graphs)

    @property
    def cache(self) -> KvCache:
        """The KV memory (of this rank's heads)."""
        return self._device.cache

    def execute(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> StepResult:
        """Run one step and wait for what it gives."""
        return self.launch(plan, states).result()

    def reset(self) -> None:
        """See :class:`~engine.steps.Executor`."""
        self._forgotten = self.host_copies.numbers
        self._forget()
        if self._private is not None:
            self._private.clear()

    def close(self) -> None:
        """See :class:`~engine.steps.Executor`. It has no threads; other ranks' processes are the model's."""

    def _forget(self) -> None:
        """No sequence holds KV on the device."""
        self._places = Places(self._max_running, self._width)
        self._booking: Booking | None = None

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> PendingStep:
        """Start one step; see :class:`~engine.steps.Executor`. It waits for nothing on the device.

        A step of a divided model cannot be launched again: what failed in one rank has ended all of them.
        """
        booking = self._booking
        again = booking is not None and booking.plan is plan
        if again:
            free_unused(self.device)
        timer = DeviceTimer(self.device)
        # what the host makes of the plan is none of the device's time
        with current_device(self.device), torch.inference_mode():
            if self._workers is not None:
                moves = self._moves(plan, states)
                numbers, rows = self._rows(plan.kind, plan.chunks, states)
                timer.start()
                sampled = _on_host(numbers, self._workers.run(self._device, StepInputs(moves, rows)))
            elif booking is not None and again:
                timer.start()
                booking.move()
                sampled = self._in_pieces(plan.kind, plan.chunks, states)
            else:
                self._booking = booking = Booking(plan, plan, deque(self._device.moves(self._moves(plan, states))))
                numbers, rows = self._rows(plan.kind, plan.chunks, states)
                timer.start()
                booking.move()
                sampled = _on_host(numbers, self._compute(rows))
            timer.stop()
        return _Step(timer, sampled, self._workers)

    # -- what a step is made of

    def _moves(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Moves:
        """Take note of ``plan``: the memory of its sequences is theirs. Nothing here asks for memory of the device."""
        forgotten, self._forgotten = self._forgotten, ()
        swapped_out = []
        for swap in plan.swapped_out:
            swapped_out.append(self._moved(swap))
            self._leave(swap.number)
        for number in plan.released:
            self._leave(number)
        swapped_in = [self._moved(swap) for swap in plan.swapped_in]
        return Moves(swapped_out, (*forgotten, *plan.released), swapped_in, self._named_blocks(plan, states))

    def _rows(
        self, kind: Kind, chunks: list[Chunk], states: Mapping[int, SequenceState]
    ) -> tuple[list[int], RowInputs]:
        """The sequence numbers that sample, in row order, and what the device is given for ``chunks``."""
        if kind == "decode":
            return self._decode(chunks, states)
        return self._mixed(kind, chunks, states)

    def _compute(self, rows: RowInputs) -> Sampled | None:
        """What the rows that sample give."""
        return self._device.compute(rows)

    def _in_pieces(
        self, kind: Kind, chunks: list[Chunk], states: Mapping[int, SequenceState]
    ) -> list[tuple[list[int], Sampled]]:
        """The sequence numbers that sample, and what they give, computed in as few pieces as memory allows."""
        try:
            numbers, rows = self._rows(kind, chunks, states)
            return _on_host(numbers, self._compute(rows))
        except RuntimeError as error:
            parts = halves(chunks)
            if parts is None or not is_out_of_memory(error):
                raise
        # out of the handler, whose exception holds on to what was computed
        free_unused(self.device)
        return [piece for part in parts for piece in self._in_pieces(kind, part, states)]

    def _decode(self, chunks: list[Chunk], states: Mapping[int, SequenceState]) -> tuple[list[int], DecodeInputs]:
        """Rows of one token each, all of which sample. The longest come first: a GPU that begins with them ends
        evenly."""
        chunks = sorted(chunks, key=_start, reverse=True)
        known, size = self._places, self.block_tokens
        owners = [chunk.sequence.number for chunk in chunks]
        places = np.array([known.of[number] for number in owners], dtype=np.int64)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        numbers = np.empty((COLUMNS, len(chunks)), dtype=np.int64)
        numbers[ID] = [
            ids[chunk.start] if chunk.start < len(ids) else -1
            for ids, chunk in zip([states[number].token_ids for number in owners], chunks, strict=True)
        ]
        numbers[PLACE], numbers[POSITION], numbers[LENGTH] = places, starts, starts + 1
        numbers[SLOT] = known.blocks[places, starts // size] * size + starts % size
        self._draw(numbers[TEMPERATURE], numbers[KEY], places, numbers[LENGTH])
        return owners, DecodeInputs(numbers, self._redrawn(chunks, places, states))

    def _mixed(
        self, kind: Kind, chunks: list[Chunk], states: Mapping[int, SequenceState]
    ) -> tuple[list[int], MixedInputs]:
        """Rows that decode, and chunks of prompts; the graph of a step of prompts alone takes all as chunks."""
        known, size = self._places, self.block_tokens
        rows = [chunk for chunk in chunks if is_row(chunk.start, chunk.tokens)]
        prompts = [chunk for chunk in chunks if not is_row(chunk.start, chunk.tokens)] if rows else chunks
        graph = self._graph(kind, sum(chunk.tokens for chunk in chunks), len(chunks), len(prompts))
        if kind == "prefill" and graph is not None:
            rows, prompts = [], chunks
        packed = rows + prompts
        ends = [*accumulate(chunk.tokens for chunk in packed)]
        sampling = [place for place, chunk in enumerate(packed) if chunk.samples]
        sizes = PromptSizes(ends[-1], len(prompts), len(rows), len(sampling))
        room = graph or sizes
        numbers = nothing(room, self._max_running)
        lines = prompt_lines(numbers, room)
        places = np.array([known.of[chunk.sequence.number] for chunk in packed], dtype=np.int64)
        for (sequence, start, tokens, _), end, place in zip(packed, ends, places.tolist(), strict=True):
            of_it = slice(end - tokens, end)
            ids = states[sequence.number].token_ids
            lines.ids[of_it] = [*ids[start:], -1] if start + tokens > len(ids) else ids[start : start + tokens]
            positions = np.arange(start, start + tokens)
            lines.positions[of_it] = positions
            lines.slots[of_it] = known.blocks[place, positions // size] * size + positions % size
            lines.places[of_it] = place
        behind = len(rows)
        lines.row_places[:behind] = places[:behind]
        lines.lengths[:behind] = [chunk.start + 1 for chunk in rows]
        lines.chunk_places[: len(prompts)] = places[behind:]
        lines.starts[: len(prompts)] = [chunk.start for chunk in prompts]
        lines.offsets[:] = ends[-1]
        lines.offsets[: len(prompts) + 1] = [behind, *ends[behind:]]
        count = len(sampling)
        lines.sampled[:count] = [ends[place] - 1 for place in sampling]
        lines.sampling_places[:count] = of_sampling = places[sampling]
        drawn = [packed[place] for place in sampling]
        after = np.array([chunk.start + chunk.tokens for chunk in drawn], dtype=np.int64)
        self._draw(lines.temperatures[:count], lines.keys[:count], of_sampling, after)
        return [chunk.sequence.number for chunk in drawn], MixedInputs(
            numbers,
            sizes,
            max((chunk.tokens for chunk in prompts), default=0),
            self._redrawn(drawn, of_sampling, states),
            graph,
        )

    def _graph(self, kind: Kind, tokens: int, chunks: int, prompts: int) -> PromptSizes | None:
        """The room of the graph that a step of ``tokens`` runs as, in so many chunks, of which some are prompts."""
        if kind == "mixed":
            size = graph_tokens_for(tokens, prompts, self._graphs.graph_mixed)
            return graph_room(size, self._most_rows) if size else None
        size = graph_tokens_for(tokens, chunks, self._graphs.graph_tokens)
        return graph_room(size) if size else None

    def _draw(self, temperatures: Words, keys: Words, places: Words, positions: Words) -> None:
        """Write how the tokens at ``positions`` are drawn: the bits of their temperatures, and their noise's keys."""
        heats = self._places.temperatures[places]
        temperatures[:] = heats.view(np.int32)
        keys[:] = row_keys(self._places.seed_keys[places], positions) if heats.any() else 0

    def _redrawn(self, chunks: list[Chunk], places: Words, states: Mapping[int, SequenceState]) -> Redrawn | None:
        """Of ``chunks`` that sample, whose sequences have these ``places``, those that ask for more than ``_draw``."""
        plain = self._places.plain[places]
        if plain.all():
            return None
        rows = np.flatnonzero(~plain).tolist()
        return Redrawn(rows, places[rows].tolist(), draws_of([chunks[row] for row in rows], states))

    # -- memory

    def _named_blocks(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> TableUpdate | None:
        """Give every sequence of the step a place; the blocks with tokens in them that the device does not know of yet.

        Those that the step writes to it finds by its tokens' slots.
        """
        known, size = self._places, self.block_tokens
        update = TableUpdate([], [], [])
        for sequence, start, tokens, _ in plan.chunks:
            number = sequence.number
            place = known.take(number, states[number])
            needed, named = -(-(start + tokens) // size), int(known.named[place])
            if needed <= named:
                continue
            table = plan.block_table(sequence) if self._private is None else self._private.table(number, start + tokens)
            known.blocks[place, named:needed] = table[named:needed]
            known.named[place] = needed
            behind = range(named, start // size)
            update.places.extend([place] * len(behind))
            update.indices.extend(behind)
            update.blocks.extend(table[named : start // size])
        return update if update.blocks else None

    def _leave(self, number: int) -> None:
        """The sequence holds no KV on the device any more."""
        self._places.leave(number)
        if self._private is not None:
            self._private.release(number)

    def _moved(self, swap: Swap) -> Moved:
        """Where the tokens to be moved lie on the device."""
        count = -(-swap.tokens // self.block_tokens)
        table = swap.blocks if self._private is None else self._private.table(swap.number, swap.tokens)
        return Moved(swap.number, list(table[:count]))


def _on_host(numbers: list[int], sampled: Sampled | None) -> list[tuple[list[int], Sampled]]:
    """What sequences of these ``numbers`` have sampled, on its way to the host before the next step overwrites it."""
    return [] if sampled is None else [(numbers, sampled.to_host())]
