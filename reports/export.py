"""A report as files for other programs: tables, charts, and a summary for a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from reports.agreement import Agreement
from reports.markdown import markdown_summary
from reports.page.inside import insides_of
from reports.page.series import series_of
from reports.run import Run
from reports.tables import tables_of, write_tables

SUMMARY_NAME = "summary.md"
CHARTS_FOLDER = "charts"
_CHART = re.compile(r'<svg (?P<head>[^>]*?)data-name="(?P<name>[^"]*)"(?P<rest>.*?)</svg>', re.DOTALL)
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def export(
    folder: str | Path, page: str, runs: Sequence[Run], agreements: Sequence[Agreement] = (), command: str | None = None
) -> list[Path]:
    """Write the tables of :mod:`reports.tables`, ``summary.md`` and the still charts of ``page`` into a folder.

    The CSV and SVG files of the same runs are the same on every machine. Returns the paths; ``OSError`` is the
    caller's.
    """
    folder = Path(folder)
    tables = tables_of(runs, agreements, insides_of(series_of(runs, agreements)))
    paths = write_tables(folder, tables)
    paths.append(folder / SUMMARY_NAME)
    paths[-1].write_text(markdown_summary(runs, agreements, command), encoding="utf-8")
    charts = folder / CHARTS_FOLDER
    charts.mkdir(exist_ok=True)
    for name, chart in charts_of(page).items():
        paths.append(charts / f"{name}.svg")
        paths[-1].write_text(chart, encoding="utf-8")
    return paths


def charts_of(page: str) -> dict[str, str]:
    """The still charts of a page by name, each as a file of its own, in the colours of a light page."""
    palette = _palette()

    def alone(chart: re.Match[str]) -> str:
        text = f'<svg font-family="{_FONT}" {chart["head"]}{chart["rest"].lstrip()}</svg>\n'
        return re.sub(r"var\((--[\w-]+)\)", lambda used: palette[used[1]], text)

    return {chart["name"]: alone(chart) for chart in _CHART.finditer(page)}


def _palette() -> dict[str, str]:
    """The colours of the style sheet's first rule, which is the light one."""
    style = files("reports").joinpath("report.css").read_text(encoding="utf-8")
    light = style[style.index(":root {") : style.index("}")]
    return dict(re.findall(r"(--[\w-]+): ([^;]+);", light))
