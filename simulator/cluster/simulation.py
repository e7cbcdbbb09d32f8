"""A workload on a cluster, from its first arrival to its last end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import simpy

from scheduler.config import SchedulerConfig
from scheduler.observer import Observer
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.cluster.cluster import Cluster, new_scheduler
from simulator.cluster.journey import Journey
from simulator.cluster.listener import Listener
from simulator.cluster.plan import ClusterPlan
from simulator.replica import ANY, Process, rare_collections


def simulate_cluster(
    requests: Iterable[Request],
    plan: ClusterPlan,
    listener: Listener | None = None,
    *,
    max_repeat: int = ANY,
    aborted: Sequence[tuple[int, str]] = (),
    make_scheduler: Callable[[SchedulerConfig, Observer], Scheduler] = new_scheduler,
    is_good: Callable[[Journey], bool] = lambda journey: True,
) -> Cluster:
    """Run ``requests`` (in order of arrival) on a cluster until all have ended.

    ``max_repeat`` 1 runs step by step. ``is_good``: whether a finished request met its objectives, for an autoscaler
    that goes by them. ``aborted``: (time, id), in order of time.
    """
    env = simpy.Environment(initial_time=0)
    cluster = Cluster(
        env, plan, listener, max_repeat=max_repeat, make_scheduler=make_scheduler, is_good=is_good
    )  # fmt: skip

    def arrivals() -> Process:
        for request in requests:
            if request.arrival_ns > env.now:
                yield env.timeout(request.arrival_ns - env.now)
            cluster.submit(request)
        cluster.no_more_arrivals()

    def aborts() -> Process:
        for time_ns, request_id in aborted:
            if time_ns > env.now:
                yield env.timeout(time_ns - env.now)
            cluster.abort(request_id)

    env.process(arrivals())
    env.process(aborts())
    with rare_collections():
        env.run(until=cluster.done)
        cluster.close()
        # a plan in flight may still compute rows for requests that have ended
        env.run()
    return cluster
