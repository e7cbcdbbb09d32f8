"""Reads what there is of a run folder: whole, killed, with files missing, cut short, or not of this program.

:func:`~reports.run_folder.load_run` is strict, for whoever computes with a run. A report is to show what there is and
say what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from reports.histogram import Histogram
from reports.rows import (
    REQUEST_COLUMNS,
    REQUEST_TEXT,
    REQUESTS_FILE,
    STEP_COLUMNS,
    STEP_TEXT,
    STEPS_FILE,
    RunFolderError,
    empty_table,
    read_requests,
    read_steps,
)
from reports.run import Run
from reports.run_folder import GAPS_FILE, MANIFEST_FILE, SUMMARY_FILE, read_gaps, read_json, summary_of_rows
from reports.summary import SCHEMA_VERSION

Found = TypeVar("Found")

#: what a page cannot do without, and the type of each
_NEEDED = {"requests": dict, "load": dict, "partial": bool, "not_available": dict, "steps": dict}


def salvage_run(folder: str | Path) -> Run:
    """The run in a folder, with what is wrong with it in :attr:`~reports.run.Run.problems`.

    A folder without a manifest, or with one that cannot be read, is named by its path. Without a summary, or with one
    of another version, the figures are those that the rows allow. Raises :class:`~reports.rows.RunFolderError` where
    nothing of a run can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(f"{folder} is not a run folder: it {what}")
    problems: list[str] = []

    def attempt(name: str, read: Callable[[], Found], otherwise: Found) -> Found:
        """``read``, or ``otherwise`` and a problem."""
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
            return otherwise
        try:
            return read()
        except RunFolderError as error:
            problems.append(_without_path(str(error), folder))
            return otherwise

    nothing: dict[str, Any] = {}
    manifest = attempt(MANIFEST_FILE, lambda: read_json(folder / MANIFEST_FILE), nothing)
    requests = attempt(REQUESTS_FILE, lambda: read_requests(folder), empty_table(REQUEST_COLUMNS, REQUEST_TEXT))
    steps = attempt(STEPS_FILE, lambda: read_steps(folder), empty_table(STEP_COLUMNS, STEP_TEXT))
    killed = not (folder / SUMMARY_FILE).exists()
    summary = None if killed else attempt(SUMMARY_FILE, lambda: _summary(folder), None)
    gaps: Histogram | None = None
    if (folder / GAPS_FILE).is_file() or not killed:
        gaps = attempt(GAPS_FILE, lambda: read_gaps(folder / GAPS_FILE), None)
    if summary is None and not len(requests) and not len(steps) and problems:
        raise RunFolderError(f"{folder} is not a run folder: {'; '.join(problems)}")
    if summary is None:
        summary, problem = summary_of_rows(manifest, requests, steps, gaps)
        problems += problem
    else:
        problems += _shortfalls(summary, requests, steps)
    return Run(
        folder, manifest, summary, requests, steps, gaps, partial=bool(summary["partial"]), problems=tuple(problems)
    )


def _summary(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / SUMMARY_FILE)
    version = summary.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunFolderError(f"{SUMMARY_FILE} has schema version {version!r}, this program reads {SCHEMA_VERSION}")
    for key, kind in _NEEDED.items():
        if not isinstance(summary.get(key), kind):
            raise RunFolderError(f"{SUMMARY_FILE} has no {key!r}, as every summary of this program does")
    return summary


def _shortfalls(summary: dict[str, Any], requests: pd.DataFrame, steps: pd.DataFrame) -> list[str]:
    """Tables that hold fewer rows than the summary counted."""
    counted = summary["requests"]
    ended = sum(int(counted.get(outcome) or 0) for outcome in ("finished", "rejected", "aborted"))
    written = summary["steps"].get("rows_written")
    found = []
    for name, table, rows in ((REQUESTS_FILE, requests, ended), (STEPS_FILE, steps, written)):
        if rows is not None and len(table) != rows:
            found.append(f"{name} has {len(table):,} rows where the summary counted {rows:,}")
    return found


def _without_path(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "")
