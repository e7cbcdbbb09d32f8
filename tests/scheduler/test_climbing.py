"""A bucket whose members leave it together goes on as the next one, in one stretch, until that one is taken."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler

MANY = 1 << 30


def stretch_of(*lengths: int, output: int = 100, **settings: Any) -> tuple[StepPlan, list[int]]:
    """The first stretch of sequences of those known lengths, and the lengths after it; buckets of 8."""
    given = {"policy": "sjf-bucket", "bucket": 8, **settings}
    scheduler = Scheduler(SchedulerConfig.from_dict(given))
    sequences = [
        scheduler.submit(Request(f"r{number}", 0, length - 1, max_tokens=output), 0)
        for number, length in enumerate(lengths)
    ]
    now = 0
    while scheduler.waiting:
        plan = scheduler.next_step(now)
        assert plan is not None
        now += 1
        scheduler.complete(plan, StepOutcome([now], 1, 0), now)
    plan = scheduler.next_step(now, MANY)
    assert plan is not None
    assert plan.kind == "decode"
    ends = list(range(now + 1, now + 1 + plan.repeat))
    scheduler.complete(plan, StepOutcome(ends, plan.repeat, 0), ends[-1])
    return plan, [sequence.known for sequence in sequences]


@pytest.mark.parametrize("order", ["lowest", "fullest", "oldest"])
def test_one_alone_goes_on_through_the_buckets_to_its_end(order: str) -> None:
    plan, lengths = stretch_of(5, bucket_order=order)
    assert plan.repeat == 99
    assert lengths == [104]


def test_those_of_one_length_go_on_together_until_they_meet_others() -> None:
    """Known lengths 41 to 48 are a bucket: the two reach it with 41."""
    plan, lengths = stretch_of(5, 5, 45)
    assert (plan.features.rows, plan.repeat) == (2, 36)
    assert lengths == [41, 41, 45]


def test_those_of_different_lengths_part_at_the_end_of_their_bucket() -> None:
    plan, lengths = stretch_of(3, 6, 45)
    assert (plan.features.rows, plan.repeat) == (2, 3)
    assert lengths == [6, 9, 45]


@pytest.mark.parametrize(("bucket", "met"), [("edges:10,40,60", 41), ("pow2", 33), (50, 51)])
def test_any_buckets_are_climbed(bucket: str | int, met: int) -> None:
    _, lengths = stretch_of(5, 58, bucket=bucket)
    assert lengths == [met, 58]


def test_a_rank_that_follows_the_bucket_is_looked_at_in_each() -> None:
    plan, _ = stretch_of(5, 45, aging="linear", aging_weight=1.0)
    assert plan.repeat == 4
