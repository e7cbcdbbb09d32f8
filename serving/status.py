"""How a server is, for people and programs: one dictionary, which ``/status`` and the live page are made of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from scheduler.buckets import Buckets
from serving.cohorts import bin_width, binned, cohorts
from serving.lookout import Look
from serving.messages import MOST_LENGTHS, EngineInfo
from serving.traffic import Traffic

if TYPE_CHECKING:
    from serving.server import Server

Status: TypeAlias = dict[str, Any]


def status(server: Server, traffic: Traffic, buckets: Buckets, look: Look | None, before: Look | None) -> Status:
    """The state at ``look``, and what happened since ``before``. Times and latencies in ms, shares from 0 to 1.

    A figure that is not defined is ``None``: shares of nothing, rates without an earlier look, percentiles of too few.
    """
    engine = server.engine
    found: Status = {
        "model": server.names[0],
        "engine": about(server.info),
        "up": engine.failure is None,
        "failure": engine.failure,
        "draining": server.draining,
        "in_flight": engine.in_flight,
        "tasks": len(asyncio.all_tasks()),
        "output_tokens": traffic.output_tokens,
        "prompt_tokens": traffic.prompt_tokens,
        "finished": dict(sorted(traffic.finished.items())),
        "refused": dict(sorted(server.refused.items())),
        "latency_ms": traffic.recent(),
        "state": None,
        "recent": None,
    }
    if look is not None:
        found["unix_s"] = look.unix_s
        found["state"] = state(look, server.info, buckets)
        if before is not None:
            found["recent"] = recent(look, before)
    return found


def about(info: EngineInfo) -> dict[str, Any]:
    """What an engine is."""
    config = info.config
    return {
        "hardware": info.hardware,
        "emulated": info.emulated,
        "policy": config["policy"],
        "bucket": config["bucket"],
        "layout": config["layout"],
        "max_running": config["max_running"],
        "context_tokens": info.context_tokens,
        "starvation_s": config["starvation_s"],
    }


def state(look: Look, info: EngineInfo, buckets: Buckets) -> dict[str, Any]:
    """The engine as it was."""
    snapshot = look.snapshot
    lengths, waiting = snapshot.lengths, snapshot.waiting_lengths
    longest = max((*lengths, *waiting), default=1)
    width = bin_width(info.config, longest)
    bins = -(-longest // width)
    counters = snapshot.counters
    return {
        "up_s": snapshot.now_ns / 1e9,
        "steps": snapshot.steps,
        "running": snapshot.running,
        "waiting": snapshot.waiting,
        "oldest_wait_ms": snapshot.oldest_wait_ns / 1e6,
        "kv": {
            "held": snapshot.kv_tokens,
            "allocated": snapshot.kv_allocated_tokens,
            "capacity": snapshot.kv_capacity_tokens,
            "peak": counters["kv_peak_tokens"],
        },
        "cohorts": {
            **cohorts(lengths, buckets),
            "bin_width": width,
            "running": binned(lengths, width, bins),
            "waiting": binned(waiting, width, bins),
            "cut_off": max(len(lengths), len(waiting)) >= MOST_LENGTHS,
        },
        "preemptions": counters["preemptions"],
        "over_threshold": counters["over_threshold"],
        "errors": snapshot.errors,
    }


def recent(look: Look, before: Look) -> dict[str, Any]:
    """What happened between two looks."""
    new, old = look.snapshot, before.snapshot
    seconds = (look.at_ns - before.at_ns) / 1e9
    steps = new.steps - old.steps
    counted = {name: count - old.counters[name] for name, count in new.counters.items()}
    return {
        "window_s": seconds,
        "output_tokens_per_s": (look.output_tokens - before.output_tokens) / seconds,
        "prompt_tokens_per_s": (look.prompt_tokens - before.prompt_tokens) / seconds,
        "requests_per_s": (look.ended - before.ended) / seconds,
        "steps_per_s": steps / seconds,
        "step_kinds": {kind: counted[f"steps_{kind}"] for kind in ("prefill", "decode", "mixed")},
        "padding_waste": {
            f"{slots}_{phase}": _unused(counted[f"{slots}_useful_{phase}"], counted[f"{slots}_computed_{phase}"])
            for slots in ("linear", "attention")
            for phase in ("prefill", "decode")
        },
        "graph_padding": _unused(counted["graph_rows_used"], counted["graph_rows"]),
        "decode_batch": _share(counted["decode_rows"], counted["steps_decode"] + counted["steps_mixed"]),
        "scheduler_us_per_step": _share((new.scheduler_ns - old.scheduler_ns) / 1000, steps),
        "device_idle": _unused(new.device_ns - old.device_ns, new.busy_ns - old.busy_ns),
        "preemptions": counted["preemptions"],
        "prefix_hits": _share(counted["prefix_hit_tokens"], counted["prefix_query_tokens"]),
        "kv_reuse": _share(counted["kv_reused"], counted["kv_allocations"]),
        "kv_fragmentation": _unused(counted["kv_held_sum"], counted["kv_reserved_sum"]),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _unused(used: float, whole: float) -> float | None:
    return max(0.0, 1 - used / whole) if whole else None
