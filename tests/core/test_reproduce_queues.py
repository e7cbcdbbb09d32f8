"""Queueing theory: closed forms, Little's law, work conservation; means with a confidence interval."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import bench
from core.reproduce import mm1, queues
from core.reproduce.confidence import Estimate, of_batches, of_replications
from core.reproduce.experiment import Options
from core.reproduce.mm1 import DISCIPLINES, STEP_NS, lindley_wait_ns, service_ns
from core.reproduce.queues import (
    LOAD,
    SERVICE_NS,
    erlang_c,
    estimate,
    in_system_ns,
    md1_response,
    mean_work,
    mmc_response,
    play,
    play_md1,
    play_mmc,
    response,
    response_by_recursion_ns,
)
from reports.run_folder import load_run
from simulator.costs import IntegerCosts

JOBS = 500


# -- confidence intervals


def test_intervals_of_replications_cover_the_mean_as_often_as_they_say() -> None:
    rng = Random(1)
    outside = sum(
        not of_replications([rng.gauss(5, 2) for _ in range(8)], confidence=0.9).covers(5) for _ in range(600)
    )
    assert 40 <= outside <= 80


def test_controls_narrow_the_interval_and_leave_the_mean() -> None:
    rng = Random(2)
    controls = [(rng.gauss(0, 1), 0.0) for _ in range(30)]
    values = [7 + 3 * control + rng.gauss(0, 0.1) for control, _ in controls]
    plain, controlled = of_replications(values), of_replications(values, controls)
    assert controlled.covers(7)
    assert controlled.error < plain.error / 10


def test_too_few_replications_have_no_interval() -> None:
    assert of_replications([3.0]) == Estimate(3.0, float("inf"))
    assert of_replications([3.0, 4.0], [(0.1,), (0.2,)]).error == float("inf")


def test_batches_are_replications_of_their_means() -> None:
    values = [float(value) for value in range(47)]
    assert of_batches(values, 4) == of_replications([5.0, 16.0, 27.0, 38.0])
    with pytest.raises(ValueError, match="3 values make no 20 batches"):
        of_batches([1, 2, 3])


# -- closed forms


def test_closed_forms_by_hand() -> None:
    assert md1_response(0.5) == 1.5
    assert erlang_c(1, 0.6) == pytest.approx(0.6)
    assert mmc_response(1, 0.6) == pytest.approx(1 / 0.4)
    # two servers at 0.8: C = 2 rho^2 / (1 + rho), T = 1 / (1 - rho^2)
    assert erlang_c(2, 0.8) == pytest.approx(1.28 / 1.8)
    assert mmc_response(2, 0.8) == pytest.approx(1 / 0.36)
    assert mean_work(0.5) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("servers", [1, 2, 8])
def test_the_recursion_gives_erlangs_formula(servers: int) -> None:
    path = mm1.sample_path(200_000, servers * LOAD, 3)
    arrival_ns = np.array([request.arrival_ns for request in path], np.int64)
    found = of_batches(response_by_recursion_ns(arrival_ns, service_ns(path), servers) / SERVICE_NS, 40)
    assert found.covers(mmc_response(servers, LOAD))
    assert found.error < 0.07 * found.mean


# -- M/D/1 and M/M/c


@pytest.mark.parametrize("rho", queues.LOADS)
def test_md1_is_pollaczek_and_khinchines(rho: float) -> None:
    found = estimate(lambda run: play_md1(JOBS, rho, run), response, 0)
    assert found.covers(md1_response(rho))
    assert found.error < 0.15 * found.mean


def test_md1_is_the_recursion_to_the_nanosecond() -> None:
    run = play_md1(2000, 0.9, 4)
    expected = response_by_recursion_ns(run.arrival_ns, run.service_ns, 1)
    assert run.response_ns.tolist() == expected.tolist()


@pytest.mark.parametrize("servers", queues.SERVERS)
def test_mmc_is_erlangs(servers: int) -> None:
    found = estimate(lambda run: play_mmc(servers, JOBS, LOAD, run), response, 0)
    assert found.covers(mmc_response(servers, LOAD))
    assert found.error < 0.15 * found.mean


@pytest.mark.parametrize("servers", queues.SERVERS)
def test_mmc_is_the_recursion_to_two_steps(servers: int) -> None:
    run = play_mmc(servers, 1500, 0.9, 5)
    expected = response_by_recursion_ns(run.arrival_ns, run.service_ns, servers)
    assert np.abs(run.response_ns - expected).max() <= 2 * STEP_NS
    # and is not that of another number of servers
    other = response_by_recursion_ns(run.arrival_ns, run.service_ns, servers + 1)
    assert np.abs(run.response_ns - other).max() > 100 * STEP_NS


def test_rows_that_share_a_server_are_no_mmc() -> None:
    """The interval tells: a step that takes longer with each row is seen."""
    costs = IntegerCosts(step_ns=0, token_ns=0, row_ns=STEP_NS, column_ns=0)

    def shared(run: int) -> queues.Played:
        path = mm1.sample_path(JOBS, 4 * 0.2, run)
        return play(path, service_ns(path), {"max_running": 4}, costs, 4 * 0.2 / SERVICE_NS)

    assert not estimate(shared, response, 0).covers(mmc_response(4, 0.2))


# -- Little's law


def test_the_number_in_the_system_by_hand() -> None:
    arrivals, finishes = np.array([0, 2, 3]), np.array([5, 4, 9])
    # 1 until 2, 2 until 3, 3 until 4, 2 until 5, 1 until 9
    assert in_system_ns(arrivals, finishes, 0, 9) == 2 + 2 + 3 + 2 + 4
    assert in_system_ns(arrivals, finishes, 1, 4) == 1 + 2 + 3


@pytest.mark.parametrize("policy", ["fcfs", "static", "sjf", "sjf-bucket", "srpt", "las", "mlfq", "vtc"])
def test_little_holds_to_the_nanosecond_for_the_requests_of_any_run(policy: str, tmp_path: Path) -> None:
    argv = ["--mode", "sim", "--workload", "chat", "--requests", "60", "--rate", "3", "--kv-tokens", "12000", "--quiet"]
    argv += ["--costs", "roofline:a100-40gb:qwen-7b", "--policy", policy, "--out", str(tmp_path / "run")]
    assert bench.main(argv) == 0
    run = load_run(tmp_path / "run")
    arrival, finish = (run.requests[name].to_numpy(np.int64) for name in ("arrival_ns", "finish_ns"))
    total = in_system_ns(arrival, finish, int(arrival.min()), int(finish.max()))
    assert total == int((finish - arrival).sum()) > 0
    # of the means in the summary: number in the system = rate x response
    makespan_s = run.summary["makespan_s"]
    expected = run.summary["requests"]["finished"] / makespan_s * run.summary["e2e_ms"]["mean"] / 1e3
    assert total / 1e9 / makespan_s == pytest.approx(expected, rel=1e-9)


def test_little_holds_on_average_within_its_interval() -> None:
    runs = [play_mmc(4, JOBS, LOAD, run) for run in range(queues.REPLICATIONS)]
    found = estimate(runs.__getitem__, queues.little_difference, 0)
    assert found.covers(0)
    assert found.error < 0.03
    busy = estimate(runs.__getitem__, queues.servers_at_work, 0)
    assert busy.covers(4 * LOAD)
    assert busy.error < 0.1


# -- work conservation


def one_server(seed: int, jobs: int = 1500, **settings: Any) -> queues.Played:
    return play_mmc(1, jobs, 0.8, seed, **settings)


@pytest.mark.parametrize("discipline", DISCIPLINES, ids=lambda discipline: discipline.title)
def test_work_is_conserved_to_the_nanosecond(discipline: mm1.Discipline) -> None:
    run = one_server(6, **discipline.settings)
    assert int((run.end_ns - run.start_ns).sum()) == int(run.service_ns.sum())
    # never idle while there is work: what is left when a job arrives is Lindley's, in any order
    expected = lindley_wait_ns(mm1.sample_path(1500, 0.8, 6))
    assert run.unfinished_ns(run.arrival_ns).tolist() == expected.tolist()
    # and so it is at any other time
    rng = Random(7)
    times = np.array(sorted(rng.randrange(int(run.end_ns[-1])) for _ in range(2000)), np.int64)
    fcfs = one_server(6)
    assert run.unfinished_ns(times).tolist() == fcfs.unfinished_ns(times).tolist()
    assert (run.unfinished_ns(times) >= 0).all()
    if discipline.title != "FCFS":
        assert run.response_ns.tolist() != fcfs.response_ns.tolist()


def test_a_server_that_waits_for_company_has_more_left_to_do() -> None:
    waiting = one_server(6, jobs=300, policy="static", min_batch=2, max_wait_s=2.0)
    left = waiting.unfinished_ns(waiting.arrival_ns) - lindley_wait_ns(mm1.sample_path(300, 0.8, 6))
    assert left.min() >= 0
    assert left.max() > SERVICE_NS


def test_the_work_that_arrivals_find_is_pollaczek_and_khinchines() -> None:
    found = estimate(lambda run: play_mmc(1, JOBS, LOAD, run), queues.work_found, 0)
    assert found.covers(mean_work(LOAD))
    assert found.error < 0.25 * found.mean


# -- the experiment


def test_every_row_is_within_what_is_allowed() -> None:
    found = queues.run(Options(jobs=3_200))
    assert [row.quantity for row in found.rows if not row.passed] == []
    assert found.measured == {"jobs": 3_200, "seed": 0}
