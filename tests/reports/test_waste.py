from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade_runs import HandMade, every_part, four_requests, step

from reports.rows import read_steps
from reports.waste import counters_from_rows, digest_from_rows, time_waste
from scheduler.counters import RunCounters
from scheduler.plan import StepColumns


class Linear:
    """A nanosecond for each linear slot, two for each attention slot; sees only what a stretch's steps look like."""

    name, kv_tokens, context_tokens = "linear", None, None

    def device_ns(self, columns: StepColumns) -> np.ndarray:
        attention = 2 * np.asarray(columns.kv_columns_computed)
        return np.broadcast_to(columns.new_tokens_computed + attention, (columns.repeat,)).astype(np.int64)

    def host_ns(self, columns: StepColumns) -> np.ndarray:
        return np.zeros(columns.repeat, np.int64)


def test_counters_of_the_rows_are_those_of_the_scheduler(tmp_path: Path) -> None:
    made = four_requests(tmp_path / "run")
    made.step(2, 300, [310], layout="paged", rows=5, longest=20, shorter=3)
    run = made.close(report=False)
    rebuilt = counters_from_rows(run.requests, run.steps)
    for name in RunCounters.__dataclass_fields__:
        if not name.startswith(("kv_", "longest_")):
            assert getattr(rebuilt, name) == getattr(made.counters, name), name


def test_counters_of_mixed_steps_are_those_of_the_scheduler(tmp_path: Path) -> None:
    made = every_part(tmp_path / "run")
    run = made.close(report=False)
    rebuilt = counters_from_rows(run.requests, run.steps)
    in_no_row = ("kv_", "longest_", "prefix_query_", "wasted_")
    for name in RunCounters.__dataclass_fields__:
        if not name.startswith(in_no_row):
            assert getattr(rebuilt, name) == getattr(made.counters, name), name


def test_rows_that_fill_up_graphs_are_counted_and_are_waste_in_time(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    plan, outcome = step(0, 0, [10, 20], layout="paged", rows=5, longest=20, shorter=3)
    plain = plan.features
    plan.features = plain._replace(
        graph_rows=8, rows_computed=8, new_tokens_computed=8, kv_columns_computed=plain.kv_columns_computed + 3
    )
    made.ran(plan, outcome)
    made.step(1, 20, [30], layout="paged", rows=2, longest=9)
    run = made.close(report=False)
    assert run.summary["padding_waste"]["graph"] == 1 - 10 / 16
    assert run.summary["batch_occupancy"] == 12 / 18
    rebuilt = counters_from_rows(run.requests, run.steps)
    assert (rebuilt.graph_rows, rebuilt.graph_rows_used) == (16, 10)
    # 97 and then 102 columns of 5 rows, 18 of 2: a nanosecond a row and two a column
    useful = 5 + 2 * 97 + 5 + 2 * 102 + 2 + 2 * 18
    assert time_waste(run.steps, Linear()) == pytest.approx(1 - useful / (useful + 2 * (3 + 2 * 3)))


def test_tables_from_before_graphs_are_read(tmp_path: Path) -> None:
    run = four_requests(tmp_path / "run").close(report=False)
    path = tmp_path / "run" / "steps.csv"
    run.steps.drop(columns="graph_rows").to_csv(path, index=False)
    assert read_steps(path.parent)[list(run.steps)].equals(run.steps)


def test_mixed_steps_and_swaps_reach_the_cost_model_as_they_were(tmp_path: Path) -> None:
    made = every_part(tmp_path / "run")
    made.writer.flush()
    seen: list[tuple[int, int, int]] = []

    class Listening(Linear):
        def device_ns(self, columns: StepColumns) -> np.ndarray:
            if columns.kind == "mixed":
                contexts = np.broadcast_to(columns.decode_context_tokens, columns.repeat)
                seen.extend((columns.decode_rows, int(context), columns.swapped_tokens) for context in contexts)
            return super().device_ns(columns)

    assert time_waste(read_steps(made.writer.folder), Listening()) == 0
    assert set(seen) == {(1, 11, 0), (2, 24, 9), (1, 14, 9)}


def test_the_plan_digest_can_be_rebuilt_from_the_rows(tmp_path: Path) -> None:
    made = four_requests(tmp_path / "run")
    made.writer.flush()
    assert digest_from_rows(read_steps(made.writer.folder)) == made.digest.hexdigest()


def test_waste_in_time_is_exact_for_a_linear_model(tmp_path: Path) -> None:
    made = four_requests(tmp_path / "run")
    made.step(2, 300, [400, 500, 600, 700], rows=3, longest=12, shorter=5)
    made.writer.flush()
    counters = made.counters
    linear = (
        counters.linear_useful_prefill + counters.linear_useful_decode,
        counters.linear_computed_prefill + counters.linear_computed_decode,
    )
    attention = (
        counters.attention_useful_prefill + counters.attention_useful_decode,
        counters.attention_computed_prefill + counters.attention_computed_decode,
    )
    expected = 1 - (linear[0] + 2 * attention[0]) / (linear[1] + 2 * attention[1])
    assert time_waste(read_steps(made.writer.folder), Linear()) == pytest.approx(expected, rel=1e-12)


def test_a_paged_run_wastes_no_time(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    made.step(0, 0, [1, 2, 3], layout="paged", rows=3, longest=12, shorter=5)
    made.writer.flush()
    assert time_waste(read_steps(made.writer.folder), Linear()) == 0


def test_no_step_has_no_waste(tmp_path: Path) -> None:
    made = HandMade(tmp_path / "run")
    assert time_waste(read_steps(made.writer.folder), Linear()) is None
