"""Step times that vary: the same for a seed, of the spread that was recorded, and the same step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.plan import StepColumns
from simulator.costs import IntegerCosts
from simulator.jitter import Jitter, Variation

SPREAD = (0.9, 0.95, 1.0, 1.15)
STALLS = (4e6, 9e6)


@dataclass(frozen=True)
class Spreading(IntegerCosts):
    """Integer costs whose step times are spread."""

    stalled: float = 0.0

    def variation(self, columns: StepColumns) -> Variation:
        return Variation(SPREAD, (0.5, 1.5), self.stalled, STALLS if self.stalled else ())


def stretch(steps: int) -> StepColumns:
    read = 100 + 2 * np.arange(steps)
    return StepColumns("paged", "decode", steps, 2, 2, 2, 2, read, read, read, 60, 2, 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(2, 70), st.sampled_from((0.0, 0.2, 1.0)), st.data())
def test_a_stretch_varies_as_its_steps_do_however_it_is_cut(
    seed: int, first: int, steps: int, stalled: float, data: st.DataObject
) -> None:
    jitter = Jitter(Spreading(stalled=stalled), seed)
    device, host = 1_000_000 + 37 * np.arange(steps), 500_001
    whole, on_host = jitter.times(stretch(steps), first, device, host)
    cut = data.draw(st.integers(1, steps - 1))
    parts = [(0, cut), (cut, steps)]
    for begin, end in parts:
        part = jitter.times(stretch(end - begin), first + begin, device[begin:end], host)
        assert np.array_equal(np.atleast_1d(part[0]), np.atleast_1d(whole)[begin:end])
        assert np.array_equal(np.atleast_1d(part[1]), np.atleast_1d(on_host)[begin:end])
    for step in range(steps):
        one = jitter.times(stretch(1), first + step, int(device[step]), host)
        assert one == (np.atleast_1d(whole)[step], np.atleast_1d(on_host)[step])
        assert all(isinstance(time, int) for time in one)


def test_draws_are_those_of_the_spread_and_of_the_seed() -> None:
    device, host = Jitter(Spreading(), 3).times(stretch(20_000), 0, 1_000_000, 1000)
    assert isinstance(device, np.ndarray)
    assert isinstance(host, np.ndarray)
    values, counts = np.unique(device, return_counts=True)
    assert values.tolist() == [round(1_000_000 * factor) for factor in SPREAD]
    assert counts == pytest.approx(np.full(4, 5000), rel=0.05)
    assert device.mean() == pytest.approx(1_000_000, rel=0.002)
    # device and host do not go together
    assert abs(np.corrcoef(device, host)[0, 1]) < 0.03
    again, _ = Jitter(Spreading(), 3).times(stretch(20_000), 0, 1_000_000, 1000)
    other, _ = Jitter(Spreading(), 4).times(stretch(20_000), 0, 1_000_000, 1000)
    elsewhere, _ = Jitter(Spreading(), 3, replica=1).times(stretch(20_000), 0, 1_000_000, 1000)
    assert np.array_equal(device, again)
    assert not np.array_equal(device, other)
    assert not np.array_equal(device, elsewhere)


def test_the_host_is_taken_away_in_as_many_steps_as_was_recorded() -> None:
    device, host = Jitter(Spreading(stalled=0.02), 5).times(stretch(50_000), 0, 1000, 1000)
    plain, without = Jitter(Spreading(), 5).times(stretch(50_000), 0, 1000, 1000)
    assert np.array_equal(device, plain)
    stalls, counts = np.unique(np.asarray(host) - np.asarray(without), return_counts=True)
    assert stalls.tolist() == [0, *STALLS]
    assert counts[1:] == pytest.approx(np.full(2, 500), rel=0.15)
