"""Running the claims into a folder: every run once a round, as long as the time lasts, and going on where it stopped.

Each run of a round has a run folder, ``<run>-<round>``, and in it ``figures.json``, written last: what is there was run
to its end. ``claims.json`` has the figures of all of them and is all that a report needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.arguments import UsageError, cell_arguments
from core.claims.claims import CLAIMS, reckoned, runs_of
from core.claims.figures import figures_of, samples_of
from core.claims.gpu import Blind, watch_of
from core.claims.loads import FULL, QUARTER, SCALES, Scale
from core.claims.runs import A100, CELLS, ROUNDS, RUNS, ClaimRun, needed
from core.costs import read_costs
from core.folders import write_texts
from core.provenance import git_commit, hardware, versions
from core.runs import Case, Engine, Session
from reports.chronicle import JOURNAL_FILE
from reports.claims import Answer, Claim, Contrast, Measured, Results, answer, as_csv, contrast
from reports.claims_page import claims_html, claims_markdown
from reports.run import Run
from scheduler.errors import ConfigError, unknown_name

PLAN_FILE = "plan.json"
FIGURES_FILE = "figures.json"
CLAIMS_FILE, CLAIMS_TABLE, CLAIMS_TEXT, CLAIMS_PAGE = "claims.json", "claims.csv", "claims.md", "report.html"
#: seconds of a command, the model loaded: on a CPU, and on a GPU, which others wait for
BUDGET_S = {"cpu": 900.0, "cuda": 450.0}
#: less than this is not begun with
LEAST_S = 5.0
#: seconds that are kept for a profiled run
PROFILED_S = 12.0
EXPERIMENT = "experiment"


class RunFailedError(Exception):
    """A run ended early, or could not begin; the message is one line."""


class DeviceLostError(Exception):
    """The device failed, and nothing more can be run on it; the message is one line."""


def chosen(names: Sequence[str] | None) -> tuple[list[Claim], list[str]]:
    """The claims of these names, all by default, and the names of the runs that they need.

    ``experiment`` stands for what the claims leave out. Raises :class:`~scheduler.errors.ConfigError`.
    """
    valid = (*CLAIMS, EXPERIMENT)
    for name in names or ():
        if name not in valid:
            raise ConfigError(unknown_name("claim", name, valid))
    wanted = names or valid
    claims = [claim for name, claim in CLAIMS.items() if name in wanted]
    runs = [run for claim in claims for run in runs_of(claim)]
    if EXPERIMENT in wanted:
        runs += [name for cell in CELLS for name in (cell.run, cell.plain)]
    return claims, runs


@dataclass
class Kept:
    """What is known of the runs in a folder, by name and round."""

    folder: Path

    def place(self, name: str, round_: int) -> Path:
        return self.folder / f"{name}-{round_ + 1}"

    def read(self, name: str, round_: int) -> dict[str, Any] | None:
        """The figures of a run; ``None`` if it was not run to its end."""
        path = self.place(name, round_) / FIGURES_FILE
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is damaged: {error}; remove its folder to have it run again") from error
        return found

    def write(self, name: str, round_: int, kept: Mapping[str, Any]) -> None:
        path = self.place(name, round_) / FIGURES_FILE
        beside = path.with_suffix(".part")
        try:
            beside.write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error

    def measured(self) -> dict[str, Measured]:
        """All of it, with what needs no run."""
        found = reckoned()
        for run in needed(chosen(None)[1]):
            rounds = {round_: kept for round_ in range(ROUNDS) if (kept := self.read(run.name, round_)) is not None}
            if rounds:
                absent: dict[str, str] = {}
                for kept in rounds.values():
                    absent |= kept["absent"]
                found[run.name] = Measured(
                    {round_: kept["figures"] for round_, kept in rounds.items()},
                    {round_: kept["samples"] for round_, kept in rounds.items() if kept["samples"]},
                    absent,
                )
        return found


class Experiment:
    """The runs of one command, on one engine."""

    def __init__(self, args: argparse.Namespace, command: str, folder: Path) -> None:
        self.folder, self.kept = folder, Kept(folder)
        self._args, self._command = args, command
        self._engine = Engine()
        self._claims, names = chosen(args.experiments)
        self.runs = needed(names)
        self._scale: Scale | None = None
        self._rehearsed: set[str] = set()
        #: runs that could not be run to their ends, and why
        self.failed: list[str] = []
        self._begun_s = time.monotonic()

    def start(self) -> None:
        """Load the model, and settle how large the runs are; refuse a folder of another model or seed."""
        model = self._session(next(iter(RUNS.values())), 0).model()
        self._begun_s = time.monotonic()
        plan = {
            "scale": (FULL if model.device.type == "cuda" else QUARTER).name, "model": model.name,
            "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."), "seed": self._args.seed,
        }  # fmt: skip
        path = self.folder / PLAN_FILE
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{name} {there.get(name)} (now: {value})" for name, value in plan.items()
                         if there.get(name) != value]  # fmt: skip
            if differing:
                raise UsageError(f"{self.folder} has claims run with {', '.join(differing)}; give another --out")
        else:
            about = {**plan, "hardware": hardware(), "command": self._command, "git_commit": git_commit(),
                     "versions": versions(), "threads": _threads(model.device.type)}  # fmt: skip
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                raise UsageError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        self._scale = SCALES[plan["scale"]]

    @property
    def scale(self) -> Scale:
        if self._scale is None:
            raise RuntimeError("the experiment has not been started")
        return self._scale

    @property
    def budget_s(self) -> float:
        """Seconds of this command."""
        given: float | None = self._args.budget_s
        return BUDGET_S["cuda" if self.scale is FULL else "cpu"] if given is None else given

    def play(self, said: Callable[[str], None]) -> bool:
        """Run what has not been run, round after round; ``False`` if the time did not do for all of it.

        A run that took longer in the round before than there is time left is left out. What is profiled comes after
        all else, since a profiler may leave something behind. A run that fails is among :attr:`failed`, and is tried
        again by the next command. Raises :class:`DeviceLostError`.
        """
        plain = [run for run in self.runs if run.where != "profiled"]
        profiled = [run for run in self.runs if run.where == "profiled"]
        open_ = sum(self.kept.read(run.name, round_) is None for run in profiled for round_ in range(ROUNDS))
        reserve_s = PROFILED_S * min(open_, len(profiled)) if self.scale is FULL else 0.0
        whole = self._play(plain, self.budget_s - reserve_s, said)
        return self._play(profiled, self.budget_s, said) and whole

    def _play(self, runs: Sequence[ClaimRun], budget_s: float, said: Callable[[str], None]) -> bool:
        whole = True
        for round_ in range(ROUNDS):
            for place, run in enumerate(runs, 1):
                if round_ >= run.rounds or self.kept.read(run.name, round_) is not None:
                    continue
                before = self.kept.read(run.name, round_ - 1) if round_ else None
                takes_s = LEAST_S if before is None else float(before["seconds"])
                if budget_s - (time.monotonic() - self._begun_s) < takes_s or (round_ and before is None):
                    whole = False
                    continue
                try:
                    kept = self.run(run, round_)
                except DeviceLostError:
                    raise
                except Exception as error:  # what one run cannot do is no reason to lose the others
                    self.failed.append(f"{run.name}: {str(error) or type(error).__name__}")
                    said(f"round {round_ + 1}, run {place} of {len(runs)}, {self.failed[-1]}")
                    self._engine.started = None
                    continue
                self.kept.write(run.name, round_, kept)
                said(
                    f"round {round_ + 1}, run {place} of {len(runs)}, {run.name}: {kept['seconds']:.1f} s, "
                    f"{kept['figures'].get('output_tokens_per_s', 0):,.1f} tok/s"
                )
        return whole

    def run(self, run: ClaimRun, round_: int) -> dict[str, Any]:
        """One run of one round: its figures, samples, and what could not be measured."""
        rate = self._rate(run)
        session = self._session(run, round_, rate)
        place = self.kept.place(run.name, round_)
        shutil.rmtree(place, ignore_errors=True)
        started_s = time.monotonic()
        case = Case(run.policy, run.layout)
        if run.where == "projected":
            figures, samples, absent = self._projected(session, case, place)
        else:
            figures, samples, absent = self._on_engine(session, case, place, run)
        if rate is not None:
            figures["rate_per_s"] = rate
        return {
            "figures": {name: float(f"{value:.7g}") for name, value in figures.items()},
            "samples": samples if run.load.rate_of is not None else {},
            "absent": absent, "seconds": round(time.monotonic() - started_s, 2),
        }  # fmt: skip

    def _on_engine(self, session: Session, case: Case, place: Path, run: ClaimRun) -> _Figures:
        with_watch = watch_of(session.model().device, run.where == "profiled")
        if run.where == "profiled" and isinstance(with_watch, Blind):
            place.mkdir(parents=True)
            return {}, {}, with_watch.absent
        requests = session.prompts(session.workload)
        config = session.real_config(case)
        session.check(config, requests)
        if self.scale is FULL and case.layout not in self._rehearsed:
            # kernels are compiled, and libraries choose theirs, for the shapes that a load has
            session.measure(case, place, config, requests, report=False)
            shutil.rmtree(place)
            self._rehearsed.add(case.layout)
        measured = session.measure(case, place, config, requests, around=with_watch, report=False)
        if measured.interrupted:
            raise KeyboardInterrupt
        if measured.broken is not None:
            raise DeviceLostError(measured.broken)
        if measured.errors:
            raise RunFailedError(f"{measured.errors} requests ended with an error, the last one: {measured.last_error}")
        (place / JOURNAL_FILE).unlink(missing_ok=True)  # it has been replayed, and is most of the folder
        figures = self._figures(measured.run) | with_watch.figures | {"replayed": float(measured.replay.exact)}
        if run.where == "profiled":  # its times are the profiler's
            figures = dict(with_watch.figures)
        return figures, samples_of(measured.run), with_watch.absent

    def _projected(self, session: Session, case: Case, place: Path) -> _Figures:
        costs = read_costs(A100)
        config = session.config(case, costs.kv_tokens, costs.context_tokens, costs)
        played = session.simulate(case, costs, place, config, session.requests(), report=False)
        return self._figures(played), {}, {}

    def _figures(self, run: Run) -> dict[str, float]:
        figures = figures_of(run)
        if "unserved_s" in figures:
            figures["unserved_thresholds"] = figures["unserved_s"] / self.scale.threshold_s
        return figures

    def _rate(self, run: ClaimRun) -> float | None:
        """Requests per second of the run's load, by the first round of the run that it goes by."""
        if run.load.rate_of is None:
            return None
        by = self.kept.read(run.load.rate_of, 0)
        if by is None:
            raise RunFailedError(f"it goes by the rate of {run.load.rate_of}, which has not been run")
        return float(by["figures"]["requests_per_s"]) * run.load.share

    def _session(self, run: ClaimRun, round_: int, rate: float | None = None) -> Session:
        scale = self._scale or QUARTER
        flags = {"policy": run.policy, "layout": run.layout, **run.settings(scale)}
        args = cell_arguments(self._args, flags)
        args.seed = self._args.seed + round_
        args.quiet = True
        load_scale = FULL if run.where == "projected" else scale
        workload = run.load.workload(load_scale, args.seed, rate)
        return Session(args, self._command, workload, self._engine)


#: figures, samples, and why others are absent
_Figures = tuple[dict[str, float], dict[str, list[float]], dict[str, str]]


def _threads(device: str) -> int | None:
    """Threads that compute on a CPU."""
    if device != "cpu":
        return None
    import torch

    return torch.get_num_threads()


# -- reports


def results_of(folder: Path) -> Results:
    """What is in a folder of claims, or in a ``claims.json``."""
    if folder.is_file():
        try:
            return Results.from_json(folder.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"{folder} cannot be read: {error}") from error
    try:
        plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        scale = SCALES[plan["scale"]]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder / PLAN_FILE} cannot be read: {error}") from error
    measured = Kept(folder).measured()
    about = {
        **plan, "machine": machine(plan), "conditions": scale.text(),
        "runs": {run.name: run.text(scale) for run in needed(measured)},
    }  # fmt: skip
    return Results(about, measured)


def machine(plan: Mapping[str, Any]) -> str:
    """A short name of where and what was run."""
    where = str(plan["hardware"]).split(",")[0].strip()
    return f"{where}, {plan['model']}"


def is_claims(path: Path) -> bool:
    """Whether ``path`` is a folder of claims, or the file that holds them."""
    if path.is_file():
        return path.suffix == ".json" and '"runs"' in path.read_text(encoding="utf-8", errors="replace")[:200_000]
    return (path / PLAN_FILE).is_file()


def answers_of(results: Results) -> list[Answer]:
    """Every claim, judged."""
    return [answer(claim, results.measured) for claim in CLAIMS.values()]


def contrasts_of(results: Results) -> list[Contrast]:
    """The experiment's cells that were run."""
    return [found for cell in CELLS if (found := contrast(cell, results.measured)) is not None]


def write_claims(folder: Path, all_results: Sequence[Results], command: str) -> list[Answer]:
    """The files of a report, into ``folder``: of one machine, or of several beside each other."""
    judged = [(results, answers_of(results), contrasts_of(results)) for results in all_results]
    texts = {CLAIMS_TEXT: claims_markdown(judged, command), CLAIMS_PAGE: claims_html(judged, command)}
    if len(all_results) == 1:
        texts[CLAIMS_FILE] = all_results[0].as_json()
        texts[CLAIMS_TABLE] = as_csv(all_results[0], judged[0][1])
    write_texts(folder, texts)
    return judged[0][1]


def write_claims_text(path: Path, all_results: Iterable[Results], command: str) -> None:
    """The Markdown alone, into a file: what ``docs/claims.md`` is."""
    judged = [(results, answers_of(results), contrasts_of(results)) for results in all_results]
    write_texts(path.parent, {path.name: claims_markdown(judged, command)})
