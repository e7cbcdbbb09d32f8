"""The tables of a run folder: their columns, and reading them back, also after a kill."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from scheduler.plan import DigestEntry, Kind, StepFeatures

REQUESTS_FILE = "requests.csv"
STEPS_FILE = "steps.csv"

#: empty in the file where a request did not get that far, -1 once read
REQUEST_TIMES = ("first_scheduled_ns", "first_token_ns", "finish_ns")
REQUEST_COLUMNS = (
    "id",
    "number",
    "tenant",
    "priority",
    "arrival_ns",
    *REQUEST_TIMES,
    "prompt_tokens",
    "max_tokens",
    "output_tokens",
    "preemptions",
    "recomputed_tokens",
    "swapped_out",
    "swapped_in",
    "prefix_hit_tokens",
    "outcome",
    "reason",
)
STEP_COLUMNS = (
    "index",
    "start_ns",
    "end_ns",
    "repeat",
    *StepFeatures._fields,
    "device_ns",
    "host_ns",
    "launch_ns",
    "work_ns",
    "overlap",
    "digest",
)

#: what a table from before a column was there would have had in it
Older = Mapping[str, Callable[[pd.DataFrame], pd.Series]]
_OLDER_REQUESTS: Older = {
    name: lambda table: table["number"] * 0 for name in ("priority", "swapped_out", "swapped_in", "prefix_hit_tokens")
}
_OLDER_STEPS: Older = {
    "decode_rows": lambda table: table["rows"].where(table["kind"] == "decode", 0),
    "decode_context_tokens": lambda table: table["context_tokens"].where(table["kind"] == "decode", 0),
    "swapped_tokens": lambda table: table["rows"] * 0,
    "graph_rows": lambda table: table["rows"] * 0,
    "launch_ns": lambda table: table["rows"] * 0,
    "work_ns": lambda table: table["rows"] * 0,
    "longest_decode_context": lambda table: table["longest_context"].where(table["kind"] == "decode", 0),
    "released": lambda table: table["rows"] * 0,
    "shared_kv_tokens": lambda table: table["rows"] * 0,
    "overlap": lambda table: table["rows"] * 0,
}
_KINDS: dict[str, Kind] = {"prefill": "prefill", "decode": "decode", "mixed": "mixed"}

REQUEST_TEXT = ("id", "tenant", "outcome", "reason")
STEP_TEXT = ("layout", "kind", "digest")


class RunFolderError(Exception):
    """A run folder cannot be written or read; the message is one line for the user, with the path."""


def digest_text(entry: DigestEntry, steps: int) -> str:
    """A digest entry in one cell: its six values with ``steps`` as the count, joined with ':'."""
    return f"{entry.kind}:{entry.rows}:{entry.ids}:{entry.starts}:{entry.tokens}:{steps}"


def digest_entry(text: str) -> DigestEntry:
    """The inverse of :func:`digest_text`; raises ``ValueError`` for anything else."""
    kind, *numbers = text.split(":")
    if kind not in _KINDS or len(numbers) != 5:
        raise ValueError(f"not a plan digest: {text!r}")
    rows, ids, starts, tokens, repeat = map(int, numbers)
    return DigestEntry(_KINDS[kind], rows, ids, starts, tokens, repeat)


def read_requests(folder: Path) -> pd.DataFrame:
    """``requests.csv``: one row a request that ended, times in integer nanoseconds, -1 where unset."""
    return _read(folder / REQUESTS_FILE, REQUEST_COLUMNS, REQUEST_TEXT, _OLDER_REQUESTS)


def read_steps(folder: Path) -> pd.DataFrame:
    """``steps.csv``: one row a plan that was run, with the first step's features and ``repeat``.

    ``overlap`` is 1 where the plan was made while the step before it ran; the step then starts as that one ends.
    """
    return _read(folder / STEPS_FILE, STEP_COLUMNS, STEP_TEXT, _OLDER_STEPS)


def _read(path: Path, columns: tuple[str, ...], text: tuple[str, ...], older: Older) -> pd.DataFrame:
    """A table as far as whole lines go: what a kill cut short in the last line is left out."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error
    whole = _whole_lines(data)
    if not whole:
        return empty_table(columns, text)
    numbers = [column for column in columns if column not in text]
    types: dict[str, pd.StringDtype | pd.Int64Dtype] = {
        column: pd.StringDtype() if column in text else pd.Int64Dtype() for column in columns
    }
    try:
        table = pd.read_csv(
            io.BytesIO(whole),
            dtype=types,
            keep_default_na=False,
            na_values={column: [""] for column in numbers},
        )
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is not a table of this version: {str(error).splitlines()[0]}") from error
    lacking = [column for column in columns if column not in table.columns and column not in older]
    if lacking:
        raise RunFolderError(f"{path} lacks the column {lacking[0]!r}; its columns must be {', '.join(columns)}")
    for column, values in older.items():
        if column not in table.columns:
            table[column] = values(table)
    return _typed(table, columns, text)


def empty_table(columns: tuple[str, ...], text: tuple[str, ...]) -> pd.DataFrame:
    """A table without a row."""
    return _typed(pd.DataFrame({column: [] for column in columns}), columns, text)


def _whole_lines(data: bytes) -> bytes:
    """``data`` up to the last line end that is not inside a quoted cell."""
    end = data.rfind(b"\n") + 1
    while end and data.count(b'"', 0, end) % 2:
        end = data.rfind(b"\n", 0, end - 1) + 1
    return data[:end]


def _typed(table: pd.DataFrame, columns: tuple[str, ...], text: tuple[str, ...]) -> pd.DataFrame:
    for column in columns:
        table[column] = table[column].astype(str) if column in text else table[column].fillna(-1).astype("int64")
    return table
