"""Throughput against latency: a point for each of several runs, or for each window of one."""

from __future__ import annotations

from collections.abc import Sequence

from reports.charts import Series
from reports.figures import figure_at, interval_at
from reports.markup import section
from reports.page.dots import Spot, spots_chart
from reports.page.series import legend, tail_of
from reports.run import look_up
from reports.windows import windows_of


def trade_off_section(series: Sequence[Series]) -> str:
    """Nothing where there is no point to show."""
    if len(series) == 1:
        return _windows(series[0])
    cards = []
    for path in (f"ttft_ms.{tail_of(series, 'ttft_ms')}", "e2e_ms.p50"):
        spots = [spot for one in series if (spot := _spot(one, path)) is not None]
        if len(spots) > 1:
            title = figure_at(path).title
            chart = spots_chart(f"trade-{path.replace('.', '-')}", f"Throughput against {title}", spots, title, False)
            cards.append(f'<div class="card">{chart}</div>')
    if not cards:
        return ""
    lead = "A point for each run, with the 95 % interval of the latency: the further to the lower right, the better."
    if any(one.dashed for one in series):
        lead += " Rings: simulated."
    return section(
        "Throughput against latency", lead, f'{legend(series)}<div class="charts two">{"".join(cards)}</div>'
    )


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
    cards = []
    for title, name in (("TTFT P50", "ttft_p50_ms"), ("E2E P50", "e2e_p50_ms")):
        spots = [Spot(one, window.output_tokens_per_s, getattr(window, name)) for window in windows]
        chart = spots_chart(f"trade-{name}", f"Throughput against {title} in windows of time", spots, title, True)
        cards.append(f'<div class="card">{chart}</div>')
    seconds = windows[0].end_s - windows[0].start_s
    lead = (
        f"A point for each {seconds:.3g} s of the run, joined in order of time: the output tokens per second of the "
        "requests that finished in it, and the median of how long they had taken."
    )
    return section("Throughput against latency", lead, f'<div class="charts two">{"".join(cards)}</div>')
