"""How sure a recommendation is: gains over pieces of what is held out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from tuning.confirm import MOST, compared, gain_over
from tuning.objectives import Objective
from tuning.world import Evaluation

GOODPUT, LATENCY = Objective("goodput"), Objective("latency", latency="e2e_ms", statistic="mean")


def pieces(*values: float, failed: str = "") -> Evaluation:
    return Evaluation((), (), {}, 1, 0.0, failed=failed, pieces=tuple((value,) for value in values))


def gains(values: Sequence[float], others: Sequence[float], objective: Objective = GOODPUT) -> list[float]:
    return compared([pieces(*values)], [pieces(*others)], objective, 0)


def test_a_piece_in_which_the_other_served_hardly_anybody_counts_as_much_as_any() -> None:
    """0.01 to 0.5 is fifty times as much, and half a request a second more."""
    found = gains([4.0, 4.4, 0.5, 4.1], [4.0, 4.2, 0.01, 3.79])
    assert sum(found) / 4 == pytest.approx((4.0 + 4.4 + 0.5 + 4.1) / (4.0 + 4.2 + 0.01 + 3.79) - 1)
    assert found == pytest.approx([0.0, 0.2 / 3, 0.49 / 3, 0.31 / 3])
    assert gain_over(found, 0.95).high < 0.3


def test_less_is_better_of_a_latency() -> None:
    assert gains([80.0, 90.0], [100.0, 100.0], LATENCY) == pytest.approx([0.2, 0.1])


def test_where_nobody_was_served_well_a_gain_is_as_large_as_it_gets() -> None:
    assert gains([1.0, 2.0], [0.0, 0.0]) == [MOST, MOST]
    assert gains([0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]
    assert gains([50.0, 60.0], [math.inf, 100.0], LATENCY)[1] == pytest.approx(0.4)


def test_the_mean_over_seeds_is_taken_piece_by_piece_and_a_failure_is_below_all() -> None:
    ones, others = [pieces(2.0, 4.0), pieces(4.0, 4.0)], [pieces(2.0, 2.0), pieces(2.0, 2.0)]
    assert compared(ones, others, GOODPUT, 0) == pytest.approx([0.5, 1.0])
    assert compared([pieces(failed="no")], [pieces(1.0, 1.0)], GOODPUT, 0) == [-math.inf, -math.inf]
