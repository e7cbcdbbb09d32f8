"""The device's half of the fused executor: what it is given for a step, in plain numbers, and how it runs that.

Everything that the host decides is in :class:`StepInputs`, so that the same step can be run by several processes, each
on its share of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.draws import Draw
from engine.faults import free_unused
from engine.fused.decoder import Decoder, KvCache
from engine.fused.graphs import DecodeSteps
from engine.fused.memory import Memory, table_width
from engine.fused.packing import PromptSizes, prompt_lines
from engine.fused.prompts import Drawn, PromptSteps, graph_room, nothing
from engine.host_copies import HostCopies, from_host, to_host
from engine.models import LoadedModel
from engine.sampling import Sampled, Sampler
from engine.tensors import upload
from scheduler.graphs import NO_GRAPHS, Graphs


class DeviceSettings(NamedTuple):
    """The memory of a :class:`FusedDevice`: KV blocks, places for sequences that hold some, rows of a decode step.

    ``graphs``: sizes that steps are filled up to.
    """

    blocks: int
    block_tokens: int
    places: int
    most_rows: int
    graphs: Graphs = NO_GRAPHS


class Moved(NamedTuple):
    """KV that goes to host memory or comes from there: a sequence number, and its blocks on the device."""

    number: int
    blocks: list[int]


class TableUpdate(NamedTuple):
    """Blocks that sequences have got with tokens in them: ``tables[places[i], indices[i]] = blocks[i]``.

    Those that a step writes to it names itself.
    """

    places: list[int]
    indices: list[int]
    blocks: list[int]


class Redrawn(NamedTuple):
    """Of the rows that sample, those that ask for more than a temperature, in order; the others keep the tokens that
    the step itself gives. ``places`` are those of their sequences, ``draws`` what they are sampled with."""

    rows: list[int]
    places: list[int]
    draws: list[Draw]


class DecodeInputs(NamedTuple):
    """Rows of one token, all of which sample: ``int64[COLUMNS, rows]``, see :data:`~engine.fused.packing.ID` ff."""

    numbers: npt.NDArray[np.int64]
    redrawn: Redrawn | None = None


class MixedInputs(NamedTuple):
    """Rows of one token and, behind them, chunks of prompts; packed, as
    :func:`~engine.fused.packing.prompt_lines` lays them out.

    ``sizes`` are those of the step; ``graph``: the room of the graph that it runs as, which ``numbers`` have then. No
    chunk has more than ``longest`` tokens.
    """

    numbers: npt.NDArray[np.int64]
    sizes: PromptSizes
    longest: int
    redrawn: Redrawn | None = None
    graph: PromptSizes | None = None


RowInputs = DecodeInputs | MixedInputs


class Moves(NamedTuple):
    """What happens to the memory before a step computes anything, in this order."""

    swapped_out: list[Moved]
    released: tuple[int, ...]
    swapped_in: list[Moved]
    table: TableUpdate | None


class StepInputs(NamedTuple):
    """All that a step does on the device."""

    moves: Moves
    rows: RowInputs


class FusedDevice:
    """A model (or one rank's share of it), its KV and its graphs on one device.

    Raises :class:`~engine.errors.ModelError` for a model that the decoder cannot compute.
    """

    def __init__(self, model: LoadedModel, settings: DeviceSettings) -> None:
        self.device, self.dtype = model.device, model.dtype
        self.host_copies = HostCopies()
        self.decoder = Decoder(model)
        if self.device.type == "cuda":
            self.decoder.tune(max((settings.most_rows, *settings.graphs.graph_rows)))
            # what this took, and what weights took before they were merged, is KV's
            free_unused(self.device)
        self.cache = KvCache(model, settings.blocks, settings.block_tokens)
        width = table_width(model.context_tokens, settings.block_tokens)
        self._memory = Memory(
            torch.zeros(settings.places + 1, width, dtype=torch.int32, device=self.device),
            torch.zeros(settings.places + 1, dtype=torch.int64, device=self.device),
            settings.block_tokens,
        )
        self.decodes = DecodeSteps(
            self.decoder, self.cache, self._memory, settings.most_rows, model.context_tokens,
            settings.graphs.graph_rows,
        )  # fmt: skip
        self._most_rows = settings.most_rows
        self.prompts = self.prompt_steps(settings.graphs)
        if self.device.type == "cuda":
            with torch.inference_mode():
                self._meet_mixed_steps(settings)

    def _meet_mixed_steps(self, settings: DeviceSettings) -> None:
        """Run small prompts beside rows once: their kernels are compiled now, not while somebody waits.

        A kernel is compiled anew where the rows' tables begin at another alignment, which the number of chunks decides,
        and where there are more rows than kernels overlap for. Nothing is stored, and all is of the place that no
        sequence has.
        """
        from engine.kernels.hopper import MOST_ROWS  # imports Triton, which only a GPU needs

        size = 16
        for rows in sorted({1, min(MOST_ROWS + 1, settings.most_rows)}):
            for chunks in (1, 4):
                sizes = PromptSizes(size * chunks + rows, chunks, rows, 0)
                numbers = nothing(sizes, self._memory.filler)
                lines = prompt_lines(numbers, sizes)
                lines.offsets[:] = range(rows, rows + size * chunks + 1, size)
                lines.lengths[:] = 1
                self.prompts.run(numbers, sizes, size)

    def prompt_steps(self, graphs: Graphs) -> PromptSteps:
        """Steps with prompts, of which those that run as ``graphs`` are captured on a GPU."""
        rooms = [graph_room(size) for size in graphs.graph_tokens]
        rooms += [graph_room(size, self._most_rows) for size in graphs.graph_mixed]
        return PromptSteps(self.decoder, self.cache, self._memory, rooms, self.decodes.cut)

    def run(self, inputs: StepInputs) -> Sampled | None:
        """Start a step; nothing is waited for. What its sampling rows give, good until the next step.

        Raises ``RuntimeError`` where KV is swapped out twice, or in without having been swapped out.
        """
        with torch.inference_mode():
            for move in self.moves(inputs.moves):
                move()
            return self.compute(inputs.rows)

    def moves(self, moves: Moves) -> list[Callable[[], None]]:
        """The moves, each ready to be made. One that raises may be made again."""
        found: list[Callable[[], None]] = [partial(self._swap_out, moved) for moved in moves.swapped_out]
        found += [partial(self.host_copies.drop, number) for number in moves.released]
        found += [partial(self._swap_in, moved) for moved in moves.swapped_in]
        if moves.table is not None:
            found.append(partial(self._name_blocks, moves.table))
        return found

    def compute(self, rows: RowInputs) -> Sampled | None:
        """Start what a step computes, see :meth:`run`."""
        return self._decode(rows) if isinstance(rows, DecodeInputs) else self._mixed(rows)

    def close(self) -> None:
        """Let go of the graphs; no step can be run any more."""
        del self.decodes, self.prompts

    def _decode(self, inputs: DecodeInputs) -> Sampled:
        tokens, logits = self.decodes.run(inputs.numbers)
        return self._drawn(tokens, logits, inputs.redrawn)

    def _mixed(self, inputs: MixedInputs) -> Sampled | None:
        if inputs.graph is not None:
            drawn: Drawn | None = self.prompts.run_graph(inputs.graph, inputs.numbers)
        else:
            drawn = self.prompts.run(inputs.numbers, inputs.sizes, inputs.longest)
        count = inputs.sizes.samples
        if drawn is None or not count:
            return None
        return self._drawn(drawn.tokens[:count], drawn.logits[:count], inputs.redrawn)

    def _drawn(self, tokens: Tensor, logits: Tensor, redrawn: Redrawn | None) -> Sampled:
        """The step's ``tokens``, some of which are drawn anew."""
        if redrawn is None:
            return Sampled(tokens)
        rows = self._indices(redrawn.rows)
        some = logits if len(redrawn.rows) == len(logits) else logits[rows]
        drawn, logprobs = Sampler(redrawn.draws, logits.shape[-1], self.device)(some)
        tokens[rows] = drawn
        self._memory.last[self._indices(redrawn.places)] = drawn
        if logprobs is not None:
            logprobs = logprobs._replace(rows=[redrawn.rows[row] for row in logprobs.rows])
        return Sampled(tokens, logprobs)

    def _name_blocks(self, table: TableUpdate) -> None:
        places, indices, blocks = table
        self._memory.tables[self._indices(places), self._indices(indices)] = upload(blocks, torch.int32, self.device)

    def _swap_out(self, moved: Moved) -> None:
        self.host_copies.put(moved.number, to_host(self.cache.tensors, moved.blocks))

    def _swap_in(self, moved: Moved) -> None:
        from_host(self.cache.tensors, moved.blocks, self.host_copies.get(moved.number))
        self.host_copies.drop(moved.number)

    def _indices(self, values: Sequence[int]) -> Tensor:
        return upload(values, torch.int64, self.device)
