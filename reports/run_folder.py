"""The run folder: written row by row while a run goes, and read back, whole or cut short by a kill.

Another writer may open files of its own in the folder (``replay.jsonl`` is the journal's).
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.columns import Cell, Columns
from reports.histogram import Histogram
from reports.rows import (
    REQUEST_COLUMNS,
    REQUEST_TEXT,
    REQUEST_TIMES,
    REQUESTS_FILE,
    STEP_COLUMNS,
    STEP_TEXT,
    STEPS_FILE,
    RunFolderError,
    digest_text,
    read_requests,
    read_steps,
)
from reports.run import Run
from reports.slo import Slo, SloError
from reports.summary import SCHEMA_VERSION, WallClock, summarise
from reports.waste import counters_from_rows, digest_from_rows
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.plan import StepOutcome, StepPlan
from scheduler.sequence import UNSET, Sequence
from simulator.costs import CostModel

if TYPE_CHECKING:
    from simulator.cluster import Journey

MANIFEST_FILE = "manifest.json"
SUMMARY_FILE = "summary.json"
GAPS_FILE = "gaps.json"
REPORT_FILE = "report.html"

#: rows wait in memory for at most this long while others follow; most of a real run's steps take longer
FLUSH_S = 0.02
#: the histogram of gaps, a file of its own, is written again this often
GAPS_S = 1.0
_BUFFER_BYTES = 1 << 20


class FolderWriter:
    """The files of a run folder: how rows get to the disk, and how it ends.

    ``manifest`` is written first. ``clock`` gives seconds that never go back; it decides only when rows are flushed.
    End with :meth:`close`, or with :meth:`abandon` to leave what is there for :func:`load_run`; as a context manager it
    abandons what was not closed. Raises :class:`RunFolderError` if the folder exists and is not empty, or cannot be
    written, now or later; what was written before stays readable.
    """

    request_columns: tuple[str, ...] = REQUEST_COLUMNS
    step_columns: tuple[str, ...] = STEP_COLUMNS

    def __init__(
        self, folder: str | Path, manifest: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = Path(folder)
        self.manifest = dict(manifest)
        self._clock = clock
        self._flushed_s = self._gaps_written_s = clock()
        self._gaps = Histogram()
        self._gaps_changed = self._closed = False
        with _writing(self.folder), ExitStack() as files:
            _make_empty(self.folder)
            _write_atomically(self.folder / MANIFEST_FILE, _json(self.manifest))
            requests, steps = self.request_columns, self.step_columns
            self._requests = _Table(files, self.folder / REQUESTS_FILE, requests, REQUEST_TEXT, REQUEST_TIMES)
            self._steps = _Table(files, self.folder / STEPS_FILE, steps, STEP_TEXT)
            self.flush()
            self._files = files.pop_all()

    # -- rows

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """Count gaps between output tokens."""
        self._gaps.add(gap_ns, weight)
        self._gaps_changed = True

    def write_step(self, row: tuple[Any, ...]) -> None:
        """Write a row of ``steps.csv``."""
        self._steps.rows.append(row)
        self._flush_if_due()

    def write_request(self, row: tuple[Any, ...]) -> None:
        """Write a row of ``requests.csv``."""
        self._requests.rows.append(row)
        self._flush_if_due()

    # -- how rows get to the disk

    def _flush_if_due(self) -> None:
        now = self._clock()
        if now - self._flushed_s >= FLUSH_S:
            self.flush()
            self._flushed_s = now
        if self._gaps_changed and now - self._gaps_written_s >= GAPS_S:
            self._save_gaps()
            self._gaps_written_s = now

    def flush(self) -> None:
        """Hand all rows to the operating system."""
        with _writing(self.folder):
            self._requests.flush()
            self._steps.flush()

    def _save_gaps(self) -> None:
        _write_atomically(self.folder / GAPS_FILE, _json(self._gaps.as_dict(), indent=None))
        self._gaps_changed = False

    # -- how it ends

    def close(
        self,
        counters: RunCounters,
        plan_digest: str,
        *,
        slo: Slo | None = None,
        costs: CostModel | None = None,
        wall: WallClock | None = None,
        cluster: Mapping[str, Any] | None = None,
        report: bool = True,
    ) -> Run:
        """Write ``summary.json`` and, if ``report``, ``report.html``; return the run as :func:`load_run` would.

        ``costs`` gives padding waste in time, ``slo`` goodput, ``cluster`` what only a cluster has; see
        :func:`~reports.summary.summarise`.
        """
        with _writing(self.folder):
            self._save_gaps()
            self.flush()
            self._files.close()
            self._closed = True
            requests, steps = self._requests.columns.frame(), self._steps.columns.frame()
            summary = summarise(
                requests, steps, self._gaps, counters, plan_digest, slo=slo, costs=costs, wall=wall,
                config=_config(self.manifest), simulated=self.manifest.get("world") == "sim",
                projection=self.manifest.get("projection"), cluster=cluster, varied="jitter" in self.manifest,
            )  # fmt: skip
            _write_atomically(self.folder / SUMMARY_FILE, _json(summary))
            run = Run(self.folder, self.manifest, summary, requests, steps, self._gaps, partial=False)
            if report:
                from reports.html import write_report  # matplotlib takes a second to load

                write_report(self.folder / REPORT_FILE, [run])
        return run

    def abandon(self) -> None:
        """Flush what there is and close the files, without a summary. Does nothing after :meth:`close`."""
        with suppress(OSError):
            if self._gaps_changed:
                self._save_gaps()
        if not self._closed:
            with suppress(RunFolderError):
                self.flush()
        with suppress(OSError):
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


class _Table:
    """A table that is written as it grows and kept as columns: its rows wait in :attr:`rows` for the next flush."""

    def __init__(
        self,
        files: ExitStack,
        path: Path,
        names: tuple[str, ...],
        text: tuple[str, ...],
        optional: tuple[str, ...] = (),
    ) -> None:
        self.rows: list[tuple[Cell, ...]] = []
        self.columns = Columns(names, text, optional)
        self._file = files.enter_context(_open_table(path))
        self._write = csv.writer(self._file, lineterminator="\n").writerows
        self._write([names])

    def flush(self) -> None:
        """Hand all rows to the operating system."""
        rows, self.rows = self.rows, []
        self._write(rows)
        self._file.flush()
        self.columns.extend(rows)


class RunWriter(FolderWriter):
    """Writes the run folder of one scheduler as things happen; a :class:`~scheduler.observer.Observer`."""

    def __init__(
        self, folder: str | Path, manifest: Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(folder, manifest, clock)
        self._last_end_ns = 0

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        """Write the row of a plan of which ``steps`` steps were run."""
        before_ns, self._last_end_ns = self._last_end_ns, int(outcome.ends_ns[-1])
        self.write_step(step_row(plan, steps, outcome, before_ns))

    def ended(self, sequence: Sequence) -> None:
        """Write the row of a request that finished, was rejected or was aborted."""
        self.write_request(request_row(sequence))


def step_row(plan: StepPlan, steps: int, outcome: StepOutcome, before_ns: int) -> tuple[Any, ...]:
    """A row of ``steps.csv``; ``before_ns`` is when the step before ended."""
    overlap = plan.now_ns < before_ns
    return (
        plan.index, before_ns if overlap else plan.now_ns, int(outcome.ends_ns[-1]), steps, *plan.features,
        outcome.device_ns, outcome.host_ns, outcome.launch_ns, outcome.work_ns, int(overlap),
        digest_text(plan.digest_entry, steps),
    )  # fmt: skip


def request_row(ended: Sequence | Journey) -> tuple[Any, ...]:
    """A row of ``requests.csv``."""
    return (
        ended.id,
        ended.number,
        ended.request.tenant,
        ended.request.priority,
        ended.arrival_ns,
        _if_set(ended.first_scheduled_ns),
        _if_set(ended.first_token_ns),
        _if_set(ended.finish_ns),
        ended.prompt_tokens,
        ended.request.max_tokens,
        ended.output_tokens,
        ended.preemptions,
        ended.recomputed_tokens,
        ended.swapped_out,
        ended.swapped_in,
        ended.prefix_hit_tokens,
        ended.state,
        ended.reason,
    )


def load_run(folder: str | Path, costs: CostModel | None = None) -> Run:
    """Read a run folder. One that was never closed gives a ``partial`` run, with the figures that its rows allow.

    ``costs`` is for the padding waste in time of a partial run. Raises :class:`RunFolderError` for what is no run
    folder, or of another version.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no {MANIFEST_FILE}")
    manifest = read_json(folder / MANIFEST_FILE)
    requests, steps = read_requests(folder), read_steps(folder)
    gaps = read_gaps(folder / GAPS_FILE)
    if (folder / SUMMARY_FILE).is_file():
        summary = read_json(folder / SUMMARY_FILE)
        if summary.get("schema_version") != SCHEMA_VERSION:
            raise RunFolderError(
                f"{folder / SUMMARY_FILE} has schema version {summary.get('schema_version')!r}; "
                f"this program reads {SCHEMA_VERSION}"
            )
        return Run(folder, manifest, summary, requests, steps, gaps, partial=False)
    summary, problems = summary_of_rows(manifest, requests, steps, gaps, costs)
    if problems:
        raise RunFolderError(f"{folder}: {'; '.join(problems)}")
    return Run(folder, manifest, summary, requests, steps, gaps, partial=True)


def summary_of_rows(
    manifest: Mapping[str, Any],
    requests: pd.DataFrame,
    steps: pd.DataFrame,
    gaps: Histogram | None,
    costs: CostModel | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The figures that the rows of a partial run allow, and what of them cannot be read."""
    problems = []
    slo = None
    try:
        slo = Slo(manifest["slo"]) if manifest.get("slo") else None
    except (TypeError, AttributeError, SloError) as error:
        problems.append(f"{MANIFEST_FILE}, slo: {error}")
    digest = ""
    try:
        digest = digest_from_rows(steps)
    except ValueError as error:
        problems.append(f"{STEPS_FILE}, column digest: {error}")
    summary = summarise(
        requests,
        steps,
        gaps,
        counters_from_rows(requests, steps),
        digest,
        slo=slo,
        costs=costs,
        wall=WallClock(started_at=manifest.get("started_at")),
        partial=True,
        config=_config(manifest),
        projection=manifest.get("projection"),
    )
    return summary, problems


def _config(manifest: Mapping[str, Any]) -> SchedulerConfig | None:
    """The scheduler's settings, where the manifest has them all."""
    try:
        return SchedulerConfig.from_dict(manifest["config"])
    except (KeyError, TypeError, ConfigError):
        return None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An ``OSError`` inside becomes a :class:`RunFolderError` that names the path."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot write {error.filename or folder}: {error.strerror or error}")


def _if_set(time_ns: int) -> int | None:
    return None if time_ns == UNSET else time_ns


def _make_empty(folder: Path) -> None:
    """Make the folder; an empty one that exists is as good."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; name a new or an empty folder for the run")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty; name a new or an empty folder for the run")


def _open_table(path: Path) -> TextIO:
    return path.open("w", _BUFFER_BYTES, encoding="utf-8", newline="")


def _json(data: Mapping[str, Any], indent: int | None = 2) -> str:
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def _write_atomically(path: Path, text: str) -> None:
    """Whoever reads ``path`` sees either all of ``text`` or what was there before."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; :class:`RunFolderError` for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RunFolderError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def read_gaps(path: Path) -> Histogram | None:
    """The gaps between tokens; ``None`` where there is no such file."""
    if not path.is_file():
        return None
    try:
        return Histogram.from_dict(read_json(path))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RunFolderError(f"{path} is not a histogram of this version: {error}") from error
