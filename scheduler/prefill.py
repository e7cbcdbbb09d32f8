"""Who is prefilled: admission of waiting requests, and the chunks of their prompts that a step computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scheduler.features import Draft
from scheduler.flight import BusyError
from scheduler.plan import NEVER, Chunk
from scheduler.sequence import UNSET, Sequence
from scheduler.state import SchedulerState
from scheduler.waiting import WaitingLane


class Prefill:
    """Admits, and cuts prompts into chunks."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        #: the waiting lane that a batch that runs to completion fills from
        self._filling: Any = None
        # who could not be admitted, and until when it is of no use to look again
        self._blocked: tuple[int, int] | None = None
        self.blocked_until = 0

    def chunks(self, budget: int, rows: int, mixed: Draft | None = None) -> tuple[list[Chunk], list[Sequence]]:
        """Chunks of at most ``budget`` tokens in at most ``rows`` rows, and whose KV was brought in.

        ``mixed``: the decode rows of the same step. Its last prompt is cut to what is left of the budget, and whose KV
        was brought in joins after the step.
        """
        state = self._state
        chunks: list[Chunk] = []
        if state.prefilling is not None:
            if rows < 1:
                return [], []
            chunks.append(self._chunk(state.prefilling, budget))
            budget -= chunks[0].tokens
            if mixed is None or budget <= 0 or not chunks[0].samples:
                return chunks, []
        elif not state.waiting or self._no_slot() or state.batch_is_short():
            return [], []
        joining = self._admit(chunks, budget, rows, mixed)
        if mixed is None:
            for sequence in joining:
                state.join(sequence)
        chunks.sort(key=lambda chunk: chunk.sequence.number)
        return chunks, joining

    def _no_slot(self) -> bool:
        """Whether every slot is taken by somebody who cannot be evicted for rank."""
        state = self._state
        return state.holding >= state.config.max_running and state.urgency is None

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start = sequence.computed
        tokens = min(budget, sequence.known - start)
        return Chunk(sequence, start, tokens, start + tokens == sequence.known)

    def _admit(self, chunks: list[Chunk], budget: int, rows: int, mixed: Draft | None) -> list[Sequence]:
        """Admit waiting requests in the policy's order, while slots, rows, KV and the token budget allow."""
        state = self._state
        waiting, order = state.waiting, state.policy.waiting
        swapped_in: list[Sequence] = []
        if not waiting:
            return swapped_in
        leader = state.aged(waiting)
        first = waiting.first_lane() if leader is None else waiting.lane_of(leader)
        lane: WaitingLane | None = first
        fills = state.parts.slice_steps == 0 and order.exclusive
        if fills and not (state.empty and not chunks):
            lane, leader = waiting.lane(self._filling), None
        group: Sequence | None = None
        while budget > 0 and len(chunks) < rows and lane is not None and lane.count:
            sequence = lane.head if leader is None else leader
            leader = None
            if sequence.number in state.evicted:
                break
            if not sequence.kv_elsewhere and chunks and mixed is None:
                tokens = sequence.known - state.pool.cached_tokens(sequence)
                if tokens > budget:
                    break
            if not self._make_room(sequence, chunks, swapped_in, mixed):
                break
            if fills:
                self._filling = lane.key
            group = group or sequence
            state.dequeue(sequence)
            self._book(sequence)
            if sequence.kv_elsewhere:
                state.bring_in(sequence)
                swapped_in.append(sequence)
            else:
                chunk = self._chunk(sequence, budget)
                chunks.append(chunk)
                budget -= chunk.tokens
                if not chunk.samples:
                    state.prefilling = sequence
                    break
            if not waiting:
                break
            if not order.exclusive:
                lane = waiting.first_lane()
            elif order.shapes_lanes:
                # buckets that adapt may have become others, now that somebody waits no longer
                lane = waiting.lane(order.lane(group, state.view))
        return swapped_in

    def _make_room(
        self, sequence: Sequence, chunks: list[Chunk], swapped_in: list[Sequence], mixed: Draft | None
    ) -> bool:
        """Whether a slot and KV are there for ``sequence``, after evicting less urgent ones if the policy says so."""
        state = self._state
        blocked = (sequence.number, state.residents.version)
        if self._blocked == blocked and state.steps_done < self.blocked_until:
            return False
        slots = state.config.max_running - state.holding
        if slots <= 0 and state.eviction.none_weaker(sequence):
            return self._block_until_quantum(blocked, mixed)
        tokens = state.admission.booking(sequence)
        if not state.admission.consents(sequence, self._admitted(chunks, swapped_in)):
            return self._block(blocked, NEVER if not state.admission.follows_progress else 0)
        fits = self._fits(sequence, tokens)
        if slots > 0 and fits:
            return True
        if state.urgency is None or not (fits or state.pool.grows):
            return self._block(blocked, NEVER)
        victims = self._victims_for(sequence, tokens, 1 - slots, mixed)
        if victims is None:
            return self._block_until_quantum(blocked, mixed)
        if state.flights:
            if chunks or swapped_in or (mixed is not None and mixed.decodes):
                return False
            raise BusyError
        for victim in victims:
            state.evict(victim)
        return True

    def _victims_for(self, sequence: Sequence, tokens: int, slots: int, mixed: Draft | None) -> list[Sequence] | None:
        """The fewest less urgent residents whose ``slots`` and KV are enough, or ``None``; no row of a mixed step."""
        state = self._state
        shared_with = None if sequence.kv_elsewhere else sequence
        shortage = state.pool.shortage(sequence, tokens, shares=shared_with is not None)
        victims: list[Sequence] = []

        def too_few() -> bool:
            blocks = state.pool.freed_by([(s, state.blocks_of(s)) for s in victims], shared_with) if victims else 0
            return len(victims) < slots or blocks < shortage

        def consider(victim: Sequence) -> bool:
            if mixed is not None and mixed.steps_on(victim):
                return True
            victims.append(victim)
            return too_few()

        state.eviction.weaker(sequence, consider)
        return None if too_few() else victims

    def _block_until_quantum(self, blocked: tuple[int, int], mixed: Draft | None) -> bool:
        return self._block(blocked, self._state.residents.steps_to_quantum() if mixed is None else 0)

    def _block(self, blocked: tuple[int, int], steps: int) -> bool:
        """``sequence`` cannot be admitted, and for so many steps of the residents nothing changes about that."""
        self._blocked, self.blocked_until = blocked, self._state.steps_done + steps
        return False

    def _fits(self, sequence: Sequence, tokens: int) -> bool:
        state = self._state
        if sequence.kv_elsewhere and state.pool.grows:
            return state.pool.blocks_for(tokens) <= state.pool.free_blocks
        return state.pool.can_book(sequence, tokens)

    def _admitted(self, chunks: list[Chunk], swapped_in: list[Sequence]) -> Iterable[Sequence]:
        state = self._state
        yield from state.residents.members()
        for chunk in chunks:
            yield chunk.sequence
        if state.prefilling is not None and all(chunk.sequence is not state.prefilling for chunk in chunks):
            yield state.prefilling
        yield from swapped_in

    def _book(self, sequence: Sequence) -> None:
        state = self._state
        tokens = state.admission.booking(sequence)
        state.admission.admitted(sequence)
        if state.ledger is not None:
            state.ledger.admitted(sequence, sequence.first_scheduled_ns == UNSET)
        if state.promotion is not None:
            state.promotion.admitted(sequence, state.now_ns)
        state.holding += 1
        state.residents.version += 1
        if sequence.kv_elsewhere:
            # its next step takes the block that comes next, if one does, as everybody's
            state.pool.book(sequence, sequence.computed if state.grows else tokens)
        else:
            cached = state.pool.book_cached(sequence, tokens)
            sequence.place(sequence.known, cached)
            if sequence.request.block_hashes and state.config.prefix_cache:
                state.counters.prefix_query_tokens += sequence.known
                state.counters.prefix_hit_tokens += cached
                sequence.prefix_hit_tokens += cached
        sequence.state = "prefilling"
        sequence.admitted_known = sequence.known
        if sequence.first_scheduled_ns == UNSET:
            sequence.first_scheduled_ns = state.now_ns
            state.account.waited(sequence, state.now_ns - sequence.arrival_ns)
