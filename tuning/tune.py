"""``--mode tune``: search, confirm, write down. What is found is data (``tuning.json``): reports are made of that."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from core.arguments import DEFAULT_MAX_RUNNING, DEFAULT_TUNING_BUDGET, Budget, UsageError, parse_budget
from core.cluster import cluster_setup
from core.costs import check_cost_flags, cost_notes, read_costs, settle_block_tokens
from core.folders import write_texts
from core.provenance import git_commit, hardware, versions
from core.runs import Case, Session
from reports.run_folder import MANIFEST_FILE, REPORT_FILE
from reports.slo import Slo
from scheduler.config import SchedulerConfig
from simulator.costs import CostModel
from simulator.recorded import RecordedCosts
from tuning.attainable import check_attainable
from tuning.commands import AUTOSCALE_FILE, BENCH_FILE, SERVE_FILE, Commands, as_yaml, commands_for
from tuning.confirm import SEEDS, Gain, compared, gain_over, held_out_jobs, sensitivity
from tuning.errors import TuningError
from tuning.objectives import Objective, parse_objectives
from tuning.page import render_markdown, render_page
from tuning.parts import parts_of
from tuning.progress import Progress
from tuning.ranking import best_first, fronts, upwards
from tuning.search import Candidate, Found, Search
from tuning.setting import Setting
from tuning.space import build_space
from tuning.store import Store
from tuning.workers import workers_for
from tuning.world import Evaluation, Job, World, check_costs, load_workloads, varies

RESULT_FILE = "tuning.json"
MARKDOWN_FILE = "report.md"
#: the recommended setting on the whole workload
RUN_FOLDER = "recommended"
TRIALS_FILE = "trials.csv"
#: settings that are run on what is held out
FINALISTS = 3
#: the share of a time budget that the search has; the rest is for what makes its answer sure
SEARCHING = 0.75
#: settings this near to the best are as good, and the simplest of them is taken
AS_GOOD = 0.002


class Tuning:
    """What one ``--mode tune`` works on: read and checked, nothing simulated yet.

    Raises the errors of what it reads, and :class:`TuningError`.
    """

    def __init__(self, args: argparse.Namespace, given: frozenset[str], command: str) -> None:
        check_costs(args)
        self.args, self.command = args, command
        names = [args.costs] if args.costs else list(dict.fromkeys(args.replica_costs))
        self.costs: dict[str, CostModel] = {name: read_costs(name) for name in names}
        if args.costs:
            check_cost_flags(args, self.first_costs)
        if args.layout is not None and len(args.layout) > 1:
            raise UsageError(f"--layout {','.join(args.layout)}: a tuning is for one layout; name one")
        settle_block_tokens(args, self.first_costs)
        seeds = [args.seed + 1 + n for n in range(SEEDS)]
        workloads = load_workloads(args, seeds)
        self.workload = workloads[args.seed]
        self.slo = Slo.parse(args.slo) if args.slo else None
        ranged = isinstance(args.replicas, tuple)
        self.objectives = parse_objectives(args.objective, self.slo, args.attainment, args.gpu_hour_price, ranged)
        rows = self.workload.rows
        kv_tokens = None if isinstance(self.first_costs, RecordedCosts) else self.first_costs.kv_tokens
        self.space = build_space(
            args, given, tenants=any(row.tenant for row in rows),
            deadlines=any(row.ttft_slo_ns is not None for row in rows), kv_tokens=kv_tokens,
            prompt_tokens=_recorded_prompt_tokens(self.costs.values(), (args.layout or ["paged"])[0]),
        )  # fmt: skip
        self.world = World(self.space, args, workloads, self.costs, self.objectives)
        self.parts = parts_of(self.workload, args.confidence, self.objectives)
        #: of runs that differ in nothing but chance; the first is the search's own
        self.seeds = [(args.seed, bool(args.jitter))]
        if varies(self.world):
            self.seeds += [(seed, seed not in workloads) for seed in seeds]

    @property
    def first_costs(self) -> CostModel:
        return next(iter(self.costs.values()))

    @property
    def budget(self) -> Budget:
        budget: Budget = self.args.budget or parse_budget(DEFAULT_TUNING_BUDGET)
        return budget

    def check(self) -> None:
        """Refuse objectives that nobody can meet."""
        if self.slo is not None:
            check_attainable(self.world, self.slo, self.args.attainment)

    def baselines(self) -> dict[str, Setting]:
        """What a setting is held against, by title: ``fcfs`` as vLLM runs it, by the rules of its first engine and of
        its second, which puts chunks of prompts beside decode steps."""
        common: dict[str, Any] = {}
        if self.args.max_running is None and self.workload.max_running is None:
            common["max_running"] = DEFAULT_MAX_RUNNING
        knob = self.space.knob("replicas")
        cluster: dict[str, Any] = {} if knob is None else {"replicas": max(int(v or 1) for v in knob.levels(1000))}
        limit = self.args.max_prefill_tokens
        plain = {"policy": "fcfs", "max_prefill_tokens": limit, **common, **cluster}
        chunked = {"policy": "fcfs", "phase": "mixed", "chunk_tokens": limit, **common, **cluster}
        settings = {"fcfs": Setting.of(plain)}
        if (self.args.layout or ["paged"])[0] == "paged":
            settings["fcfs, chunked prefill"] = Setting.of(chunked)
        return {title: self.space.completed(setting) for title, setting in settings.items()}

    def problem(self) -> dict[str, Any]:
        """What decides how an evaluation comes out."""
        recorded = {name: getattr(costs, "sha256", None) for name, costs in self.costs.items()}
        return {
            "workload": self.workload.sha256(),
            "costs": recorded,
            "objectives": [asdict(objective) | {"slo": self.args.slo} for objective in self.objectives],
            "confidence": self.args.confidence,
            "seed": self.args.seed,
            "jitter": self.args.jitter,
            "space": {knob.name: str(knob) for knob in self.space.knobs},
            "settings": self.start_config().as_dict(),
        }

    def start_config(self) -> SchedulerConfig:
        """The scheduler's settings of the baseline: what all candidates have in common is in them."""
        setting = next(iter(self.baselines().values()))
        session = Session(self.space.arguments(setting), self.command, self.workload)
        costs = self.first_costs
        case = Case(setting.policy, (self.args.layout or ["paged"])[0])
        return session.config(case, costs.kv_tokens, costs.context_tokens, costs)


def _recorded_prompt_tokens(costs: Iterable[CostModel], layout: str) -> int | None:
    """The most prompt tokens of a step that all of ``costs`` were recorded with; ``None`` if none was recorded."""
    recorded = [one.most.get((layout, "prefill"), {}) for one in costs if isinstance(one, RecordedCosts)]
    return min((most["new_tokens_computed"] for most in recorded if most), default=None)


def search(tuning: Tuning, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Search, confirm and write it all to ``folder``. Returns what ``tuning.json`` has."""
    args, objectives, parts = tuning.args, tuning.objectives, tuning.parts
    store = Store(folder, tuning.problem())
    titles, baselines = list(tuning.baselines()), list(tuning.baselines().values())
    budget = tuning.budget
    limit = Budget(None if budget.seconds is None else budget.seconds * SEARCHING, budget.settings)
    with (
        workers_for(tuning.world, args.workers, args.ray) as workers,
        Progress(objectives, args.quiet, say) as progress,
    ):
        one = Search(tuning.space, objectives, parts, baselines, args.seed, workers, store, limit, progress.show)
        found = one.run()
        progress.phase("confirming on what was held out")
        result = _confirmed(tuning, one, found, titles)
        progress.phase("moving each knob alone")
        chosen = _candidate(found, Setting.of(result["recommended"]["setting"]))
        result["sensitivity"] = [
            {"knob": s.knob, "value": s.value, "matters": s.matters, "changes": [list(c) for c in s.changes]}
            for s in sensitivity(
                tuning.space,
                chosen.setting,
                chosen.values or dict(chosen.setting.values),
                objectives[0],
                parts,
                args.seed,
                one.simulate,
            )
        ]
        result["seconds"] = {"wall": one.used_s, "simulating": store.seconds, "workers": workers.count}
    store.close()
    result["beyond_recorded"] = _played_whole(tuning, folder, chosen.setting)
    result = dict(_finite(result))
    write(folder, tuning, found, result)
    return result


def _played_whole(tuning: Tuning, folder: Path, setting: Setting) -> list[str]:
    """The recommended setting on the whole workload, as a run folder of its own. Returns where costs were guessed."""
    place = folder / RUN_FOLDER
    shutil.rmtree(place, ignore_errors=True)
    args = tuning.space.arguments(setting)
    setup = cluster_setup(args, tuning.space.scaling(setting), tuning.costs.__getitem__)
    session = Session(args, tuning.command, tuning.workload)
    case, requests = Case(setting.policy, (args.layout or ["paged"])[0]), session.requests()
    if setup is not None:
        plan = session.cluster_plan(case, setup, requests)
        run = session.simulate_cluster(case, setup, place, plan, requests)
    else:
        costs = tuning.first_costs
        config = session.config(case, costs.kv_tokens, costs.context_tokens, costs)
        run = session.simulate(case, costs, place, config, requests)
    return list(run.summary.get("beyond_recorded") or ())


def _finite(value: Any) -> Any:
    """Without what JSON cannot say: an infinite number is nothing."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _candidate(found: Found, setting: Setting) -> Candidate:
    return next(one for one in found.candidates if one.setting.key == setting.key)


def _confirmed(tuning: Tuning, one: Search, found: Found, titles: list[str]) -> dict[str, Any]:
    """The finalists on what was held out, who is recommended, and how sure that is."""
    objectives, parts, seeds = tuning.objectives, tuning.parts, tuning.seeds
    whole = found.whole(len(parts.rungs))
    base = found.candidates[0]
    if len(base.results) < len(parts.rungs) or base.failed:
        raise TuningError(f"the baseline {base.setting} cannot be simulated: {base.failed}")
    finalists = _finalists(whole, base, objectives, max(FINALISTS, tuning.args.validate_top or 0))
    baselines = found.candidates[: found.baselines]
    entrants = list(dict.fromkeys([candidate.number for candidate in [*finalists, *baselines]]))
    held: dict[int, list[Evaluation]] = {}
    jobs = {number: held_out_jobs(found.candidates[number].setting, parts, seeds) for number in entrants}
    results = one.simulate([job for number in entrants for job in jobs[number]])
    for number in entrants:
        held[number], results = results[: len(jobs[number])], results[len(jobs[number]) :]
    confidence = tuning.args.confidence
    entries = [_entry(candidate, base, held, tuning) for candidate in finalists]
    gains = [gain_over(compared(held[c.number], held[0], objectives[0], 0), confidence) for c in finalists]
    best = _recommended(finalists, gains, base)
    chosen = base if best is None else finalists[best]
    gain = gain_over([0.0] * parts.held_out.pieces, confidence) if best is None else gains[best]
    spread = _over_seeds(tuning, one, chosen.setting, base.setting)
    commands = commands_for(
        chosen.setting, tuning.space, tuning.args, tuning.workload, tuning.first_costs, str(tuning.args.out)
    )
    against = {}
    for title, baseline in zip(titles[1:], baselines[1:], strict=True):
        if not baseline.failed and len(baseline.results) == len(parts.rungs):
            against[title] = {
                "searched": objectives[0].gain(chosen.results[-1].values[0], baseline.results[-1].values[0]),
                "held_out": _gain_dict(gain_over(
                    compared(held[chosen.number], held[baseline.number], objectives[0], 0), confidence
                )),
            }  # fmt: skip
    return {
        "schema_version": 1,
        "problem": tuning.problem(),
        "command": tuning.command,
        "workload": {
            "name": tuning.workload.name, "source": tuning.workload.source, "requests": len(tuning.workload),
            "searched": parts.searched.stop, "held_out": [list(piece) for piece in pairwise(parts.held_out.edges())],
            "sha256": tuning.workload.sha256(),
        },
        "costs": list(tuning.costs),
        "slo": tuning.args.slo,
        "objectives": [
            {"name": o.name, "title": o.title, "unit": o.unit, "maximise": o.maximise} for o in objectives
        ],
        "confidence": confidence,
        "seed": tuning.args.seed,
        "seeds": len(seeds),
        "space": {knob.name: str(knob) for knob in tuning.space.knobs},
        "search": {
            "settings": found.settings, "batches": found.batches, "requests": found.requests, "full_runs": found.full,
            "in_full": len(whole), "budget": str(tuning.budget),
        },
        "baselines": [
            {"title": title, "setting": c.setting.values, **_figures(c)}
            for title, c in zip(titles, baselines, strict=True)
        ],
        "finalists": entries,
        "recommended": {
            "setting": chosen.setting.values, "is_baseline": best is None, **_figures(chosen),
            "searched_gain": objectives[0].gain(chosen.results[-1].values[0], base.results[-1].values[0]),
            "held_out_gain": _gain_dict(gain),
            "over_seeds": spread,
            "against": against,
        },
        "front": _front(whole, objectives),
        "saturation": _saturation(whole, base, objectives[0]),
        "commands": commands.as_dict(),
    }  # fmt: skip


def _finalists(
    whole: list[Candidate], base: Candidate, objectives: Sequence[Objective], count: int
) -> list[Candidate]:  # fmt: skip
    """The best that differ in their plans, from the baseline's too; of those as good as the best the simplest comes
    first."""
    order = [whole[i] for i in best_first([upwards(one.results[-1], objectives) for one in whole])]
    distinct: list[Candidate] = []
    plans: set[Any] = {_plan(base)}
    for one in order:
        plan = _plan(one)
        if plan in plans:
            continue
        plans.add(plan)
        distinct.append(one)
    if len(objectives) == 1 and distinct:
        top, objective = distinct[0].results[-1].values[0], objectives[0]
        as_good = [one for one in distinct if abs(objective.gain(one.results[-1].values[0], top)) <= AS_GOOD]
        as_good.sort(key=lambda one: (_differences(one.setting, base.setting), order.index(one)))
        distinct = [*as_good, *(one for one in distinct if one not in as_good)]
    return distinct[:count]


def _plan(one: Candidate) -> tuple[Any, ...]:
    """What is the same of settings that make the same plans."""
    return one.results[-1].values, one.results[-1].figures.get("digest")


def _differences(one: Setting, other: Setting) -> int:
    """In how many flags two settings differ."""
    a, b = one.values, other.values
    return sum(a.get(name) != b.get(name) for name in {*a, *b})


def _recommended(finalists: list[Candidate], gains: list[Gain], base: Candidate) -> int | None:
    """The first finalist, unless it is no better than the baseline on what was held out; then the one that is best
    there. ``None``: none is any better."""
    if not finalists:
        return None
    if gains[0].mean > AS_GOOD or math.isinf(gains[0].mean):
        return 0
    best = max(range(len(finalists)), key=lambda i: gains[i].mean if not math.isnan(gains[i].mean) else -math.inf)
    return best if gains[best].mean > AS_GOOD else None


def _over_seeds(tuning: Tuning, one: Search, setting: Setting, base: Setting) -> dict[str, Any] | None:
    """The gain on all that was searched, with each seed."""
    if len(tuning.seeds) < 2:
        return None
    jobs = [Job(s, tuning.parts.searched, seed, varied) for s in (setting, base) for seed, varied in tuning.seeds]
    results = one.simulate(jobs)
    ours, theirs = results[: len(tuning.seeds)], results[len(tuning.seeds) :]
    objective = tuning.objectives[0]
    gains = [
        -math.inf if a.failed or b.failed else objective.gain(a.values[0], b.values[0])
        for a, b in zip(ours, theirs, strict=True)
    ]
    return {"lowest": min(gains), "highest": max(gains), "gains": gains}


def _figures(one: Candidate) -> dict[str, Any]:
    return {"values": list(one.results[-1].values), "figures": one.results[-1].figures, "failed": one.failed}


def _entry(one: Candidate, base: Candidate, held: dict[int, list[Evaluation]], tuning: Tuning) -> dict[str, Any]:
    gains = []
    for axis, objective in enumerate(tuning.objectives):
        found = gain_over(compared(held[one.number], held[0], objective, axis), tuning.args.confidence)
        searched = objective.gain(one.results[-1].values[axis], base.results[-1].values[axis])
        gains.append({"searched": searched, "held_out": _gain_dict(found)})
    return {"setting": one.setting.values, **_figures(one), "gains": gains}


def _gain_dict(gain: Gain) -> dict[str, Any]:
    return {"mean": gain.mean, "low": gain.low, "high": gain.high, "parts": list(gain.parts), "verdict": gain.verdict}


def _front(whole: list[Candidate], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """What no other setting beats in every objective; empty with one objective."""
    if len(objectives) < 2:
        return []
    points = [upwards(one.results[-1], objectives) for one in whole]
    front = sorted(fronts(points)[0], key=lambda i: points[i])
    alike: dict[tuple[float, ...], int] = {}
    for i in front:
        alike.setdefault(points[i], i)
    return [{"setting": whole[i].setting.values, "values": list(whole[i].results[-1].values)} for i in alike.values()]


def _saturation(whole: list[Candidate], base: Candidate, objective: Objective) -> str:
    """Why there may be little to gain, or little that counts."""
    share = base.results[-1].figures.get("attainment")
    if objective.kind == "goodput" and share is not None and share > 0.99:
        return (
            f"the baseline meets the SLO in {100 * share:.1f} % of the requests: at this load there is nothing to win. "
            f"Play the trace faster (--time-scale 0.5) to see which setting carries more"
        )
    best = max((one.results[-1].figures.get("attainment") or 0.0 for one in whole), default=0.0)
    if objective.kind == "goodput" and best < 0.5:
        return (
            f"at this load no setting meets the SLO in more than {100 * best:.0f} % of the requests: the hardware is "
            f"too small for it, and what is best here is best at choosing whom to fail; use more replicas, or a lower "
            f"load"
        )
    return ""


def write(folder: Path, tuning: Tuning, found: Found, result: dict[str, Any]) -> None:
    """Write what was found: data, trials, the files that commands name, and the reports."""
    manifest = {
        "command": tuning.command, "mode": "tune", "name": tuning.args.name or f"tune-{tuning.workload.name}",
        "versions": versions(), "hardware": hardware(), "git_commit": git_commit(), "seed": tuning.args.seed,
        "costs": {name: cost_notes(costs, tuning.start_config()) for name, costs in tuning.costs.items()},
    }  # fmt: skip
    commands = Commands(**result["commands"])
    trials = _trials(tuning, found)
    texts = {
        MANIFEST_FILE: json.dumps(manifest, indent=2, default=str) + "\n",
        RESULT_FILE: json.dumps(result, indent=2) + "\n",
        TRIALS_FILE: trials,
        BENCH_FILE: as_yaml(commands.bench_yaml),
        SERVE_FILE: as_yaml(commands.serve_yaml),
    }
    if commands.autoscale_yaml is not None:
        texts[AUTOSCALE_FILE] = as_yaml(commands.autoscale_yaml)
    write_texts(folder, texts)
    write_reports(folder, result)


def write_reports(folder: Path, result: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> None:
    """The reports of a tuning, with what the engine said of it if it was asked."""
    try:
        trials = (folder / TRIALS_FILE).read_text(encoding="utf-8")
        (folder / MARKDOWN_FILE).write_text(render_markdown(result, validation), encoding="utf-8")
        (folder / REPORT_FILE).write_text(render_page(result, validation, trials), encoding="utf-8")
        if validation is not None:
            text = json.dumps({**result, "validation": _finite(dict(validation))}, indent=2)
            (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TuningError(f"cannot write to {folder}: {error.strerror or error}") from error


def is_of(result: Mapping[str, Any], tuning: Tuning) -> bool:
    """Whether a finished search is what ``tuning`` asks for; one with another problem is refused when it is opened."""
    return bool(result.get("problem") == _finite(tuning.problem()) and result["search"]["budget"] == str(tuning.budget))


def _trials(tuning: Tuning, found: Found) -> str:
    """Every candidate: its setting, how far it got, and what it came to there."""
    knobs = [knob.name for knob in tuning.space.knobs]
    rows = []
    for one in found.candidates:
        last = one.results[-1] if one.results else None
        values = dict(zip((o.name for o in tuning.objectives), last.values if last else (), strict=False))
        part = tuning.parts.rungs[len(one.results) - 1] if one.results else None
        rows.append(
            {
                "candidate": one.number,
                **{name: one.setting.values.get(name) for name in knobs},
                "lengths": len(one.results),
                "requests": part.requests if part else 0,
                **values,
                "overdue": last.overdue if last else 0,
                "failed": one.failed,
            }
        )
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def load(folder: Path) -> dict[str, Any] | None:
    """The finished tuning in a folder; ``None`` where there is none."""
    path = folder / RESULT_FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TuningError(f"{path} cannot be read: {error}") from error
    return found
