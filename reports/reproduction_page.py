"""``report.html`` of ``--mode reproduce``: every published result beside ours, in the style of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import beside_chart, curves_chart
from reports.markup import chip, number_cell, page, row, section, table
from reports.reproduction import Findings, Row

TITLE = "Published results, reproduced"


def render_reproduction(findings: Sequence[Findings], command: str) -> str:
    """The page as text; the same for the same findings."""
    parts = [_header(findings), _verdict(findings), _overview(findings)]
    parts += [_experiment(found) for found in findings]
    parts.append(section("How to reproduce", "Seeded: the same command gives the same figures.",
                         f"<pre>{escape(command)}</pre>"))  # fmt: skip
    return page(TITLE, parts)


def _header(findings: Sequence[Findings]) -> str:
    context = f"{len(findings)} experiments · {sum(len(found.rows) for found in findings)} values · simulated time"
    return f'<header><span class="mark">Lockstep</span><h1>{TITLE}</h1>\n<p class="context">{context}</p></header>'


def _verdict(findings: Sequence[Findings]) -> str:
    rows = [row for found in findings for row in found.rows]
    outside = [row for row in rows if not row.passed]
    unexplained = sum(len(found.unexplained) for found in findings)
    kind = "bad" if unexplained else "note" if outside else "good"
    word = "Differs." if unexplained else "Explained." if outside else "Reproduced."
    text = f"{len(rows) - len(outside)} of {len(rows)} values are within their tolerance"
    if outside:
        text += f"; {len(outside)} differ, {unexplained or 'none'} without an explanation"
    return f'<div class="verdict {kind}"><p><span class="word">{word}</span> {escape(text)}.</p></div>'


def _overview(findings: Sequence[Findings]) -> str:
    rows = [
        row(
            f'<a href="#{found.name}">{escape(found.title)}</a>',
            [f'<td class="formula">{escape(found.source)}</td>', f"<td>{_chip_of(found)}</td>"],
        )
        for found in findings
    ]
    return section("Experiments", "Where each result was published, and whether it came out here.",
                   table([("Experiment", "first"), ("Source", ""), ("Verdict", "")], rows))  # fmt: skip


def _chip_of(found: Findings) -> str:
    if found.not_run:
        return chip("not run", "plain")
    outside = any(not row.passed for row in found.rows)
    return chip(found.verdict(), "bad" if found.unexplained else "note" if outside else "good")


def _experiment(found: Findings) -> str:
    if found.not_run:
        content = f'<p class="absent">{escape(found.not_run)}</p>'
    else:
        head = [("Quantity", "first"), ("Published", "number"), ("Ours", "number"), ("Difference", "number"),
                ("Allowed", "number"), ("Verdict", "")]  # fmt: skip
        content = table(head, [_row(one) for one in found.rows])
        for why, quantities in found.explanations().items():
            names = "; ".join(quantities)
            content += f"\n<p><strong>{escape(names)}</strong>: {escape(why or 'not explained')}.</p>"
        if found.extra:
            columns = [(name, "number" if index else "first") for index, name in enumerate(found.extra[0])]
            lines = [row(escape(line[0]), [number_cell(cell) for cell in line[1:]]) for line in found.extra[1:]]
            content += "\n" + table(columns, lines)
        chart = _chart(found)
        if chart:
            content += f'\n<div class="card" style="max-width:520px;margin-top:14px">{chart}</div>'
        content += "".join(f"\n<p>{escape(note)}</p>" for note in found.notes)
    lead = f"{found.setup} Source: {found.source}."
    return f'<div id="{found.name}">{section(found.title, lead, content)}</div>'


def _row(one: Row) -> str:
    kind = "good" if one.passed else "note" if one.explanation else "bad"
    cells = [
        number_cell(one.published_text()),
        number_cell(one.ours_text()),
        number_cell(one.difference_text()),
        number_cell(one.allowed),
        f"<td>{chip('within' if one.passed else 'differs', kind)}</td>",
    ]
    return row(escape(one.quantity), cells)


def _chart(found: Findings) -> str:
    if found.chart is not None:
        curves = [(curve.label, curve.x, curve.y, curve.step) for curve in found.chart.curves]
        return curves_chart(found.name, found.title, curves, found.chart.x_label, found.chart.y_label)
    drawn = [
        (one.quantity, one.published, one.ours, one.error)
        for one in found.rows
        if isinstance(one.published, int | float) and isinstance(one.ours, int | float) and one.relation == "equal"
    ]
    if len(drawn) < 2:
        return ""
    labels, published, ours, errors = zip(*drawn, strict=True)
    return beside_chart(found.name, found.title, labels, published, ours, errors)
