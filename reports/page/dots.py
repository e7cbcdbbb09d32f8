"""Still charts of figures: dots with their intervals, and figures against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.charts import INK, LINE, STYLE, Series, short, svg_of

#: width of a row's text, in inches a character
_CHARACTER = 0.066


@dataclass(frozen=True)
class Dot:
    """A value of a row; ``low`` and ``high`` are the ends of its interval, ``None`` where it has none."""

    row: str
    one: Series
    value: float
    low: float | None = None
    high: float | None = None


def dots_chart(name: str, label: str, dots: Sequence[Dot], x: str, width: float = 6.5) -> str:
    """Shares (shown in %) beside 0, a row for each figure, one dot for each run."""
    rows = list(dict.fromkeys(dot.row for dot in dots))
    colours = list(dict.fromkeys(dot.one.colour for dot in dots))
    height = 0.5 + len(rows) * max(0.24, 0.1 * len(colours) + 0.1)
    left = (0.15 + _CHARACTER * max(map(len, rows))) / width
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left, 0.42 / height, 0.98 - left, 1 - 0.5 / height))
        axes.axvline(0, color=INK, linewidth=0.9)
        step = 0.7 / len(colours)
        for dot in dots:
            place = rows.index(dot.row) + step * (colours.index(dot.one.colour) - (len(colours) - 1) / 2)
            if dot.low is not None and dot.high is not None:
                axes.plot(
                    [100 * dot.low, 100 * dot.high], [place, place], color=dot.one.stroke, linewidth=2, alpha=0.55
                )
            axes.plot([100 * dot.value], [place], "o", color=dot.one.stroke, markersize=4.6)
        axes.set_yticks(range(len(rows)), labels=rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g} %".replace("-", "−") if value else "0")
        )
        axes.set_xlabel(x)
        return svg_of(figure, name, label)


@dataclass(frozen=True)
class Spot:
    """A run, or a window of one, in a chart of throughput against latency."""

    one: Series
    tokens_per_s: float
    latency_ms: float
    low_ms: float | None = None
    high_ms: float | None = None


def spots_chart(name: str, label: str, spots: Sequence[Spot], y: str, joined: bool) -> str:
    """Throughput to the right, latency upwards: the lower right is the better corner. ``joined``: in order of time."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 3.1))
        axes = figure.add_axes((0.1, 0.155, 0.88, 0.815))
        in_seconds = max(spot.latency_ms for spot in spots) >= 10_000
        scale = 1000 if in_seconds else 1
        if joined:
            xs, ys = ([getattr(spot, kind) for spot in spots] for kind in ("tokens_per_s", "latency_ms"))
            axes.plot(xs, [value / scale for value in ys], color=LINE, linewidth=1)
        for spot in spots:
            if spot.low_ms is not None and spot.high_ms is not None:
                ends = [spot.low_ms / scale, spot.high_ms / scale]
                axes.plot([spot.tokens_per_s] * 2, ends, color=spot.one.stroke, linewidth=2, alpha=0.5)
            axes.plot(
                [spot.tokens_per_s], [spot.latency_ms / scale], "o", color=spot.one.stroke, markersize=6.5,
                markerfacecolor="none" if spot.one.dashed else spot.one.stroke,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.margins(x=0.08)
        if not joined:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel("output tokens/s")
        axes.set_ylabel(f"{y}, {'s' if in_seconds else 'ms'}")
        return svg_of(figure, name, label)


def waits_chart(name: str, lines: Sequence[tuple[Series, Sequence[float]]]) -> str:
    """Mean queue time in seconds of equal parts of the requests, from the shortest to the longest."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 2.6))
        axes = figure.add_axes((0.1, 0.19, 0.88, 0.775))
        for one, values in lines:
            places = np.arange(1, len(values) + 1)
            axes.plot(places, values, marker="o", color=one.stroke, linestyle=one.dashes, markersize=3.5)
        axes.set_ylim(bottom=0)
        axes.set_xticks([1, len(lines[0][1])], labels=["shortest tenth", "longest tenth"])
        axes.xaxis.get_majorticklabels()[0].set_horizontalalignment("left")
        axes.xaxis.get_majorticklabels()[1].set_horizontalalignment("right")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel("requests by input and output tokens together")
        axes.set_ylabel("mean queue time, s")
        return svg_of(figure, name, "Mean queue time by the length of requests")
