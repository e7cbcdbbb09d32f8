"""``--tune bucket``: what the width of length buckets costs and gains, and where more width gains no more."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.arguments import UsageError
from core.costs import check_cost_flags, read_costs, settle_block_tokens
from core.folders import write_texts
from core.runs import Session
from reports.figures import number
from reports.run_folder import MANIFEST_FILE, REPORT_FILE
from reports.slo import Slo
from scheduler.counters import RunCounters
from simulator.costs import CostModel
from simulator.recorded import RecordedCosts
from tuning.errors import TuningError
from tuning.objectives import Objective, statistic
from tuning.setting import Setting, Value
from tuning.space import Knob, Space
from tuning.workers import workers_for
from tuning.world import Job, Part, World, check_costs, load_workloads

RESULT_FILE = "buckets.json"
POLICY = "sjf-bucket"
#: requests that are played, at most: so that it takes seconds
MOST = 1500
WIDTHS: tuple[Value, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SCHEMES: tuple[Value, ...] = ("pow2", "equal-mass:4", "equal-mass:8", "equal-mass:16", "adaptive")


@dataclass(frozen=True)
class Width:
    """One bucket scheme: padding waste (a share of the computed slots), mean and P99 latency (ms), the longest gap
    between two tokens of a request (s), and Jain's index over requests of the tokens a second that each got: 1 is the
    same for all."""

    bucket: Value
    waste: float
    mean_ms: float
    p99_ms: float
    longest_gap_s: float
    fairness: float
    failed: str = ""


def widths_of(args: argparse.Namespace) -> tuple[list[Width], dict[str, Any]]:
    """Simulate every scheme. Returns them in order, and what they were simulated on.

    Raises :class:`TuningError` and the errors of what is read.
    """
    check_costs(args)
    if args.policy not in (None, [POLICY]):
        raise UsageError(f"--policy {','.join(args.policy)} with --tune bucket, which is about {POLICY}; leave it out")
    if args.bucket is not None:
        raise UsageError(f"--bucket {args.bucket} with --tune bucket, which tries them all; leave it out")
    costs: dict[str, CostModel] = {args.costs: read_costs(args.costs)}
    check_cost_flags(args, costs[args.costs])
    settle_block_tokens(args, costs[args.costs])
    recorded = costs[args.costs]
    if args.layout is None:
        # where there is padding to save: on the paged layout there is none
        there = recorded.layouts if isinstance(recorded, RecordedCosts) else ["padded"]
        args.layout = ["padded" if "padded" in there else "paged"]
    workloads = load_workloads(args, [])
    schemes = [*WIDTHS, *SCHEMES]
    space = Space([Knob("policy", (POLICY,)), Knob("bucket", tuple(schemes))], args)
    slo = Slo.parse(args.slo) if args.slo else None
    world = BucketWorld(space, args, workloads, costs, (Objective("latency", slo, "e2e_ms", "mean"),))
    workload = workloads[args.seed]
    part = Part(0, min(MOST, len(workload)), whole=True)
    found = []
    with workers_for(world, args.workers, None) as workers:
        settings = [Setting.of({"policy": POLICY, "bucket": bucket}) for bucket in schemes]
        futures = [workers.submit(Job(setting, part, args.seed)) for setting in settings]
        for bucket, future in zip(schemes, futures, strict=True):
            result = future.result()
            figures = {name: result.figures.get(name, math.nan) for name in _FIGURES}
            found.append(Width(bucket=bucket, failed=result.failed, **figures))
    about = {
        "workload": workload.name, "requests": part.stop, "layout": args.layout[0], "costs": args.costs,
        "max_running": world.running,
    }  # fmt: skip
    failed = next((width.failed for width in found if width.failed), "")
    if all(width.failed for width in found):
        raise TuningError(f"no bucket width can be simulated: {failed}")
    return found, about


_FIGURES = ("waste", "mean_ms", "p99_ms", "longest_gap_s", "fairness")


class BucketWorld(World):
    """Judges padding and fairness, besides latency."""

    @property
    def running(self) -> int:
        return Session(self.space.arguments(self.space.start), "", self.workload(self.args.seed)).max_running

    def figures(self, played: Any, requests: Any, gpu_s: float) -> dict[str, Any]:
        done = requests[requests["outcome"] == "finished"]
        e2e = (done["finish_ns"] - done["arrival_ns"]).to_numpy() / 1e6
        a_token = np.asarray(e2e / np.maximum(done["output_tokens"].to_numpy(), 1))
        return {
            "waste": waste(played.counters),
            "mean_ms": statistic(e2e, "mean"),
            "p99_ms": statistic(e2e, "p99", enough=False),
            "longest_gap_s": played.counters.longest_gap_ns / 1e9,
            "fairness": _jain(1 / a_token) if len(a_token) else math.nan,
        }


def waste(counters: RunCounters) -> float:
    """Slots that were computed for nothing, of prompts (linear slots) and of decode steps (attention slots) together,
    each by its share of what was computed."""
    useful = counters.linear_useful_prefill + counters.attention_useful_decode
    computed = counters.linear_computed_prefill + counters.attention_computed_decode
    return 1 - useful / computed if computed else 0.0


def _jain(speeds: np.ndarray) -> float:
    return float(speeds.sum() ** 2 / (len(speeds) * (speeds * speeds).sum()))


def knee(widths: Sequence[Width], figure: Callable[[Width], float]) -> Width:
    """Of fixed widths, where a wider bucket stops to gain: the point furthest below the line from first to last, both
    axes from 0 to 1 and the width on a logarithmic scale (Satopää et al., "Finding a kneedle in a haystack",
    ICDCS workshops 2011)."""
    fixed = [width for width in widths if isinstance(width.bucket, int) and not width.failed]
    x = np.log([float(width.bucket) for width in fixed])
    y = np.array([figure(width) for width in fixed])
    x, y = _from_0_to_1(x), _from_0_to_1(y)
    below = y[0] + (y[-1] - y[0]) * x - y
    return fixed[int(np.argmax(below))]


def _from_0_to_1(values: np.ndarray) -> np.ndarray:
    span = values.max() - values.min()
    return (values - values.min()) / span if span else values * 0


def result_of(widths: Sequence[Width], about: dict[str, Any]) -> dict[str, Any]:
    """All of it as data: the widths, the knee of mean latency, and the best of all schemes."""
    served = [width for width in widths if not width.failed]
    best = min(served, key=lambda width: width.mean_ms)
    bend = knee(widths, lambda width: width.mean_ms)
    return {"about": about, "widths": [asdict(width) for width in widths], "knee": bend.bucket, "best": best.bucket}


def table_of(result: dict[str, Any]) -> list[list[str]]:
    """Rows for people: bucket, waste, latencies, gap, fairness, and what a row is."""
    rows = []
    for width in result["widths"]:
        marks = [name for name in ("knee", "best") if result[name] == width["bucket"]]
        if width["failed"]:
            rows.append([str(width["bucket"]), *["–"] * 5, width["failed"]])
            continue
        cells = [f"{100 * width['waste']:.1f} %", number(width["mean_ms"]), number(width["p99_ms"])]
        cells += [number(width["longest_gap_s"]), f"{width['fairness']:.3f}"]
        rows.append([str(width["bucket"]), *cells, ", ".join(marks)])
    return rows


COLUMNS = ("bucket", "padding waste", "E2E mean ms", "E2E P99 ms", "longest gap s", "fairness", "")


def sentence(result: dict[str, Any]) -> str:
    """What the widths say."""
    about = result["about"]
    text = (
        f"On {about['requests']:,} requests of {about['workload']}, {about['layout']} layout, at most "
        f"{about['max_running']} running: the least mean latency is with --bucket {result['best']}; beyond a width of "
        f"{result['knee']} wider buckets gain little."
    )
    if about["layout"] == "paged":
        text += " The paged layout pads nothing, so that only latency and fairness hang on the width."
    return text


def write(folder: Path, command: str, result: dict[str, Any]) -> None:
    """The folder of a bucket tuning."""
    from tuning.bucket_page import render

    texts = {
        MANIFEST_FILE: json.dumps({"command": command, "mode": "tune", **result["about"]}, indent=2) + "\n",
        RESULT_FILE: json.dumps(result, indent=2) + "\n",
        REPORT_FILE: render(result, command),
    }
    write_texts(folder, texts)
