"""Still charts of what happened inside a run: requests as lanes, lengths, and KV memory, over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.charts import MUTED, STATE_STROKES, STYLE, Series, short, svg_of
from reports.chronicle import COHORT, DECODE, OTHERS, PREEMPTED, QUEUED, MemoryOverTime, Story

#: lanes and lines that a still chart has room for
MOST_LANES, MOST_LINES = 40, 70
#: of the sequences in a chart of lengths, so many are shown to their end
_MOST_ENDED = 0.85
#: from this share of the memory on, a chart shows all of it
_FULL = 0.3
_TIME = "seconds since the first arrival"
_WAITS = (COHORT, OTHERS, PREEMPTED)


def evenly(stories: Sequence[Story], most: int) -> list[Story]:
    """At most ``most`` of them, at even distances."""
    if len(stories) <= most:
        return list(stories)
    return [stories[index] for index in np.unique(np.linspace(0, len(stories) - 1, most).astype(np.int64))]


def lanes_chart(name: str, label: str, stories: Sequence[Story], origin_ns: int) -> str:
    """A lane for each request, from its arrival on, in the colour of what it is at."""
    shown = evenly(stories, MOST_LANES)
    height = 0.55 + 0.135 * len(shown)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.2, height))
        axes = figure.add_axes((0.035, 0.42 / height, 0.955, 1 - 0.5 / height))
        boxes: dict[int, list[Path]] = {}
        for lane, story in enumerate(shown):
            start_ns = story.start_ns
            for piece in story.pieces:
                half = 0.15 if piece.state == QUEUED else 0.4
                left, right = ((time - origin_ns) / 1e9 for time in (start_ns, piece.end_ns))
                corners = [(left, lane - half), (right, lane - half), (right, lane + half), (left, lane + half)]
                boxes.setdefault(piece.state, []).append(Path([*corners, corners[0]], closed=True))
                start_ns = piece.end_ns
        # a path for each state, however many lanes there are
        for state, paths in sorted(boxes.items()):
            whole = Path.make_compound_path(*paths)
            axes.add_patch(PathPatch(whole, facecolor=STATE_STROKES[state], linewidth=0))
        axes.autoscale_view()
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks([])
        axes.set_xlim(left=0)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel(_TIME)
        return svg_of(figure, name, f"Requests of {label} from arrival to end")


def lengths_chart(name: str, label: str, stories: Sequence[Story], origin_ns: int, wide: bool) -> str:
    """The length of each sequence over time: it rises while it is served, and is level while it waits."""
    shown = _neighbours(stories)
    width, height = (13.2, 3.4) if wide else (6.5, 3.0)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        left, foot = 0.52 / width, 0.45 / height
        axes = figure.add_axes((left, foot, 1 - left - 0.1 / width, 1 - foot - 0.1 / height))
        lines: dict[int, list[Path]] = {}
        for story in shown:
            points = _points(story, origin_ns)
            for (state, first), (_, second) in pairwise(points):
                lines.setdefault(COHORT if state in _WAITS else DECODE, []).append(Path([first, second]))
        for state, paths in sorted(lines.items(), reverse=True):
            whole = Path.make_compound_path(*paths)
            axes.add_patch(PathPatch(whole, fill=False, edgecolor=STATE_STROKES[state], linewidth=1.1))
        axes.autoscale_view()
        # where most of them have ended
        ends = sorted((story.end_ns - origin_ns) / 1e9 for story in shown)
        if ends:
            starts = min((story.admitted_ns - origin_ns) / 1e9 for story in shown)
            axes.set_xlim(starts, max(ends[int(_MOST_ENDED * (len(ends) - 1))], starts + 1e-9))
        _tidy(axes)
        axes.set_xlabel(_TIME)
        axes.set_ylabel("tokens")
        return svg_of(figure, name, f"Lengths of sequences of {label} over time")


def _neighbours(stories: Sequence[Story]) -> list[Story]:
    """Some that were admitted one after the other, in the middle of the run."""
    served = [story for story in stories if len(story.pieces) > 1]
    served.sort(key=lambda story: (story.admitted_ns, story.number))
    first = max(0, len(served) - MOST_LINES) // 2
    return served[first : first + MOST_LINES]


def _points(story: Story, origin_ns: int) -> list[tuple[int, tuple[float, float]]]:
    """(what comes next, (seconds, tokens)) at each turn, from the end of the queue on."""
    points: list[tuple[int, tuple[float, float]]] = []
    tokens, time_ns = story.pieces[0].tokens, story.start_ns
    for piece in story.pieces:
        if piece.state != QUEUED:
            points.append((piece.state, ((time_ns - origin_ns) / 1e9, tokens)))
        tokens, time_ns = piece.tokens, piece.end_ns
    points.append((-1, ((time_ns - origin_ns) / 1e9, tokens)))
    return points


def memory_chart(name: str, one: Series, memory: MemoryOverTime, origin_ns: int, wide: bool) -> str:
    """KV slots reserved and held above, fragmentation below."""
    edges = (memory.edges_ns - origin_ns) / 1e9
    with mpl.rc_context(STYLE):
        width = 13.2 if wide else 6.5
        figure = Figure(figsize=(width, 3.2))
        left, across = 0.62 / width, 1 - 0.72 / width
        above = figure.add_axes((left, 0.48, across, 0.47))
        capacity, most = float(np.max(memory.reserved + memory.free)), float(np.max(memory.reserved))
        full = most > _FULL * capacity
        if full:
            above.axhline(capacity, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        above.stairs(memory.reserved, edges, color=one.stroke, alpha=0.22, fill=True)
        above.stairs(memory.held, edges, color=one.stroke, alpha=0.5, fill=True)
        above.stairs(memory.held, edges, color=one.stroke, linewidth=1.2, baseline=None)
        above.set_xlim(0, edges[-1])
        above.set_ylim(0, 1.12 * capacity if full else 1.25 * max(1.0, most))
        above.set_title(
            f"{'dots: all' if full else 'of'} {capacity:,.0f}", loc="right", fontsize=8.5, color=MUTED, pad=2
        )
        _tidy(above)
        above.tick_params(labelbottom=False)
        above.set_ylabel("token slots")
        below = figure.add_axes((left, 0.15, across, 0.26))
        with np.errstate(divide="ignore", invalid="ignore"):
            internal = np.where(memory.reserved > 0, 1 - memory.held / memory.reserved, np.nan)
            external = np.where(memory.free > 0, memory.unusable / memory.free, np.nan)
        below.stairs(internal, edges, color=one.stroke, linewidth=1.3, baseline=None)
        below.stairs(external, edges, color=one.stroke, linewidth=1.3, linestyle=(0, (2, 1.5)), baseline=None)
        top = float(np.nanmax([np.nanmax(internal, initial=0), np.nanmax(external, initial=0)]))
        below.set_xlim(0, edges[-1])
        below.set_ylim(0, 1.1 * max(0.05, min(1.0, top)))
        _tidy(below)
        below.set_xlabel(_TIME)
        below.yaxis.set_major_locator(MaxNLocator(3))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        return svg_of(figure, name, f"KV memory of {one.label} over time: reserved, held, and fragmentation")


def _tidy(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
