from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.histogram import BUCKETS, RELATIVE_ERROR, Histogram, bucket_edges, bucket_of
from reports.percentiles import PERCENTILES, nearest_rank, samples_needed

LARGEST = (1 << 63) - 1
values = st.integers(0, LARGEST)
weighted = st.lists(st.tuples(st.lists(st.integers(0, 10**12), max_size=20), st.integers(0, 5)), max_size=12)


@given(st.lists(values, min_size=1))
def test_every_value_is_inside_its_bucket(numbers: list[int]) -> None:
    array = np.array(numbers, np.int64)
    lower, upper = bucket_edges(bucket_of(array))
    assert ((lower <= array) & (array <= upper)).all()
    assert bucket_of(array).max() < BUCKETS


@given(values)
def test_a_bucket_is_narrow(number: int) -> None:
    lower, upper = bucket_edges(bucket_of(np.array([number], np.int64)))
    assert int(upper[0]) - int(lower[0]) <= 2 * RELATIVE_ERROR * int(lower[0])


def test_powers_of_two_and_their_neighbours_are_in_order() -> None:
    edges = np.array([n for e in range(1, 63) for n in ((1 << e) - 1, 1 << e, (1 << e) + 1)], np.int64)
    assert (np.diff(bucket_of(np.unique(edges))) >= 0).all()


@given(weighted)
def test_figures_are_those_of_the_values_within_the_error(parts: list[tuple[list[int], int]]) -> None:
    histogram = Histogram()
    for part, weight in parts:
        histogram.add(np.array(part, np.int64), weight)
    everything = np.sort(np.array([v for part, weight in parts for v in part for _ in range(weight)], np.int64))
    assert histogram.count == len(everything)
    assert histogram.sum == sum(everything.tolist())
    if not len(everything):
        return
    assert histogram.max == everything[-1]
    figures = histogram.describe(1.0)
    assert figures.mean == pytest.approx(everything.mean())
    for percent in PERCENTILES:
        if len(everything) >= samples_needed(percent):
            exact = everything[nearest_rank(percent, len(everything)) - 1]
            assert abs(figures.percentiles[percent] - exact) <= RELATIVE_ERROR * exact


def test_the_sum_is_exact_where_int64_would_overflow() -> None:
    histogram = Histogram()
    histogram.add(np.array([1 << 61, 1 << 61], np.int64), 1000)
    assert histogram.sum == 2000 << 61


def test_an_array_that_changes_after_it_was_added_does_not_matter() -> None:
    histogram, values = Histogram(), np.array([5, 5], np.int64)
    histogram.add(values)
    values[:] = 7
    assert histogram.sum == 10


def test_a_negative_value_is_refused() -> None:
    histogram = Histogram()
    histogram.add(np.array([-1], np.int64))
    with pytest.raises(ValueError, match="histogram value is -1"):
        _ = histogram.count


def test_json_keeps_all_of_it() -> None:
    histogram = Histogram()
    histogram.add(np.array([3, 700, 10**9], np.int64), 4)
    again = Histogram.from_dict(json.loads(json.dumps(histogram.as_dict())))
    assert again.describe(1.0) == histogram.describe(1.0)
    with pytest.raises(ValueError, match="sub_bits"):
        Histogram.from_dict({"sub_bits": 3})


def test_the_curve_ends_at_the_largest_value_and_at_one() -> None:
    histogram = Histogram()
    histogram.add(np.array([1000, 2001, 3003], np.int64))
    edges, share = histogram.curve()
    assert edges[-1] == 3003
    assert share.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
