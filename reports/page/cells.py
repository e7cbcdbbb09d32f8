"""Cells and cards that several sections use."""

from __future__ import annotations

from html import escape

from reports.charts import Series
from reports.figures import Figure, interval_at, interval_text, quantity, why_missing
from reports.markup import chip, number_cell
from reports.page.series import class_of
from reports.run import look_up


def yes_no(value: bool | None, yes: str, no: str, unknown: str) -> str:
    if value is None:
        return chip(unknown, "plain")
    return chip(yes, "good") if value else chip(no, "bad")


def bar(share: float | None, one: Series) -> str:
    width = 0 if share is None else 100 * min(1.0, max(0.0, share))
    return f'<span class="bar"><i class="{class_of(one)}" style="width:{width:.1f}%"></i></span>'


def chips_cell(markup: str) -> str:
    return f'<td class="number">{markup}</td>'


def percent(error: float) -> str:
    return f"{100 * error:+.1f} %".replace("-", "−")


def signed(value: float, figure: Figure) -> str:
    text = quantity(abs(value), figure.unit)
    return text if not value else f"{'+' if value > 0 else '−'}{text}"


def figure_cell(one: Series, figure: Figure) -> str:
    summary = one.run.summary
    value = look_up(summary, figure.path)
    if value is not None:
        return number_cell(quantity(value, figure.unit), interval_text(interval_at(summary, figure.path), figure.unit))
    why = why_missing(summary, figure.path)
    text = "n too small" if why.startswith("n too small") else "not available"
    return f'<td class="number missing" title="{escape(why)}">{text}</td>'


def chart_card(title: str, formula: str, chart: str) -> str:
    below = f'<p class="formula">{escape(formula)}</p>' if formula else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{below}{chart}</div>'
