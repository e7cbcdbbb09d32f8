"""Distributions of lengths: read both ways they agree, and a window forgets."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.quantiles import QuantileTable, RecentLengths, quantile_table

tables = st.lists(st.integers(1, 3000), min_size=1, max_size=60).map(sorted)


def test_a_table_goes_evenly_from_the_smallest_to_the_largest() -> None:
    assert quantile_table([30, 10, 20], size=5) == (10, 20, 20, 30, 30)
    assert quantile_table([7]) == (7,) * 257
    assert quantile_table(range(1, 258)) == tuple(range(1, 258))
    with pytest.raises(ValueError, match="at least one length"):
        quantile_table([])


@given(tables, st.integers(1, 3100), st.floats(0.001, 0.999))
def test_a_length_is_found_again_by_its_share(table: list[int], length: int, place: float) -> None:
    distribution = QuantileTable(table)
    share = distribution.share(length, place)
    assert 0 < share < 1
    assert distribution.length(share) == min(max(length, table[0]), table[-1])


@given(tables, st.lists(st.integers(1, 3100), min_size=2, max_size=20, unique=True).map(sorted), st.data())
def test_longer_is_never_the_smaller_share(table: list[int], lengths: list[int], data: st.DataObject) -> None:
    distribution = QuantileTable(table)
    place = st.floats(0.001, 0.999)
    shares = [distribution.share(length, data.draw(place)) for length in lengths]
    assert all(a <= b for a, b in pairwise(shares))


def test_a_length_with_several_ranks_is_spread_over_them() -> None:
    distribution = QuantileTable([1, 5, 5, 5, 5, 9])
    assert [distribution.share(5, place) * 6 for place in (0.0, 0.5, 1.0)] == pytest.approx([1.5, 3.0, 4.5])
    assert distribution.share(7, 0.3) * 6 == pytest.approx(5.0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 20), st.floats(0.01, 1))
def test_recent_lengths_are_the_last_ones(lengths: list[int], window: int, share: float) -> None:
    recent = RecentLengths(window)
    for length in lengths:
        recent.add(length)
    kept = sorted(lengths[-window:])
    assert len(recent) == len(kept)
    assert recent.quantile(share) == kept[math.ceil(share * len(kept)) - 1]
