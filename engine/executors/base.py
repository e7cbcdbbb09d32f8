"""What every executor is: it takes a step plan and the tokens known so far, and gives back the tokens sampled."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch

from engine.attention import ATTENTION, StepAttention
from engine.errors import ModelError
from engine.models import LoadedModel
from engine.sampling import Draw, sample
from scheduler.plan import Chunk, Layout, StepPlan
from scheduler.request import SamplingParams


class SequenceState(Protocol):
    """What an executor reads of a sequence. The engine keeps it; ``token_ids`` are prompt and output so far."""

    token_ids: list[int]
    seed: int

    @property
    def sampling(self) -> SamplingParams: ...


class ExecutorWaste(NamedTuple):
    """Slots that an executor computed beyond what the layout's formula says; see ``docs/metrics.md``."""

    linear_slots: int = 0
    attention_slots: int = 0


class StepResult(NamedTuple):
    """What a step gave: the token sampled for each sequence number, the device's time, and what it wasted."""

    tokens: dict[int, int]
    device_ns: int
    waste: ExecutorWaste = ExecutorWaste()


class Executor(Protocol):
    """Runs step plans on a device."""

    @property
    def layout(self) -> Layout:
        """The layout whose slots it computes."""

    def execute(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> StepResult:
        """Run one step. ``states`` has an entry for the number of every sequence in the plan."""


class DeviceTimer:
    """Time of a stretch of work on ``device``, in nanoseconds: events on a GPU, the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        event: Any = torch.cuda.Event
        self._events = (event(enable_timing=True), event(enable_timing=True)) if device.type == "cuda" else None
        self._began_ns = 0

    def start(self) -> None:
        if self._events is None:
            self._began_ns = time.perf_counter_ns()
        else:
            self._events[0].record()

    def stop(self) -> int:
        """Nanoseconds since :meth:`start`; waits for the device."""
        if self._events is None:
            return time.perf_counter_ns() - self._began_ns
        begin, end = self._events
        end.record()
        end.synchronize()
        elapsed_ms: float = begin.elapsed_time(end)
        return round(elapsed_ms * 1e6)


class Batch(NamedTuple):
    """The tensors of a step. ``token_ids`` and ``positions`` are ``[batch, tokens]``.

    ``sampled`` are the flat indices (into batch x tokens) of the last tokens of ``draws``' rows, in that order.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: StepAttention
    sampled: torch.Tensor
    sampled_numbers: list[int]
    draws: list[Draw]


class ModelExecutor(ABC):
    """What ``padded`` and ``paged`` share: run the model over a batch, take the sampled rows, sample."""

    layout: Layout

    def __init__(self, model: LoadedModel) -> None:
        causal: Any = model.model
        if causal.config._attn_implementation != ATTENTION:
            raise ModelError(
                f"model {model.name!r} was loaded with attention {causal.config._attn_implementation!r}; the executors "
                f"need {ATTENTION!r}"
            )
        self.model = model
        self.device = model.device
        self._body = causal.base_model
        self._head = causal.get_output_embeddings()
        self._timer = DeviceTimer(self.device)

    def execute(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> StepResult:
        """Run one step; see :class:`Executor`."""
        with torch.inference_mode():
            for number in plan.released:
                self.release(number)
            batch = self.prepare(plan, states)
            self._timer.start()
            hidden = self._body(
                input_ids=batch.token_ids, position_ids=batch.positions, use_cache=False, step=batch.attention
            ).last_hidden_state
            tokens = self._sample(hidden, batch)
            device_ns = self._timer.stop()
        return StepResult(tokens, device_ns, self.waste(plan))

    def _sample(self, hidden: torch.Tensor, batch: Batch) -> dict[int, int]:
        if not batch.draws:
            return {}
        rows = hidden.reshape(-1, hidden.shape[-1])[batch.sampled]
        return dict(zip(batch.sampled_numbers, sample(self._logits(rows), batch.draws).tolist(), strict=True))

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        """``[rows, vocab]``. On a CPU the product is taken the other way round: few rows are 2-3 times as fast so."""
        if self.device.type != "cpu" or self._head.bias is not None:
            return torch.as_tensor(self._head(rows))
        weight: torch.Tensor = self._head.weight
        return (weight @ rows.T).T

    def tensor(self, values: list[Any]) -> torch.Tensor:
        """``values`` as int64 on the device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    @abstractmethod
    def prepare(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Batch:
        """The tensors of the step, in the executor's layout."""

    @abstractmethod
    def release(self, number: int) -> None:
        """Drop what is held for the sequence; one that is not known is ignored."""

    def waste(self, _plan: StepPlan) -> ExecutorWaste:
        """What the step computed beyond the layout's formula."""
        return ExecutorWaste()


def draws_of(chunks: list[Chunk], states: Mapping[int, SequenceState]) -> list[Draw]:
    """What the sampling chunks among ``chunks`` are sampled with, in row order."""
    draws = []
    for chunk in chunks:
        if chunk.samples:
            state = states[chunk.sequence.number]
            draws.append(Draw(state.sampling, state.seed, chunk.start + chunk.tokens))
    return draws
