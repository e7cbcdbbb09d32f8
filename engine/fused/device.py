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

from engine.draws import Draw, row_keys
from engine.faults import free_unused
from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.fused.graphs import PLACE, DecodeSteps, Memory
from engine.fused.prompts import Prompts, PromptSteps
from engine.host_copies import HostCopies, from_host, to_host
from engine.models import LoadedModel
from engine.sampling import Sampled, Sampler
from engine.tensors import upload


class DeviceSettings(NamedTuple):
    """The memory of a :class:`FusedDevice`: KV blocks, places for sequences that hold some, rows of a decode step.

    ``graph_rows``, ``graph_tokens``: sizes that decode steps and steps of prompts are filled up to.
    """

    blocks: int
    block_tokens: int
    places: int
    most_rows: int
    graph_rows: tuple[int, ...]
    graph_tokens: tuple[int, ...] = ()


class Moved(NamedTuple):
    """KV that goes to host memory or comes from there: a sequence number, and its blocks on the device."""

    number: int
    blocks: list[int]


class TableUpdate(NamedTuple):
    """Blocks that sequences have got: ``tables[places[i], indices[i]] = blocks[i]``."""

    places: list[int]
    indices: list[int]
    blocks: list[int]


class DecodeInputs(NamedTuple):
    """Rows of one token, all of which sample: ``int64[COLUMNS, rows]``, see :data:`~engine.fused.graphs.ID` and after.

    ``redrawn`` are the rows that ask for more than a temperature, in order, ``draws`` what they are sampled with. The
    others keep the tokens that the step itself gives.
    """

    numbers: npt.NDArray[np.int64]
    redrawn: list[int]
    draws: list[Draw]


class MixedInputs(NamedTuple):
    """Chunks of prompts and, behind them, rows of one token; packed.

    A token that is on the device only has an entry in ``unknown``: where it is among ``ids``, and the place of its
    sequence. ``places`` are those of all chunks, then rows. ``starts`` and ``offsets`` (one more) belong to the chunks,
    ``lengths`` to the rows. ``sampled`` are indices of packed tokens, ``sampling_places`` whose they are. ``graph``:
    tokens of the graph that the step runs as, 0 for none.
    """

    ids: list[int]
    unknown: list[tuple[int, int]]
    positions: list[int]
    slots: list[int]
    places: list[int]
    starts: list[int]
    offsets: list[int]
    longest: int
    lengths: list[int]
    sampled: list[int]
    sampling_places: list[int]
    draws: list[Draw]
    graph: int = 0


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
            self.decoder.tune(max((settings.most_rows, *settings.graph_rows)))
            # what this took, and what weights took before they were merged, is KV's
            free_unused(self.device)
        self.cache = KvCache(model, settings.blocks, settings.block_tokens)
        width = -(-model.context_tokens // settings.block_tokens) + 1
        self._memory = Memory(
            torch.zeros(settings.places + 1, width, dtype=torch.int32, device=self.device),
            torch.zeros(settings.places + 1, dtype=torch.int64, device=self.device),
        )
        self.decodes = DecodeSteps(
            self.decoder, self.cache, self._memory, settings.most_rows, model.context_tokens, settings.graph_rows
        )
        self.prompts = self.prompt_steps(settings.graph_tokens)
        if self.device.type == "cuda":
            with torch.inference_mode():
                self._meet_mixed_steps(settings)

    def _meet_mixed_steps(self, settings: DeviceSettings) -> None:
        """Run small prompts beside rows once: their kernels are compiled now, not while somebody waits.

        A kernel is compiled anew where the rows' tables begin at another alignment, which the number of chunks decides,
        and where there are more rows than kernels overlap for. Nothing is stored: all is of the place that no sequence
        has, in a block that none has yet.
        """
        from engine.kernels.hopper import MOST_ROWS  # imports Triton, which only a GPU needs

        size, none = 16, settings.places
        for rows in sorted({1, min(MOST_ROWS + 1, settings.most_rows)}):
            for chunks in (1, 4):
                tokens = size * chunks + rows
                self._eager(MixedInputs(
                    ids=[0] * tokens, unknown=[], positions=[*range(size)] * chunks + [0] * rows, slots=[0] * tokens,
                    places=[none] * (chunks + rows), starts=[0] * chunks,
                    offsets=[size * chunk for chunk in range(chunks + 1)], longest=size, lengths=[1] * rows,
                    sampled=[], sampling_places=[], draws=[],
                ))  # fmt: skip

    def prompt_steps(self, sizes: Sequence[int]) -> PromptSteps:
        """Steps of prompts of up to ``sizes[-1]`` tokens, captured on a GPU."""
        return PromptSteps(self.decoder, self.cache, self._memory, sizes)

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
        if not inputs.draws:
            return Sampled(tokens)
        rows = self._indices(inputs.redrawn)
        some = logits if len(inputs.redrawn) == len(logits) else logits[rows]
        drawn, logprobs = Sampler(inputs.draws, logits.shape[-1], self.device)(some)
        tokens[rows] = drawn
        self._memory.last[self._indices(inputs.numbers[PLACE, inputs.redrawn].tolist())] = drawn
        if logprobs is not None:
            logprobs = logprobs._replace(rows=[inputs.redrawn[row] for row in logprobs.rows])
        return Sampled(tokens, logprobs)

    def _mixed(self, inputs: MixedInputs) -> Sampled | None:
        hidden = self._eager(inputs) if not inputs.graph else self.prompts.run(
            inputs.graph,
            Prompts(inputs.ids, inputs.positions, inputs.slots, inputs.places, inputs.starts, inputs.offsets),
            inputs.unknown,
        )  # fmt: skip
        return self._sampled(inputs, hidden) if inputs.sampled else None

    def _sampled(self, inputs: MixedInputs, hidden: Tensor) -> Sampled:
        """The tokens of a step's ``hidden`` ``[tokens, hidden]``, which are the last ones of their sequences now.

        Where temperatures say all about the rows they are one copy to the device and two kernels. The noise of a
        :class:`Sampler` takes thirty, and launching them is much of what a host has to do for a prompt.
        """
        draws = inputs.draws
        fused = all(draw.plain for draw in draws) and any(draw.params.temperature > 0 for draw in draws)
        numbers = np.zeros((4, len(draws)), dtype=np.int64)
        numbers[0], numbers[1] = inputs.sampled, inputs.sampling_places
        if fused:
            numbers[2] = np.array([draw.params.temperature for draw in draws], dtype=np.float32).view(np.int32)
            numbers[3] = row_keys([draw.seed for draw in draws], np.array([draw.position for draw in draws]))
        rows, places, heats, keys = upload(numbers, torch.int64, self.device)
        logits = self.decoder.logits(hidden[rows])
        if fused:
            sampled = Sampled(self.decoder.kernels.sample(logits, heats.int().view(torch.float32), keys))
        else:
            sampled = Sampler(draws, logits.shape[-1], self.device)(logits)
        self._memory.last[places] = sampled.tokens
        return sampled

    def _eager(self, inputs: MixedInputs) -> Tensor:
        """What :meth:`Decoder.forward` gives, kernel by kernel."""
        packed = self._indices(inputs.ids)
        if inputs.unknown:
            at, source = zip(*inputs.unknown, strict=True)
            packed[self._indices(at)] = self._memory.last[self._indices(source)]
        tables = self._memory.tables[self._indices(inputs.places)]
        split = len(inputs.starts)
        step = StepTensors(
            packed,
            self._indices(inputs.positions),
            self._indices(inputs.slots),
            Chunks(
                inputs.offsets[-1],
                tables[:split],
                upload(inputs.starts, torch.int32, self.device),
                upload(inputs.offsets, torch.int32, self.device),
                inputs.longest,
            ) if split else None,
            Rows(tables[split:], upload(inputs.lengths, torch.int32, self.device)) if inputs.lengths else None,
        )  # fmt: skip
        return self.decoder.forward(step, self.cache)

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
