"""The one scheduler. It knows neither a clock nor a device: time is an argument, a step is a plan.

A sequence has computed tokens and known tokens; a step moves some sequences forward by some tokens, and which ones is
the policy's choice. The same object drives the simulator and the real engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler.cohorts import MASK64, Cohort, Residents
from scheduler.config import ConfigError, SchedulerConfig, unknown_name
from scheduler.counters import RunCounters
from scheduler.digest import PlanDigest, hash_id
from scheduler.kv import build_pool
from scheduler.observer import Observer
from scheduler.oracle import ORACLES
from scheduler.plan import NEVER, Chunk, DigestEntry, StepFeatures, StepOutcome, StepPlan, StopReason
from scheduler.policies import build_policy
from scheduler.policy import reserve_max
from scheduler.request import Request
from scheduler.sequence import UNSET, Sequence
from scheduler.waiting import Waiting


@dataclass(slots=True)
class Flight:
    """A plan that is being run, and what of the scheduler's state it moves."""

    plan: StepPlan
    chunks: list[Chunk]
    """of a prefill"""
    cohorts: list[Cohort]
    """of a decode: those stepped as a whole"""
    rows: list[Sequence]
    """of a decode: those stepped without their cohort"""


class SchedulerView:
    """What a policy may read of the scheduler; see :class:`~scheduler.policy.View`."""

    def __init__(self, scheduler: Scheduler, predict: Callable[[Sequence], int]) -> None:
        self._scheduler = scheduler
        self.predicted = predict

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


class Scheduler:
    """Takes requests, hands out step plans, and is told how they went. All times are integer nanoseconds.

    The calls of a step are :meth:`next_step` and :meth:`complete`. Deterministic: the same calls give the same plans.
    """

    def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
        self.config = config
        self.policy = build_policy(config)
        self.pool = build_pool(config.pool, config.kv_tokens, config.block_tokens)
        self.counters = RunCounters()
        self.digest = PlanDigest()
        self.now_ns = 0
        oracle = config.oracle or "true"
        if oracle not in ORACLES:
            raise ConfigError(unknown_name("oracle", oracle, ORACLES))
        self._view = SchedulerView(self, ORACLES[oracle][0]().predict)
        self._reserve = self.policy.reserve if self.pool.grows else reserve_max
        self._observer = observer
        self._waiting = Waiting(self.policy.waiting, self._view)
        self._residents = Residents(self.policy.resident, self._view, self.pool.block_tokens)
        self._sequences: dict[str, Sequence] = {}
        self._submissions = 0
        self._plans = 0
        self._prefilling: Sequence | None = None
        self._flight: Flight | None = None
        self._aborts: list[str] = []
        self._released: list[int] = []
        #: rows of the first decode step of a run-to-completion policy's closed batch; 0 while it fills
        self._batch_rows = 0
        self._starvation_ns = round(config.starvation_s * 1e9)

    # -- what a world asks

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted."""
        return len(self._waiting)

    @property
    def resident(self) -> int:
        """Sequences that hold KV."""
        return self._residents.count + (self._prefilling is not None)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is resident."""
        return not self._sequences

    def refusal(self, request: Request) -> str | None:
        """Why ``request`` can never be served under this configuration, or ``None``."""
        config = self.config
        tokens = request.prompt_tokens + (1 if request.output_tokens is None else request.planned_output_tokens)
        if tokens > config.context_tokens:
            return f"{tokens} tokens are more than the model's context of {config.context_tokens}"
        tokens = self.kv_tokens_needed(request)
        if tokens > config.capacity_tokens:
            return f"{tokens} tokens are more than the KV memory of {config.capacity_tokens}"
        return None

    def kv_tokens_needed(self, request: Request) -> int:
        """KV memory that ``request`` needs to be served at all, within the model's context."""
        sequence = Sequence(request, 0, 0, self.config.context_tokens)
        return max(sequence.limit, self._reserve(sequence) if self._reserve else 0)

    def submit(self, request: Request, now_ns: int) -> Sequence:
        """Take in a request. One that can never be served is ``rejected``, with the reason, and never waits.

        Raises ``ValueError`` for an id that is already in use.
        """
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use by a request that has not ended")
        sequence = Sequence(request, self._submissions, hash_id(request.id), self.config.context_tokens)
        self._submissions += 1
        self.counters.submitted += 1
        refusal = self.refusal(request)
        if refusal is not None:
            sequence.state, sequence.reason = "rejected", refusal
            self.counters.rejected += 1
            if self._observer is not None:
                self._observer.ended(sequence)
            return sequence
        self._sequences[request.id] = sequence
        self._waiting.push(sequence)
        return sequence

    def abort(self, request_id: str, now_ns: int) -> None:
        """End a request early, at the next plan. Unknown or ended ids are ignored: an abort may cross a finish."""
        self._aborts.append(request_id)

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        """The next plan, or ``None`` when there is nothing to do now (see :meth:`next_wakeup`).

        ``max_repeat``: the most steps that the plan may stand for.
        """
        if self._flight is not None:
            raise RuntimeError(f"plan {self._flight.plan.index} has not been completed")
        self.now_ns = now_ns
        ended = [self._apply_abort(request_id) for request_id in self._aborts]
        self._aborts.clear()
        if self._observer is not None:
            for sequence in filter(None, ended):
                self._observer.ended(sequence)
        chunks = self._next_chunks()
        if chunks:
            return self._prefill_plan(chunks)
        if self._residents.count:
            return self._decode_plan(max_repeat)
        return None

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        """The plan has been run: advance its sequences. Returns those that ended, in row order.

        A stretch may end before ``plan.repeat``: as many of its steps count as ``outcome`` has end times.
        """
        flight = self._flight
        if flight is None or flight.plan is not plan:
            raise RuntimeError(f"plan {plan.index} is not in flight")
        steps = len(outcome.ends_ns)
        if not 1 <= steps <= plan.repeat:
            raise ValueError(f"plan {plan.index}: {steps} end times for a stretch of {plan.repeat} steps")
        self._flight = None
        self.now_ns = now_ns
        self.counters.add_steps(plan.features, steps)
        self.digest.add(plan.digest_entry._replace(repeat=steps))
        if self._observer is not None:
            self._observer.stepped(plan, steps, outcome)
        ended = self._completed_chunks(flight, outcome) if flight.chunks else self._completed_decode(flight, outcome)
        if not self.resident:
            self._batch_rows = 0
        if self._observer is not None:
            for sequence in ended:
                self._observer.ended(sequence)
        return ended

    def next_wakeup(self) -> int | None:
        """When :meth:`next_step` may have a plan although it has none now and nothing arrives; ``None``: never."""
        if self._waiting and not self.resident and len(self._waiting) < self.policy.min_batch:
            return self._waiting.oldest().arrival_ns + self.policy.max_wait_ns
        return None

    # -- who is prefilled

    def _next_chunks(self) -> list[Chunk]:
        if self._prefilling is not None:
            return [self._next_chunk(self._prefilling)]
        if not self._waiting or self._batch_rows or self._batch_is_short():
            return []
        admitted = self._admit()
        if len(admitted) == 1 and admitted[0].known > self.config.max_prefill_tokens:
            self._prefilling = admitted[0]
        admitted.sort(key=lambda sequence: sequence.number)
        return [self._next_chunk(sequence) for sequence in admitted]

    def _next_chunk(self, sequence: Sequence) -> Chunk:
        start = sequence.computed
        tokens = min(self.config.max_prefill_tokens, sequence.known - start)
        return Chunk(sequence, start, tokens, start + tokens == sequence.known)

    def _batch_is_short(self) -> bool:
        wakeup = self.next_wakeup()
        return wakeup is not None and self.now_ns < wakeup

    def _admit(self) -> list[Sequence]:
        """Admit waiting requests in the policy's order, while slots, rows, KV and the token budget allow."""
        budget = self.config.max_prefill_tokens
        waiting = self._waiting
        leader = self._aged(waiting)
        lane = waiting.first_lane() if leader is None else waiting.lane_of(leader)
        admitted: list[Sequence] = []
        evicted: set[int] = set()
        total = 0
        while total < budget and len(admitted) < self.config.rows:
            sequence = lane.head if leader is None or admitted else leader
            if admitted and total + sequence.known > budget:
                break
            if sequence.number in evicted or not self._make_room(sequence, len(admitted), evicted):
                break
            waiting.remove(sequence)
            self._book(sequence)
            admitted.append(sequence)
            total += sequence.known
            if not waiting or (self.policy.waiting.exclusive and not lane.members):
                break
            if not self.policy.waiting.exclusive:
                lane = waiting.first_lane()
        return admitted

    def _aged(self, queue: Waiting | Residents) -> Sequence | None:
        """The oldest of the queue, if the policy knows ageing and it is past the threshold."""
        ageing = self.policy.ageing
        if ageing is None:
            return None
        oldest = queue.oldest()
        return oldest if self.now_ns - oldest.arrival_ns >= ageing.threshold_ns else None

    def _booking(self, sequence: Sequence) -> int:
        return sequence.known if self._reserve is None else max(sequence.known, self._reserve(sequence))

    def _book(self, sequence: Sequence) -> None:
        self.pool.book(sequence, self._booking(sequence))
        sequence.state = "prefilling"
        sequence.admitted_known = sequence.known
        if sequence.first_scheduled_ns == UNSET:
            sequence.first_scheduled_ns = self.now_ns
            self._waited(sequence, self.now_ns - sequence.arrival_ns)

    def _make_room(self, sequence: Sequence, admitted: int, evicted: set[int]) -> bool:
        """Whether a slot and KV are there for ``sequence``, after evicting less urgent ones if the policy says so."""
        slots = self.config.max_running - self._residents.count - admitted
        tokens = self._booking(sequence)
        fits = self.pool.can_book(sequence, tokens)
        if slots > 0 and fits:
            return True
        urgency = self.policy.urgency
        if urgency is None or not (fits or self.pool.grows):
            return False
        own = urgency(sequence, self._view)
        blocks = self.pool.blocks_for(tokens) - self.pool.free_blocks
        victims: list[Sequence] = []
        for rank, _, victim in sorted(
            ((urgency(s, self._view), s.number, s) for s in self._residents.members() if self._had_quantum(s)),
            key=lambda entry: entry[:2],
            reverse=True,
        ):
            if (slots > 0 and blocks <= 0) or rank <= own:
                break
            victims.append(victim)
            slots += 1
            blocks -= self._blocks_of(victim)
        if slots <= 0 or blocks > 0:
            return False
        for victim in victims:
            self._evict(victim)
            evicted.add(victim.number)
        return True

    def _had_quantum(self, sequence: Sequence) -> bool:
        return sequence.known - sequence.admitted_known >= self.policy.quantum

    def _prefill_plan(self, chunks: list[Chunk]) -> StepPlan:
        config = self.config
        rows = len(chunks)
        new = sum(chunk.tokens for chunk in chunks)
        context = sum(chunk.tokens * chunk.start + chunk.tokens * (chunk.tokens + 1) // 2 for chunk in chunks)
        ends = [chunk.start + chunk.tokens for chunk in chunks]
        longest_chunk = max(chunk.tokens for chunk in chunks)
        padded = config.layout == "padded"
        features = StepFeatures(
            layout=config.layout,
            kind="prefill",
            rows=rows,
            rows_computed=rows,
            new_tokens=new,
            new_tokens_computed=rows * longest_chunk if padded else new,
            context_tokens=context,
            kv_columns_computed=rows * longest_chunk * max(ends) if padded else context,
            kv_tokens_read=sum(ends),
            longest_context=max(ends),
            blocks_touched=sum(self.pool.blocks_for(end) for end in ends) if self.pool.grows else rows,
            sampled_rows=sum(chunk.samples for chunk in chunks),
        )
        entry = DigestEntry(
            "prefill",
            rows,
            sum(chunk.sequence.hash64 for chunk in chunks) & MASK64,
            sum(chunk.sequence.hash64 * chunk.start for chunk in chunks) & MASK64,
            sum(chunk.sequence.hash64 * chunk.tokens for chunk in chunks) & MASK64,
            1,
        )
        plan = self._plan(1, features, entry, NEVER, lambda: chunks)
        self._flight = Flight(plan, chunks, [], [])
        return plan

    # -- who is stepped

    def _decode_plan(self, max_repeat: int) -> StepPlan:
        residents = self._residents
        evicted = False
        while True:
            cohorts, rows = self._select()
            limit = 1 if evicted or rows or len(cohorts) > 1 else self._steps_the_same(cohorts[0], max_repeat)
            steps = self._steps_that_fit(cohorts, rows, limit)
            if steps:
                break
            self._evict(self._victim())
            evicted = True
        if self.policy.mode == "run-to-completion" and not self._batch_rows:
            self._batch_rows = min(residents.count, self.config.rows)
        features, entry = self._decode_features(cohorts, rows, steps)

        def chunks() -> list[Chunk]:
            members = [s for cohort in cohorts for s in cohort.members.values()] + rows
            return [Chunk(s, s.known - 1, 1, True) for s in sorted(members, key=lambda s: s.number)]

        plan = self._plan(steps, features, entry, self._until(), chunks)
        self._flight = Flight(plan, [], cohorts, rows)
        return plan

    def _select(self) -> tuple[list[Cohort], list[Sequence]]:
        """Whole cohorts for the next step, and single rows where a cohort does not fit into it as a whole."""
        residents, order, max_rows = self._residents, self.policy.resident, self.config.rows
        leader = self._aged(residents)
        first = residents.first() if leader is None or leader.cohort is None else leader.cohort
        whole = first.count <= max_rows and first.count >= min(order.min_rows, residents.count)
        if whole and (order.exclusive or first.count == residents.count):
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
            if order.exclusive:
                limit = min(order.min_rows, max_rows)
        return cohorts, rows

    def _steps_the_same(self, cohort: Cohort, max_repeat: int) -> int:
        """How many steps of ``cohort`` leave every decision as it is, arrivals and the clock apart."""
        if max_repeat == 1:
            return 1
        steps = min(max_repeat, cohort.steps_to_finish(), cohort.steps_to_leave())
        if self.policy.resident.uniform:
            steps = min(steps, self._residents.steps_to_merge(cohort))
        if self.policy.urgency is not None and self._waiting:
            for sequence in self._residents.members():
                if not self._had_quantum(sequence):
                    steps = min(steps, self.policy.quantum - (sequence.known - sequence.admitted_known))
        return steps

    def _steps_that_fit(self, cohorts: list[Cohort], rows: list[Sequence], limit: int) -> int:
        """The most steps, at most ``limit``, for which there are KV blocks; 0 if not even for one."""
        if self._reserve is not None:
            return limit
        if not rows and len(cohorts) == 1:
            return cohorts[0].steps_within(self.pool.free_blocks, limit)
        blocks = sum(cohort.new_blocks(1)[0] for cohort in cohorts)
        blocks += sum(sequence.computed % self.pool.block_tokens == 0 for sequence in rows)
        return 1 if blocks <= self.pool.free_blocks else 0

    def _decode_features(
        self, cohorts: list[Cohort], rows: list[Sequence], steps: int
    ) -> tuple[StepFeatures, DigestEntry]:
        layout = self.config.layout
        if len(cohorts) == 1 and not rows:
            (cohort,) = cohorts
            count, tokens, longest, blocks = cohort.count, cohort.tokens, cohort.longest, cohort.blocks
            ids, starts = cohort.ids, cohort.starts
        else:
            count = sum(cohort.count for cohort in cohorts) + len(rows)
            tokens = sum(cohort.tokens for cohort in cohorts) + sum(s.known for s in rows)
            longest = max([cohort.longest for cohort in cohorts] + [s.known for s in rows])
            blocks = sum(cohort.blocks for cohort in cohorts) + sum(self.pool.blocks_for(s.known) for s in rows)
            ids = (sum(cohort.ids for cohort in cohorts) + sum(s.hash64 for s in rows)) & MASK64
            starts = (sum(cohort.starts for cohort in cohorts) + sum(s.hash64 * (s.known - 1) for s in rows)) & MASK64
        padded = layout == "padded"
        computed = max(count, self._batch_rows) if padded else count
        features = StepFeatures(
            layout=layout,
            kind="decode",
            rows=count,
            rows_computed=computed,
            new_tokens=count,
            new_tokens_computed=computed,
            context_tokens=tokens,
            kv_columns_computed=computed * longest if padded else tokens,
            kv_tokens_read=tokens,
            longest_context=longest,
            blocks_touched=blocks if self.pool.grows else count,
            sampled_rows=count,
        )
        return features, DigestEntry("decode", count, ids, starts, ids, steps)

    def _until(self) -> int:
        """When somebody ages past the threshold and so changes a decision."""
        ageing = self.policy.ageing
        if ageing is None:
            return NEVER
        times = [self._residents.oldest().arrival_ns + ageing.threshold_ns]
        if self._waiting and self._residents.count < self.config.max_running:
            times.append(self._waiting.oldest().arrival_ns + ageing.threshold_ns)
        return min((time for time in times if time > self.now_ns), default=NEVER)

    def _plan(
        self,
        repeat: int,
        features: StepFeatures,
        entry: DigestEntry,
        until_ns: int,
        chunks: Callable[[], list[Chunk]],
    ) -> StepPlan:
        released, self._released = tuple(self._released), []
        slot_free = self.resident < self.config.max_running and not self._batch_rows
        plan = StepPlan(
            index=self._plans,
            now_ns=self.now_ns,
            repeat=repeat,
            features=features,
            digest_entry=entry,
            until_ns=until_ns,
            # what free pieces are too small for depends on who waits
            arrival_matters=slot_free or self.policy.urgency is not None or not self.pool.grows,
            released=released,
            _chunks=chunks,
            _block_table=self._block_table,
        )
        self._plans += 1
        return plan

    def _block_table(self, sequence: Sequence) -> list[int]:
        """Blocks for what is computed and for what the step in flight computes."""
        if sequence.state == "resident":
            tokens = sequence.known
        else:
            tokens = min(sequence.known, sequence.computed + self.config.max_prefill_tokens)
        return self.pool.table(sequence, self.pool.blocks_for(tokens))

    # -- what a step has done

    def _completed_chunks(self, flight: Flight, outcome: StepOutcome) -> list[Sequence]:
        end_ns = int(outcome.ends_ns[0])
        held = self._held_tokens + flight.plan.features.new_tokens
        self._count_kv(1, self.pool.reserved_tokens, held, held)
        ended: list[Sequence] = []
        gaps: list[int] = []
        for sequence, start, tokens, _ in flight.chunks:
            known = sequence.known
            sequence.place(known, start + tokens)
            if start + tokens < known:
                continue
            if sequence is self._prefilling:
                self._prefilling = None
            sequence.place(known + 1, known)
            if sequence.first_token_ns == UNSET:
                sequence.first_token_ns = end_ns
            else:
                gaps.append(end_ns - sequence.last_served_ns)
                self._saw_gap([sequence], gaps[-1])
            sequence.last_served_ns = end_ns
            reason = outcome.stops.get(sequence.number)
            if reason is not None or known + 1 >= sequence.limit:
                ended.append(self._finish(sequence, end_ns, reason or "length"))
            else:
                sequence.state = "resident"
                self._residents.join(sequence)
        if gaps and self._observer is not None:
            self._observer.gaps(np.array(gaps, dtype=np.int64), 1)
        return ended

    def _completed_decode(self, flight: Flight, outcome: StepOutcome) -> list[Sequence]:
        ends_ns = outcome.ends_ns
        steps, end_ns = len(ends_ns), int(ends_ns[-1])
        held, reserved = self._held_tokens, self.pool.reserved_tokens
        for cohort in flight.cohorts:
            self._count_gaps(cohort, ends_ns)
        ended, blocks, block_steps = self._residents.advance(flight.cohorts, steps, end_ns)
        for sequence in flight.rows:
            new_block = sequence.computed % self.pool.block_tokens == 0
            blocks += new_block
            block_steps += new_block
            self._count_gaps_of_row(sequence, end_ns)
            if self._residents.advance_one(sequence, end_ns):
                ended.append(sequence)
        reserved_sum = reserved * steps
        if self._reserve is None:
            self.pool.grow(blocks)
            reserved_sum += block_steps * self.pool.block_tokens
        rows = flight.plan.features.rows
        self._count_kv(steps, reserved_sum, held * steps + rows * (steps * (steps + 1) // 2), held + rows * steps)
        for number in outcome.stops:
            stopped = self._residents.get(number)
            if stopped is not None:
                self._residents.leave(stopped)
                ended.append(stopped)
        ended.sort(key=lambda sequence: sequence.number)
        return [self._finish(s, end_ns, outcome.stops.get(s.number, "length")) for s in ended]

    @property
    def _held_tokens(self) -> int:
        """Tokens whose KV is held."""
        held = self._residents.tokens - self._residents.count
        return held + self._prefilling.computed if self._prefilling is not None else held

    def _count_kv(self, steps: int, reserved_sum: int, held_sum: int, held_most: int) -> None:
        counters, pool = self.counters, self.pool
        counters.kv_peak_tokens = max(counters.kv_peak_tokens, held_most)
        counters.kv_held_sum += held_sum
        counters.kv_reserved_sum += reserved_sum
        counters.kv_free_sum += pool.capacity_blocks * pool.block_tokens * steps - reserved_sum
        counters.kv_allocations = pool.allocations
        counters.kv_reused = pool.reused
        counters.kv_reused_after_preemption = pool.reused_after_preemption
        if self._waiting and not pool.grows:
            counters.kv_unusable_sum += steps * pool.unusable_tokens(self._booking(self._waiting.first_lane().head))

    def _count_gaps(self, cohort: Cohort, ends_ns: npt.NDArray[np.int64] | list[int]) -> None:
        """Gaps between output tokens: each fresh member's first one, the others' common one, and the steps' own."""
        first = int(ends_ns[0])
        fresh = [first - sequence.last_served_ns for sequence in cohort.fresh.values()]
        for sequence, gap in zip(cohort.fresh.values(), fresh, strict=True):
            self._saw_gap([sequence], gap)
        others = cohort.count - len(fresh)
        if others:
            self._saw_gap((s for n, s in cohort.members.items() if n not in cohort.fresh), first - cohort.served_ns)
        observer = self._observer
        if observer is not None:
            if fresh:
                observer.gaps(np.array(fresh, dtype=np.int64), 1)
            if others:
                observer.gaps(np.array([first - cohort.served_ns], dtype=np.int64), others)
        if len(ends_ns) > 1:
            ends = np.asarray(ends_ns, dtype=np.int64)
            between = ends[1:] - ends[:-1]
            self._saw_gap(cohort.members.values(), int(between.max()))
            if observer is not None:
                observer.gaps(between, cohort.count)

    def _count_gaps_of_row(self, sequence: Sequence, end_ns: int) -> None:
        gap = end_ns - self._residents.last_served_ns(sequence)
        self._saw_gap([sequence], gap)
        if self._observer is not None:
            self._observer.gaps(np.array([gap], dtype=np.int64), 1)

    def _saw_gap(self, sequences: Any, gap_ns: int) -> None:
        """``sequences`` (any iterable, read only if need be) went without service for ``gap_ns``."""
        if gap_ns > self.counters.longest_gap_ns:
            self.counters.longest_gap_ns = gap_ns
        if gap_ns > self._starvation_ns:
            for sequence in sequences:
                self._starved(sequence)

    def _waited(self, sequence: Sequence, wait_ns: int) -> None:
        self.counters.longest_wait_ns = max(self.counters.longest_wait_ns, wait_ns)
        if wait_ns > self._starvation_ns:
            self._starved(sequence)

    def _starved(self, sequence: Sequence) -> None:
        if not sequence.over_threshold:
            sequence.over_threshold = True
            self.counters.over_threshold += 1

    # -- who leaves

    def _blocks_of(self, sequence: Sequence) -> int:
        return max(sequence.pool_blocks, self.pool.blocks_for(sequence.computed))

    def _finish(self, sequence: Sequence, end_ns: int, reason: StopReason) -> Sequence:
        self._end(sequence, end_ns, reason)
        sequence.state = "finished"
        self.counters.finished += 1
        return sequence

    def _end(self, sequence: Sequence, end_ns: int, reason: str) -> None:
        sequence.finish_ns, sequence.reason = end_ns, reason
        del self._sequences[sequence.id]
        self._release(sequence, "finished")

    def _release(self, sequence: Sequence, freed: Any) -> None:
        self.pool.release(sequence, self._blocks_of(sequence), freed)
        self._released.append(sequence.number)

    def _apply_abort(self, request_id: str) -> Sequence | None:
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        if sequence.state == "waiting":
            self._waiting.remove(sequence)
            sequence.finish_ns, sequence.reason = self.now_ns, "aborted"
            del self._sequences[request_id]
        else:
            if sequence is self._prefilling:
                self._prefilling = None
            else:
                self._residents.leave(sequence)
            self._end(sequence, self.now_ns, "aborted")
        sequence.state = "aborted"
        self.counters.aborted += 1
        if not self.resident:
            self._batch_rows = 0
        return sequence

    def _victim(self) -> Sequence:
        """Who loses its KV when memory runs out: the least urgent, or else the newest."""
        if self._residents.count == 1:
            raise RuntimeError(f"{self._residents.newest()!r} alone does not fit into the KV memory")
        urgency = self.policy.urgency
        if urgency is None:
            return self._residents.newest()
        return max(self._residents.members(), key=lambda s: (urgency(s, self._view), s.number))

    def _evict(self, sequence: Sequence) -> None:
        """Take the KV of a resident sequence away; it waits, to be computed again from its first token."""
        self._residents.leave(sequence)
        self._release(sequence, "evicted")
        lost = sequence.computed
        sequence.recomputed_tokens += lost
        sequence.preemptions += 1
        self.counters.recomputed_tokens += lost
        self.counters.preemptions += 1
        sequence.place(sequence.known, 0)
        sequence.state = "waiting"
        self._waiting.push(sequence)
