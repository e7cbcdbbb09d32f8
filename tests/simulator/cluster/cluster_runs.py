"""Random clusters for property tests, and what is kept of their runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from random_runs import Run

from scheduler.plan import StepOutcome, StepPlan
from simulator.cluster import Cluster, ClusterPlan, Journey, simulate_cluster
from simulator.cluster.autoscaler import AutoscaleSettings
from simulator.cluster.faults import Fault
from simulator.cluster.routers import ROUTERS
from simulator.cluster.transfer import Link
from simulator.replica import ANY


@dataclass
class Record:
    """A listener that keeps all; stretches are taken apart into their steps."""

    gap_counts: Counter[int] = field(default_factory=Counter)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    journeys: list[Journey] = field(default_factory=list)

    def stepped(self, replica: int, start: int, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        columns = plan.columns(0, steps)
        for step, end in enumerate(outcome.ends_ns):
            row = [int(value[step]) if isinstance(value, np.ndarray) else value for value in columns]
            row[2] = 1
            self.steps.append((int(end), replica, start, *row))

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        for gap in gap_ns:
            self.gap_counts[int(gap)] += weight

    def ended(self, journey: Journey) -> None:
        self.journeys.append(journey)


def outcome_of(journey: Journey) -> tuple[Any, ...]:
    """What a run says of one request."""
    return (
        journey.id, journey.number, journey.state, journey.reason, journey.replica, journey.retries,
        journey.output_tokens, journey.first_scheduled_ns, journey.first_token_ns, journey.finish_ns,
        journey.preemptions, journey.recomputed_tokens, journey.swapped_out, journey.swapped_in,
        journey.prefix_hit_tokens, journey.over_threshold,
    )  # fmt: skip


def draw_plan(run: Run, seed: int, **fixed: Any) -> ClusterPlan:
    """Replicas of a run's settings and costs, under a random router, faults, and an autoscaler or prefill replicas."""
    rng = Random(f"cluster {seed}")
    # times of a run are those of its costs
    step_ns = run.costs.device.step_ns  # type: ignore[attr-defined]
    replicas = rng.choice((1, 2, 2, 3, 4))
    known = [name for name, entry in ROUTERS.items() if run.config.prefix_cache or not entry.needs_prefix_cache]
    drawn: dict[str, Any] = {"router": rng.choice(known), "seed": rng.randrange(100)}
    kind = rng.choice(("plain", "plain", "scaled", "apart"))
    if kind == "scaled":
        least = rng.randint(1, replicas)
        interval_s = rng.choice((2, 5, 7.5)) * step_ns / 1e9
        drawn["scaling"] = AutoscaleSettings(
            min_replicas=least,
            max_replicas=replicas,
            initial_replicas=rng.randint(least, replicas),
            metric=rng.choice(("ongoing", "queue", "slo")),
            target_ongoing_requests=rng.choice((0.5, 2, 4)),
            metrics_interval_s=interval_s,
            look_back_period_s=rng.choice((1, 3)) * interval_s,
            upscale_delay_s=rng.choice((0, 1)) * interval_s,
            downscale_delay_s=rng.choice((0, 2)) * interval_s,
            cooldown_s=rng.choice((0, 0, 3)) * interval_s,
            cold_start_s=rng.choice((0, 3, 10)) * step_ns / 1e9,
        )
    elif kind == "apart" and replicas > 1:
        drawn["prefill"] = rng.randint(1, replicas - 1)
        drawn["link"] = Link(1, rng.choice((1e9, 1e7, 1e8)) / step_ns * 1000, rng.choice((0, step_ns / 1e9)))
    faults = []
    at = 0.0
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        at += rng.choice((1, 2.5, 3, 7, 12, 30)) * step_ns / 1e9
        lasts = rng.choice((1, 4.5, 20)) * step_ns / 1e9
        if rng.random() < 0.6:
            returns = rng.random() < 0.8
            faults.append(Fault("die", rng.randrange(replicas), at, lasts if returns else None))
            at += lasts
        else:
            faults.append(Fault("slow", rng.randrange(replicas), at, lasts, rng.choice((0.5, 1.5, 3))))
    # none after one that does not return
    gone: set[int] = set()
    kept = []
    for fault in faults:
        if fault.replica not in gone:
            kept.append(fault)
        if fault.kind == "die" and fault.for_s is None:
            gone.add(fault.replica)
    drawn["faults"] = tuple(kept)
    return ClusterPlan((run.config,) * replicas, (run.costs,) * replicas, **{**drawn, **fixed})


def ran(run: Run, plan: ClusterPlan, max_repeat: int = ANY) -> tuple[Cluster, Record]:
    """The cluster after the run, and what was heard of it."""
    record = Record()
    cluster = simulate_cluster(run.requests, plan, record, max_repeat=max_repeat, aborted=run.aborts)
    return cluster, record
