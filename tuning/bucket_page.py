"""The page of a bucket tuning."""

from __future__ import annotations

from html import escape
from typing import Any

from reports.charts import curves_chart
from reports.markup import chip, number_cell, page, row, section, table
from tuning.bucket import COLUMNS, sentence, table_of

TITLE = "Bucket widths"
#: what is drawn against the width: title, figure, unit
_CURVES = (
    ("Padding waste", "waste", "share"), ("Mean E2E", "mean_ms", "ms"), ("P99 E2E", "p99_ms", "ms"),
    ("Fairness", "fairness", "Jain's index"),
)  # fmt: skip


def render(result: dict[str, Any], command: str) -> str:
    """The page as text."""
    header = (
        f'<header><span class="mark">Lockstep</span><h1>{TITLE}</h1>\n'
        f'<p class="context">{escape(result["about"]["workload"])} · simulated time</p></header>'
    )
    verdict = f'<div class="verdict good"><p>{escape(sentence(result))}</p></div>'
    fixed = [one for one in result["widths"] if isinstance(one["bucket"], int) and not one["failed"]]
    places = [float(place) for place in range(len(fixed))]
    charts = "".join(
        f'<div class="card" style="max-width:520px;margin-top:14px">'
        f"{curves_chart(figure, title, [('', places, [one[figure] for one in fixed], False)], _AXIS, unit)}</div>"
        for title, figure, unit in _CURVES
    )
    kinds = ["first", *["number"] * 5, ""]
    rows = [
        row(escape(name), [*(number_cell(cell) for cell in cells), f"<td>{chip(mark, 'good') if mark else ''}</td>"])
        for name, *cells, mark in table_of(result)
    ]
    lead = (
        "Fairness: Jain's index over requests of the tokens per second that each got. The knee is where the curve of "
        "mean latency turns from steep to flat, on a logarithmic scale of widths."
    )
    parts = [header, verdict, section("Every width", lead, table(list(zip(COLUMNS, kinds, strict=True)), rows))]
    parts.append(section("Over the width", "Fixed widths, each twice the one before.", charts))
    parts.append(section("How to reproduce", "The same command gives the same figures.",
                         f"<pre>{escape(command)}</pre>"))  # fmt: skip
    return page(TITLE, parts)


_AXIS = "width, as a power of two"
