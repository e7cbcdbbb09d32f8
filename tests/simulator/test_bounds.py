"""Lower bounds on latency and makespan, against cases worked out by hand and against all orders of a few jobs."""

from __future__ import annotations

from itertools import permutations, product
from random import Random

import pytest

from scheduler.config import SchedulerConfig
from simulator.bounds import (
    Job,
    Limits,
    StepFloor,
    bounds,
    busy_until,
    srpt_latency,
    volume,
    volume_bound,
)
from simulator.costs import IntegerCosts

#: a step takes 10 ns whatever is in it
STEPS = {"prefill": (StepFloor(10, 0, 0),), "decode": (StepFloor(10, 0, 0),)}
WIDE = Limits(rows=1000, kv_tokens=1_000_000)


def test_volume_adds_up_what_is_held_a_token_at_a_time() -> None:
    assert volume(3, 4) == 3 + 4 + 5 + 6
    # with s = p - 1 it is the paper's s o + o (o + 1) / 2
    assert volume(3, 4) == 2 * 4 + 4 * 5 // 2


def test_srpt_preempts_for_a_shorter_job() -> None:
    # 0-2 the long one, 2-3 the short one, 3-11 the rest of the long one
    assert srpt_latency([0, 2], [10, 1]) == 11 + 1
    # not for one that has more left than the one in service
    assert srpt_latency([0, 2], [10, 9]) == 10 + (19 - 2)
    assert srpt_latency([5, 0], [1, 2]) == 1 + 2


def test_no_slot_by_slot_schedule_of_one_machine_beats_srpt() -> None:
    rng = Random(5)
    for _ in range(25):
        releases = [rng.randrange(3) for _ in range(3)]
        work = [rng.randrange(1, 3) for _ in range(3)]
        totals = []
        for slots in product(range(3), repeat=busy_until(releases, work)):
            served = [[t for t, slot in enumerate(slots) if slot == job and t >= releases[job]] for job in range(3)]
            if all(len(times) >= amount for times, amount in zip(served, work, strict=True)):
                totals.append(sum(served[job][work[job] - 1] + 1 - releases[job] for job in range(3)))
        assert srpt_latency(releases, work) == min(totals)


def test_srpt_of_jobs_that_are_all_there_is_shortest_first() -> None:
    work = [7, 3, 5, 1]
    orders = [sum(sum(order[: i + 1]) for i in range(4)) for order in permutations(work)]
    assert srpt_latency([0] * 4, work) == min(orders)


def test_the_makespan_waits_for_arrivals() -> None:
    assert busy_until([0, 10], [3, 4]) == 14
    assert busy_until([0, 1], [3, 4]) == 7


def test_volume_bound_by_hand() -> None:
    # volumes 3 and 1, memory 2, steps of 10 ns: 5 ns for the short one, 15 for the other, 20 in all
    assert volume_bound([Job(0, 3, 1), Job(0, 1, 1)], kv_tokens=2, step_ns=10) == 5 + 20


def test_a_lone_request_takes_a_step_a_token() -> None:
    found = bounds([Job(7, 3, 4)], STEPS, WIDE)
    assert found.mean_latency == (40, "alone")
    assert found.makespan == (40, "alone")
    assert found.output_tokens_per_s == pytest.approx(4 / 40e-9)


def test_rows_bind_where_a_step_takes_few() -> None:
    # eight requests of 2 tokens, two rows a step: 8 steps; shortest first ends two every 2 steps
    found = bounds([Job(0, 1, 2)] * 8, STEPS, Limits(rows=2, kv_tokens=1000))
    assert found.makespan == (80, "rows")
    assert found.mean_latency == ((10 + 20 + 30 + 40 + 50 + 60 + 70 + 80) / 8, "rows")


def test_memory_binds_where_it_holds_few_and_not_under_a_prefix_cache() -> None:
    jobs = [Job(0, 9, 2)] * 4
    tight = Limits(rows=100, kv_tokens=10)
    assert bounds(jobs, STEPS, tight).makespan == (4 * 19, "memory")
    assert bounds(jobs, STEPS, Limits(100, 10, shared_prefixes=True)).makespan == (20, "alone")


def test_prompt_tokens_and_columns_take_their_time() -> None:
    floors = IntegerCosts(step_ns=10, row_ns=2, token_ns=3, column_ns=1).floors("paged")
    # prefill 10 + 3 * 5 + 5; then two decode steps of 10 + 2 + context 6 and 7
    found = bounds([Job(0, 5, 3)], floors, WIDE)
    assert found.makespan.ns == (10 + 15 + 5) + (10 + 2 + 6) + (10 + 2 + 7)


def test_limits_are_those_of_the_scheduler() -> None:
    config = SchedulerConfig(max_running=8, max_rows=4, kv_tokens=100, block_tokens=16)
    assert Limits.of(config) == Limits(rows=4, kv_tokens=96)


def test_no_request_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bounds([], STEPS, WIDE)
