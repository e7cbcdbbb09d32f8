"""Who waited: short requests and long ones, one tenant and another, and those that starved."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from reports.charts import Series
from reports.figures import figure_at, number, quantity
from reports.markup import number_cell, row, section, table
from reports.page.dots import waits_chart
from reports.page.series import dot
from reports.run import look_up
from reports.summary import finished, latencies
from reports.waste import column

_PARTS = 10
#: tenants that get a row each
_MOST_TENANTS = 20
_STARVATION = ("longest_wait_s", "longest_gap_s", "over_threshold", "jain_index")


def fairness_section(series: Sequence[Series]) -> str:
    """Nothing where no request finished."""
    shown = [one for one in series if not one.dashed and len(finished(one.run.requests))]
    if not shown:
        return ""
    lines = [(one, waits) for one in shown if (waits := _waits(one.run.requests))]
    chart = f'<div class="card">{waits_chart("waits", lines)}</div>' if lines else ""
    lead = (
        "A policy that lets short requests go first makes long ones wait. Starved: waited, or paused between two "
        "tokens, for longer than the threshold."
    )
    content = f'<div class="charts two">{chart}<div>{_starvation(shown)}</div></div>' if chart else _starvation(shown)
    return section("Fairness and starvation", lead, content + _tenants(shown))


def _waits(requests: pd.DataFrame) -> list[float]:
    """Mean queue time in seconds of each tenth of the finished requests, the shortest first."""
    done = finished(requests)
    if len(done) < 2 * _PARTS:
        return []
    length = column(done, "prompt_tokens") + column(done, "output_tokens")
    queue = latencies(requests).queue[np.argsort(length, kind="stable")]
    return [float(part.mean()) / 1e9 for part in np.array_split(queue, _PARTS)]


def _starvation(series: Sequence[Series]) -> str:
    rows = []
    for one in series:
        cells = []
        for name in _STARVATION:
            path = f"starvation.{name}"
            value = look_up(one.run.summary, path)
            text = quantity(value, figure_at(path).unit)
            share = look_up(one.run.summary, "starvation.share_over_threshold")
            detail = quantity(share, "share") if name == "over_threshold" and share is not None else ""
            cells.append(number_cell(text, detail))
        rows.append(row(dot(one) + escape(one.label), cells))
    titles = [(figure_at(f"starvation.{name}").title, "number") for name in _STARVATION]
    return table([("Run", "first"), *titles], rows)


def _tenants(series: Sequence[Series]) -> str:
    """A row for each tenant of each run, where there are several."""
    rows = []
    for one in series:
        done = finished(one.run.requests)
        tenants = sorted(set(done["tenant"]))
        if len(tenants) < 2:
            continue
        of = latencies(one.run.requests)
        names = done["tenant"].to_numpy()
        tokens = column(done, "output_tokens")
        for tenant in tenants[:_MOST_TENANTS]:
            here = names == tenant
            in_system_s = float(of.e2e[here].sum()) / 1e9
            rows.append(
                row(
                    f"{dot(one)}{escape(tenant or '(none)')}",
                    [
                        number_cell(f"{int(here.sum()):,}"),
                        number_cell(number(float(tokens[here].sum()) / in_system_s) if in_system_s else "–"),
                        number_cell(quantity(float(of.queue[here].mean()) / 1e6, "ms")),
                        number_cell(quantity(float(of.queue[here].max()) / 1e6, "ms")),
                        number_cell(quantity(float(of.e2e[here].mean()) / 1e6, "ms")),
                    ],
                )
            )
        if len(tenants) > _MOST_TENANTS:
            rows.append(row(f"{dot(one)}and {len(tenants) - _MOST_TENANTS} more", [number_cell("")] * 5))
    if not rows:
        return ""
    head = [("Tenant", "first"), ("Requests", "number"), ("Tokens/s in the system", "number"),
            ("Queue time, mean", "number"), ("Queue time, max", "number"), ("E2E, mean", "number")]  # fmt: skip
    return table(head, rows)
