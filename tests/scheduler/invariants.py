"""An onlooker that keeps its own account of every sequence and of the memory, and raises where a promise is broken.

It goes by the plans and by what is told, not by the state that the scheduler decides by.
"""

from __future__ import annotations

from collections.abc import Iterable

from random_runs import Recorder

from scheduler.buckets import Buckets, parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.plan import StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence

RUN_TO_COMPLETION = ("static", "multi-bin")
BY_LENGTH = ("sjf", "sjf-aging", "sjf-bucket")
#: who may evict for rank
URGENT = ("srpt", "trail", "las", "mlfq", "edf")


class Checker:
    """Watches one run in a :class:`~fake_world.World`."""

    def __init__(self, config: SchedulerConfig, scheduler: Scheduler, recorder: Recorder) -> None:
        self.config = config
        self.scheduler = scheduler
        self.recorder = recorder
        batching = config.batching or ("run-to-completion" if config.policy in RUN_TO_COMPLETION else "iteration")
        self.iteration = batching == "iteration"
        self.completes = batching == "run-to-completion"
        #: plans alternate with completions, so that states are what the last completion made them
        self.in_step = not config.overlap
        reserving = self.completes or config.policy == "orca-reserve" or config.pool != "paged"
        self.admission = config.admission or ("reserve-max" if reserving else "now")
        self.buckets: Buckets | None = None
        if config.policy in BY_LENGTH and config.bucket != "adaptive":
            self.buckets = parse_buckets((config.bucket or 32) if config.policy == "sjf-bucket" else 1)
        self.sequences: list[Sequence] = []
        self.holders: dict[int, Sequence] = {}
        #: by number: positions computed and tokens known once all plans so far have been run
        self.computed: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.tables: dict[int, list[int]] = {}
        self.on_host: dict[int, int] = {}
        self.chunked: int | None = None
        #: members of the plan that was made while the one before it is in flight
        self.flying: set[int] = set()
        self.closed = False
        self.waiting_before: list[Sequence] = []
        self.aborting = False
        self.last_admitted = -1
        self.now = 0

    def by_number(self, number: int) -> Sequence:
        return self.sequences[number]

    # -- before

    def submitted(self, sequence: Sequence) -> None:
        assert sequence.number == len(self.sequences)
        self.sequences.append(sequence)

    def before_plan(self, now_ns: int, aborting: bool) -> None:
        self.now, self.aborting = now_ns, aborting
        self.waiting_before = [s for s in self.sequences if s.state == "waiting"]

    # -- a plan

    def planned(self, plan: StepPlan | None) -> None:
        self.flying = set() if plan is None or self.in_step else {chunk.sequence.number for chunk in plan.chunks}
        if plan is None:
            if self.in_step:
                assert not any(s.state == "resident" for s in self.sequences), "whoever is resident can be stepped"
            return
        self.check_moves(plan)
        chunks = plan.chunks
        numbers = [chunk.sequence.number for chunk in chunks]
        assert numbers == sorted(set(numbers)), "rows in order of number, none twice"
        assert 1 <= len(chunks) <= self.config.rows
        assert plan.features.rows == len(chunks)
        admitted = [self.by_number(move.number) for move in plan.swapped_in]
        for sequence, start, tokens, samples in chunks:
            number = sequence.number
            assert tokens >= 1
            assert not sequence.ended, "whoever has ended is in no new plan"
            if number not in self.holders:
                self.holders[number] = sequence
                admitted.append(sequence)
                self.computed[number] = start
                self.known.setdefault(number, sequence.request.prompt_tokens)
                self.check_hit(sequence, start)
            assert start == self.computed[number], "a token is computed once, and none is left out"
            assert start + tokens <= self.known[number], "only known tokens can be computed"
            assert samples == (start + tokens == self.known[number])
        assert len(self.holders) <= self.config.max_running
        if not any(s.state == "resident" for s in self.sequences):
            self.closed = False
        self.check_kind(plan)
        self.check_admission(plan, admitted)
        if self.in_step and plan.kind == "decode":
            self.check_decode(plan)
        for sequence, start, tokens, samples in chunks:
            self.computed[sequence.number] = start + tokens
            self.known[sequence.number] += samples
        partly = [n for n, s in self.holders.items() if not s.ended and self.computed[n] < self.known[n] - 1]
        assert len(partly) <= 1, "at most one prompt is computed in part"
        self.chunked = partly[0] if partly else None

    def check_moves(self, plan: StepPlan) -> None:
        """Who gave memory back, and what went to the host or came from there."""
        assert len(set(plan.released)) == len(plan.released)
        for number in plan.released:
            self.on_host.pop(number, None)
            if number in self.holders:
                self.leaves(number, plan)
        for move in plan.swapped_out:
            assert move.tokens == self.computed[move.number], "all that was computed is moved"
            self.leaves(move.number, plan)
            self.on_host[move.number] = move.tokens
        self.on_host = {n: tokens for n, tokens in self.on_host.items() if not self.by_number(n).ended}
        for move in plan.swapped_in:
            assert self.on_host.pop(move.number) == move.tokens
            self.holders[move.number] = self.by_number(move.number)
            self.computed[move.number] = move.tokens
            assert self.known[move.number] == move.tokens + 1
        limit = self.config.swap_tokens
        assert limit is None or sum(self.on_host.values()) <= limit, "host memory is limited"
        moved = sum(move.tokens for move in (*plan.swapped_out, *plan.swapped_in))
        assert plan.features.swapped_tokens == moved

    def leaves(self, number: int, plan: StepPlan) -> None:
        sequence = self.holders.pop(number)
        if not sequence.ended:
            assert self.chunked != number, "a prompt in chunks is never evicted"
            assert plan.repeat == 1
            assert sequence.preemptions
        self.computed.pop(number)
        self.tables.pop(number, None)

    def check_hit(self, sequence: Sequence, start: int) -> None:
        size = self.config.block_tokens
        assert sequence.number not in self.on_host, "what is on the host comes back from there"
        if not self.config.prefix_cache:
            assert start == 0
        assert start % size == 0
        assert start // size <= len(sequence.request.block_hashes)
        assert start < self.known[sequence.number], "at least one token is computed"

    def check_kind(self, plan: StepPlan) -> None:
        config = self.config
        decodes = [c for c in plan.chunks if c.start >= c.sequence.request.prompt_tokens and c.tokens == 1]
        prompts = [c for c in plan.chunks if c.tokens > 1 or c not in decodes]
        assert plan.features.new_tokens == sum(chunk.tokens for chunk in plan.chunks)
        if plan.kind == "decode":
            assert not prompts
            assert plan.features.decode_rows == len(plan.chunks)
        else:
            prefilled = sum(chunk.tokens for chunk in plan.chunks) - plan.features.decode_rows
            assert 1 <= prefilled <= config.max_prefill_tokens
            assert not (self.closed and self.completes), "a batch that runs to completion takes nobody in"
        if plan.kind == "mixed":
            assert config.phase == "mixed"
            assert plan.features.decode_rows >= 1
        if config.phase == "mixed":
            assert sum(chunk.tokens for chunk in plan.chunks) <= (config.chunk_tokens or 512)
        elif plan.kind == "prefill":
            cut = [c for c in plan.chunks if not c.samples]
            assert not cut or len(plan.chunks) == 1, "only what is too long is cut"
        if self.in_step and self.completes:
            self.closed = plan.kind == "decode"

    def check_admission(self, plan: StepPlan, admitted: list[Sequence]) -> None:
        if not self.in_step or not admitted:
            return
        assert all(s in self.waiting_before for s in admitted)
        order = sorted(s.number for s in admitted)
        if self.config.policy in ("fcfs", "static", "orca-reserve") and self.aging_s is None:
            first_timers = [number for number in order if self.by_number(number).preemptions == 0]
            assert all(number > self.last_admitted for number in first_timers), "arrival order"
            self.last_admitted = max([self.last_admitted, *first_timers])
        if self.config.policy == "edf" and self.aging_s is None:
            left_out = [s for s in self.waiting_before if s not in admitted and not s.ended]
            latest = max(self.deadline(s) for s in admitted)
            assert all(self.deadline(s) >= latest for s in left_out), "the earliest deadline first"
        aged = self.aged(s for s in self.waiting_before if not s.ended)
        fills = self.completes and self.config.policy in (*BY_LENGTH, "multi-bin", "bucket-serve")
        if aged and not fills:
            assert aged[0] in admitted, "the oldest aged request is admitted first"
        if self.buckets is not None and not aged:
            assert len({self.buckets.key(s.known) for s in admitted}) == 1, "one length, or one bucket, is prefilled"

    def deadline(self, sequence: Sequence) -> int:
        return 1 << 62 if sequence.request.deadline_ns is None else sequence.request.deadline_ns

    def check_decode(self, plan: StepPlan) -> None:
        """Who is stepped, where the batch is chosen anew at each step."""
        config = self.config
        members = [chunk.sequence for chunk in plan.chunks]
        residents = [s for s in self.holders.values() if s.state == "resident"]
        assert all(s in residents for s in members)
        aged = self.aged(residents)
        limit = min(config.rows, config.chunk_tokens or 512) if config.phase == "mixed" else config.rows
        if self.completes:
            assert len(members) == min(len(residents), config.rows), "all of a batch that fit go"
        if not self.iteration:
            return
        if aged:
            assert aged[0] in members, "the oldest aged resident is in every decode step"
        if config.policy not in BY_LENGTH:
            assert len(members) == min(len(residents), limit), "iteration level: whoever fits goes"
            self.check_room(plan)
        elif self.buckets is not None and not config.min_rows:
            self.check_lane(self.buckets, members, residents, aged, limit)

    def check_room(self, plan: StepPlan) -> None:
        """Work conservation: in order of arrival, nobody waits for a slot and memory that are there."""
        config = self.config
        here = [s for s in self.waiting_before if not s.ended and s.state == "waiting"]
        plain = config.policy in ("fcfs", "orca-reserve") and config.phase != "decode-first" and self.aging_s is None
        if not plain or not here or plan.released or plan.swapped_out or config.prefix_cache or config.pool != "paged":
            return
        if self.admission not in ("now", "reserve-max") or len(self.holders) >= config.max_running:
            return
        if config.phase == "mixed" and plan.features.rows >= min(config.rows, config.chunk_tokens or 512):
            return
        head = min(here, key=lambda s: s.number)
        request = head.request
        wanted = head.known if self.admission == "now" else request.prompt_tokens + head.max_tokens
        size = config.block_tokens
        assert -(-wanted // size) * size > config.capacity_tokens - self.scheduler.pool.reserved_tokens - (
            plan.features.rows * size if config.phase == "mixed" else 0
        ), "whoever fits is admitted"

    def check_lane(
        self, buckets: Buckets, members: list[Sequence], residents: list[Sequence], aged: list[Sequence], limit: int
    ) -> None:
        lanes: dict[int, list[Sequence]] = {}
        for sequence in residents:
            lanes.setdefault(buckets.key(sequence.known), []).append(sequence)
        keys = {buckets.key(sequence.known) for sequence in members}
        assert len(keys) == 1, "one length, or one bucket, a step"
        lane = lanes[keys.pop()]
        assert len(members) == min(len(lane), limit), "all of the lane that fit go"
        if aged or self.config.aging == "linear":
            return
        order = self.config.bucket_order or "lowest"
        if order == "lowest":
            assert lane is lanes[min(lanes)]
        elif order == "fullest":
            assert len(lane) == max(map(len, lanes.values()))
        else:
            assert min(residents, key=lambda s: s.number) in lane

    @property
    def aging_s(self) -> float | None:
        """The threshold past which the oldest leads."""
        config = self.config
        by_default = config.policy in ("sjf-aging", "sjf-predicted") and config.aging is None
        if config.aging == "threshold" or config.aging_s is not None or (by_default and config.aging_weight is None):
            return 60.0 if config.aging_s is None else config.aging_s
        return None

    def aged(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those past the threshold, if they are led by the oldest of all."""
        here = sorted(sequences, key=lambda s: s.number)
        if self.aging_s is None or not here or self.now - here[0].arrival_ns < round(self.aging_s * 1e9):
            return []
        return here

    # -- memory

    def prepared(self, plan: StepPlan) -> None:
        pool, size = self.scheduler.pool, self.config.block_tokens
        if self.config.pool != "paged":
            reserved = sum(pool.blocks_for(self.booked(s)) for s in self.holders.values() if self.counts(s))
            assert reserved <= pool.reserved_tokens <= self.config.kv_tokens
            return
        for sequence, start, tokens, _ in plan.chunks:
            table = list(plan.block_table(sequence))
            before = self.tables.get(sequence.number, [])
            assert table[: len(before)] == before, "blocks stay where they are"
            assert len(table) * size >= start + tokens, "room for every token that the step computes"
            self.tables[sequence.number] = table
        self.check_owners()

    def counts(self, sequence: Sequence) -> bool:
        return not sequence.ended

    def check_owners(self) -> None:
        """No block belongs to two sequences, unless it holds the same beginning of the prompts of both."""
        owner: dict[int, tuple[int, tuple[int, ...], int]] = {}
        for number, table in self.tables.items():
            request = self.by_number(number).request
            for index, block in enumerate(table):
                assert 0 <= block < self.scheduler.pool.capacity_blocks
                if block not in owner:
                    owner[block] = (index, request.block_hashes, number)
                    continue
                other_index, hashes, other = owner[block]
                assert self.config.prefix_cache, f"block {block} belongs to {number} and {other}"
                assert index == other_index
                assert hashes[: index + 1] == request.block_hashes[: index + 1]
                assert index < len(hashes)

    def booked(self, sequence: Sequence) -> int:
        request = sequence.request
        most = request.prompt_tokens + sequence.max_tokens
        if self.admission == "reserve-max":
            return most
        return sequence.known if sequence.known < most else most

    # -- after

    def completed(self, plan: StepPlan, ended: list[Sequence]) -> None:
        members = {chunk.sequence.number for chunk in plan.chunks}
        assert {s.number for s in ended} <= members
        assert all(s.state == "finished" for s in ended)
        for number in members - self.flying:
            if self.by_number(number).ended:
                self.tables.pop(number, None)
        if self.in_step:
            for chunk in plan.chunks:
                assert chunk.sequence.known == self.known[chunk.sequence.number]

    def check_end(self) -> None:
        sequences, counters, pool = self.sequences, self.scheduler.counters, self.scheduler.pool
        assert self.scheduler.idle
        assert (self.scheduler.waiting, self.scheduler.resident) == (0, 0)
        assert pool.free_blocks == pool.capacity_blocks, "all memory is given back"
        assert pool.reserved_tokens == 0
        assert pool.shared_blocks == 0
        assert not [n for n in self.on_host if not self.by_number(n).ended], "nothing stays on the host"
        assert counters.swapped_in <= counters.swapped_out <= counters.preemptions
        states = [s.state for s in sequences]
        assert len(states) == counters.submitted
        assert states.count("finished") == counters.finished
        assert states.count("rejected") == counters.rejected
        assert states.count("aborted") == counters.aborted
        assert counters.submitted == counters.finished + counters.rejected + counters.aborted
        assert sorted(self.recorder.ended_ids) == sorted(s.id for s in sequences), "each end is told once"
        for sequence in sequences:
            if sequence.state == "finished":
                assert sequence.first_scheduled_ns <= sequence.first_token_ns <= sequence.finish_ns
                assert sequence.reason in ("eos", "stop") or sequence.known == sequence.limit
                assert sequence.known <= sequence.limit
        if not self.config.overlap:
            assert counters.wasted_rows == 0
