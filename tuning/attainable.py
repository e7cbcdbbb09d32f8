"""What no schedule can keep: objectives that a request misses even if the machine is its own."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import numpy as np

from core.runs import Case, Session
from reports.percentiles import nearest_rank
from reports.slo import Slo
from reports.summary import latencies
from scheduler.scheduler import Scheduler
from simulator.costs import CostModel
from simulator.replica import simulate
from tuning.errors import TuningError
from tuning.world import Rows, World
from workloads.workload import Workload

#: requests that are looked at, evenly over the workload
SAMPLE = 300
#: from one to the next, so that each is alone
APART_NS = 10**12


def alone(args: argparse.Namespace, costs: CostModel, workload: Workload) -> dict[str, np.ndarray]:
    """The latencies (ms) of requests of the workload, each served as if it were the only one: the least there is."""
    step = max(1, len(workload) // SAMPLE)
    rows = tuple(row.arriving_at(APART_NS * place) for place, row in enumerate(workload.rows[::step]))
    session = Session(args, "", replace(workload, rows=rows))
    case = Case("fcfs", (args.layout or ["paged"])[0])
    config = session.config(case, costs.kv_tokens, costs.context_tokens, costs, plain=True)
    # a long prompt in one piece is soonest done, and host time may be hidden
    config = replace(config, max_prefill_tokens=max(row.prompt_tokens for row in rows), overlap=args.overlap)
    costs, _ = session.step_times(case, costs)
    found = Rows()
    simulate(session.requests(), Scheduler(config, found), costs)
    return latencies(found.frame()).in_ms()


def check_attainable(world: World, slo: Slo, target: float) -> None:
    """:class:`TuningError` where fewer than ``target`` of the requests could meet ``slo`` on an idle machine, with the
    nearest objectives that they could."""
    costs = next(iter(world.costs.values()))
    found = alone(world.space.arguments(world.space.start), costs, world.workload(world.args.seed))
    share = float(slo.met(found).mean())
    if share >= target:
        return
    parts = []
    nearest = {}
    for name, limit in slo.limits_ms.items():
        values = np.sort(found[name][~np.isnan(found[name])])
        least = float(values[nearest_rank(math.ceil(100 * target), len(values)) - 1]) if len(values) else 0.0
        nearest[name] = limit if least <= limit else _rounded_up(least)
        if least > limit:
            parts.append(f"{name} is at least {values[0]:.3g}, and {least:.3g} for {100 * target:g} % of them")
    while nearest and float(Slo(nearest).met(found).mean()) < target:
        # several objectives at once are met by fewer than each alone
        nearest = {name: _rounded_up(limit * 1.02) for name, limit in nearest.items()}
    text = ",".join(f"{name}={limit:g}" for name, limit in nearest.items())
    raise TuningError(
        f"no schedule can meet {slo} on {costs.name}: alone on an idle machine {100 * share:.0f} % of the requests do "
        f"({'; '.join(parts) or 'all objectives at once'}); the nearest that {100 * target:g} % can meet: --slo {text}"
    )


def _rounded_up(value: float) -> float:
    """Three digits, never less."""
    digits = 2 - math.floor(math.log10(value))
    return float(math.ceil(value * 10.0**digits) / 10.0**digits)
