"""One setting on a part of the workload: the simulation that ``--mode sim`` would run, with only light recording."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from core.arguments import UsageError
from core.cluster import ClusterSetup, cluster_setup, meets
from core.runs import Case, Session
from reports.cluster import cluster_block, cluster_digest
from reports.rows import REQUEST_COLUMNS
from reports.run_folder import request_row
from reports.summary import finished, latencies, makespan_s
from scheduler.counters import RunCounters
from scheduler.errors import ConfigError, PolicyError
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence as SchedulerSequence
from simulator.cluster import ClusterError, Journey, simulate_cluster
from simulator.costs import CostError, CostModel
from simulator.recorded import RecordedCosts
from simulator.replica import simulate
from tuning.errors import TuningError
from tuning.objectives import Objective, statistic
from tuning.setting import Setting
from tuning.space import Space
from workloads.workload import Workload

#: what makes a setting impossible, rather than the program wrong
IMPOSSIBLE = (UsageError, ConfigError, PolicyError, CostError, ClusterError)


class Part(NamedTuple):
    """Requests ``start`` up to, but without, ``stop`` of a workload. Of a part that is no ``whole`` what happens until
    it is in full swing is left out: its first half only fills the machine."""

    start: int
    stop: int
    whole: bool = False
    pieces: int = 0
    """that the run is judged in, one after the other, besides as one"""

    @property
    def requests(self) -> int:
        """How many there are."""
        return self.stop - self.start

    def edges(self) -> list[int]:
        """Of the pieces."""
        return [self.start + self.requests * place // self.pieces for place in range(self.pieces + 1)]


class Job(NamedTuple):
    """What is to be simulated. ``varied``: step times vary, by ``seed``. ``limit_ns``: a run of one replica is left
    then, whatever has not ended."""

    setting: Setting
    part: Part
    seed: int
    varied: bool = False
    limit_ns: int | None = None

    @property
    def key(self) -> str:
        """The same text for the same job."""
        start, stop, whole, pieces = self.part
        part = f"{start}:{stop}{'!' if whole else ''}{f'/{pieces}' if pieces else ''}"
        limit = "" if self.limit_ns is None else f" <{self.limit_ns}"
        return f"{self.setting.key} {part} {self.seed}{'~' if self.varied else ''}{limit}"


@dataclass(frozen=True)
class Evaluation:
    """How a setting did: the value of each objective, its parts (see :meth:`~tuning.objectives.Objective.blocks`), and
    figures for people. ``simulated`` requests were played for it; ``failed`` says why there is nothing, ``overdue`` how
    many requests had not ended at the job's limit: those are judged as if all of it had come then."""

    values: tuple[float, ...]
    blocks: tuple[tuple[float, ...], ...]
    figures: dict[str, Any]
    simulated: int
    seconds: float
    failed: str = ""
    pieces: tuple[tuple[float, ...], ...] = ()
    """of a part that is judged in pieces, the values of each"""
    overdue: int = 0

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        nested = {name: tuple(tuple(one) for one in data[name]) for name in ("blocks", "pieces")}
        return cls(**{**data, "values": tuple(data["values"]), **nested})


@dataclass(frozen=True)
class Played:
    """A simulation that has ended: a row for each request in order of arrival, and what it took."""

    requests: pd.DataFrame
    gpu_s: float
    digest: str
    counters: RunCounters
    replicas: float
    overdue: int = 0
    """requests that had not ended at the limit; their rows say that they ended then"""


class Rows:
    """An observer, and a listener, that keeps the row of each request."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def stepped(self, *_: Any) -> None:
        """Nothing of a step is kept."""

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """Nothing of the gaps is kept."""

    def ended(self, ended: SchedulerSequence | Journey) -> None:
        self.rows.append(request_row(ended))

    def add_overdue(self, requests: Sequence[Request], limit_ns: int) -> int:
        """Rows of those of ``requests`` that have none, as if all of it had come at ``limit_ns``. Returns how many."""
        there = {row[0] for row in self.rows}
        late = [(number, one) for number, one in enumerate(requests) if one.id not in there]
        for number, one in late:
            row = dict.fromkeys(REQUEST_COLUMNS, 0) | {
                "id": one.id, "number": number, "arrival_ns": one.arrival_ns, "first_scheduled_ns": limit_ns,
                "first_token_ns": limit_ns, "finish_ns": limit_ns, "prompt_tokens": one.prompt_tokens,
                "max_tokens": one.max_tokens, "output_tokens": one.planned_output_tokens, "outcome": "finished",
            }  # fmt: skip
            self.rows.append(tuple(row[name] for name in REQUEST_COLUMNS))
        return len(late)

    def frame(self) -> pd.DataFrame:
        """In order of arrival; times that never were are -1."""
        frame = pd.DataFrame(self.rows, columns=list(REQUEST_COLUMNS)).sort_values("number", ignore_index=True)
        times = ["first_scheduled_ns", "first_token_ns", "finish_ns"]
        frame[times] = frame[times].fillna(-1).astype(np.int64)
        return frame


class World:
    """What jobs are simulated in: the command's arguments, the workload of each seed, and the costs.

    It is handed to other processes whole, so that a machine without the trace can simulate it.
    """

    def __init__(
        self,
        space: Space,
        args: argparse.Namespace,
        workloads: dict[int, Workload],
        costs: dict[str, CostModel],
        objectives: Sequence[Objective],
    ) -> None:
        self.space, self.args, self.workloads, self.costs = space, args, workloads, costs
        self.objectives = tuple(objectives)
        self._requests: dict[tuple[Any, ...], list[Request]] = {}

    # -- one simulation

    def play(self, job: Job, speed: float = 1.0) -> Played:
        """Simulate a job; ``speed`` 2 plays its arrivals twice as fast. Raises one of :data:`IMPOSSIBLE`."""
        args = self.space.arguments(job.setting)
        args.seed = job.seed
        args.jitter = args.jitter or job.varied
        setup = cluster_setup(args, self.space.scaling(job.setting), self.costs.__getitem__)
        if setup is not None:
            args.jitter = False
        session = Session(args, "", self.workload(job.seed))
        case = Case(args.policy[0] if args.policy else "fcfs", (args.layout or ["paged"])[0])
        requests = self._part(session, job, speed)
        if setup is not None:
            return self._play_cluster(session, case, setup, requests)
        costs = self.costs[args.costs]
        config = session.config(case, costs.kv_tokens, costs.context_tokens, costs)
        session.fitting(costs, config)
        session.check(config, requests)
        costs, jitter = session.step_times(case, costs)
        rows = Rows()
        scheduler = simulate(requests, Scheduler(config, rows), costs, jitter=jitter, until_ns=job.limit_ns)
        overdue = 0 if job.limit_ns is None else rows.add_overdue(requests, job.limit_ns)
        frame = rows.frame()
        gpus = costs.tp if isinstance(costs, RecordedCosts) else 1
        gpu_s = (makespan_s(frame) or 0.0) * gpus
        return Played(frame, gpu_s, scheduler.digest.hexdigest(), scheduler.counters, 1, overdue)

    def _play_cluster(self, session: Session, case: Case, setup: ClusterSetup, requests: list[Request]) -> Played:
        plan = session.cluster_plan(case, setup, requests)
        rows = Rows()
        cluster = simulate_cluster(requests, plan, rows, is_good=meets(session.slo))
        block = cluster_block(cluster, plan, setup.gpus)
        frame = rows.frame()
        gpu_s = float(block["gpu_seconds"])
        replicas = gpu_s / setup.gpus / (makespan_s(frame) or 1.0)
        return Played(frame, gpu_s, cluster_digest(cluster), cluster.counters, replicas)

    def workload(self, seed: int) -> Workload:
        return self.workloads.get(seed, self.workloads[self.args.seed])

    def _part(self, session: Session, job: Job, speed: float) -> list[Request]:
        key = (job.seed if job.seed in self.workloads else self.args.seed, session.args.block_tokens,
               session.args.prefix_cache)  # fmt: skip
        if key not in self._requests:
            self._requests[key] = session.requests()
        requests = self._requests[key][job.part.start : job.part.stop]
        # a part begins when its first request comes
        begin_ns = requests[0].arrival_ns if job.part.start else 0
        if speed == 1 and not begin_ns:
            return requests
        return [replace(one, arrival_ns=round((one.arrival_ns - begin_ns) / speed)) for one in requests]

    # -- what it is worth

    def evaluate(self, job: Job) -> Evaluation:
        """Simulate a job and judge it; a setting that cannot be is a failed evaluation."""
        started_s = time.perf_counter()
        count = job.part.requests
        try:
            played = self.play(job)
        except IMPOSSIBLE as error:
            return Evaluation((), (), {}, 0, time.perf_counter() - started_s, failed=str(error))
        requests, gpu_s = counted(played, job.part)
        values: list[float] = []
        blocks: list[tuple[float, ...]] = []
        for objective in self.objectives:
            if objective.kind == "throughput" and played.overdue:
                values.append(0.0)
                blocks.append(())
            elif objective.kind == "throughput":
                found = highest_rate(self, job, objective)
                count += found.simulated
                values.append(found.output_tokens_per_s)
                blocks.append(())
            else:
                values.append(objective.value(requests, gpu_s))
                blocks.append(tuple(objective.blocks(requests)))
        pieces, more = self._pieces(job, played) if job.part.pieces else ((), 0)
        figures = self.figures(played, requests, gpu_s)
        seconds = time.perf_counter() - started_s
        return Evaluation(
            tuple(values), tuple(blocks), figures, count + more, seconds, pieces=pieces, overdue=played.overdue
        )

    def _pieces(self, job: Job, played: Played) -> tuple[tuple[tuple[float, ...], ...], int]:
        """The values of each piece of a run, and the requests that were simulated besides to find them."""
        found, simulated = [], 0
        whole_s = makespan_s(played.requests) or 0.0
        for start, stop in pairwise(job.part.edges()):
            piece = played.requests.iloc[start - job.part.start : stop - job.part.start]
            gpu_s = played.gpu_s * (makespan_s(piece) or 0.0) / whole_s if whole_s else 0.0
            values = []
            for objective in self.objectives:
                if objective.kind == "throughput":
                    rate = highest_rate(self, job._replace(part=Part(start, stop)), objective)
                    simulated += rate.simulated
                    values.append(rate.output_tokens_per_s)
                else:
                    values.append(objective.value(piece, gpu_s))
            found.append(tuple(values))
        return tuple(found), simulated

    def figures(self, played: Played, requests: pd.DataFrame, gpu_s: float) -> dict[str, Any]:
        """For people; latencies in ms."""
        judge = self.objectives[0]
        done, seconds = finished(requests), makespan_s(requests) or 0.0
        found = latencies(requests).in_ms()
        figures: dict[str, Any] = {
            "finished": len(done),
            "attainment": float(judge.good(requests).sum()) / max(1, len(requests)) if judge.slo else None,
            "goodput_per_s": float(judge.good(requests).sum()) / seconds if judge.slo and seconds else None,
            "output_tokens_per_s": float(done["output_tokens"].sum()) / seconds if seconds else None,
            "makespan_s": seconds,
            "ended_ns": int(played.requests["finish_ns"].max()),
            "gpu_s": gpu_s,
            "replicas": played.replicas,
            "preemptions": played.counters.preemptions,
            "digest": played.digest,
        }
        for name, which in (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("tpot_ms", "p50"), ("tpot_ms", "p99"),
                            ("e2e_ms", "mean"), ("e2e_ms", "p99")):  # fmt: skip
            values = found[name][~np.isnan(found[name])]
            value = statistic(values, which)
            figures[f"{name}.{which}"] = value if np.isfinite(value) else None
        return figures


def counted(played: Played, part: Part) -> tuple[pd.DataFrame, float]:
    """The requests of a part that count, and the GPU-seconds that they were served in."""
    if part.whole:
        return played.requests, played.gpu_s
    late = played.requests.iloc[len(played.requests) // 2 :]
    whole_s, late_s = makespan_s(played.requests) or 0.0, makespan_s(late) or 0.0
    return late, played.gpu_s * late_s / whole_s if whole_s else 0.0


class Rate(NamedTuple):
    """The highest rate at which enough requests meet their objectives, and what was served of it; 0 where there is
    none. ``simulated`` requests were played to find it."""

    speed: float
    requests_per_s: float
    output_tokens_per_s: float
    attainment: float
    simulated: int


#: the highest rate is found to this share, and nothing is looked for below this share of the first guess
RATE_STEP, LEAST_RATE = 0.02, 1 / 64


def highest_rate(world: World, job: Job, objective: Objective, step: float = RATE_STEP) -> Rate:
    """By bisection, between a speed of the arrivals at which at least the target of the requests meet the SLO, and one
    at which fewer do. The second half of the requests counts, when the machine is in full swing."""
    part, job = job.part._replace(whole=False), job._replace(limit_ns=None)
    simulated = 0

    def tried(speed: float) -> Rate:
        nonlocal simulated
        simulated += part.requests
        requests, _ = counted(world.play(job, speed), part)
        good, seconds = float(objective.good(requests).sum()), makespan_s(requests) or 0.0
        if not seconds:
            return Rate(speed, 0.0, 0.0, 0.0, 0)
        span_s = (int(requests["arrival_ns"].max()) - int(requests["arrival_ns"].min())) / 1e9
        done = finished(requests)
        return Rate(speed, len(requests) / max(span_s, 1e-9), float(done["output_tokens"].sum()) / seconds,
                    good / len(requests), 0)  # fmt: skip

    found = tried(1.0)
    low, high = (found, None) if found.attainment >= objective.target else (None, found)
    while low is None and high is not None and high.speed > LEAST_RATE:
        found = tried(high.speed / 2)
        low, high = (found, high) if found.attainment >= objective.target else (None, found)
    while high is None and low is not None and low.speed < 1 / LEAST_RATE:
        found = tried(low.speed * 2)
        low, high = (found, None) if found.attainment >= objective.target else (low, found)
    while low is not None and high is not None and high.speed / low.speed > 1 + step:
        found = tried(math.sqrt(low.speed * high.speed))
        low, high = (found, high) if found.attainment >= objective.target else (low, found)
    if low is None:
        return Rate(0.0, 0.0, 0.0, 0.0, simulated)
    return low._replace(simulated=simulated)


def load_workloads(args: argparse.Namespace, seeds: Sequence[int]) -> dict[int, Workload]:
    """The workload of each seed, each different one once; the command's own first."""
    found: dict[int, Workload] = {}
    for seed in (args.seed, *seeds):
        own = argparse.Namespace(**vars(args))
        own.seed = seed
        workload = Session(own, "").workload
        if not found or workload.sha256() != found[args.seed].sha256():
            found[seed] = workload
    return found


def varies(world: World) -> bool:
    """Whether another seed gives another run."""
    recorded = any(isinstance(costs, RecordedCosts) for costs in world.costs.values())
    several = world.space.knob("replicas") is not None or world.args.replicas is not None
    return len(world.workloads) > 1 or (recorded and not several)


def check_costs(args: argparse.Namespace) -> None:
    """Refuse a tuning without costs."""
    if not args.costs and not args.replica_costs:
        raise TuningError(
            "--mode tune needs --costs: a recorded run folder, a profile, roofline:GPU:MODEL or project:PROFILE:GPU "
            "(see --list costs)"
        )
