"""What a GPU's memory is needed for besides weights and KV: found by running the largest steps there are."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from engine.draws import Draw
from engine.errors import DeviceMemoryError
from engine.executors.fused import FusedExecutor
from engine.executors.memory import Needs, estimated_needs, most_rows, used_bytes, weights_bytes
from engine.faults import first_line, free_unused, gib, is_out_of_memory
from engine.fused.graphs import DecodeSteps
from engine.logit_edits import Edits
from engine.models import LoadedModel
from engine.steps import SequenceState
from scheduler.config import SchedulerConfig
from scheduler.graphs import Graphs
from scheduler.plan import NEVER, Chunk, DigestEntry, StepFeatures, StepPlan
from scheduler.request import MOST_LOGPROBS, Request, SamplingParams
from scheduler.sequence import Sequence

#: what takes the most memory to sample with
_SAMPLING = SamplingParams(temperature=1.0, top_p=0.9, logprobs=MOST_LOGPROBS)
_EDITS = Edits(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32))


@dataclass
class _Filler:
    """A sequence of zeros."""

    token_ids: list[int]
    seed: int = 0
    plain: bool = False
    sampling: SamplingParams = _SAMPLING

    def draw(self, position: int) -> Draw:
        """See :class:`~engine.steps.SequenceState`."""
        return Draw(self.sampling, self.seed, position, _EDITS)


def measured_needs(model: LoadedModel, config: SchedulerConfig) -> Needs:
    """What fused steps and their graphs take on the model's GPU.

    The largest steps are run over a KV memory of one block, which all their sequences share: what they compute means
    nothing, what they take is the same. Of the graphs the two largest and the smallest are captured.

    Raises:
        DeviceMemoryError: not even that fits.
    """
    device = model.device
    free_unused(device)
    used, total = used_bytes(device)
    try:
        return _measured(model, config, used)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        problem = first_line(error)
    free_unused(device)
    estimate = estimated_needs(model, config, used)
    raise DeviceMemoryError(
        f"the largest step does not fit beside the weights, without any KV: {gib(used)} GiB of {gib(total)} GiB are in "
        f"use, weights {gib(weights_bytes(model))} GiB; a step of {config.max_prefill_tokens} prompt tokens and "
        f"{most_rows(config)} rows needs about {gib(estimate.step)} GiB; lower max_prefill_tokens, max_running or "
        f"max_rows ({problem})"
    )


def _measured(model: LoadedModel, config: SchedulerConfig, used: int) -> Needs:
    device = model.device
    largest = max(config.graph_rows, default=0)
    executor = FusedExecutor(
        model, kv_tokens=config.block_tokens, max_running=max(config.max_running, largest),
        max_rows=max(config.rows, largest), block_tokens=config.block_tokens,
    )  # fmt: skip
    for step in largest_steps(model, config):
        executor.execute(step.plan, step.states)
    one_block = config.block_tokens * model.kv_bytes_per_token
    # what the steps needed is still the allocator's
    step_bytes = max(0, used_bytes(device)[0] - used - one_block)
    graphs_bytes = _graphs_bytes(executor.decodes, model, config.graph_rows)
    graphs_bytes += _prompt_graphs_bytes(executor, config.graphs)
    del executor
    free_unused(device)
    return Needs(step_bytes, graphs_bytes, max(0, used - weights_bytes(model)), measured=True)


def _graphs_bytes(decodes: DecodeSteps, model: LoadedModel, sizes: SequenceOf[int]) -> int:
    """What graphs of all ``sizes`` take, from the two largest and the smallest."""
    if not sizes:
        return 0
    device = model.device
    free_unused(device)
    marks = [used_bytes(device)[0]]
    sample = sorted({sizes[-1], sizes[max(0, len(sizes) - 2)], sizes[0]}, reverse=True)
    for size in sample:
        decodes.capture(size)
        free_unused(device)
        marks.append(used_bytes(device)[0])
    first, *others = (max(0, after - before) for before, after in pairwise(marks))
    if not others:
        return first
    large, small = others[0], others[-1]
    reach = max(1, sample[1] - sizes[0])
    found = first + sum(small + (large - small) * (size - sizes[0]) // reach for size in sizes[:-1])
    # each graph keeps its logits
    return max(found, first + sum(sizes[:-1]) * model.vocab * model.dtype.itemsize)


def _prompt_graphs_bytes(executor: FusedExecutor, sizes: Graphs) -> int:
    """What graphs of steps with prompts take: all of them are captured."""
    if not sizes.graph_tokens and not sizes.graph_mixed:
        return 0
    free_unused(executor.device)
    before = used_bytes(executor.device)[0]
    graphs = executor.prompt_steps(sizes)
    free_unused(executor.device)
    taken = max(0, used_bytes(executor.device)[0] - before)
    del graphs
    return taken


class LargestStep(NamedTuple):
    """A step to run, and the sequences in it."""

    plan: StepPlan
    states: dict[int, SequenceState]


def largest_steps(model: LoadedModel, config: SchedulerConfig, block: int = 0) -> list[LargestStep]:
    """Steps that no step of the scheduler needs more memory than.

    A chunk at the end of a full context; as many prompts as a step may have, all sampled; as many decoding rows. Their
    sequences share one ``block`` of the KV memory.
    """
    context = min(model.context_tokens, config.context_tokens)
    rows = most_rows(config)
    tokens = max(config.max_prefill_tokens, config.chunk_tokens or 0)
    longest = min(tokens, context)
    shapes = (
        [(context - longest, longest)],
        [(0, min(max(1, tokens // rows), context))] * rows,
        [(context - 1, 1)] * rows,
    )
    steps: list[LargestStep] = []
    numbers: list[int] = []
    for shape in shapes:
        blocks = [block] * -(-context // config.block_tokens)
        steps.append(_step(shape, numbers, context, blocks))
        numbers = list(steps[-1].states)
    return steps


def _step(shape: SequenceOf[tuple[int, int]], released: list[int], context: int, blocks: list[int]) -> LargestStep:
    """A step of chunks (start, tokens) of sequences with these ``blocks``, after ``released`` have left."""
    first = released[-1] + 1 if released else 0
    chunks = [
        Chunk(Sequence(Request(f"probe {number}", 0, context), number, 0, context + 1), start, tokens, True)
        for number, (start, tokens) in enumerate(shape, first)
    ]
    new_tokens = sum(tokens for _, tokens in shape)
    features = StepFeatures("paged", "prefill", len(shape), len(shape), new_tokens, new_tokens, 0, 0, 0, context, 0,
                            len(shape))  # fmt: skip
    plan = StepPlan(
        0, 0, 1, features, DigestEntry("prefill", len(shape), 0, 0, 0, 1), NEVER, False, tuple(released),
        lambda: chunks, lambda sequence: blocks,
    )  # fmt: skip
    zeros = [0] * context
    return LargestStep(plan, {chunk.sequence.number: _Filler(zeros) for chunk in chunks})
