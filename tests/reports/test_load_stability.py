from __future__ import annotations

import heapq

import numpy as np
import pytest

from reports.load import assess_load

S = 1_000_000_000


def queue(gaps_s: list[float], service_s: list[float], servers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival, start and end of each request of a first-come queue, in nanoseconds."""
    free, arrivals, starts, ends = [0.0] * servers, [], [], []
    now = 0.0
    for gap, service in zip(gaps_s, service_s, strict=True):
        now += gap
        start = max(now, heapq.heappop(free))
        heapq.heappush(free, start + service)
        arrivals.append(now)
        starts.append(start)
        ends.append(start + service)
    return tuple(np.round(np.array(times) * S).astype(np.int64) for times in (arrivals, starts, ends))


def even(n: int, gap_s: float, service_s: float, servers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return queue([gap_s] * n, [service_s] * n, servers)


def test_an_overloaded_queue_grows_by_arrivals_minus_service() -> None:
    # 2 requests/s arrive, 4 servers of 4 s take 1 a second
    load = assess_load(*even(400, 0.5, 4.0, 4))
    assert load.saturated is True
    assert load.queue_growth_per_s == pytest.approx(1.0, rel=0.02)
    assert load.arrival_rate_per_s == pytest.approx(2.0)
    assert load.service_rate_per_s == pytest.approx(1.0, rel=0.05)
    low, high = load.queue_growth_ci
    assert low <= load.queue_growth_per_s <= high


def test_a_load_below_the_capacity_is_stable() -> None:
    load = assess_load(*even(400, 0.5, 4.0, 10))
    assert load.saturated is False
    assert load.note is None


def test_a_busy_but_stable_random_queue_is_hardly_ever_called_saturated() -> None:
    rng = np.random.default_rng(7)
    calls = 0
    for _ in range(40):
        gaps, service = rng.exponential(1.0, 300).tolist(), rng.exponential(8 * 0.9, 300).tolist()
        calls += assess_load(*queue(gaps, service, 8)).saturated is True
    assert calls <= 2


def test_an_overloaded_random_queue_is_seen() -> None:
    rng = np.random.default_rng(8)
    seen = 0
    for _ in range(20):
        gaps, service = rng.exponential(1.0, 400).tolist(), rng.exponential(8 * 2.0, 400).tolist()
        seen += assess_load(*queue(gaps, service, 8)).saturated is True
    assert seen >= 18


def test_all_at_once_has_no_arrival_period() -> None:
    zeros = np.zeros(50, np.int64)
    load = assess_load(zeros, zeros, np.arange(1, 51) * S)
    assert load.saturated is None
    assert "at once" in (load.note or "")


def test_few_arrivals_tell_nothing() -> None:
    load = assess_load(*even(20, 0.5, 4.0, 1))
    assert load.saturated is None
    assert "too few arrivals" in (load.note or "")


def test_a_ramp_to_a_full_batch_is_not_called_saturation() -> None:
    # nobody waits, and all arrive within less than one request's service
    load = assess_load(*even(100, 0.1, 60.0, 100))
    assert load.saturated is None
    assert "nobody waits" in (load.note or "")


def test_the_order_of_rows_does_not_matter() -> None:
    arrivals, starts, ends = even(200, 0.5, 4.0, 4)
    mixed = np.random.default_rng(1).permutation(200)
    assert assess_load(arrivals, starts, ends) == assess_load(arrivals[mixed], starts[mixed], ends[mixed])
