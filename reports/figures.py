"""The figures that reports show: where each stands in a summary, its unit, and its definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reports.percentiles import PERCENTILES
from reports.run import look_up

Unit = Literal["ms", "s", "us", "/s", "tokens/s", "count", "share", "ratio", "rows", "tokens"]
Better = Literal["lower", "higher"]

#: statistics of a latency, in the order of a table
STATISTICS = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")


@dataclass(frozen=True)
class Figure:
    """One number of a summary. ``better`` is ``None`` where neither direction is better by itself.

    ``rare``: of something that many runs know nothing of; shown where it occurs.
    """

    path: str
    title: str
    unit: Unit
    formula: str
    better: Better | None = None
    rare: bool = False


@dataclass(frozen=True)
class LatencyFigure:
    """One distribution of a summary, in milliseconds; lower is better."""

    key: str
    title: str
    formula: str


LATENCIES = (
    LatencyFigure("ttft_ms", "TTFT", "first output token available - arrival"),
    LatencyFigure("tpot_ms", "TPOT", "(last token - first token) / (output tokens - 1); undefined for one token"),
    LatencyFigure("itl_ms", "ITL", "each gap between consecutive output tokens of a request"),
    LatencyFigure("e2e_ms", "E2E", "last token - arrival"),
    LatencyFigure("queue_ms", "Queue time", "first scheduled - arrival"),
    LatencyFigure("normalized_latency_ms", "Normalized latency", "E2E / output tokens"),
)

FIGURES = (
    Figure("makespan_s", "Makespan", "s", "first arrival to last finish", "lower"),
    Figure(
        "output_tokens_per_s",
        "Output throughput",
        "tokens/s",
        "output tokens of finished requests / makespan",
        "higher",
    ),
    Figure(
        "total_tokens_per_s",
        "Total throughput",
        "tokens/s",
        "prompt and output tokens of finished requests / makespan",
        "higher",
    ),
    Figure("requests_per_s", "Request throughput", "/s", "finished requests / makespan", "higher"),
    Figure("goodput_per_s", "Goodput", "/s", "requests that meet all their objectives / makespan", "higher"),
    Figure(
        "slo_attainment.share",
        "SLO attainment",
        "share",
        "requests that meet all their objectives / submitted",
        "higher",
    ),
    Figure("requests.submitted", "Requests submitted", "count", "finished + rejected + aborted"),
    Figure("requests.finished", "Requests finished", "count", "reached their last token", "higher"),
    Figure(
        "requests.rejected",
        "Requests rejected",
        "count",
        "could never be served; requests.csv has the reasons",
        "lower",
    ),
    Figure("requests.aborted", "Requests aborted", "count", "ended early: from outside, or with an error"),
    Figure("steps.total", "Steps", "count", "prefill, decode and mixed steps"),
    Figure("steps.prefill", "Prefill steps", "count", "steps that compute prompt tokens"),
    Figure("steps.decode", "Decode steps", "count", "steps that take each row one token further"),
    Figure("steps.mixed", "Mixed steps", "count", "steps that do both: prompts beside decode rows", rare=True),
    Figure("mean_decode_batch", "Mean decode batch", "rows", "decode rows used / decode and mixed steps", "higher"),
    Figure("batch_occupancy", "Batch occupancy", "share", "decode rows used / decode rows computed", "higher"),
    Figure(
        "padding_waste.prefill",
        "Prefill waste",
        "share",
        "1 - useful / computed linear slots of prompts",
        "lower",
    ),
    Figure(
        "padding_waste.decode",
        "Decode waste",
        "share",
        "1 - useful / computed attention slots of decode rows",
        "lower",
    ),
    Figure("padding_waste.graph", "Graph rounding waste", "share", "(graph rows - rows) / graph rows", "lower"),
    Figure(
        "padding_waste.time",
        "Padding waste in time",
        "share",
        "1 - device time of the useful slots / of the computed slots, by the cost model",
        "lower",
    ),
    Figure(
        "tokens.useful",
        "Useful linear slots",
        "tokens",
        "tokens moved through the linear layers, recomputed ones included",
    ),
    Figure("tokens.computed", "Computed linear slots", "tokens", "the same with padding"),
    Figure(
        "tokens.recomputed",
        "Recomputed tokens",
        "tokens",
        "tokens whose KV was lost to preemption and computed again",
        "lower",
    ),
    Figure("tokens.output", "Output tokens", "tokens", "of finished requests"),
    Figure("preemptions", "Preemptions", "count", "sequences that lost their KV and waited again", "lower"),
    Figure("swapped.out", "Swaps out", "count", "preemptions whose KV went to host memory", rare=True),
    Figure("swapped.in", "Swaps in", "count", "sequences whose KV came back from host memory", rare=True),
    Figure("swapped.tokens", "Swapped tokens", "tokens", "tokens whose KV was moved, out and in", "lower", rare=True),
    Figure(
        "overlap.wasted_rows",
        "Wasted rows",
        "rows",
        "rows of steps whose sequence had ended before",
        "lower",
        rare=True,
    ),
    Figure("kv.peak_tokens", "KV peak", "tokens", "most token slots held at the end of a step"),
    Figure(
        "kv.utilisation",
        "KV utilisation by step",
        "share",
        "slots that hold a token / slots reserved, summed over steps",
        "higher",
    ),
    Figure(
        "kv.fragmentation.internal",
        "Internal fragmentation by step",
        "share",
        "(reserved - held) / reserved, summed over steps",
        "lower",
    ),
    Figure(
        "kv.fragmentation.external",
        "External fragmentation by step",
        "share",
        "free slots that cannot serve the waiting head / free slots, summed over steps",
        "lower",
    ),
    Figure(
        "kv.time_weighted.utilisation",
        "KV utilisation by time",
        "share",
        "slots that hold a token / slots reserved, each step for as long as it took",
        "higher",
    ),
    Figure(
        "kv.time_weighted.fragmentation.internal",
        "Internal fragmentation by time",
        "share",
        "(reserved - held) / reserved, each step for as long as it took",
        "lower",
    ),
    Figure(
        "kv.time_weighted.fragmentation.external",
        "External fragmentation by time",
        "share",
        "free slots that cannot serve the waiting head / free slots, each step for as long as it took",
        "lower",
    ),
    Figure(
        "kv.reuse", "KV reuse", "share", "allocations served from memory that a finished sequence freed / all", "higher"
    ),
    Figure(
        "kv.reuse_after_preemption",
        "KV reuse after preemption",
        "share",
        "allocations served from memory that a preemption freed / all",
    ),
    Figure(
        "kv.prefix_hit",
        "Prefix hits",
        "share",
        "tokens found in the prefix cache / known tokens, at each admission that looked",
        "higher",
        rare=True,
    ),
    Figure(
        "prefix.hit_tokens",
        "Prefix hit tokens",
        "tokens",
        "tokens that were not computed, thanks to the prefix cache",
        "higher",
        rare=True,
    ),
    Figure(
        "prefix.query_tokens",
        "Prefix query tokens",
        "tokens",
        "known tokens at each admission that looked",
        rare=True,
    ),
    Figure("starvation.longest_wait_s", "Longest wait", "s", "longest time from arrival to first service", "lower"),
    Figure(
        "starvation.longest_gap_s", "Longest gap", "s", "longest time between two output tokens of a request", "lower"
    ),
    Figure(
        "starvation.over_threshold",
        "Starved requests",
        "count",
        "waited or paused for longer than the threshold",
        "lower",
    ),
    Figure(
        "starvation.jain_index",
        "Jain index",
        "ratio",
        "fairness over tenants of output tokens per second in the system",
        "higher",
    ),
    Figure(
        "bounds.mean_e2e_ms",
        "Least mean E2E",
        "ms",
        "what no schedule of these requests can be below, by memory, rows and the cost model",
    ),
    Figure("bounds.e2e_share", "Mean E2E, share of the bound", "share", "least mean E2E / mean E2E", "higher"),
    Figure(
        "bounds.output_tokens_per_s",
        "Most output throughput",
        "tokens/s",
        "output tokens / the least makespan, by memory, rows and the cost model",
    ),
    Figure(
        "bounds.throughput_share",
        "Throughput, share of the bound",
        "share",
        "output throughput / most output throughput",
        "higher",
    ),
    Figure("time.device_s", "Device time", "s", "sum over the steps"),
    Figure("time.host_share", "Host share", "share", "host time / (device + host time) of the steps", "lower"),
    Figure("scheduler_us_per_step", "Scheduler overhead", "us", "host time in next_step and complete / steps", "lower"),
    Figure("load.arrival_rate_per_s", "Arrival rate", "/s", "arrivals / time from the first to the last"),
    Figure(
        "load.queue_growth_per_s",
        "Queue growth",
        "/s",
        "slope of waiting + running requests over the second half of the arrivals",
        "lower",
    ),
)

#: what a simulation must get exactly right
COUNTERS = (
    "requests.finished",
    "requests.rejected",
    "requests.aborted",
    "steps.total",
    "steps.prefill",
    "steps.decode",
    "steps.mixed",
    "tokens.useful",
    "tokens.computed",
    "tokens.recomputed",
    "tokens.output",
    "preemptions",
    "swapped.out",
    "swapped.in",
    "swapped.tokens",
    "overlap.wasted_rows",
    "padding_waste.prefill",
    "padding_waste.decode",
    "mean_decode_batch",
    "kv.peak_tokens",
    "kv.utilisation",
    "kv.reuse",
    "prefix.hit_tokens",
    "prefix.query_tokens",
)

_BY_PATH = {figure.path: figure for figure in FIGURES}
_LATENCY_BY_KEY = {latency.key: latency for latency in LATENCIES}


def figure_at(path: str) -> Figure:
    """The figure at a summary's path, the statistics of latencies (``ttft_ms.p99``) included.

    Raises ``KeyError`` for a path that is no figure.
    """
    key, _, statistic = path.partition(".")
    latency = _LATENCY_BY_KEY.get(key)
    if latency is None or statistic not in STATISTICS:
        return _BY_PATH[path]
    return Figure(path, f"{latency.title} {statistic_title(statistic)}", "ms", latency.formula, "lower")


def statistic_title(statistic: str) -> str:
    """``P99`` for ``p99``."""
    return statistic.upper() if statistic.startswith("p") else statistic


def occurs(figure: Figure, summaries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a figure is to be shown: all but the rare ones always, those where a summary has any of it."""
    return not figure.rare or any(look_up(summary, figure.path) for summary in summaries)


def latency_paths() -> list[str]:
    """The path of every statistic of every latency."""
    return [f"{latency.key}.{statistic}" for latency in LATENCIES for statistic in STATISTICS]


def interval_at(summary: Mapping[str, Any], path: str) -> tuple[float, float] | None:
    """The 95 % interval of a figure, where it has one."""
    key, _, statistic = path.partition(".")
    if key in _LATENCY_BY_KEY:
        interval = look_up(summary, f"{key}.ci.{statistic}")
    elif path == "slo_attainment.share":
        interval = look_up(summary, "slo_attainment.ci")
    elif path == "load.queue_growth_per_s":
        interval = look_up(summary, "load.queue_growth_ci")
    else:
        interval = None
    return None if interval is None else (float(interval[0]), float(interval[1]))


def why_missing(summary: Mapping[str, Any], path: str) -> str:
    """The reason why the figure at ``path`` is null."""
    reasons: Mapping[str, str] = summary.get("not_available", {})
    while path:
        if path in reasons:
            return f"not available: {reasons[path]}"
        note = look_up(summary, f"{path}.note")
        if note:
            return str(note)
        path = path.rpartition(".")[0]
    return "not available"


def number(value: float | None) -> str:
    """A number at a precision that a reader can use: four digits, thousands apart."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000 or value == 0:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    if abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.{digits}f}"


def quantity(value: float | None, unit: Unit) -> str:
    """A number with its unit as a table shows it; a dash for ``None``."""
    if value is None:
        return "–"
    amount, name = _scaled(value, unit, value)
    return f"{amount} {name}" if name else amount


def interval_text(interval: tuple[float, float] | None, unit: Unit) -> str:
    """An interval with its unit once; empty for ``None``."""
    if interval is None:
        return ""
    low, high = interval
    (first, _), (second, name) = _scaled(low, unit, high), _scaled(high, unit, high)
    return f"{first} – {second} {name}".rstrip()


def change_text(before: float | None, after: float | None, unit: Unit) -> str:
    """``before → after`` with the unit once."""
    if before is None or after is None:
        return f"{quantity(before, unit)} → {quantity(after, unit)}"
    (first, _), (second, name) = _scaled(before, unit, after), _scaled(after, unit, after)
    return f"{first} → {second} {name}".rstrip()


def _scaled(value: float, unit: Unit, largest: float) -> tuple[str, str]:
    """A number and the name of its unit, as large a unit as suits ``largest``."""
    if unit == "share":
        return (f"{100 * value:.2f}" if 0 < abs(largest) < 0.1 else f"{100 * value:.1f}"), "%"
    if unit == "ms" and abs(largest) >= 10_000:
        return number(value / 1000), "s"
    names = {"us": "µs", "/s": "/s", "tokens/s": "tok/s", "ms": "ms", "s": "s"}
    return number(value), names.get(unit, "")
