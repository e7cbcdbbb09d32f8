"""Interactive charts: their data for ``assets/charts.js``, over a still chart that is there without scripts."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from reports.charts import Series, curve_of
from reports.markup import asset
from reports.page.series import class_of

#: digits of a number in a chart: finer than a screen shows
_DIGITS = 5


def interactive(kind: str, still: str, data: Mapping[str, Any], choices: Sequence[str] = ()) -> str:
    """A chart of ``SPECS`` in ``assets/charts.js``; ``choices``: what of its data can be shown."""
    options = "".join(f"<option>{escape(choice)}</option>" for choice in choices)
    chooser = (
        f'<div class="controls scripted"><label>Latency <select>{options}</select></label></div>' if options else ""
    )
    return (
        f'<div class="vega" data-vega="{kind}">{chooser}<div class="still">{still}</div>'
        f'<script type="application/json">{json_in_page(data)}</script></div>'
    )


def json_in_page(data: Any) -> str:
    """JSON that cannot end the element that it is in."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


@cache
def vega_runtime() -> str:
    """Vega, packed; once in a page that has interactive charts."""
    source = files("reports").joinpath("assets", "vega.min.js").read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return f'<!--\n{asset("vega.LICENSE")}-->\n<script type="text/plain" id="vega">{packed}</script>'


def cdf_data(key: str, series: Sequence[Series]) -> dict[str, Any]:
    """The curves of :func:`reports.charts.cdf_chart`."""
    curves = []
    for one in series:
        values, share = curve_of(one.run, key)
        if len(values):
            xs, ys = ([float(f"{value:.{_DIGITS}g}") for value in numbers] for numbers in (values, share))
            curves.append({"label": one.label, "xs": xs, "ys": ys, "stroke": stroke(one), "dash": _dashes(one)})
    return {"series": curves}


def stroke(one: Series) -> str:
    """A run's colour, as the style sheet has it."""
    return f"var(--{class_of(one)})"


def _dashes(one: Series) -> list[float]:
    return [] if one.dashes == "solid" else [6, 4] if one.dashed else [2, 3]
