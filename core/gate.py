"""The padding-waste gate on a workload and on policies of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import runs
from core.arguments import PLAIN
from reports.gate import Case, run_case
from scheduler.config import SchedulerConfig
from scheduler.user_policies import is_policy_file

#: where the baseline is kept unless the command says
OWN_BASELINE = Path("padding_baseline.json")

#: settings that a command cannot ask for as they are
_MADE = ("policy", "policy_sha256", "length_quantiles")


def own_cases(args: argparse.Namespace, command: str, cases: Sequence[runs.Case]) -> list[Case]:
    """Simulate the workload that ``args`` ask for under each of ``cases``; all settings are checked first."""
    session = runs.Session(args, command)
    configs = [session.config(case, None, None) for case in cases]
    requests = session.requests()
    for config in configs:
        session.check(config, requests)
    return [
        run_case(_name(case), session.workload, config, _asked(args, config))
        for case, config in zip(cases, configs, strict=True)
    ]


def _name(case: runs.Case) -> str:
    """As ``--ceiling`` names it: without the folders above a policy's file."""
    return f"{_called(case.policy)}/{case.layout}"


def _called(policy: str) -> str:
    return Path(policy).name if is_policy_file(policy) else policy


def _asked(args: argparse.Namespace, config: SchedulerConfig) -> dict[str, Any]:
    """The settings of ``config`` as the command has them, those that are not the default.

    What a policy's own file says, and what the program makes of the workload (edges of equal mass, quantiles of
    lengths), is no part of what was asked for: a change of that is a difference.
    """
    usual = SchedulerConfig().as_dict()
    asked = {"policy": _called(config.policy)}
    for name, value in config.as_dict().items():
        given = getattr(args, name) if name in PLAIN else value
        if name not in _MADE and value != usual[name] and given != usual[name]:
            asked[name] = given
    return asked
