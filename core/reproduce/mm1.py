"""M/M/1: one row, Poisson arrivals, service of about exponential length, against the closed forms of queueing theory.

A job is a request of one prompt token. Its prefill costs nothing and gives its first token, so that 1 + S output tokens
are S steps of service, S geometric with mean 1,000 (the exponential in whole tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log, log1p, sqrt
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from core.reproduce import mg1
from core.reproduce.experiment import MS, Experiment, Options, StepCosts, play
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.request import Request

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: mean service in tokens, and what a token takes
MEAN_TOKENS = 1_000
STEP_NS = MS
#: jobs of a run that should end soon: eight of them in about half a minute
DEFAULT_JOBS = 4_000
#: jobs that are compared one by one with Lindley's recursion
LINDLEY_JOBS = 2_000
#: of the stated statistical errors, 99 %: of the normal distribution, and of Student's with one less than the groups
#: of busy periods that a mean's error is taken from
NORMAL_QUANTILE = 2.576
GROUPS, STUDENT_QUANTILE = 20, 2.861
#: relative tolerance by load
TOLERANCE = {0.8: 0.02, 0.9: 0.04}


@dataclass(frozen=True)
class Discipline:
    """One of theory's disciplines: our policy for it, its mean at each load by theory, and as published."""

    title: str
    settings: dict[str, Any]
    theory: Callable[[float], float]
    published: dict[float, float]


#: one job at a time is in service; who is preempted goes to the host's memory and back for nothing
DISCIPLINES = (
    Discipline("FCFS", {"policy": "fcfs"}, mg1.fcfs, {0.8: 5.0, 0.9: 10.0}),
    Discipline(
        "SJF", {"policy": "sjf-predicted", "oracle": "true", "aging": "none"}, mg1.sjf, {0.8: 2.882, 0.9: 4.197}
    ),
    Discipline(
        "SRPT", {"policy": "srpt", "oracle": "true", "quantum": 0, "preemption": "swap"}, mg1.srpt,
        {0.8: 2.353, 0.9: 3.552},
    ),
    Discipline("LAS", {"policy": "las", "quantum": 250, "preemption": "swap"}, mg1.las, {0.8: 5.0, 0.9: 10.0}),
)  # fmt: skip


def sample_path(jobs: int, rho: float, seed: int) -> list[Request]:
    """``jobs`` arrivals of a Poisson process of load ``rho``, each with its geometric service."""
    rng = Random(f"mm1 {seed} {rho}")
    mean_gap_ns = MEAN_TOKENS * STEP_NS / rho
    per_token = log1p(-1 / MEAN_TOKENS)
    requests, now = [], 0.0
    for index in range(jobs):
        now -= mean_gap_ns * log(1 - rng.random())
        service = max(1, ceil(log(1 - rng.random()) / per_token))
        requests.append(Request(f"j{index}", round(now), 1, service + 1, service + 1))
    return requests


def service_ns(requests: list[Request]) -> IntArray:
    """Each job's service."""
    return np.array([request.max_tokens - 1 for request in requests], np.int64) * STEP_NS


def response_ns(requests: list[Request], settings: dict[str, Any]) -> IntArray:
    """Each job's response time under a policy, one job in service at a time."""
    # large blocks: memory is no part of the model
    config = SchedulerConfig(max_running=1, starvation_s=1e9, block_tokens=256, **settings)
    _, sequences = play(config, requests, StepCosts(0, STEP_NS))
    return np.array([sequence.finish_ns - sequence.arrival_ns for sequence in sequences], np.int64)


def lindley_wait_ns(requests: list[Request]) -> IntArray:
    """Waits of first come, first served by Lindley's recursion, W' = max(0, W + S - A): no simulator in it."""
    waits = np.zeros(len(requests), np.int64)
    wait = 0
    for index in range(1, len(requests)):
        before, request = requests[index - 1], requests[index]
        wait = max(0, wait + (before.max_tokens - 1) * STEP_NS - (request.arrival_ns - before.arrival_ns))
        waits[index] = wait
    return waits


def mean_of_cycles(
    values: IntArray, starts: npt.NDArray[np.bool_], controls: Sequence[FloatArray] = ()
) -> tuple[float, float]:
    """Mean of ``values``, and its 99 % half-width by the regenerative method.

    ``starts`` marks the jobs that find the system empty. The busy periods that they begin are independent, and the same
    under every discipline that never idles. ``controls`` are quantities of the jobs whose true mean is 0: what their
    means on this path explain of that of ``values`` is taken out (control variates, by least squares over the busy
    periods). The half-width is the jackknife's over :data:`GROUPS` groups of busy periods, infinite for fewer.
    """
    first = np.flatnonzero(starts)
    counts = np.diff(np.append(first, len(values))).astype(np.float64)
    totals = np.add.reduceat(values.astype(np.float64), first)
    sums = np.column_stack([np.add.reduceat(control, first) for control in controls]) if controls else None
    mean = _ratio(totals, counts, sums)
    if len(first) < GROUPS:
        return mean, float("inf")
    group = np.arange(len(first)) * GROUPS // len(first)
    without = [
        _ratio(totals[group != left], counts[group != left], None if sums is None else sums[group != left])
        for left in range(GROUPS)
    ]
    return mean, STUDENT_QUANTILE * sqrt((GROUPS - 1) * float(np.var(without)))


def _ratio(totals: FloatArray, counts: FloatArray, sums: FloatArray | None) -> float:
    """Total over count, once what ``sums`` (a column a control) explain is taken out."""
    jobs = float(counts.sum())
    if sums is None:
        return float(totals.sum()) / jobs
    explained = np.linalg.lstsq(sums - np.outer(counts, sums.sum(0) / jobs), totals - counts * (totals.sum() / jobs))
    return float((totals - sums @ explained[0]).sum()) / jobs


def path_controls(requests: list[Request], rho: float) -> list[FloatArray]:
    """What is known of a path without any simulation: services, gaps, and the response times of FCFS, less their means.

    The last are by Lindley's recursion, and no control for FCFS itself.
    """
    service = service_ns(requests).astype(np.float64)
    gaps = np.diff([request.arrival_ns for request in requests], prepend=0).astype(np.float64)
    response = lindley_wait_ns(requests) + service
    mean_ns = MEAN_TOKENS * STEP_NS
    # geometric service: E[S^2] = (2 - p) / p^2
    wait_ns = rho / (1 - rho) * (2 - 1 / MEAN_TOKENS) / 2 * mean_ns
    return [service - mean_ns, gaps - mean_ns / rho, response - (mean_ns + wait_ns)]


def fcfs_error(rho: float, jobs: int) -> float:
    """The 99 % half-width of FCFS's mean wait over mean service, from the known variance of its sum.

    Daley, "The serial correlation coefficients of waiting times in a stationary single server queue" (1968). Few busy
    periods are long and they decide, so that the spread among those that a short path has says too little.
    """
    variance = rho * (2 + 5 * rho - 4 * rho**2 + rho**3) / (1 - rho) ** 4
    return NORMAL_QUANTILE * sqrt(variance / jobs)


def mean_response(discipline: Discipline, rho: float, jobs: int, seed: int) -> tuple[float, float]:
    """E[T] / E[S] as simulated, and its 99 % half-width."""
    requests = sample_path(jobs, rho, seed)
    starts = lindley_wait_ns(requests) == 0
    response = response_ns(requests, discipline.settings)
    controls = path_controls(requests, rho)
    unit = MEAN_TOKENS * STEP_NS
    if discipline.theory is not mg1.fcfs:
        mean_ns, error_ns = mean_of_cycles(response, starts, controls)
        return mean_ns / unit, error_ns / unit
    mean_ns, error_ns = mean_of_cycles(response, starts, controls[:2])
    # the controls leave the same share of the known spread as of the one that was seen
    return mean_ns / unit, fcfs_error(rho, jobs) * min(1.0, error_ns / mean_of_cycles(response, starts)[1])


def rows_of(discipline: Discipline, rho: float, jobs: int, seed: int) -> list[Row]:
    """The simulator's mean and theory's integral beside the published value."""
    published = discipline.published[rho]
    mean, error = mean_response(discipline, rho, jobs, seed)
    quantity = f"{discipline.title}, load {rho:g}"
    return [
        Row.within(quantity, published, mean, TOLERANCE[rho], error=error),
        Row.rounded(f"{quantity}, integral", published, discipline.theory(rho), 3),
    ]


def lindley_row(rho: float, jobs: int, seed: int) -> Row:
    """FCFS's responses less those of Lindley's recursion on the same path: the largest of all jobs, which must be 0."""
    requests = sample_path(jobs, rho, seed)
    expected = lindley_wait_ns(requests) + service_ns(requests)
    largest = int(np.abs(response_ns(requests, DISCIPLINES[0].settings) - expected).max())
    return Row(f"FCFS less Lindley's recursion, load {rho:g}, ns", 0, largest)


def run(options: Options) -> Findings:
    """E[T] / E[S] at two loads under four disciplines: theory's integrals, and the simulator's means."""
    jobs = options.jobs or DEFAULT_JOBS
    pairs = [rows_of(discipline, rho, jobs, options.seed) for rho in TOLERANCE for discipline in DISCIPLINES]
    exact = [lindley_row(rho, min(jobs, LINDLEY_JOBS), options.seed) for rho in TOLERANCE]
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup=(
            f"Mean response time over mean service, {jobs:,} jobs, one in service at a time, prefill free, service "
            f"geometric with mean {MEAN_TOKENS:,} tokens."
        ),
        rows=(*(pair[0] for pair in pairs), *(pair[1] for pair in pairs), *exact),
        notes=(
            "Behind ± is the 99 % error of the mean, from the busy periods of this path (regenerative method), once "
            "what services, gaps and Lindley's recursion on this path explain is taken out (control variates); for "
            "FCFS from the known variance of waiting times. What is allowed is the tolerance and this error. It "
            "shrinks with the root of --jobs; of a path this short it is itself uncertain, at load 0.9 by a factor of "
            "two, and --jobs 1000000 is what the tolerance is meant for.",
            "Who is preempted is swapped out and in at no cost, so that a preemption is only a pause. A job that "
            "arrives within a step is seen at its end, at most a thousandth of a mean service later. LAS counts "
            "service in quanta of 250 tokens: with exponential service the quantum leaves the mean as it is.",
        ),
        measured={"jobs": jobs, "seed": options.seed},
    )


EXPERIMENT = Experiment(
    "mm1",
    "M/M/1 under four disciplines",
    "Harchol-Balter, Performance Modeling and Design of Computer Systems, 2013, chapters 29 to 33",
    run,
)
