"""The engine's loop: ask the scheduler for a step, run it, tell the scheduler how it went.

With overlap the scheduler plans one step ahead. While the device runs step N, plan N+1 is made; then step N is
completed, step N+1 is launched with the tokens of step N, and so on. An executor that launches ahead is given step N+1
at once, and the device does not wait for the host at all::

    device  | step 1        | step 2        | step 3 ...
    host    | plan 2, wait  | plan 3, wait  |
                            ^ tokens of 1 out, step 2 launched
"""

from __future__ import annotations

import gc
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine.draws import TokenLogprobs
from engine.errors import DeviceError
from engine.faults import first_line, is_device_lost, is_out_of_memory
from engine.generation import Generation, plays_out
from engine.grammar import GrammarError, Grammars
from engine.steps import Executor, ExecutorWaste, PendingStep, StepResult
from engine.tokenizer import Tokenizer
from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan, StopReason, iter_sampled
from scheduler.prefix_hashes import block_hashes_of
from scheduler.request import Request, SamplingParams
from scheduler.sequence import UNSET, Sequence

if TYPE_CHECKING:
    from engine.executors.memory import MemoryPlan

#: what an engine is scheduled by where nothing is said; docs/python-api.md has what it was measured against
DEFAULT_POLICY = "fcfs"


class StepScheduler(Protocol):
    """What the loop asks of a scheduler; :class:`~scheduler.scheduler.Scheduler`, or one that records."""

    @property
    def config(self) -> SchedulerConfig: ...

    @property
    def idle(self) -> bool: ...

    def submit(self, request: Request, now_ns: int) -> Sequence: ...

    def abort(self, request_id: str, now_ns: int, reason: str = "aborted") -> None: ...

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None: ...

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]: ...

    def next_wakeup(self) -> int | None: ...


class RequestMetrics(NamedTuple):
    """What became of a request; times are nanoseconds since the loop was made, ``None`` for what never happened."""

    arrival_ns: int
    first_scheduled_ns: int | None
    first_token_ns: int | None
    finish_ns: int
    preemptions: int
    prefix_hit_tokens: int
    """prompt tokens whose KV the prefix cache held"""
    recomputed_tokens: int
    """computed again after an eviction"""


class TokenOutput(NamedTuple):
    """News of a request. ``token_id`` is ``None`` where it ended without one (aborted, rejected).

    ``text`` is the new piece only. ``finish_reason`` is empty while the request goes on; then ``length``, ``eos``,
    ``stop``, ``error``, ``aborted`` or ``rejected``. ``detail`` says why a request was rejected, or what the error was.
    ``metrics`` come with the last news, ``logprobs`` with every token where they were asked for.
    """

    request_id: str
    token_id: int | None
    text: str
    finish_reason: str = ""
    detail: str = ""
    metrics: RequestMetrics | None = None
    logprobs: TokenLogprobs | None = None


class Progress(NamedTuple):
    """Where a run stands; counts since the loop was made."""

    now_ns: int
    steps: int
    submitted: int
    ended: int
    output_tokens: int


@contextmanager
def undisturbed() -> Iterator[None]:
    """No collection of garbage looks at what is there by now, which would stop steps for as long as it takes.

    A full collection takes a fifth of a second where torch and transformers are loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Planned(NamedTuple):
    """A plan, and what its sequences have generated: of each one, also if it ends before the plan is run."""

    plan: StepPlan
    states: dict[int, Generation]
    tried: bool = False
    """it was launched, and memory was too short for it"""


class Running(NamedTuple):
    """A plan that the device is running."""

    plan: StepPlan
    states: dict[int, Generation]
    pending: PendingStep
    #: what the host did from one wait for the device to the next, which ended with launching this; 0 if none ran then
    work_ns: int = 0


class Abort(NamedTuple):
    """A request that is to end early, with ``reason``."""

    request_id: str
    reason: str


#: something that the loop's thread is to do between two steps
Call = Callable[[], None]


class Signal:
    """An event that one thread waits for, and that may be set anywhere: by a finalizer too, which a collection of
    garbage runs in the middle of whatever a thread does, while it holds whatever lock."""

    def __init__(self) -> None:
        self._sent: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Whoever waits, now or next, goes on."""
        self._sent.put(None)

    def clear(self) -> None:
        """Forget what has been set."""
        while not self._sent.empty():
            self._sent.get_nowait()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is set, or after ``timeout_s`` seconds."""
        with suppress(queue.Empty):
            self._sent.get(timeout=timeout_s)


class EngineLoop:
    """Drives an executor by a scheduler's plans, in real time.

    With the scheduler's ``overlap`` a step is left running when :meth:`step` returns. A sequence that met its end token
    in it is still a row of the step after, if that was planned before the token was known: that row's token is dropped.
    A step is not launched ahead if some row's logits depend on the tokens before (``SamplingParams.follows_output``).

    Requests and aborts come through an inbox that any thread may fill; everything else belongs to the one thread that
    calls :meth:`step` or :meth:`run`. Times are integer nanoseconds since the loop was made. ``listener`` is told of
    every token, from that thread; without one, text is not followed (stop strings still are).

    A step for which memory is too short is launched once more, alone, and in smaller pieces if need be. If that does
    not help, the requests whose tokens or KV it was to make or move end with an ``error``; the others go on. When the
    device itself has failed every request ends with an ``error``, :meth:`step` and :meth:`run` raise
    :class:`~engine.errors.DeviceError`, and no request is taken any more. ``memory`` has numbers for the messages.
    """

    def __init__(
        self,
        scheduler: StepScheduler,
        executor: Executor,
        *,
        tokenizer: Tokenizer | None = None,
        end_token_ids: frozenset[int] = frozenset(),
        listener: Callable[[TokenOutput], None] | None = None,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        #: slots that the executor computed beyond its layout's formula, over all steps
        self.waste = ExecutorWaste()
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids
        self._listener = listener
        self._memory = memory
        #: requests that ended with an error, and what the last one was
        self.errors = 0
        self.last_error = ""
        #: why nothing can be run any more, once the device has failed
        self.broken: str | None = None
        config = scheduler.config
        #: whether the next step is planned while one runs; what changes it between two steps settles the second
        self.overlap = config.overlap
        #: whether the KV of prompts that are handed in from now on is shared, where the scheduler has a prefix cache
        self.shares_prompts = config.prefix_cache
        self._block_tokens = config.block_tokens
        self._inbox: deque[Generation | Abort | Call] = deque()
        #: held while something is put in, so that nothing is when the loop is broken; reentrant, since a collection of
        #: garbage may come in between and put an abort in
        self._handing_in = threading.RLock()
        self._arrived = Signal()
        self._stopped = False
        self._live: dict[int, tuple[Sequence, Generation]] = {}
        #: those of them whose next token cannot be drawn before the last one is known here
        self._followers: set[int] = set()
        #: the plan that comes after the running one
        self._planned: Planned | None = None
        #: launched and not completed, the oldest first; more than one where the executor launches ahead
        self._running: deque[Running] = deque()
        #: what went wrong with sequences that have not been told yet, by number
        self._failed: dict[int, str] = {}
        self._aborts_passed_on = False
        self._steps = self._submitted = self._ended = self._output_tokens = 0
        self._epoch_ns = time.monotonic_ns()
        #: where the host time of the next step begins; ``None`` when the engine had nothing to do
        self._period_start_ns: int | None = None
        #: when the host came back from waiting for the device, while that has had a step to run
        self._back_ns: int | None = None

    # -- for every thread

    def now_ns(self) -> int:
        """Nanoseconds since the loop was made."""
        return time.monotonic_ns() - self._epoch_ns

    def submit(self, *requests: Request) -> None:
        """Hand requests in; the next plan takes them up, all of them together.

        With a prefix cache their ``block_hashes`` are made from their token ids, whatever they came with: KV is shared
        by what the tokens are.

        Raises ``ValueError`` for a request without token ids, with a head start from elsewhere, which an engine has no
        tokens of, or with sampling that :meth:`check_sampling` refuses, and
        :class:`~engine.errors.DeviceError` once the device has failed. None is taken then.
        """
        self._post(*[self._generation(request) for request in requests])

    def _generation(self, request: Request) -> Generation:
        if request.head_start is not None:
            raise ValueError(f"request {request.id}: an engine takes no request that has got on elsewhere")
        if self.shares_prompts and request.prompt_token_ids is not None:
            hashes = block_hashes_of(request.prompt_token_ids, self._block_tokens)
            request = replace(request, block_hashes=hashes)
        self._refuse(request.sampling, f"request {request.id}: ")
        grammar = request.sampling.grammar
        matcher = None if grammar is None else self._grammars.matcher(grammar, to_the_end=plays_out(request))
        wants_text = self._listener is not None
        return Generation(request, self._end_token_ids, self._tokenizer, wants_text, self.executor.vocab, matcher)

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Raise ``ValueError``, one line, where the model cannot be sampled like that.

        That is for biases of tokens that it does not have; stop strings or a grammar where there is no tokenizer; a
        grammar that is wrong, with the reason. Before a request is handed in, this is how to ask.
        """
        self._refuse(sampling)
        if sampling.grammar is not None:
            self._grammars.check(sampling.grammar)

    def _refuse(self, sampling: SamplingParams, who: str = "") -> None:
        """What can be said without a look into the grammar."""
        if self._tokenizer is None and sampling.stop:
            raise ValueError(f"{who}there are stop strings, but the engine has no tokenizer to see them with")
        if self._tokenizer is None and sampling.grammar is not None:
            raise ValueError(f"{who}there is a grammar, but the engine has no tokenizer to follow it with")
        for token_id, _ in sampling.logit_bias:
            if not 0 <= token_id < self.executor.vocab:
                raise ValueError(
                    f"{who}logit_bias has token {token_id}; the model's ids go from 0 to {self.executor.vocab - 1}"
                )

    @cached_property
    def _grammars(self) -> Grammars:
        """Made for the first grammar: it takes half a second."""
        if self._tokenizer is None:
            raise GrammarError("grammars need a tokenizer, and the engine has none")
        return Grammars(self._tokenizer, self.executor.vocab, self._end_token_ids)

    def abort(self, request_id: str) -> None:
        """End a request early; unknown and ended ones are ignored. The next plan does without it, and no token
        is reported after that; its memory is free when no step runs that it is in."""
        if self.broken is None:
            self._post(Abort(request_id, "aborted"))

    def call(self, work: Call) -> None:
        """Have ``work`` done by the loop's thread before its next plan: the scheduler may be read then.

        Raises :class:`~engine.errors.DeviceError` once the device has failed.
        """
        self._post(work)

    def stop(self) -> None:
        """:meth:`serve` is to return when it has completed the step at hand."""
        self._stopped = True
        self._arrived.set()

    def _post(self, *items: Generation | Abort | Call) -> None:
        with self._handing_in:
            if self.broken is not None:
                raise DeviceError(self.broken)
            self._inbox.extend(items)
        self._arrived.set()

    # -- the loop

    def run(self, workload: Iterable[Request] = (), progress: Callable[[Progress], None] | None = None) -> None:
        """Play a workload at the times its requests arrive, and return when all of it has ended.

        Arrivals do not wait for the engine (open loop). On ``KeyboardInterrupt`` the step at hand is completed, what
        has not ended is aborted, and the interrupt goes on to the caller.

        Raises :class:`~engine.errors.DeviceError` when the device fails; all that was handed in has ended then.
        """
        arrivals = deque(sorted(workload, key=lambda request: request.arrival_ns))
        try:
            with undisturbed():
                self._play(arrivals, progress)
        except KeyboardInterrupt:
            self.abort_all()
            raise

    def serve(self, told: Call = lambda: None) -> None:
        """Run what is handed in, as it comes, until :meth:`stop`; what has not ended then is left as it is.

        ``told`` is called when a step's news have been told, and whenever there is nothing more to do for now.
        Raises :class:`~engine.errors.DeviceError` when the device fails; all that was handed in has ended then.
        """
        while not self._stopped:
            stepped = self.step()
            told()
            if not stepped and not self._inbox and not self._stopped:
                wakeup_ns = self.scheduler.next_wakeup()
                self._arrived.wait(None if wakeup_ns is None else max(0, wakeup_ns - self.now_ns()) / 1e9)

    def _play(self, arrivals: deque[Request], progress: Callable[[Progress], None] | None) -> None:
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

    def step(self) -> bool:
        """Take in what has arrived and complete one step; ``False`` when there is nothing to do now.

        Raises :class:`~engine.errors.DeviceError` when the device fails, and ever after.
        """
        if self.broken is not None:
            raise DeviceError(self.broken)
        with _uninterrupted():
            if not self._running and not self._begin():
                return False
            if not self._running:
                return True  # memory was too short for it
            if self.overlap:
                self._plan()
                if self._planned is not None and self.executor.launches_ahead and not self._waits_for_tokens():
                    self._launch()
            self._finish()
            if self._planned is not None:
                self._launch()
                self._back_ns = None
            return True

    def abort_all(self) -> None:
        """Complete what is in flight, abort everything that has not ended, and forget what waits in the inbox."""
        self._inbox.clear()
        while self.in_flight:
            if not self._running:
                self._launch()
            if self._running:
                self._finish()
        now_ns = self.now_ns()
        for sequence, _ in self._live.values():
            self.scheduler.abort(sequence.id, now_ns)
            self._aborts_passed_on = True
        self.scheduler.next_step(now_ns)
        self._forget_aborted()

    @property
    def in_flight(self) -> bool:
        """Whether a step is running, or planned."""
        return bool(self._running) or self._planned is not None

    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.now_ns(), self._steps, self._submitted, self._ended, self._output_tokens)

    def _drain_inbox(self) -> int:
        """Give the scheduler what has arrived. One reading of the clock serves the whole step."""
        self._arrived.clear()
        items = [self._inbox.popleft() for _ in range(len(self._inbox))]
        now_ns = self.now_ns()
        for item in items:
            if isinstance(item, Abort):
                self.scheduler.abort(item.request_id, now_ns, item.reason)
                self._aborts_passed_on = True
            elif isinstance(item, Generation):
                self._take_up(item, now_ns)
            else:
                item()
        return now_ns

    def _take_up(self, generation: Generation, now_ns: int) -> None:
        sequence = self.scheduler.submit(generation.request, now_ns)
        self._submitted += 1
        if sequence.state == "rejected":
            self._ended += 1
            self._tell(TokenOutput(sequence.id, None, "", "rejected", sequence.reason, _metrics(sequence, now_ns)))
            return
        self._live[sequence.number] = (sequence, generation)
        if generation.sampling.follows_output:
            self._followers.add(sequence.number)

    # -- one step

    def _begin(self) -> bool:
        """Plan and launch a step while none is running; ``False`` when there is nothing to do."""
        self._back_ns = None
        self._plan()
        if self._planned is None:
            self._period_start_ns = None
            return False
        self._launch()
        return True

    def _plan(self) -> None:
        """Take in what has arrived, and ask for the next plan unless there is one."""
        if self._planned is not None:
            return
        now_ns = self._drain_inbox()
        plan = self.scheduler.next_step(now_ns)
        if plan is not None:
            numbers = [chunk.sequence.number for chunk in plan.chunks]
            self._planned = Planned(plan, {number: self._live[number][1] for number in numbers})
            if self._period_start_ns is None:
                self._period_start_ns = now_ns
        self._forget_aborted()

    def _waits_for_tokens(self) -> bool:
        """Whether the planned step can only be launched when the tokens of the running one are known here."""
        planned = self._planned
        return planned is not None and bool(self._followers) and not self._followers.isdisjoint(planned.states)

    def _launch(self) -> None:
        """Start the planned step. One for which memory is too short is tried again when no other is running."""
        while self._planned is not None:
            plan, states, tried = self._planned
            try:
                pending = self.executor.launch(plan, states)
            except Exception as error:
                problem = self._shortage(error)
            else:
                self._planned = None
                self._running.append(Running(plan, states, pending))
                return
            self._planned = Planned(plan, states, tried=True)
            if tried:
                self._planned = None
                self._lose(plan, states, problem)
            elif self._running:
                return

    def _finish(self) -> None:
        """Wait for the running step, and tell everybody what it gave."""
        if not self._running:
            raise RuntimeError("no step is running")
        if len(self._running) > 1 and self._back_ns is not None:
            self._running[1] = self._running[1]._replace(work_ns=self.now_ns() - self._back_ns)
        plan, states, _, work_ns = self._running[0]
        result = self._result()
        self._back_ns = self.now_ns()
        self._running.popleft()
        if isinstance(result, str):
            self._lose(plan, states, result)
            return
        self.waste = ExecutorWaste(*(a + b for a, b in zip(self.waste, result.waste, strict=True)))
        texts, stops = self._accept(plan, states, result)
        ended = self._complete(plan, result.device_ns, stops, result.launch_ns, work_ns)
        self._report(result, texts, ended)

    def _result(self) -> StepResult | str:
        """What the running step gave, at the second try if memory was too short at the first; or what went wrong."""
        plan, states, pending, _ = self._running[0]
        try:
            return pending.result()
        except Exception as error:
            problem = self._shortage(error)
        if len(self._running) > 1:
            return problem  # the next one has been launched with tokens that this one was to give
        try:
            return self.executor.launch(plan, states).result()
        except Exception as error:
            return self._shortage(error)

    def _complete(
        self, plan: StepPlan, device_ns: int, stops: dict[int, StopReason], launch_ns: int = 0, work_ns: int = 0
    ) -> list[Sequence]:
        """Tell the scheduler that the step has ended now. Returns who ended with it."""
        end_ns = self.now_ns()
        period_ns = 0 if self._period_start_ns is None else end_ns - self._period_start_ns
        self._period_start_ns = end_ns
        for chunk in plan.chunks if self._failed else ():
            if chunk.sequence.number in self._failed and not chunk.sequence.ended:
                stops[chunk.sequence.number] = "error"
        outcome = StepOutcome([end_ns], device_ns, max(0, period_ns - device_ns), stops, launch_ns, work_ns)
        return self.scheduler.complete(plan, outcome, end_ns)

    # -- when something goes wrong

    def _shortage(self, error: Exception) -> str:
        """What to say of a step for which memory was too short. For any other ``error`` everything in flight fails.

        Raises ``error``, or :class:`~engine.errors.DeviceError` if it means that the device has failed.
        """
        if is_out_of_memory(error):
            numbers = "" if self._memory is None else f" ({self._memory.now()})"
            return f"memory is too short for the step: {first_line(error)}{numbers}"
        problem = first_line(error)
        lost = is_device_lost(error)
        if lost:
            problem = f"the device has failed: {problem}"
            with self._handing_in:
                self.broken = problem
        plans = [(flight.plan, flight.states) for flight in (*self._running, self._planned) if flight is not None]
        self._running.clear()
        self._planned = None
        for plan, states in plans:
            self._lose(plan, states, problem)
        self._period_start_ns = None
        if lost:
            self._end_all(problem)
            raise DeviceError(problem) from error
        raise error

    def _lose(self, plan: StepPlan, states: dict[int, Generation], problem: str) -> None:
        """A step could not be run: whose tokens or KV it was to make or move ends with an error."""
        lost = [chunk.sequence for chunk in plan.chunks]
        moved = [
            self._live[swap.number][0] for swap in (*plan.swapped_out, *plan.swapped_in) if swap.number in self._live
        ]
        self._failed.update({s.number: problem for s in (*lost, *moved) if not s.ended})
        for sequence in iter_sampled(plan):
            # a step that was planned on top of it computes its row nevertheless, and has to be given some token
            states[sequence.number].token_ids.append(0)
        for sequence in self._complete(plan, 0, {}):
            self._end(sequence, None, "")
        for sequence in {s.number: s for s in (*lost, *moved)}.values():
            if not sequence.ended:
                self._inbox.append(Abort(sequence.id, "error"))

    def _end_all(self, problem: str) -> None:
        """Everything that has been handed in ends with an error."""
        now_ns = self._drain_inbox()
        for number, (sequence, _) in self._live.items():
            self._failed[number] = problem
            self.scheduler.abort(sequence.id, now_ns, "error")
            self._aborts_passed_on = True
        self.scheduler.next_step(now_ns)
        self._forget_aborted()

    def _accept(
        self, plan: StepPlan, states: dict[int, Generation], result: StepResult
    ) -> tuple[dict[int, str], dict[int, StopReason]]:
        """Give every sequence its token: the new text of each, and the stops that the plan could not foresee.

        Sequences that have ended meanwhile, or are about to with an error, get none.
        """
        texts: dict[int, str] = {}
        stops: dict[int, StopReason] = {}
        live, failed = self._live, self._failed
        for number, token_id in result.tokens.items():
            if number not in live or number in failed:
                continue
            try:
                texts[number], stop = states[number].accept(token_id)
            except GrammarError as error:
                failed[number] = str(error)
                continue
            if stop is not None:
                stops[number] = stop
        return texts, stops

    def _report(self, result: StepResult, texts: dict[int, str], ended: list[Sequence]) -> None:
        self._steps += 1
        self._output_tokens += len(texts)
        finished = {sequence.number for sequence in ended}
        for sequence in ended:
            if sequence.number not in texts:
                self._end(sequence, None, "")
        # with nobody to be told, only who has ended matters
        told = texts if self._listener is not None else {number: texts[number] for number in finished & texts.keys()}
        for number, text in told.items():
            sequence = self._live[number][0]
            token_id, logprobs = result.tokens[number], result.logprobs.get(number)
            if number in finished:
                self._end(sequence, token_id, text, logprobs)
            else:
                self._tell(TokenOutput(sequence.id, token_id, text, logprobs=logprobs))

    def _end(self, sequence: Sequence, token_id: int | None, text: str, logprobs: TokenLogprobs | None = None) -> None:
        _, generation = self._live.pop(sequence.number)
        self._followers.discard(sequence.number)
        self._ended += 1
        problem = self._failed.pop(sequence.number, "")
        if sequence.reason == "error":
            self.errors += 1
            self.last_error = problem
        else:
            problem = ""
        text += generation.finish()
        metrics = _metrics(sequence, self.now_ns())
        self._tell(TokenOutput(sequence.id, token_id, text, sequence.reason, problem, metrics, logprobs))

    def _forget_aborted(self) -> None:
        """Aborts take effect when a plan is asked for; drop what they ended."""
        if not self._aborts_passed_on:
            return
        self._aborts_passed_on = False
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


def _metrics(sequence: Sequence, ended_ns: int) -> RequestMetrics:
    """``ended_ns``: when a sequence ended that did not finish."""

    def known(time_ns: int) -> int | None:
        return None if time_ns == UNSET else time_ns

    return RequestMetrics(
        sequence.arrival_ns,
        known(sequence.first_scheduled_ns),
        known(sequence.first_token_ns),
        ended_ns if sequence.finish_ns == UNSET else sequence.finish_ns,
        sequence.preemptions,
        sequence.prefix_hit_tokens,
        sequence.recomputed_tokens,
    )


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
