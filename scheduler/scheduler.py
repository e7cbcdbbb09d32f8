"""The one scheduler. It knows neither a clock nor a device: time is an argument, a step is a plan.

A sequence has computed tokens and known tokens; a step moves some sequences forward by some tokens, and which ones is
the policy's choice. The same object drives the simulator and the real engine.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from scheduler.completion import Completion
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.digest import PlanDigest, hash_id
from scheduler.features import Draft, measure
from scheduler.flight import BusyError, Flight
from scheduler.observer import Observer
from scheduler.plan import NEVER, StepOutcome, StepPlan, Swap
from scheduler.prefill import Prefill
from scheduler.request import HeadStart, Request
from scheduler.sequence import UNSET, Sequence
from scheduler.state import SchedulerState
from scheduler.stepping import Stepping


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler:
    """Takes requests, hands out step plans, and is told how they went. All times are integer nanoseconds.

    The calls of a step are :meth:`next_step` and :meth:`complete`; with ``overlap`` the next plan may be asked for
    while one is in flight, whose sequences then count as advanced. Deterministic: the same calls give the same plans.
    """

    def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
        self._state = state = SchedulerState(config, observer)
        self.config = state.config
        self.parts = state.parts
        self.policy = state.policy
        self.pool = state.pool
        self.host = state.host
        self._graphs = state.config.graphs
        self._counters = state.counters
        self.digest = PlanDigest()
        self._stepping = Stepping(state, Prefill(state))
        self._completion = Completion(state)
        self._observer = observer
        self._submissions = self._plans = 0
        #: whether it makes a difference when a request begins to wait, although it cannot be admitted
        self._arrivals_matter = (
            self.policy.urgency is not None
            or self.policy.ledger is not None
            or self.policy.waiting.shapes_lanes
            or config.oracle == "history"
            # what free pieces are too small for depends on who waits
            or not self.pool.grows
        )
        #: request ids, each with the reason that it ends with
        self._aborts: list[tuple[str, str]] = []

    # -- what a world asks

    @property
    def counters(self) -> RunCounters:
        """What the run has come to so far."""
        return self._counters

    @property
    def now_ns(self) -> int:
        """The time of the last call."""
        return self._state.now_ns

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return len(self._state.waiting)

    @property
    def resident(self) -> int:
        """Sequences that hold KV."""
        return self._state.holding

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV the resident sequences hold, and what of a prompt in progress is computed."""
        state = self._state
        prefilling = 0 if state.prefilling is None else state.prefilling.computed
        return state.residents.tokens - state.residents.count + prefilling

    @property
    def waiting_tokens(self) -> int:
        """Known tokens of the requests that wait to be admitted."""
        return self._state.waiting_tokens

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is resident."""
        return not self._state.sequences and not self._state.flights

    def sequences(self) -> list[Sequence]:
        """Those that have not ended, in order of submission. To be looked at, between two calls."""
        return list(self._state.sequences.values())

    def refusal(self, request: Request) -> str | None:
        """Why ``request`` can never be served under this configuration, or ``None``."""
        return self._refusal(self._unnumbered(request))

    def _refusal(self, sequence: Sequence) -> str | None:
        request, config = sequence.request, self.config
        tokens = request.prompt_tokens + (1 if request.output_tokens is None else request.planned_output_tokens)
        if tokens > config.context_tokens:
            return f"{tokens} tokens are more than the model's context of {config.context_tokens}"
        if sequence.known >= sequence.limit:
            return f"it comes with {sequence.output_tokens} output tokens, and may have no more"
        tokens = max(sequence.limit, self._state.admission.booking(sequence))
        most = self.pool.largest_tokens
        if tokens > most:
            return f"{tokens} tokens are more than the KV memory of {most}"
        return None

    def kv_tokens_needed(self, request: Request) -> int:
        """KV memory that ``request`` needs to be served at all, within the model's context."""
        sequence = self._unnumbered(request)
        return max(sequence.limit, self._state.admission.booking(sequence))

    def predicted_tokens(self, request: Request) -> int:
        """Output tokens that the oracle expects of ``request``."""
        return self._unnumbered(request).predicted

    def head_starts(self) -> list[tuple[Sequence, HeadStart]]:
        """Those that have not ended, in order of submission, as they would go on elsewhere without their KV.

        Tokens of a plan in flight do not count; none may have been planned after it.
        """
        found = []
        for sequence in self._state.sequences.values():
            served = self._state.residents.served(sequence)
            last_token_ns = UNSET if served is None or not sequence.output_tokens else served.end_ns
            start = HeadStart(
                sequence.output_tokens, False, sequence.first_scheduled_ns, sequence.first_token_ns, last_token_ns
            )
            found.append((sequence, start))
        return found

    def _unnumbered(self, request: Request) -> Sequence:
        sequence = Sequence(request, 0, 0, self.config.context_tokens)
        sequence.estimates = self._state.oracle.estimates(sequence)
        return sequence

    def submit(self, request: Request, now_ns: int) -> Sequence:
        """Take in a request. One that can never be served is ``rejected``, with the reason, and never waits.

        Raises ``ValueError`` for an id that is already in use.
        """
        state = self._state
        if request.id in state.sequences:
            raise ValueError(f"request id {request.id!r} is in use by a request that has not ended")
        sequence = Sequence(request, self._submissions, hash_id(request.id), self.config.context_tokens)
        self._submissions += 1
        self._counters.submitted += 1
        sequence.estimates = state.oracle.estimates(sequence)
        refusal = self._refusal(sequence)
        if refusal is not None:
            sequence.state, sequence.reason = "rejected", refusal
            self._counters.rejected += 1
            if self._observer is not None:
                self._observer.ended(sequence)
            return sequence
        state.sequences[request.id] = sequence
        if self.policy.waiting.timed:
            sequence.set_service(self.policy.waiting.first_service_ns(sequence, state.view))
        if state.promotion is not None:
            state.promotion.watch(sequence)
        if state.ledger is not None:
            state.ledger.submitted(sequence)
        state.enqueue(sequence)
        return sequence

    def abort(self, request_id: str, now_ns: int, reason: str = "aborted") -> None:
        """End a request early, at the next plan. Unknown or ended ids are ignored: an abort may cross a finish.

        ``reason`` is what it ends with: ``aborted``, or ``error`` where it is the engine that cannot go on with it.
        """
        self._aborts.append((request_id, reason))

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        """The next plan, or ``None`` when there is nothing to do now (see :meth:`next_wakeup`).

        ``max_repeat``: the most steps that the plan may stand for. With a plan in flight ``None`` may also mean that
        it has to be completed first.
        """
        state = self._state
        if len(state.flights) > self.config.overlap:
            raise RuntimeError(f"plan {state.flights[0].plan.index} has not been completed")
        state.now_ns = now_ns
        for flight in state.flights:
            if not flight.advanced:
                self._completion.advance(flight)
        if self._aborts:
            self._apply_aborts()
        state.residents.follow_order()
        if state.timed:
            self._completion.retime()
        if state.evicted:
            state.evicted = set()
        try:
            draft = self._stepping.draft()
        except BusyError:
            return None
        return None if draft is None else self._plan(draft, max_repeat)

    def shorten(self, plan: StepPlan, steps: int) -> None:
        """Of a plan in flight only ``steps`` steps will be run, and the last of them begins now.

        To be said before anything else is handed in for the next plan.
        """
        flight = self._state.flights[-1]
        if flight.plan is not plan or flight.advanced or not 1 <= steps <= plan.repeat:
            raise ValueError(f"plan {plan.index} of {plan.repeat} steps cannot be cut to {steps} now")
        flight.steps = steps
        self._completion.charge(flight, steps - 1)

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        """The plan has been run: advance its sequences. Returns those that ended, in row order.

        A stretch may end before ``plan.repeat``: as many of its steps count as ``outcome`` has end times.
        """
        state = self._state
        if not state.flights or state.flights[0].plan is not plan:
            raise RuntimeError(f"plan {plan.index} is not in flight")
        flight = state.flights[0]
        steps = len(outcome.ends_ns)
        if not 1 <= steps <= plan.repeat:
            raise ValueError(f"plan {plan.index}: {steps} end times for a stretch of {plan.repeat} steps")
        if flight.advanced and steps != flight.steps:
            raise ValueError(f"plan {plan.index}: {steps} end times, but it counts as advanced by {flight.steps} steps")
        del state.flights[0]
        state.now_ns = now_ns
        self._counters.add_steps(plan.features, steps)
        self.digest.add(plan.digest_entry, steps)
        if self._observer is not None:
            self._observer.stepped(plan, steps, outcome)
        if not flight.advanced:
            flight.steps = steps
            self._completion.advance(flight, outcome)
        ended = self._completion.settle(flight, outcome)
        if self._observer is not None:
            for sequence in ended:
                self._observer.ended(sequence)
        return ended

    def next_wakeup(self) -> int | None:
        """When :meth:`next_step` may have a plan although it has none now and nothing arrives; ``None``: never."""
        return self._state.next_wakeup()

    # -- the plan

    def _plan(self, draft: Draft, max_repeat: int) -> StepPlan:
        state = self._state
        steps = self._stepping.steps_the_same(draft, max_repeat)
        until_ns = self._stepping.until(draft) if steps > 1 else NEVER
        swapped, swapped_in = 0, tuple[Swap, ...]()
        if state.swapped_out or state.swapped_in:
            for sequence in state.swapped_in:
                sequence.swapped_in += 1
            swapped_in = tuple(state.swap(sequence) for sequence in state.swapped_in)
            tokens_in = sum(swap.tokens for swap in swapped_in)
            swapped = sum(swap.tokens for swap in state.swapped_out) + tokens_in
            self._counters.swapped_in += len(swapped_in)
            self._counters.swapped_tokens += tokens_in
        batch_rows = 0 if state.batch is None else state.batch.rows
        config = self.config
        features, entry = measure(
            draft,
            config.layout,
            self.pool,
            batch_rows,
            swapped,
            steps,
            self._graphs,
            len(state.released),
        )
        slot_free = state.holding < config.max_running and state.batch is None
        plan = StepPlan(
            index=self._plans,
            now_ns=state.now_ns,
            repeat=steps,
            features=features,
            digest_entry=entry,
            until_ns=until_ns,
            arrival_matters=slot_free or self._arrivals_matter,
            released=tuple(state.released) if state.released else (),
            _chunks=draft.in_row_order,
            _block_table=self._block_table,
            swapped_out=tuple(state.swapped_out) if state.swapped_out else (),
            swapped_in=swapped_in,
        )
        self._plans += 1
        if state.released:
            state.released = []
        if state.swapped_out or state.swapped_in:
            state.swapped_out, state.swapped_in = [], []
        state.brought_in = False
        flight = Flight(plan, draft, steps, self._unusable_tokens())
        state.flights.append(flight)
        return plan

    def _unusable_tokens(self) -> int:
        state = self._state
        if not state.waiting or self.pool.grows:
            return 0
        return self.pool.unusable_tokens(state.admission.booking(state.waiting.first_lane().head))

    def _block_table(self, sequence: Sequence) -> list[int]:
        """Blocks for what is computed and for what the step in flight computes."""
        if sequence.state == "prefilling":
            tokens = min(sequence.known, sequence.computed + self.config.max_prefill_tokens)
        else:
            tokens = sequence.known
        return self.pool.table(sequence, self.pool.blocks_for(tokens))

    def _apply_aborts(self) -> None:
        aborts = [(self._state.sequences.get(request_id), reason) for request_id, reason in self._aborts]
        self._aborts.clear()
        for sequence, reason in aborts:
            if sequence is None or sequence.ended:
                continue
            self._completion.abort(sequence, reason)
            if self._observer is not None:
                self._observer.ended(sequence)
