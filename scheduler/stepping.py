"""What the next step does: who decodes, beside whom a prompt is computed, and for how long that stays so."""

from __future__ import annotations

from scheduler.cohorts import Cohort, steps_within
from scheduler.features import Draft
from scheduler.flight import Batch, BusyError
from scheduler.plan import NEVER
from scheduler.policy import Ageing
from scheduler.prefill import Prefill
from scheduler.sequence import Sequence
from scheduler.state import SchedulerState


class Stepping:
    """Drafts steps."""

    def __init__(self, state: SchedulerState, prefill: Prefill) -> None:
        self._state = state
        self._prefill = prefill
        order = state.policy.resident
        self._uniform, self._sticky, self._drifts = order.uniform, order.sticky, order.drifts
        #: whether a step takes its rows from one lane, and how many it has before it looks at no more
        self._exclusive = order.exclusive and state.parts.slice_steps != 0
        self._min_rows = order.min_rows
        self._live = state.policy.waiting.live

    def draft(self) -> Draft | None:
        """The next step; ``None`` if there is nothing to do.

        Raises :class:`~scheduler.flight.BusyError` if a plan in flight has to be completed first.
        """
        state = self._state
        if state.batch is not None:
            return self._draft_of_batch(state.batch)
        if state.parts.phase == "mixed":
            return self._mixed_draft()
        if state.parts.phase == "decode-first":
            draft = self._decode_draft()
            if draft.decodes or (state.flights and state.flights[-1].ending):
                return draft if draft.decodes else None
        chunks, _ = self._prefill.chunks(state.config.max_prefill_tokens, state.config.rows)
        draft = Draft(chunks, [], []) if chunks else self._decode_draft()
        return draft if draft.chunks or draft.decodes else None

    def _mixed_draft(self) -> Draft | None:
        """Decodes first, prompts with what is left of the token budget (Sarathi-Serve)."""
        state = self._state
        config, budget = state.config, state.parts.chunk_tokens
        draft = self._decode_draft(budget)
        rows = sum(cohort.count for cohort in draft.cohorts) + len(draft.rows)
        tokens = min(config.max_prefill_tokens, budget - rows)
        if tokens > 0:
            draft.chunks, draft.joining = self._prefill.chunks(tokens, config.rows - rows, draft)
        if draft.chunks or draft.decodes:
            return draft
        for sequence in draft.joining:
            state.join(sequence)
        draft = self._decode_draft(budget)
        return draft if draft.decodes else None

    def _decode_draft(self, most: int = NEVER) -> Draft:
        """At most ``most`` rows of the residents, after evicting whom their growth leaves no memory for."""
        state = self._state
        while True:
            if not state.residents.count:
                return Draft([], [], [])
            cohorts, rows = self._select(min(most, state.config.rows))
            if self._grow(cohorts, rows):
                break
            self._evict_for_growth()
        slice_steps = state.parts.slice_steps
        if slice_steps is not None:
            count = sum(cohort.count for cohort in cohorts) + len(rows)
            whole = slice_steps == 0 or count == state.residents.count
            members = None if whole else {s.number for s in Draft([], cohorts, rows).members()}
            state.batch = Batch(count, slice_steps or None, members)
        return Draft([], cohorts, rows)

    def _draft_of_batch(self, batch: Batch) -> Draft | None:
        """The next step of the closed batch; once it has none left, it is open again."""
        state = self._state
        if batch.steps_left is None:
            if state.residents.count:
                return Draft([], *self._select(state.config.rows))
            state.batch = None
            return self.draft()
        while True:
            cohorts, rows = self._select_members(batch)
            if not cohorts and not rows:
                state.batch = None
                if state.evicted and state.residents.count:
                    return self._decode_draft()
                return self.draft()
            if self._grow(cohorts, rows):
                return Draft([], cohorts, rows)
            self._evict_for_growth()

    def _select_members(self, batch: Batch) -> tuple[list[Cohort], list[Sequence]]:
        if batch.members is None:
            return list(self._state.residents.cohorts.values()), []
        numbers = sorted(batch.members)
        return [], [s for s in map(self._state.residents.get, numbers) if s is not None]

    def _evict_for_growth(self) -> None:
        state = self._state
        if state.holding == 1:
            raise RuntimeError(f"{state.residents.newest()!r} alone does not fit into the KV memory")
        if state.flights:
            raise BusyError
        state.evict(state.eviction.victim())

    def _grow(self, cohorts: list[Cohort], rows: list[Sequence]) -> bool:
        """Hand out the blocks that the next step takes; whether there are enough."""
        state = self._state
        if state.grows:
            blocks = 0
            for cohort in cohorts:
                blocks += cohort.next_blocks
            if rows:
                blocks += state.growth([], rows, 1)[0]
            if blocks > state.pool.free_blocks:
                return False
            state.pool.grow(blocks)
        return True

    def _select(self, max_rows: int) -> tuple[list[Cohort], list[Sequence]]:
        """Whole cohorts for the next step, and single rows where a cohort does not fit into it as a whole."""
        state = self._state
        residents = state.residents
        leader = state.aged(residents)
        first = residents.first() if leader is None or leader.cohort is None else leader.cohort
        whole = first.count <= max_rows and first.count >= min(self._min_rows, residents.count)
        if whole and (self._exclusive or first.count == residents.count):
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
            if self._exclusive:
                limit = min(self._min_rows, max_rows)
        return cohorts, rows

    def steps_the_same(self, draft: Draft, max_repeat: int) -> int:
        """How many steps of ``draft`` leave every decision as it is, arrivals and the clock apart."""
        state = self._state
        if max_repeat == 1 or draft.chunks or state.evicted or state.swapped_out or state.swapped_in:
            return 1
        if state.brought_in:
            return 1
        if state.flights and (state.flights[-1].changes_the_next or state.timed):
            return 1
        order, cohorts, rows = state.policy.resident, draft.cohorts, draft.rows
        if self._uniform and (rows or len(cohorts) > 1 or self._drifts):
            return 1
        if rows and not self._sticky and (state.batch is None or state.batch.steps_left is None):
            return 1
        if state.waiting and self._live and not state.pool.grows:
            # who is next, and so what free memory is too small for, may change
            return 1
        could_admit = state.waiting and state.holding < state.config.max_running and state.batch is None
        if could_admit and (self._live or state.admission.follows_progress):
            return 1
        steps = max_repeat
        climbs = state.residents.climbs and len(cohorts) == 1 and not rows and cohorts[0].even
        for cohort in cohorts:
            steps = min(steps, cohort.steps_to_finish())
            if cohort.leaves and not climbs:
                steps = min(steps, cohort.steps_to_leave())
        for sequence in rows:
            steps = min(steps, sequence.limit - sequence.known, order.steps_in_lane(sequence, state.view))
        if self._uniform or climbs:
            steps = min(steps, state.residents.steps_to_merge(cohorts[0]))
        if state.batch is not None and state.batch.steps_left is not None:
            steps = min(steps, state.batch.steps_left)
        if state.urgency is not None and state.waiting:
            steps = min(steps, self._prefill.blocked_until - state.steps_done)
        steps = max(1, steps)
        # each takes at most a block in as many steps as it has tokens
        most = len(rows)
        for cohort in cohorts:
            most += cohort.count
        if state.grows and most * (steps // state.pool.block_tokens + 1) > state.pool.free_blocks:
            period = state.growth(cohorts, rows, steps)
            steps = steps_within(state.pool.free_blocks + period[0], period, steps)
        return steps

    def until(self, draft: Draft) -> int:
        """When a decision may change by time alone."""
        state = self._state
        if state.ageing is None and state.promotion is None and not state.timed:
            return NEVER
        times = []
        if state.ageing is not None:
            times += self._ageing_times(state.ageing)
        if state.timed:
            # with overlap, service is kept for each apart
            apart = draft.members() if state.config.overlap else draft.rows
            times += [state.now_ns + state.policy.resident.time_in_lane(sequence) for sequence in apart]
            times += [state.now_ns + cohort.time_to_leave() for cohort in draft.cohorts if not state.config.overlap]
        if state.promotion is not None:
            times.append(state.promotion.next_ns())
        return min((time for time in times if time > state.now_ns), default=NEVER)

    def _ageing_times(self, ageing: Ageing) -> list[int]:
        state = self._state
        times = [state.residents.oldest().arrival_ns + ageing.threshold_ns] if state.residents.count else []
        if state.waiting and state.holding < state.config.max_running:
            times.append(state.waiting.oldest().arrival_ns + ageing.threshold_ns)
        return times
