"""The rows of a recorded ``steps.csv``: what a fit reads of them, and which are refused.

A run that was killed may have cut its last row short, and that one is left out. Any other row that no engine writes
would be a mistake in every simulation to come: it is refused by its number, counted from 1 below the header.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from scheduler.plan import Kind, Layout
from simulator.costs import CostError
from simulator.step_cost import COST_COLUMNS

#: columns that files from before there were mixed steps, swaps, overlap and graphs lack: nothing of it happened
NEW_COLUMNS = ("decode_rows", "decode_context_tokens", "swapped_tokens", "overlap", "graph_rows",
               "longest_decode_context", "released", "launch_ns", "work_ns", "shared_kv_tokens")  # fmt: skip
#: columns of a recorded step that every file has
ALWAYS = tuple(name for name in COST_COLUMNS if name not in NEW_COLUMNS)
KNOWN: dict[str, tuple[str, ...]] = {"layout": get_args(Layout), "kind": get_args(Kind)}
NUMBERS = ("repeat", "device_ns", "host_ns", *ALWAYS, *NEW_COLUMNS)


def read_recorded(folder: Path) -> pd.DataFrame:
    """The steps of a recorded run, with every column that a fit reads; :class:`CostError` for what is none.

    The message for a bad row has its number.
    """
    path = folder / "steps.csv"
    if not path.is_file():
        raise CostError(f"{folder} is no run folder: it has no steps.csv")
    steps = _read(path)
    missing = [c for c in ("layout", "kind", "repeat", "device_ns", "host_ns", *ALWAYS) if c not in steps.columns]
    if missing:
        raise CostError(f"{path} lacks the column {missing[0]} (found: {', '.join(steps.columns)})")
    for column in NEW_COLUMNS:
        if column not in steps.columns:
            steps[column] = "0"
    steps = checked_rows(path, steps)
    if (steps["repeat"] > 1).any():
        raise CostError(f"{path} was simulated, not recorded: costs must come from a run of the engine")
    # a step that was lost (memory was too short for it) has no time of the device
    return steps[steps["device_ns"] > 0]


def checked_rows(path: Path, steps: pd.DataFrame) -> pd.DataFrame:
    """``steps`` with its :data:`NUMBERS` as numbers; :class:`CostError` for a row that has none, or less than 0, or
    that is there twice."""
    for column, known in KNOWN.items():
        wrong = np.flatnonzero(~steps[column].isin(known))
        if len(wrong):
            row = int(wrong[0])
            raise CostError(
                f"{path} row {row + 1}: {column} is {_shown(steps[column].iloc[row])}; must be {' or '.join(known)}"
            )
    numbers = {}
    for column in NUMBERS:
        cells = steps[column]
        values = pd.to_numeric(cells, errors="coerce").astype("float64")
        wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if len(wrong):
            row = int(wrong[0])
            raise CostError(f"{path} row {row + 1}: {column} is {_shown(cells.iloc[row])}; must be a number >= 0")
        numbers[column] = values
    if "index" in steps.columns:
        again = np.flatnonzero(steps["index"].duplicated())
        if len(again):
            row = int(again[0])
            first = int(np.flatnonzero(steps["index"] == steps["index"].iloc[row])[0])
            raise CostError(
                f"{path} row {row + 1}: step {steps['index'].iloc[row]} is there twice (first in row {first + 1})"
            )
    return steps.assign(**numbers)


def _shown(cell: object) -> str:
    """A cell as it is quoted in an error."""
    if cell is None or cell != cell:
        return "missing"
    return repr(cell) if isinstance(cell, str) else str(cell)


def _read(path: Path) -> pd.DataFrame:
    """The table as text, without a last row that was cut short."""
    try:
        data = path.read_bytes().decode()
        steps = pd.read_csv(io.StringIO(data), dtype=str, keep_default_na=False, na_values=[""])
    except pd.errors.ParserError as error:
        raise CostError(f"{path} {_place(error)}") from error
    except (OSError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CostError(f"{path} cannot be read: {error}") from error
    return steps if data.endswith("\n") else steps.iloc[:-1]


def _place(error: pd.errors.ParserError) -> str:
    """What pandas says of a row with too many cells ("Expected 3 fields in line 8, saw 4"), in rows."""
    words = str(error).replace(",", "").split()
    if "line" in words and "saw" in words:
        line = words[words.index("line") + 1]
        fields, saw = words[words.index("fields") - 1], words[words.index("saw") + 1]
        return f"row {int(line) - 1}: has {saw} columns; the header has {fields}"
    return f"cannot be read: {' '.join(str(error).split())}"
