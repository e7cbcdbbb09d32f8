"""``--validate-top``: the best settings and the baselines on the engine, beside what was predicted of them."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from core.costs import KV_TOLERANCE, recording_of
from core.runs import Case, Engine, Session, twin_requests
from reports.run import Run, look_up
from reports.run_folder import load_run
from reports.validation import CellResult, Compared, compared, ranking
from scheduler.config import SchedulerConfig
from simulator.profiles import SUFFIX, write_profile
from simulator.recorded import RecordedCosts
from tuning.errors import TuningError
from tuning.objectives import Objective
from tuning.setting import Setting
from tuning.tune import Tuning
from workloads.workload import Workload

VALIDATION_FILE = "validation.json"
#: the figure that settings are ranked by, among those of a cell
RANKED = "objective"
#: a setting that is no more than this behind the best measured one stands
NEAR = 0.02
#: statistics that are compared besides
TTFT_TAIL = "ttft_ms.p99"


@dataclass(frozen=True)
class Entrant:
    """A setting that is run on the engine."""

    title: str
    setting: Setting


def entrants(result: Mapping[str, Any], top: int) -> list[Entrant]:
    """The recommended setting, the other finalists, ``top`` in all, and the baselines."""
    best = result["recommended"]
    baselines = [Entrant(one["title"], Setting.of(one["setting"])) for one in result["baselines"] if not one["failed"]]
    known = {one.setting.key for one in baselines}
    chosen = [] if best["is_baseline"] else [Entrant("recommended", Setting.of(best["setting"]))]
    known |= {one.setting.key for one in chosen}
    for one in result["finalists"]:
        setting = Setting.of(one["setting"])
        if len(chosen) < top and setting.key not in known:
            chosen.append(Entrant("", setting))
            known.add(setting.key)
    return [*chosen, *(one for one in baselines if one.setting.key not in {c.setting.key for c in chosen})]


def stretch_of(workload: Workload, seconds: float, requests: int | None) -> Workload:
    """What is played on the engine: the ``seconds`` of the trace that bring the most tokens, or the first
    ``requests``."""
    rows = workload.rows
    if requests is not None:
        if requests > len(rows):
            raise TuningError(f"--validate-requests {requests}: {workload.name} has {len(rows)}")
        return replace(workload, rows=rows[:requests], source=f"the first {requests} requests; {workload.source}")
    times = np.array([row.arrival_ns for row in rows], np.int64)
    tokens = np.cumsum([0, *(row.prompt_tokens + row.output_tokens for row in rows)])
    stops = np.searchsorted(times, times + round(seconds * 1e9), side="right")
    start = int(np.argmax(tokens[stops] - tokens[:-1]))
    chosen = rows[start : int(stops[start])]
    first_ns = chosen[0].arrival_ns
    return replace(
        workload, rows=tuple(row.arriving_at(row.arrival_ns - first_ns) for row in chosen),
        source=f"requests {start + 1} to {start + len(chosen)}, the busiest {seconds:g} s; {workload.source}",
    )  # fmt: skip


def memory_of(recorded_tokens: int, block_tokens: int) -> int:
    """KV memory for the engine where costs were recorded with ``recorded_tokens``: a little less, in whole blocks.

    What a GPU has left moves from one start to the next, and graphs of mixed steps, which only some settings have, take
    some of it.
    """
    return int(recorded_tokens * (1 - KV_TOLERANCE / 2)) // block_tokens * block_tokens


def session_on(
    tuning: Tuning, setting: Setting, stretch: Workload, mode: str, engine: Engine | None = None
) -> tuple[Session, Case]:  # fmt: skip
    """What runs ``setting`` on ``stretch``, a part of the workload."""
    args = tuning.space.arguments(setting)
    args = argparse.Namespace(**{**vars(args), "mode": mode, "jitter": False, "stop_on_eos": False})
    costs = tuning.first_costs
    if args.kv_tokens is None and isinstance(costs, RecordedCosts) and costs.kv_tokens is not None:
        # the memory that was searched with: with fewer rows or shorter steps the engine would find more
        args.kv_tokens = memory_of(costs.kv_tokens, args.block_tokens)
    session = Session(args, tuning.command, stretch, engine)
    # buckets of equal mass have the edges of the whole workload
    session.args = Session(args, tuning.command, tuning.workload, engine).args
    return session, Case(args.policy[0] if args.policy else "fcfs", (args.layout or ["paged"])[0])


class Validation:
    """The runs of one round, in ``folder``; those that are there already are not run again."""

    def __init__(self, tuning: Tuning, result: Mapping[str, Any], folder: Path, engine: Engine) -> None:
        args = tuning.args
        self.tuning, self.folder, self.engine = tuning, folder, engine
        self.entrants = entrants(result, args.validate_top)
        self.rounds: int = args.validate_rounds
        self.stretch = stretch_of(tuning.workload, args.validate_s, args.validate_requests)
        self._objective = _judge(tuning.objectives[0])
        self._state: dict[str, Any] = {"settings": [one.setting.values for one in self.entrants],
                                       "workload": self.stretch.sha256(), "replayed": {}}  # fmt: skip

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Run each setting as many times as there are rounds, one round after the other, and simulate each."""
        self._resume()
        measured = [[self._measured(place, round_, say) for place in range(len(self.entrants))]
                    for round_ in range(self.rounds)]  # fmt: skip
        cells, predicted = [], []
        for place, one in enumerate(self.entrants):
            runs = [measured[round_][place] for round_ in range(self.rounds)]
            twin = self._simulated(place, runs[0])
            predicted.append(twin)
            figures = (self._compared(runs, twin), *compared(runs, twin))
            replayed = all(self._state["replayed"].values())
            cells.append(CellResult(str(one.setting), str(runs[0].manifest["model"]), self.stretch.name,
                                    one.setting.policy, str(runs[0].manifest["config"]["layout"]), 0.0, 0.0,
                                    len(self.stretch), figures, replayed))  # fmt: skip
        return self._told(cells, measured[0][0])

    # -- one run

    def _session(self, place: int) -> tuple[Session, Case]:
        return session_on(self.tuning, self.entrants[place].setting, self.stretch, "validate", self.engine)

    def _place(self, place: int, round_: int) -> Path:
        return self.folder / f"real-{place + 1}-{round_ + 1}"

    def _measured(self, place: int, round_: int, say: Callable[[str], None]) -> Run:
        folder = self._place(place, round_)
        if folder.name in self._state["replayed"]:
            return load_run(folder)
        shutil.rmtree(folder, ignore_errors=True)
        session, case = self._session(place)
        costs = self.tuning.first_costs
        config = session.real_config(case, costs)
        session.fitting(costs, config)
        requests = session.prompts(session.workload)
        session.check(config, requests)
        measured = session.measure(case, folder, config, requests)
        from engine.errors import DeviceError  # a search needs no engine

        if measured.broken is not None:
            raise DeviceError(measured.broken)
        if measured.interrupted:
            raise KeyboardInterrupt
        if measured.errors:
            raise DeviceError(f"{measured.errors} requests ended with an error, the last one: {measured.last_error}")
        self._state["replayed"][folder.name] = measured.replay.exact
        self._keep()
        value = self._objective.value(measured.run.requests, look_up(measured.run.summary, "makespan_s") or 0.0)
        say(f"round {round_ + 1}, {place + 1} of {len(self.entrants)}, {self.entrants[place].setting}: "
            f"{self._objective.title} {value:.4g} {self._objective.unit}")  # fmt: skip
        return measured.run

    def _simulated(self, place: int, real: Run) -> Run:
        """The same requests under the settings that the engine had."""
        session, case = self._session(place)
        folder = self.folder / f"sim-{place + 1}"
        shutil.rmtree(folder, ignore_errors=True)
        config = SchedulerConfig.from_dict(dict(real.manifest["config"]))
        requests = twin_requests(real, session.requests())
        return session.simulate(case, self.tuning.first_costs, folder, config, requests)

    def _compared(self, runs: Sequence[Run], twin: Run) -> Compared:
        values = [self._value(run) for run in (*runs, twin)]
        return Compared(RANKED, tuple(values[:-1]), values[-1])

    def _value(self, run: Run) -> float:
        return self._objective.value(run.requests, look_up(run.summary, "makespan_s") or 0.0)

    # -- what it comes to

    def _told(self, cells: list[CellResult], first: Run) -> dict[str, Any]:
        objective = self._objective
        figures = [_ranked(cell) for cell in cells]
        base = next(i for i, one in enumerate(self.entrants) if one.title not in ("", "recommended"))
        found = ranking(cells, RANKED)
        settings = []
        for one, cell, figure in zip(self.entrants, cells, figures, strict=True):
            tail = cell.figure(TTFT_TAIL)
            settings.append(
                {
                    "title": one.title,
                    "setting": one.setting.values,
                    "predicted": figure.simulated,
                    "measured": figure.mean,
                    "rounds": list(figure.rounds),
                    "error": figure.error if figure.mean else None,
                    "predicted_gain": objective.gain(figure.simulated, figures[base].simulated),
                    "measured_gain": objective.gain(figure.mean, figures[base].mean),
                    "ttft_error": None if tail is None else tail.error,
                    "replayed": cell.replayed,
                }
            )
        stands, text = _verdict(objective, self.entrants, figures, base)
        agreement = _tau(figures)
        text += f" Kendall's tau between predicted and measured {objective.title}: {agreement:.2f} over all pairs"
        if found.tau is not None:
            pairs = found.alike + found.unlike
            text += f", {found.tau:.2f} over the {pairs} that the rounds tell apart"
        return {
            "stands": stands, "text": f"{text}.", "tau": agreement, "tau_apart": found.tau,
            "pairs_apart": found.alike + found.unlike, "settings": settings, "requests": len(self.stretch),
            "stretch": self.stretch.source, "model": first.manifest["model"],
            "hardware": first.manifest.get("hardware", ""), "rounds": self.rounds,
            "costs": self.tuning.first_costs.name, "objective": objective.title, "unit": objective.unit,
        }  # fmt: skip

    def as_costs(self) -> Path:
        """A profile of the runs, for ``--costs``.

        What the costs were recorded from is in it too: the runs tell nothing of steps that no setting took, nor of the
        host's work where each step was planned while another ran.
        """
        runs = [self._place(place, round_) for round_ in range(self.rounds) for place in range(len(self.entrants))]
        path = self.folder / f"costs{SUFFIX}"
        write_profile(path, runs, recording_of(self.tuning.args.costs))
        return path

    # -- going on

    def _resume(self) -> None:
        path = self.folder / VALIDATION_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise TuningError(f"{path} cannot be used: {error}") from error
        if kept is not None and all(kept.get(name) == self._state[name] for name in ("settings", "workload")):
            self._state["replayed"] = kept["replayed"]
        self._keep()

    def _keep(self) -> None:
        (self.folder / VALIDATION_FILE).write_text(json.dumps(self._state, indent=2) + "\n", encoding="utf-8")


def _judge(objective: Objective) -> Objective:
    """What a single run is judged by: of a throughput within an SLO, which takes many, goodput at the load there is."""
    return replace(objective, kind="goodput") if objective.kind == "throughput" else objective


def _ranked(cell: CellResult) -> Compared:
    figure = cell.figure(RANKED)
    if figure is None:
        raise RuntimeError(f"{cell.name} has no objective")
    return figure


def _apart(one: Compared, other: Compared) -> bool:
    """Whether no round of one reaches the rounds of the other."""
    return max(one.rounds) < min(other.rounds) or max(other.rounds) < min(one.rounds)


def _tau(figures: Sequence[Compared]) -> float:
    """Kendall's tau-a over all pairs, those included that differ by less than chance."""
    pairs = list(combinations(figures, 2))
    signs = [_sign(a.mean - b.mean) * _sign(a.simulated - b.simulated) for a, b in pairs]
    return sum(signs) / len(pairs) if pairs else math.nan


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _verdict(
    objective: Objective, settings: Sequence[Entrant], figures: Sequence[Compared], base: int
) -> tuple[bool, str]:  # fmt: skip
    """Whether the first setting is measured to be better than the baseline, and none clearly better than it."""
    gains = [objective.gain(figure.mean, figures[base].mean) for figure in figures]
    best = max(range(len(gains)), key=lambda i: gains[i])
    behind = objective.gain(figures[best].mean, figures[0].mean)
    measured = f"measured {100 * gains[0]:+.1f} % over {settings[base].setting}"
    if best != 0 and behind > NEAR and _apart(figures[0], figures[best]):
        return False, f"{settings[best].setting} is measured to be {100 * behind:.1f} % better than the recommendation."
    if settings[0].title != "recommended":
        return True, f"No setting was recommended over {settings[base].setting}, and none was measured to be better."
    if gains[0] <= 0:
        return False, f"The recommendation is {measured}."
    if not _apart(figures[0], figures[base]) and len(figures[0].rounds) > 1:
        return False, f"The recommendation is {measured}, within the spread of the rounds."
    return True, f"The recommendation is {measured}, and nothing that was run is clearly better."
