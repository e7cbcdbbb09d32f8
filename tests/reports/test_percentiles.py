from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.percentiles import PERCENTILES, describe, missing, rank_interval, samples_needed, wilson_interval


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=300))
def test_percentiles_are_numpys_inverted_cdf(numbers: list[int]) -> None:
    figures = describe(np.array(numbers, np.int64), 1.0, "none")
    for percent in PERCENTILES:
        if len(numbers) < samples_needed(percent):
            assert figures.percentiles[percent] is None
        else:
            assert figures.percentiles[percent] == np.percentile(numbers, percent, method="inverted_cdf")
    assert figures.max == max(numbers)
    assert figures.mean == sum(numbers) / len(numbers)


@pytest.mark.parametrize(("percent", "needed"), [(50, 2), (90, 10), (95, 20), (99, 100)])
def test_a_percentile_needs_one_value_beyond_it(percent: int, needed: int) -> None:
    assert samples_needed(percent) == needed
    few, enough = (describe(np.arange(n, dtype=np.int64), 1.0, "none") for n in (needed - 1, needed))
    assert few.percentiles[percent] is None
    assert f"p{percent} needs {needed}" in (few.note or "")
    assert enough.percentiles[percent] is not None


@given(st.integers(2, 150), st.sampled_from(PERCENTILES))
def test_the_interval_covers_the_quantile_and_no_narrower_tail_would(n: int, percent: int) -> None:
    ranks = rank_interval(percent, n)
    if ranks is None:
        return
    lower, upper = ranks

    def below(k: int) -> float:
        return sum(comb(n, i) * percent**i * (100 - percent) ** (n - i) for i in range(k + 1)) / 100**n

    assert below(lower - 1) < 0.025 <= below(lower)
    assert below(upper - 2) < 0.975 <= below(upper - 1)


def test_interval_of_a_hundred_values() -> None:
    # David and Nagaraja: ranks 40 and 61 for the median of 100
    assert rank_interval(50, 100) == (40, 61)
    assert rank_interval(99, 100) is None


def test_json_has_every_key_even_when_nothing_is_known() -> None:
    data = missing("no request finished").as_dict()
    assert list(data) == ["mean", "p50", "p90", "p95", "p99", "max", "n", "ci", "note"]
    assert data["mean"] is data["p99"] is data["max"] is None
    assert data["note"] == "not available: no request finished"


def test_wilson_interval_of_known_cases() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
