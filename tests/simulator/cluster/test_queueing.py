"""What queueing theory says of routers: exact recursions on the same jobs, and closed forms within a few per cent.

A replica serves one job at a time; a job is a request of one prompt token, whose prefill costs nothing, and of a
geometric number of steps, the exponential in whole tokens (as in :mod:`core.reproduce.mm1`).
"""

from __future__ import annotations

from functools import cache
from heapq import heapify, heapreplace
from math import factorial

import numpy as np
import pytest
from cluster_runs import Record

from core.reproduce.experiment import StepCosts
from core.reproduce.mm1 import MEAN_TOKENS, STEP_NS, sample_path
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from simulator.cluster import ClusterPlan, Journey, simulate_cluster

#: load of each replica, and a job's mean service
RHO = 0.8
SERVICE_NS = MEAN_TOKENS * STEP_NS
JOBS = 8_000


class Ends(Record):
    """Keeps the requests and nothing of the steps."""

    def stepped(self, *_: object) -> None: ...

    def gaps(self, *_: object) -> None: ...


@cache
def jobs(replicas: int, count: int = JOBS) -> tuple[Request, ...]:
    return tuple(sample_path(count, RHO * replicas, seed=1))


@cache
def served(router: str, replicas: int) -> tuple[Journey, ...]:
    """The jobs in order of arrival."""
    config = SchedulerConfig(max_running=1, starvation_s=1e9, block_tokens=256, kv_tokens=1 << 24)
    record = Ends()
    plan = ClusterPlan((config,) * replicas, (StepCosts(0, STEP_NS),) * replicas, router)
    simulate_cluster(jobs(replicas), plan, record)
    return tuple(sorted(record.journeys, key=lambda journey: journey.number))


def mean_wait(router: str, replicas: int) -> float:
    """In mean services."""
    found = served(router, replicas)
    return float(np.mean([j.first_scheduled_ns - j.arrival_ns for j in found])) / SERVICE_NS


def erlang_c_wait(servers: int) -> float:
    """Mean wait of M/M/c at load :data:`RHO` a server, in mean services."""
    offered = servers * RHO
    waits = offered**servers / factorial(servers) / (1 - RHO)
    share = waits / (waits + sum(offered**k / factorial(k) for k in range(servers)))
    return share / (servers * (1 - RHO))


def mm1_wait() -> float:
    return RHO / (1 - RHO)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_behind_a_central_queue_are_one_queue_with_many_servers(replicas: int) -> None:
    """Job by job, to the nanosecond: each goes to the server that is free first (Kiefer and Wolfowitz, 1955)."""
    free_ns = [0] * replicas
    heapify(free_ns)
    for journey in served("central-queue", replicas):
        start_ns = max(journey.arrival_ns, free_ns[0])
        assert journey.first_scheduled_ns == start_ns
        heapreplace(free_ns, start_ns + (journey.request.max_tokens - 1) * STEP_NS)


@pytest.mark.parametrize("router", ["random", "round-robin", "power-of-two", "least-outstanding"])
def test_behind_any_other_router_each_replica_is_a_queue_of_its_own(router: str) -> None:
    """Job by job: those of each replica follow Lindley's recursion."""
    free_ns = [0] * 4
    for journey in served(router, 4):
        assert journey.first_scheduled_ns == max(journey.arrival_ns, free_ns[journey.replica])
        free_ns[journey.replica] = journey.finish_ns
        assert journey.finish_ns - journey.first_scheduled_ns == (journey.request.max_tokens - 1) * STEP_NS


@pytest.mark.parametrize("replicas", [2, 4])
def test_the_central_queue_waits_as_erlang_says(replicas: int) -> None:
    assert mean_wait("central-queue", replicas) == pytest.approx(erlang_c_wait(replicas), rel=0.2)


def test_a_random_split_waits_as_queues_of_one_server() -> None:
    """A Poisson process split at random is as many Poisson processes."""
    assert mean_wait("random", 4) == pytest.approx(mm1_wait(), rel=0.2)


def test_routers_stand_in_theorys_order() -> None:
    """Shared queue <= shortest queue <= two choices <= random; turns (Erlang arrivals) are better than random."""
    central, shortest, two, turns, random = (
        mean_wait(router, 4)
        for router in ("central-queue", "least-outstanding", "power-of-two", "round-robin", "random")
    )
    assert central < shortest < two < random
    assert central < turns < random
