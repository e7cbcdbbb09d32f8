"""The one scheduler. It knows neither a clock nor a device: time is an argument, a step is a plan.

A sequence has computed tokens and known tokens; a step moves some sequences forward by some tokens, and which ones is
the policy's choice. The same object drives the simulator and the real engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from scheduler.accounting import Account, Memory, Waits, waits_of
from scheduler.admission import build_admission
from scheduler.cohorts import Cohort, Residents, growth, steps_within, sum_of
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.digest import PlanDigest, hash_id
from scheduler.eviction import Eviction
from scheduler.features import Draft, measure
from scheduler.kv import Freed, HostMemory, build_pool
from scheduler.observer import Observer
from scheduler.oracle import build_oracle
from scheduler.plan import NEVER, Chunk, StepOutcome, StepPlan, StopReason, Swap
from scheduler.policy import Ageing
from scheduler.promotion import Promotion
from scheduler.request import Request
from scheduler.sequence import UNSET, Sequence, Served
from scheduler.waiting import WaitingLane, WaitingQueue, build_waiting


@dataclass(slots=True)
class Flight:
    """A plan that has been handed out and not been completed, and what of the scheduler's state it moves."""

    plan: StepPlan
    draft: Draft
    steps: int
    """how many of the plan's steps are run, as far as is known"""
    unusable_tokens: int
    served: Served = field(default_factory=Served)
    advanced: bool = False
    waits: Waits | None = None
    memory: Memory | None = None
    ending: list[Sequence] = field(default_factory=list)
    """reach the end that was foreseen"""
    hidden: list[Sequence] = field(default_factory=list)
    """reach an end that shows only when the step is done"""
    held: list[tuple[Sequence, int | None]] = field(default_factory=list)
    """have ended, and their blocks are given back when the step is done"""
    dropped: set[int] = field(default_factory=set)
    """aborted while it runs"""
    members: list[Sequence] | None = None
    """the decode rows, where they are looked at again after their cohorts have changed"""

    @property
    def changes_the_next(self) -> bool:
        """Whether its completion may change a decision."""
        return bool(self.draft.chunks or self.ending or self.hidden or self.held)

    def steps_on(self, sequence: Sequence) -> bool:
        """Whether ``sequence``, not yet advanced, is a decode row of the plan."""
        return self.draft.steps_on(sequence)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the plan, advanced already, works on ``sequence``."""
        draft = self.draft
        return (
            sequence in (self.members or ())
            or sequence in draft.joining
            or any(chunk.sequence is sequence for chunk in draft.chunks)
        )

    def drop(self, sequence: Sequence, blocks: int) -> None:
        """``sequence`` was aborted: its token of this plan does not count, its memory is held to the end of it."""
        self.dropped.add(sequence.number)
        self.held.append((sequence, blocks))
        if sequence in self.ending:
            self.ending.remove(sequence)
        sampled = [chunk for chunk in self.draft.chunks if chunk.sequence is sequence and chunk.samples]
        if sampled or sequence in (self.members or ()):
            sequence.place(sequence.known - 1, sequence.computed)


@dataclass(slots=True)
class Batch:
    """A batch that has been closed: nobody joins it."""

    rows: int
    """of its first decode step"""
    steps_left: int | None
    """``None``: until its last member ends"""
    members: set[int] | None
    """``None``: all residents"""


class BusyError(Exception):
    """A decision needs the plan in flight to be completed first."""


class SchedulerView:
    """What a policy may read of the scheduler; see :class:`~scheduler.policy.View`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._prefill_token_ns = scheduler.config.prefill_token_ns

    @property
    def now_ns(self) -> int:
        return self._scheduler.now_ns

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def resident(self) -> int:
        return self._scheduler.resident

    @property
    def free_blocks(self) -> int:
        return self._scheduler.pool.free_blocks

    def predicted(self, sequence: Sequence) -> int:
        return sequence.predicted

    def cached_tokens(self, sequence: Sequence) -> int:
        return self._scheduler.pool.cached_tokens(sequence)

    def prefill_ns(self, tokens: int) -> int:
        return tokens * self._prefill_token_ns


def _members(cohorts: list[Cohort], rows: list[Sequence]) -> list[Sequence]:
    return [s for cohort in cohorts for s in cohort.members.values()] + rows


class Scheduler:
    """Takes requests, hands out step plans, and is told how they went. All times are integer nanoseconds.

    The calls of a step are :meth:`next_step` and :meth:`complete`; with ``overlap`` the next plan may be asked for
    while one is in flight, whose sequences then count as advanced. Deterministic: the same calls give the same plans.
    """

    def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
        self.config = config
        parts = compose(config)
        self.parts = parts
        self.policy = policy = parts.policy
        self.pool = build_pool(config.pool, config.kv_tokens, config.block_tokens, config.prefix_cache)
        self.host = HostMemory(config.swap_tokens)
        self.counters = RunCounters()
        self.digest = PlanDigest()
        self.now_ns = 0
        self._observer = observer
        self._view = SchedulerView(self)
        self._oracle = build_oracle(config)
        self._admission = build_admission(parts.admission, config.capacity_tokens)
        self._grows = self._admission.grows and self.pool.grows
        self._waiting: WaitingQueue = build_waiting(policy.waiting, self._view)
        self._residents = Residents(
            policy.resident,
            self._view,
            self.pool.block_tokens,
            urgency=policy.urgency,
            quantum=policy.quantum,
            by_tenant=policy.ledger is not None,
        )
        self._eviction = Eviction(policy, config.victim, self._residents, self._view)
        self._promotion = None if policy.promote_ns is None else Promotion(policy.promote_ns)
        self._account = Account(self.counters, self.pool, round(config.starvation_s * 1e9), observer)
        self._sequences: dict[str, Sequence] = {}
        self._submissions = self._plans = 0
        #: sequences that hold KV, those that end in the plan in flight included
        self._holding = 0
        self._prefilling: Sequence | None = None
        self._flights: deque[Flight] = deque()
        self._batch: Batch | None = None
        #: the waiting lane that a batch that runs to completion fills from
        self._filling: Any = None
        self._aborts: list[str] = []
        # of the plan to come
        self._released: list[int] = []
        self._swapped_out: list[Swap] = []
        self._swapped_in: list[Sequence] = []
        self._evicted: set[int] = set()
        # who could not be admitted, and how long it is of no use to look again
        self._blocked: tuple[int, int] | None = None
        self._blocked_until = 0
        self._steps_done = 0
        #: were served apart from their cohort since lanes were last looked at (timed orders)
        self._served_alone: list[Sequence] = []
        self._last_end_ns = 0

    # -- what a world asks

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return len(self._waiting)

    @property
    def resident(self) -> int:
        """Sequences that hold KV."""
        return self._holding

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is resident."""
        return not self._sequences and not self._flights

    def refusal(self, request: Request) -> str | None:
        """Why ``request`` can never be served under this configuration, or ``None``."""
        return self._refusal(self._unnumbered(request))

    def _refusal(self, sequence: Sequence) -> str | None:
        request, config = sequence.request, self.config
        tokens = request.prompt_tokens + (1 if request.output_tokens is None else request.planned_output_tokens)
        if tokens > config.context_tokens:
            return f"{tokens} tokens are more than the model's context of {config.context_tokens}"
        tokens = max(sequence.limit, self._admission.booking(sequence))
        most = self.pool.largest_tokens
        if tokens > most:
            return f"{tokens} tokens are more than the KV memory of {most}"
        return None

    def kv_tokens_needed(self, request: Request) -> int:
        """KV memory that ``request`` needs to be served at all, within the model's context."""
        sequence = self._unnumbered(request)
        return max(sequence.limit, self._admission.booking(sequence))

    def _unnumbered(self, request: Request) -> Sequence:
        sequence = Sequence(request, 0, 0, self.config.context_tokens)
        sequence.estimates = self._oracle.estimates(sequence)
        return sequence

    def submit(self, request: Request, now_ns: int) -> Sequence:
        """Take in a request. One that can never be served is ``rejected``, with the reason, and never waits.

        Raises ``ValueError`` for an id that is already in use.
        """
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use by a request that has not ended")
        sequence = Sequence(request, self._submissions, hash_id(request.id), self.config.context_tokens)
        self._submissions += 1
        self.counters.submitted += 1
        sequence.estimates = self._oracle.estimates(sequence)
        refusal = self._refusal(sequence)
        if refusal is not None:
            sequence.state, sequence.reason = "rejected", refusal
            self.counters.rejected += 1
            if self._observer is not None:
                self._observer.ended(sequence)
            return sequence
        self._sequences[request.id] = sequence
        if self.policy.waiting.timed:
            sequence.set_service(self.policy.waiting.first_service_ns(sequence, self._view))
        if self._promotion is not None:
            self._promotion.watch(sequence)
        if self.policy.ledger is not None:
            self.policy.ledger.submitted(sequence)
        self._waiting.push(sequence)
        return sequence

    def abort(self, request_id: str, now_ns: int) -> None:
        """End a request early, at the next plan. Unknown or ended ids are ignored: an abort may cross a finish."""
        self._aborts.append(request_id)

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        """The next plan, or ``None`` when there is nothing to do now (see :meth:`next_wakeup`).

        ``max_repeat``: the most steps that the plan may stand for. With a plan in flight ``None`` may also mean that
        it has to be completed first.
        """
        if len(self._flights) > self.config.overlap:
            raise RuntimeError(f"plan {self._flights[0].plan.index} has not been completed")
        self.now_ns = now_ns
        for flight in self._flights:
            if not flight.advanced:
                self._advance(flight)
        self._apply_aborts()
        self._residents.follow_order()
        if self.policy.resident.timed:
            self._retime()
        self._evicted = set()
        try:
            draft = self._draft()
        except BusyError:
            return None
        return None if draft is None else self._plan(draft, max_repeat)

    def shorten(self, plan: StepPlan, steps: int) -> None:
        """Of a plan in flight only ``steps`` steps will be run. To be said before the next plan is asked for."""
        self._flights[-1].steps = steps

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        """The plan has been run: advance its sequences. Returns those that ended, in row order.

        A stretch may end before ``plan.repeat``: as many of its steps count as ``outcome`` has end times.
        """
        if not self._flights or self._flights[0].plan is not plan:
            raise RuntimeError(f"plan {plan.index} is not in flight")
        flight = self._flights[0]
        steps = len(outcome.ends_ns)
        if not 1 <= steps <= plan.repeat:
            raise ValueError(f"plan {plan.index}: {steps} end times for a stretch of {plan.repeat} steps")
        if flight.advanced and steps != flight.steps:
            raise ValueError(f"plan {plan.index}: {steps} end times, but it counts as advanced by {flight.steps} steps")
        self._flights.popleft()
        self.now_ns = now_ns
        self.counters.add_steps(plan.features, steps)
        self.digest.add(plan.digest_entry._replace(repeat=steps))
        if self._observer is not None:
            self._observer.stepped(plan, steps, outcome)
        if not flight.advanced:
            flight.steps = steps
            self._advance(flight, outcome)
        ended = self._settle(flight, outcome)
        if self._observer is not None:
            for sequence in ended:
                self._observer.ended(sequence)
        return ended

    def next_wakeup(self) -> int | None:
        """When :meth:`next_step` may have a plan although it has none now and nothing arrives; ``None``: never."""
        if self._waiting and self._empty and self._waiting.fullest_lane() < self.policy.min_batch:
            return self._waiting.oldest().arrival_ns + self.policy.max_wait_ns
        return None

    @property
    def _empty(self) -> bool:
        """Nobody is resident, apart from those who end in the plan in flight."""
        return not self._residents.count and self._prefilling is None

    # -- what the next step does

    def _draft(self) -> Draft | None:
        if self._batch is not None:
            return self._draft_of_batch(self._batch)
        if self.parts.phase == "mixed":
            return self._mixed_draft()
        if self.parts.phase == "decode-first":
            draft = self._decode_draft()
            if draft.decodes or (self._flights and self._flights[-1].ending):
                return draft if draft.decodes else None
        chunks, _ = self._prefill(self.config.max_prefill_tokens, self.config.rows)
        draft = Draft(chunks) if chunks else self._decode_draft()
        return draft if draft.chunks or draft.decodes else None

    def _mixed_draft(self) -> Draft | None:
        """Decodes first, prompts with what is left of the token budget (Sarathi-Serve)."""
        config, budget = self.config, self.parts.chunk_tokens
        draft = self._decode_draft(budget)
        rows = sum(cohort.count for cohort in draft.cohorts) + len(draft.rows)
        tokens = min(config.max_prefill_tokens, budget - rows)
        if tokens > 0:
            draft.chunks, draft.joining = self._prefill(tokens, config.rows - rows, draft)
        if draft.chunks or draft.decodes:
            return draft
        for sequence in draft.joining:
            self._join(sequence)
        draft = self._decode_draft(budget)
        return draft if draft.decodes else None

    # -- who is prefilled

    def _prefill(self, budget: int, rows: int, mixed: Draft | None = None) -> tuple[list[Chunk], list[Sequence]]:
        """Chunks of at most ``budget`` tokens in at most ``rows`` rows, and who was swapped in.

        ``mixed``: the decode rows of the same step. Its last prompt is cut to what is left of the budget, and who was
        swapped in joins after the step.
        """
        chunks: list[Chunk] = []
        if self._prefilling is not None:
            if rows < 1:
                return [], []
            chunks.append(self._chunk(self._prefilling, budget))
            budget -= chunks[0].tokens
            if mixed is None or budget <= 0 or not chunks[0].samples:
                return chunks, []
        elif self._batch_is_short():
            return [], []
        joining = self._admit(chunks, budget, rows, mixed)
        if mixed is None:
            for sequence in joining:
                self._join(sequence)
        chunks.sort(key=lambda chunk: chunk.sequence.number)
        return chunks, joining

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start = sequence.computed
        tokens = min(budget, sequence.known - start)
        return Chunk(sequence, start, tokens, start + tokens == sequence.known)

    def _batch_is_short(self) -> bool:
        wakeup = self.next_wakeup()
        return wakeup is not None and self.now_ns < wakeup

    def _admit(self, chunks: list[Chunk], budget: int, rows: int, mixed: Draft | None) -> list[Sequence]:
        """Admit waiting requests in the policy's order, while slots, rows, KV and the token budget allow."""
        waiting, exclusive = self._waiting, self.policy.waiting.exclusive
        swapped_in: list[Sequence] = []
        if not waiting:
            return swapped_in
        leader = self._aged(waiting)
        first = waiting.first_lane() if leader is None else waiting.lane_of(leader)
        lane: WaitingLane | None = first
        if self.parts.slice_steps == 0 and exclusive:
            if self._empty and not chunks:
                self._filling = first.key
            else:
                lane, leader = waiting.lane(self._filling), None
        while budget > 0 and len(chunks) < rows and lane is not None and lane.count:
            sequence = lane.head if leader is None else leader
            leader = None
            if sequence.number in self._evicted:
                break
            if not sequence.host_tokens and chunks and mixed is None:
                tokens = sequence.known - self.pool.cached_tokens(sequence)
                if tokens > budget:
                    break
            if not self._make_room(sequence, chunks, swapped_in, mixed):
                break
            waiting.remove(sequence)
            self._book(sequence)
            if sequence.host_tokens:
                self._swap_in(sequence)
                swapped_in.append(sequence)
            else:
                chunk = self._chunk(sequence, budget)
                chunks.append(chunk)
                budget -= chunk.tokens
                if not chunk.samples:
                    self._prefilling = sequence
                    break
            if not waiting or (exclusive and not lane.count):
                break
            if not exclusive:
                lane = waiting.first_lane()
        return swapped_in

    def _aged(self, queue: WaitingQueue | Residents) -> Sequence | None:
        """The oldest of the queue, if the policy knows ageing and it is past the threshold."""
        ageing = self.policy.ageing
        if ageing is None:
            return None
        oldest = queue.oldest()
        return oldest if self.now_ns - oldest.arrival_ns >= ageing.threshold_ns else None

    def _make_room(
        self, sequence: Sequence, chunks: list[Chunk], swapped_in: list[Sequence], mixed: Draft | None
    ) -> bool:
        """Whether a slot and KV are there for ``sequence``, after evicting less urgent ones if the policy says so."""
        blocked = (sequence.number, self._residents.version)
        if self._blocked == blocked and self._steps_done < self._blocked_until:
            return False
        slots = self.config.max_running - self._holding
        tokens = self._admission.booking(sequence)
        if not self._admission.consents(sequence, self._admitted(chunks, swapped_in)):
            return self._block(blocked, NEVER if not self._admission.follows_progress else 0)
        fits = self._fits(sequence, tokens)
        if slots > 0 and fits:
            return True
        if self.policy.urgency is None or not (fits or self.pool.grows):
            return self._block(blocked, NEVER)
        victims = self._victims_for(sequence, tokens, 1 - slots, mixed)
        if victims is None:
            return self._block(blocked, self._residents.steps_to_quantum() if mixed is None else 0)
        if self._flights:
            if chunks or swapped_in or (mixed is not None and mixed.decodes):
                return False
            raise BusyError
        for victim in victims:
            self._evict(victim)
        return True

    def _victims_for(self, sequence: Sequence, tokens: int, slots: int, mixed: Draft | None) -> list[Sequence] | None:
        """The fewest less urgent residents whose ``slots`` and KV are enough, or ``None``; no row of a mixed step."""
        shortage = self.pool.shortage(sequence, tokens, shares=not sequence.host_tokens)
        victims: list[Sequence] = []
        blocks = 0
        for victim in self._eviction.weaker(sequence):
            if len(victims) >= slots and blocks >= shortage:
                break
            if mixed is None or not mixed.steps_on(victim):
                victims.append(victim)
                blocks = self.pool.freed_by([(s, self._blocks_of(s)) for s in victims])
        return victims if len(victims) >= slots and blocks >= shortage else None

    def _block(self, blocked: tuple[int, int], steps: int) -> bool:
        """``sequence`` cannot be admitted, and for so many steps of the residents nothing changes about that."""
        self._blocked, self._blocked_until = blocked, self._steps_done + steps
        return False

    def _fits(self, sequence: Sequence, tokens: int) -> bool:
        if sequence.host_tokens and self.pool.grows:
            return self.pool.blocks_for(tokens) <= self.pool.free_blocks
        return self.pool.can_book(sequence, tokens)

    def _admitted(self, chunks: list[Chunk], swapped_in: list[Sequence]) -> Iterable[Sequence]:
        yield from self._residents.members()
        for chunk in chunks:
            yield chunk.sequence
        if self._prefilling is not None and all(chunk.sequence is not self._prefilling for chunk in chunks):
            yield self._prefilling
        yield from swapped_in

    def _book(self, sequence: Sequence) -> None:
        tokens = self._admission.booking(sequence)
        self._admission.admitted(sequence)
        if self.policy.ledger is not None:
            self.policy.ledger.admitted(sequence, sequence.first_scheduled_ns == UNSET)
        if self._promotion is not None:
            self._promotion.admitted(sequence, self.now_ns)
        self._holding += 1
        self._residents.version += 1
        if sequence.host_tokens:
            # its next step takes the block that comes next, if one does, as everybody's
            self.pool.book(sequence, sequence.computed if self._grows else tokens)
        else:
            cached = self.pool.book_cached(sequence, tokens)
            sequence.place(sequence.known, cached)
            if sequence.request.block_hashes and self.config.prefix_cache:
                self.counters.prefix_query_tokens += sequence.known
                self.counters.prefix_hit_tokens += cached
        sequence.state = "prefilling"
        sequence.admitted_known = sequence.known
        if sequence.first_scheduled_ns == UNSET:
            sequence.first_scheduled_ns = self.now_ns
            self._account.waited(sequence, self.now_ns - sequence.arrival_ns)

    def _join(self, sequence: Sequence) -> None:
        sequence.state = "resident"
        self._residents.join(sequence)

    # -- who is stepped

    def _decode_draft(self, most: int = NEVER) -> Draft:
        """At most ``most`` rows of the residents, after evicting whom their growth leaves no memory for."""
        while True:
            if not self._residents.count:
                return Draft()
            cohorts, rows = self._select(min(most, self.config.rows))
            if self._grow(cohorts, rows):
                break
            self._evict_for_growth()
        slice_steps = self.parts.slice_steps
        if slice_steps is not None:
            count = sum(cohort.count for cohort in cohorts) + len(rows)
            whole = slice_steps == 0 or count == self._residents.count
            members = None if whole else {s.number for s in _members(cohorts, rows)}
            self._batch = Batch(count, slice_steps or None, members)
        return Draft([], cohorts, rows)

    def _draft_of_batch(self, batch: Batch) -> Draft | None:
        """The next step of the closed batch; once it has none left, it is open again."""
        if batch.steps_left is None:
            if self._residents.count:
                return Draft([], *self._select(self.config.rows))
            self._batch = None
            return self._draft()
        while True:
            cohorts, rows = self._select_members(batch)
            if not cohorts and not rows:
                self._batch = None
                if self._evicted and self._residents.count:
                    return self._decode_draft()
                return self._draft()
            if self._grow(cohorts, rows):
                return Draft([], cohorts, rows)
            self._evict_for_growth()

    def _select_members(self, batch: Batch) -> tuple[list[Cohort], list[Sequence]]:
        if batch.members is None:
            return list(self._residents.cohorts.values()), []
        numbers = sorted(batch.members)
        return [], [s for s in map(self._residents.get, numbers) if s is not None]

    def _evict_for_growth(self) -> None:
        if self._holding == 1:
            raise RuntimeError(f"{self._residents.newest()!r} alone does not fit into the KV memory")
        if self._flights:
            raise BusyError
        self._evict(self._eviction.victim())

    def _grow(self, cohorts: list[Cohort], rows: list[Sequence]) -> bool:
        """Hand out the blocks that the next step takes; whether there are enough."""
        if self._grows:
            blocks = self._growth(cohorts, rows, 1)[0]
            if blocks > self.pool.free_blocks:
                return False
            self.pool.grow(blocks)
        return True

    def _growth(self, cohorts: list[Cohort], rows: list[Sequence], steps: int) -> list[int]:
        """New blocks in each of the next steps; it repeats after a block's worth of them."""
        period = growth(cohorts, steps) if cohorts else [0] * min(steps, self.pool.block_tokens)
        for sequence in rows:
            first = -sequence.computed % self.pool.block_tokens
            if first < len(period):
                period[first] += 1
        return period

    def _select(self, max_rows: int) -> tuple[list[Cohort], list[Sequence]]:
        """Whole cohorts for the next step, and single rows where a cohort does not fit into it as a whole."""
        residents, order = self._residents, self.policy.resident
        leader = self._aged(residents)
        first = residents.first() if leader is None or leader.cohort is None else leader.cohort
        whole = first.count <= max_rows and first.count >= min(order.min_rows, residents.count)
        exclusive = order.exclusive and self.parts.slice_steps != 0
        if whole and (exclusive or first.count == residents.count):
            return [first], []
        cohorts: list[Cohort] = []
        rows: list[Sequence] = []
        taken, limit = 0, max_rows
        for cohort in residents.ordered(first):
            room = limit - taken
            if room <= 0:
                break
            if cohort.count <= room:
                cohorts.append(cohort)
            else:
                rows = residents.ranked_members(cohort, leader)[:room]
            taken += min(cohort.count, room)
            if exclusive:
                limit = min(order.min_rows, max_rows)
        return cohorts, rows

    def _steps_the_same(self, draft: Draft, max_repeat: int) -> int:
        """How many steps of ``draft`` leave every decision as it is, arrivals and the clock apart."""
        if max_repeat == 1 or draft.chunks or self._evicted or self._swapped_out or self._swapped_in:
            return 1
        if self._flights and (self._flights[-1].changes_the_next or self.policy.resident.timed):
            return 1
        order, cohorts, rows = self.policy.resident, draft.cohorts, draft.rows
        if order.uniform and (rows or len(cohorts) > 1 or order.drifts):
            return 1
        if rows and not order.sticky and self._batch is None:
            return 1
        if self._waiting and self._holding < self.config.max_running and self._batch is None:
            everybody = not rows and len(cohorts) == len(self._residents.cohorts)
            if self.policy.waiting.live or (self._admission.follows_progress and not everybody):
                return 1
        steps = max_repeat
        for cohort in cohorts:
            steps = min(steps, cohort.steps_to_finish(), cohort.steps_to_leave())
        for sequence in rows:
            steps = min(steps, sequence.limit - sequence.known, order.steps_in_lane(sequence, self._view))
        if order.uniform:
            steps = min(steps, self._residents.steps_to_merge(cohorts[0]))
        if self._batch is not None and self._batch.steps_left is not None:
            steps = min(steps, self._batch.steps_left)
        if self.policy.urgency is not None and self._waiting:
            steps = min(steps, self._blocked_until - self._steps_done)
        steps = max(1, steps)
        if self._grows:
            period = self._growth(cohorts, rows, steps)
            steps = steps_within(self.pool.free_blocks + period[0], period, steps)
        return steps

    def _until(self, draft: Draft) -> int:
        """When a decision may change by time alone."""
        times = []
        if self.policy.ageing is not None:
            times += self._ageing_times(self.policy.ageing)
        if self.policy.resident.timed:
            times += [self.now_ns + cohort.time_to_leave() for cohort in draft.cohorts]
            times += [self.now_ns + self.policy.resident.time_in_lane(sequence) for sequence in draft.rows]
        if self._promotion is not None:
            times.append(self._promotion.next_ns())
        return min((time for time in times if time > self.now_ns), default=NEVER)

    def _ageing_times(self, ageing: Ageing) -> list[int]:
        times = [self._residents.oldest().arrival_ns + ageing.threshold_ns] if self._residents.count else []
        if self._waiting and self._holding < self.config.max_running:
            times.append(self._waiting.oldest().arrival_ns + ageing.threshold_ns)
        return times

    # -- the plan

    def _plan(self, draft: Draft, max_repeat: int) -> StepPlan:
        steps = self._steps_the_same(draft, max_repeat)
        until_ns = self._until(draft) if steps > 1 else NEVER
        swapped = sum(swap.tokens for swap in self._swapped_out) + sum(s.computed for s in self._swapped_in)
        batch_rows = 0 if self._batch is None else self._batch.rows
        features, entry = measure(draft, self.config.layout, self.pool, batch_rows, swapped, steps)
        slot_free = self._holding < self.config.max_running and self._batch is None
        plan = StepPlan(
            index=self._plans,
            now_ns=self.now_ns,
            repeat=steps,
            features=features,
            digest_entry=entry,
            until_ns=until_ns,
            arrival_matters=slot_free or self._arrivals_matter,
            released=tuple(self._released),
            _chunks=lambda: sorted(draft.chunks + draft.decode_chunks(), key=lambda chunk: chunk.sequence.number),
            _block_table=self._block_table,
            swapped_out=tuple(self._swapped_out),
            swapped_in=tuple(self._swap(sequence) for sequence in self._swapped_in),
        )
        self._plans += 1
        self.counters.swapped_in += len(self._swapped_in)
        self.counters.swapped_tokens += sum(s.computed for s in self._swapped_in)
        self._released, self._swapped_out, self._swapped_in = [], [], []
        flight = Flight(plan, draft, steps, self._unusable_tokens())
        self._flights.append(flight)
        return plan

    @property
    def _arrivals_matter(self) -> bool:
        """Whether it makes a difference when a request begins to wait, although it cannot be admitted."""
        return (
            self.policy.urgency is not None
            or self.policy.ledger is not None
            or self.policy.waiting.shapes_lanes
            or self.config.oracle == "history"
            # what free pieces are too small for depends on who waits
            or not self.pool.grows
        )

    def _unusable_tokens(self) -> int:
        if not self._waiting or self.pool.grows:
            return 0
        return self.pool.unusable_tokens(self._admission.booking(self._waiting.first_lane().head))

    def _swap(self, sequence: Sequence) -> Swap:
        return Swap(sequence.number, sequence.computed, self._block_ids(sequence))

    def _block_ids(self, sequence: Sequence) -> tuple[int, ...]:
        if not self.pool.grows:
            return ()
        return tuple(self.pool.table(sequence, self.pool.blocks_for(sequence.computed)))

    def _block_table(self, sequence: Sequence) -> list[int]:
        """Blocks for what is computed and for what the step in flight computes."""
        if sequence.state == "prefilling":
            tokens = min(sequence.known, sequence.computed + self.config.max_prefill_tokens)
        else:
            tokens = sequence.known
        return self.pool.table(sequence, self.pool.blocks_for(tokens))

    # -- what a step has done

    def _advance(self, flight: Flight, outcome: StepOutcome | None = None) -> None:
        """Everybody in the plan is as far as it takes them. ``outcome``: how it went, if that is known already."""
        flight.advanced = True
        draft, residents, steps = flight.draft, self._residents, flight.steps
        features = flight.plan.features
        alive = self._alive(draft)
        flight.waits = waits_of(draft, residents, keep=outcome is None)
        if outcome is None:
            flight.members = _members(draft.cohorts, draft.rows)
        grown = self._growth(draft.cohorts, draft.rows, steps) if self._grows and steps > 1 else []
        flight.memory = Memory(
            held_tokens=self._held_tokens(flight),
            # the first step's blocks were handed out when it was planned
            reserved_tokens=self.pool.reserved_tokens - (grown[0] * self.pool.block_tokens if grown else 0),
            unusable_tokens=flight.unusable_tokens,
            rows=alive + (features.new_tokens - features.decode_rows if draft.chunks else 0),
            growth=grown,
        )
        if outcome is not None:
            self._account.gaps(flight.waits, outcome.ends_ns, flight.dropped)
            flight.waits = None
        if alive:
            self._advance_decode(flight, grown)
        for sequence in draft.joining:
            self._join(sequence)
        for chunk in draft.chunks:
            self._advance_chunk(flight, chunk)
        self._steps_done += steps
        if self._batch is not None and self._batch.steps_left is not None:
            self._batch.steps_left -= steps
            if not self._batch.steps_left:
                self._batch = None

    def _held_tokens(self, flight: Flight) -> int:
        """Token slots that hold KV as a plan begins: a token in a block that several sequences share counts once."""
        draft, prefilling = flight.draft, self._prefilling
        held = self._residents.tokens - self._residents.count
        held += sum(s.computed for s in draft.joining) + sum(s.computed + 1 for s, _ in flight.held)
        held += sum(chunk.start for chunk in draft.chunks)
        if prefilling is not None and all(chunk.sequence is not prefilling for chunk in draft.chunks):
            held += prefilling.computed
        return held - self.pool.shared_blocks * self.pool.block_tokens

    @staticmethod
    def _alive(draft: Draft) -> int:
        """Decode rows whose sequence has not ended since the plan was made; the others are dropped from the draft."""
        draft.cohorts = [cohort for cohort in draft.cohorts if cohort.members]
        draft.rows = [s for s in draft.rows if not s.ended]
        return sum(cohort.count for cohort in draft.cohorts) + len(draft.rows)

    def _advance_decode(self, flight: Flight, grown: list[int]) -> None:
        draft, steps = flight.draft, flight.steps
        ledger = self.policy.ledger
        if ledger is not None:
            for cohort in draft.cohorts:
                for tenant, count in cohort.tenants.items():
                    ledger.served(tenant, count * steps)
            for sequence in draft.rows:
                ledger.served(sequence.request.tenant, steps)
        if grown:
            self.pool.grow(sum_of(grown, steps) - grown[0])
        done = self._residents.advance(draft.cohorts, draft.rows, steps, flight.served)
        flight.hidden = done.hidden
        for sequence in done.ending:
            self._ends_in(flight, sequence)

    def _advance_chunk(self, flight: Flight, chunk: Chunk) -> None:
        sequence, start, tokens, samples = chunk
        known = sequence.known
        sequence.place(known, start + tokens)
        if not samples:
            return
        if sequence is self._prefilling:
            self._prefilling = None
        sequence.place(known + 1, known)
        if self.policy.ledger is not None:
            self.policy.ledger.served(sequence.request.tenant, 1)
        if known + 1 >= sequence.foreseen:
            self._ends_in(flight, sequence)
            return
        self._join(sequence)
        if known + 1 >= sequence.limit:
            flight.hidden.append(sequence)

    def _ends_in(self, flight: Flight, sequence: Sequence) -> None:
        sequence.state = "ending"
        self._admission.left(sequence)
        flight.ending.append(sequence)

    def _settle(self, flight: Flight, outcome: StepOutcome) -> list[Sequence]:
        """The plan in flight has ended: its times are known, and memory that waited for it is free."""
        end_ns = int(outcome.ends_ns[-1])
        start_ns, self._last_end_ns = max(flight.plan.now_ns, self._last_end_ns), end_ns
        flight.served.end_ns = end_ns
        if flight.memory is not None:
            self._account.memory(flight.memory, start_ns, outcome.ends_ns)
        if flight.waits is not None:
            self._account.gaps(flight.waits, outcome.ends_ns, flight.dropped)
        for chunk in flight.draft.chunks:
            if chunk.sequence.number not in flight.dropped:
                self._settle_chunk(flight, chunk, end_ns)
        if self.policy.resident.timed:
            self._add_service(flight, end_ns - start_ns)
        ended = self._ended(flight, outcome)
        self.counters.wasted_rows += len(flight.held)
        leaving = flight.held + [(sequence, self._finish(sequence, end_ns, reason)) for sequence, reason in ended]
        for sequence, blocks in sorted(leaving, key=lambda entry: entry[0].number):
            if blocks is not None:
                self._release(sequence, blocks, "finished")
        return [sequence for sequence, _ in ended]

    def _settle_chunk(self, flight: Flight, chunk: Chunk, end_ns: int) -> None:
        sequence = chunk.sequence
        if self.config.prefix_cache:
            self.pool.computed(sequence, chunk.start + chunk.tokens)
            self._residents.version += 1
        sequence.idle_since_ns = end_ns
        if not chunk.samples:
            return
        if sequence.first_token_ns == UNSET:
            sequence.first_token_ns = end_ns
        elif sequence.served is not None:
            self._account.gap_of(sequence, end_ns - sequence.served.end_ns)
        sequence.served = flight.served

    def _ended(self, flight: Flight, outcome: StepOutcome) -> list[tuple[Sequence, StopReason]]:
        """Who ended with the plan and why, in row order."""
        found: dict[int, tuple[Sequence, StopReason]] = {}
        for sequence in flight.ending:
            found[sequence.number] = (sequence, outcome.stops.get(sequence.number, "length"))
        others: dict[int, StopReason] = {sequence.number: "eos" for sequence in flight.hidden}
        for number, reason in {**others, **outcome.stops}.items():
            resident = self._residents.get(number)
            if resident is not None:
                found[number] = (resident, reason)
        return [found[number] for number in sorted(found)]

    # -- levels of a timed order

    def _add_service(self, flight: Flight, took_ns: int) -> None:
        """The time of a step is service to everybody in it."""
        draft = flight.draft
        alone = [chunk.sequence for chunk in draft.chunks]
        if flight.members is None:
            for cohort in draft.cohorts:
                cohort.clock_ns += took_ns
            alone += draft.rows
        else:
            alone += flight.members
        for sequence in alone:
            sequence.set_service(sequence.service_ns + took_ns)
        self._served_alone += alone

    def _retime(self) -> None:
        """Put everybody into the lane that their service so far, or their waiting, gives them."""
        residents, order = self._residents, self.policy.resident
        residents.relane(
            [s for cohort in residents.cohorts.values() for s in cohort.due(cohort.expiries, cohort.clock_ns)]
        )
        for sequence in self._served_alone:
            cohort_of = sequence.cohort
            if cohort_of is None or (self.config.overlap and order.lane(sequence, self._view) == cohort_of.key):
                continue
            residents.relane([sequence])
        self._served_alone.clear()
        if self._promotion is None:
            return
        for sequence in self._promotion.due(self.now_ns, self._unserved_since):
            sequence.set_service(0)
            residents.version += 1
            if sequence.state == "resident":
                residents.relane([sequence])
            elif sequence.state == "waiting":
                self._waiting.relane(sequence)

    def _unserved_since(self, sequence: Sequence) -> int:
        """Since when ``sequence`` has been in no step; now, if it is in one."""
        if any(flight.holds(sequence) for flight in self._flights):
            return self.now_ns
        served = self._residents.served(sequence)
        return max(sequence.idle_since_ns, sequence.arrival_ns, UNSET if served is None else served.end_ns)

    # -- who leaves

    def _blocks_of(self, sequence: Sequence, tokens: int | None = None) -> int:
        """Blocks that ``sequence`` holds for ``tokens`` tokens (default: those computed), or has booked."""
        return max(sequence.pool_blocks, self.pool.blocks_for(sequence.computed if tokens is None else tokens))

    def _finish(self, sequence: Sequence, end_ns: int, reason: StopReason) -> int | None:
        """``sequence`` has ended by itself. Returns its blocks, or ``None`` if a plan in flight still writes them."""
        planned = self._flights[-1] if self._flights else None
        blocks: int | None = self._blocks_of(sequence)
        if sequence.state == "resident":
            if planned is not None and planned.steps_on(sequence):
                planned.plan.chunks  # noqa: B018  (to be listed while it is a member: its row is computed, and wasted)
                planned.held.append((sequence, self._blocks_of(sequence, sequence.computed + 1)))
                blocks = None
            self._residents.leave(sequence)
        self._end(sequence, end_ns, reason)
        sequence.state = "finished"
        self.counters.finished += 1
        self._oracle.finished(sequence)
        self._admission.finished(sequence)
        return blocks

    def _end(self, sequence: Sequence, end_ns: int, reason: str) -> None:
        sequence.finish_ns, sequence.reason = end_ns, reason
        del self._sequences[sequence.id]
        self._admission.left(sequence)

    def _release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        self._give_back(sequence, blocks, freed)
        self._released.append(sequence.number)

    def _give_back(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        self.pool.release(sequence, blocks, freed)
        self._holding -= 1
        self._residents.version += 1

    def _apply_aborts(self) -> None:
        sequences = [self._sequences.get(request_id) for request_id in self._aborts]
        self._aborts.clear()
        for sequence in sequences:
            if sequence is None or sequence.ended:
                continue
            self._abort(sequence)
            if self._observer is not None:
                self._observer.ended(sequence)

    def _abort(self, sequence: Sequence) -> None:
        flight = self._flights[-1] if self._flights else None
        running = flight is not None and flight.holds(sequence)
        blocks = self._blocks_of(sequence)
        if sequence.state == "waiting":
            self._waiting.remove(sequence)
            if self.policy.ledger is not None:
                self.policy.ledger.left(sequence)
        elif sequence is self._prefilling:
            self._prefilling = None
        elif sequence.state == "resident":
            self._residents.leave(sequence)
        self._end(sequence, self.now_ns, "aborted")
        if sequence.host_tokens:
            self._leave_host(sequence)
            self._released.append(sequence.number)
        elif flight is not None and running:
            flight.drop(sequence, blocks)
        elif sequence.state != "waiting":
            self._release(sequence, blocks, "finished")
        sequence.state = "aborted"
        self.counters.aborted += 1

    def _evict(self, sequence: Sequence) -> None:
        """Take the memory of a resident sequence away; it waits, with its KV in host memory or to be computed again."""
        self._residents.leave(sequence)
        self._admission.left(sequence)
        self._evicted.add(sequence.number)
        sequence.preemptions += 1
        self.counters.preemptions += 1
        if self.parts.swaps and self.host.room_for(sequence.computed):
            self._swap_out(sequence)
            self._give_back(sequence, self._blocks_of(sequence), "evicted")
        else:
            if sequence in self._swapped_in:
                self._swapped_in.remove(sequence)
            self._release(sequence, self._blocks_of(sequence), "evicted")
            lost = sequence.computed
            sequence.recomputed_tokens += lost
            self.counters.recomputed_tokens += lost
            sequence.place(sequence.known, 0)
        sequence.state = "waiting"
        if self.policy.ledger is not None:
            self.policy.ledger.evicted(sequence)
        self._waiting.push(sequence)

    # -- host memory

    def _swap_out(self, sequence: Sequence) -> None:
        sequence.host_tokens = sequence.computed
        self.host.take(sequence.number, sequence.host_tokens)
        if sequence in self._swapped_in:
            # it has not left the host yet
            self._swapped_in.remove(sequence)
            return
        self._swapped_out.append(self._swap(sequence))
        self.counters.swapped_out += 1
        self.counters.swapped_tokens += sequence.host_tokens

    def _swap_in(self, sequence: Sequence) -> None:
        self._leave_host(sequence)
        self._swapped_in.append(sequence)

    def _leave_host(self, sequence: Sequence) -> None:
        self.host.give_back(sequence.number)
        sequence.host_tokens = 0
