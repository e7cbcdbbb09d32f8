"""``--tune capacity``: how much can be carried within an SLO, what hardware a trace needs, and what an SLO costs."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.arguments import UsageError
from core.cluster import cluster_setup
from core.costs import check_cost_flags, read_costs, settle_block_tokens
from core.folders import write_texts
from reports.percentiles import wilson_interval
from reports.run_folder import MANIFEST_FILE
from reports.slo import Slo
from simulator.costs import CostModel
from tuning.attainable import check_attainable
from tuning.errors import TuningError
from tuning.objectives import SECONDS_OF_AN_HOUR, Objective
from tuning.setting import Setting
from tuning.space import Knob, Space
from tuning.world import Job, Part, World, check_costs, counted, load_workloads, varies

RESULT_FILE = "capacity.json"
MARKDOWN_FILE = "report.md"
#: rates are found to this share
STEP = 0.01
#: requests that a rate is told from, at most and at least
MOST, LEAST = 4000, 200
#: speeds that are tried, as times of the trace's own and of their inverse
MOST_TIMES = 1024.0
#: an SLO as it is, stricter and looser
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
#: replicas that are tried at most where the command gives no range
MOST_REPLICAS = 64


@dataclass(frozen=True)
class Tried:
    """A rate that was tried: the requests that met the SLO of those that count, with the interval of their share."""

    speed: float
    requests_per_s: float
    good: int
    counted: int
    low: float
    high: float
    gpu_s: float
    good_tokens: float
    played: int

    @property
    def share(self) -> float:
        return self.good / self.counted


def _edge(carried: Callable[[float], bool], speed: float = 1.0) -> float:
    """The highest speed that is carried, to a :data:`STEP`; 0 if none is."""
    low, high = 0.0, math.inf
    while not low and speed > 1 / MOST_TIMES:
        if carried(speed):
            low = speed
        else:
            high, speed = speed, speed / 2
    while low and math.isinf(high) and low < MOST_TIMES:
        if carried(2 * low):
            low = 2 * low
        else:
            high = 2 * low
    while low and high / low > 1 + STEP and not math.isinf(high):
        middle = math.sqrt(low * high)
        if carried(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Highest:
    """The highest rate at which the target is met: surely up to ``sure``, surely not from ``beyond`` on."""

    best: Tried | None
    sure_per_s: float
    beyond_per_s: float | None
    simulated: int


class Planner:
    """Plans for one setting of the scheduler: that of the command."""

    def __init__(self, args: argparse.Namespace) -> None:
        check_costs(args)
        if not args.slo:
            raise UsageError("--tune capacity needs --slo, such as ttft_ms=500,tpot_ms=50")
        if args.policy is not None and len(args.policy) > 1:
            raise UsageError(f"--tune capacity plans for one policy, not for {', '.join(args.policy)}")
        self.args = args
        names = [args.costs] if args.costs else list(dict.fromkeys(args.replica_costs))
        costs: dict[str, CostModel] = {name: read_costs(name) for name in names}
        if args.costs:
            check_cost_flags(args, costs[names[0]])
        settle_block_tokens(args, costs[names[0]])
        self.range = args.replicas if isinstance(args.replicas, tuple) else (1, MOST_REPLICAS)
        ranged = isinstance(args.replicas, tuple) or args.replicas is None
        self.planned = ranged and args.autoscale is None and args.replica_costs is None and args.disaggregate is None
        workloads = load_workloads(args, [args.seed + 1, args.seed + 2])
        self.slo = Slo.parse(args.slo)
        self.objective = Objective("goodput", self.slo, target=args.attainment)
        knobs = [Knob("policy", (args.policy[0] if args.policy else "fcfs",))]
        if self.planned:
            knobs.append(Knob("replicas", low=1, high=self.range[1]))
            args = argparse.Namespace(**{**vars(args), "replicas": (1, self.range[1])})
        self.world = World(Space(knobs, args), args, workloads, costs, (self.objective,))
        self.workload = self.world.workload(args.seed)
        if len(self.workload) < LEAST:
            raise TuningError(
                f"workload {self.workload.name} has {len(self.workload)} requests, too few to tell a rate within an "
                f"SLO from: it takes {LEAST}, of which the second half counts; give a longer trace"
            )
        check_attainable(self.world, self.slo, args.attainment)

    def setting(self, replicas: int | None = None) -> Setting:
        values: dict[str, Any] = {"policy": self.args.policy[0] if self.args.policy else "fcfs"}
        if self.planned:
            values["replicas"] = replicas or self.range[0]
        return Setting.of(values)

    # -- the highest rate

    def tried(self, setting: Setting, speed: float, slo: Slo | None = None) -> Tried:
        """The requests that meet the SLO when arrivals are played ``speed`` times as fast."""
        objective = replace(self.objective, slo=slo or self.slo)
        part = Part(0, min(MOST, len(self.workload)))
        good = counted_requests = 0
        span_s = gpu_s = tokens = 0.0
        for seed in self.world.workloads:
            requests, cost_s = counted(self.world.play(Job(setting, part, seed), speed), part)
            met = objective.good(requests)
            done = requests[requests["outcome"] == "finished"]
            good += int(met.sum())
            counted_requests += len(requests)
            span_s += (int(requests["arrival_ns"].max()) - int(requests["arrival_ns"].min())) / 1e9
            gpu_s += cost_s
            tokens += float(done["output_tokens"].to_numpy()[met].sum())
        low, high = wilson_interval(good, counted_requests, self.args.confidence)
        rate, played = counted_requests / max(span_s, 1e-9), part.stop * len(self.world.workloads)
        return Tried(speed, rate, good, counted_requests, low, high, gpu_s, tokens, played)

    def highest(self, setting: Setting, slo: Slo | None = None, both: bool = True) -> Highest:
        """The highest rate within the SLO, by bisection: for what is surely carried, the interval of the share at or
        above the target; with ``both`` also for what surely is not, all of it below."""
        target = self.args.attainment
        known: dict[float, Tried] = {}

        def at(speed: float) -> Tried:
            if speed not in known:
                known[speed] = self.tried(setting, speed, slo)
            return known[speed]

        sure = _edge(lambda speed: at(speed).low >= target)
        best = at(sure) if sure else None
        beyond = _edge(lambda speed: at(speed).high >= target, sure or 1.0) if both else sure
        # the first speed beyond that edge
        above = min((speed for speed, one in known.items() if one.high < target and speed > beyond), default=None)
        return Highest(best, best.requests_per_s if best else 0.0, None if above is None else at(above).requests_per_s,
                       sum(one.played for one in known.values()))  # fmt: skip

    # -- hardware

    def replicas_needed(self) -> tuple[int | None, list[tuple[int, Tried]]]:
        """The fewest replicas that carry the whole trace as it is, and what was tried; ``None`` if the most do not."""
        low, high = self.range
        tried: dict[int, Tried] = {}

        def enough(count: int) -> bool:
            if count not in tried:
                tried[count] = self._whole(self.setting(count))
            return bool(tried[count].low >= self.args.attainment)

        # doubling first: a large cluster is slow to simulate, and mostly not needed
        count = low
        while count < high and not enough(count):
            low, count = count + 1, min(high, 2 * count)
        if not enough(count):
            return None, sorted(tried.items())
        high = count
        while low < high:
            middle = (low + high) // 2
            if enough(middle):
                high = middle
            else:
                low = middle + 1
        return high, sorted(tried.items())

    def _whole(self, setting: Setting) -> Tried:
        """The whole trace, all of its requests counting."""
        part = Part(0, len(self.workload), whole=True)
        played = self.world.play(Job(setting, part, self.args.seed))
        met = self.objective.good(played.requests)
        done = played.requests[played.requests["outcome"] == "finished"]
        low, high = wilson_interval(int(met.sum()), len(played.requests), self.args.confidence)
        rate = self.workload.summary().rate_per_s or 0.0
        tokens = float(done["output_tokens"].to_numpy()[met].sum())
        return Tried(1.0, rate, int(met.sum()), len(played.requests), low, high, played.gpu_s, tokens, part.stop)

    # -- all of it

    def plan(self, say: Callable[[str], None]) -> dict[str, Any]:
        """The highest rate, the hardware for the trace, and the price of stricter and looser objectives."""
        setting = self.setting()
        say("the highest rate within the SLO")
        found = self.highest(setting)
        result: dict[str, Any] = {
            "workload": self.workload.name, "requests": len(self.workload), "slo": self.args.slo,
            "attainment": self.args.attainment, "confidence": self.args.confidence, "costs": list(self.world.costs),
            "setting": setting.values, "rate_of_the_trace": self.workload.summary().rate_per_s,
            "highest": self._told(found, self.args.slo), "seeds": len(self.world.workloads),
            "varies": varies(self.world),
        }  # fmt: skip
        if self.planned:
            say("replicas for the whole trace")
            needed, tried = self.replicas_needed()
            result["replicas"] = {
                "needed": needed,
                "gpus": None if needed is None else needed * self._gpus(),
                "tried": [
                    {"replicas": count, "attainment": one.share, "low": one.low, "high": one.high,
                     "gpu_hours": one.gpu_s / SECONDS_OF_AN_HOUR}
                    for count, one in tried
                ],
            }  # fmt: skip
        result["prices"] = []
        for scale in SCALES:
            slo = Slo({name: scale * limit for name, limit in self.slo.limits_ms.items()})
            text = ",".join(f"{name}={limit:g}" for name, limit in slo.limits_ms.items())
            say(f"what {text} costs")
            result["prices"].append(self._told(found if scale == 1 else self.highest(setting, slo, both=False), text))
        return result

    def _gpus(self) -> int:
        args = self.world.space.arguments(self.setting(2))
        setup = cluster_setup(args, None, self.world.costs.__getitem__)
        return 1 if setup is None else setup.gpus

    def _told(self, found: Highest, slo: str) -> dict[str, Any]:
        best = found.best
        hours = None
        if best is not None and best.good_tokens:
            hours = best.gpu_s / SECONDS_OF_AN_HOUR / best.good_tokens * 1e6
        price = self.args.gpu_hour_price
        return {
            "slo": slo,
            "requests_per_s": found.sure_per_s,
            "beyond_per_s": found.beyond_per_s,
            "attainment": best.share if best else None,
            "low": best.low if best else None,
            "high": best.high if best else None,
            "gpu_hours_per_million": hours,
            "price_per_million": None if hours is None or price is None else hours * price,
            "simulated": found.simulated,
        }


def lines_of(result: dict[str, Any]) -> list[str]:
    """What the plan says, a line each."""
    share, sure = f"{100 * result['attainment']:g} %", f"{100 * result['confidence']:g} %"
    top = result["highest"]
    rate = result["rate_of_the_trace"]
    if top["requests_per_s"]:
        open_ = "" if top["beyond_per_s"] is None else f", and surely not {top['beyond_per_s']:.3g}"
        first = (
            f"{Setting.of(result['setting'])} carries {top['requests_per_s']:.3g} requests/s with {share} of them "
            f"within {result['slo']} ({sure} confidence: {100 * top['low']:.1f} to {100 * top['high']:.1f} % "
            f"there){open_}."
        )
    else:
        first = f"No rate that was tried is carried with {share} of the requests within {result['slo']}."
    lines = [first]
    if rate:
        lines.append(f"The trace brings {rate:.3g} requests/s on average.")
    found = result.get("replicas")
    if found is not None and found["needed"] is not None:
        hours = next(one["gpu_hours"] for one in found["tried"] if one["replicas"] == found["needed"])
        lines.append(f"For the whole trace: replicas {found['needed']}, GPUs {found['gpus']}, GPU-hours {hours:.2f}.")
    elif found is not None:
        most = found["tried"][-1]
        lines.append(
            f"{most['replicas']} replicas, the most that were tried, are not enough: {100 * most['attainment']:.1f} % "
            f"of the requests are within the SLO."
        )
    return lines


PRICE_COLUMNS = ("SLO", "requests/s", "within it", "GPU-hours per million tokens", "price")


def price_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each SLO."""
    rows = []
    for one in result["prices"]:
        if not one["requests_per_s"]:
            rows.append([one["slo"], "none", "–", "–", "–"])
            continue
        price = "–" if one["price_per_million"] is None else f"{one['price_per_million']:.3g}"
        hours = "–" if one["gpu_hours_per_million"] is None else f"{one['gpu_hours_per_million']:.3g}"
        rows.append([one["slo"], f"{one['requests_per_s']:.3g}", f"{100 * one['attainment']:.1f} %", hours, price])
    return rows


def markdown(result: dict[str, Any], command: str) -> str:
    """The plan for a repository."""
    lines = [f"# Capacity: {result['workload']}", "", *(f"- {line}" for line in lines_of(result)), ""]
    lines += ["## What an SLO costs", "", f"| {' | '.join(PRICE_COLUMNS)} |", f"|{'---|' * len(PRICE_COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in price_rows(result)]
    if "replicas" in result:
        lines += [
            "",
            "## Replicas for the whole trace",
            "",
            "| replicas | within the SLO | GPU-hours |",
            "|---|---|---|",
        ]
        lines += [
            f"| {one['replicas']} | {100 * one['attainment']:.1f} % | {one['gpu_hours']:.2f} |"
            for one in result["replicas"]["tried"]
        ]
    return "\n".join([*lines, "", "```bash", command, "```", ""])


def write(folder: Path, command: str, result: dict[str, Any]) -> None:
    """The folder of a plan."""
    texts = {
        MANIFEST_FILE: json.dumps({"command": command, "mode": "tune", "workload": result["workload"]}, indent=2)
        + "\n",
        RESULT_FILE: json.dumps(result, indent=2) + "\n",
        MARKDOWN_FILE: markdown(result, command),
    }
    write_texts(folder, texts)
