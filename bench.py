"""Benchmark LLM inference scheduling: in a simulator, on a real engine, and one against the other.

``python bench.py`` is a tour of a few minutes; ``python bench.py --help`` lists the modes and flags.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from core.arguments import DEFAULT_BUDGET_S, UsageError, given_flags, parse_arguments
from core.claims import experiment as claims
from core.claims.runs import ROUNDS
from core.cluster import ClusterSetup, cluster_setup
from core.costs import check_cost_flags, read_costs, settle_block_tokens
from core.folders import experiment_folders, open_folder, replay_folder, write_experiment
from core.gate import OWN_BASELINE, own_cases
from core.matrix import MATRIX_FILE, MATRIX_REPORT, CellRun, keep_matrix, kept_cells, read_matrix, write_matrix
from core.reproduce.experiment import Experiment, Options
from core.reproduce.registry import chosen, run_experiments, write_findings
from core.runs import Case, Engine, Measured, Session, calibration_workload, recording_session, twin_requests
from reports import gate, gate_cases, terminal
from reports.agreement import Agreement, agree
from reports.claims import Results
from reports.comparison import compare
from reports.export import export
from reports.html import write_report as write_html
from reports.rows import RunFolderError
from reports.run import Run
from reports.run_folder import REPORT_FILE, load_run
from reports.salvage import salvage_run
from reports.slo import SloError
from reports.tables import has_parquet
from reports.validation import verdict_lines
from scheduler.buckets import BUCKETS
from scheduler.errors import ConfigError, PolicyError
from scheduler.journal import JournalError
from scheduler.model_shapes import MODEL_SHAPES, UnknownShapeError
from scheduler.oracle import ORACLES
from scheduler.parts import PARTS
from scheduler.plan import Layout
from scheduler.policies import ALIASES, POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.user_policies.named_orders import ORDERS, URGENCIES
from simulator import profiles
from simulator.cluster import ClusterError
from simulator.cluster.routers import ROUTERS
from simulator.costs import CostError, CostModel
from simulator.gpus import GPUS
from simulator.optimum import MissingSolverError
from simulator.recorded import recorded_costs
from tuning.errors import TuningError
from tuning.run import run as tune_run
from workloads.errors import WorkloadError
from workloads.presets import PRESETS

#: a mistake of the user's, in one line; all else is ours and shows a traceback
USER_ERRORS: tuple[type[Exception], ...] = (
    UsageError, ConfigError, PolicyError, WorkloadError, CostError, RunFolderError, SloError, JournalError,
    UnknownShapeError, ClusterError, gate.GateError, MissingSolverError, TuningError,
)  # fmt: skip

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

#: what the tour shows: the plain batch, the seed's two policies on it, and continuous batching over paged memory
TOUR = (Case("fcfs", "padded"), Case("sjf", "padded"), Case("sjf-bucket", "padded"), Case("fcfs", "paged"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, 1 if a check failed, 2 if the input or the command is wrong, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = parse_arguments(argv)
        if args.list:
            return show_list(args.list)
        return MODES[args.mode](args, shlex.join(["python", "bench.py", *argv]))
    except KeyboardInterrupt:
        print("bench.py: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        engine_errors = _engine_errors()
        if not isinstance(error, (*USER_ERRORS, *engine_errors)):
            raise
        print(f"bench.py: error: {error}", file=sys.stderr)
        return FAILED if isinstance(error, engine_errors[:1]) else USAGE


def _engine_errors() -> tuple[type[Exception], ...]:
    """The engine's own errors; none where nothing of it was loaded, as without torch nothing can be."""
    errors = sys.modules.get("engine.errors")
    return () if errors is None else (errors.DeviceError, errors.EngineError, errors.MissingExtraError)


def show_list(what: str) -> int:
    """Print what there is, a line each."""
    lists = {
        "policies": policy_lines(),
        "parts": [(f"{part} {name}", text) for part, names in PARTS.items() for name, text in names.items()],
        "orders": order_lines(),
        "oracles": list(ORACLES.items()),
        "buckets": list(BUCKETS.items()),
        "routers": [(name, router.summary) for name, router in ROUTERS.items()],
        "workloads": [(name, preset.description) for name, preset in PRESETS.items()]
        + [("FILE", "a trace of your own: arrival_s,input_tokens,output_tokens[,max_tokens][,tenant][,...]")],
        "models": [("(none)", "the embedded SmolLM2-135M-Instruct"), ("FOLDER or NAME", "a Hugging Face model")]
        + [(f"shape:{s.name}", f"random weights, {s.parameters / 1e9:.2f} B") for s in MODEL_SHAPES.values()],
        "costs": [
            ("RUN", "a recorded run folder"),
            ("roofline:GPU:MODEL", "a projection; see --list gpus, models"),
            ("project:PROFILE:GPU", "a projection of a profile or recorded run to another GPU; see --list gpus"),
            ("project:PROFILE:GPU:MODEL", "a projection to another GPU and another model's shape; see --list models"),
        ]
        + [
            (name, profiles.title(profiles.read_profile(profiles.profile_path(name)).about))
            for name in profiles.profile_names()
        ]
        + [("FILE.csv.xz", "a profile of your own; see --profile")],
        "gpus": [(gpu.name, f"{gpu.title}; {gpu.measured}") for gpu in GPUS.values()],
    }
    width = max(len(name) for name, _ in lists[what])
    for name, text in lists[what]:
        print(f"{name:{width}}  {text}")
    return OK


def policy_lines() -> list[tuple[str, str]]:
    """The policies, and what one has to know to choose among them."""
    rows = [("needs", "preempts", "starvation-free", "rule")]
    rows += [(entry.needs, entry.preempts, entry.starvation_free, entry.summary) for entry in POLICIES.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(f"{text:{width}}" for text, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    names = ["policy", *POLICIES]
    return [
        *zip(names, lines, strict=True),
        *((alias, f"the seed's name for {name}") for alias, name in ALIASES.items()),
        ("FILE.yaml", "your own, described in YAML; see --list orders and docs/policies.md"),
        ("FILE.py:NAME", "your own, in Python; see docs/policies.md"),
    ]


def order_lines() -> list[tuple[str, str]]:
    """What a policy described in YAML is made of, besides the parts."""
    lines = []
    for name, order in ORDERS.items():
        options = "".join(f"; {option}: {entry.summary}" for option, entry in order.options.items())
        lines.append((f"order {name}", f"{order.summary}{'' if order.resident else ' (waiting only)'}{options}"))
    return lines + [(f"urgency {name}", entry.summary) for name, entry in URGENCIES.items()]


# -- modes


def simulated(args: argparse.Namespace, command: str) -> int:
    """``--mode sim``: play the workload in the simulator."""
    setup = cluster_setup(args)
    if setup is not None:
        return _simulated_cluster(args, command, setup)
    if not args.costs:
        raise UsageError(
            "--mode sim needs --costs: a recorded run folder, a profile, roofline:GPU:MODEL or project:PROFILE:GPU "
            "(see --list costs, gpus)"
        )
    costs = _costs(args)
    session = Session(_with_workload(args, "seed"), command)
    cases = _cases(args, default_layout="paged")
    configs = [session.config(case, costs.kv_tokens, costs.context_tokens, costs) for case in cases]
    requests = session.requests()
    for config in configs:
        session.fitting(costs, config)
        session.check(config, requests)
    simulations = [
        partial(session.simulate, case, costs, config=config, requests=requests)
        for case, config in zip(cases, configs, strict=True)
    ]
    return _simulate_each(args, command, session, cases, simulations)


def _simulated_cluster(args: argparse.Namespace, command: str, setup: ClusterSetup) -> int:
    """``--mode sim`` on several replicas."""
    settle_block_tokens(args, setup.costs[0])
    session = Session(_with_workload(args, "seed"), command)
    for costs in setup.distinct_costs:
        terminal.print_costs(costs, quiet=args.quiet)
    cases = _cases(args, default_layout="paged")
    requests = session.requests()
    plans = [session.cluster_plan(case, setup, requests) for case in cases]
    simulations = [
        partial(session.simulate_cluster, case, setup, plan=plan, requests=requests)
        for case, plan in zip(cases, plans, strict=True)
    ]
    return _simulate_each(args, command, session, cases, simulations)


def _simulate_each(
    args: argparse.Namespace,
    command: str,
    session: Session,
    cases: list[Case],
    simulations: Sequence[Callable[[Path], Run]],
) -> int:
    """Run the simulation of each case into a folder of its own, or say what would be run."""
    if args.dry_run:
        return _dry_run(session, cases)
    folder = open_folder(args, f"sim-{session.workload.name}")
    runs: list[Run] = []
    for case, simulate in zip(cases, simulations, strict=True):
        place = folder if len(cases) == 1 else folder / f"sim-{case}"
        try:
            runs.append(simulate(place))
        except KeyboardInterrupt:
            return _interrupted(place)
        except PolicyError as error:
            return _broken(args, command, folder, [*runs, load_run(place)], error)
    return _finish(args, command, folder, runs, [])


def real(args: argparse.Namespace, command: str) -> int:
    """``--mode real``: play the workload on the engine, or record what its steps cost."""
    if args.record_costs:
        return _record(args, command)
    session = Session(_with_workload(args, "seed"), command)
    cases = _cases(args, default_layout="paged")
    requests = _ready(session, cases)
    if args.dry_run:
        return _dry_run(session, cases)
    folder = open_folder(args, f"real-{session.workload.name}")
    runs: list[Run] = []
    failed = False
    for case in cases:
        place = folder if len(cases) == 1 else folder / f"real-{case}"
        try:
            measured = session.measure(case, place, session.real_config(case), requests)
        except PolicyError as error:
            return _broken(args, command, folder, [*runs, load_run(place)], error)
        runs.append(measured.run)
        if measured.interrupted or measured.broken:
            _finish(args, command, folder, runs, [])
            return _stopped(measured)
        failed = _with_errors(measured) or failed
    return max(_finish(args, command, folder, runs, []), FAILED if failed else OK)


def _record(args: argparse.Namespace, command: str) -> int:
    """``--record-costs``: what each kind of step costs on the layouts, a run folder each."""
    session = recording_session(args, command)
    cases = _cases(args, default_layout="paged")
    budget_s = (args.budget_s or DEFAULT_BUDGET_S) / len(cases)
    for case in cases:
        Scheduler(session.config(case, None, None))
    if args.dry_run:
        for case in cases:
            print(f"would record {case.layout} steps in {budget_s:g} s, at most {session.max_running} running")
        return OK
    folder = open_folder(args, f"costs-{session.model().name.replace('/', '-').replace(':', '-')}")
    runs: list[Run] = []
    interrupted = False
    for case in cases:
        place = folder if len(cases) == 1 else folder / f"costs-{case.layout}"
        run, notes, interrupted = session.record(case, place, budget_s)
        runs.append(run)
        if not args.quiet:
            print(*(f"{case.layout}: {note}" for note in notes), sep="\n")
        if interrupted:
            break
    _finish(args, command, folder, runs, [])
    return INTERRUPTED if interrupted else OK


def validate(args: argparse.Namespace, command: str) -> int:
    """``--mode validate``: on the engine and in the simulator, and the error between them."""
    if args.claims:
        return _validate_claims(args, command)
    if args.matrix is not None:
        return _validate_matrix(args, command)
    return _validate(_with_workload(args, "seed"), command, _cases(args, default_layout="paged"))


def tour(args: argparse.Namespace, command: str) -> int:
    """No arguments: the embedded model, a small mixed workload, in both worlds."""
    args.policy = [case.policy for case in TOUR]
    return _validate(_with_workload(args, "tour"), command, list(TOUR))


def _validate(args: argparse.Namespace, command: str, cases: list[Case]) -> int:
    given = _costs(args) if args.costs else None
    session = Session(args, command)
    requests = _ready(session, cases)
    if given is not None:
        for case in cases:
            session.fitting(given, session.real_config(case, given))
    if args.dry_run:
        return _dry_run(session, cases)
    name = session.workload.name
    folder = open_folder(args, name if args.mode == name else f"{args.mode}-{name}")
    costs: dict[str, CostModel] = {}
    for layout in dict.fromkeys(case.layout for case in cases):
        costs[layout] = given or _record_costs(session, layout, cases, folder)
    runs: list[Run] = []
    failed = False
    agreements: list[Agreement] = []
    for case in cases:
        config = session.real_config(case, costs[case.layout])
        place = folder / f"real-{case}"
        try:
            measured = session.measure(case, place, config, requests)
            runs.append(measured.run)
            if measured.interrupted or measured.broken:
                _finish(args, command, folder, runs, agreements)
                return _stopped(measured)
            failed = _with_errors(measured) or failed
            twin = twin_requests(measured.run, requests)
            place = folder / f"sim-{case}"
            runs.append(session.simulate(case, costs[case.layout], place, measured.config, twin))
        except PolicyError as error:
            return _broken(args, command, folder, [*runs, load_run(place)], error)
        agreements.append(agree(measured.run, runs[-1], measured.replay.exact))
    return max(_finish(args, command, folder, runs, agreements), FAILED if failed else OK)


def _validate_claims(args: argparse.Namespace, command: str) -> int:
    """``--claims``: every claim as runs before and after; goes on where it was stopped."""
    folder: Path = args.out or open_folder(args, "claims")
    experiment = claims.Experiment(args, command, folder)
    if args.dry_run:
        names = ", ".join(run.name for run in experiment.runs)
        print(f"would run {len(experiment.runs)} runs up to {ROUNDS} times: {names}")
        return OK

    def say(line: str) -> None:
        if not args.quiet:
            print(line, flush=True)

    experiment.start()
    try:
        if not experiment.play(say):
            print("bench.py: the time did not do for every round of every run; the same command goes on from here",
                  file=sys.stderr)  # fmt: skip
        for line in experiment.failed:
            print(f"bench.py: error: {line}", file=sys.stderr)
    except claims.DeviceLostError as error:
        raise _engine_errors()[0](str(error)) from error
    finally:
        _finish_claims(args, folder, [claims.results_of(folder)], command)
    return FAILED if experiment.failed else OK


def _finish_claims(args: argparse.Namespace, folder: Path, results: Sequence[Results], command: str) -> None:
    """Judge what has been measured, and write it all down."""
    answers = claims.write_claims(folder, results, command)
    names = args.experiments or [found.claim.name for found in answers]
    terminal.print_claims([found for found in answers if found.claim.name in names], quiet=args.quiet)
    print(f"claims: {folder / claims.CLAIMS_TEXT}, {folder / claims.CLAIMS_PAGE}")


def _report_claims(args: argparse.Namespace, command: str) -> int:
    """The claims of one folder or ``claims.json`` again, or of several beside each other; ``--out FILE.md`` is the
    Markdown alone."""
    for name in ("costs", "profile"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} has no effect on a report of claims; leave it out")
    results = [claims.results_of(given) for given in args.runs]
    if args.out is not None and args.out.suffix == ".md":
        claims.write_claims_text(args.out, results, command)
        print(f"claims: {args.out}")
        return OK
    first = args.runs[0]
    _finish_claims(args, args.out or (first if first.is_dir() else first.parent), results, command)
    return OK


def _validate_matrix(args: argparse.Namespace, command: str) -> int:
    """``--matrix``: many cells, each of them run several times and simulated; goes on where it was stopped."""
    given = [name for name in ("workload", "policy", "layout", "rate") if getattr(args, name) not in (None, [])]
    if given:
        raise UsageError(f"--{given[0]} has no effect with --matrix, whose cells say it; leave it out")
    if not args.costs:
        raise UsageError("--matrix needs --costs, recorded on this machine (--mode real --record-costs)")
    matrix = read_matrix(args.matrix)
    costs = _costs(args)
    folder: Path = args.out or open_folder(args, f"validation-{args.matrix.stem}")
    engine = Engine()
    cells = [CellRun(cell, folder / cell.name, args, command, engine) for cell in matrix.cells]
    if args.dry_run:
        print(f"would run {len(cells)} cells {matrix.rounds} times: {', '.join(cell.cell.name for cell in cells)}")
        return OK
    failed = False
    keep_matrix(folder, args, shlex.split(command)[2:])
    for cell in cells:
        cell.prepare(costs)
    try:
        for round_ in range(matrix.rounds):
            for place, cell in enumerate(cells, 1):
                if cell.is_measured(round_):
                    continue
                measured = cell.measure(round_, costs)
                failed = _with_errors(measured) or failed
                if measured.broken:
                    raise _engine_errors()[0](measured.broken)
                if measured.interrupted:
                    raise KeyboardInterrupt
                if not args.quiet:
                    tokens = measured.run.summary["output_tokens_per_s"]
                    print(f"round {round_ + 1}, cell {place} of {len(cells)}, {cell.cell.name}: {tokens:,.0f} tok/s",
                          flush=True)  # fmt: skip
    finally:
        _finish_matrix(folder, cells, matrix.rounds, costs)
    return FAILED if failed else OK


def _finish_matrix(folder: Path, cells: list[CellRun], rounds: int, costs: CostModel) -> None:
    """Simulate what has been measured, and write it all down."""
    results = [result for cell in cells if (result := cell.result(costs, rounds)) is not None]
    if results:
        write_matrix(folder, results)
        print(*verdict_lines(results), sep="\n")
        print(f"matrix: {folder / MATRIX_REPORT}")


def _report_matrix(args: argparse.Namespace) -> int:
    """The matrix in a folder again, from its real runs: on the costs that it was made with, or on others."""
    for name in ("out", "profile"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} has no effect on the report of a matrix, which is kept in it; leave it out")
    for folder in args.runs:
        cells, rounds, named = kept_cells(folder)
        costs = read_costs(args.costs or named)
        terminal.print_costs(costs, quiet=args.quiet)
        _finish_matrix(folder, [cell for cell in cells if cell.resume()], rounds, costs)
    return OK


def _record_costs(session: Session, layout: Layout, cases: list[Case], folder: Path) -> CostModel:
    """Record what the steps of ``cases`` cost, on requests of the same kind, but not the same ones."""
    requests = session.prompts(calibration_workload(session.args, session.workload))
    places = []
    for name, config in session.calibrations(layout, cases, requests).items():
        place = folder / f"costs-{name}-{layout}"
        measured = session.measure(Case(config.policy, layout), place, config, requests)
        if measured.interrupted:
            raise KeyboardInterrupt
        if measured.broken:
            raise _engine_errors()[0](f"{measured.broken}; what there is: {place / REPORT_FILE}")
        places.append(place)
    return recorded_costs(*places)


def tuned(args: argparse.Namespace, command: str) -> int:
    """``--mode tune``: which settings serve a workload best; searched in the simulator, validated on the engine."""
    args = _with_workload(args, "chat")
    given = given_flags(shlex.split(command)[2:])
    return tune_run(args, given, command)


def report(args: argparse.Namespace, command: str) -> int:
    """``--mode report``: make a report again, or compare two runs. ``--out`` is then the HTML file."""
    if not args.runs:
        raise UsageError("--mode report needs a run folder, or two to compare")
    if all(map(claims.is_claims, args.runs)):
        return _report_claims(args, command)
    if all((given / MATRIX_FILE).is_file() for given in args.runs):
        return _report_matrix(args)
    if args.costs:
        raise UsageError("--costs has no effect on a report of runs, only of a validation matrix; leave it out")
    folders = [folder for given in args.runs for folder in experiment_folders(given)]
    if args.profile is not None:
        profiles.write_profile(args.profile, folders)
        terminal.print_costs(profiles.profile_costs(args.profile, str(args.profile)), quiet=args.quiet)
        print(f"profile: {args.profile}, {args.profile.stat().st_size / 1024:.0f} KiB")
    runs = _readable(folders)
    out = args.out or args.runs[0] / REPORT_FILE
    if len(args.runs) == 2 and len(runs) == 2:
        comparison = compare(*runs)
        page = write_report(out, runs, comparison=comparison, title="Two runs compared", command=command)
        terminal.print_comparison(comparison, quiet=args.quiet)
    else:
        agreements = _agreements(runs)
        page = write_report(out, runs, agreements, command=command)
        _show(args, runs, agreements)
    if args.tables is not None:
        _export(args.tables, page, runs, _agreements(runs), command)
    print(f"report: {out}")
    return OK


def _readable(folders: Sequence[Path]) -> list[Run]:
    """What can be read of the folders, and a line on each of which nothing can, or not all."""
    runs: list[Run] = []
    lost: list[str] = []
    for folder in folders:
        try:
            runs.append(salvage_run(folder))
        except RunFolderError as error:
            lost.append(str(error))
            continue
        for problem in runs[-1].problems:
            print(f"bench.py: {folder}: {problem}", file=sys.stderr)
    if not runs:
        raise RunFolderError(lost[0])
    for why in lost:
        print(f"bench.py: left out: {why}", file=sys.stderr)
    return runs


def _export(folder: Path, page: str, runs: list[Run], agreements: list[Agreement], command: str) -> None:
    try:
        paths = export(folder, page, runs, agreements, command)
    except OSError as error:
        raise RunFolderError(f"cannot write {folder}: {error.strerror or error}") from error
    without = "" if has_parquet() else "; for Parquet beside CSV: pip install 'lockstep[parquet]'"
    print(f"tables: {folder}, {len(paths)} files{without}")


def gated(args: argparse.Namespace, command: str) -> int:
    """``--mode gate``: the padding-waste regression check, on committed cases or on a workload of the user's.

    Returns 0 if all is as recorded, 1 if something is not or a ceiling is broken, 2 if that cannot be said.
    """
    started_s = time.monotonic()
    if args.workload is None:
        baseline, ceilings = args.baseline or gate_cases.BASELINE, gate_cases.ceilings()
        cases = gate_cases.run_cases()
    else:
        baseline, ceilings = args.baseline or OWN_BASELINE, args.ceiling or []
        cases = own_cases(args, command, _cases(args, default_layout="padded"))
    result = gate.compare(cases, ceilings, baseline)
    update = args.update_baseline
    if update and not result.broken:
        gate.write_baseline(cases, baseline)
    took_s = time.monotonic() - started_s
    terminal.print_gate(result, baseline, took_s=took_s, update=update, quiet=args.quiet)
    if result.failed:
        return FAILED if result.broken or not update else OK
    return OK if result.passed or update else USAGE


def reproduce(args: argparse.Namespace, command: str) -> int:
    """``--mode reproduce``: published results beside the simulator's; fails where a difference is not explained."""
    experiments = chosen(args.experiments)
    folder = open_folder(args, "reproduce")

    def say(experiment: Experiment) -> None:
        if not args.quiet:
            print(f"running {experiment.name}", file=sys.stderr, flush=True)

    findings = run_experiments(
        experiments, Options(args.jobs, args.seed), optional=args.experiments is None, started=say
    )
    write_findings(folder, findings, command)
    terminal.print_reproduction(findings, quiet=args.quiet)
    print(f"report: {folder / REPORT_FILE}")
    return FAILED if any(found.unexplained for found in findings) else OK


# -- parts of the modes


def _with_workload(args: argparse.Namespace, default: str) -> argparse.Namespace:
    args.workload = args.workload or default
    return args


def _costs(args: argparse.Namespace) -> CostModel:
    """The costs that ``--costs`` names, and what is to be said of them."""
    costs = read_costs(args.costs)
    check_cost_flags(args, costs)
    settle_block_tokens(args, costs)
    terminal.print_costs(costs, quiet=args.quiet)
    return costs


def _cases(args: argparse.Namespace, default_layout: Layout) -> list[Case]:
    cases = [Case(policy, layout) for layout in args.layout or [default_layout] for policy in args.policy or ["fcfs"]]
    for number, case in enumerate(cases):
        if str(case) in map(str, cases[:number]):
            raise UsageError(f"--policy {case.policy} would have the name of another run, {case}; rename one")
    return cases


def _ready(session: Session, cases: list[Case]) -> list[Request]:
    """The requests for the engine, after every setting has been checked, the cheap ones before a model is loaded."""
    for case in cases:
        Scheduler(session.config(case, None, None))
    requests = session.prompts(session.workload)
    for case in cases:
        session.check(session.real_config(case), requests)
    return requests


def _dry_run(session: Session, cases: list[Case]) -> int:
    summary = session.workload.summary()
    print(f"workload {session.workload.name}: {session.workload.source}")
    print(f"  {summary.requests} requests, median {summary.prompt.median} tokens in, {summary.output.median} out")
    for case in cases:
        print(f"would run {case.policy} on {case.layout}, at most {session.max_running} running")
    return OK


def _finish(args: argparse.Namespace, command: str, folder: Path, runs: list[Run], agreements: list[Agreement]) -> int:
    """The report of several runs together, and the table at the end."""
    path = folder / REPORT_FILE
    if agreements or len(runs) > 1:
        write_experiment(folder, command, runs)
        write_report(path, runs, agreements, command=command)
    _show(args, runs, agreements)
    print(f"report: {path}")
    return OK


def _show(args: argparse.Namespace, runs: list[Run], agreements: list[Agreement]) -> None:
    if len(runs) == 1:
        terminal.print_run(runs[0], quiet=args.quiet)
    else:
        terminal.print_runs(runs, quiet=args.quiet)
        terminal.print_agreements(agreements, quiet=args.quiet)
    terminal.print_beyond(runs, quiet=args.quiet)


def write_report(path: Path, runs: list[Run], agreements: Sequence[Agreement] = (), **options: Any) -> str:
    """Write the HTML and return it; a disk that does not take it is the user's to know, in a line."""
    try:
        return write_html(path, runs, agreements, **options)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _stopped(measured: Measured) -> int:
    """A run of the engine has ended early, and what there is of it is written."""
    if measured.broken is None:
        return INTERRUPTED
    print(f"bench.py: error: {measured.broken}; the run ended early, with what there was", file=sys.stderr)
    return FAILED


def _with_errors(measured: Measured) -> bool:
    """Whether requests ended with an error, and a line that says so."""
    if measured.errors:
        print(
            f"bench.py: {measured.errors} requests ended with an error, the last one: {measured.last_error}",
            file=sys.stderr,
        )
    return measured.errors > 0


def _interrupted(folder: Path) -> int:
    """A simulation was stopped: what it had written is a partial run, and gets its report."""
    write_report(folder / REPORT_FILE, [load_run(folder)])
    print(f"bench.py: interrupted; what there is: {folder / REPORT_FILE}", file=sys.stderr)
    return INTERRUPTED


def _broken(args: argparse.Namespace, command: str, folder: Path, runs: list[Run], error: PolicyError) -> int:
    """A policy of the user's failed in the last of ``runs``: what was written is a partial run, and gets its report."""
    place = runs[-1].folder or folder
    write_report(place / REPORT_FILE, runs[-1:])
    if place != folder:
        _finish(args, command, folder, runs, [])
    print(f"bench.py: error: {error}; what there is: {place / REPORT_FILE}", file=sys.stderr)
    return USAGE


def _agreements(runs: list[Run]) -> list[Agreement]:
    """Real runs beside the simulated ones of the same policy and layout, each real one's journal replayed."""
    twins = {_case_of(run): run for run in runs if run.simulated}
    return [
        agree(run, twins[_case_of(run)], _replayed(run.folder))
        for run in runs
        if not run.simulated and _case_of(run) in twins and run.folder is not None
    ]


def _replayed(folder: Path) -> bool | None:
    """Whether a run's journal replays; ``None``, and a line that says why, if it or the policy's file is spoilt."""
    try:
        return replay_folder(folder)
    except (ConfigError, PolicyError, JournalError) as error:
        print(f"bench.py: {folder} is not replayed: {error}", file=sys.stderr)
        return None


def _case_of(run: Run) -> tuple[str, str]:
    return run.setting("policy"), run.setting("layout")


MODES: dict[str, Callable[[argparse.Namespace, str], int]] = {
    "tour": tour, "real": real, "sim": simulated, "validate": validate, "tune": tuned, "report": report, "gate": gated,
    "reproduce": reproduce,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
