"""What holds at each step of any run, checked from the outside: from the plans and what was told, not from the state
that the scheduler decides by."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from fake_world import drive
from hypothesis import given
from hypothesis import strategies as st
from random_runs import POLICY_SETTINGS, Recorder, Run, examples, runs

from scheduler.config import SchedulerConfig
from scheduler.plan import StepPlan
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence

BY_LENGTH = {"sjf": 1, "sjf-aging": 1, "sjf-bucket": 32}


class Checker:
    """Keeps its own account of every sequence and of the memory."""

    def __init__(self, config: SchedulerConfig, scheduler: Scheduler, recorder: Recorder) -> None:
        self.config = config
        self.scheduler = scheduler
        self.recorder = recorder
        #: by sequence number: positions computed, tokens known, and the blocks handed out, of those holding memory
        self.computed: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.tables: dict[int, list[int]] = {}
        self.holders: dict[int, Sequence] = {}
        self.gone: set[int] = set()
        self.chunked: Sequence | None = None
        self.sequences: list[Sequence] = []
        self.waiting_before: list[Sequence] = []
        self.room_for_aged = False
        self.aborting = False
        self.batch_closed = False
        self.last_admitted = -1
        self.now = 0

    # -- before

    def submitted(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)

    def before_plan(self, now_ns: int, aborting: bool) -> None:
        self.now, self.aborting = now_ns, aborting
        self.waiting_before = [s for s in self.sequences if s.state == "waiting"]
        slots = self.config.max_running - len(self.holders) + len(self.gone)
        aged = self.aged(self.waiting_before)
        self.room_for_aged = bool(aged) and slots > 0 and self.scheduler.pool.can_book(aged[0], self.needed(aged[0]))

    # -- a plan

    def planned(self, plan: StepPlan) -> None:
        self.check_released(plan)
        chunks = plan.chunks
        numbers = [chunk.sequence.number for chunk in chunks]
        assert numbers == sorted(set(numbers)), "rows in order of number, none twice"
        assert len(chunks) <= self.config.rows
        assert plan.features.rows == len(chunks)
        assert plan.features.rows_computed <= max(self.config.rows, len(chunks))
        for sequence, start, tokens, _ in chunks:
            number = sequence.number
            if number not in self.holders:
                self.holders[number] = sequence
                self.computed[number] = 0
                self.known.setdefault(number, sequence.request.prompt_tokens)
            assert start == self.computed[number], "a token is computed once, and none is left out"
            assert start + tokens <= self.known[number], "only known tokens can be computed"
        assert len(self.holders) <= self.config.max_running
        if plan.kind == "prefill":
            self.check_prefill(plan)
        else:
            self.check_decode(plan)
        self.check_memory(plan)

    def check_released(self, plan: StepPlan) -> None:
        evicted = {number for number, s in self.holders.items() if s.state == "waiting"}
        aborted = {number for number, s in self.holders.items() if s.state == "aborted"}
        assert sorted(plan.released) == sorted(self.gone | evicted | aborted)
        for number in plan.released:
            del self.holders[number], self.computed[number]
            self.tables.pop(number, None)
        self.gone.clear()
        if self.chunked is not None and self.chunked.state == "aborted":
            self.chunked = None
        if not self.holders:
            self.batch_closed = False

    def check_prefill(self, plan: StepPlan) -> None:
        chunks, config = plan.chunks, self.config
        assert sum(chunk.tokens for chunk in chunks) <= config.max_prefill_tokens
        assert not self.batch_closed, "a batch that runs to completion takes nobody in"
        if self.chunked is not None:
            assert [chunk.sequence for chunk in chunks] == [self.chunked], "a prompt in chunks goes on"
        else:
            self.check_admission(plan)
        for sequence, start, tokens, _ in chunks:
            if start + tokens < self.known[sequence.number]:
                assert len(chunks) == 1
                assert self.known[sequence.number] > config.max_prefill_tokens, "only what is too long is cut"
        width = config.bucket or BY_LENGTH.get(config.policy)
        if width:
            assert len({(chunk.sequence.known - 1) // width for chunk in chunks}) == 1

    def check_admission(self, plan: StepPlan) -> None:
        admitted = [chunk.sequence for chunk in plan.chunks]
        assert all(s in self.waiting_before for s in admitted)
        if self.config.policy in ("fcfs", "static"):
            first_timers = [s.number for s in admitted if s.preemptions == 0]
            assert all(number > self.last_admitted for number in first_timers), "arrival order"
            self.last_admitted = max([self.last_admitted, *first_timers])
        aged = self.aged(s for s in self.waiting_before if s.state != "aborted")
        if aged:
            assert aged[0] in admitted, "the oldest aged request is admitted first"

    def check_decode(self, plan: StepPlan) -> None:
        config = self.config
        members = [chunk.sequence for chunk in plan.chunks]
        residents = [s for s in self.holders.values() if s.state == "resident"]
        assert self.chunked is None, "a prompt in chunks is finished first"
        assert all(chunk.tokens == 1 and chunk.start == chunk.sequence.known - 1 for chunk in plan.chunks)
        self.batch_closed = config.policy == "static"
        aged = self.aged(residents)
        if aged:
            assert aged[0] in members, "the oldest aged resident is in every decode step"
        assert self.aborting or not self.room_for_aged, "an aged request is admitted as soon as there is room"
        width = config.bucket or BY_LENGTH.get(config.policy)
        if width is None:
            assert len(members) == min(len(residents), config.rows), "iteration level: whoever fits goes"
        elif not config.min_rows:
            self.check_lane(members, residents, width, aged)

    def check_lane(self, members: list[Sequence], residents: list[Sequence], width: int, aged: list[Sequence]) -> None:
        lanes: dict[int, list[Sequence]] = {}
        for sequence in residents:
            lanes.setdefault((sequence.known - 1) // width, []).append(sequence)
        keys = {(sequence.known - 1) // width for sequence in members}
        assert len(keys) == 1, "one length, or one bucket, a step"
        lane = lanes[keys.pop()]
        assert len(members) == min(len(lane), self.config.rows), "all of the lane that fit go"
        if aged:
            return
        order = self.config.bucket_order or "lowest"
        if order == "lowest":
            assert lane is lanes[min(lanes)]
        elif order == "fullest":
            assert len(lane) == max(map(len, lanes.values()))
        else:
            assert min(residents, key=lambda s: s.number) in lane

    def needed(self, sequence: Sequence) -> int:
        request = sequence.request
        return sequence.known if self.scheduler.pool.grows else request.prompt_tokens + sequence.max_tokens

    def aged(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those past the threshold, the oldest first; none under a policy without one."""
        if self.config.policy != "sjf-aging":
            return []
        seconds = 60.0 if self.config.aging_s is None else self.config.aging_s
        found = [s for s in sequences if self.now - s.arrival_ns >= round(seconds * 1e9)]
        return sorted(found, key=lambda s: s.number)

    def check_memory(self, plan: StepPlan) -> None:
        pool = self.scheduler.pool
        if not pool.grows:
            reserved = sum(s.request.prompt_tokens + s.max_tokens for s in self.holders.values())
            assert reserved == pool.reserved_tokens <= self.config.kv_tokens
            return
        size = self.config.block_tokens
        for sequence, start, tokens, _ in plan.chunks:
            table = list(plan.block_table(sequence))
            before = self.tables.get(sequence.number, [])
            assert table[: len(before)] == before, "blocks stay where they are"
            assert len(table) * size >= start + tokens, "room for every token that the step computes"
            self.tables[sequence.number] = table
        used = [block for table in self.tables.values() for block in table]
        assert len(used) == len(set(used)), "no block belongs to two sequences"
        assert all(0 <= block < pool.capacity_blocks for block in used)

    # -- after

    def completed(self, plan: StepPlan, ended: list[Sequence]) -> None:
        for sequence, start, tokens, _ in plan.chunks:
            number = sequence.number
            self.computed[number] = start + tokens
            if start + tokens == self.known[number]:
                self.known[number] += 1
                assert sequence.known == self.known[number]
                self.chunked = None
            else:
                self.chunked = sequence
        assert {s.number for s in ended} <= {chunk.sequence.number for chunk in plan.chunks}
        for sequence in ended:
            assert sequence.state == "finished"
            self.gone.add(sequence.number)

    def check_end(self) -> None:
        sequences, counters, pool = self.sequences, self.scheduler.counters, self.scheduler.pool
        assert self.scheduler.idle
        assert (self.scheduler.waiting, self.scheduler.resident) == (0, 0)
        assert pool.free_blocks == pool.capacity_blocks, "all memory is given back"
        assert pool.reserved_tokens == 0
        states = [s.state for s in sequences]
        assert len(states) == counters.submitted
        assert states.count("finished") == counters.finished
        assert states.count("rejected") == counters.rejected
        assert states.count("aborted") == counters.aborted
        assert counters.submitted == counters.finished + counters.rejected + counters.aborted
        assert sorted(self.recorder.ended_ids) == sorted(s.id for s in sequences), "each end is told once"
        for sequence in sequences:
            if sequence.state == "finished":
                assert sequence.known == self.known[sequence.number]
                assert sequence.reason == "eos" or sequence.known == sequence.limit


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_every_step_keeps_the_promises(policy: str) -> None:
    @examples(70)
    @given(
        runs(policies=(policy,)), st.integers(0, 2**32), st.sampled_from((0.0, 0.1)), st.sampled_from((0.0, 0.1, 0.5))
    )
    def keeps(run: Run, seed: int, stop_chance: float, abort_chance: float) -> None:
        recorder = Recorder()
        scheduler = Scheduler(run.config, recorder)
        checker = Checker(run.config, scheduler, recorder)
        drive(
            scheduler,
            run.requests,
            Random(seed),
            stop_chance=stop_chance,
            abort_chance=abort_chance,
            watcher=checker,
        )
        checker.check_end()

    keeps()
