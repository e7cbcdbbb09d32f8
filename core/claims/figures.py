"""The figures of a run that claims are judged by, under the names that readings use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from reports.run import Run, look_up
from reports.summary import finished, latencies
from reports.waste import column

#: names of figures and where ``summary.json`` has them
_OF_SUMMARY = {
    "output_tokens_per_s": "output_tokens_per_s",
    "requests_per_s": "requests_per_s",
    "makespan_s": "makespan_s",
    "prefill_waste": "padding_waste.prefill",
    "decode_waste": "padding_waste.decode",
    "time_waste": "padding_waste.time",
    "decode_batch": "mean_decode_batch",
    "ttft_ms.mean": "ttft_ms.mean",
    "ttft_ms.p50": "ttft_ms.p50",
    "e2e_ms.mean": "e2e_ms.mean",
    "e2e_ms.p50": "e2e_ms.p50",
    "e2e_ms.p95": "e2e_ms.p95",
    "itl_ms.p50": "itl_ms.p50",
    "itl_ms.p99": "itl_ms.p99",
    "kv_internal": "kv.fragmentation.internal",
    "kv_external": "kv.fragmentation.external",
    "kv_reuse": "kv.reuse",
    "prefix_hit": "kv.prefix_hit",
    "host_share": "time.host_share",
}
#: requests of these two tenants are told apart
LONG, SHORT = "long", "short"


def figures_of(run: Run) -> dict[str, float]:
    """Every figure that the run has; times are in ms where the name says so, else in seconds, shares are shares."""
    found = {name: look_up(run.summary, path) for name, path in _OF_SUMMARY.items()}
    found |= _short_requests(run) | _starvation(run) | {"switch_ms": _switch_ms(run)}
    return {name: float(value) for name, value in found.items() if value is not None}


def samples_of(run: Run) -> dict[str, list[float]]:
    """Latencies of every finished request in ms, for percentiles that one round has too few requests for."""
    found = latencies(run.requests)
    values: Mapping[str, npt.NDArray[np.int64]] = {"e2e_ms": found.e2e, "ttft_ms": found.ttft}
    return {name: [round(value / 1e6, 3) for value in times.tolist()] for name, times in values.items()}


def _short_requests(run: Run) -> dict[str, float | None]:
    """Mean latencies of the quarter of the requests with the fewest tokens, prompt and output together."""
    done = finished(run.requests)
    if not len(done):
        return {}
    lengths = column(done, "prompt_tokens") + column(done, "output_tokens")
    short = done.iloc[np.argsort(lengths, kind="stable")[: max(1, len(done) // 4)]]
    found = latencies(short)
    return {"short_e2e_ms": float(found.e2e.mean()) / 1e6, "short_ttft_ms": float(found.ttft.mean()) / 1e6}


def _starvation(run: Run) -> dict[str, float | None]:
    """How long requests wait for service, and whether long ones are done while short ones still come."""
    waits = [look_up(run.summary, f"starvation.{name}") for name in ("longest_wait_s", "longest_gap_s")]
    found: dict[str, float | None] = {"unserved_s": None if None in waits else max(waits)}
    long = run.requests[run.requests["tenant"] == LONG]
    short = run.requests[run.requests["tenant"] == SHORT]
    if len(long) and len(short):
        last_ns = int(column(short, "arrival_ns").max())
        finish = column(long, "finish_ns")
        found["long_done_meanwhile"] = float(((finish >= 0) & (finish < last_ns)).mean())
    return found


def _switch_ms(run: Run) -> float | None:
    """What a prefill between two decode steps holds the decoding requests up for, on average: from the end of the
    decode step before it to its own end."""
    kinds = run.steps["kind"].to_numpy()
    ends = column(run.steps, "end_ns")
    switches = np.flatnonzero((kinds[1:] == "prefill") & (kinds[:-1] == "decode")) + 1
    # what follows must decode: after the last prefill nobody may be held up
    switches = switches[[bool((kinds[place:] == "decode").any()) for place in switches]] if len(switches) else switches
    if not len(switches):
        return None
    return float((ends[switches] - ends[switches - 1]).mean()) / 1e6
