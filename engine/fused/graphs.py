"""Whole decode steps as CUDA graphs: one for each of some numbers of rows, from the token ids to the sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.fused.decoder import Decoder, KvCache, Rows, StepTensors
from engine.fused.memory import Memory
from engine.fused.packing import COLUMNS, ID, KEY, LENGTH, PLACE, POSITION, SLOT, TEMPERATURE, line_length
from engine.kernels import DecodeWorkspace, Splits, decode_splits, processors_of
from engine.kernels.captures import captured
from engine.tensors import refill
from scheduler.graphs import graph_rows_for
from scheduler.graphs import graph_sizes as default_sizes


class Cut(NamedTuple):
    """How attention cuts the contexts of a step's rows, and where it keeps the parts."""

    workspace: DecodeWorkspace
    splits: Splits


class DecodeSteps:
    """Decode steps of up to ``most_rows`` rows: each as the next larger of ``graph_sizes``, or as it is.

    On a GPU the sizes are captured as graphs; elsewhere they are plain calls of so many rows.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        memory: Memory,
        most_rows: int,
        context_tokens: int,
        graph_sizes: Sequence[int],
    ) -> None:
        self._decoder, self._cache, self._memory = decoder, cache, memory
        device = memory.last.device
        heads = decoder.architecture.heads
        self._graph_sizes = tuple(graph_sizes)
        most_rows = max([most_rows, *self._graph_sizes])
        #: numbers of rows that attention is split for: those of graphs, and for what no graph is large enough
        beyond = [size for size in default_sizes(most_rows) if size > max(self._graph_sizes, default=0)]
        self.sizes = (*self._graph_sizes, *beyond)
        processors = processors_of(device)
        self._splits = {size: decode_splits(size, heads.key_value, context_tokens, processors) for size in self.sizes}
        room = max(size * self._splits[size].most for size in self.sizes)
        most_splits = max(splits.most for splits in self._splits.values())
        self._workspace = DecodeWorkspace(max(-(-room // most_splits), most_rows), heads, most_splits, device)
        #: of the step, in lines whose length is its own
        self._flat = torch.zeros(COLUMNS * line_length(most_rows), dtype=torch.int64, device=device)
        self._tokens = torch.zeros(most_rows, dtype=torch.int64, device=device)
        self._logits: dict[int, Tensor] = {}
        self._graphs: dict[int, Any] = {}
        #: the memory pool of the graphs
        self._pool: Any = None
        if self._graph_sizes and device.type == "cuda":
            # the largest first, so that the others fit into its memory
            for size in reversed(self._graph_sizes):
                self.capture(size)

    def capture(self, size: int) -> None:
        """Capture the graph of ``size`` rows."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self._fill(np.zeros((COLUMNS, 0), dtype=np.int64), size)
        with torch.inference_mode():
            self._graphs[size], self._logits[size] = captured(partial(self._run, size), self._flat.device, self._pool)

    def size_for(self, rows: int) -> int:
        """The rows that are computed for ``rows`` rows."""
        return graph_rows_for(rows, self._graph_sizes) or rows

    def cut(self, rows: int) -> Cut:
        """How the contexts of ``rows`` rows are cut."""
        return Cut(self._workspace, self._splits[graph_rows_for(rows, self.sizes)])

    def run(self, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """One step of ``numbers`` ``int64[COLUMNS, rows]``: the sampled tokens ``int64[rows]``, and the logits.

        Both are good until the next step is run.
        """
        rows = numbers.shape[1]
        size = self.size_for(rows)
        self._fill(numbers, size)
        if size in self._graphs:
            self._graphs[size].replay()
            logits = self._logits[size]
        else:
            logits = self._run(size)
        return self._tokens[:rows], logits[:rows]

    def _lines(self, size: int) -> Tensor:
        """The numbers of a step of ``size`` rows: ``int64[COLUMNS, size]``."""
        length = line_length(size)
        return self._flat[: COLUMNS * length].view(COLUMNS, length)[:, :size]

    def _fill(self, numbers: npt.NDArray[np.int64], size: int) -> None:
        """Copy ``numbers`` ``int64[COLUMNS, rows]`` to the device. Rows that only fill the step up write and see
        nothing."""
        rows, length = numbers.shape[1], line_length(size)
        lines = np.zeros((COLUMNS, length), dtype=np.int64)
        lines[:, :rows] = numbers
        lines[PLACE, rows:], lines[SLOT, rows:] = self._memory.filler, -1
        refill(self._flat[: COLUMNS * length], lines.reshape(-1))

    def _run(self, size: int) -> Tensor:
        """The step itself; everything it reads has its place. Returns the logits ``[size, vocab]``."""
        numbers, memory = self._lines(size), self._memory
        places, positions, slots = numbers[PLACE], numbers[POSITION], numbers[SLOT]
        ids = self._decoder.kernels.take_in(
            numbers[ID], places, positions, slots, memory.tables, memory.last, memory.block_tokens
        )
        rows = Rows(memory.tables[places], numbers[LENGTH].int(), *self.cut(size))
        step = StepTensors(ids, positions, slots, None, rows)
        logits = self._decoder.logits(self._decoder.forward(step, self._cache))
        temperature = numbers[TEMPERATURE].int().view(torch.float32)
        tokens = self._decoder.kernels.sample(logits, temperature, numbers[KEY])
        memory.last[places] = tokens
        self._tokens[:size] = tokens
        return logits
