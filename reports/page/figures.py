"""All figures with their definitions, and why some are missing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import Series
from reports.figures import FIGURES, LATENCIES, Figure, figure_at, occurs, why_missing
from reports.markup import row, section, table
from reports.page.cells import figure_cell
from reports.run import look_up


def figures_section(series: Sequence[Series]) -> str:
    head = [("Figure", "first"), *((one.label, "number") for one in series), ("Definition", "")]
    rows = []
    for figure in _shown(series):
        cells = [figure_cell(one, figure) for one in series]
        rows.append(row(escape(figure.title), [*cells, f'<td class="formula">{escape(figure.formula)}</td>']))
    lead = "What could not be computed says so; 0 means zero."
    return section("All other figures", lead, table(head, rows) + _reasons(series))


def _shown(series: Sequence[Series]) -> list[Figure]:
    summaries = [one.run.summary for one in series]
    return [figure for figure in FIGURES if occurs(figure, summaries)]


def _reasons(series: Sequence[Series]) -> str:
    """Why figures are missing: each reason with the figures and runs that it is about."""
    found: dict[str, dict[str, None]] = {}
    for one in series:
        paths = [*(f"{latency.key}.p99" for latency in LATENCIES), *(figure.path for figure in _shown(series))]
        for path in paths:
            if look_up(one.run.summary, path) is None:
                title = figure_at(path).title.removesuffix(" P99")
                found.setdefault(why_missing(one.run.summary, path), {})[title] = None
    if not found:
        return ""
    facts = "".join(f"<dt>{escape(', '.join(titles))}</dt><dd>{escape(why)}</dd>" for why, titles in found.items())
    facts = f'<dl class="facts">{facts}</dl>'
    return f'<div class="card"><details><summary>Why figures are missing</summary>{facts}</details></div>'
