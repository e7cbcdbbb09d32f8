"""Real runs beside their simulations."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.agreement import Agreement, CounterCheck
from reports.charts import Series
from reports.figures import change_text, figure_at, interval_at, quantity
from reports.markup import chip, number_cell, row, section, table
from reports.page.cells import chips_cell, percent, yes_no
from reports.page.dots import Dot, dots_chart

#: predictions that are drawn, unless they are off by more than a chart of the others has room for
_DRAWN = (
    "output_tokens_per_s", "ttft_ms.mean", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p99", "itl_ms.p50",
    "itl_ms.p99", "e2e_ms.mean", "e2e_ms.p50", "e2e_ms.p99",
)  # fmt: skip
_MOST_DRAWN = 2.0
#: errors of a prediction up to which it is called good, and up to which it is not called bad
GOOD_ERROR, FAIR_ERROR = 0.05, 0.15


def _error_cell(error: float | None, detail: str) -> str:
    if error is None:
        return number_cell("–", kind="missing")
    size = abs(error)
    kind = "good" if size <= GOOD_ERROR else "note" if size <= FAIR_ERROR else "bad"
    return chips_cell(f'<span class="aside">{escape(detail)}</span>{chip(percent(error), kind)}')


def agreement_section(agreements: Sequence[Agreement], series: Sequence[Series]) -> str:
    if not agreements:
        return ""
    one_of = {id(one.run): one for one in series}
    pairs = [one_of[id(agreement.measured)] for agreement in agreements]
    head = [("", "first"), *((one.run.label, "number") for one in pairs)]
    lead = (
        "Both worlds drive the same scheduler. Counters and plans must be equal; times are predicted, with error = "
        "(simulated − measured) / measured. Beside each error: measured → simulated. Bars: what the 95 % interval "
        "of the measured figure leaves open."
    )
    chart = _errors_chart(agreements, pairs)
    rows = [
        row("Plans", [chips_cell(yes_no(a.same_plans, "same", "differ", "")) for a in agreements]),
        row("Replay", [chips_cell(yes_no(a.replayed, "same plans", "differs", "not replayed")) for a in agreements]),
        row("Mean error", [number_cell(quantity(a.mean_error, "share")) for a in agreements]),
        *_prediction_rows(agreements),
        f'<tr class="group"><th class="first" colspan="{len(agreements) + 1}">Counters</th></tr>',
        *_counter_rows(agreements),
    ]
    return section("Real and simulated", lead, chart + table(head, rows))


def _errors_chart(agreements: Sequence[Agreement], pairs: Sequence[Series]) -> str:
    """The error of each prediction, with what the measured figure's 95 % interval leaves open."""
    dots = []
    for agreement, one in zip(agreements, pairs, strict=True):
        for path in _DRAWN:
            found = agreement.prediction(path)
            if found is None or found.error is None or found.simulated is None or abs(found.error) > _MOST_DRAWN:
                continue
            low, high = interval_at(agreement.measured.summary, path) or (None, None)
            ends = (found.simulated / high - 1, found.simulated / low - 1) if low and high else (None, None)
            dots.append(Dot(figure_at(path).title, one, found.error, *ends))
    if not dots:
        return ""
    drawn = dots_chart("errors", "Simulated less measured, by figure", dots, "(simulated − measured) / measured", 13.2)
    return f'<div class="card wide">{drawn}</div>'


def _prediction_rows(agreements: Sequence[Agreement]) -> list[str]:
    rows = []
    for path in _paths_of([[p.path for p in a.predictions] for a in agreements]):
        figure = figure_at(path)
        cells = []
        for agreement in agreements:
            found = agreement.prediction(path)
            if found is None:
                cells.append(number_cell("–", kind="missing"))
                continue
            cells.append(_error_cell(found.error, change_text(found.measured, found.simulated, figure.unit)))
        rows.append(row(escape(figure.title), cells))
    return rows


def _counter_rows(agreements: Sequence[Agreement]) -> list[str]:
    rows = []
    for path in _paths_of([[c.path for c in a.counters] for a in agreements]):
        cells = [_counter_cell(next((c for c in a.counters if c.path == path), None)) for a in agreements]
        rows.append(row(escape(figure_at(path).title), cells))
    return rows


def _counter_cell(check: CounterCheck | None) -> str:
    if check is None:
        return number_cell("–", kind="missing")
    unit = figure_at(check.path).unit
    equal = check.equal
    detail = quantity(check.measured, unit) if equal else change_text(check.measured, check.simulated, unit)
    return chips_cell(f'<span class="aside">{escape(detail)}</span>{yes_no(equal, "equal", "differs", "")}')


def _paths_of(lists: Sequence[Sequence[str]]) -> list[str]:
    """All paths, each once, in the order of their first appearance."""
    return list(dict.fromkeys(path for paths in lists for path in paths))
