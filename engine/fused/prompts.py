"""Steps with prompts: kernel by kernel, or as CUDA graphs, one for each of some numbers of tokens.

Graphs have room for a few chunks; those of steps that have rows beside them, for as many rows as a step may have. They
pay where a GPU is done with a step sooner than a host can launch its kernels. Attention has a program for each tile of
each chunk and for each part of each row that there may be; those that find nothing to do end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.fused.graphs import Cut
from engine.fused.memory import Memory
from engine.fused.packing import PromptLines, PromptSizes, prompt_lines, prompt_numbers
from engine.kernels.captures import captured
from engine.tensors import refill, upload
from scheduler.graphs import MOST_CHUNKS


class Drawn(NamedTuple):
    """The tokens ``int64[samples]`` that a step's rows have sampled, and the logits they were drawn from."""

    tokens: Tensor
    logits: Tensor


def graph_room(tokens: int, most_rows: int = 0) -> PromptSizes:
    """The room that the graph of so many tokens has, in steps that have up to ``most_rows`` rows."""
    rows = min(tokens, most_rows)
    return PromptSizes(tokens, MOST_CHUNKS, rows, min(tokens, rows + MOST_CHUNKS) if rows else MOST_CHUNKS)


class PromptSteps:
    """Steps with prompts; those that are given one of the ``rooms`` are computed as that graph, see :func:`graph_room`.

    On a GPU the rooms are captured; elsewhere they are plain calls of so many tokens. ``cut`` says how attention cuts
    the contexts of the rows of a graph.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        memory: Memory,
        rooms: Sequence[PromptSizes],
        cut: Callable[[int], Cut],
    ) -> None:
        self._decoder, self._cache, self._memory, self._cut = decoder, cache, memory, cut
        device = memory.last.device
        #: of the step, as its room lays them out
        self._numbers = torch.zeros(max(map(prompt_numbers, rooms), default=0), dtype=torch.int64, device=device)
        self._drawn: dict[PromptSizes, Drawn] = {}
        self._graphs: dict[PromptSizes, Any] = {}
        #: the memory pool of the graphs
        self._pool: Any = None
        if device.type == "cuda":
            # the largest first, so that the others fit into its memory
            for room in sorted(rooms, reverse=True):
                self._capture(room)

    def _capture(self, room: PromptSizes) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self._fill(nothing(room, self._memory.filler))
        with torch.inference_mode():
            self._graphs[room], self._drawn[room] = captured(
                partial(self._run_graph, room), self._numbers.device, self._pool
            )

    def run(self, numbers: npt.NDArray[np.int64], sizes: PromptSizes, longest: int) -> Drawn | None:
        """One step of ``numbers``, as :func:`~engine.fused.packing.prompt_lines` lays them out, kernel by kernel.

        No chunk has more than ``longest`` tokens. ``None`` where no row samples.
        """
        lines = prompt_lines(upload(numbers, torch.int64, self._memory.last.device), sizes)
        hidden = self._hidden(lines, sizes, longest, None)
        return self._sampled(lines, hidden) if sizes.samples else None

    def run_graph(self, room: PromptSizes, numbers: npt.NDArray[np.int64]) -> Drawn:
        """One step as the graph of that ``room``, good until the next step is run."""
        self._fill(numbers)
        if room in self._graphs:
            self._graphs[room].replay()
            return self._drawn[room]
        return self._run_graph(room)

    def _fill(self, numbers: npt.NDArray[np.int64]) -> None:
        refill(self._numbers[: len(numbers)], numbers)

    def _run_graph(self, room: PromptSizes) -> Drawn:
        """Everything it reads has its place."""
        lines = prompt_lines(self._numbers, room)
        cut = self._cut(room.rows) if room.rows else None
        return self._sampled(lines, self._hidden(lines, room, room.tokens, cut))

    def _hidden(self, lines: PromptLines, sizes: PromptSizes, longest: int, cut: Cut | None) -> Tensor:
        """``[tokens, hidden]``, normalised for the head."""
        memory = self._memory
        ids = self._decoder.kernels.take_in(
            lines.ids, lines.places, lines.positions, lines.slots, memory.tables, memory.last, memory.block_tokens
        )
        chunks = rows = None
        if sizes.chunks:
            chunks = Chunks(memory.tables[lines.chunk_places], lines.starts.int(), lines.offsets.int(), longest)
        if sizes.rows:
            rows = Rows(memory.tables[lines.row_places], lines.lengths.int(), *(cut or ()))
        return self._decoder.forward(StepTensors(ids, lines.positions, lines.slots, chunks, rows), self._cache)

    def _sampled(self, lines: PromptLines, hidden: Tensor) -> Drawn:
        decoder = self._decoder
        logits = decoder.logits(hidden[lines.sampled])
        tokens = decoder.kernels.sample(logits, lines.temperatures.int().view(torch.float32), lines.keys)
        self._memory.last[lines.sampling_places] = tokens
        return Drawn(tokens, logits)


def nothing(sizes: PromptSizes, filler: int) -> npt.NDArray[np.int64]:
    """The numbers of a step of so much room that writes nothing and sees nothing, of the place ``filler``."""
    numbers = np.zeros(prompt_numbers(sizes), dtype=np.int64)
    lines = prompt_lines(numbers, sizes)
    lines.slots[:] = -1
    lines.places[:] = lines.chunk_places[:] = lines.row_places[:] = lines.sampling_places[:] = filler
    return numbers
