"""Heat strips: how full the batch was and how much of it was padding, a strip for each run, all to one time scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from reports.charts import FloatArray, Series, Timeline, timeline_of
from reports.figures import number, quantity
from reports.markup import section
from reports.page.series import charted, class_of, dot

#: pieces of time of the longest run
_PIECES = 96
#: padding whose shade is the darkest, at least
_LEAST_PADDING = 0.1
_WIDTH, _HEIGHT = 960, 20


def strips_section(series: Sequence[Series]) -> str:
    """Nothing where no step was run."""
    series, fewer = charted(series)
    longest = max((line.edges_s[-1] for one in series if (line := timeline_of(one.run, 1)) is not None), default=0.0)
    if not longest:
        return ""
    most = max((_most_rows(one) for one in series), default=0.0)
    padded = max(_LEAST_PADDING, *(_most_padding(one) for one in series))
    strips: dict[str, list[str]] = {"rows": [], "padding": []}
    for one in series:
        whole = timeline_of(one.run, 1)
        if whole is None:
            continue
        line = timeline_of(one.run, max(1, round(_PIECES * float(whole.edges_s[-1] / longest))))
        assert line is not None
        name = f"{dot(one)}{escape(one.label)}" if len(series) > 1 else ""
        for kind, values in (("rows", line.rows / max(1.0, most)), ("padding", line.padding / padded)):
            strip = _strip(one, line, kind, values, float(longest))
            strips[kind].append(f'<div class="strip"><span>{name}</span>{strip}</div>')
    end = escape(quantity(float(longest), "s"))
    axis = f'<div class="strip axis"><span></span><p><i>0 s</i><i>{end}</i></p></div>'
    scales = {
        "rows": ("Rows of a decode step", _scale(series[0], "0", number(most))),
        "padding": ("Padding", _scale(series[0], "0 %", quantity(padded, "share"))),
    }
    kind_of_card = "card strips alone" if len(series) == 1 else "card strips"
    cards = [
        f'<div class="{kind_of_card}"><h3>{title}</h3>{scale}{"".join(strips[kind])}{axis}</div>'
        for kind, (title, scale) in scales.items()
    ]
    lead = (
        "The darker, the more: rows as a share of the fullest step of all runs, padding as a share of the most of all "
        "runs (10 % at least). White: no such step was run. Point at a piece for its figures." + fewer
    )
    return section("Batch occupancy and padding", lead, "".join(cards))


def _most_rows(one: Series) -> float:
    line = timeline_of(one.run, _PIECES)
    return 0.0 if line is None else float(np.nanmax(line.rows, initial=0))


def _most_padding(one: Series) -> float:
    line = timeline_of(one.run, _PIECES)
    return 0.0 if line is None else float(np.nanmax(line.padding, initial=0))


def _scale(one: Series, low: str, high: str) -> str:
    """What the shades mean."""
    return f'<p class="scale">{escape(low)}<span class="{class_of(one)}"></span>{escape(high)}</p>'


def _strip(one: Series, line: Timeline, kind: str, values: FloatArray, longest_s: float) -> str:
    """``values``: from 0 to 1, the shade of each piece."""
    cells = []
    for index, value in enumerate(values):
        if np.isnan(value):
            continue
        first, last = (float(edge) / longest_s * _WIDTH for edge in line.edges_s[index : index + 2])
        amount = (
            number(float(line.rows[index])) + " rows"
            if kind == "rows"
            else quantity(float(line.padding[index]), "share")
        )
        when = f"{number(float(line.edges_s[index]))} – {quantity(float(line.edges_s[index + 1]), 's')}"
        cells.append(
            f'<rect x="{first:.1f}" width="{last - first + 0.4:.1f}" height="{_HEIGHT}" '
            f'fill-opacity="{0.04 + 0.96 * float(value):.2f}"><title>{when}: {amount}</title></rect>'
        )
    what = "Rows of decode steps" if kind == "rows" else "Padding"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{what} of {escape(one.label)} over time" class="{class_of(one)}">{"".join(cells)}</svg>'
    )
