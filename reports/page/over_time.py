"""Batches, padding and memory over the time of a run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import PANELS, Series, timeline_chart, timeline_of
from reports.markup import section
from reports.page.cells import chart_card
from reports.page.series import charted, dot


def over_time_section(series: Sequence[Series]) -> str:
    """One run: a card a panel. Several: a card a run, with its twin as dashes, all to one scale."""
    series, fewer = charted(series)
    drawn = [(one, line) for one in series if (line := timeline_of(one.run)) is not None]
    scale = [line for _, line in drawn]
    leading = [one for one, _ in drawn if not one.dashed]
    if len(series) == 1:
        cards = [
            chart_card(title, "", timeline_chart(f"time-{panel}", drawn, [panel], scale))
            for panel, title in PANELS.items()
            if drawn
        ]
    else:
        width = 3.2 if len(leading) % 4 == 0 else 6.5 if len(leading) <= 2 else 4.3
        cards = []
        for one in leading:
            group = [(other, line) for other, line in drawn if other.colour == one.colour]
            chart = timeline_chart(f"time-{one.colour}", group, list(PANELS), scale, width)
            label = one.run.label if len(group) > 1 else one.label
            cards.append(f'<div class="card"><h3>{dot(one)}{escape(label)}</h3>{chart}</div>')
    lead = (
        "Requests: those that run dark, those that wait light. Rows: mean over the steps that decode. Padding: share "
        "of a step's slots that are padding (prefill: linear, decode: attention), weighted by time."
    )
    if any(one.dashed for one in series):
        lead += " Dashes: simulated."
    lead += fewer
    kind = "charts four" if len(leading) % 4 == 0 else "charts"
    content = f'<div class="{kind}">{"".join(cards)}</div>' if cards else '<p class="absent">no step was run</p>'
    return section("Batch and padding over time", lead, content)
