"""The M/M/1 experiment: theory's integrals, and the simulator against two calculations that share nothing with it."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any

import numpy as np
import pytest

from core.reproduce import mg1, mm1
from core.reproduce.experiment import StepCosts, play
from core.reproduce.mm1 import DISCIPLINES, STEP_NS, lindley_wait_ns, mean_of_cycles, response_ns, service_ns
from scheduler.config import SchedulerConfig
from scheduler.request import Request

SETTINGS = {discipline.title: discipline.settings for discipline in DISCIPLINES}


def path(jobs: int, mean_tokens: int, seed: int, rho: float = 0.85) -> list[Request]:
    """Arrivals at any nanosecond, a queue that is busy most of the time, services short enough to step through."""
    rng = Random(seed)
    now, requests = 0, []
    for index in range(jobs):
        now += int(rng.expovariate(rho) * mean_tokens * STEP_NS)
        tokens = 2 + int(rng.expovariate(1) * mean_tokens)
        requests.append(Request(f"j{index}", now, 1, tokens, tokens))
    return requests


def sjf_by_events(requests: list[Request]) -> list[int]:
    """Response times of shortest job first, not preempting."""
    waiting: list[tuple[int, int]] = []
    responses = [0] * len(requests)
    now = following = 0
    while waiting or following < len(requests):
        if not waiting:
            now = max(now, requests[following].arrival_ns)
        while following < len(requests) and requests[following].arrival_ns <= now:
            heappush(waiting, (requests[following].max_tokens - 1, following))
            following += 1
        steps, index = heappop(waiting)
        now += steps * STEP_NS
        responses[index] = now - requests[index].arrival_ns
    return responses


def srpt_by_events(requests: list[Request], unserved: int) -> list[int]:
    """Response times of shortest remaining first in whole steps: a decision at the end of each.

    ``unserved``: steps by which a job that was never served looks longer than it is (1 where the token of its free
    prefill is still to come).
    """
    there: list[tuple[int, int, int]] = []
    responses = [0] * len(requests)
    now = following = 0
    while there or following < len(requests):
        if not there:
            now = max(now, requests[following].arrival_ns)
        while following < len(requests) and requests[following].arrival_ns <= now:
            steps = requests[following].max_tokens - 1
            heappush(there, (steps + unserved, following, steps))
            following += 1
        _, index, steps = heappop(there)
        now += STEP_NS
        if steps == 1:
            responses[index] = now - requests[index].arrival_ns
        else:
            heappush(there, (steps - 1, index, steps - 1))
    return responses


def paused(requests: list[Request], settings: dict[str, Any]) -> list[int]:
    """Response times where everybody is resident and one row is stepped: a preemption is a pause."""
    config = SchedulerConfig(max_running=len(requests), max_rows=1, **settings)
    _, sequences = play(config, requests, StepCosts(0, STEP_NS))
    return [sequence.finish_ns - sequence.arrival_ns for sequence in sequences]


@pytest.mark.parametrize("discipline", DISCIPLINES, ids=lambda discipline: discipline.title)
@pytest.mark.parametrize("rho", [0.8, 0.9])
def test_the_integrals_are_the_published_values(discipline: mm1.Discipline, rho: float) -> None:
    assert discipline.theory(rho) == pytest.approx(discipline.published[rho], abs=0.0005001)


def test_light_load_is_service_alone() -> None:
    for theory in (mg1.fcfs, mg1.sjf, mg1.srpt, mg1.las):
        assert theory(1e-9) == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_fcfs_is_lindleys_recursion_to_the_nanosecond(seed: int) -> None:
    requests = mm1.sample_path(3000, 0.9, seed)
    expected = lindley_wait_ns(requests) + service_ns(requests)
    assert response_ns(requests, SETTINGS["FCFS"]).tolist() == expected.tolist()


def test_srpt_that_never_preempts_is_shortest_job_first_to_the_nanosecond() -> None:
    requests = path(3000, 30, 2)
    assert response_ns(requests, {"policy": "srpt", "quantum": 1 << 40}).tolist() == sjf_by_events(requests)


def test_sjf_is_the_event_simulation_to_the_nanosecond() -> None:
    requests = path(3000, 30, 3)
    assert response_ns(requests, SETTINGS["SJF"]).tolist() == sjf_by_events(requests)


def test_srpt_by_pauses_is_the_event_simulation_to_the_nanosecond() -> None:
    requests = path(1500, 12, 4)
    assert paused(requests, {"policy": "srpt", "quantum": 0}) == srpt_by_events(requests, unserved=0)


def test_srpt_by_swaps_is_the_event_simulation_to_the_nanosecond() -> None:
    requests = path(3000, 30, 5)
    assert response_ns(requests, SETTINGS["SRPT"]).tolist() == srpt_by_events(requests, unserved=1)


def test_las_serves_a_newcomer_once_the_other_has_had_its_quantum() -> None:
    requests = [Request("long", 0, 1, 9, 9), Request("short", STEP_NS, 1, 4, 4)]
    settings = {**SETTINGS["LAS"], "quantum": 4}
    # the long one has 4 tokens at 3 (one came with its prefill), the short one runs from 3 to 6
    assert (response_ns(requests, settings) // STEP_NS).tolist() == [11, 5]


def test_service_is_geometric_with_the_stated_mean_and_load() -> None:
    requests = mm1.sample_path(20_000, 0.8, 0)
    assert service_ns(requests).mean() == pytest.approx(1000 * STEP_NS, rel=0.03)
    assert requests[-1].arrival_ns / len(requests) == pytest.approx(1000 * STEP_NS / 0.8, rel=0.03)


def test_the_error_of_a_mean_covers_it() -> None:
    """Of FCFS, whose mean is known, over short paths: about one in a hundred may lie outside, a few are let pass."""
    outside = narrower = 0
    for seed in range(60):
        requests = mm1.sample_path(3000, 0.5, seed)
        starts = lindley_wait_ns(requests) == 0
        response = lindley_wait_ns(requests) + service_ns(requests)
        mean, error = mean_of_cycles(response, starts, mm1.path_controls(requests, 0.5)[:2])
        narrower += error < mean_of_cycles(response, starts)[1]
        outside += abs(mean - 2000 * STEP_NS) > error
    assert outside <= 4
    assert narrower >= 50


def test_a_control_that_explains_everything_leaves_the_truth() -> None:
    """Values that are their true mean plus a control: the control's own mean on the path is taken out of them."""
    rng = Random(1)
    control = np.array([rng.random() for _ in range(200)]) - 0.25
    starts = np.arange(200) % 4 == 0
    mean, error = mean_of_cycles(np.rint((7 + 3 * control) * 1e9).astype(np.int64), starts, [control])
    assert mean == pytest.approx(7e9, abs=10)
    assert error < 100


def test_too_few_cycles_have_no_error() -> None:
    mean, error = mean_of_cycles(np.array([3, 5]), np.array([True, False]))
    assert (mean, error) == (4.0, float("inf"))


def test_the_known_spread_of_fcfs_is_seen_over_many_paths() -> None:
    means = []
    for seed in range(150):
        requests = mm1.sample_path(1500, 0.5, seed)
        means.append(lindley_wait_ns(requests).mean() / (1000 * STEP_NS))
    assert np.std(means) * mm1.NORMAL_QUANTILE == pytest.approx(mm1.fcfs_error(0.5, 1500), rel=0.25)
