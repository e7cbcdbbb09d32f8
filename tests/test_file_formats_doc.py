"""``docs/file-formats.md``: its tables have the columns and formats that there are."""

from __future__ import annotations

import re
from pathlib import Path

from documents import DOCS

from reports.rows import REQUEST_COLUMNS, REQUESTS_FILE, STEP_COLUMNS, STEPS_FILE
from workloads.traces import DEADLINE_COLUMNS, TRACE_FORMATS, read_trace

TEXT = (DOCS / "file-formats.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> list[str]:
    """Names in the first column of the table below a heading."""
    section = TEXT.split(f"\n{heading}\n")[1].split("\n#")[0]
    return [
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall("`([^`]+)`", row)
    ]


def test_the_columns_of_a_run_folder_are_all_there() -> None:
    assert sorted(first_cells(f"### `{REQUESTS_FILE}` of a run")) == sorted(REQUEST_COLUMNS)
    assert sorted(first_cells(f"### `{STEPS_FILE}` of a run")) == sorted(STEP_COLUMNS)


def test_the_trace_formats_are_all_there() -> None:
    rows = {
        row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT.split("## Flags in")[0], re.MULTILINE)
    }
    assert set(rows) == set(TRACE_FORMATS)
    for name, fields in TRACE_FORMATS.items():
        assert set(fields) <= set(re.findall("`(\\w+)`", rows[name])), name


def test_the_example_of_a_trace_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```csv\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "trace.csv"
    path.write_text(example)
    first, second = read_trace(str(path)).rows
    assert (first.tenant, second.tenant) == ("search", "chat")
    assert all(f"`{name}`" in TEXT for name in DEADLINE_COLUMNS)
