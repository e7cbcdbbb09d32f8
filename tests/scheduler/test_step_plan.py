"""What a plan says of its steps: the columns of a stretch, and the counters' closed forms, against single steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import examples

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.plan import Layout, StepFeatures, StepOutcome, iter_sampled
from scheduler.request import Request
from scheduler.scheduler import Scheduler


def decode_features(layout: Layout, lengths: list[int], dead_rows: int) -> StepFeatures:
    """A decode step of sequences with these many known tokens, in a layout that computes some dead rows."""
    rows = len(lengths)
    computed = rows + (dead_rows if layout == "padded" else 0)
    return StepFeatures(
        layout=layout,
        kind="decode",
        rows=rows,
        rows_computed=computed,
        new_tokens=rows,
        new_tokens_computed=computed,
        context_tokens=sum(lengths),
        kv_columns_computed=computed * max(lengths) if layout == "padded" else sum(lengths),
        kv_tokens_read=sum(lengths),
        longest_context=max(lengths),
        blocks_touched=rows,
        sampled_rows=rows,
    )


layouts = st.sampled_from(("paged", "padded"))
lengths_of_rows = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


@examples(60)
@given(layouts, lengths_of_rows, st.integers(0, 3), st.integers(1, 40))
def test_counting_a_stretch_is_counting_its_steps(layout: Layout, lengths: list[int], dead: int, steps: int) -> None:
    at_once, one_by_one = RunCounters(), RunCounters()
    at_once.add_steps(decode_features(layout, lengths, dead), steps)
    for step in range(steps):
        one_by_one.add_steps(decode_features(layout, [length + step for length in lengths], dead), 1)
    assert asdict(at_once) == asdict(one_by_one)


def scheduled(policy: str, layout: Layout, prompts: list[int], **settings: Any) -> Scheduler:
    scheduler = Scheduler(SchedulerConfig.from_dict({"policy": policy, "layout": layout, **settings}))
    for number, prompt in enumerate(prompts):
        scheduler.submit(Request(f"r{number}", 0, prompt, max_tokens=30), 0)
    return scheduler


def prefilled(scheduler: Scheduler) -> int:
    """Runs the prefills; returns the time."""
    now = 0
    while scheduler.waiting:
        plan = scheduler.next_step(now)
        assert plan is not None
        now += 10
        scheduler.complete(plan, StepOutcome([now], 10, 0), now)
    return now


@pytest.mark.parametrize("layout", ["paged", "padded"])
@pytest.mark.parametrize("prompts", [[7], [3, 9, 14], [5, 5, 20, 1]])
def test_columns_are_the_features_of_the_single_steps(layout: Layout, prompts: list[int]) -> None:
    stretch, single = (scheduled("fcfs", layout, prompts) for _ in range(2))
    now = prefilled(stretch)
    prefilled(single)
    plan = stretch.next_step(now, 20)
    assert plan is not None
    assert plan.repeat == 20
    columns = plan.columns()
    assert columns.repeat == 20
    for step in range(20):
        alone = single.next_step(now)
        assert alone is not None
        expected = alone.features
        for name in columns._fields:
            if name == "repeat":
                continue
            value = getattr(columns, name)
            assert (value[step] if isinstance(value, np.ndarray) else value) == getattr(expected, name), name
        part = plan.columns(step, step + 1)
        assert part.repeat == 1
        assert part.kv_tokens_read == expected.kv_tokens_read
        single.complete(alone, StepOutcome([now], 0, 0), now)


def test_columns_of_part_of_a_stretch_are_a_slice() -> None:
    scheduler = scheduled("fcfs", "padded", [3, 9])
    plan = scheduler.next_step(prefilled(scheduler), 10)
    assert plan is not None
    whole, part = plan.columns(), plan.columns(4, 7)
    assert part.repeat == 3
    for name in ("context_tokens", "kv_columns_computed", "kv_tokens_read", "longest_context"):
        assert list(getattr(part, name)) == list(getattr(whole, name)[4:7])


def test_padded_prefill_features() -> None:
    """R x longest linear slots and R x longest x longest end attention slots, against sum n and sum n (n + 1) / 2."""
    plan = scheduled("fcfs", "padded", [3, 9, 5]).next_step(0)
    assert plan is not None
    f = plan.features
    assert (f.rows, f.new_tokens, f.new_tokens_computed) == (3, 17, 27)
    assert (f.context_tokens, f.kv_columns_computed) == (6 + 45 + 15, 3 * 9 * 9)
    assert (f.kv_tokens_read, f.longest_context, f.sampled_rows) == (17, 9, 3)


def test_paged_prefill_features() -> None:
    plan = scheduled("fcfs", "paged", [3, 9, 5], block_tokens=4).next_step(0)
    assert plan is not None
    f = plan.features
    assert (f.new_tokens_computed, f.kv_columns_computed) == (17, 66)
    assert f.blocks_touched == 1 + 3 + 2


def test_features_of_a_later_chunk() -> None:
    """Chunk of n tokens from s on: n s + n (n + 1) / 2 attention slots. It samples only at the prompt's end."""
    scheduler = scheduled("fcfs", "padded", [10], max_prefill_tokens=4)
    seen = []
    for now in range(3):
        plan = scheduler.next_step(now)
        assert plan is not None
        f = plan.features
        seen.append((f.new_tokens, f.context_tokens, f.kv_columns_computed, f.sampled_rows, len([*iter_sampled(plan)])))
        scheduler.complete(plan, StepOutcome([now + 1], 1, 0), now + 1)
    assert seen == [(4, 10, 16, 0, 0), (4, 26, 32, 0, 0), (2, 19, 20, 1, 1)]


def test_a_closed_padded_batch_computes_its_dead_rows() -> None:
    """Static batching: when two of three have ended, a step still computes three rows."""
    scheduler = Scheduler(SchedulerConfig(policy="static", layout="padded"))
    for number, output in enumerate((2, 9, 2)):
        scheduler.submit(Request(f"r{number}", 0, 4, max_tokens=output), 0)
    now = prefilled(scheduler)
    seen = []
    for _ in range(2):
        plan = scheduler.next_step(now)
        assert plan is not None
        seen.append((plan.features.rows, plan.features.rows_computed, plan.features.kv_columns_computed))
        scheduler.complete(plan, StepOutcome([now], 0, 0), now)
    assert seen == [(3, 3, 15), (1, 3, 18)]
