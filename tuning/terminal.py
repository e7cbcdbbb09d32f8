"""What a tuning comes to, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.terminal import plain_table, terminal
from tuning.page import (
    SHOWN,
    VALIDATION_COLUMNS,
    how_of,
    name_of,
    notes_of,
    setting_rows,
    validation_rows,
    verdict_of,
)

_STYLES = {"good": "bold green", "note": "bold yellow", "bad": "bold red"}


def print_tuning(result: Mapping[str, Any], *, quiet: bool = False, console: Console | None = None) -> None:
    """The recommendation, what it is held against, how sure it is, and the commands."""
    out = terminal(quiet, console)
    table: Table = plain_table(out, "Settings beside each other", ["Setting", *(title for title, _ in SHOWN)])
    names = {}
    for place, (title, setting, cells, _) in enumerate(setting_rows(result)):
        name = title or f"no. {place + 1}"
        names[name] = setting
        table.add_row(name, *cells)
    out.print(table)
    for name, setting in names.items():
        out.print(f"  {name}: {setting}", soft_wrap=True)
    kind, word, text = verdict_of(result)
    out.print(Text.assemble((word, _STYLES[kind]), f" {text}"), soft_wrap=True)
    for note in notes_of(result):
        out.print(note, soft_wrap=True)
    for one in result["sensitivity"]:
        if one["matters"]:
            worst = min(change for _, change in one["changes"])
            out.print(f"  {one['knob'].replace('_', '-')}: matters, {100 * worst:+.1f} % at its worst", soft_wrap=True)
    if result["front"]:
        out.print(f"The trade-off has {len(result['front'])} settings that none beats; see the report.")
        for point in result["front"]:
            values = ", ".join(f"{value:.4g}" for value in point["values"])
            out.print(f"  {values}: {name_of(point['setting'])}", soft_wrap=True)
    out.print(how_of(result), soft_wrap=True)
    out.print("To use it:", style="bold")
    for name in ("serve", "run", "simulate"):
        out.print(f"  {result['commands'][name]}", soft_wrap=True)


def print_validation(validation: Mapping[str, Any], *, quiet: bool = False, console: Console | None = None) -> None:
    """What the engine says of it."""
    out = terminal(quiet, console)
    table = plain_table(out, "On the engine", ["Setting", *VALIDATION_COLUMNS])
    rows = validation_rows(validation)
    for place, (_, *cells) in enumerate(rows, 1):
        table.add_row(f"no. {place}", *cells)
    out.print(table)
    for place, (name, *_) in enumerate(rows, 1):
        out.print(f"  no. {place}: {name}", soft_wrap=True)
    kind, word = ("good", "Stands.") if validation["stands"] else ("bad", "Does not stand.")
    out.print(Text.assemble((word, _STYLES[kind]), f" {validation['text']}"), soft_wrap=True)


def print_table(
    text: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, quiet: bool = False,
    console: Console | None = None,
) -> None:  # fmt: skip
    """A table, and what it says."""
    out = terminal(quiet, console)
    table = plain_table(out, None, columns)
    for cells in rows:
        table.add_row(*cells)
    out.print(table)
    out.print(text, soft_wrap=True)
