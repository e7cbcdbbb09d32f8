"""Still charts of figures: dots with their intervals, and figures against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.charts import INK, LINE, LINEAR_RATIO, STYLE, Series, short, svg_of

#: width of a row's text, in inches a character
_CHARACTER = 0.066
#: changes beyond which factors are shown
_LARGEST_SHARE = 2.0


@dataclass(frozen=True)
class Dot:
    """A value of a row; ``low`` and ``high`` are the ends of its interval, ``None`` where it has none."""

    row: str
    one: Series
    value: float
    low: float | None = None
    high: float | None = None


def dots_chart(name: str, label: str, dots: Sequence[Dot], x: str, width: float = 6.5) -> str:
    """Relative changes beside none, a row for each figure, one dot for each run.

    In per cent, or as factors on a logarithmic axis where some are several times as much.
    """
    rows = list(dict.fromkeys(dot.row for dot in dots))
    colours = list(dict.fromkeys(dot.one.colour for dot in dots))
    height = 0.5 + len(rows) * max(0.24, 0.1 * len(colours) + 0.1)
    left = (0.15 + _CHARACTER * max(map(len, rows))) / width
    factors = max(dot.value for dot in dots) > _LARGEST_SHARE
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left, 0.42 / height, 0.98 - left, 1 - 0.5 / height))
        axes.axvline(1, color=INK, linewidth=0.9)
        step = 0.7 / len(colours)
        for dot in dots:
            place = rows.index(dot.row) + step * (colours.index(dot.one.colour) - (len(colours) - 1) / 2)
            if dot.low is not None and dot.high is not None and 1 + dot.low > 0:
                axes.plot([1 + dot.low, 1 + dot.high], [place] * 2, color=dot.one.stroke, linewidth=2.4, alpha=0.5)
            axes.plot([1 + dot.value], [place], "o", color=dot.one.stroke, markersize=4.6)
        axes.set_yticks(range(len(rows)), labels=rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(False, axis="y")
        if factors:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(_PerCent(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _factor(value) if factors else _percent(value)))
        axes.set_xlabel(x)
        return svg_of(figure, name, label)


class _PerCent(MaxNLocator):
    """Round places less one: those of changes."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        return np.asarray(super().tick_values(vmin - 1, vmax - 1)) + 1


def _percent(factor: float) -> str:
    share = round(100 * (factor - 1), 6)
    return f"{share:+g} %".replace("-", "−") if share else "0"


def _factor(factor: float) -> str:
    return f"× {short(factor)}" if factor > 1 else f"÷ {short(1 / factor)}" if factor < 1 else "1"


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
        least, most = (extreme(spot.latency_ms for spot in spots) for extreme in (min, max))
        if least > 0 and most / least > LINEAR_RATIO:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.08)
        if not joined:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(7))
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
