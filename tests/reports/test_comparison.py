from __future__ import annotations

from pathlib import Path

import pytest
from handmade_runs import HandMade, every_part, four_requests

from reports.comparison import Compared, compare, labels
from reports.figures import Unit, change_text, figure_at, interval_text, quantity
from scheduler.config import SchedulerConfig


def row(a: float | None, b: float | None, path: str = "ttft_ms.p50", **intervals: tuple[float, float]) -> Compared:
    return Compared(figure_at(path), a, b, intervals.get("of_a"), intervals.get("of_b"))


@pytest.mark.parametrize(
    ("compared", "verdict"),
    [
        (row(2.0, 1.0), "better"),
        (row(1.0, 2.0), "worse"),
        (row(1.0, 2.0, "output_tokens_per_s"), "better"),
        (row(1.0, 1.0), "equal"),
        (row(1, 2, "steps.total"), "differs"),
        (row(None, 1.0), ""),
    ],
)
def test_better_and_worse_follow_the_figures_direction(compared: Compared, verdict: str) -> None:
    assert compared.verdict == verdict


def test_intervals_that_touch_overlap() -> None:
    assert row(1, 3, of_a=(0, 2), of_b=(2, 4)).distinct is False
    assert row(1, 3, of_a=(0, 1.9), of_b=(2, 4)).distinct is True
    assert row(3, 1, of_a=(2, 4), of_b=(0, 1.9)).distinct is True
    assert row(1, 3, of_a=(0, 2)).distinct is None


def test_difference_and_ratio() -> None:
    assert (row(2.0, 3.0).difference, row(2.0, 3.0).ratio) == (1.0, 1.5)
    assert row(0.0, 3.0).ratio is None
    assert row(None, 3.0).difference is None


def test_every_figure_that_either_run_has_is_compared(tmp_path: Path) -> None:
    a = four_requests(tmp_path / "a").close(report=False)
    b = four_requests(tmp_path / "b", slower=3).close(report=False)
    rows = {one.figure.path: one for one in compare(a, b).rows}
    assert rows["e2e_ms.max"].ratio == pytest.approx(3)
    assert rows["makespan_s"].verdict == "worse"
    assert "goodput_per_s" not in rows


def test_labels_are_never_the_same(tmp_path: Path) -> None:
    config = {"config": {"policy": "sjf", "layout": "padded"}}
    manifests = [{**config, "world": "real"}, {**config, "world": "sim"}, {**config, "world": "sim"}, {"name": "x"}]
    runs = [HandMade(tmp_path / str(i), manifest).close(report=False) for i, manifest in enumerate(manifests)]
    texts = labels(runs)
    assert texts[0] == "sjf on padded (real)"
    assert texts[3] == "x"
    assert len(set(texts)) == 4


def test_labels_tell_runs_of_one_policy_apart_by_their_parts(tmp_path: Path) -> None:
    settings = [{}, {"phase": "mixed", "chunk_tokens": 64}, {"phase": "decode-first"}]
    configs = [SchedulerConfig(overlap=True, **one).as_dict() for one in settings]
    runs = [HandMade(tmp_path / str(i), {"config": config}).close(report=False) for i, config in enumerate(configs)]
    same = "fcfs on paged"
    assert labels(runs) == [same, f"{same} (phase mixed (64 tokens a step))", f"{same} (phase decode-first)"]


def test_figures_of_parts_are_compared_where_a_run_has_the_part(tmp_path: Path) -> None:
    plain, parts = four_requests(tmp_path / "a").close(report=False), every_part(tmp_path / "b").close(report=False)
    rare = {"steps.mixed", "swapped.tokens", "overlap.wasted_rows", "kv.prefix_hit"}
    assert rare <= {row.figure.path for row in compare(plain, parts).rows}
    assert not rare & {row.figure.path for row in compare(plain, plain).rows}
    assert {row.figure.path: row.a for row in compare(plain, parts).rows}["steps.mixed"] == 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "–"),
        (12.3456, "ms", "12.35 ms"),
        (12_345.6, "ms", "12.35 s"),
        (0.0213, "share", "2.13 %"),
        (0.384, "share", "38.4 %"),
        (0.0, "share", "0.0 %"),
        (1_234_567, "count", "1,234,567"),
        (0.5, "rows", "0.500"),
        (0.00012, "s", "0.00012 s"),
        (250.0, "tokens/s", "250.0 tok/s"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, unit: Unit, text: str) -> None:
    assert quantity(value, unit) == text


def test_an_interval_and_a_change_name_their_unit_once() -> None:
    assert interval_text((9_000.0, 12_000.0), "ms") == "9.00 – 12.00 s"
    assert interval_text(None, "ms") == ""
    assert change_text(10.0, 12.0, "ms") == "10.00 → 12.00 ms"
    assert change_text(None, 12.0, "ms") == "– → 12.00 ms"
