"""What ``--mode tune`` does, from its flags to its exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from core.arguments import UsageError, flag_of
from core.folders import open_folder
from core.runs import Engine
from reports.run_folder import REPORT_FILE
from reports.terminal import print_costs
from tuning import bucket, capacity
from tuning.terminal import print_table, print_tuning, print_validation
from tuning.tune import Tuning, is_of, load, search, write_reports
from tuning.validation import Validation

OK, FAILED = 0, 1
#: flags that mean nothing to a kind of tuning
_WITHOUT_EFFECT = {
    "settings": (),
    "bucket": (
        "budget", "space", "objective", "confidence", "attainment", "gpu_hour_price", "slo", "ray", "replicas",
        "router", "replica_costs", "autoscale", "faults", "disaggregate", "validate_top", "validate_s",
        "validate_requests", "validate_rounds", "rounds", "model", "device", "dtype", "temperature",
        "gpu_memory_utilization", "tp",
    ),
    "capacity": (
        "budget", "space", "objective", "ray", "workers", "validate_top", "validate_s", "validate_requests",
        "validate_rounds", "rounds", "model", "device", "dtype", "temperature", "gpu_memory_utilization", "tp",
    ),
}  # fmt: skip


def run(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """Tune. Returns 0, or 1 where a recommendation did not stand on the engine."""
    for name in _WITHOUT_EFFECT[args.tune]:
        if name in given:
            raise UsageError(f"{flag_of(name)} has no effect with --tune {args.tune}; leave it out")
    return {"settings": settings, "bucket": buckets, "capacity": plan}[args.tune](args, given, command)


def buckets(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """The width of length buckets."""
    if args.dry_run:
        print(f"would simulate {len(bucket.WIDTHS)} widths and {len(bucket.SCHEMES)} other schemes of {bucket.POLICY}")
        return OK
    widths, about = bucket.widths_of(args)
    result = bucket.result_of(widths, about)
    folder = open_folder(args, f"buckets-{about['workload']}")
    bucket.write(folder, command, result)
    print_table(bucket.sentence(result), bucket.COLUMNS, bucket.table_of(result), quiet=args.quiet)
    _say(args, f"report: {folder / REPORT_FILE}")
    return OK


def plan(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """What can be carried, and by what hardware."""
    planner = capacity.Planner(args)
    if args.dry_run:
        print(f"would plan for {planner.setting()} on {len(planner.workload)} requests of {planner.workload.name}")
        return OK
    result = planner.plan(_printer(args))
    folder = open_folder(args, f"capacity-{planner.workload.name}")
    capacity.write(folder, command, result)
    text = "\n".join(capacity.lines_of(result))
    print_table(text, capacity.PRICE_COLUMNS, capacity.price_rows(result), quiet=args.quiet)
    _say(args, f"report: {folder / capacity.MARKDOWN_FILE}")
    return OK


def settings(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """The best settings for a workload."""
    for name in ("validate_s", "validate_requests", "validate_rounds", "rounds", "temperature"):
        if name in given and args.validate_top is None:
            raise UsageError(f"{flag_of(name)} has no effect without --validate-top; leave it out")
    if {"validate_s", "validate_requests"} <= given:
        raise UsageError("--validate-s and --validate-requests both say what is run on the engine; leave one out")
    tuning = Tuning(args, given, command)
    for costs in tuning.costs.values():
        print_costs(costs, quiet=args.quiet)
    tuning.check()
    if args.dry_run:
        _say_what_would_be(tuning)
        return OK
    folder = _folder(args, f"tune-{tuning.workload.name}")
    args.out = folder
    if args.validate_top is None:
        _searched(tuning, folder)
        return OK
    return _validated(tuning, folder, given, command)


def _searched(tuning: Tuning, folder: Path) -> dict[str, Any]:
    """The search of ``folder``, from where it was; one that has ended is taken as it is."""
    args = tuning.args
    result = load(folder)
    if result is None or not is_of(result, tuning):
        result = search(tuning, folder, _printer(args))
    print_tuning(result, quiet=args.quiet)
    _say(args, f"report: {folder / REPORT_FILE}")
    return result


def _validated(tuning: Tuning, folder: Path, given: frozenset[str], command: str) -> int:
    """Search and validate; where the recommendation does not stand, again with the costs that the runs tell."""
    args, engine = tuning.args, Engine()
    for round_ in range(1, args.rounds + 1):
        result = _searched(tuning, folder)
        validation = Validation(tuning, result, folder / "validation", engine)
        told = validation.run(_printer(args))
        write_reports(folder, result, told)
        print_validation(told, quiet=args.quiet)
        _say(args, f"report: {folder / REPORT_FILE}")
        if told["stands"]:
            return OK
        if round_ < args.rounds:
            costs = validation.as_costs()
            folder = folder / f"round-{round_ + 1}"
            _say(args, f"the costs are fitted again, to {costs}, and the search begins anew in {folder}")
            again = argparse.Namespace(**{**vars(args), "costs": str(costs), "out": folder, "force": True})
            tuning = Tuning(again, given, command)
    return FAILED


def _printer(args: argparse.Namespace) -> Callable[[str], None]:
    return (lambda text: None) if args.quiet else partial(print, flush=True)


def _folder(args: argparse.Namespace, name: str) -> Path:
    """Where it goes; a folder that is given is gone on with."""
    if args.out is not None:
        folder: Path = args.out
        return folder
    return open_folder(args, name)


def _say_what_would_be(tuning: Tuning) -> None:
    parts = tuning.parts
    lengths = ", ".join(f"{part.requests:,}" for part in parts.rungs)
    print(f"workload {tuning.workload.name}: {tuning.workload.source}")
    print(f"  searched: {parts.searched.stop:,} requests, lengths {lengths}; held out in {parts.held_out.pieces} parts")
    for knob in tuning.space.knobs:
        print(f"  {knob.name.replace('_', '-')}: {knob}")
    for title, setting in tuning.baselines().items():
        print(f"baseline {title}: {setting}")
    print(f"would search for {', '.join(o.title for o in tuning.objectives)}, {tuning.budget}")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(text)
