"""Length distributions by their quantiles and bounds."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.lengths import LengthDistribution, Quantiles, Uniform


class Fixed:
    """A random source that always says the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


LARGEST = 1 - 2**-53


def test_uniform_reaches_both_ends_and_all_between_equally() -> None:
    rng = random.Random(1)
    counts = Counter(Uniform(3, 7).draw(rng) for _ in range(20_000))
    assert sorted(counts) == [3, 4, 5, 6, 7]
    assert all(abs(count - 4000) < 250 for count in counts.values())


def test_extreme_random_numbers_stay_within_bounds() -> None:
    cases: list[tuple[LengthDistribution, int, int]] = [
        (Uniform(3, 7), 3, 7),
        (Quantiles((0, 0.5, 1), (2, 9, 40)), 2, 40),
    ]
    for distribution, least, largest in cases:
        assert distribution.draw(Fixed(0.0)) == least
        assert distribution.draw(Fixed(LARGEST)) == largest


def test_quantiles_are_met_at_the_knots_and_uniform_between() -> None:
    distribution = Quantiles((0, 0.5, 0.9, 1), (10, 20, 100, 1000))
    shares = [0, 0.25, 0.5, 0.7, 0.9, 0.95]
    assert [distribution.draw(Fixed(share)) for share in shares] == [10, 15, 20, 60, 100, 550]


def test_a_heap_of_equal_lengths_is_kept() -> None:
    distribution = Quantiles((0, 0.3, 0.8, 1), (5, 50, 50, 60))
    assert {distribution.draw(Fixed(share)) for share in (0.3, 0.5, 0.7999)} == {50}


@settings(deadline=None)
@given(
    st.lists(st.floats(0.001, 0.999), unique=True, max_size=8),
    st.lists(st.integers(1, 10**6), min_size=10, max_size=10),
    st.lists(st.floats(0, LARGEST), min_size=2, max_size=20),
)
def test_quantile_draws_never_fall_with_the_random_number(
    inner: list[float], lengths: list[int], shares: list[float]
) -> None:
    probabilities = (0, *sorted(inner), 1)
    tokens = tuple(sorted(lengths)[: len(probabilities)])
    drawn = [Quantiles(probabilities, tokens).draw(Fixed(share)) for share in sorted(shares)]
    assert all(a <= b for a, b in pairwise(drawn))
    assert tokens[0] <= drawn[0]
    assert drawn[-1] <= tokens[-1]


@pytest.mark.parametrize(
    ("probabilities", "tokens"),
    [((0, 1), (1,)), ((0.1, 1), (1, 2)), ((0, 0.9), (1, 2)), ((0, 1), (0, 2)), ((0, 0.5, 0.5, 1), (1, 2, 3, 4)),
     ((0, 0.5, 1), (1, 3, 2))],
)  # fmt: skip
def test_quantiles_that_are_none_are_refused(probabilities: tuple[float, ...], tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="quantiles need"):
        Quantiles(probabilities, tokens)


def test_uniform_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="from 5 to 4"):
        Uniform(5, 4)
    with pytest.raises(ValueError, match="from 0 to 4"):
        Uniform(0, 4)
