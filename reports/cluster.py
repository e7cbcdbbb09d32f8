"""Runs on several replicas: their folder's writer, and the ``cluster`` block of ``summary.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from reports.rows import REQUEST_COLUMNS, STEP_COLUMNS
from reports.run_folder import FolderWriter, request_row, step_row
from scheduler.plan import StepOutcome, StepPlan
from simulator.cluster import Cluster, ClusterPlan, Journey
from simulator.costs import CostModel

S = 1e9
SECONDS_OF_AN_HOUR = 3600


class ClusterWriter(FolderWriter):
    """Writes the run folder of a cluster as things happen; a :class:`~simulator.cluster.Listener`.

    Requests have the replica that they ended at (-1: at the router) and how often one was lost under them, steps the
    replica that ran them.
    """

    request_columns = (*REQUEST_COLUMNS, "replica", "retries")
    step_columns = (*STEP_COLUMNS, "replica")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: by start of a replica
        self._last_end_ns: dict[int, int] = {}

    def stepped(self, replica: int, start: int, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        """Write the row of a plan of which ``steps`` steps were run."""
        before_ns = self._last_end_ns.get(start, 0)
        self._last_end_ns[start] = int(outcome.ends_ns[-1])
        self.write_step((*step_row(plan, steps, outcome, before_ns), replica))

    def ended(self, journey: Journey) -> None:
        """Write the row of a request that finished, was rejected or was aborted."""
        self.write_request((*request_row(journey), journey.replica, journey.retries))


def cluster_block(cluster: Cluster, plan: ClusterPlan, gpus: int = 1) -> dict[str, Any]:
    """What only a cluster has. ``gpus``: of each replica."""
    roles = ["prefill"] * plan.prefill + ["decode" if plan.prefill else "all"] * (plan.replicas - plan.prefill)
    replicas = []
    for number, (usage, role, costs) in enumerate(zip(cluster.usage, roles, plan.costs, strict=True)):
        busy_ns = cluster.busy_ns(number)
        replicas.append(
            {
                "replica": number,
                "role": role,
                "costs": costs.name,
                "requests": usage.requests,
                "finished": usage.finished,
                "lost": usage.lost,
                "starts": usage.starts,
                "held_s": usage.held_ns / S,
                "busy_s": busy_ns / S,
                "utilisation": busy_ns / usage.held_ns if usage.held_ns else None,
            }
        )
    held_s = sum(usage.held_ns for usage in cluster.usage) / S
    journeys = cluster.journeys.values()
    price = None if plan.scaling is None else plan.scaling.replica_hour_price
    return {
        "router": plan.router,
        "replicas": replicas,
        "retried_requests": sum(journey.retries > 0 for journey in journeys),
        "retries": sum(journey.retries for journey in journeys),
        "lost_tokens": sum(journey.lost_tokens for journey in journeys),
        "replica_seconds": held_s,
        "gpu_seconds": held_s * gpus,
        "cost": None if price is None else price * held_s / SECONDS_OF_AN_HOUR,
        "peak_replicas": max(up for _, up, _ in cluster.sizes),
        "sizes": [[time_ns / S, up, coming] for time_ns, up, coming in cluster.sizes],
        "end_s": cluster.end_ns / S,
        "transfers": _transfers(cluster, plan),
    }


def _transfers(cluster: Cluster, plan: ClusterPlan) -> dict[str, Any] | None:
    if plan.link is None:
        return None
    counts = cluster.transfers
    held_ns = sum(usage.held_ns for usage in cluster.usage[: plan.prefill])
    return {
        "count": counts.transfers,
        "lost": counts.lost,
        "tokens": counts.tokens,
        "bytes": counts.tokens * plan.link.token_bytes,
        "mean_wait_ms": counts.waited_ns / counts.transfers / 1e6 if counts.transfers else None,
        "mean_ms": counts.busy_ns / counts.transfers / 1e6 if counts.transfers else None,
        "link_utilisation": counts.busy_ns / held_ns if held_ns else None,
        "peak_tokens": counts.peak_tokens,
    }


def cluster_digest(cluster: Cluster) -> str:
    """One hash over the plans of all replicas, in order of their starts."""
    digests = [instance.scheduler.digest.hexdigest() for instance in cluster.instances]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def common_costs(costs: Sequence[CostModel]) -> CostModel | None:
    """The cost model of all replicas, or ``None`` where they differ."""
    return costs[0] if all(one is costs[0] for one in costs) else None
