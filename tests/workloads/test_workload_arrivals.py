"""Arrival processes: what they are statistically, and what the settings may say together."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workloads.arrivals import ArrivalPlan, Arrivals, gamma_variate, plan_arrivals
from workloads.errors import WorkloadError


def gaps_s(spec: str, rate: float, count: int, seed: int = 11) -> list[float]:
    times = ArrivalPlan(Arrivals.parse(spec), rate).times_ns(count, random.Random(seed))
    return [(b - a) / 1e9 for a, b in pairwise(times)]


def plan(
    asked: str | None = None,
    rate: float | None = None,
    time_scale: float | None = None,
    default: Arrivals | None = None,
    default_rate: float | None = None,
    recorded: bool = False,
) -> ArrivalPlan:
    return plan_arrivals(
        asked,
        rate=rate,
        time_scale=time_scale,
        default=default,
        default_rate=default_rate,
        recorded=recorded,
        what="trace t.csv",
    )


@settings(deadline=None)
@given(
    st.sampled_from(["poisson", "gamma:0.3", "gamma:1", "gamma:4", "gamma:100", "constant"]),
    st.floats(1e-3, 1e6),
    st.floats(0.01, 100),
    st.integers(1, 60),
    st.integers(0, 2**32),
)
def test_synthetic_arrivals_are_integers_from_zero_that_never_fall(
    spec: str, rate: float, time_scale: float, count: int, seed: int
) -> None:
    times = ArrivalPlan(Arrivals.parse(spec), rate, time_scale).times_ns(count, random.Random(seed))
    assert len(times) == count
    assert times[0] == 0
    assert all(type(time) is int for time in times)
    assert all(a <= b for a, b in pairwise(times))


@pytest.mark.parametrize(
    ("spec", "cv", "tolerance"),
    [("poisson", 1.0, 0.02), ("gamma:0.25", 0.25, 0.02), ("gamma:1", 1.0, 0.02), ("gamma:1.09", 1.09, 0.02),
     ("gamma:3.5", 3.5, 0.06)],
)  # fmt: skip
def test_gaps_have_the_asked_mean_and_coefficient_of_variation(spec: str, cv: float, tolerance: float) -> None:
    gaps = gaps_s(spec, rate=8.0, count=60_000)
    mean = statistics.fmean(gaps)
    # four standard errors of the mean
    assert mean == pytest.approx(1 / 8, rel=4 * cv / 60_000**0.5)
    assert statistics.pstdev(gaps) / mean == pytest.approx(cv, rel=tolerance)


@pytest.mark.parametrize("cv", [0.2, 0.7, 1.0, 1.5, 4.0])
def test_gamma_gaps_are_gamma_distributed(cv: float) -> None:
    shape = cv**-2
    rng = random.Random(5)
    drawn = [gamma_variate(shape, rng) for _ in range(20_000)]
    assert stats.kstest(drawn, stats.gamma(shape).cdf).pvalue > 0.01
    assert stats.kstest(drawn, stats.gamma(shape * 1.05).cdf).pvalue < 0.01


def test_poisson_gaps_are_exponential() -> None:
    assert stats.kstest(gaps_s("poisson", 2.0, 20_000), stats.expon(scale=0.5).cdf).pvalue > 0.01


def test_poisson_arrivals_are_not_rescaled_to_hit_the_rate() -> None:
    """The number in a window varies as a Poisson count does; a rescaled process would hit its rate each time."""
    spans = [sum(gaps_s("poisson", 1.0, 101, seed)) for seed in range(300)]
    assert statistics.fmean(spans) == pytest.approx(100, rel=0.03)
    assert statistics.pstdev(spans) == pytest.approx(10, rel=0.15)


def test_constant_arrivals_are_evenly_spaced_and_do_not_drift() -> None:
    times = ArrivalPlan(Arrivals.parse("constant"), 3.0).times_ns(3001, random.Random(1))
    assert {b - a for a, b in pairwise(times)} == {333_333_333, 333_333_334}
    assert times[3000] == 1000 * 10**9


def test_all_at_once_is_zero_for_everyone() -> None:
    assert plan("all-at-once").times_ns(3, random.Random(1)) == [0, 0, 0]


def test_time_scale_two_is_twice_as_slow() -> None:
    quick = plan("poisson", rate=5.0).times_ns(50, random.Random(3))
    slow = plan("poisson", rate=5.0, time_scale=2).times_ns(50, random.Random(3))
    assert slow == [2 * time for time in quick]
    assert "2 times as slow" in str(plan("poisson", rate=5.0, time_scale=2))
    assert "4 times as fast" in str(plan("poisson", rate=5.0, time_scale=0.25))


def test_recorded_times_are_kept_and_scaled() -> None:
    recorded = plan(default=Arrivals("trace"), recorded=True)
    assert recorded.times_ns(3, random.Random(1), [0, 7, 7]) == [0, 7, 7]
    scaled = plan(default=Arrivals("trace"), recorded=True, time_scale=0.5)
    assert scaled.times_ns(3, random.Random(1), [0, 7, 2_000_000_000]) == [0, 4, 1_000_000_000]


def test_a_rate_alone_means_poisson_unless_the_default_has_a_rate_itself() -> None:
    assert plan(rate=4.0, default=Arrivals("all-at-once")).arrivals == Arrivals("poisson")
    assert plan(rate=4.0, default=Arrivals("trace"), recorded=True).arrivals == Arrivals("poisson")
    assert plan(rate=4.0).arrivals == Arrivals("poisson")
    kept = plan(rate=4.0, default=Arrivals("gamma", 2.0), default_rate=9.0)
    assert (kept.arrivals, kept.rate_per_s) == (Arrivals("gamma", 2.0), 4.0)


def test_a_process_alone_takes_the_default_rate() -> None:
    assert plan("constant", default=Arrivals("trace"), default_rate=2.5, recorded=True).rate_per_s == 2.5


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("posson", r"unknown arrivals 'posson'; did you mean 'poisson'\? valid: poisson, gamma:CV, constant"),
        ("gama:2", r"did you mean 'gamma'\?"),
        ("", "unknown arrivals ''; valid"),
        ("gamma", "gamma needs its coefficient of variation as a number"),
        ("gamma:wide", "gamma needs its coefficient of variation as a number"),
        ("gamma:0", "from 0.001 to 1000"),
        ("gamma:-1", "from 0.001 to 1000"),
        ("gamma:nan", "from 0.001 to 1000"),
        ("poisson:3", "takes no value after a colon; write poisson"),
    ],
)
def test_bad_arrivals_are_named_with_the_valid_ones(spec: str, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        Arrivals.parse(spec)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"asked": "poisson"}, "arrivals poisson: trace t.csv has no rate of its own"),
        ({"asked": "trace"}, "trace t.csv has no recorded arrival times"),
        ({}, "trace t.csv has lengths but no arrival times; give a rate"),
        ({"asked": "trace", "rate": 2.0, "recorded": True}, "rate 2 has no effect on arrivals trace"),
        ({"asked": "all-at-once", "rate": 2.0}, "rate 2 has no effect on arrivals all-at-once"),
        ({"asked": "all-at-once", "time_scale": 2.0}, "time scale 2 has no effect on arrivals all-at-once"),
        ({"asked": "poisson", "rate": 0.0}, "rate is 0; must be from 1e-06"),
        ({"asked": "poisson", "rate": -1.0}, "rate is -1"),
        ({"asked": "poisson", "rate": float("nan")}, "rate is nan"),
        ({"asked": "poisson", "rate": float("inf")}, "rate is inf"),
        ({"asked": "poisson", "rate": 1.0, "time_scale": 0.0}, "time scale is 0; must be from"),
    ],
)
def test_settings_without_an_effect_or_sense_are_errors(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        plan(**arguments)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["poisson", "gamma:2", "constant"]))
def test_arrivals_beyond_all_time_are_an_error(spec: str) -> None:
    with pytest.raises(WorkloadError, match="146 years"):
        ArrivalPlan(Arrivals.parse(spec), 1e-6, 1e6).times_ns(2000, random.Random(1))


def test_arrivals_print_as_they_are_written() -> None:
    for spec in ("poisson", "gamma:1.09", "constant", "all-at-once", "trace"):
        assert str(Arrivals.parse(spec)) == spec
