"""Durations in buckets, and percentiles of the last minute."""

from __future__ import annotations

import numpy as np
import pytest

from serving.latencies import Durations, Sizes, one_two_five

SECOND = 1_000_000_000


def test_a_duration_belongs_to_the_first_bucket_whose_edge_it_does_not_exceed() -> None:
    durations = Durations((0.001, 0.01, 1.0))
    durations.pending += [1, 1_000_000, 1_000_001, 10_000_000, SECOND, SECOND + 1, 5 * SECOND]
    durations.settle(0)
    assert durations.counts.tolist() == [2, 2, 1, 2]
    assert durations.sum_ns == 1 + 1_000_000 + 1_000_001 + 10_000_000 + SECOND + SECOND + 1 + 5 * SECOND
    assert durations.pending == []
    durations.pending.append(2)
    durations.settle(0)
    assert durations.counts.tolist() == [3, 2, 1, 2]


@pytest.mark.parametrize("shape", ["lognormal", "exponential"])
def test_percentiles_are_within_a_hundredth_of_the_samples(shape: str) -> None:
    random = np.random.default_rng(5)
    values = random.lognormal(16, 1.5, 5000) if shape == "lognormal" else random.exponential(3e7, 5000)
    durations = Durations((1.0,))
    durations.pending += np.maximum(values, 1e4).astype(int).tolist()
    recent = durations.recent(0)
    for percent in (50, 90, 99):
        exact = np.percentile(np.maximum(values, 1e4), percent, method="inverted_cdf") / 1e6
        assert recent[f"p{percent}"] == pytest.approx(exact, rel=0.0101)
    assert recent["n"] == 5000


def test_what_is_older_than_a_minute_is_no_longer_recent_but_still_counted() -> None:
    durations = Durations((1.0,))
    durations.pending += [20_000_000] * 10
    durations.settle(0)
    durations.pending += [80_000_000] * 10
    durations.settle(30 * SECOND)
    assert durations.recent(59 * SECOND)["n"] == 20
    later = durations.recent(60 * SECOND)
    assert later["n"] == 10
    assert later["p50"] == pytest.approx(80, rel=0.0101)
    assert durations.recent(90 * SECOND) == {"n": 0, "p50": None, "p90": None, "p99": None}
    assert durations.counts.tolist() == [20, 0]


def test_too_few_values_have_no_percentile() -> None:
    durations = Durations((1.0,))
    durations.pending += [20_000_000] * 99
    recent = durations.recent(0)
    assert recent["p90"] is not None
    assert recent["p99"] is None
    durations.pending.append(20_000_000)
    assert durations.recent(0)["p99"] is not None


def test_sizes_are_counted_by_edges_up_to_the_most_there_can_be() -> None:
    assert one_two_five(500) == (1, 2, 5, 10, 20, 50, 100, 200, 500)
    assert one_two_five(499) == (1, 2, 5, 10, 20, 50, 100, 200)
    sizes = Sizes(one_two_five(10))
    for size in (1, 2, 3, 10, 11):
        sizes.add(size)
    assert (sizes.counts.tolist(), sizes.sum) == ([1, 1, 1, 1, 1], 27)
