"""How latencies are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import Series, cdf_chart
from reports.figures import LATENCIES, STATISTICS, figure_at, number, statistic_title, why_missing
from reports.markup import number_cell, row, section, table
from reports.page.cells import chart_card, figure_cell
from reports.page.interactive import cdf_data, interactive
from reports.page.series import charted, dot, legend, name_in_table
from reports.run import look_up

#: latencies that get a chart, in this order
_CHARTED = ("ttft_ms", "e2e_ms", "tpot_ms")


def latency_section(series: Sequence[Series]) -> str:
    series, fewer = charted(series)
    by_key = {latency.key: latency for latency in LATENCIES}
    cards = []
    for key in _CHARTED:
        latency = by_key[key]
        chart = cdf_chart(f"cdf-{key.removesuffix('_ms')}", latency.title, key, series)
        reasons = {why_missing(one.run.summary, key) for one in series}
        absent = f'<p class="absent">{escape("; ".join(sorted(reasons)))}</p>'
        drawn = absent if chart is None else interactive("cdf", chart, cdf_data(key, series))
        cards.append(chart_card(latency.title, latency.formula, drawn))
    lead = "Share of the finished requests (vertical) whose latency is at most that (horizontal)." + fewer
    return section("Latency", lead, legend(series) + f'<div class="charts">{"".join(cards)}</div>')


def latencies_section(series: Sequence[Series]) -> str:
    """A row for each latency of a single run; of several runs, a group for each latency with a row for each run."""
    head = [("Latency", "first"), *((statistic_title(s), "number") for s in STATISTICS), ("n", "number")]
    rows: list[str] = []
    for latency in LATENCIES:
        if len(series) > 1:
            title = f"{escape(latency.title)} <i>{escape(latency.formula)}</i>"
            rows.append(f'<tr class="group"><th class="first" colspan="{len(head)}">{title}</th></tr>')
        for one in series:
            cells = [figure_cell(one, figure_at(f"{latency.key}.{statistic}")) for statistic in STATISTICS]
            cells.append(number_cell(number(look_up(one.run.summary, f"{latency.key}.n"))))
            if len(series) == 1:
                name = f'{escape(latency.title)}<span class="interval">{escape(latency.formula)}</span>'
            else:
                name = dot(one) + escape(name_in_table(one, series))
            rows.append(row(name, cells, "twin" if one.dashed else ""))
    lead = (
        "Percentiles are nearest ranks, with the 95 % interval of their order statistics below. A percentile that too "
        "few requests stand behind is not given."
    )
    return section("All latencies", lead, table(head, rows))
