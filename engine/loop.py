"""The engine's loop: ask the scheduler for a step, run it, tell the scheduler how it went."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from engine.executors.base import Executor, ExecutorWaste, StepResult
from engine.generation import Generation
from engine.tokenizer import Tokenizer
from scheduler.plan import StepOutcome, StepPlan, StopReason, iter_sampled
from scheduler.request import Request
from scheduler.sequence import Sequence


class StepScheduler(Protocol):
    """What the loop asks of a scheduler; :class:`~scheduler.scheduler.Scheduler`, or one that records."""

    @property
    def idle(self) -> bool: ...

    def submit(self, request: Request, now_ns: int) -> Sequence: ...

    def abort(self, request_id: str, now_ns: int) -> None: ...

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None: ...

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]: ...

    def next_wakeup(self) -> int | None: ...


class TokenOutput(NamedTuple):
    """News of a request. ``token_id`` is ``None`` where it ended without one (aborted, rejected).

    ``text`` is the new piece only. ``finish_reason`` is empty while the request goes on; then ``length``, ``eos``,
    ``stop``, ``error``, ``aborted`` or ``rejected``. ``detail`` says why a request was rejected.
    """

    request_id: str
    token_id: int | None
    text: str
    finish_reason: str = ""
    detail: str = ""


class Progress(NamedTuple):
    """Where a run stands; counts since the loop was made."""

    now_ns: int
    steps: int
    submitted: int
    ended: int
    output_tokens: int


class EngineLoop:
    """Drives an executor by a scheduler's plans, in real time.

    Requests and aborts come through an inbox that any thread may fill; everything else belongs to the one thread that
    calls :meth:`step` or :meth:`run`. Times are integer nanoseconds since the loop was made. ``listener`` is told of
    every token, from that thread; without one, text is not followed (stop strings still are).
    """

    def __init__(
        self,
        scheduler: StepScheduler,
        executor: Executor,
        *,
        tokenizer: Tokenizer | None = None,
        end_token_ids: frozenset[int] = frozenset(),
        listener: Callable[[TokenOutput], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        #: slots that the executor computed beyond its layout's formula, over all steps
        self.waste = ExecutorWaste()
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._listener = listener
        self._inbox: deque[Generation | str] = deque()
        self._arrived = threading.Event()
        self._live: dict[int, tuple[Sequence, Generation]] = {}
        self._steps = self._submitted = self._ended = self._output_tokens = 0
        self._epoch_ns = time.monotonic_ns()
        #: where the host time of the next step begins; ``None`` when the engine had nothing to do
        self._period_start_ns: int | None = None

    # -- for every thread

    def now_ns(self) -> int:
        """Nanoseconds since the loop was made."""
        return time.monotonic_ns() - self._epoch_ns

    def submit(self, request: Request) -> None:
        """Hand a request in; the next step takes it up.

        Raises ``ValueError`` for a request without token ids, or with stop strings and no tokenizer to see them.
        """
        self._post(Generation(request, self._end_token_ids, self._tokenizer, self._listener is not None))

    def abort(self, request_id: str) -> None:
        """End a request early; unknown and ended ones are ignored. Its memory is free at the next step."""
        self._post(request_id)

    def _post(self, item: Generation | str) -> None:
        self._inbox.append(item)
        self._arrived.set()

    # -- the loop

    def run(self, workload: Iterable[Request] = (), progress: Callable[[Progress], None] | None = None) -> None:
        """Play a workload at the times its requests arrive, and return when all of it has ended.

        Arrivals do not wait for the engine (open loop). On ``KeyboardInterrupt`` the step at hand is completed, what
        has not ended is aborted, and the interrupt goes on to the caller.
        """
        arrivals = deque(sorted(workload, key=lambda request: request.arrival_ns))
        try:
            while True:
                while arrivals and arrivals[0].arrival_ns <= self.now_ns():
                    self.submit(arrivals.popleft())
                if self.step():
                    if progress is not None:
                        progress(self.progress())
                elif self._inbox:
                    continue
                elif arrivals or not self.scheduler.idle:
                    self.wait(arrivals[0].arrival_ns if arrivals else None)
                else:
                    return
        except KeyboardInterrupt:
            self.abort_all()
            raise

    def step(self) -> bool:
        """Take in what has arrived and run one step; ``False`` when there is nothing to do now."""
        with _uninterrupted():
            now_ns = self._drain_inbox()
            plan = self.scheduler.next_step(now_ns)
            self._forget_aborted()
            if plan is None:
                self._period_start_ns = None
                return False
            result = self._execute(plan)
            texts, stops = self._accept(plan, result)
            end_ns = self.now_ns()
            period_ns = end_ns - (now_ns if self._period_start_ns is None else self._period_start_ns)
            self._period_start_ns = end_ns
            outcome = StepOutcome([end_ns], result.device_ns, max(0, period_ns - result.device_ns), stops)
            ended = self.scheduler.complete(plan, outcome, end_ns)
            self._report(result, texts, ended)
            return True

    def abort_all(self) -> None:
        """Abort everything that has not ended, now, and forget what waits in the inbox."""
        self._inbox.clear()
        now_ns = self.now_ns()
        for sequence, _ in self._live.values():
            self.scheduler.abort(sequence.id, now_ns)
        self.scheduler.next_step(now_ns)
        self._forget_aborted()

    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.now_ns(), self._steps, self._submitted, self._ended, self._output_tokens)

    def _drain_inbox(self) -> int:
        """Give the scheduler what has arrived. One reading of the clock serves the whole step."""
        self._arrived.clear()
        items = [self._inbox.popleft() for _ in range(len(self._inbox))]
        now_ns = self.now_ns()
        for item in items:
            if isinstance(item, str):
                self.scheduler.abort(item, now_ns)
            else:
                self._take_up(item, now_ns)
        return now_ns

    def _take_up(self, generation: Generation, now_ns: int) -> None:
        sequence = self.scheduler.submit(generation.request, now_ns)
        self._submitted += 1
        if sequence.state == "rejected":
            self._ended += 1
            self._tell(TokenOutput(sequence.id, None, "", "rejected", sequence.reason))
            return
        self._live[sequence.number] = (sequence, generation)

    def _execute(self, plan: StepPlan) -> StepResult:
        states = {chunk.sequence.number: self._live[chunk.sequence.number][1] for chunk in plan.chunks}
        try:
            result = self.executor.execute(plan, states)
        except Exception:
            self._fail(plan)
            raise
        self.waste = ExecutorWaste(*(a + b for a, b in zip(self.waste, result.waste, strict=True)))
        return result

    def _fail(self, plan: StepPlan) -> None:
        """The step could not be run: its sequences end with an error, so that the scheduler stays consistent."""
        now_ns = self.now_ns()
        members = [chunk.sequence for chunk in plan.chunks]
        stops: dict[int, StopReason] = {sequence.number: "error" for sequence in iter_sampled(plan)}
        ended = self.scheduler.complete(plan, StepOutcome([now_ns], 0, 0, stops), now_ns)
        for sequence in ended:
            self._end(sequence, None, "")
        for sequence in members:
            if not sequence.ended:
                self.abort(sequence.id)

    def _accept(self, plan: StepPlan, result: StepResult) -> tuple[dict[int, str], dict[int, StopReason]]:
        """Give every sequence its token: the new text of each, and the stops that the plan could not foresee."""
        texts: dict[int, str] = {}
        stops: dict[int, StopReason] = {}
        for sequence in iter_sampled(plan):
            text, stop = self._live[sequence.number][1].accept(result.tokens[sequence.number])
            texts[sequence.number] = text
            if stop is not None:
                stops[sequence.number] = stop
        return texts, stops

    def _report(self, result: StepResult, texts: dict[int, str], ended: list[Sequence]) -> None:
        self._steps += 1
        self._output_tokens += len(texts)
        finished = {sequence.number for sequence in ended}
        for number, text in texts.items():
            sequence = self._live[number][0]
            if number in finished:
                self._end(sequence, result.tokens[number], text)
            else:
                self._tell(TokenOutput(sequence.id, result.tokens[number], text))

    def _end(self, sequence: Sequence, token_id: int | None, text: str) -> None:
        _, generation = self._live.pop(sequence.number)
        self._ended += 1
        self._tell(TokenOutput(sequence.id, token_id, text + generation.finish(), sequence.reason))

    def _forget_aborted(self) -> None:
        for sequence in [sequence for sequence, _ in self._live.values() if sequence.state == "aborted"]:
            self._end(sequence, None, "")

    def _tell(self, output: TokenOutput) -> None:
        if self._listener is not None:
            self._listener(output)

    def wait(self, arrival_ns: int | None = None) -> None:
        """After an empty step: wait for ``arrival_ns``, the scheduler's own wake-up, or something in the inbox."""
        if self._inbox:
            return
        times = [time_ns for time_ns in (arrival_ns, self.scheduler.next_wakeup()) if time_ns is not None]
        if not times:
            raise RuntimeError("the scheduler holds requests, but plans no step and names no time at which it will")
        self._arrived.wait(max(0, min(times) - self.now_ns()) / 1e9)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back to the end of the block; a second one goes through at once. Main thread only."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def hold_back(number: int, frame: Any) -> None:
        nonlocal interrupted
        if interrupted:
            signal.default_int_handler(number, frame)
        interrupted = True

    signal.signal(signal.SIGINT, hold_back)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
