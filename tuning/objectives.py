"""What a setting is judged by: figures of :doc:`metrics`, and how sure one can be of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.percentiles import PERCENTILES, nearest_rank, samples_needed
from reports.slo import OBJECTIVES as LATENCIES
from reports.slo import Slo
from reports.summary import Latencies, finished, latencies, makespan_s
from scheduler.errors import unknown_name
from tuning.errors import TuningError

FloatArray = npt.NDArray[np.float64]

Kind = Literal["goodput", "throughput", "latency", "cost"]
KINDS: tuple[Kind, ...] = ("goodput", "throughput", "latency", "cost")
DEFAULT_LATENCY = "e2e_ms.mean"
SECONDS_OF_AN_HOUR = 3600
#: of the time axis, that a figure is told from: their spread says how sure it is
BLOCKS = 10


@dataclass(frozen=True)
class Objective:
    """One figure to make as large (``maximise``) or as small as can be.

    ``latency`` and ``statistic`` are those of a ``latency``; ``target`` is the share of requests that must meet the
    objectives of ``slo`` for a ``throughput`` or a ``cost`` to count; ``price`` is that of a GPU-hour.
    """

    kind: Kind
    slo: Slo | None = None
    latency: str = ""
    statistic: str = ""
    target: float = 0.9
    price: float | None = None

    @property
    def name(self) -> str:
        """As ``--objective`` takes it."""
        return f"latency:{self.latency}.{self.statistic}" if self.kind == "latency" else self.kind

    @property
    def maximise(self) -> bool:
        return self.kind in ("goodput", "throughput")

    @property
    def title(self) -> str:
        match self.kind:
            case "goodput":
                return "goodput"
            case "throughput":
                return f"throughput at {100 * self.target:g} % within the SLO"
            case "latency":
                what = self.latency.removesuffix("_ms").upper()
                return f"{self.statistic if self.statistic == 'mean' else self.statistic.upper()} {what}"
            case "cost":
                return "cost per million tokens"

    @property
    def unit(self) -> str:
        match self.kind:
            case "goodput":
                return "requests/s"
            case "throughput":
                return "output tokens/s"
            case "latency":
                return "ms"
            case "cost":
                return "GPU-hours" if self.price is None else "price units"

    def value(self, requests: pd.DataFrame, gpu_s: float) -> float:
        """The figure of requests that have ended; ``gpu_s`` are the GPU-seconds that were paid for.

        ``inf`` for a latency or a cost of a run in which too few requests were served. A ``throughput`` is not told
        from one run; see :mod:`tuning.rates`.
        """
        match self.kind:
            case "goodput":
                seconds = makespan_s(requests)
                return float(self.good(requests).sum()) / seconds if seconds else 0.0
            case "latency":
                return statistic(self._latencies(requests), self.statistic)
            case "cost":
                return self._cost(requests, gpu_s)
            case "throughput":
                raise ValueError("a throughput within an SLO needs several runs")

    @property
    def samples_needed(self) -> int:
        """Requests that the figure needs."""
        return samples_needed(int(self.statistic[1:])) if self.statistic.startswith("p") else 1

    def blocks(self, requests: pd.DataFrame) -> list[float]:
        """The figure's part in each of :data:`BLOCKS` stretches of arrivals, larger is better: what is compared in
        pairs between runs of the same requests."""
        pieces = np.array_split(np.arange(len(requests)), min(BLOCKS, len(requests)))
        return [self._part(requests.iloc[piece]) for piece in pieces]

    def _part(self, requests: pd.DataFrame) -> float:
        if self.kind == "latency":
            value = statistic(self._latencies(requests), self.statistic, enough=False)
            return -value
        weight = self._good_tokens(requests) if self.kind == "cost" else float(self.good(requests).sum())
        return weight / len(requests)

    def good(self, requests: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which of the finished requests met all objectives."""
        if self.slo is None:
            return np.ones(len(finished(requests)), np.bool_)
        return self.slo.met(latencies(requests).in_ms())

    def _good_tokens(self, requests: pd.DataFrame) -> float:
        return float(finished(requests)["output_tokens"].to_numpy()[self.good(requests)].sum())

    def _latencies(self, requests: pd.DataFrame) -> FloatArray:
        found: Latencies = latencies(requests)
        values = found.in_ms()[self.latency]
        return values[~np.isnan(values)]

    def _cost(self, requests: pd.DataFrame, gpu_s: float) -> float:
        """GPU time over the tokens of requests that met the SLO. Where fewer than the target did, it is no service:
        such a run is dearer than any that is one, the more the fewer did."""
        tokens = self._good_tokens(requests)
        if not tokens:
            return math.inf
        cost = gpu_s / SECONDS_OF_AN_HOUR / tokens * 1e6 * (self.price or 1)
        share = float(self.good(requests).sum()) / len(requests)
        missing = 0.0 if self.slo is None else max(0.0, self.target - share)
        return cost * (1 + MISSED * missing) if missing else cost

    def better(self, one: float, other: float) -> bool:
        """Whether ``one`` is the better value."""
        return one > other if self.maximise else one < other

    def gain(self, value: float, base: float) -> float:
        """How much better ``value`` is than ``base``, as a share of it: 0.1 is a tenth more, or a tenth less where less
        is better."""
        if not base or not math.isfinite(base):
            return 0.0 if value == base else math.inf
        change = value / base - 1
        return change if self.maximise else -change


#: a cost below the target of the SLO counts 1 + this x (target - share) times
MISSED = 100.0


def statistic(values: FloatArray, name: str, enough: bool = True) -> float:
    """``mean`` or a percentile (nearest rank), ``inf`` of no values. With ``enough``, ``inf`` also for a percentile of
    fewer values than it needs."""
    if not len(values):
        return math.inf
    if name == "mean":
        return float(values.mean())
    percent = int(name[1:])
    if enough and len(values) < samples_needed(percent):
        return math.inf
    return float(np.sort(values)[nearest_rank(percent, len(values)) - 1])


STATISTICS = ("mean", *(f"p{percent}" for percent in PERCENTILES))


def parse_objectives(
    names: Sequence[str] | None, slo: Slo | None, target: float, price: float | None, replicas: bool
) -> tuple[Objective, ...]:
    """From what ``--objective`` was given; by default goodput, and cost where there are ``replicas`` to choose.

    Raises :class:`TuningError`.
    """
    found = tuple(_parse(name, slo, target, price) for name in names or (["cost"] if replicas else ["goodput"]))
    named = [objective.name for objective in found]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise TuningError(f"objective {twice} is given twice")
    if price is not None and not any(objective.kind == "cost" for objective in found):
        raise TuningError("--gpu-hour-price has no effect without --objective cost; leave it out")
    return found


def _parse(text: str, slo: Slo | None, target: float, price: float | None) -> Objective:
    kind, colon, figure = text.partition(":")
    for name in KINDS:
        if name != kind:
            continue
        if colon and name != "latency":
            raise TuningError(f"objective {text}: {name} takes nothing after a colon; write {name}")
        if name == "latency":
            latency, _, which = (figure or DEFAULT_LATENCY).partition(".")
            if latency not in LATENCIES:
                raise TuningError(f"objective {text}: {unknown_name('latency', latency, LATENCIES)}")
            if which not in STATISTICS:
                raise TuningError(f"objective {text}: {unknown_name('statistic', which, STATISTICS)}")
            return Objective("latency", slo, latency, which)
        if name != "cost" and slo is None:
            raise TuningError(f"objective {name} needs --slo, such as ttft_ms=500,tpot_ms=50")
        return Objective(name, slo, target=target, price=price if name == "cost" else None)
    raise TuningError(unknown_name("objective", text, KINDS))
