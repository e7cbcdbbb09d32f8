"""Steps of prompts as CUDA graphs: one for each of some numbers of tokens, with room for a few chunks.

They pay where a GPU is done with a step sooner than a host can launch its kernels. Attention has a program for each
tile of each chunk that there may be; those that find nothing to do end at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.fused.decoder import Chunks, Decoder, KvCache, StepTensors
from engine.fused.graphs import Memory
from engine.kernels.captures import captured
from engine.tensors import upload
from scheduler.graphs import MOST_CHUNKS


class Prompts(NamedTuple):
    """Packed chunks: of each token its id, position and slot; of each chunk its sequence's place and where it starts
    in the context, and (one more) where it begins in the pack."""

    ids: list[int]
    positions: list[int]
    slots: list[int]
    places: list[int]
    starts: list[int]
    offsets: list[int]


class PromptSteps:
    """Steps of up to ``sizes[-1]`` tokens in at most ``MOST_CHUNKS`` chunks, each computed as ``size`` tokens.

    On a GPU the sizes are captured as graphs; elsewhere they are plain calls of so many tokens.
    """

    def __init__(self, decoder: Decoder, cache: KvCache, memory: Memory, sizes: Sequence[int]) -> None:
        self._decoder, self._cache, self._memory = decoder, cache, memory
        self._most = max(sizes, default=0)
        device = memory.last.device
        #: ids, positions and slots of the tokens; then places, starts and offsets of the chunks
        self._numbers = torch.zeros(3 * self._most + 3 * MOST_CHUNKS + 1, dtype=torch.int64, device=device)
        self._hidden: dict[int, Tensor] = {}
        self._graphs: dict[int, Any] = {}
        #: the memory pool of the graphs
        self._pool: Any = None
        if device.type == "cuda":
            # the largest first, so that the others fit into its memory
            for size in reversed(sizes):
                self.capture(size)

    def capture(self, size: int) -> None:
        """Capture the graph of ``size`` tokens."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._fill(Prompts([], [], [], [], [], [0]))
        with torch.inference_mode():
            self._graphs[size], self._hidden[size] = captured(
                partial(self._run, size), self._numbers.device, self._pool
            )

    def run(self, size: int, prompts: Prompts, unknown: Sequence[tuple[int, int]]) -> Tensor:
        """One step as ``size`` tokens: ``[size, hidden]``, normalised for the head, good until the next step is run.

        ``unknown``: where among the ids the last sampled token of a place belongs.
        """
        self._fill(prompts)
        if unknown:
            at, source = (upload(values, torch.int64, self._numbers.device) for values in zip(*unknown, strict=True))
            self._numbers[at] = self._memory.last[source]
        if size in self._graphs:
            self._graphs[size].replay()
            return self._hidden[size]
        return self._run(size)

    def _fill(self, prompts: Prompts) -> None:
        """Copy the numbers to the device. Tokens and chunks that only fill the graph up write and see nothing."""
        most, tokens, chunks = self._most, len(prompts.ids), len(prompts.places)
        numbers = np.zeros(len(self._numbers), dtype=np.int64)
        numbers[2 * most : 3 * most] = -1
        for place, values in enumerate((prompts.ids, prompts.positions, prompts.slots)):
            numbers[place * most : place * most + tokens] = values
        places, starts, offsets = np.split(numbers[3 * most :], (MOST_CHUNKS, 2 * MOST_CHUNKS))
        places[:], offsets[:] = len(self._memory.last) - 1, tokens
        places[:chunks], starts[:chunks], offsets[: chunks + 1] = prompts.places, prompts.starts, prompts.offsets
        given = torch.from_numpy(numbers)
        self._numbers.copy_(given.pin_memory() if self._numbers.is_cuda else given, non_blocking=True)

    def _run(self, size: int) -> Tensor:
        """The step itself; everything it reads has its place."""
        most = self._most
        ids, positions, slots = (self._numbers[place * most : place * most + size] for place in range(3))
        places, starts, offsets = self._numbers[3 * most :].tensor_split((MOST_CHUNKS, 2 * MOST_CHUNKS))
        chunks = Chunks(size, self._memory.tables[places], starts.int(), offsets.int(), size)
        return self._decoder.forward(StepTensors(ids, positions, slots, chunks, None), self._cache)
