"""Graph sizes, and what a plan says of a step that runs as a graph."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from scheduler.config import ConfigError, SchedulerConfig
from scheduler.graphs import (
    MOST_CHUNKS,
    graph_rows_for,
    graph_sizes,
    graph_tokens_for,
    prompt_graph_sizes,
    resized,
)
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.costs import IntegerCosts
from simulator.replica import simulate


@pytest.mark.parametrize("most", [1, 2, 3, 16, 17, 100, 256, 300, 2000])
def test_sizes_rise_to_the_most_rows(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes[-1] == most
    assert all(a < b for a, b in pairwise(sizes))
    for rows in range(1, most + 1):
        assert graph_rows_for(rows, sizes) == min(size for size in sizes if size >= rows)
    assert graph_rows_for(most + 1, sizes) == 0
    assert graph_rows_for(1, ()) == 0


def test_recorded_sizes_are_those_of_an_engine_for_other_rows() -> None:
    assert resized(graph_sizes(256), 100) == graph_sizes(100)
    assert resized(graph_sizes(16), 64) == graph_sizes(64)
    assert resized((3, 5, 40), 20) == (3, 5, 20)
    assert resized((), 20) == ()


@pytest.mark.parametrize("sizes", [(0, 1), (2, 2), (4, 1)])
def test_sizes_that_are_none_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="graph_rows must be numbers of rows >= 1"):
        SchedulerConfig(graph_rows=sizes)


def test_settings_come_back_from_json() -> None:
    config = SchedulerConfig(graph_rows=(1, 2, 4))
    assert SchedulerConfig.from_dict({**config.as_dict(), "graph_rows": [1, 2, 4]}) == config


def test_three_rows_run_as_a_graph_of_four() -> None:
    scheduler = Scheduler(SchedulerConfig(graph_rows=(1, 2, 4, 8), max_running=8))
    for place in range(3):
        scheduler.submit(Request(f"r{place}", 0, 10, 9, 9), 0)
    prefill = scheduler.next_step(0)
    assert prefill is not None
    assert prefill.features.graph_rows == 0
    scheduler.complete(prefill, StepOutcome([10], 10, 0), 10)
    plan = scheduler.next_step(10, 100)
    assert plan is not None
    f = plan.features
    assert (f.rows, f.graph_rows, f.rows_computed, f.new_tokens, f.new_tokens_computed) == (3, 4, 4, 3, 4)
    # 11 tokens in each row, and one column of the row that fills the graph up
    assert (f.context_tokens, f.kv_columns_computed, f.kv_tokens_read) == (33, 34, 33)
    columns = plan.columns()
    assert (columns.repeat, columns.graph_rows) == (8, 4)
    assert np.array_equal(columns.kv_columns_computed, 34 + 3 * np.arange(8))


def test_graphs_change_what_is_computed_and_no_plan() -> None:
    requests = [Request(f"r{place}", 0, 5 + place, 4 + 3 * place, 4 + 3 * place) for place in range(7)]
    plain = simulate(requests, Scheduler(SchedulerConfig()), IntegerCosts())
    filled = simulate(requests, Scheduler(SchedulerConfig(graph_rows=(4, 8))), IntegerCosts())
    assert filled.digest.hexdigest() == plain.digest.hexdigest()
    assert plain.counters.graph_rows == plain.counters.graph_rows_used == 0
    counters = filled.counters

    rows = [sum(4 + 3 * place > step for place in range(7)) for step in range(1, 22)]
    assert counters.graph_rows_used == sum(rows)
    assert counters.graph_rows == sum(8 if count > 4 else 4 for count in rows)
    assert counters.decode_rows_computed == counters.linear_computed_decode == counters.graph_rows
    extra = counters.graph_rows - counters.graph_rows_used
    assert counters.attention_computed_decode - counters.attention_useful_decode == extra


def test_steps_of_prompts_run_as_the_next_larger_graph_with_room_for_their_chunks() -> None:
    sizes = prompt_graph_sizes(2048)
    assert sizes[0] == 16
    assert sizes[-1] == 2048
    assert all(size % 16 == 0 for size in sizes)
    assert prompt_graph_sizes(100) == (16, 32, 64, 96)
    assert prompt_graph_sizes(3) == ()
    assert graph_tokens_for(65, 1, sizes) == 96
    assert graph_tokens_for(96, MOST_CHUNKS, sizes) == 96
    assert graph_tokens_for(96, MOST_CHUNKS + 1, sizes) == 0
    assert graph_tokens_for(2049, 1, sizes) == 0


def test_what_fills_up_a_graph_of_prompts_is_computed_and_counted() -> None:
    """And so in a step that mixes prompts and decode rows, if there are graphs of such."""
    requests = [Request(str(number), 0, 20 + number, 30, 5) for number in range(3)]
    scheduler = Scheduler(SchedulerConfig(graph_tokens=(64, 128), max_running=8))
    for request in requests:
        scheduler.submit(request, 0)
    plan = scheduler.next_step(0)
    assert plan is not None
    f = plan.features
    assert (f.kind, f.rows, f.rows_computed, f.new_tokens, f.new_tokens_computed, f.graph_rows) == (
        "prefill", 3, 3, 63, 64, 64,
    )  # fmt: skip
    assert f.kv_columns_computed == f.context_tokens
    counters = simulate(requests, Scheduler(SchedulerConfig(graph_tokens=(64, 128))), IntegerCosts()).counters
    assert (counters.graph_rows, counters.graph_rows_used) == (64, 63)
    assert (counters.linear_useful_prefill, counters.linear_computed_prefill) == (63, 64)
    mixed = SchedulerConfig(graph_tokens=(64, 128), phase="mixed", chunk_tokens=24)
    steps = Steps()
    simulate(requests, Scheduler(mixed, steps), IntegerCosts())
    assert {kind: sizes for kind, sizes in steps.graphs.items() if kind != "decode"} == {"prefill": {64}, "mixed": {0}}
    steps = Steps()
    scheduler = Scheduler(replace(mixed, graph_mixed=(16, 32)), steps)
    counters = simulate(requests, scheduler, IntegerCosts()).counters
    assert steps.graphs["mixed"] == {32}
    assert counters.steps_mixed
    assert counters.graph_rows > counters.graph_rows_used


def test_a_graph_of_a_mixed_step_has_room_for_16_chunks_beside_rows() -> None:
    """Of which a chunk of one token behind others is one."""
    config = SchedulerConfig(graph_mixed=(64,), phase="mixed", chunk_tokens=64, max_running=40, block_tokens=1)
    for chunks, graph in ((16, 64), (17, 0)):
        scheduler = Scheduler(config)
        scheduler.submit(Request("row", 0, 1, 9), 0)
        first = scheduler.next_step(0)
        assert first is not None
        scheduler.complete(first, StepOutcome([1], 1, 0), 1)
        for number in range(chunks):
            scheduler.submit(Request(str(number), 1, 2, 9), 1)
        plan = scheduler.next_step(1)
        assert plan is not None
        f = plan.features
        assert (f.kind, f.rows, f.decode_rows, f.new_tokens) == ("mixed", chunks + 1, 1, 2 * chunks + 1)
        assert (f.graph_rows, f.new_tokens_computed) == (graph, graph or f.new_tokens)
        assert f.rows_computed == f.rows


class Steps:
    """An observer that keeps the graphs that steps of each kind ran as."""

    def __init__(self) -> None:
        self.graphs: dict[str, set[int]] = {}

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.graphs.setdefault(plan.kind, set()).add(plan.features.graph_rows)

    def gaps(self, gap_ns: Any, weight: int) -> None: ...

    def ended(self, sequence: Sequence) -> None: ...
