"""What holds in every queue, and two that have closed forms: M/D/1 and M/M/c.

M/D/1: a job is a request of two tokens, the first of a free prefill, the second of a decode step, which is its service.
M/M/c: ``max_running`` is c, and a decode step takes the same time with any number of rows, so that each running
sequence is a job with a server of its own; services are geometric, as those of :mod:`core.reproduce.mm1`. A job that
finds a server free within a step starts at its end, at most a thousandth of a mean service later.

Means are those of independent replications, each from an empty system and without its first jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import factorial, log
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from core.reproduce import mm1
from core.reproduce.confidence import Estimate, of_replications
from core.reproduce.experiment import Ended, Experiment, Options, StepCosts
from core.reproduce.mm1 import DISCIPLINES, MEAN_TOKENS, STEP_NS, lindley_wait_ns, service_ns
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.costs import CostModel
from simulator.replica import simulate

IntArray = npt.NDArray[np.int64]

#: the mean service of all queues here
SERVICE_NS = MEAN_TOKENS * STEP_NS
#: replications of a mean, jobs of all of them together, and jobs at the beginning of each that are left out
REPLICATIONS, DEFAULT_JOBS, WARM_UP = 16, 9_600, 100
SERVERS, MIDDLE = (2, 4, 8), 4
LOADS, LOAD = (0.5, 0.7), 0.7
#: that every mean may be off besides its interval: half a step's delay, and what the warm-up has left
TOLERANCE = 0.01
#: mean services that a job of M/M/c may be later or earlier than by the recursion: two steps
MOST_OFF = 0.002


# -- theory


def md1_response(rho: float) -> float:
    """Mean response over service of M/D/1: 1 + rho (1 + C^2) / (2 (1 - rho)) with C = 0 (Pollaczek, Khinchine)."""
    return 1 + rho / (2 * (1 - rho))


def erlang_c(servers: int, rho: float) -> float:
    """The probability that a job has to wait in M/M/c, for ``rho`` = arrival rate x mean service / servers."""
    offered = servers * rho
    waiting = offered**servers / factorial(servers) / (1 - rho)
    return waiting / (sum(offered**busy / factorial(busy) for busy in range(servers)) + waiting)


def mmc_response(servers: int, rho: float) -> float:
    """Mean response over mean service of M/M/c (Erlang, 1917)."""
    return 1 + erlang_c(servers, rho) / (servers * (1 - rho))


def mean_work(rho: float) -> float:
    """Mean unfinished work over mean service of M/M/1, of every order that never idles: what an arrival of first come,
    first served waits for (Pollaczek, Khinchine); services are geometric."""
    return rho / (1 - rho) * (2 - 1 / MEAN_TOKENS) / 2


# -- sample paths and what is played of them


def fixed_path(jobs: int, rho: float, seed: int) -> list[Request]:
    """``jobs`` arrivals of a Poisson process of load ``rho``, each with one step of service."""
    rng = Random(f"md1 {seed} {rho}")
    requests, now = [], 0.0
    for index in range(jobs):
        now -= SERVICE_NS / rho * log(1 - rng.random())
        requests.append(Request(f"j{index}", round(now), 1, 2, 2))
    return requests


@dataclass(frozen=True)
class Played:
    """A queue that was simulated to its end: each job's arrival, service and finish, in order of arrival, and when each
    stretch of decode steps began and ended, with its rows."""

    arrival_ns: IntArray
    service_ns: IntArray
    finish_ns: IntArray
    start_ns: IntArray
    end_ns: IntArray
    rows: IntArray
    rate_per_ns: float
    """of the arrival process"""

    @property
    def controls(self) -> tuple[float, float]:
        """What is known of the sample path less its true mean: of the gaps, and of the services."""
        gap = self.rate_per_ns * int(self.arrival_ns[-1]) / len(self.arrival_ns)
        return gap - 1, float(self.service_ns.mean()) / SERVICE_NS - 1

    @property
    def response_ns(self) -> IntArray:
        return self.finish_ns - self.arrival_ns

    @property
    def warm_ns(self) -> tuple[int, int]:
        """When the run is warm: from the first arrival that counts to the last."""
        return int(self.arrival_ns[WARM_UP]), int(self.arrival_ns[-1])

    def served_ns(self, since_ns: int, until_ns: int) -> int:
        """Service given in that time: rows times time."""
        return int((self.rows * np.diff(np.clip([self.start_ns, self.end_ns], since_ns, until_ns), axis=0)[0]).sum())

    def unfinished_ns(self, times_ns: IntArray) -> IntArray:
        """Work that had arrived before each of ``times_ns`` and was not done then, on one server."""
        arrived = np.append(0, np.cumsum(self.service_ns))[np.searchsorted(self.arrival_ns, times_ns, "left")]
        over = np.searchsorted(self.end_ns, times_ns, "right")
        whole = np.append(0, np.cumsum(self.end_ns - self.start_ns))[over]
        begun = np.append(self.start_ns, np.iinfo(np.int64).max)[over]
        work: IntArray = arrived - whole - np.maximum(0, times_ns - begun)
        return work


class _Steps(Ended):
    """Keeps decode steps as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stretches: list[tuple[int, int, int]] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        if plan.features.kind == "decode":
            self.stretches.append((plan.now_ns, int(outcome.ends_ns[-1]), plan.features.rows))


def play(
    requests: list[Request], services_ns: IntArray, settings: dict[str, Any], costs: CostModel, rate_per_ns: float
) -> Played:
    """Simulate ``requests``, arrivals at ``rate_per_ns``, to their ends; ``RuntimeError`` if one did not finish."""
    steps = _Steps()
    # large blocks: memory is no part of the model
    config = SchedulerConfig(block_tokens=256, starvation_s=1e9, **settings)
    simulate(requests, Scheduler(config, steps), costs)
    unfinished = [sequence for sequence in steps.sequences if sequence.state != "finished"]
    if unfinished:
        raise RuntimeError(f"{unfinished[0]!r} did not finish: {unfinished[0].reason}")
    ended = sorted(steps.sequences, key=lambda sequence: sequence.number)
    start, end, rows = np.array(steps.stretches, np.int64).reshape(-1, 3).T
    return Played(
        np.array([sequence.arrival_ns for sequence in ended], np.int64), services_ns,
        np.array([sequence.finish_ns for sequence in ended], np.int64), start, end, rows, rate_per_ns,
    )  # fmt: skip


def play_md1(jobs: int, rho: float, seed: int) -> Played:
    """M/D/1, first come, first served."""
    services = np.full(jobs, SERVICE_NS, np.int64)
    return play(fixed_path(jobs, rho, seed), services, {"max_running": 1}, StepCosts(0, SERVICE_NS), rho / SERVICE_NS)


def play_mmc(servers: int, jobs: int, rho: float, seed: int, **settings: Any) -> Played:
    """M/M/c, first come, first served by default."""
    path = mm1.sample_path(jobs, servers * rho, seed)
    rate_per_ns = servers * rho / SERVICE_NS
    return play(path, service_ns(path), {"max_running": servers, **settings}, StepCosts(0, STEP_NS), rate_per_ns)


# -- what is measured


def in_system_ns(arrival_ns: IntArray, finish_ns: IntArray, since_ns: int, until_ns: int) -> int:
    """The number in the system, integrated from ``since_ns`` to ``until_ns``, by going through all that changes it."""
    times = np.concatenate([arrival_ns, finish_ns]).clip(since_ns, until_ns)
    changes = np.concatenate([np.ones_like(arrival_ns), -np.ones_like(finish_ns)])
    order = np.argsort(times, kind="stable")
    number = np.cumsum(changes[order])
    return int((number * np.diff(times[order], append=until_ns)).sum())


def estimate(played: Callable[[int], Played], of: Callable[[Played], float], seed: int) -> Estimate:
    """The mean of ``of`` over :data:`REPLICATIONS` independent runs."""
    runs = [played(seed * REPLICATIONS + run) for run in range(REPLICATIONS)]
    return of_replications([of(run) for run in runs], [run.controls for run in runs])


def response(played: Played) -> float:
    """Mean response over mean service, once the run is warm."""
    return float(played.response_ns[WARM_UP:].mean()) / SERVICE_NS


def little_difference(played: Played) -> float:
    """Mean number in the system over rate x mean response, less 1, once the run is warm."""
    since, until = played.warm_ns
    number = in_system_ns(played.arrival_ns, played.finish_ns, since, until) / (until - since)
    return number / (played.rate_per_ns * float(played.response_ns[WARM_UP:].mean())) - 1


def servers_at_work(played: Played) -> float:
    """How many served at a time, on average, once the run is warm."""
    since, until = played.warm_ns
    return played.served_ns(since, until) / (until - since)


def work_found(played: Played) -> float:
    """Mean work over mean service that arrivals find unfinished, once the run is warm."""
    return float(played.unfinished_ns(played.arrival_ns[WARM_UP:]).mean()) / SERVICE_NS


def response_by_recursion_ns(arrival_ns: IntArray, services_ns: IntArray, servers: int) -> IntArray:
    """Responses of first come, first served with ``servers`` (Kiefer and Wolfowitz, 1955): no simulator in it."""
    free = [0] * servers
    ends = []
    for arrival, service in zip(arrival_ns.tolist(), services_ns.tolist(), strict=True):
        ends.append(max(arrival, heappop(free)) + service)
        heappush(free, ends[-1])
    return np.array(ends, np.int64) - arrival_ns


# -- rows


def _row(quantity: str, theory: float, found: Estimate) -> Row:
    return Row.within(quantity, theory, found.mean, TOLERANCE, error=found.error)


def mean_rows(jobs: int, seed: int) -> list[Row]:
    """Mean responses of M/D/1 and M/M/c beside the closed forms."""
    queues: list[tuple[str, float, Callable[[int], Played]]] = [
        (f"M/D/1, load {rho:g}", md1_response(rho), partial(play_md1, jobs, rho)) for rho in LOADS
    ]
    queues += [
        (f"M/M/{servers}, load {LOAD:g}", mmc_response(servers, LOAD), partial(play_mmc, servers, jobs, LOAD))
        for servers in SERVERS
    ]
    return [
        _row(f"{title}, response / service", theory, estimate(played, response, seed))
        for title, theory, played in queues
    ]


def recursion_rows(jobs: int, seed: int) -> list[Row]:
    """Every job's response less that of the recursion: none with one server, where a step is a service; else the steps
    by which jobs that found a server free had to wait for the end of one."""
    one = play_md1(jobs, LOAD, seed)
    off = np.abs(one.response_ns - response_by_recursion_ns(one.arrival_ns, one.service_ns, 1)).max()
    rows = [Row("M/D/1 less the recursion, the furthest job, ns", 0, int(off))]
    for servers in SERVERS:
        many = play_mmc(servers, jobs, LOAD, seed)
        off = np.abs(many.response_ns - response_by_recursion_ns(many.arrival_ns, many.service_ns, servers)).max()
        quantity = f"M/M/{servers} less the recursion, the furthest job, mean services"
        rows.append(Row(quantity, MOST_OFF, float(off) / SERVICE_NS, allowed="at most", relation="at most"))
    return rows


def little_rows(jobs: int, seed: int) -> list[Row]:
    """The number in the system is rate x mean response: exactly over a run from empty to empty, else on average."""
    rows = []
    for discipline in DISCIPLINES:
        run = play_mmc(1, jobs, LOAD, seed, **discipline.settings)
        number = in_system_ns(run.arrival_ns, run.finish_ns, int(run.arrival_ns[0]), int(run.finish_ns.max()))
        quantity = f"Little, {discipline.title}: number in the system x time, less all responses, ns"
        rows.append(Row(quantity, 0, number - int(run.response_ns.sum())))
    many = partial(play_mmc, MIDDLE, jobs, LOAD)
    found = estimate(many, little_difference, seed)
    quantity = f"Little, M/M/{MIDDLE}: number in the system over rate x mean response"
    rows.append(_row(quantity, 1.0, Estimate(1 + found.mean, found.error)))
    rows.append(_row(f"Little, M/M/{MIDDLE}: servers at work", MIDDLE * LOAD, estimate(many, servers_at_work, seed)))
    return rows


def work_rows(jobs: int, seed: int) -> list[Row]:
    """A server that never idles while there is work has done as much by any time, whatever the order."""
    rows = []
    for discipline in DISCIPLINES:
        run = play_mmc(1, jobs, LOAD, seed, **discipline.settings)
        work = run.unfinished_ns(run.arrival_ns) - lindley_wait_ns(mm1.sample_path(jobs, LOAD, seed))
        idle = int((run.end_ns - run.start_ns).sum()) - int(run.service_ns.sum())
        rows.append(Row(f"work, {discipline.title}: time at work less all services, ns", 0, idle))
        rows.append(
            Row(f"work, {discipline.title}: unfinished less Lindley's, the most, ns", 0, int(np.abs(work).max()))
        )
    found = estimate(partial(play_mmc, 1, jobs, LOAD), work_found, seed)
    rows.append(_row("work, M/M/1 in any of these orders: found unfinished / service", mean_work(LOAD), found))
    return rows


def run(options: Options) -> Findings:
    """M/D/1, M/M/c, Little's law and work conservation."""
    jobs = max((options.jobs or DEFAULT_JOBS) // REPLICATIONS, 2 * WARM_UP)
    seed = options.seed
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup=(
            f"{REPLICATIONS} independent replications of {jobs:,} jobs, the first {WARM_UP} of each left out; prefill "
            f"free; loads {' and '.join(f'{load:g}' for load in LOADS)}, {LOAD:g} where none is said. M/M/c is c "
            "sequences running at once, whose decode steps take the same time however many there are."
        ),
        rows=(*mean_rows(jobs, seed), *recursion_rows(jobs, seed), *little_rows(jobs, seed), *work_rows(jobs, seed)),
        notes=(
            "Behind ± is the 99 % interval of the mean (Student's t over the replications), once what gaps and "
            "services explain is taken out (control variates). What is allowed is the tolerance and this interval; it "
            "shrinks with the root of --jobs.",
            "The number in the system is counted through all arrivals and finishes, work through all decode steps: "
            "neither knows of response times or of the scheduler's order.",
        ),
        measured={"jobs": REPLICATIONS * jobs, "seed": seed},
    )


EXPERIMENT = Experiment(
    "queues",
    "M/D/1, M/M/c, Little's law, work conservation",
    "Kleinrock, Queueing Systems, volumes 1 and 2, 1975 and 1976; Kiefer and Wolfowitz 1955",
    run,
)
