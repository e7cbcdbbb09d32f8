"""The runs of a page: their order, their colours, and what marks them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.agreement import Agreement
from reports.charts import SERIES_COLOURS, Series
from reports.comparison import labels
from reports.effects import groups_of
from reports.figures import Figure
from reports.run import Run, look_up

#: runs that charts with a curve or a card for each have room for
MOST_CHARTED = 8


def series_of(runs: Sequence[Run], agreements: Sequence[Agreement]) -> list[Series]:
    """Every run once, a simulated twin right after the run that it stands for and in the same colour."""
    twin_of = {id(agreement.measured): agreement.simulated for agreement in agreements}
    twins = {id(agreement.simulated) for agreement in agreements}
    leading = [run for run in runs if id(run) not in twins]
    leading += [a.measured for a in agreements if all(a.measured is not run for run in leading)]
    ordered: list[tuple[Run, int, bool]] = []
    for colour, run in enumerate(leading):
        ordered.append((run, colour, False))
        if id(run) in twin_of:
            ordered.append((twin_of[id(run)], colour, True))
    names = labels([run for run, _, _ in ordered])
    return [Series(run, name, colour, twin) for (run, colour, twin), name in zip(ordered, names, strict=True)]


def charted(series: Sequence[Series]) -> tuple[list[Series], str]:
    """The runs that charts with a curve or a card for each have room for, and a sentence where they are not all.

    Of repeats the first; twins stay with their runs.
    """
    leading = [one for one in series if not one.dashed]
    if len(leading) <= MOST_CHARTED:
        return list(series), ""
    of_run = {id(one.run): one for one in leading}
    firsts = [of_run[id(group.runs[0])] for group in groups_of([one.run for one in leading])]
    colours = {one.colour for one in firsts[:MOST_CHARTED]}
    repeats = "one run of each group of repeats, " if len(firsts) < len(leading) else ""
    said = f" Drawn: {repeats}{len(colours)} of {len(leading)} runs."
    return [one for one in series if one.colour in colours], said


def class_of(one: Series) -> str:
    return f"series-{one.colour % SERIES_COLOURS + 1}"


def dot(one: Series) -> str:
    return f'<span class="dot {class_of(one)}"></span>'


def legend(series: Sequence[Series]) -> str:
    """The colours of the runs, and what dashes mean where there are any; nothing for a single run."""
    if len(series) == 1:
        return ""
    twins = any(one.dashed for one in series)
    items = []
    for one in series:
        if not one.dashed:
            style = "dotted" if one.colour >= SERIES_COLOURS else ""
            items.append((f"{style} {class_of(one)}", one.run.label if twins else one.label))
    if twins:
        items += [("", "real"), ("dashed", "simulated")]
    keys = "".join(f'<li><span class="key {kind}"></span>{escape(text)}</li>' for kind, text in items)
    return f'<ul class="legend">{keys}</ul>'


def tail_of(series: Sequence[Series], key: str) -> str:
    """The highest percentile of a latency that every run has enough requests for, or else its maximum."""
    for statistic in ("p99", "p95", "p90"):
        if all(look_up(one.run.summary, f"{key}.{statistic}") is not None for one in series):
            return statistic
    return "max"


def judged(series: Sequence[Series]) -> list[Series]:
    """Who may be best: the real runs, or all where none is real. Simulated and measured times are not mixed."""
    return [one for one in series if not one.run.simulated] or list(series)


def best_of(series: Sequence[Series], figure: Figure) -> Series | None:
    """The run that is best in a figure; ``None`` where no single one is."""
    known = [(one, look_up(one.run.summary, figure.path)) for one in series]
    values = [value for _, value in known if value is not None]
    if figure.better is None or len(values) < 2:
        return None
    best = max(values) if figure.better == "higher" else min(values)
    return next(one for one, value in known if value == best) if values.count(best) == 1 else None


def name_in_table(one: Series, series: Sequence[Series]) -> str:
    """A twin stands right below its run, so that its world is enough; and its run needs none."""
    if one.dashed:
        return one.run.world
    return one.run.label if has_twin(one, series) else one.label


def has_twin(one: Series, series: Sequence[Series]) -> bool:
    return any(other.dashed and other.colour == one.colour for other in series)
