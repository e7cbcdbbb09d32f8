"""What a plan does to the scheduler's state: at once, when the next one is made, and when it has been run."""

from __future__ import annotations

from scheduler.accounting import Memory, waits_of
from scheduler.cohorts import sum_of
from scheduler.features import Draft
from scheduler.flight import Flight
from scheduler.plan import Chunk, StepOutcome, StopReason
from scheduler.sequence import UNSET, Sequence
from scheduler.state import SchedulerState


class Completion:
    """Advances the sequences of plans, and ends them."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        #: served since lanes were last looked at, where service is kept for each apart (timed orders with overlap)
        self._served_apart: list[Sequence] = []
        self._last_end_ns = 0

    def advance(self, flight: Flight, outcome: StepOutcome | None = None) -> None:
        """Everybody in the plan is as far as it takes them. ``outcome``: how it went, if that is known already."""
        state = self._state
        flight.advanced = True
        draft, residents, steps = flight.draft, state.residents, flight.steps
        features = flight.plan.features
        alive = self._alive(draft)
        flight.waits = waits_of(draft, residents, keep=outcome is None)
        if outcome is None:
            flight.members = draft.members()
        if state.timed and (outcome is not None or steps > 1):
            # of a plan in flight, the last step begins now
            self._add_service(flight, state.now_ns if outcome is None else int(outcome.ends_ns[-1]))
        grown = state.growth(draft.cohorts, draft.rows, steps) if state.grows and steps > 1 else []
        flight.memory = Memory(
            held_tokens=self._held_tokens(flight),
            # the first step's blocks were handed out when it was planned
            reserved_tokens=state.pool.reserved_tokens - (grown[0] * state.pool.block_tokens if grown else 0),
            unusable_tokens=flight.unusable_tokens,
            rows=alive + (features.new_tokens - features.decode_rows if draft.chunks else 0),
            growth=grown,
        )
        if outcome is not None:
            state.account.gaps(flight.waits, outcome.ends_ns, flight.dropped)
            flight.waits = None
        if alive:
            self._advance_decode(flight, grown)
        for sequence in draft.joining:
            state.join(sequence)
        for chunk in draft.chunks:
            self._advance_chunk(flight, chunk)
        state.steps_done += steps
        if state.batch is not None and state.batch.steps_left is not None:
            state.batch.steps_left -= steps
            if not state.batch.steps_left:
                state.batch = None

    def _held_tokens(self, flight: Flight) -> int:
        """Token slots that hold KV as a plan begins: a token in a block that several sequences share counts once."""
        state = self._state
        draft, prefilling = flight.draft, state.prefilling
        held = state.residents.tokens - state.residents.count
        if flight.held:
            held += sum(s.computed + 1 for s, _ in flight.held)
        if draft.joining:
            held += sum(s.computed for s in draft.joining)
        if draft.chunks:
            held += sum(chunk.start for chunk in draft.chunks)
        if prefilling is not None and all(chunk.sequence is not prefilling for chunk in draft.chunks):
            held += prefilling.computed
        return held - state.pool.shared_tokens

    @staticmethod
    def _alive(draft: Draft) -> int:
        """Decode rows whose sequence has not ended since the plan was made; the others are dropped from the draft."""
        if len(draft.cohorts) == 1 and not draft.rows and draft.cohorts[0].members:
            return draft.cohorts[0].count
        for cohort in draft.cohorts:
            if not cohort.members:
                draft.cohorts = [cohort for cohort in draft.cohorts if cohort.members]
                break
        if draft.rows:
            draft.rows = [s for s in draft.rows if not s.ended]
        return sum(cohort.count for cohort in draft.cohorts) + len(draft.rows)

    def charge(self, flight: Flight, steps: int) -> None:
        """Tell the policy's ledger, if it keeps one, of the decode rows' tokens up to step ``steps`` of the plan."""
        ledger = self._state.ledger
        new = steps - flight.charged_steps
        if ledger is None or not new:
            return
        flight.charged_steps = steps
        for cohort in flight.draft.cohorts:
            for tenant, count in cohort.tenants.items():
                ledger.served(tenant, count * new)
        for sequence in flight.draft.rows:
            ledger.served(sequence.request.tenant, new)

    def _advance_decode(self, flight: Flight, grown: list[int]) -> None:
        state = self._state
        draft, steps = flight.draft, flight.steps
        self.charge(flight, steps)
        if grown:
            state.pool.grow(sum_of(grown, steps) - grown[0])
        done = state.residents.advance(draft.cohorts, draft.rows, steps, flight.served)
        flight.hidden = done.hidden
        for sequence in done.ending:
            self._ends_in(flight, sequence)

    def _advance_chunk(self, flight: Flight, chunk: Chunk) -> None:
        state = self._state
        sequence, start, tokens, samples = chunk
        known = sequence.known
        sequence.place(known, start + tokens)
        if not samples:
            return
        if sequence is state.prefilling:
            state.prefilling = None
        sequence.place(known + 1, known)
        if state.ledger is not None:
            state.ledger.served(sequence.request.tenant, 1)
        if known + 1 >= sequence.foreseen:
            self._ends_in(flight, sequence)
            return
        state.join(sequence)
        if known + 1 >= sequence.limit:
            flight.hidden.append(sequence)

    def _ends_in(self, flight: Flight, sequence: Sequence) -> None:
        sequence.state = "ending"
        self._state.uncommit(sequence)
        flight.ending.append(sequence)

    def settle(self, flight: Flight, outcome: StepOutcome) -> list[Sequence]:
        """The plan in flight has ended: its times are known, and memory that waited for it is free."""
        state = self._state
        end_ns = int(outcome.ends_ns[-1])
        flight.served.end_ns = end_ns
        if flight.memory is not None:
            state.account.memory(flight.memory, self._start_ns(flight), outcome.ends_ns)
        if flight.waits is not None:
            state.account.gaps(flight.waits, outcome.ends_ns, flight.dropped)
        for chunk in flight.draft.chunks:
            if chunk.sequence.number not in flight.dropped:
                self._settle_chunk(flight, chunk, end_ns, outcome.stops.get(chunk.sequence.number) == "error")
        if state.timed:
            self._add_service(flight, end_ns)
        self._last_end_ns = end_ns
        if not (flight.ending or flight.hidden or flight.held or outcome.stops):
            return []
        ended = self._ended(flight, outcome)
        state.counters.wasted_rows += len(flight.held)
        leaving = flight.held + [(sequence, self._finish(sequence, end_ns, reason)) for sequence, reason in ended]
        for sequence, blocks in sorted(leaving, key=lambda entry: entry[0].number):
            if blocks is not None:
                state.release(sequence, blocks, "finished")
        return [sequence for sequence, _ in ended]

    def _settle_chunk(self, flight: Flight, chunk: Chunk, end_ns: int, failed: bool) -> None:
        """``failed``: the chunk was not computed, and its KV is nobody's to share."""
        state = self._state
        sequence = chunk.sequence
        if state.config.prefix_cache and not failed:
            state.pool.computed(sequence, chunk.start + chunk.tokens)
            state.residents.version += 1
        sequence.idle_since_ns = end_ns
        if not chunk.samples or failed:
            return
        if sequence.first_token_ns == UNSET:
            sequence.first_token_ns = end_ns
        elif sequence.served is not None:
            state.account.gap_of(sequence, end_ns - sequence.served.end_ns)
        sequence.served = flight.served

    def _ended(self, flight: Flight, outcome: StepOutcome) -> list[tuple[Sequence, StopReason]]:
        """Who ended with the plan and why, in row order."""
        found: dict[int, tuple[Sequence, StopReason]] = {}
        for sequence in flight.ending:
            found[sequence.number] = (sequence, outcome.stops.get(sequence.number, "length"))
        others: dict[int, StopReason] = {sequence.number: "eos" for sequence in flight.hidden}
        for number, reason in {**others, **outcome.stops}.items():
            resident = self._state.residents.get(number)
            if resident is not None:
                found[number] = (resident, reason)
        return [found[number] for number in sorted(found)]

    def _start_ns(self, flight: Flight) -> int:
        """Since when the plan is run: the end of the one before it, if that came later than the plan."""
        return max(flight.plan.now_ns, self._last_end_ns)

    def _add_service(self, flight: Flight, until_ns: int) -> None:
        """The plan's time up to ``until_ns`` is service to everybody in it, where that has not been said before.

        Said before anybody is put where they belong after it. With overlap it is often known only once they have been:
        it is kept for each apart, and lanes are compared.
        """
        draft = flight.draft
        took_ns = until_ns - self._start_ns(flight) - flight.service_ns
        if took_ns <= 0:
            return
        flight.service_ns += took_ns
        alone = [chunk.sequence for chunk in draft.chunks]
        if self._state.config.overlap:
            alone += draft.members() if flight.members is None else flight.members
            self._served_apart += alone
        else:
            alone += draft.rows
            for cohort in draft.cohorts:
                cohort.clock_ns += took_ns
        for sequence in alone:
            sequence.set_service(sequence.service_ns + took_ns)

    def retime(self) -> None:
        """Put everybody into the lane that their service so far, or their waiting, gives them."""
        state = self._state
        residents, order = state.residents, state.policy.resident
        residents.outlast(
            [s for cohort in residents.cohorts.values() for s in cohort.due(cohort.expiries, cohort.clock_ns)]
        )
        for sequence in self._served_apart:
            cohort_of = sequence.cohort
            if cohort_of is not None and order.lane(sequence, state.view) != cohort_of.key:
                residents.relane([sequence])
        self._served_apart.clear()
        if state.promotion is None:
            return
        for sequence in state.promotion.due(state.now_ns, self._unserved_since):
            sequence.set_service(0)
            residents.version += 1
            if sequence.state == "resident":
                residents.relane([sequence])
            elif sequence.state == "waiting":
                state.waiting.relane(sequence)

    def _unserved_since(self, sequence: Sequence) -> int:
        """Since when ``sequence`` has been in no step; now, if it is in one."""
        state = self._state
        if any(flight.holds(sequence) for flight in state.flights):
            return state.now_ns
        served = state.residents.served(sequence)
        return max(sequence.idle_since_ns, sequence.arrival_ns, UNSET if served is None else served.end_ns)

    def _finish(self, sequence: Sequence, end_ns: int, reason: StopReason) -> int | None:
        """``sequence`` has ended by itself. Returns its blocks, or ``None`` if a plan in flight still writes them."""
        state = self._state
        planned = state.flights[-1] if state.flights else None
        blocks: int | None = state.blocks_of(sequence)
        if sequence.state == "resident":
            if planned is not None and planned.steps_on(sequence):
                planned.plan.chunks  # noqa: B018  (to be listed while it is a member: its row is computed, and wasted)
                planned.held.append((sequence, state.blocks_of(sequence, sequence.computed + 1)))
                if reason == "error" and state.config.pool == "paged":
                    planned.plan.block_table(sequence)  # the same, while it counts as so long
                blocks = None
            state.residents.leave(sequence)
        self._end(sequence, end_ns, reason)
        if reason == "error":
            # the token that the plan was to give is none
            sequence.place(sequence.known - 1, sequence.computed)
            sequence.state = "aborted"
            state.counters.aborted += 1
            return blocks
        sequence.state = "finished"
        state.counters.finished += 1
        state.oracle.finished(sequence)
        state.admission.finished(sequence)
        return blocks

    def _end(self, sequence: Sequence, end_ns: int, reason: str) -> None:
        sequence.finish_ns, sequence.reason = end_ns, reason
        del self._state.sequences[sequence.id]
        self._state.uncommit(sequence)

    def abort(self, sequence: Sequence, reason: str = "aborted") -> None:
        """End ``sequence`` early, whatever it is at. Memory that a plan in flight writes is held until that is done."""
        state = self._state
        flight = state.flights[-1] if state.flights else None
        running = flight is not None and flight.holds(sequence)
        blocks = state.blocks_of(sequence)
        if sequence.state == "waiting":
            state.dequeue(sequence)
            if state.ledger is not None:
                state.ledger.left(sequence)
        elif sequence is state.prefilling:
            state.prefilling = None
        elif sequence.state == "resident":
            state.residents.leave(sequence)
            if sequence in state.swapped_in:
                state.swapped_in.remove(sequence)
        self._end(sequence, state.now_ns, reason)
        if sequence.host_tokens:
            state.leave_host(sequence)
            state.released.append(sequence.number)
        elif flight is not None and running:
            flight.drop(sequence, blocks)
        elif sequence.state != "waiting":
            state.release(sequence, blocks, "finished")
        sequence.state = "aborted"
        state.counters.aborted += 1
