"""Fits of steps that cost what they do on a GPU: graphs, weights that bind, launches, attention."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.graphs import graph_rows_for, graph_sizes
from simulator.fits import CANDIDATES, FEWEST_STEPS, LINEAR, MOST_ALIKE, STALL, fit
from simulator.step_cost import COST_COLUMNS, Line, axis

SIZES = graph_sizes(256)


def table(steps: list[dict[str, int]]) -> Any:
    columns = (*COST_COLUMNS, "graph_rows")
    return SimpleNamespace(**{name: np.array([step.get(name, 0) for step in steps]) for name in columns})


def decode(rng: Random, rows: int, context: int, sizes: tuple[int, ...] = SIZES) -> dict[str, int]:
    lengths = [max(1, round(context * rng.uniform(0.5, 1.5))) for _ in range(rows)]
    graph = graph_rows_for(rows, sizes)
    return {
        "rows_computed": graph or rows, "new_tokens_computed": graph or rows, "graph_rows": graph, "decode_rows": rows,
        "kv_columns_computed": sum(lengths) + max(graph - rows, 0), "kv_tokens_read": sum(lengths),
        "longest_context": max(lengths), "decode_context_tokens": sum(lengths),
    }  # fmt: skip


def gpu_decode_ns(step: dict[str, int]) -> float:
    """Weights of a 7B model once; wider tiles from 64 and 128 rows on; KV at a bandwidth that grows with the rows."""
    rows = step["rows_computed"]
    products = 5.2e6 + 4e3 * rows + 0.4e6 * (rows > 64) + 0.9e6 * (rows > 128)
    bandwidth = 2.4e12 + 0.55e12 * min(1.0, rows / 64)
    return products + step["kv_columns_computed"] * 0.524e6 / bandwidth * 1e9 + 15.0 * step["longest_context"]


def recorded_decodes(noise: float, rng: Random) -> tuple[list[dict[str, int]], np.ndarray]:
    """As a recording sweeps: of each context ever fewer rows, a few steps of each, within a memory of 100,000."""
    steps = []
    for context in (64, 256, 1024, 4096, 16_384):
        most = min(256, int(80_000 / context))
        for size in reversed(graph_sizes(max(most, 1))):
            steps += [decode(rng, size, context) for _ in range(4)]
    times = [gpu_decode_ns(step) * rng.uniform(1 - noise, 1 + noise) for step in steps]
    return steps, np.array(times)


def test_decode_steps_of_a_gpu_are_predicted_within_a_few_percent() -> None:
    rng = Random(1)
    steps, times = recorded_decodes(0.01, rng)
    cost = fit("decode", table(steps), times)
    assert cost.quality.held_out is not None
    assert cost.quality.held_out < 0.03
    for rows, context in ((5, 700), (16, 512), (37, 900), (100, 300), (200, 200), (250, 310)):
        step = decode(rng, rows, context)
        predicted = float(cost.totals(table([step]))[0])
        assert predicted == pytest.approx(gpu_decode_ns(step), rel=0.05), (rows, context)


def test_each_graph_has_a_knot_and_between_them_nothing_is_smoothed() -> None:
    steps, times = recorded_decodes(0.0, Random(2))
    cost = fit("decode", table(steps), times)
    assert set(cost.line.knots) == {step["rows_computed"] for step in steps}
    assert cost.line.at(144) - cost.line.at(128) > 0.8e6


@pytest.mark.parametrize("kind", ["prefill", "mixed"])
def test_graphs_of_prompts_have_knots_of_their_own_too(kind: str) -> None:
    """Products take as long as their tiles: 640 tokens what 768 take, and 896 much less than 1,024."""
    rng = Random(15)
    took_ns = {256: 1.5e6, 512: 1.6e6, 640: 1.9e6, 768: 1.9e6, 896: 2.0e6, 1024: 2.4e6, 2048: 3.6e6}
    steps, times = [], []
    for graph, count in [*((size, 12) for size in took_ns), (2048, 400)]:
        for _ in range(count):
            step = {**prefill(rng, graph, 1, rng.randint(0, 4000)), "graph_rows": graph}
            step["decode_rows"] = 0 if kind == "prefill" else rng.randint(1, 40)
            steps.append(step)
            times.append((took_ns[graph] + 200.0 * step["kv_tokens_read"]) * rng.uniform(0.99, 1.01))
    # and where others are longer than any graph
    eager = [prefill(rng, tokens, 1, 0) for tokens in (3000, 4000) for _ in range(5)]
    slow = [2e3 * step["new_tokens_computed"] for step in eager]
    for more, ns in (([], []), (eager, slow)):
        cost = fit(kind, table([*steps, *more]), np.array(times + ns))
        for graph, graph_ns in took_ns.items():
            step = {**prefill(rng, graph, 1, 500), "graph_rows": graph}
            expected = graph_ns + 200.0 * step["kv_tokens_read"]
            assert float(cost.totals(table([step]))[0]) == pytest.approx(expected, rel=0.03), graph


def cut_decode_ns(step: dict[str, int]) -> float:
    """Contexts are cut into the more parts the fewer rows there are, and read the faster the more rows there are."""
    rows, longest = step["rows_computed"], step["longest_context"]
    token_ns = 300.0 if rows <= 4 else 140.0 if rows <= 32 else 90.0
    parts_ns = 400.0 * min(longest, 2048) / rows + 200.0 * min(longest, 512)
    return 2e6 + 4e3 * rows + token_ns * step["kv_columns_computed"] + parts_ns


def test_groups_of_rows_have_weights_of_their_own_where_each_has_met_long_contexts() -> None:
    rng = Random(11)
    steps = [
        decode(rng, size, context)
        for context in (64, 256, 1024, 2048)
        for size in SIZES
        for _ in range(6)
    ]  # fmt: skip
    times = np.array([cut_decode_ns(step) * rng.uniform(0.99, 1.01) for step in steps])
    cost = fit("decode", table(steps), times)
    assert cost.form == "grouped"
    plain = fit("decode", table(steps), times, CANDIDATES[:2])
    assert cost.quality.held_out is not None
    assert plain.quality.held_out is not None
    assert cost.quality.held_out < 0.7 * plain.quality.held_out
    for rows, context in ((2, 1500), (20, 700), (90, 900), (200, 1200)):
        step = decode(rng, rows, context)
        assert float(cost.totals(table([step]))[0]) == pytest.approx(cut_decode_ns(step), rel=0.05), (rows, context)
        assert cost.total(SimpleNamespace(**{name: step.get(name, 0) for name in (*COST_COLUMNS, "graph_rows")})) == (
            pytest.approx(float(cost.totals(table([step]))[0]))
        )
    # of many rows only short contexts: what a token of theirs takes would be a guess
    met = [place for place, step in enumerate(steps) if step["rows_computed"] <= 64 or step["longest_context"] < 600]
    assert fit("decode", table([steps[place] for place in met]), times[met]).form != "grouped"


def test_of_decode_steps_alike_a_few_count() -> None:
    """Or thousands of one sort, of a slow minute, would bend the fit for all others."""
    steps, times = recorded_decodes(0.0, Random(12))
    alone = decode(Random(13), 16, 4096)
    crowd, took = [*steps, *[alone] * 3000], np.concatenate([times, np.full(3000, 1.3 * gpu_decode_ns(alone))])
    fair = fit("decode", table(crowd), took, (LINEAR,))
    bent = fit("decode", table(crowd), took, (LINEAR,), most_alike=10_000)
    off, more = (
        np.abs(cost.totals(table(steps)) - times).mean() / times.mean() for cost in (fair, bent)
    )  # fmt: skip
    assert off < 0.9 * more
    assert fair.quality.steps == len(crowd)
    assert fit("decode", table(steps[:MOST_ALIKE]), times[:MOST_ALIKE]).quality.steps == MOST_ALIKE


def test_mixed_steps_that_are_no_graphs_have_a_fit_of_their_own() -> None:
    rng = Random(14)
    steps, took = [], []
    for place in range(400):
        rows, tokens = rng.randint(1, 60), 16 * rng.randint(1, 120)
        graph = 0 if place % 8 == 0 else 2048
        step = {**prefill(rng, tokens, 1, 0), "decode_rows": rows, "decode_context_tokens": 300 * rows}
        step["rows_computed"] += rows
        step["new_tokens_computed"] += rows
        step["kv_columns_computed"] += 300 * rows
        step["kv_tokens_read"] += 300 * rows
        step["longest_decode_context"], step["graph_rows"] = 300, graph
        steps.append(step)
        work = 1.5e6 + 900.0 * step["new_tokens_computed"] + 8.0 * step["decode_context_tokens"]
        took.append((work if graph else max(work, 11e6)) * rng.uniform(0.98, 1.02))
    cost = fit("mixed", table(steps), np.array(took))
    assert cost.eager is not None
    assert cost.quality.held_out is not None
    assert cost.quality.held_out < 0.03
    predicted = cost.totals(table(steps))
    assert predicted == pytest.approx(np.array(took), rel=0.1)
    one = {name: steps[0].get(name, 0) for name in (*COST_COLUMNS, "graph_rows")}
    assert cost.total(SimpleNamespace(**one)) == pytest.approx(predicted[0])
    for floor in cost.floors():
        assert floor.step_ns <= 2e6
    # where they take what graphs do, there is one fit for both
    same = [time for time, step in zip(took, steps, strict=True) if step["graph_rows"]]
    both = [{**step, "graph_rows": place % 2} for place, step in enumerate(s for s in steps if s["graph_rows"])]
    assert fit("mixed", table(both), np.array(same)).eager is None


def prefill(rng: Random, tokens: int, chunks: int, start: int) -> dict[str, int]:
    each = [max(1, tokens // chunks)] * chunks
    starts = [round(start * rng.uniform(0.5, 1.0)) for _ in each]
    pairs = sum(n * s + n * (n + 1) // 2 for n, s in zip(each, starts, strict=True))
    return {
        "rows_computed": chunks, "new_tokens_computed": sum(each), "kv_columns_computed": pairs,
        "kv_tokens_read": sum(n + s for n, s in zip(each, starts, strict=True)),
        "longest_context": max(n + s for n, s in zip(each, starts, strict=True)),
    }  # fmt: skip


def gpu_prefill_ns(step: dict[str, int]) -> float:
    """Launches, then weights, then operations bind; attention by its operations; something for each chunk."""
    products = max(9e6, 24e3 * step["new_tokens_computed"])
    return products + 1.3 * step["kv_columns_computed"] + 180.0 * step["kv_tokens_read"] + 20e3 * step["rows_computed"]


def test_prefill_steps_are_flat_then_linear_with_attention_on_top() -> None:
    rng = Random(3)
    sizes = [16 << power for power in range(8)]
    steps = [prefill(rng, size, chunks, 0) for size in sizes for chunks in (1, 4) for _ in range(3)]
    steps += [prefill(rng, size, 1, start) for size in sizes for start in (2048, 8192, 24_576) for _ in range(2)]
    times = np.array([gpu_prefill_ns(step) * rng.uniform(0.98, 1.02) for step in steps])
    cost = fit("prefill", table(steps), times)
    assert cost.quality.held_out is not None
    assert cost.quality.held_out < 0.04
    assert cost.line.at(128) == pytest.approx(cost.line.at(32), rel=0.05)
    for tokens, chunks, start in ((100, 1, 0), (1500, 3, 0), (2000, 1, 16_000), (300, 1, 10_000)):
        step = prefill(rng, tokens, chunks, start)
        assert float(cost.totals(table([step]))[0]) == pytest.approx(gpu_prefill_ns(step), rel=0.08)


def test_a_stall_counts_in_the_sum_and_not_in_the_shape() -> None:
    steps, times = recorded_decodes(0.005, Random(4))
    stalled = times.copy()
    stalled[::40] *= 8
    calm, shaken = fit("decode", table(steps), times), fit("decode", table(steps), stalled)
    assert shaken.totals(table(steps)).sum() == pytest.approx(stalled.sum(), rel=1e-6)
    share = shaken.totals(table(steps)) / calm.totals(table(steps))
    assert share == pytest.approx(np.full(len(steps), stalled.sum() / times.sum()), rel=0.1)
    assert np.median(share) == pytest.approx(stalled.sum() / times.sum(), rel=0.02)
    # as often as they were recorded, they come back with --jitter
    assert max(shaken.quality.spread) > 4
    assert np.mean(shaken.quality.spread) == pytest.approx(1)


def test_a_step_that_was_interrupted_has_no_part_in_the_fit_and_is_counted() -> None:
    steps, times = recorded_decodes(0.005, Random(4))
    cut = times.copy()
    cut[[50, 90]] *= 30
    calm, shaken = fit("decode", table(steps), times), fit("decode", table(steps), cut)
    assert shaken.totals(table(steps)) == pytest.approx(calm.totals(table(steps)), rel=0.02)
    assert shaken.quality.interruptions == 2
    assert shaken.quality.interrupted_ns == pytest.approx(cut[50] + cut[90])
    assert calm.quality.interruptions == 0


def launched_ns(step: dict[str, int]) -> float:
    """A prefill whose kernels take 14 ms to launch, whatever they do."""
    return max(14e6, 2e6 + 20e3 * step["new_tokens_computed"] + 1.3 * step["kv_columns_computed"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_floor_and_what_goes_beyond_it_are_told_apart(seed: int, noise: float) -> None:
    rng = Random(seed)
    steps = [prefill(rng, rng.randint(16, 2048), rng.randint(1, 4), rng.choice((0, 0, 1000, 6000))) for _ in range(300)]
    times = np.array([launched_ns(step) * rng.uniform(1 - noise, 1 + noise) for step in steps])
    cost = fit("prefill", table(steps), times)
    assert cost.form == "floored"
    assert cost.floor == pytest.approx(14e6, rel=0.01)
    assert cost.quality.bias == pytest.approx(0, abs=0.01)
    new = [prefill(rng, tokens, 1, start) for tokens in (20, 300, 600, 900, 1800) for start in (0, 2000, 5000)]
    true = np.array([launched_ns(step) for step in new])
    predicted = cost.totals(table(new))
    assert predicted.sum() == pytest.approx(true.sum(), rel=0.01)
    assert predicted == pytest.approx(true, rel=0.05)


def test_a_form_is_taken_only_where_it_errs_less() -> None:
    rng = Random(8)
    steps = [prefill(rng, rng.randint(16, 2048), rng.randint(1, 4), 0) for _ in range(200)]
    times = np.array([3e6 + 20e3 * step["new_tokens_computed"] for step in steps])
    assert fit("prefill", table(steps), times * [rng.uniform(0.97, 1.03) for _ in steps]).form == "linear"
    assert fit("prefill", table(steps), times, (LINEAR,)).form == "linear"


def straggling_ns(step: dict[str, int]) -> float:
    """A device of 16 rows at a time."""
    at_a_time = min(16, step["rows_computed"])
    return 4e6 + 60.0 * max(step["kv_columns_computed"], at_a_time * step["longest_context"])


def test_rows_wait_for_the_longest_one() -> None:
    rng = Random(9)
    steps = []
    for _ in range(400):
        rows, context, longest = rng.choice(SIZES[:12]), rng.randint(50, 900), rng.choice((1, 1, 12))
        lengths = [round(context * rng.uniform(0.5, 1.5)) for _ in range(rows - 1)] + [context * longest]
        steps.append({
            "rows_computed": rows, "new_tokens_computed": rows, "graph_rows": rows, "decode_rows": rows,
            "kv_columns_computed": sum(lengths), "kv_tokens_read": sum(lengths), "longest_context": max(lengths),
            "longest_decode_context": max(lengths), "decode_context_tokens": sum(lengths),
        })  # fmt: skip
    times = np.array([straggling_ns(step) * rng.uniform(0.99, 1.01) for step in steps])
    cost = fit("decode", table(steps), times)
    assert cost.form == "filled"
    assert cost.quality.held_out is not None
    assert cost.quality.held_out < 0.02
    assert cost.weights["fill_16"] == pytest.approx(60, rel=0.1)


def test_kv_that_several_rows_read_costs_less_than_as_much_of_their_own() -> None:
    rng = Random(11)
    steps = [decode(rng, rows, rng.randint(100, 900), ()) for rows in SIZES[:12] for _ in range(30)]
    for step in steps:
        step["shared_kv_tokens"] = round(rng.choice((0.0, 0.0, 0.5, 0.8)) * step["kv_tokens_read"])
    work = [5e6 + 60.0 * step["kv_columns_computed"] + 100.0 * (step["kv_columns_computed"] - step["shared_kv_tokens"])
            for step in steps]  # fmt: skip
    cost = fit("decode", table(steps), np.array(work))
    assert cost.weights["kv_columns"] == pytest.approx(60, rel=0.02)
    assert cost.weights["own_kv"] == pytest.approx(100, rel=0.02)
    floor, *_ = cost.floors()
    assert floor.own_ns == cost.weights["own_kv"]
    assert floor.column_ns == pytest.approx(cost.weights["kv_columns"])
    # where none was recorded the two are one
    plain = [{**step, "shared_kv_tokens": 0} for step in steps]
    cost = fit("decode", table(plain), np.array([5e6 + 160.0 * step["kv_columns_computed"] for step in plain]))
    assert "own_kv" not in cost.weights
    assert cost.weights["kv_columns"] == pytest.approx(160, rel=0.02)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(("prefill", "decode", "mixed")),
    st.integers(0, 1000),
    st.lists(st.integers(0, 3000), min_size=10, max_size=10),
    st.lists(st.integers(0, 3000), min_size=10, max_size=10),
)
def test_more_work_never_costs_less_and_no_step_is_below_its_floors(
    kind: str, seed: int, least: list[int], more: list[int]
) -> None:
    """Among as many rows and tokens, of prompts and of those that decode."""
    cost = fit(kind, *noisy_steps(kind, seed))
    # decode rows and their contexts are part of the rows and columns of a mixed step
    more = [0 if place in (0, 1, 5) else amount for place, amount in enumerate(more)]
    small, large = least[:], [a + b for a, b in zip(least, more, strict=True)]
    for values in (small, large):
        values[0] += values[5]
        values[2] += values[6] + values[3]
        values[3] += values[6]
    small[9], large[9] = large[9], small[9]
    one, other = (
        SimpleNamespace(**dict(zip(COST_COLUMNS, values, strict=True)), graph_rows=0) for values in (small, large)
    )
    parts = [(large[i] - large[j]) >= (small[i] - small[j]) for i, j in ((0, 5), (2, 6), (3, 6))]
    if kind != "mixed" or all(parts):
        assert cost.total(one) <= cost.total(other) * (1 + 1e-12)
    tokens = small[1]
    for floor in cost.floors():
        own = max(0, one.kv_tokens_read - one.shared_kv_tokens)
        low = floor.step_ns + floor.token_ns * tokens + floor.column_ns * one.kv_tokens_read + floor.own_ns * own
        if axis(kind, one) >= tokens:
            assert low <= cost.total(one) * (1 + 1e-12) + 1


def noisy_steps(kind: str, seed: int) -> tuple[Any, np.ndarray]:
    """Steps of every feature at random, with times that hang on some of them."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, 1000, 80) for name in COST_COLUMNS}
    columns["rows_computed"] = columns["decode_rows"] + rng.integers(1, 50, 80)
    columns["new_tokens_computed"] = columns["new_tokens_computed"] + 1
    columns["kv_tokens_read"] = columns["kv_tokens_read"] + columns["decode_context_tokens"]
    columns["kv_columns_computed"] = columns["kv_columns_computed"] + columns["kv_tokens_read"]
    weights = rng.choice((0.0, 1.0, 30.0), len(COST_COLUMNS))
    work = sum(weight * columns[name] for weight, name in zip(weights, COST_COLUMNS, strict=True)) + 100.0
    times = np.maximum(work, rng.choice((0.0, 2.0)) * work.mean()) * rng.uniform(0.7, 1.4, 80)
    return SimpleNamespace(**columns, graph_rows=np.zeros(80, dtype=np.int64)), times


def test_more_never_costs_less_even_where_steps_say_so() -> None:
    steps, times = recorded_decodes(0.0, Random(5))
    cost = fit("decode", table(steps), 3e7 - times)
    assert all(a <= b for a, b in pairwise(cost.line.values))
    assert all(weight >= 0 for weight in cost.weights.values())
    assert cost.line.beyond >= 0


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_no_step_is_faster_than_the_floors(kind: str) -> None:
    rng = Random(6)
    if kind == "decode":
        steps, times = recorded_decodes(0.05, rng)
    else:
        steps = [prefill(rng, rng.randint(16, 2048), rng.randint(1, 4), rng.choice((0, 3000))) for _ in range(80)]
        times = np.array([gpu_prefill_ns(step) for step in steps])
    cost = fit(kind, table(steps), times)
    more = steps + [decode(rng, rows, 900, ()) for rows in (1, 3, 300, 5000) if kind == "decode"]
    for step, total in zip(more, cost.totals(table(more)), strict=True):
        for floor in cost.floors():
            tokens = step["new_tokens_computed"]
            least = floor.step_ns + floor.token_ns * tokens + floor.column_ns * step["kv_tokens_read"]
            assert least <= total + 1


def test_few_steps_make_a_plain_line() -> None:
    rng = Random(7)
    steps = [decode(rng, rows, 500, ()) for rows in (1, 5, 9)]
    times = np.array([1e6 + 1e5 * step["rows_computed"] for step in steps])
    cost = fit("decode", table(steps), times)
    assert cost.quality.steps == FEWEST_STEPS
    assert cost.quality.held_out is None
    assert len(cost.line.knots) <= 2
    assert cost.quality.error < 0.05


def test_a_line_goes_on_as_its_upper_half_did() -> None:
    line = Line((1.0, 2.0, 10.0), (5.0, 5.0, 21.0), 2.0)
    assert [line.at(x) for x in (0, 1, 1.5, 2, 6, 10, 14)] == [5, 5, 5, 5, 13, 21, 29]
    assert all(intercept + slope * x <= line.at(x) + 1e-9 for intercept, slope in line.floors() for x in range(1, 60))


def test_stalls_are_known_apart_from_what_the_others_take() -> None:
    rng = Random(12)
    steps = [decode(rng, rows, 500, ()) for rows in (2, 4, 8, 16) for _ in range(50)]
    usual = np.array([5e5 + 2e4 * step["rows_computed"] for step in steps])
    away = np.array([(n % 50 == 7) * (4e6 if n < 100 else 9e6) + (n == 11) * 5e8 for n in range(200)])
    cost = fit("decode", table(steps), usual + away, interruption=STALL)
    assert cost.totals(table(steps)) == pytest.approx(usual, rel=1e-6)
    assert cost.quality.interruptions == 5
    # of half a second, which is no stall, nothing is said
    assert cost.quality.stalled == 4 / 200
    assert cost.quality.stalls == pytest.approx((4e6, 4e6, 9e6, 9e6), rel=1e-6)
    assert cost.quality.spread[-1] == pytest.approx(1.0)
