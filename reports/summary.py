"""``summary.json``: every figure of a run, under names that never change.

What is not defined for a run is ``null``, and ``not_available`` (or a distribution's ``note``) says why; 0 always means
zero. Everything is a function of the rows, the counters and the plans, and so the same each time a simulation is
repeated, apart from ``wall_clock`` and ``scheduler_us_per_step``, which are measured while the run goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.beyond import beyond_recorded
from reports.bounds import bounds_block
from reports.histogram import Histogram
from reports.load import LoadStability, assess_load, unknown_load
from reports.percentiles import Distribution, describe, missing, wilson_interval
from reports.settings import settings_in_force
from reports.slo import Slo
from reports.waste import column, time_waste
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from simulator.costs import CostError, CostModel

SCHEMA_VERSION = 1

MS = 1e6
S = 1e9

NONE_FINISHED = "no request finished"
KILLED = "the run did not end, and no row holds it"


@dataclass(frozen=True)
class WallClock:
    """What the run itself took: when it began (ISO 8601), its seconds, and the host's nanoseconds in ``next_step`` and
    ``complete`` (``None`` where nobody measured them)."""

    started_at: str | None = None
    seconds: float | None = None
    scheduler_ns: int | None = None


@dataclass(frozen=True)
class Latencies:
    """Per-request latencies of the finished requests, in nanoseconds, in the order of their rows.

    ``tpot`` is NaN for a request of one token. Aborted and rejected requests have no latency.
    """

    ttft: npt.NDArray[np.int64]
    e2e: npt.NDArray[np.int64]
    queue: npt.NDArray[np.int64]
    tpot: npt.NDArray[np.float64]
    normalized: npt.NDArray[np.float64]

    @property
    def defined_tpot(self) -> npt.NDArray[np.float64]:
        return self.tpot[~np.isnan(self.tpot)]

    def in_ms(self) -> dict[str, npt.NDArray[np.float64]]:
        """By the objectives' names (see :mod:`reports.slo`), in milliseconds."""
        return {
            "ttft_ms": self.ttft / MS,
            "tpot_ms": self.tpot / MS,
            "e2e_ms": self.e2e / MS,
            "queue_ms": self.queue / MS,
            "normalized_ms": self.normalized / MS,
        }


def finished(requests: pd.DataFrame) -> pd.DataFrame:
    """The rows of the requests that finished."""
    return requests[requests["outcome"] == "finished"]


def latencies(requests: pd.DataFrame) -> Latencies:
    """The latencies of the finished requests."""
    done = finished(requests)
    arrival, first, last = (column(done, name) for name in ("arrival_ns", "first_token_ns", "finish_ns"))
    tokens = column(done, "output_tokens")
    between = np.where(tokens > 1, tokens - 1, 1)
    return Latencies(
        ttft=first - arrival,
        e2e=last - arrival,
        queue=column(done, "first_scheduled_ns") - arrival,
        tpot=np.where(tokens > 1, (last - first) / between, np.nan),
        normalized=(last - arrival) / np.maximum(tokens, 1),
    )


def summarise(
    requests: pd.DataFrame,
    steps: pd.DataFrame,
    gaps: Histogram | None,
    counters: RunCounters,
    plan_digest: str,
    *,
    slo: Slo | None = None,
    costs: CostModel | None = None,
    wall: WallClock | None = None,
    partial: bool = False,
    config: SchedulerConfig | None = None,
    simulated: bool = False,
    projection: str | None = None,
    cluster: Mapping[str, Any] | None = None,
    varied: bool = False,
) -> dict[str, Any]:
    """All figures of a run, as ``summary.json`` holds them.

    ``costs`` gives padding waste in time and, with ``config``, the bounds; ``config`` the settings in force and whether
    there was a prefix cache; ``slo`` goodput; ``projection`` says what the costs are a projection of, if they are one.
    ``partial`` says that the counters were rebuilt from the rows of a run that was killed, so that some figures are not
    available. ``cluster`` is what only a run on several replicas has. ``varied``: step times varied around what
    ``costs`` say.
    """
    wall = wall or WallClock()
    absent: dict[str, str] = {}
    steps_total = counters.steps_prefill + counters.steps_decode + counters.steps_mixed
    overhead_us = None if wall.scheduler_ns is None or not steps_total else wall.scheduler_ns / steps_total / 1e3
    if overhead_us is None:
        absent["scheduler_us_per_step"] = "nobody measured it" if steps_total else "no step was run"
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "partial": partial,
        "projection": projection,
        "requests": _requests(counters, absent, partial),
        **_throughput(requests, absent),
        **_distributions(requests, gaps, partial),
        "padding_waste": _padding_waste(steps, counters, costs, absent),
        "steps": {
            "total": steps_total,
            "prefill": counters.steps_prefill,
            "decode": counters.steps_decode,
            "mixed": counters.steps_mixed,
            "rows_written": len(steps),
        },
        "tokens": _tokens(requests, counters, partial),
        "mean_decode_batch": _ratio(counters.decode_rows, counters.steps_decode + counters.steps_mixed),
        "batch_occupancy": _ratio(counters.decode_rows, counters.decode_rows_computed),
        "preemptions": None if partial else counters.preemptions,
        "swapped": _swapped(counters, absent, partial),
        "prefix": _prefix(counters, absent, partial, config),
        "kv": _kv(counters, absent, partial),
        "overlap": _overlap(counters, absent, partial),
        **_goodput(requests, slo, absent),
        "starvation": _starvation(requests, counters, absent, partial),
        "scheduler_us_per_step": overhead_us,
        "plan_digest": plan_digest,
        "scheduler": None if config is None else settings_in_force(config),
        "load": _load(requests, partial),
        "time": _time(steps, absent),
        "counters": asdict(counters),
        "wall_clock": {
            "started_at": wall.started_at,
            "seconds": wall.seconds,
            "scheduler_s": None if wall.scheduler_ns is None else wall.scheduler_ns / S,
        },
    }
    throughput_per_s = summary["output_tokens_per_s"]
    summary["bounds"] = bounds_block(
        finished(requests),
        config,
        costs,
        throughput_per_s,
        absent,
        simulated=simulated and not varied,
        several=cluster is not None,
    )
    summary["kv"]["prefix_hit"] = summary["prefix"]["hit_ratio"]
    shared = (summary["prefix"]["hit_ratio"] or 0.0) if simulated else 0.0
    summary["beyond_recorded"] = beyond_recorded(steps, costs, shared)
    if cluster is not None:
        summary["cluster"] = dict(cluster)
    if summary["scheduler"] is None:
        absent["scheduler"] = "the manifest does not hold the scheduler's settings"
    for path in ("mean_decode_batch", "batch_occupancy"):
        if summary[path] is None:
            absent[path] = "no decode step was run"
    summary["not_available"] = dict(sorted(absent.items()))
    return summary


def _requests(counters: RunCounters, absent: dict[str, str], partial: bool) -> dict[str, int | None]:
    outcomes = {name: getattr(counters, name) for name in ("finished", "rejected", "aborted")}
    if partial:
        absent.update(dict.fromkeys(("requests.submitted", "preemptions", "tokens.recomputed"), KILLED))
    return {"submitted": None if partial else counters.submitted, **outcomes}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def makespan_s(requests: pd.DataFrame) -> float | None:
    """First arrival (of any request) to last finish; ``None`` if none finished."""
    done = finished(requests)
    if not len(done):
        return None
    return (int(column(done, "finish_ns").max()) - int(column(requests, "arrival_ns").min())) / S


def _throughput(requests: pd.DataFrame, absent: dict[str, str]) -> dict[str, float | None]:
    done, seconds = finished(requests), makespan_s(requests)
    prompt, output = (int(column(done, name).sum()) for name in ("prompt_tokens", "output_tokens"))
    amounts = {
        "output_tokens_per_s": output,
        "total_tokens_per_s": prompt + output,
        "requests_per_s": len(done),
    }
    if not seconds:
        reason = NONE_FINISHED if seconds is None else "the makespan is 0"
        absent.update(dict.fromkeys(amounts, reason))
        if seconds is None:
            absent["makespan_s"] = reason
        return {"makespan_s": seconds, **dict.fromkeys(amounts)}
    return {"makespan_s": seconds, **{name: amount / seconds for name, amount in amounts.items()}}


def _distributions(requests: pd.DataFrame, gaps: Histogram | None, partial: bool) -> dict[str, Any]:
    all_of = latencies(requests)
    one_token = "every finished request has one output token, for which TPOT is not defined"
    figures: dict[str, Distribution] = {
        "ttft_ms": describe(all_of.ttft, MS, NONE_FINISHED),
        "tpot_ms": describe(all_of.defined_tpot, MS, one_token if len(all_of.tpot) else NONE_FINISHED),
        "itl_ms": _gaps(gaps, partial),
        "e2e_ms": describe(all_of.e2e, MS, NONE_FINISHED),
        "queue_ms": describe(all_of.queue, MS, NONE_FINISHED),
        "normalized_latency_ms": describe(all_of.normalized, MS, NONE_FINISHED),
    }
    return {name: figure.as_dict() for name, figure in figures.items()}


def _gaps(gaps: Histogram | None, partial: bool) -> Distribution:
    if gaps is None:
        return missing(KILLED if partial else "the run folder holds no gaps")
    return gaps.describe(MS) if gaps.count else missing("no request had two output tokens")


def _padding_waste(
    steps: pd.DataFrame, counters: RunCounters, costs: CostModel | None, absent: dict[str, str]
) -> dict[str, float | None]:
    def waste(useful: int, computed: int, kind: str) -> float | None:
        if not computed:
            absent[f"padding_waste.{kind}"] = f"no {kind} step was run"
            return None
        return 1 - useful / computed

    in_time: float | None = None
    if costs is None:
        absent["padding_waste.time"] = "no cost model was given"
    else:
        try:
            in_time = time_waste(steps, costs)
        except CostError as error:
            absent["padding_waste.time"] = str(error)
        else:
            if in_time is None:
                absent["padding_waste.time"] = "no step was run"
    if not counters.graph_rows:
        absent["padding_waste.graph"] = "steps were not run as graphs of fixed sizes"
    return {
        "prefill": waste(counters.linear_useful_prefill, counters.linear_computed_prefill, "prefill"),
        "decode": waste(counters.attention_useful_decode, counters.attention_computed_decode, "decode"),
        "graph": 1 - counters.graph_rows_used / counters.graph_rows if counters.graph_rows else None,
        "time": in_time,
    }


def _tokens(requests: pd.DataFrame, counters: RunCounters, partial: bool) -> dict[str, int | None]:
    """Linear slots over all steps (useful includes what was computed again), and the tokens of finished requests."""
    done = finished(requests)
    return {
        "useful": counters.linear_useful_prefill + counters.linear_useful_decode,
        "computed": counters.linear_computed_prefill + counters.linear_computed_decode,
        "recomputed": None if partial else counters.recomputed_tokens,
        "prompt": int(column(done, "prompt_tokens").sum()),
        "output": int(column(done, "output_tokens").sum()),
    }


def _swapped(counters: RunCounters, absent: dict[str, str], partial: bool) -> dict[str, int | None]:
    """How often KV went to host memory and came back, and the tokens of both ways."""
    if partial:
        absent["swapped.out"] = absent["swapped.in"] = KILLED
        return {"out": None, "in": None, "tokens": counters.swapped_tokens}
    return {"out": counters.swapped_out, "in": counters.swapped_in, "tokens": counters.swapped_tokens}


def _prefix(
    counters: RunCounters, absent: dict[str, str], partial: bool, config: SchedulerConfig | None
) -> dict[str, float | int | None]:
    """What the prefix cache was asked for and had, in tokens; nothing without one."""
    asked = counters.prefix_query_tokens
    cached = asked > 0 or (config is not None and config.prefix_cache)
    if partial or not cached:
        reason = KILLED if partial else "the run had no prefix cache"
        absent.update(dict.fromkeys(("prefix", "kv.prefix_hit"), reason))
        return {"hit_tokens": None, "query_tokens": None, "hit_ratio": None}
    if not asked:
        reason = "no request that was admitted had a full block of prompt to look up"
        absent.update(dict.fromkeys(("prefix.hit_ratio", "kv.prefix_hit"), reason))
    hits = counters.prefix_hit_tokens
    return {"hit_tokens": hits, "query_tokens": asked, "hit_ratio": _ratio(hits, asked)}


def _overlap(counters: RunCounters, absent: dict[str, str], partial: bool) -> dict[str, int | None]:
    if partial:
        absent["overlap.wasted_rows"] = KILLED
    return {"wasted_rows": None if partial else counters.wasted_rows}


def _kv(counters: RunCounters, absent: dict[str, str], partial: bool) -> dict[str, Any]:
    """KV memory, every step counting the same; ``time_weighted``: every step for as long as it took."""
    names = ("peak_tokens", "utilisation", "fragmentation", "reuse", "reuse_after_preemption", "time_weighted")
    if partial:
        absent.update({f"kv.{name}": KILLED for name in names})
        nothing: dict[str, float | None] = {"internal": None, "external": None}
        weighted = {"utilisation": None, "fragmentation": nothing}
        return {**dict.fromkeys(names), "fragmentation": nothing, "time_weighted": weighted, "prefix_hit": None}
    reuse = _ratio(counters.kv_reused, counters.kv_allocations)
    if reuse is None:
        absent["kv.reuse"] = absent["kv.reuse_after_preemption"] = "no KV was allocated"
    by_step = _memory(
        "kv", counters.kv_held_sum, counters.kv_reserved_sum, counters.kv_free_sum, counters.kv_unusable_sum, absent
    )
    by_time = _memory(
        "kv.time_weighted", counters.kv_held_token_ns, counters.kv_reserved_token_ns, counters.kv_free_token_ns,
        counters.kv_unusable_token_ns, absent,
    )  # fmt: skip
    return {
        "peak_tokens": counters.kv_peak_tokens,
        **by_step,
        "reuse": reuse,
        "reuse_after_preemption": _ratio(counters.kv_reused_after_preemption, counters.kv_allocations),
        "prefix_hit": None,
        "time_weighted": by_time,
    }


def _memory(path: str, held: int, reserved: int, free: int, unusable: int, absent: dict[str, str]) -> dict[str, Any]:
    """Utilisation and fragmentation from sums of token slots, over steps or over time."""
    utilisation = _ratio(held, reserved)
    external = _ratio(unusable, free)
    if utilisation is None:
        absent[f"{path}.utilisation"] = absent[f"{path}.fragmentation.internal"] = "no step held KV"
    if external is None:
        absent[f"{path}.fragmentation.external"] = "no KV slot was ever free"
    internal = None if utilisation is None else 1 - utilisation
    return {"utilisation": utilisation, "fragmentation": {"internal": internal, "external": external}}


def _goodput(requests: pd.DataFrame, slo: Slo | None, absent: dict[str, str]) -> dict[str, Any]:
    """Good requests a second, and their share of *all* that were submitted: who is turned away is not served well."""
    seconds = makespan_s(requests)
    if slo is None or not seconds:
        reason = "no objective was given (--slo)" if slo is None else NONE_FINISHED
        absent["goodput_per_s"] = absent["slo_attainment"] = reason
        return {"goodput_per_s": None, "slo_attainment": None}
    good = int(slo.met(latencies(requests).in_ms()).sum())
    low, high = wilson_interval(good, len(requests))
    attainment = {
        "objectives_ms": dict(slo.limits_ms),
        "good": good,
        "n": len(requests),
        "share": good / len(requests),
        "ci": [low, high],
    }
    return {"goodput_per_s": good / seconds, "slo_attainment": attainment}


def jain_index(requests: pd.DataFrame) -> float | None:
    """Jain's fairness index over tenants of the tokens that each got per second that its requests were in the system;
    1 is the same speed for all, 1 / tenants is all for one. ``None`` with fewer than two tenants that finished any."""
    done = finished(requests)
    speeds = [
        float(column(group, "output_tokens").sum())
        / max(1.0, float((column(group, "finish_ns") - column(group, "arrival_ns")).sum()))
        for _, group in done.groupby("tenant", sort=True)
    ]
    if len(speeds) < 2:
        return None
    return math.fsum(speeds) ** 2 / (len(speeds) * math.fsum(speed * speed for speed in speeds))


def _starvation(
    requests: pd.DataFrame, counters: RunCounters, absent: dict[str, str], partial: bool
) -> dict[str, float | int | None]:
    fairness = jain_index(requests)
    if fairness is None:
        absent["starvation.jain_index"] = "fewer than two tenants"
    if partial:
        names = ("longest_wait_s", "longest_gap_s", "over_threshold", "share_over_threshold")
        absent.update({f"starvation.{name}": KILLED for name in names})
        return {**dict.fromkeys(names), "jain_index": fairness}
    served = counters.submitted - counters.rejected
    if not served:
        absent["starvation.share_over_threshold"] = "no request was served"
    return {
        "longest_wait_s": counters.longest_wait_ns / S,
        "longest_gap_s": counters.longest_gap_ns / S,
        "over_threshold": counters.over_threshold,
        "share_over_threshold": _ratio(counters.over_threshold, served),
        "jain_index": fairness,
    }


def _load(requests: pd.DataFrame, partial: bool) -> dict[str, Any]:
    served = requests[requests["outcome"] != "rejected"]
    load: LoadStability
    if partial:
        load = unknown_load("not available: the run did not end, so who was still waiting is in no row")
    else:
        load = assess_load(*(column(served, name) for name in ("arrival_ns", "first_scheduled_ns", "finish_ns")))
    return load.as_dict()


def _time(steps: pd.DataFrame, absent: dict[str, str]) -> dict[str, float | None]:
    """Seconds on the device and on the host over all steps, and the host's share of both."""
    device, host = (int(column(steps, name).sum()) for name in ("device_ns", "host_ns"))
    share = _ratio(host, device + host)
    if share is None:
        absent["time.host_share"] = "no step took any time"
    return {"device_s": device / S, "host_s": host / S, "host_share": share}


def verdict(summary: Mapping[str, Any]) -> str:
    """The run's first sentence: whether its latencies describe a stable service."""
    load, requests = summary["load"], summary["requests"]
    if summary["partial"]:
        return (
            "Partial: the run was ended before it closed its folder. "
            f"{requests['finished']:,} requests had finished by the last row that was written."
        )
    counted = f"{requests['finished']:,} of {requests['submitted']:,} requests finished"
    if not requests["finished"]:
        return f"No request finished: {requests['rejected']:,} rejected, {requests['aborted']:,} aborted."
    if load["saturated"]:
        growth, rate = load["queue_growth_per_s"], load["arrival_rate_per_s"]
        return (
            f"This load is more than the hardware can carry: the queue grows by {growth:.3g} requests/s "
            f"({rate:.3g} arrive). Latencies describe this run's length, not a stable service."
        )
    if load["saturated"] is None:
        return f"{counted}. Whether the hardware can carry this load for long is not told: {load['note']}."
    return f"{counted}. The hardware carries this load: the queue does not grow while requests arrive."
