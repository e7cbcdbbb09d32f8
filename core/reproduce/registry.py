"""The experiments by name, and running them into a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.folders import write_texts
from core.reproduce import alignment, hindsight, kv_sharing, ltr_example, mm1, multi_bin, projection, queues
from core.reproduce.experiment import Experiment, Options
from reports.reproduction import Findings, as_csv, as_json
from reports.reproduction_page import render_reproduction
from scheduler.config import ConfigError, unknown_name
from simulator.optimum import MissingSolverError

#: in the order in which they are run and shown: exact ones first
EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (alignment, ltr_example, multi_bin, projection, kv_sharing, hindsight, queues, mm1)
}


def chosen(names: Sequence[str] | None) -> list[Experiment]:
    """The experiments of these names, all by default; :class:`~scheduler.config.ConfigError` for an unknown one."""
    for name in names or ():
        if name not in EXPERIMENTS:
            raise ConfigError(unknown_name("experiment", name, EXPERIMENTS))
    return [experiment for name, experiment in EXPERIMENTS.items() if not names or name in names]


def run_experiments(
    experiments: Sequence[Experiment],
    options: Options,
    *,
    optional: bool,
    started: Callable[[Experiment], None] = lambda experiment: None,
) -> list[Findings]:
    """Run each. With ``optional``, one whose solver is not installed says so; without, that is the caller's error."""
    findings = []
    for experiment in experiments:
        started(experiment)
        start_s = time.monotonic()
        try:
            found = experiment.run(options)
        except MissingSolverError as error:
            if not optional:
                raise
            found = Findings(experiment.name, experiment.title, experiment.source, "", not_run=str(error))
        findings.append(replace(found, seconds=time.monotonic() - start_s))
    return findings


def write_findings(folder: Path, findings: Sequence[Findings], command: str) -> None:
    """``reproduce.csv``, ``reproduce.json``, ``report.html`` and a manifest.

    Raises :class:`~reports.rows.RunFolderError` if they cannot be written.
    """
    manifest = {"command": command, "mode": "reproduce", "experiments": [found.name for found in findings]}
    write_texts(folder, {
        "manifest.json": json.dumps(manifest, indent=2) + "\n",
        "reproduce.csv": as_csv(findings),
        "reproduce.json": as_json(findings, command),
        "report.html": render_reproduction(findings, command),
    })  # fmt: skip
