"""What executors share that run a model: a step plan and the tokens known so far go in, the tokens sampled come out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from engine.attention import ATTENTION, StepAttention, plans_nothing
from engine.draws import Draw
from engine.errors import ModelError
from engine.faults import free_unused, is_out_of_memory
from engine.features import beyond_plain_attention
from engine.host_copies import HostCopies
from engine.models import LoadedModel
from engine.sampling import Sampled, Sampler
from engine.steps import ExecutorWaste, PendingStep, SequenceState, StepResult
from engine.tensors import current_device, upload
from scheduler.plan import Chunk, Layout, StepPlan, Swap


class DeviceTimer:
    """Time of a stretch of work on ``device``, in nanoseconds: events on a GPU, the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        event: Any = torch.cuda.Event
        self._events = (event(enable_timing=True), event(enable_timing=True)) if device.type == "cuda" else None
        self._began_ns = self._ended_ns = 0

    def start(self) -> None:
        self._began_ns = time.perf_counter_ns()
        if self._events is not None:
            self._events[0].record()

    def stop(self) -> None:
        """The work is at its end: on a CPU now, on a GPU when what was launched up to here is done."""
        if self._events is not None:
            self._events[1].record()
        self._ended_ns = time.perf_counter_ns()

    def done(self) -> bool:
        """Whether the device has come to the stop."""
        return self._events is None or bool(self._events[1].query())

    @property
    def launch_ns(self) -> int:
        """Nanoseconds that the host took from start to stop on a GPU; none on a CPU, where that is the work itself."""
        return 0 if self._events is None else self._ended_ns - self._began_ns

    def elapsed_ns(self) -> int:
        """Nanoseconds from start to stop; waits for the device."""
        if self._events is None:
            return self._ended_ns - self._began_ns
        begin, end = self._events
        end.synchronize()
        elapsed_ms: float = begin.elapsed_time(end)
        return round(elapsed_ms * 1e6)


class Batch(NamedTuple):
    """The tensors of a step. ``token_ids`` and ``positions`` are ``[batch, tokens]``.

    ``sampled`` are the flat indices (into batch x tokens) of the last tokens of the sampling rows, whose sequence
    numbers are ``sampled_numbers``; ``draws`` says how each is sampled.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: StepAttention
    sampled: torch.Tensor
    sampled_numbers: list[int]
    draws: list[Draw]


#: a transfer between device and host memory that is ready to be made
Copy = Callable[[], None]


@dataclass(eq=False)
class Booking:
    """A plan that an executor has taken note of: the memory of its sequences is theirs.

    ``work`` is the plan as it was then. ``moves`` are the transfers of KV that are still to be made, in order.
    """

    plan: StepPlan
    work: StepPlan
    moves: deque[Copy]

    def move(self) -> None:
        """Make the transfers. One that raises may be tried again; those before it are not made twice."""
        while self.moves:
            self.moves[0]()
            self.moves.popleft()


def halves(chunks: list[Chunk]) -> tuple[list[Chunk], list[Chunk]] | None:
    """``chunks`` in two parts that are computed one after the other; a lone chunk is cut. ``None`` for a lone token."""
    if len(chunks) > 1:
        middle = len(chunks) // 2
        return chunks[:middle], chunks[middle:]
    sequence, start, tokens, samples = chunks[0]
    if tokens == 1:
        return None
    first = tokens // 2
    return [Chunk(sequence, start, first, False)], [Chunk(sequence, start + first, tokens - first, samples)]


@dataclass(eq=False)
class Step:
    """A step that is ready to run, or has run: what :class:`ModelExecutor` keeps of it. A :class:`PendingStep`."""

    booking: Booking
    batch: Batch
    sampler: Sampler
    timer: DeviceTimer
    waste: ExecutorWaste
    sampled: Sampled | None = None
    """in host memory, once the timer has stopped"""

    def result(self) -> StepResult:
        """Tokens and time; see :class:`PendingStep`."""
        device_ns = self.timer.elapsed_ns()
        tokens, logprobs = ({}, {}) if self.sampled is None else self.sampled.by_number(self.batch.sampled_numbers)
        return StepResult(tokens, device_ns, self.waste, self.timer.launch_ns, logprobs)


class _Pieces(NamedTuple):
    """A step that has been run in pieces."""

    steps: list[Step]
    waste: ExecutorWaste

    def result(self) -> StepResult:
        results = [step.result() for step in self.steps]
        return StepResult(
            {number: token for result in results for number, token in result.tokens.items()},
            sum(result.device_ns for result in results),
            self.waste,
            sum(result.launch_ns for result in results),
            {number: logprobs for result in results for number, logprobs in result.logprobs.items()},
        )


class ModelExecutor(ABC):
    """What ``padded`` and ``paged`` share: move KV, run the model over a batch, take the sampled rows, sample.

    On a GPU a launched step is on the current stream. On a CPU it has been run when :meth:`launch` returns; with
    ``overlap`` it runs in a thread of its own meanwhile (torch lets other threads go on while it computes).
    """

    layout: Layout
    launches_ahead = False

    def __init__(self, model: LoadedModel, overlap: bool = False) -> None:
        causal: Any = model.model
        if causal.config._attn_implementation != ATTENTION:
            raise ModelError(
                f"model {model.name!r} was loaded with attention {causal.config._attn_implementation!r}; the executors "
                f"need {ATTENTION!r}"
            )
        beyond = beyond_plain_attention(causal.config)
        if beyond:
            raise ModelError(f"model {model.name!r} cannot be run in this layout: it uses {', '.join(beyond)}")
        self.model = model
        self.device = model.device
        self.host_copies = HostCopies()
        self._body = causal.base_model
        self._head = causal.get_output_embeddings()
        threaded = overlap and self.device.type == "cpu"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="step") if threaded else None
        self._booking: Booking | None = None

    @property
    def vocab(self) -> int:
        """See :class:`Executor`."""
        return int(self._head.weight.shape[0])

    def execute(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> StepResult:
        """Run one step and wait for what it gives."""
        return self.launch(plan, states).result()

    def reset(self) -> None:
        """See :class:`Executor`."""
        self.host_copies = HostCopies()
        self._booking = None

    def close(self) -> None:
        """See :class:`Executor`."""
        if self._worker is not None:
            self._worker.shutdown()

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> PendingStep:
        """Start one step; see :class:`Executor`.

        KV that is swapped moves at the beginning of the step, and its time is the step's.
        """
        if self._booking is not None and self._booking.plan is plan:
            free_unused(self.device)
            return _Pieces(self._in_pieces(self._booking, self._booking.work, states), self.waste(plan))
        self._booking = booking = self._book(plan)
        step = self._prepared(booking, booking.work, states)
        if self._worker is None:
            return self._run(step)
        return _InThread(self._worker.submit(self._run, step))

    def _book(self, plan: StepPlan) -> Booking:
        """Take note of ``plan``. Nothing here asks for memory of the device."""
        moves = [self.swap_out(swap) for swap in plan.swapped_out]
        for number in plan.released:
            self.release(number)
            moves.append(partial(self.host_copies.drop, number))
        moves += [self.swap_in(swap) for swap in plan.swapped_in]
        return Booking(plan, self.fixed(plan), deque(moves))

    def _prepared(self, booking: Booking, plan: StepPlan, states: Mapping[int, SequenceState]) -> Step:
        """``plan``, the booked one or a part of it, ready to run."""
        with current_device(self.device), torch.inference_mode():
            batch = self.prepare(plan, states)
            sampler = Sampler(batch.draws, self.vocab, self.device)
        return Step(booking, batch, sampler, DeviceTimer(self.device), self.waste(plan))

    def _in_pieces(self, booking: Booking, plan: StepPlan, states: Mapping[int, SequenceState]) -> list[Step]:
        """Run ``plan`` in as few pieces as memory allows."""
        try:
            return [self._run(self._prepared(booking, plan, states))]
        except RuntimeError as error:
            parts = halves(plan.chunks)
            if parts is None or not is_out_of_memory(error):
                raise
        # out of the handler, whose exception holds on to what was computed
        free_unused(self.device)
        return [step for part in parts for step in self._in_pieces(booking, plan.part(part), states)]

    def _run(self, step: Step) -> Step:
        batch = step.batch
        with current_device(self.device), torch.inference_mode(), plans_nothing():
            step.timer.start()
            step.booking.move()
            hidden = self._body(
                input_ids=batch.token_ids, position_ids=batch.positions, use_cache=False, step=batch.attention
            ).last_hidden_state
            if batch.draws:
                logits = self._head(hidden.reshape(-1, hidden.shape[-1])[batch.sampled])
                step.sampled = step.sampler(logits).to_host()
            step.timer.stop()
        return step

    def tensor(self, values: list[Any]) -> torch.Tensor:
        """``values`` as int64 on the device."""
        return upload(values, torch.int64, self.device)

    def fixed(self, plan: StepPlan) -> StepPlan:
        """The plan with all that is read of it later."""
        return plan.fixed()

    @abstractmethod
    def prepare(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Batch:
        """The tensors of the step, in the executor's layout."""

    @abstractmethod
    def release(self, number: int) -> None:
        """Give back the memory that the sequence has on the device; one that is not known is ignored."""

    @abstractmethod
    def swap_out(self, swap: Swap) -> Copy:
        """Give the sequence's memory on the device back, and return the copy of its KV to host memory.

        The copy alone asks for memory, and may be made again if it raises.
        """

    @abstractmethod
    def swap_in(self, swap: Swap) -> Copy:
        """Take memory on the device for the sequence again, and return the copy of its KV from host memory.

        As with :meth:`swap_out`.
        """

    def waste(self, _plan: StepPlan) -> ExecutorWaste:
        """What the step computed beyond the layout's formula."""
        return ExecutorWaste()


class _InThread(NamedTuple):
    """A step that another thread runs."""

    future: Future[Step]

    def result(self) -> StepResult:
        return self.future.result().result()


def draws_of(chunks: list[Chunk], states: Mapping[int, SequenceState]) -> list[Draw]:
    """What the sampling chunks among ``chunks`` are sampled with, in row order."""
    return [states[chunk.sequence.number].draw(chunk.start + chunk.tokens) for chunk in chunks if chunk.samples]
