"""The one way from what ``--workload`` was given to a workload: a preset's name, or else a trace file."""

from __future__ import annotations

import os
from pathlib import Path

from workloads.arrivals import Arrivals, plan_arrivals
from workloads.errors import WorkloadError, nearest, shown
from workloads.presets import PRESETS, build_preset
from workloads.public_traces import by_file_name, by_sha256
from workloads.random_source import RandomSource
from workloads.traces import Trace, read_trace
from workloads.workload import Workload


def load_workload(
    spec: str,
    *,
    rng: RandomSource,
    requests: int | None = None,
    rate: float | None = None,
    arrivals: str | None = None,
    time_scale: float | None = None,
    trace_format: str | None = None,
) -> Workload:
    """Make the workload ``spec``: a preset's name, else the path of a trace (``./seed`` for a file called seed).

    ``requests``: how many; of a trace the first so many in order of arrival. ``rate`` per second, ``arrivals`` as
    :data:`~workloads.arrivals.PROCESSES` lists them (a trace plays its own unless told otherwise; a rate alone means
    ``poisson``; a process without a rate takes the trace's mean rate), ``time_scale`` multiplies every arrival time: 2
    is twice as slow. ``rng`` is the seeded generator of everything random.

    Raises :class:`WorkloadError` for whatever the user got wrong, settings without an effect included.
    """
    if spec in PRESETS:
        if trace_format is not None:
            raise WorkloadError(f"trace format {shown(trace_format)} has no effect on preset {spec}; leave it out")
        return build_preset(spec, rng=rng, requests=requests, rate=rate, arrivals=arrivals, time_scale=time_scale)
    if not os.path.exists(spec) and by_file_name(Path(spec).name) is None:
        raise WorkloadError(_neither(spec))
    trace = read_trace(spec, trace_format)
    return _play(trace, rng=rng, requests=requests, rate=rate, arrivals=arrivals, time_scale=time_scale)


def _neither(spec: str) -> str:
    preset = nearest(spec, PRESETS)
    hint = f"; did you mean preset {preset!r}?" if preset else ";"
    return f"workload {shown(spec)}: no such file, and no such preset{hint} presets: {', '.join(PRESETS)}"


def _play(
    trace: Trace,
    *,
    rng: RandomSource,
    requests: int | None,
    rate: float | None,
    arrivals: str | None,
    time_scale: float | None,
) -> Workload:
    """The first ``requests`` rows of a trace, arriving as asked."""
    count = len(trace.rows) if requests is None else requests
    if count < 1:
        raise WorkloadError(f"{count} requests asked for; must be >= 1")
    if count > len(trace.rows):
        raise WorkloadError(f"{trace.path}: has {len(trace.rows)} requests and {count} were asked for")
    rows = trace.rows[:count]
    plan = plan_arrivals(
        arrivals,
        rate=rate,
        time_scale=time_scale,
        default=Arrivals("trace") if trace.recorded else None,
        default_rate=trace.mean_rate_per_s(count),
        recorded=trace.recorded,
        what=trace.path,
    )
    times = plan.times_ns(count, rng, [row.arrival_ns for row in rows])
    return Workload(
        name=Path(trace.path).stem,
        rows=tuple(row.arriving_at(time) for time, row in zip(times, rows, strict=True)),
        source=f"{_describe(trace, count)}, {plan}",
    )


def _describe(trace: Trace, count: int) -> str:
    public = by_sha256(trace.sha256)
    known = f": {public.description}, {public.licence}, cite {public.cite}" if public else ""
    which = "all" if count == len(trace.rows) else f"the first {count:,} of"
    late = f" ({trace.reordered:,} rows were out of order and sorted)" if trace.reordered else ""
    return f"{Path(trace.path).name} ({trace.format_name} format{known}), {which} {len(trace.rows):,} requests{late}"
