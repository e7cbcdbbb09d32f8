"""How near a run came to what no schedule can beat: the ``bounds`` of ``summary.json``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.waste import column
from scheduler.config import SchedulerConfig
from simulator.bounds import FlooredCosts, Job, Limits, bounds
from simulator.costs import CostError, CostModel

FIGURES = ("mean_e2e_ms", "e2e_share", "output_tokens_per_s", "throughput_share")
NOT_SERVED = "no request finished"


def bounds_block(
    done: pd.DataFrame,
    config: SchedulerConfig | None,
    costs: CostModel | None,
    throughput_per_s: float | None,
    absent: dict[str, str],
    *,
    simulated: bool,
    several: bool = False,
) -> dict[str, Any]:
    """The bounds for the finished requests ``done``, and how near the run came: bound / mean E2E, throughput / bound.

    1 is the bound itself. ``proven``: simulated on these very costs, so that no schedule can pass it; a measured step
    may be faster than costs fitted to the run say. ``absent`` gets the reason where there is none, as on ``several``
    replicas: the bounds are those of one.
    """
    nothing: dict[str, Any] = {**dict.fromkeys(FIGURES), "limited_by": None, "proven": None}
    reason = "bounds are of one replica, and there are several" if several else _why_not(done, config, costs)
    if reason is None and config is not None and isinstance(costs, FlooredCosts):
        jobs = map(Job, *(column(done, name).tolist() for name in ("arrival_ns", "prompt_tokens", "output_tokens")))
        try:
            found = bounds(jobs, costs.floors(config.layout, config.overlap), Limits.of(config))
        except CostError as error:
            reason = str(error)
        else:
            mean_ns = float((column(done, "finish_ns") - column(done, "arrival_ns")).mean())
            most = found.output_tokens_per_s
            if not most:
                absent["bounds.output_tokens_per_s"] = absent["bounds.throughput_share"] = "steps may cost nothing"
            elif throughput_per_s is None:
                absent["bounds.throughput_share"] = "the makespan is 0"
            if not mean_ns:
                absent["bounds.e2e_share"] = "the mean E2E is 0"
            return {
                "mean_e2e_ms": found.mean_latency.ns / 1e6,
                "e2e_share": found.mean_latency.ns / mean_ns if mean_ns else None,
                "output_tokens_per_s": most,
                "throughput_share": throughput_per_s / most if most and throughput_per_s is not None else None,
                "limited_by": {"e2e": found.mean_latency.binding, "throughput": found.makespan.binding},
                "proven": simulated,
            }
    absent.update({f"bounds.{name}": reason or "" for name in FIGURES})
    return nothing


def _why_not(done: pd.DataFrame, config: SchedulerConfig | None, costs: CostModel | None) -> str | None:
    if not len(done):
        return NOT_SERVED
    if costs is None:
        return "no cost model was given, which a bound needs"
    if config is None:
        return "the manifest does not hold the scheduler's settings"
    if not isinstance(costs, FlooredCosts):
        return f"the cost model {costs.name} does not say what no step can be faster than"
    return None
