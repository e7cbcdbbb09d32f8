"""Still charts as inline SVG: the same bytes for the same run, in the page's own fonts and colours, light or dark.

Colours are written as placeholders that become CSS variables, so that the page's style sheet decides; text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports.run import Run
from reports.summary import latencies
from reports.waste import column, step_sums

FloatArray = npt.NDArray[np.float64]

#: series colours that the style sheet defines; further series use them again with other dashes
SERIES_COLOURS = 8
#: colours of what a request is at; see :data:`reports.chronicle.STATES`
STATE_COLOURS = 7
_PLACEHOLDERS = {
    **{f"#a1000{i}": f"var(--series-{i})" for i in range(1, SERIES_COLOURS + 1)},
    **{f"#a3000{i}": f"var(--state-{i})" for i in range(STATE_COLOURS)},
    "#a20001": "var(--ink)",
    "#a20002": "var(--muted)",
    "#a20003": "var(--line)",
}
STATE_STROKES = tuple(f"#a3000{i}" for i in range(STATE_COLOURS))
INK, MUTED, LINE = "#a20001", "#a20002", "#a20003"

#: of matplotlib: its own defaults, whatever a user's matplotlibrc says, and what is ours
STYLE: Any = {
    **{name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith(("backend", "interactive"))},
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.labelsize": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}

#: points of a curve and pieces of a time axis: finer than a screen shows
_CURVE_POINTS = 300
_TIME_PIECES = 160
#: widest ratio of largest to smallest value that a linear axis still shows well
LINEAR_RATIO = 40


@dataclass(frozen=True)
class Series:
    """A run in a chart: its colour (from 0), and whether it is drawn dashed (a simulated twin)."""

    run: Run
    label: str
    colour: int
    dashed: bool

    @property
    def stroke(self) -> str:
        return f"#a1000{self.colour % SERIES_COLOURS + 1}"

    @property
    def dashes(self) -> tuple[float, tuple[float, ...]] | str:
        """Dashed twins; and dotted where the colours are used a second time."""
        if self.dashed:
            return (0, (3.2, 2.0))
        return "solid" if self.colour < SERIES_COLOURS else (0, (1.2, 1.6))


def latency_values(run: Run, key: str) -> FloatArray:
    """Every request's latency in milliseconds (``ttft_ms``, ``tpot_ms``, ``e2e_ms``, ...), where it is defined."""
    values = latencies(run.requests).in_ms()[key]
    return values[~np.isnan(values)]


def cdf_chart(name: str, title: str, key: str, series: Sequence[Series]) -> str | None:
    """The cumulative distribution of a latency for each run; ``None`` if no run has a value."""
    curves = [(one, *curve_of(one.run, key)) for one in series]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.3, 2.85))
        axes = figure.add_axes((0.115, 0.165, 0.865, 0.81))
        for one, values, share in curves:
            axes.step(values, share, where="post", color=one.stroke, linestyle=one.dashes)
        least = min(values[values > 0].min(initial=np.inf) for _, values, _ in curves)
        largest = max(values.max() for _, values, _ in curves)
        if np.isfinite(least) and largest / least > LINEAR_RATIO:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if largest / least > 1000 else (1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(6))
        in_seconds = largest >= 10_000
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value / (1000 if in_seconds else 1))))
        axes.set_xlabel("s" if in_seconds else "ms")
        axes.set_ylim(0, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1], labels=["0", "25 %", "50 %", "75 %", "90 %", "100 %"])
        return svg_of(
            figure, name, f"Cumulative distribution of {title}: {', '.join(one.label for one, _, _ in curves)}"
        )


def curve_of(run: Run, key: str) -> tuple[FloatArray, FloatArray]:
    """Values (ms) and the share of requests up to each, at most :data:`_CURVE_POINTS` of them, from (first, 0) on."""
    if key == "itl_ms":
        if run.gaps is None or not run.gaps.count:
            return np.empty(0), np.empty(0)
        values, share = run.gaps.curve()
        values = values / 1e6
    else:
        values = np.sort(latency_values(run, key))
        share = np.arange(1, len(values) + 1) / max(1, len(values))
    if not len(values):
        return values, share
    if len(values) > _CURVE_POINTS:
        # evenly by rank and by value, so that neither the steep part nor the tail is lost
        by_rank = np.linspace(0, len(values) - 1, _CURVE_POINTS // 2).astype(np.int64)
        by_value = np.searchsorted(values, np.linspace(values[0], values[-1], _CURVE_POINTS // 2)).clip(
            0, len(values) - 1
        )
        keep = np.unique(np.concatenate([by_rank, by_value]))
        values, share = values[keep], share[keep]
    return np.concatenate([values[:1], values]), np.concatenate([[0.0], share])


@dataclass(frozen=True)
class Timeline:
    """A run cut into equal pieces of time: ``edges_s[n + 1]``, and for each piece the mean rows of a decode step, the
    share of padding (NaN where no step ran), and at each edge the requests waiting and running."""

    edges_s: FloatArray
    rows: FloatArray
    padding: FloatArray
    waiting: FloatArray
    running: FloatArray


def timeline_of(run: Run, pieces: int = _TIME_PIECES) -> Timeline | None:
    """What happened when; ``None`` for a run without a step."""
    if not len(run.steps) or not len(run.requests):
        return None
    start, end = column(run.steps, "start_ns"), column(run.steps, "end_ns")
    origin = int(column(run.requests, "arrival_ns").min())
    edges = np.linspace(origin, int(end.max()), pieces + 1)
    sums = step_sums(run.steps)
    here = sums.decodes
    steps = _spread(start[here], end[here], sums.repeat[here], edges)
    rows = _spread(start[here], end[here], sums.decode_rows[here], edges)
    of_decode = sums.kind == "decode"
    useful = np.where(of_decode, sums.decode.attention_useful, sums.prefill.linear_useful)
    computed = np.where(of_decode, sums.decode.attention_computed, sums.prefill.linear_computed)
    # each step's own share of padding, weighted by its time: prefill and decode slots are no common unit
    share = np.where(computed > 0, 1 - useful / np.maximum(computed, 1), 0.0)
    busy = _spread(start, end, end - start, edges)
    wasted = _spread(start, end, share * (end - start), edges)
    served = run.requests[run.requests["outcome"] != "rejected"]
    arrived = _count_up_to(column(served, "arrival_ns"), edges)
    left = _count_up_to(column(served, "finish_ns"), edges)
    admitted_ns = column(served, "first_scheduled_ns")
    admitted = _count_up_to(np.where(admitted_ns < 0, column(served, "finish_ns"), admitted_ns), edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Timeline(
            edges_s=(edges - origin) / 1e9,
            rows=np.where(steps > 1e-9, rows / steps, np.nan),
            padding=np.where(busy > 0, wasted / busy, np.nan),
            waiting=arrived - admitted,
            running=admitted - left,
        )


def _spread(
    start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], amount: npt.NDArray[Any], edges: FloatArray
) -> FloatArray:
    """How much of ``amount`` falls into each piece, if each step spends its own evenly from its start to its end."""
    if not len(start):
        return np.zeros(len(edges) - 1)
    order = np.argsort(start, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(amount[order], dtype=np.float64)])
    times = np.column_stack([start[order], end[order]]).ravel()
    reached = np.column_stack([total[:-1], total[1:]]).ravel()
    pieces: FloatArray = np.diff(np.interp(edges, np.maximum.accumulate(times), reached))
    return pieces


def _count_up_to(times: npt.NDArray[np.int64], edges: FloatArray) -> FloatArray:
    return np.searchsorted(np.sort(times), edges, side="right").astype(np.float64)


#: what is drawn over time, by name
PANELS = {"requests": "Requests waiting and running", "rows": "Rows of a decode step", "padding": "Padding"}

Drawn = Sequence[tuple[Series, Timeline]]


def timeline_chart(
    name: str, drawn: Drawn, panels: Sequence[str], scale: Sequence[Timeline], width_inches: float = 4.3
) -> str:
    """Some of :data:`PANELS`, one below the other: a run, and its simulated twin as dashes.

    The axes are as long as ``scale`` needs, so that charts with the same one can be compared. A single panel has no
    title.
    """
    stacked = len(panels) > 1
    panel_inches, gap_inches, foot_inches = (1.0, 0.3, 0.45) if stacked else (2.1, 0.1, 0.45)
    height = foot_inches + len(panels) * (panel_inches + gap_inches)
    left, right = 0.47 / width_inches, 0.09 / width_inches
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width_inches, height))
        for index, panel in enumerate(panels):
            bottom = foot_inches + (len(panels) - 1 - index) * (panel_inches + gap_inches)
            axes = figure.add_axes((left, bottom / height, 1 - left - right, panel_inches / height))
            for one, line in drawn:
                _DRAW[panel](axes, one, line)
            if stacked:
                axes.set_title(PANELS[panel], loc="left", fontsize=8.5, color=INK, pad=4)
            axes.set_xlim(0, max(float(line.edges_s[-1]) for line in scale))
            axes.set_ylim(0, 1.08 * max(_top(panel, line) for line in scale))
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=panel != "padding"))
            unit = (lambda value, _: f"{100 * value:.0f} %") if panel == "padding" else (lambda value, _: short(value))
            axes.yaxis.set_major_formatter(FuncFormatter(unit))
            if index < len(panels) - 1:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("seconds since the first arrival")
        return svg_of(figure, name, f"Over time: {', '.join(one.label for one, _ in drawn)}")


def _top(panel: str, line: Timeline) -> float:
    """The largest value that a panel must show."""
    if panel == "requests":
        return max(1.0, float((line.waiting + line.running).max()))
    if panel == "rows":
        return max(2.0, float(np.nanmax(line.rows, initial=0)))
    return max(0.05, float(np.nanmax(line.padding, initial=0)))


def _draw_requests(axes: Axes, one: Series, line: Timeline) -> None:
    """All requests as a line; below it those that run, in a darker shade than those that wait."""
    total = line.waiting + line.running
    axes.plot(line.edges_s, total, color=one.stroke, linestyle=one.dashes, linewidth=1.3)
    if not one.dashed:
        axes.fill_between(line.edges_s, line.running, color=one.stroke, alpha=0.28, linewidth=0)
        axes.fill_between(line.edges_s, line.running, total, color=one.stroke, alpha=0.10, linewidth=0)


def _draw_pieces(axes: Axes, one: Series, edges_s: FloatArray, values: FloatArray) -> None:
    axes.stairs(values, edges_s, color=one.stroke, linestyle=one.dashes, linewidth=1.3, baseline=None, clip_on=False)
    if not one.dashed:
        axes.stairs(np.nan_to_num(values), edges_s, color=one.stroke, alpha=0.16, fill=True)


_DRAW: dict[str, Callable[[Axes, Series, Timeline], None]] = {
    "requests": _draw_requests,
    "rows": lambda axes, one, line: _draw_pieces(axes, one, line.edges_s, line.rows),
    "padding": lambda axes, one, line: _draw_pieces(axes, one, line.edges_s, line.padding),
}


def beside_chart(
    name: str, title: str, labels: Sequence[str], published: Sequence[float], ours: Sequence[float],
    errors: Sequence[float],
) -> str:  # fmt: skip
    """Published values (rings) and ours (dots, with their statistical errors), a line for each label."""
    height = 0.5 + 0.24 * len(labels)
    places = np.arange(len(labels))[::-1]
    left = min(0.5, 0.03 + 0.0155 * max(map(len, labels)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.3, height))
        axes = figure.add_axes((left, 0.4 / height, 0.96 - left, 1 - 0.48 / height))
        axes.hlines(places, np.minimum(published, ours), np.maximum(published, ours), color=LINE, linewidth=2)
        axes.errorbar(ours, places, xerr=errors, fmt="none", ecolor="#a10001", elinewidth=1.1)
        axes.plot(published, places, "o", markerfacecolor="none", markeredgecolor=INK, markersize=6.5)
        axes.plot(ours, places, "o", color="#a10001", markersize=3.8)
        values = [value for value in (*published, *ours) if value > 0]
        if values and max(values) / min(values) > LINEAR_RATIO:
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_yticks(places, labels=list(labels))
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel("ring: published, dot: here")
        return svg_of(figure, name, f"{title}: published values beside ours")


def curves_chart(
    name: str,
    title: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float], bool]],
    x: str,
    y: str,
    counts: bool = False,
) -> str:
    """Lines as (label, x, y, whether it steps), each with its label at its start.

    ``counts``: of whole numbers, from 0 on, in a chart as wide as the page.
    """
    width, height = (13.2, 2.2) if counts else (4.3, 2.85)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        left, right, foot, top = 0.4946 / width, 0.3655 / width, 0.47025 / height, 0.12825 / height
        axes = figure.add_axes((left, foot, 1 - left - right, 1 - foot - top))
        starts: list[tuple[float, float]] = []
        for index, (label, xs, ys, steps) in enumerate(curves):
            colour = f"#a1000{index % SERIES_COLOURS + 1}"
            axes.plot(xs, ys, color=colour, drawstyle="steps-post" if steps else "default")
            start = (xs[0], ys[0])
            # one below the other where lines begin together
            offset = 2 - 12 * starts.count(start) if counts else 2
            axes.annotate(label, start, xytext=(4, offset), textcoords="offset points", color=colour)
            starts.append(start)
        if counts:
            axes.set_ylim(0, 1.2 * max(max(ys) for _, _, ys, _ in curves))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlim(left=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return svg_of(figure, name, f"{title}: {', '.join(label for label, *_ in curves)}")


def trade_off_chart(
    name: str, title: str, others: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]],
    marked: Sequence[tuple[str, float, float]], x: str, y: str,
) -> str:  # fmt: skip
    """Points by two figures: those that another one beats in both (dots), those that none does (joined by a line), and
    some of them with their names."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.4))
        axes = figure.add_axes((0.105, 0.135, 0.875, 0.84))
        if others:
            axes.plot(*zip(*others, strict=True), "o", color=MUTED, markersize=2.6, alpha=0.6)
        if front:
            ordered = sorted(front)
            axes.plot(*zip(*ordered, strict=True), "o-", color="#a10001", markersize=4.4, linewidth=1.2)
        for label, at_x, at_y in marked:
            axes.plot([at_x], [at_y], "o", markerfacecolor="none", markeredgecolor=INK, markersize=8)
            axes.annotate(label, (at_x, at_y), xytext=(7, 5), textcoords="offset points", fontsize=8.5)
        axes.margins(x=0.12, y=0.12)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return svg_of(figure, name, f"{title}: {len(front)} of {len(front) + len(others)} points that none beats")


def moves_chart(name: str, title: str, moves: Sequence[tuple[str, Sequence[float]]], x: str) -> str:
    """For each label the changes (shares) that moving it makes: dots left and right of 0, the furthest joined to it."""
    height = 0.5 + 0.26 * len(moves)
    places = np.arange(len(moves))[::-1]
    left = min(0.42, 0.04 + 0.013 * max((len(label) for label, _ in moves), default=1))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, height))
        axes = figure.add_axes((left, 0.42 / height, 0.975 - left, 1 - 0.5 / height))
        for place, (_, changes) in zip(places, moves, strict=True):
            values = [100 * change for change in changes]
            axes.hlines([place], min(0.0, *values), max(0.0, *values), color=LINE, linewidth=5)
            axes.plot(values, [place] * len(values), "o", color="#a10001", markersize=4)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(places, labels=[label for label, _ in moves])
        axes.set_ylim(-0.6, len(moves) - 0.4)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %"))
        axes.set_xlabel(x)
        return svg_of(figure, name, title)


def short(value: float) -> str:
    """A number at a tick."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def svg_of(figure: Figure, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element: no prolog, no metadata, ids that no other chart of the page has."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id=")', rf"\g<1>{name}-", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    # finer than a screen shows, and the last digits may differ between machines
    text = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
    text = re.sub(r"(font-family|font-weight|font-style): [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for placeholder, colour in _PLACEHOLDERS.items():
        text = text.replace(placeholder, colour)
    opening = re.compile(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    marks = f'data-name="{name}" role="img" aria-label="{escaped}"'
    return opening.sub(lambda match: f'{head}viewBox="{match[1]}" {marks}>', text, count=1)
