"""Reads traces of real services, and a user's own, into rows.

==========  ==================================================================  ================================
format      columns or fields                                                   times
==========  ==================================================================  ================================
csv         arrival_s, input_tokens, output_tokens [, max_tokens] [, tenant]    decimal seconds; the project's own
            [, priority] [, ttft_slo_ms or deadline_ms]
azure       TIMESTAMP, ContextTokens, GeneratedTokens                           text to 100 ns, any date
mooncake    JSON lines: timestamp, input_length, output_length [, hash_ids]     milliseconds
lengths     num_prefill_tokens, num_decode_tokens                               none: arrivals must be synthetic
==========  ==================================================================  ================================

Rows may stand in any order and are sorted by time, equal times as in the file; the earliest arrives at 0. Times are
exact to the nanosecond. Mooncake's ``hash_ids`` become the rows' ``prefix_ids``: blocks of 512 tokens that requests
share. Columns that a format does not need are skipped, except in ``csv``, where a name that it does not know is more
likely a slip.

``ttft_slo_ms`` (or ``deadline_ms``) is when the first token is due, in milliseconds after the arrival; ``priority`` is
a whole number, smaller for what is more important. An empty cell of the two says nothing.

A trace without a ``max_tokens`` column declares 2,048 for each row, or the output length where that is longer: a row is
never cut short. A row that declares less than its output is an error.

Every error is a :class:`~workloads.errors.WorkloadError` of one line, with file, row as a person counts (the header of
a CSV file is row 1), column and value.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

from workloads.errors import WorkloadError, did_you_mean, nearest, shown
from workloads.instants import (
    parse_milliseconds_ns,
    parse_milliseconds_text_ns,
    parse_seconds_ns,
    parse_timestamp_ns,
)
from workloads.public_traces import by_file_name
from workloads.workload import DEFAULT_MAX_TOKENS, END_OF_TIME_NS, Row

#: a longer prompt or output is taken for a slip of the file
MOST_TOKENS = 1_000_000_000
MOST_COLUMNS_SHOWN = 12
#: priorities are whole numbers from minus this to this
LARGEST_PRIORITY = 1_000_000_000
#: two names for one column
DEADLINE_COLUMNS = ("ttft_slo_ms", "deadline_ms")


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace file as read: ``rows`` in order of arrival, the first at 0 (all at 0 when not ``recorded``).

    ``recorded`` says whether the file has arrival times, ``reordered`` how many rows stood after a later one;
    ``sha256`` is of the file's bytes.
    """

    path: str
    format_name: str
    rows: tuple[Row, ...]
    recorded: bool
    reordered: int
    sha256: str

    def mean_rate_per_s(self, count: int) -> float | None:
        """Requests per second of the first ``count`` rows; ``None`` when they show none."""
        span_ns = self.rows[count - 1].arrival_ns
        return (count - 1) / (span_ns / 1e9) if span_ns else None


@dataclass(frozen=True, slots=True)
class _CsvFormat:
    name: str
    prompt: str
    output: str
    time: str | None = None
    parse_time: Callable[[str], int] | None = None
    optional: tuple[str, ...] = ()
    only_known_columns: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.prompt, self.output) if self.time is None else (self.time, self.prompt, self.output)

    @property
    def recorded(self) -> bool:
        return self.time is not None

    def read(self, text: str, file: str) -> list[Row]:
        table = _Table(text, file)
        self._check_header(table.header, file)
        position = {column: number for number, column in enumerate(table.header)}
        width = len(table.header)
        prompt_at, output_at = position[self.prompt], position[self.output]
        time_at = None if self.time is None else position[self.time]
        parse_time = self.parse_time
        max_tokens_at, tenant_at, priority_at, slo_at = (
            next((position[name] for name in names if name in self.optional and name in position), None)
            for names in (("max_tokens",), ("tenant",), ("priority",), DEADLINE_COLUMNS)
        )
        rows = []
        at = 0
        for cells in table:
            if len(cells) != width:
                raise WorkloadError(f"{file} row {table.row}: has {len(cells)} columns; the header has {width}")
            try:
                arrival = 0
                if time_at is not None and parse_time is not None:
                    at = time_at
                    arrival = parse_time(cells[at])
                at = prompt_at
                prompt = _parse_tokens(cells[at])
                at = output_at
                output = _parse_tokens(cells[at])
                max_tokens = output if output > DEFAULT_MAX_TOKENS else DEFAULT_MAX_TOKENS
                if max_tokens_at is not None:
                    at = max_tokens_at
                    max_tokens = _parse_tokens(cells[at])
                    _check_max_tokens(max_tokens, output)
                priority = 0
                if priority_at is not None and cells[priority_at].strip():
                    at = priority_at
                    priority = _parse_priority(cells[at])
                slo_ns = None
                if slo_at is not None and cells[slo_at].strip():
                    at = slo_at
                    slo_ns = _parse_slo_ns(cells[at])
            except ValueError as error:
                raise _bad_value(file, table.row, f"column {table.header[at]}", cells[at], error) from None
            tenant = "" if tenant_at is None else cells[tenant_at].strip()
            rows.append(Row(arrival, prompt, output, max_tokens, tenant, priority, slo_ns))
        return rows

    def _check_header(self, header: list[str], file: str) -> None:
        columns = f"columns: {_listed(header)}"
        for column in self.fields:
            if column not in header:
                alike = nearest(column, [name for name in header if name not in self.fields])
                hint = f"; is it {shown(alike)}?" if alike else ";"
                raise WorkloadError(f"{file} row 1: no column {column}{hint} format {self.name}, {columns}")
        for number, column in enumerate(header):
            if column in header[:number] and column in self.fields + self.optional:
                raise WorkloadError(f"{file} row 1: column {column} stands there twice; {columns}")
            if self.only_known_columns and column not in self.fields + self.optional:
                raise WorkloadError(
                    f"{file} row 1: unknown column {shown(column)}{did_you_mean(column, self.fields + self.optional)} "
                    f"format {self.name} has {', '.join(self.fields)} and may have {', '.join(self.optional)}"
                )
        if all(column in self.optional and column in header for column in DEADLINE_COLUMNS):
            raise WorkloadError(f"{file} row 1: {' and '.join(DEADLINE_COLUMNS)} are the same; leave one of them out")


class _Table:
    """The header and the non-empty rows of CSV text; ``row`` is the line of the one handed out last."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        self.header = [column.strip() for column in next(iter(self), [])]

    @property
    def row(self) -> int:
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        try:
            for cells in self._reader:
                if cells:
                    yield cells
        except csv.Error as error:
            raise WorkloadError(f"{self._file} row {self.row}: is not valid CSV ({error})") from None


@dataclass(frozen=True, slots=True)
class _MooncakeFormat:
    name: str = "mooncake"
    fields: tuple[str, ...] = ("timestamp", "input_length", "output_length")
    recorded: bool = True

    def read(self, text: str, file: str) -> list[Row]:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            values = _parse_json_object(line, file, number)
            for field in self.fields:
                if field not in values:
                    raise WorkloadError(f"{file} row {number}: no field {field}; fields: {_listed(list(values))}")
            field = "timestamp"
            try:
                arrival = parse_milliseconds_ns(values[field])
                field = "input_length"
                prompt = _check_tokens(values[field])
                field = "output_length"
                output = _check_tokens(values[field])
                field = "hash_ids"
                prefix_ids = _check_ids(values.get(field, []))
            except ValueError as error:
                raise _bad_value(file, number, f"field {field}", values[field], error) from None
            rows.append(Row(arrival, prompt, output, max(DEFAULT_MAX_TOKENS, output), prefix_ids=prefix_ids))
        return rows


_CSV_FORMATS = (
    _CsvFormat(
        "csv",
        "input_tokens",
        "output_tokens",
        "arrival_s",
        parse_seconds_ns,
        optional=("max_tokens", "tenant", "priority", *DEADLINE_COLUMNS),
        only_known_columns=True,
    ),
    _CsvFormat("azure", "ContextTokens", "GeneratedTokens", "TIMESTAMP", parse_timestamp_ns),
    _CsvFormat("lengths", "num_prefill_tokens", "num_decode_tokens"),
)
_MOONCAKE = _MooncakeFormat()
_FORMATS: dict[str, _CsvFormat | _MooncakeFormat] = {each.name: each for each in (*_CSV_FORMATS, _MOONCAKE)}

#: what ``--trace-format`` takes: the columns or fields by which a file is recognised
TRACE_FORMATS = {name: each.fields for name, each in _FORMATS.items()}


def read_trace(path: str, trace_format: str | None = None) -> Trace:
    """Read a trace file; the format is recognised from its first row unless named.

    Raises :class:`WorkloadError`.
    """
    if trace_format is not None and trace_format not in _FORMATS:
        raise WorkloadError(
            f"unknown trace format {shown(trace_format)}{did_you_mean(trace_format, _FORMATS)} "
            f"formats: {', '.join(_FORMATS)}"
        )
    data = _read_bytes(path)
    text = _decode(data, path)
    chosen = _recognise(text, path) if trace_format is None else _FORMATS[trace_format]
    rows = chosen.read(text, path)
    if not rows:
        raise WorkloadError(f"{path}: has a header but no requests")
    reordered = _count_late(rows)
    if reordered:
        rows.sort(key=itemgetter(0))
    return Trace(
        path=path,
        format_name=chosen.name,
        rows=_from_zero(rows, path),
        recorded=chosen.recorded,
        reordered=reordered,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _read_bytes(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        public = by_file_name(Path(path).name)
        where = f"; it can be had from {public.url}" if public else "; give the path of a trace"
        raise WorkloadError(f"{path}: no such file{where}") from None
    except IsADirectoryError:
        raise WorkloadError(f"{path}: is a folder; give a trace file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkloadError(f"{shown(path)}: cannot be read ({reason})") from None
    if not data.strip():
        raise WorkloadError(f"{path}: is empty; a trace has at least one request")
    return data


def _decode(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise WorkloadError(
            f"{path} row {row}: is not UTF-8 text (byte {data[error.start]:#04x}); save it as plain UTF-8"
        ) from None


def _recognise(text: str, path: str) -> _CsvFormat | _MooncakeFormat:
    if text.lstrip().startswith("{"):
        line_number, line = next((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
        columns = list(_parse_json_object(line, path, line_number))
        if set(columns) & set(_MOONCAKE.fields):
            return _MOONCAKE
    else:
        columns = _Table(text, path).header
        likeliest = max(_CSV_FORMATS, key=lambda each: len(set(each.fields) & set(columns)))
        if set(likeliest.fields) & set(columns):
            return likeliest
    known = "; ".join(f"{name} ({', '.join(fields)})" for name, fields in TRACE_FORMATS.items())
    raise WorkloadError(f"{path} row 1: unknown trace format, columns: {_listed(columns)}; known formats: {known}")


def _parse_json_object(line: str, file: str, row: int) -> dict[str, Any]:
    try:
        values = json.loads(line, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "no readable value"
        raise WorkloadError(f"{file} row {row}: is not valid JSON ({reason}): {shown(line.strip())}") from None
    if not isinstance(values, dict):
        raise WorkloadError(f"{file} row {row}: is {shown(line.strip())}; must be a JSON object, one a line")
    return values


def _parse_tokens(text: str) -> int:
    """A length out of text. Digits only: ``int`` alone would take ``1_000`` and other scripts' digits too."""
    if text.isdigit() and text.isascii() and len(text) < 12:
        return _check_tokens(int(text))
    trimmed = text.strip()
    digits = trimmed.removeprefix("-")
    if digits.isdigit() and digits.isascii() and len(digits) < 12:
        return _check_tokens(int(trimmed))
    raise ValueError(f"must be a whole number from 1 to {MOST_TOKENS:,}")


def _check_tokens(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value > MOST_TOKENS:
        raise ValueError(f"must be a whole number from 1 to {MOST_TOKENS:,}")
    if value < 1:
        raise ValueError("must be >= 1")
    return value


def _parse_priority(text: str) -> int:
    trimmed = text.strip()
    digits = trimmed.removeprefix("-")
    if digits.isdigit() and digits.isascii() and len(digits) < 12 and int(digits) <= LARGEST_PRIORITY:
        return int(trimmed)
    raise ValueError(f"must be a whole number from -{LARGEST_PRIORITY:,} to {LARGEST_PRIORITY:,}")


def _parse_slo_ns(text: str) -> int:
    slo_ns = parse_milliseconds_text_ns(text)
    if slo_ns >= END_OF_TIME_NS:
        raise ValueError("must be less than 146 years")
    return slo_ns


def _check_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < 1 << 63 for each in value):
        raise ValueError("must be a list of whole numbers >= 0 and below 2 to the 63")
    return tuple(value)


def _check_max_tokens(max_tokens: int, output: int) -> None:
    if max_tokens < output:
        raise ValueError(f"must not be less than the row's output of {output} tokens")


def _bad_value(file: str, row: int, place: str, value: object, error: ValueError) -> WorkloadError:
    plain = str(value) if isinstance(value, Decimal) else value
    return WorkloadError(f"{file} row {row}, {place}: value is {shown(plain)}; {error}")


def _listed(columns: list[str]) -> str:
    names = [name if name.isprintable() and 0 < len(name) <= 40 else shown(name) for name in columns]
    more = len(names) - MOST_COLUMNS_SHOWN
    return ", ".join(names[:MOST_COLUMNS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count_late(rows: list[Row]) -> int:
    """How many rows stand after one that arrives later."""
    late = 0
    latest = rows[0].arrival_ns
    for row in rows:
        if row.arrival_ns < latest:
            late += 1
        else:
            latest = row.arrival_ns
    return late


def _from_zero(rows: list[Row], path: str) -> tuple[Row, ...]:
    start = rows[0].arrival_ns
    if rows[-1].arrival_ns - start >= END_OF_TIME_NS:
        raise WorkloadError(f"{path}: its arrivals lie more than 146 years apart; check the times")
    if start == 0:
        return tuple(rows)
    return tuple(row.arriving_at(row.arrival_ns - start) for row in rows)
