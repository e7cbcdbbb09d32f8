"""What ``--mode tune`` does, from its flags to its exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.arguments import UsageError, flag_of
from core.folders import open_folder
from reports.terminal import print_costs
from tuning.terminal import print_tuning
from tuning.tune import Tuning, search

OK, FAILED = 0, 1
#: flags that only one kind of tuning takes
_ONLY_SETTINGS = ("budget", "space", "validate_top", "validate_requests", "ray")


def run(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """Tune. Returns 0, or 1 where a recommendation did not stand on the engine."""
    if args.tune != "settings":
        for name in _ONLY_SETTINGS:
            if name in given:
                raise UsageError(f"{flag_of(name)} has no effect with --tune {args.tune}; leave it out")
    return settings(args, given, command)


def settings(args: argparse.Namespace, given: frozenset[str], command: str) -> int:
    """The best settings for a workload."""
    tuning = Tuning(args, given, command)
    for costs in tuning.costs.values():
        print_costs(costs, quiet=args.quiet)
    tuning.check()
    if args.dry_run:
        _say_what_would_be(tuning)
        return OK
    folder = _folder(args, f"tune-{tuning.workload.name}")
    args.out = folder
    result = search(tuning, folder, lambda text: print(text, flush=True))
    print_tuning(result, quiet=args.quiet)
    _say(args, f"report: {folder / 'report.html'}")
    return OK


def _folder(args: argparse.Namespace, name: str) -> Path:
    """Where it goes; a folder that is given is gone on with."""
    if args.out is not None:
        folder: Path = args.out
        return folder
    return open_folder(args, name)


def _say_what_would_be(tuning: Tuning) -> None:
    parts = tuning.parts
    lengths = ", ".join(f"{part.stop - part.start:,}" for part in parts.rungs)
    print(f"workload {tuning.workload.name}: {tuning.workload.source}")
    print(
        f"  searched: {parts.searched.stop:,} requests, at lengths of {lengths}; held out: {len(parts.held_out)} parts"
    )
    for knob in tuning.space.knobs:
        print(f"  {knob.name.replace('_', '-')}: {knob}")
    for title, setting in tuning.baselines().items():
        print(f"baseline {title}: {setting}")
    print(f"would search for {', '.join(o.title for o in tuning.objectives)}, {tuning.budget}")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.quiet:
        print(text)
