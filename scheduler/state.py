"""What the scheduler holds: who waits, who is resident, what is in flight, and whose memory is where.

Those who decide (:mod:`scheduler.prefill`, :mod:`scheduler.stepping`) and who carries decisions through
(:mod:`scheduler.completion`) share one :class:`SchedulerState`.
"""

from __future__ import annotations

from scheduler.accounting import Account
from scheduler.admission import build_admission
from scheduler.cohorts import Cohort, Residents, growth
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.eviction import Eviction
from scheduler.flight import Batch, Flight
from scheduler.kv import Freed, HostMemory, build_pool
from scheduler.observer import Observer
from scheduler.oracle import build_oracle
from scheduler.plan import Swap
from scheduler.promotion import Promotion
from scheduler.sequence import Sequence
from scheduler.waiting import WaitingQueue, build_waiting


class SchedulerView:
    """What a policy may read of the scheduler; see :class:`~scheduler.policy.View`."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._prefill_token_ns = state.config.prefill_token_ns

    @property
    def now_ns(self) -> int:
        return self._state.now_ns

    @property
    def waiting(self) -> int:
        return len(self._state.waiting)

    @property
    def resident(self) -> int:
        return self._state.holding

    @property
    def free_blocks(self) -> int:
        return self._state.pool.free_blocks

    def predicted(self, sequence: Sequence) -> int:
        return sequence.predicted

    def cached_tokens(self, sequence: Sequence) -> int:
        return self._state.pool.cached_tokens(sequence)

    def prefill_ns(self, tokens: int) -> int:
        return tokens * self._prefill_token_ns


class SchedulerState:
    """Everything that more than one part of the scheduler reads or changes."""

    def __init__(self, config: SchedulerConfig, observer: Observer | None) -> None:
        self.parts = parts = compose(config)
        self.config = config = parts.config
        self.policy = policy = parts.policy
        # what of it every step looks at
        self.ageing, self.urgency, self.ledger = policy.ageing, policy.urgency, policy.ledger
        self.timed = policy.resident.timed
        self.pool = build_pool(config.pool, config.kv_tokens, config.block_tokens, config.prefix_cache)
        self.host = HostMemory(config.swap_tokens)
        self.counters = RunCounters()
        self.observer = observer
        self.now_ns = 0
        self.view = SchedulerView(self)
        self.oracle = build_oracle(config)
        self.admission = build_admission(parts.admission, config.capacity_tokens)
        #: whether blocks are handed out as sequences grow
        self.grows = self.admission.grows and self.pool.grows
        self.waiting: WaitingQueue = build_waiting(policy.waiting, self.view)
        #: known tokens of those that wait
        self.waiting_tokens = 0
        self.residents = Residents(
            policy.resident,
            self.view,
            self.pool.block_tokens,
            urgency=policy.urgency,
            quantum=policy.quantum,
            by_tenant=self.ledger is not None,
            together=parts.takes_all,
        )
        self.eviction = Eviction(policy, config.victim, self.residents, self.view)
        self.promotion = None if policy.promote_ns is None else Promotion(policy.promote_ns)
        self.account = Account(self.counters, self.pool, round(config.starvation_s * 1e9), observer)
        #: by id, those that have not ended
        self.sequences: dict[str, Sequence] = {}
        #: how many hold KV, those that end in the plan in flight included
        self.holding = 0
        #: admitted, its prompt computed in part
        self.prefilling: Sequence | None = None
        self.flights: list[Flight] = []
        self.batch: Batch | None = None
        #: steps that residents have been advanced by
        self.steps_done = 0
        # of the plan to come
        self.released: list[int] = []
        self.swapped_out: list[Swap] = []
        self.swapped_in: list[Sequence] = []
        self.brought_in = False
        self.evicted: set[int] = set()

    def next_wakeup(self) -> int | None:
        """When :meth:`next_step` may have a plan although it has none now and nothing arrives; ``None``: never."""
        if self.waiting and self.empty and self.waiting.fullest_lane() < self.policy.min_batch:
            return self.waiting.oldest().arrival_ns + self.policy.max_wait_ns
        return None

    @property
    def empty(self) -> bool:
        """Nobody is resident, apart from those who end in the plan in flight."""
        return not self.residents.count and self.prefilling is None

    def enqueue(self, sequence: Sequence) -> None:
        self.waiting.push(sequence)
        self.waiting_tokens += sequence.known

    def dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        self.waiting_tokens -= sequence.known

    def batch_is_short(self) -> bool:
        wakeup = self.next_wakeup()
        return wakeup is not None and self.now_ns < wakeup

    def aged(self, queue: WaitingQueue | Residents) -> Sequence | None:
        """The oldest of the queue, if the policy knows ageing and it is past the threshold."""
        if self.ageing is None:
            return None
        oldest = queue.oldest()
        return oldest if self.now_ns - oldest.arrival_ns >= self.ageing.threshold_ns else None

    def join(self, sequence: Sequence) -> None:
        sequence.state = "resident"
        self.residents.join(sequence)

    def growth(self, cohorts: list[Cohort], rows: list[Sequence], steps: int) -> list[int]:
        """New blocks in each of the next steps; it repeats after a block's worth of them."""
        period = growth(cohorts, steps) if cohorts else [0] * min(steps, self.pool.block_tokens)
        for sequence in rows:
            first = -sequence.computed % self.pool.block_tokens
            if first < len(period):
                period[first] += 1
        return period

    def blocks_of(self, sequence: Sequence, tokens: int | None = None) -> int:
        """Blocks that ``sequence`` holds for ``tokens`` tokens (default: those computed), or has booked."""
        return max(sequence.pool_blocks, self.pool.blocks_for(sequence.computed if tokens is None else tokens))

    def release(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        self.give_back(sequence, blocks, freed)
        self.released.append(sequence.number)

    def give_back(self, sequence: Sequence, blocks: int, freed: Freed) -> None:
        self.pool.release(sequence, blocks, freed)
        self.holding -= 1
        self.residents.version += 1

    def uncommit(self, sequence: Sequence) -> None:
        """``sequence`` ends or is evicted: consent to another may no longer depend on it."""
        self.admission.left(sequence)
        self.residents.version += 1

    def evict(self, sequence: Sequence) -> None:
        """Take the memory of a resident sequence away; it waits, with its KV in host memory or to be computed again."""
        self.residents.leave(sequence)
        self.uncommit(sequence)
        self.evicted.add(sequence.number)
        sequence.preemptions += 1
        self.counters.preemptions += 1
        if self.parts.swaps and self.host.room_for(sequence.computed):
            self._swap_out(sequence)
            self.give_back(sequence, self.blocks_of(sequence), "evicted")
        else:
            if sequence in self.swapped_in:
                self.swapped_in.remove(sequence)
            self.release(sequence, self.blocks_of(sequence), "evicted")
            lost = sequence.computed
            sequence.recomputed_tokens += lost
            self.counters.recomputed_tokens += lost
            sequence.place(sequence.known, 0)
        sequence.state = "waiting"
        if self.ledger is not None:
            self.ledger.evicted(sequence)
        self.enqueue(sequence)

    def _swap_out(self, sequence: Sequence) -> None:
        sequence.host_tokens = sequence.computed
        self.host.take(sequence.number, sequence.host_tokens)
        if sequence in self.swapped_in:
            # it has not left the host yet
            self.swapped_in.remove(sequence)
            return
        self.swapped_out.append(self.swap(sequence))
        sequence.swapped_out += 1
        self.counters.swapped_out += 1
        self.counters.swapped_tokens += sequence.host_tokens

    def bring_in(self, sequence: Sequence) -> None:
        """The KV of ``sequence``, which has been booked, comes from host memory, or has come with the request."""
        if sequence.brings_kv:
            sequence.brings_kv = False
            self.brought_in = True
            return
        self.leave_host(sequence)
        self.swapped_in.append(sequence)

    def leave_host(self, sequence: Sequence) -> None:
        self.host.give_back(sequence.number)
        sequence.host_tokens = 0

    def swap(self, sequence: Sequence) -> Swap:
        return Swap(sequence.number, sequence.computed, self._block_ids(sequence))

    def _block_ids(self, sequence: Sequence) -> tuple[int, ...]:
        if not self.pool.grows:
            return ()
        return tuple(self.pool.table(sequence, self.pool.blocks_for(sequence.computed)))
