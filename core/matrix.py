"""A validation matrix: cells of policy, layout, workload and load, each run on the engine and simulated.

The load of a cell is a share of what its policy can carry, which a simulation of all its requests at once tells. Each
cell is run several times, the rounds one after the other, so that what a machine does over minutes shows in the
spread. A cell's requests and rate are written down before it is run, so that a matrix that was stopped goes on, and its
simulations can be made again without the engine.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from core.arguments import UsageError, cell_arguments, parse_arguments
from core.costs import differences, refuse
from core.runs import Case, Engine, Measured, Session, twin_requests
from reports.run import Run
from reports.salvage import salvage_run
from reports.validation import CellResult, compared, markdown, table
from scheduler.config import SchedulerConfig
from scheduler.errors import unknown_name
from scheduler.plan import Layout, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence as SchedulerSequence
from simulator.costs import CostModel
from simulator.profiles import without_flags
from simulator.replica import simulate

CELL_FILE = "cell.json"
MATRIX_FILE = "matrix.json"
MATRIX_REPORT = "matrix.md"
MATRIX_TABLE = "matrix.csv"
#: times that a cell is run where the matrix does not say
ROUNDS = 3
#: flags that tell cells apart, in the order of their names
_AXES = ("workload", "policy", "layout", "load")
_LABEL = re.compile(r"[A-Za-z0-9._-]*")
_OF_A_MATRIX = ("cells", "rounds")


@dataclass(frozen=True)
class Cell:
    """One cell: its flags beside those of the command, and its load as a share of the capacity.

    ``label`` tells it from cells of the same policy, layout, workload and load.
    """

    flags: Mapping[str, Any]
    load: float
    label: str = ""

    @property
    def case(self) -> Case:
        layout: Layout = self.flags["layout"]
        return Case(self.flags["policy"], layout)

    @property
    def name(self) -> str:
        """For its folder."""
        name = f"{Path(self.flags['workload']).stem}-{self.case}-{round(100 * self.load)}"
        return f"{name}-{self.label}" if self.label else name


@dataclass(frozen=True)
class Matrix:
    """Cells, and how many times each is run."""

    cells: tuple[Cell, ...]
    rounds: int


def read_matrix(path: Path) -> Matrix:
    """Read a matrix from a file, see :func:`parse_matrix`."""
    try:
        return parse_matrix(path.read_text(encoding="utf-8"), f"--matrix {path}")
    except OSError as error:
        raise UsageError(f"--matrix {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--matrix {path} is not YAML: {error}") from error


def parse_matrix(text: str, what: str) -> Matrix:
    """Read a matrix: YAML with ``cells``, a list of mappings, and ``rounds``.

    Of a mapping's values those of ``workload``, ``policy``, ``layout`` and ``load`` may be lists: each combination is a
    cell. ``label`` tells cells apart that differ in nothing else but flags; other keys are flags of ``--mode
    validate``. Raises :class:`UsageError` for whatever is wrong, with ``what`` as the matrix's name.
    """
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict) or not isinstance(given.get("cells"), list):
        raise UsageError(f"{what} must have 'cells', a list of mappings of flags to values")
    for key in given:
        if key not in _OF_A_MATRIX:
            raise UsageError(f"{what}: {unknown_name('key', str(key), _OF_A_MATRIX)}")
    rounds = given.get("rounds", ROUNDS)
    if not isinstance(rounds, int) or rounds < 1:
        raise UsageError(f"{what}: rounds is {rounds!r}; must be a whole number >= 1")
    cells = tuple(cell for entry in given["cells"] for cell in _cells_of(what, entry))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{what} has the cell {twice} twice")
    if not cells:
        raise UsageError(f"{what} has no cells")
    return Matrix(cells, rounds)


def _cells_of(what: str, entry: Any) -> Iterator[Cell]:
    if not isinstance(entry, dict):
        raise UsageError(f"{what}: a cell must be a mapping of flags to values, not {entry!r}")
    missing = [axis for axis in _AXES if axis not in entry and axis != "layout"]
    if missing:
        raise UsageError(f"{what}: a cell lacks {missing[0]}")
    entry = {"layout": "paged", **entry}
    axes = [entry[axis] if isinstance(entry[axis], list) else [entry[axis]] for axis in _AXES]
    rest = {name: value for name, value in entry.items() if name not in (*_AXES, "label")}
    label = entry.get("label", "")
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise UsageError(f"{what}: label {label!r} must be letters, digits, '.', '_' and '-'")
    for workload, policy, layout, load in product(*axes):
        if isinstance(load, bool) or not isinstance(load, int | float) or not 0 < load <= 10:
            raise UsageError(
                f"{what}: load is {load!r}; must be a share of the capacity such as 0.7, more than 0, at most 10"
            )
        yield Cell(
            {**rest, "workload": str(workload), "policy": str(policy), "layout": str(layout)}, float(load), label
        )


class CellRun:
    """A cell with its folder: what is played there, on the engine and simulated."""

    def __init__(self, cell: Cell, folder: Path, args: argparse.Namespace, command: str, engine: Engine) -> None:
        self.cell, self.folder = cell, folder
        self._args = cell_arguments(args, cell.flags)
        self._command, self._engine = command, engine
        self._about: dict[str, Any] = {}
        self._session: Session | None = None

    def prepare(self, costs: CostModel) -> None:
        """Find the cell's rate unless its folder has it, and write it there."""
        self._about = self._read() or self._found(costs)
        if self._about["flags"] != dict(self.cell.flags) or self._about["load"] != self.cell.load:
            raise UsageError(f"{self.folder} is of a cell with other flags; give another --out, or the same matrix")
        self._write()
        self._session = self._playing(None, self._about["rate_per_s"])

    def resume(self) -> bool:
        """Take up what the folder has, to simulate it again; ``False`` where there is nothing."""
        about = self._read()
        if about is None:
            return False
        self._about = about
        self._session = self._playing(None, about["rate_per_s"])
        return True

    def _found(self, costs: CostModel) -> dict[str, Any]:
        session = self._playing("all-at-once", None)
        capacity = capacity_per_s(session.real_config(self.cell.case, costs), costs, session.requests())
        return {
            "flags": dict(self.cell.flags), "load": self.cell.load, "seed": self._args.seed,
            "capacity_per_s": capacity, "rate_per_s": self.cell.load * capacity, "replayed": {},
        }  # fmt: skip

    def place(self, round_: int) -> Path:
        """Where a round on the engine is kept."""
        return self.folder / f"real-{round_ + 1}"

    def measure(self, round_: int, costs: CostModel) -> Measured:
        """Run the cell on the engine. What there is of this round from before, which was cut short, is dropped."""
        session = self._ready()
        config = session.real_config(self.cell.case, costs)
        requests = session.prompts(session.workload)
        session.check(config, requests)
        place = self.place(round_)
        shutil.rmtree(place, ignore_errors=True)
        measured = session.measure(self.cell.case, place, config, requests)
        if not measured.interrupted and measured.broken is None:
            self._about["replayed"][str(round_ + 1)] = measured.replay.exact
            self._write()
        return measured

    def simulate(self, costs: CostModel, real: Run) -> Run:
        """Simulate the cell under the settings that ``real`` had, into its folder."""
        session = self._ready()
        config = SchedulerConfig.from_dict(dict(real.manifest["config"]))
        if not self._args.force:
            engine = {name: real.manifest.get(name) for name in ("model", "dtype", "tp")}
            refuse(costs, differences(costs, config, kv_asked=False, engine=engine))
        place = self.folder / "sim"
        shutil.rmtree(place, ignore_errors=True)
        return session.simulate(self.cell.case, costs, place, config, twin_requests(real, session.requests()))

    def is_measured(self, round_: int) -> bool:
        """Whether a round has been run to its end."""
        return str(round_ + 1) in self._about["replayed"]

    def result(self, costs: CostModel, rounds: int) -> CellResult | None:
        """The rounds that have been run to their ends, beside a simulation that is made now."""
        runs = [salvage_run(self.place(round_)) for round_ in range(rounds) if self.is_measured(round_)]
        if not runs:
            return None
        figures = compared(runs, self.simulate(costs, runs[0]))
        replayed = self._about["replayed"]
        policy = f"{self.cell.case.policy} {self.cell.label}".strip()
        return CellResult(
            self.cell.name, str(runs[0].manifest["model"]), self._ready().workload.name, policy,
            self.cell.case.layout, self.cell.load, self._about["rate_per_s"], len(self._ready().workload), figures,
            all(replayed.values()),
        )  # fmt: skip

    def _ready(self) -> Session:
        if self._session is None:
            raise RuntimeError(f"cell {self.cell.name} has not been prepared")
        return self._session

    def _playing(self, arrivals: str | None, rate: float | None) -> Session:
        args = argparse.Namespace(**vars(self._args))
        args.costs = None  # what they may be used for is checked here
        if arrivals is not None:
            args.arrivals = arrivals
        args.rate = rate
        return Session(args, self._command, engine=self._engine)

    def _write(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / CELL_FILE).write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {self.folder / CELL_FILE}: {error.strerror or error}") from error

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / CELL_FILE
        if not path.is_file():
            return None
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is damaged: {error}; remove it to begin the cell anew") from error
        return about


class _Finishes:
    """An observer that remembers when requests finish."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None: ...

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None: ...

    def ended(self, sequence: SchedulerSequence) -> None:
        if sequence.state == "finished" and sequence.finish_ns is not None:
            self.times_ns.append(sequence.finish_ns)


def capacity_per_s(config: SchedulerConfig, costs: CostModel, requests: list[Request]) -> float:
    """Requests per second that can be carried: of ``requests`` all there at once, those from the tenth that finish
    first to the ninth tenth, over the time between."""
    finishes = _Finishes()
    simulate(requests, Scheduler(config, finishes), costs)
    times_ns = np.sort(finishes.times_ns)
    first, last = len(times_ns) // 10, max(len(times_ns) // 10 + 1, len(times_ns) * 9 // 10)
    if last >= len(times_ns):
        raise UsageError(f"{len(requests)} requests are too few to tell a capacity from; give more")
    seconds = float(times_ns[last] - times_ns[first]) / 1e9
    if seconds <= 0:
        raise UsageError(f"{len(requests)} requests that all finish at once tell no capacity; give more")
    return (last - first) / seconds


def keep_matrix(folder: Path, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Write down what :func:`kept_cells` needs: the command and the matrix."""
    kept = {"argv": without_flags(argv, "--matrix", "--out", "--costs"), "costs": args.costs,
            "matrix": args.matrix.read_text(encoding="utf-8")}  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MATRIX_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error


def kept_cells(folder: Path) -> tuple[list[CellRun], int, str]:
    """The cells in ``folder``, the number of rounds, and the costs that the command named.

    Costs that are kept in the folder are meant before any others of that name.
    """
    path = folder / MATRIX_FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        argv, costs, text = [*map(str, kept["argv"])], str(kept["costs"]), str(kept["matrix"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if (folder / costs).exists():
        costs = str(folder / costs)
    matrix = parse_matrix(text, str(path))
    args = parse_arguments(argv)
    command = shlex.join(["python", "bench.py", *argv])
    return [CellRun(cell, folder / cell.name, args, command, Engine()) for cell in matrix.cells], matrix.rounds, costs


def write_matrix(folder: Path, results: list[CellResult]) -> None:
    """Write the matrix: :data:`MATRIX_TABLE`, a row for each figure of each cell, and :data:`MATRIX_REPORT`."""
    try:
        (folder / MATRIX_TABLE).write_text(table(results).to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        (folder / MATRIX_REPORT).write_text(markdown(results), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
