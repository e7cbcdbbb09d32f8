"""Throughput against latency: a point for each of several runs, or for each window of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.charts import Series
from reports.figures import figure_at, interval_at
from reports.markup import section
from reports.page.dots import Spot, spots_chart
from reports.page.interactive import interactive, stroke
from reports.page.series import legend, tail_of
from reports.run import look_up
from reports.windows import windows_of

_LATENCIES = ("ttft_ms", "e2e_ms", "tpot_ms")


def trade_off_section(series: Sequence[Series]) -> str:
    """Nothing where there is no point to show."""
    if len(series) == 1:
        return _windows(series[0])
    figures = [f"{key}.{statistic}" for key in _LATENCIES for statistic in ("mean", "p50", tail_of(series, key))]
    figures = [path for path in figures if sum(_spot(one, path) is not None for one in series) > 1]
    if not figures:
        return ""
    first = figures[0]
    title = figure_at(first).title
    still = spots_chart(
        "trade", f"Throughput against {title}", [spot for one in series if (spot := _spot(one, first))], title, False
    )
    titles = {figure_at(path).title: path for path in figures}
    spots = [_data(one.label, one, {title: _spot(one, path) for title, path in titles.items()}) for one in series]
    lead = "A point for each run, with the 95 % interval of the latency: the further to the lower right, the better."
    if any(one.dashed for one in series):
        lead += " Rings: simulated."
    return _section(lead, legend(series), still, spots, list(titles), joined=False)


def _section(
    lead: str, keys: str, still: str, spots: Sequence[dict[str, Any]], titles: Sequence[str], joined: bool
) -> str:
    known = [spot for spot in spots if spot["figures"]]
    drawn = interactive("spots", still, {"spots": known, "joined": joined}, titles)
    return section("Throughput against latency", lead, f'{keys}<div class="card drawing">{drawn}</div>')


def _data(label: str, one: Series, spots: Mapping[str, Spot | None]) -> dict[str, Any]:
    """A point for the page's script, with each latency that it has."""
    known = {title: spot for title, spot in spots.items() if spot is not None}
    throughput = next((spot.tokens_per_s for spot in known.values()), 0.0)
    figures = {title: [spot.latency_ms, spot.low_ms, spot.high_ms] for title, spot in known.items()}
    return {"label": label, "stroke": stroke(one), "hollow": one.dashed, "x": throughput, "figures": figures}


def _spot(one: Series, path: str) -> Spot | None:
    summary = one.run.summary
    throughput, latency = look_up(summary, "output_tokens_per_s"), look_up(summary, path)
    if throughput is None or latency is None:
        return None
    low, high = interval_at(summary, path) or (None, None)
    return Spot(one, throughput, latency, low, high)


def _windows(one: Series) -> str:
    windows = windows_of(one.run)
    if len(windows) < 3:
        return ""
    names = {"TTFT P50": "ttft_p50_ms", "E2E P50": "e2e_p50_ms"}
    spots_of = {
        title: [Spot(one, window.output_tokens_per_s, getattr(window, name)) for window in windows]
        for title, name in names.items()
    }
    title = next(iter(names))
    label = f"Throughput against {title} in windows of time"
    still = spots_chart("trade", label, spots_of[title], title, True)
    spots = [
        _data(f"{window.start_s:.4g} – {window.end_s:.4g} s, n = {window.n}", one,
              {title: spots_of[title][place] for title in names})
        for place, window in enumerate(windows)
    ]  # fmt: skip
    seconds = windows[0].end_s - windows[0].start_s
    lead = (
        f"A point for each {seconds:.3g} s of the run, joined in order of time: the output tokens per second of the "
        "requests that finished in it, and the median of how long they had taken."
    )
    return _section(lead, "", still, spots, list(names), joined=True)
