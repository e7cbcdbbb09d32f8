"""Costs fitted to recorded steps: known weights come back, and what is no recording is said to be none."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from scheduler.plan import Kind, Layout, StepColumns, StepFeatures
from simulator.costs import CostError
from simulator.profiles import profile_costs, profile_path
from simulator.recorded import FEWEST_STEPS, recorded_costs
from simulator.step_cost import Quality

#: nanoseconds by (layout, kind): a constant, and a weight for each linear slot and each KV column
KNOWN: dict[tuple[Layout, Kind], tuple[int, int, int]] = {
    ("paged", "prefill"): (4_000_000, 90_000, 40),
    ("paged", "decode"): (9_000_000, 30_000, 310),
    ("padded", "decode"): (11_000_000, 50_000, 420),
}
HOST_NS = 250_000


def steps(layout: Layout, kind: Kind, count: int = 60) -> Iterator[dict[str, Any]]:
    """Recorded steps whose times are exactly linear."""
    rng = Random(f"{layout} {kind}")
    constant, per_token, per_column = KNOWN[layout, kind]
    for _ in range(count):
        rows = rng.randint(1, 16)
        tokens = rows if kind == "decode" else rows * rng.randint(5, 100)
        columns = tokens * rng.randint(20, 900)
        features = StepFeatures(layout, kind, rows, rows, tokens, tokens, columns, columns, columns, 900, rows, rows)
        device = constant + per_token * tokens + per_column * columns
        yield {**features._asdict(), "repeat": 1, "device_ns": device, "host_ns": HOST_NS}


def write(folder: Path, rows: list[dict[str, Any]], manifest: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = {"config": {"kv_tokens": 4096, "context_tokens": 2048}} if manifest is None else manifest
    (folder / "manifest.json").write_text(json.dumps(config))
    return folder


def columns_of(row: dict[str, Any]) -> StepColumns:
    return StepColumns(**{name: row[name] for name in StepColumns._fields})


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [row for layout, kind in KNOWN for row in steps(layout, kind)]


def test_known_weights_come_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    costs = recorded_costs(write(tmp_path, rows))
    assert (costs.kv_tokens, costs.context_tokens) == (4096, 2048)
    assert set(costs.device) == set(KNOWN)
    for row in rows:
        columns = columns_of(row)
        assert costs.device_ns(columns) == pytest.approx(row["device_ns"], rel=1e-6)
        assert costs.host_ns(columns) == pytest.approx(HOST_NS, rel=1e-6)
    for fit in costs.device.values():
        assert fit.quality.steps == 60
        assert fit.quality.error < 1e-6


def test_a_step_that_was_lost_has_no_part_in_the_fit(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    lost = [{**row, "device_ns": 0} for row in rows[:10]]
    assert (
        recorded_costs(write(tmp_path / "a", rows + lost)).device == recorded_costs(write(tmp_path / "b", rows)).device
    )


def test_runs_on_different_numbers_of_gpus_are_not_fitted_together(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    config = {"kv_tokens": 4096, "context_tokens": 2048}
    one, two = (write(tmp_path / str(tp), rows, {"tp": tp, "config": config}) for tp in (1, 2))
    with pytest.raises(CostError, match="were recorded on 1 and 2 GPUs; give the costs of one of them"):
        recorded_costs(one, two)
    assert recorded_costs(two).tp == 2


def test_a_decode_that_was_not_recorded_is_extrapolated(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    costs = recorded_costs(write(tmp_path, rows))
    constant, per_row, per_column = KNOWN["paged", "decode"]
    far = StepColumns("paged", "decode", 1, 64, 64, 64, 64, 100_000, 100_000, 100_000, 4000, 64)
    assert costs.device_ns(far) == pytest.approx(constant + 64 * per_row + 100_000 * per_column, rel=1e-5)


def test_a_stretch_costs_what_its_steps_cost(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    costs = recorded_costs(write(tmp_path, rows))
    read = 2000 + 4 * np.arange(30, dtype=np.int64)
    longest = 500 + np.arange(30, dtype=np.int64)
    stretch = costs.device_ns(StepColumns("paged", "decode", 30, 4, 4, 4, 4, read, read, read, longest, 4))
    assert isinstance(stretch, np.ndarray)
    assert stretch.dtype == np.int64
    for step in range(30):
        now, end = int(read[step]), int(longest[step])
        alone = costs.device_ns(StepColumns("paged", "decode", 1, 4, 4, 4, 4, now, now, now, end, 4))
        assert stretch[step] == alone
    host = costs.host_ns(StepColumns("paged", "decode", 30, 4, 4, 4, 4, read, read, read, longest, 4))
    assert np.sum(np.broadcast_to(host, 30)) == pytest.approx(30 * HOST_NS, rel=1e-6)


def test_noise_is_averaged_and_told(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rng = Random(1)
    noisy = [row | {"device_ns": round(row["device_ns"] * rng.uniform(0.9, 1.1))} for row in rows]
    costs = recorded_costs(write(tmp_path, noisy))
    for key in KNOWN:
        of_kind = [row for row in rows if (row["layout"], row["kind"]) == key]
        predicted = sum(int(np.sum(costs.device_ns(columns_of(row)))) for row in of_kind)
        assert predicted == pytest.approx(sum(row["device_ns"] for row in of_kind), rel=0.03)
    assert all(0.01 < fit.quality.error < 0.1 for fit in costs.device.values())


def test_no_term_is_negative(tmp_path: Path) -> None:
    """Steps that get faster with more columns: a fit says the columns cost nothing, not less than nothing."""
    rows = [row | {"device_ns": 10**9 - 1000 * row["kv_columns_computed"]} for row in steps("paged", "decode")]
    costs = recorded_costs(write(tmp_path, rows))
    for fit in costs.device.values():
        assert fit.constant >= 0
        assert all(weight >= 0 for weight in fit.weights.values())


def test_two_runs_are_fitted_together(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    paged = write(tmp_path / "paged", [row for row in rows if row["layout"] == "paged"])
    padded = write(tmp_path / "padded", [row for row in rows if row["layout"] == "padded"])
    costs = recorded_costs(paged, padded)
    assert set(costs.device) == set(KNOWN)
    assert costs.name == f"{paged}+{padded}"


def test_over_how_many_gpus_they_were_recorded_is_known(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert recorded_costs(write(tmp_path / "one", rows)).tp == 1
    assert recorded_costs(write(tmp_path / "two", rows, {"tp": 2, "config": {}})).tp == 2


def test_a_half_written_last_row_is_left_out(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = write(tmp_path, rows)
    with (folder / "steps.csv").open("a") as file:
        file.write("paged,deco")
    costs = recorded_costs(folder)
    assert set(costs.device) == set(KNOWN)


def test_a_layout_that_was_not_recorded_cannot_be_costed(tmp_path: Path) -> None:
    few = [*steps("paged", "decode"), *steps("padded", "decode", FEWEST_STEPS - 1)]
    costs = recorded_costs(write(tmp_path, few))
    padded = columns_of(next(steps("padded", "decode")))
    for predict in (costs.device_ns, costs.host_ns):
        with pytest.raises(CostError, match=r"too few padded decode steps .*\(recorded: paged decode\); .*--layout"):
            predict(padded)


@pytest.mark.parametrize("column", ["layout", "kind", "repeat", "device_ns", "host_ns", "new_tokens_computed"])
def test_a_missing_column_is_named(tmp_path: Path, rows: list[dict[str, Any]], column: str) -> None:
    folder = write(tmp_path, [{name: value for name, value in row.items() if name != column} for row in rows])
    with pytest.raises(CostError, match=rf"steps\.csv lacks the column {column} \(found: "):
        recorded_costs(folder)


def test_too_few_steps_are_no_recording(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(CostError, match=f"fewer than {FEWEST_STEPS} steps of any kind"):
        recorded_costs(write(tmp_path, rows[: FEWEST_STEPS - 1]))


def test_a_simulated_run_is_no_recording(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(CostError, match="was simulated, not recorded"):
        recorded_costs(write(tmp_path, [rows[0] | {"repeat": 7}, *rows[1:]]))


def test_a_folder_that_is_no_run_is_said_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CostError, match=r"is no run folder: it has no steps\.csv"):
            recorded_costs(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00,\x81\n\x00"])
def test_steps_that_cannot_be_read_are_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "steps.csv").write_bytes(content)
    with pytest.raises(CostError, match=r"steps\.csv (cannot be read|lacks the column)"):
        recorded_costs(tmp_path)


@pytest.mark.parametrize("manifest", ["", "{", "[1, 2]", '{"config": 3}'])
def test_a_manifest_that_cannot_be_read_is_said_so(tmp_path: Path, rows: list[dict[str, Any]], manifest: str) -> None:
    folder = write(tmp_path, rows)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(CostError, match=r"manifest\.json"):
        recorded_costs(folder)


# -- mixed steps, swaps, and host time that overlap hides


def mixed_step(tokens: int, rows: int, context: int) -> dict[str, Any]:
    """A prompt of ``tokens`` beside ``rows`` decode rows of ``context`` tokens in all, as a row of steps.csv."""
    pairs = tokens * (tokens + 1) // 2
    features = StepFeatures("paged", "mixed", rows + 1, rows + 1, tokens + rows, tokens + rows, pairs + context,
                            pairs + context, tokens + context, tokens, 0, rows + 1, rows, context)  # fmt: skip
    return {**features._asdict(), "repeat": 1, "overlap": 0}


def test_a_mixed_step_is_put_together_from_prefill_and_decode_where_none_was_recorded(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    costs = recorded_costs(write(tmp_path, rows))
    (constant, token, pair), (decode_constant, row, column) = KNOWN["paged", "prefill"], KNOWN["paged", "decode"]
    step = columns_of(mixed_step(200, 7, 3000))
    # 207 tokens as in a prefill, the prompt's pairs as there, the rows' columns as in a decode
    expected = constant + 207 * token + 20_100 * pair + 3000 * column
    assert costs.device_ns(step) == pytest.approx(expected, rel=1e-5)
    small = columns_of(mixed_step(20, 7, 3000))
    # 27 tokens take less than the seven rows alone
    expected = decode_constant + 7 * row + 210 * pair + 3000 * column
    assert costs.device_ns(small) == pytest.approx(expected, rel=1e-5)
    assert costs.host_ns(step) == pytest.approx(HOST_NS, rel=1e-6)
    # of several at once, of which one does not say how long its longest row is
    longest = np.array([0, 900])
    both = costs.device_ns(step._replace(repeat=2, longest_decode_context=longest))
    each = [costs.device_ns(step._replace(longest_decode_context=value)) for value in longest.tolist()]
    assert np.broadcast_to(both, 2).tolist() == each


def test_mixed_steps_that_were_recorded_have_a_fit_of_their_own(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rng = Random(5)
    recorded = []
    for _ in range(40):
        step = mixed_step(rng.randint(10, 200), rng.randint(1, 9), rng.randint(50, 5000))
        device_ns = 20_000_000 + 1000 * step["new_tokens_computed"] + 7 * step["kv_columns_computed"]
        recorded.append({**step, "device_ns": device_ns, "host_ns": HOST_NS})
    costs = recorded_costs(write(tmp_path, recorded + [row | {"overlap": 0} for row in rows]))
    assert costs.device["paged", "mixed"].quality.steps == 40
    for step in recorded:
        assert costs.device_ns(columns_of(step)) == pytest.approx(step["device_ns"], rel=1e-5)
    assert set(costs.floors("paged")) == {"prefill", "decode", "mixed"}


def test_what_steps_with_swaps_took_longer_is_the_time_of_the_swap(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    swapping = []
    for row in list(steps("paged", "decode", 8)) + list(steps("paged", "prefill", 2)):
        tokens = row["rows"] * 100
        swapping.append(row | {"swapped_tokens": tokens, "device_ns": row["device_ns"] + 2500 * tokens})
    costs = recorded_costs(write(tmp_path, rows + swapping))
    assert costs.swap_token_ns == {"paged": pytest.approx(2500, rel=1e-4)}
    for row in swapping:
        assert costs.device_ns(columns_of(row)) == pytest.approx(row["device_ns"], rel=1e-4)
    assert costs.device["paged", "decode"].quality.steps == 60


def test_host_time_that_overlap_hid_is_not_taken_for_all_of_it(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    seen = [row | {"overlap": 0} for row in rows]
    hidden = [row | {"overlap": 1, "host_ns": 0} for row in rows]
    costs = recorded_costs(write(tmp_path / "both", seen + hidden))
    assert costs.host_ns(columns_of(rows[0])) == pytest.approx(HOST_NS, rel=1e-6)
    assert costs.device["paged", "decode"].quality.steps == 60
    costs = recorded_costs(write(tmp_path / "hidden", hidden))
    assert costs.device_ns(columns_of(rows[0])) == pytest.approx(rows[0]["device_ns"], rel=1e-6)
    with pytest.raises(CostError, match=r"hides the host time of paged prefill steps .* record a run without"):
        costs.host_ns(columns_of(rows[0]))
    with pytest.raises(CostError, match="hides the host time"):
        costs.require("paged")


def test_steps_that_overlap_are_costed_by_such_steps(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Launched while another runs, a step takes less of the device. A graph begins when the host has launched it, any
    other step while the host is launching it."""
    alone = [row | {"overlap": 0, "launch_ns": 300_000, "work_ns": 0} for row in rows]
    hidden = [
        row | {"launch_ns": 0} | {"overlap": 1, "host_ns": 0, "device_ns": row["device_ns"] - 200_000} for row in alone
    ]
    costs = recorded_costs(write(tmp_path, alone + hidden))
    for row in rows:
        columns = columns_of(row)
        assert costs.device_ns(columns) == pytest.approx(row["device_ns"], rel=1e-6)
        assert costs.host_ns(columns) == pytest.approx(HOST_NS, rel=1e-6)
        assert costs.overlapped().device_ns(columns) == pytest.approx(row["device_ns"] - 200_000, rel=1e-6)
        graph, kernels = columns._replace(graph_rows=64), columns._replace(graph_rows=0)
        assert costs.overlapped().host_ns(graph) == pytest.approx(HOST_NS + 300_000, rel=1e-6)
        assert costs.overlapped().launching_ns(graph) == 0
        assert costs.overlapped().host_ns(kernels) == pytest.approx(HOST_NS, rel=1e-6)
        assert costs.overlapped().launching_ns(kernels) == pytest.approx(300_000, rel=1e-6)
        assert costs.launching_ns(kernels) == 0
    assert costs.overlapped().overlapped() == costs.overlapped()
    # the host's work while another step runs, where it was seen
    for row in hidden:
        row |= {"graph_rows": 64, "work_ns": 250_000}
    seen = recorded_costs(write(tmp_path / "seen", alone + hidden)).overlapped()
    assert seen.host_ns(columns_of(rows[0])._replace(graph_rows=64)) == pytest.approx(250_000, rel=1e-6)
    # and where nothing else was recorded it is the host's time
    only = recorded_costs(write(tmp_path / "only", hidden))
    only.require("paged")
    assert only.overlapped().host_ns(columns_of(rows[0])._replace(graph_rows=64)) == pytest.approx(250_000, rel=1e-6)
    floors = costs.floors("paged", overlap=True)["decode"]
    assert max(floor.step_ns for floor in floors) == pytest.approx(9_030_000 - 200_000, rel=0.01)


def test_what_a_device_waits_for_and_what_serving_does_not_have_is_no_part_of_a_fit(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    alone = [row | {"overlap": 0, "launch_ns": 300_000, "work_ns": 0} for row in rows]
    seen = {"overlap": 1, "graph_rows": 64, "launch_ns": 0, "work_ns": 250_000, "host_ns": 1000}
    plain = [row | seen for row in rows * 4]
    # every sixth step: the host is seen for long, and the launch of the next one is in its device time, but of those
    # that are the smallest or the largest, which are all that is known of their size
    sizes: dict[Any, list[int]] = {}
    for row in rows:
        sizes.setdefault((row["layout"], row["kind"]), []).append(row["new_tokens"])
    ends = {key: (min(found), max(found)) for key, found in sizes.items()}
    inside = [row["new_tokens"] not in ends[row["layout"], row["kind"]] for row in plain]
    late = [
        row | {"host_ns": 10**8 if n % 6 == 0 else 1000,
               "device_ns": row["device_ns"] + 4_000_000 * (n % 6 == 1 and n % 11 != 4 and inside[n])}
        for n, row in enumerate(plain)
    ]  # fmt: skip
    # many are aborted; the host has more to do for two steps, and one is stalled
    crowd = [
        row
        | {"released": 9 * (n % 7 == 2), "work_ns": 250_000 + 300_000 * (n % 7 in (2, 3)) + 9_000_000 * (n % 40 == 6)}
        for n, row in enumerate(late)
    ]
    # and behind a step that was launched kernel by kernel
    eager = [row | {"graph_rows": 64 * (n % 11 != 4), "work_ns": row["work_ns"] * (1 + 2 * (n % 11 == 5))}
             for n, row in enumerate(crowd)]  # fmt: skip
    costs = recorded_costs(write(tmp_path, alone + eager)).overlapped()
    for row in rows:
        columns = columns_of(row)._replace(graph_rows=64)
        assert costs.device_ns(columns) == pytest.approx(row["device_ns"], rel=1e-6)
        assert costs.host_ns(columns) == pytest.approx(250_000, rel=1e-6)


def test_steps_that_were_still_being_launched_when_the_device_was_done_are_no_part_of_a_fit(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    alone = [row | {"overlap": 0, "launch_ns": 0, "work_ns": 0} for row in rows]
    seen = {"overlap": 1, "graph_rows": 0, "work_ns": 250_000, "host_ns": 0}
    late = []
    for n, row in enumerate(rows * 4):
        slow_ns = 3_000_000 * (n % 6 == 1 and n > len(rows))  # behind steps of all sizes that were launched in time
        hidden_ns = late[-1]["device_ns"] if late else 0
        device_ns = row["device_ns"] + slow_ns
        late.append(row | seen | {"device_ns": device_ns, "launch_ns": hidden_ns + device_ns if slow_ns else 300_000})
    costs = recorded_costs(write(tmp_path, [*alone, *late])).overlapped()
    for row in rows:
        assert costs.device_ns(columns_of(row)) == pytest.approx(row["device_ns"], rel=1e-6)


def test_what_is_launched_kernel_by_kernel_is_told_by_steps_that_overlap(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    """A host is not the same from one minute to the next; their launches are of the minutes of their device times. But
    one that is launched ahead may wait for the device."""
    alone = [row | {"overlap": 0, "launch_ns": 900_000, "work_ns": 0} for row in rows]
    seen = [row | {"overlap": 1, "graph_rows": 0, "launch_ns": 300_000, "host_ns": 0, "work_ns": 0} for row in rows * 5]
    costs = recorded_costs(write(tmp_path / "many", [*alone, *seen])).overlapped()
    for row in rows:
        assert costs.launching_ns(columns_of(row)) == pytest.approx(300_000, rel=1e-6)
    ahead = recorded_costs(write(tmp_path / "ahead", [*alone, *(row | {"work_ns": 1000} for row in seen)])).overlapped()
    assert ahead.launching_ns(columns_of(rows[0])) == pytest.approx(900_000, rel=1e-6)
    few = recorded_costs(write(tmp_path / "few", [*alone, *seen[: len(rows) : 8]])).overlapped()
    assert few.launching_ns(columns_of(rows[0])) == pytest.approx(900_000, rel=1e-6)


def test_steps_that_are_all_late_are_what_there_is(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    late = [row | {"overlap": 1, "graph_rows": 64, "work_ns": 250_000, "host_ns": 10**8} for row in rows]
    alone = [row | {"overlap": 0, "work_ns": 0} for row in rows]
    costs = recorded_costs(write(tmp_path, [*alone, *late])).overlapped()
    for row in rows:
        assert costs.device_ns(columns_of(row)) == pytest.approx(row["device_ns"], rel=1e-6)


def test_the_larger_of_two_times_counts_the_steps_in_which_the_other_is() -> None:
    quality = Quality(4, 0.0, spread=(0.5, 0.5, 1.0, 2.0))
    draws = np.array(quality.spread)
    for other in (0, 100, 600, 1000, 1500, 5000):
        assert quality.larger(other, 1000) == pytest.approx(np.maximum(draws * 1000, other).mean())
    several = quality.larger(np.array([0, 600]), np.array([1000, 1000]))
    assert several.tolist() == [quality.larger(0, 1000), quality.larger(600, 1000)]
    assert quality.larger(700, 0) == 700
    assert Quality(1, 0.0).larger(300, 200) == 300


def test_files_from_before_swaps_and_overlap_are_read(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    new = ("decode_rows", "decode_context_tokens", "swapped_tokens", "overlap")
    older = [{name: value for name, value in row.items() if name not in new} for row in rows]
    assert recorded_costs(write(tmp_path, older)).device.keys() == KNOWN.keys()


def test_a_missing_manifest_is_said_so(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = write(tmp_path, rows)
    (folder / "manifest.json").unlink()
    with pytest.raises(CostError, match=r"manifest\.json cannot be read"):
        recorded_costs(folder)


def test_a_value_that_is_no_number_is_said_so(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = write(tmp_path, [rows[0] | {"device_ns": "fast"}, *rows[1:]])
    with pytest.raises(CostError, match=r"steps\.csv row 1: device_ns is 'fast'; must be a number >= 0"):
        recorded_costs(folder)


@pytest.mark.parametrize("column", ["device_ns", "host_ns", "kv_tokens_read", "rows_computed"])
@pytest.mark.parametrize(("value", "shown"), [("", "missing"), ("nan", "'nan'"), (-5, "'-5'"), ("inf", "'inf'")])
def test_a_row_that_no_engine_writes_is_refused_by_its_number(
    tmp_path: Path, rows: list[dict[str, Any]], column: str, value: Any, shown: str
) -> None:
    folder = write(tmp_path, [*rows[:6], rows[6] | {column: value}, *rows[7:]])
    with pytest.raises(CostError, match=rf"steps\.csv row 7: {column} is {shown}; must be a number >= 0"):
        recorded_costs(folder)


def test_a_kind_or_layout_that_there_is_none_of_is_refused_by_its_row(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    folder = write(tmp_path / "a", [*rows[:3], rows[3] | {"kind": "decoding"}, *rows[4:]])
    with pytest.raises(CostError, match=r"row 4: kind is 'decoding'; must be prefill or decode or mixed"):
        recorded_costs(folder)
    folder = write(tmp_path / "b", [*rows[:3], rows[3] | {"layout": ""}, *rows[4:]])
    with pytest.raises(CostError, match=r"row 4: layout is missing; must be padded or paged"):
        recorded_costs(folder)


def test_a_step_that_is_there_twice_is_refused_by_its_row(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    numbered = [{"index": index, **row} for index, row in enumerate(rows)]
    recorded_costs(write(tmp_path / "a", numbered))
    numbered[8]["index"] = 2
    with pytest.raises(CostError, match=r"steps\.csv row 9: step 2 is there twice \(first in row 3\)"):
        recorded_costs(write(tmp_path / "b", numbered))


def test_a_row_of_too_many_cells_is_refused_by_its_number(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = write(tmp_path, rows)
    lines = (folder / "steps.csv").read_text().splitlines()
    lines[5] += ",1,2"
    (folder / "steps.csv").write_text("\n".join(lines) + "\n")
    width = len(rows[0])
    with pytest.raises(CostError, match=rf"row 5: has {width + 2} columns; the header has {width}"):
        recorded_costs(folder)


def test_a_last_row_is_only_forgiven_where_it_was_cut(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    folder = write(tmp_path, rows)
    text = (folder / "steps.csv").read_text()
    (folder / "steps.csv").write_text(text + "paged,deco\n")
    with pytest.raises(CostError, match=rf"row {len(rows) + 1}: kind is 'deco'"):
        recorded_costs(folder)
    last = text.rstrip().rsplit("\n", 1)[1]
    for cut in (1, len(last) // 2, len(last) - 1):
        (folder / "steps.csv").write_text(text + last[:cut])
        assert set(recorded_costs(folder).device) == set(KNOWN)


def test_costs_that_have_been_used_go_to_other_processes() -> None:
    costs = profile_costs(profile_path("h100-qwen-7b"), "h100-qwen-7b")
    columns = StepColumns(
        layout="paged", kind="decode", repeat=1, rows=8, rows_computed=8, new_tokens=8, new_tokens_computed=8,
        context_tokens=4096, kv_columns_computed=4096, kv_tokens_read=4096, longest_context=700, sampled_rows=8,
    )  # fmt: skip
    before = costs.device_ns(columns)
    assert pickle.loads(pickle.dumps(costs)).device_ns(columns) == before
