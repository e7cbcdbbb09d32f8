"""A validation matrix in figures: for every cell what the engine did in each round, and what the simulator said.

The error of a figure is (simulated - mean of the rounds) / mean of the rounds. A simulated figure *within the spread*
lies between the lowest and the highest round. Policies are ranked among the cells that differ in nothing else:
Kendall's tau over pairs whose rounds do not overlap, which is all that a ranking by measurement can say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from reports.agreement import SHORTEST_MS
from reports.figures import figure_at
from reports.run import Run, look_up

#: of throughput
RATES = ("output_tokens_per_s", "requests_per_s")
#: latencies and their statistics that a simulation is held to
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
PATHS = (*RATES, *(f"{latency}.{statistic}" for latency in LATENCIES for statistic in STATISTICS))
#: what policies are ranked by: the figure, and whether lower is better
RANKED_BY = {"e2e_ms.mean": True, "ttft_ms.p99": True, "output_tokens_per_s": False}
#: what is aimed at
RATE_TARGET, LATENCY_TARGET, TAU_TARGET = 0.01, 0.03, 0.9


@dataclass(frozen=True)
class Compared:
    """A figure of a cell: what each round gave, and what was simulated."""

    path: str
    rounds: tuple[float, ...]
    simulated: float

    @property
    def mean(self) -> float:
        return math.fsum(self.rounds) / len(self.rounds)

    @property
    def error(self) -> float:
        """Relative to the mean of the rounds."""
        return (self.simulated - self.mean) / self.mean

    @property
    def spread(self) -> float | None:
        """Highest less lowest round, relative to the mean; one round has none."""
        return (max(self.rounds) - min(self.rounds)) / self.mean if len(self.rounds) > 1 else None

    @property
    def within_spread(self) -> bool:
        return min(self.rounds) <= self.simulated <= max(self.rounds)

    @property
    def met(self) -> bool:
        """Whether the error is within its target or the spread."""
        target = RATE_TARGET if self.path in RATES else LATENCY_TARGET
        return abs(self.error) <= target or self.within_spread


@dataclass(frozen=True)
class CellResult:
    """A cell of the matrix; ``replayed``: whether each round's journal gave the same plans and counters."""

    name: str
    model: str
    workload: str
    policy: str
    layout: str
    load: float
    rate_per_s: float
    requests: int
    figures: tuple[Compared, ...]
    replayed: bool

    def figure(self, path: str) -> Compared | None:
        """The figure at ``path``, if both worlds have it."""
        return next((figure for figure in self.figures if figure.path == path), None)

    @property
    def judged(self) -> tuple[Compared, ...]:
        """What a target is set for: at or beyond capacity, throughput alone."""
        return tuple(figure for figure in self.figures if figure.path in RATES or self.load < 1)


def compared(rounds: Sequence[Run], simulated: Run) -> tuple[Compared, ...]:
    """Every figure of :data:`PATHS` that all runs have; latencies under :data:`SHORTEST_MS` are left out."""
    found = []
    for path in PATHS:
        values = [look_up(run.summary, path) for run in (*rounds, simulated)]
        if all(value is not None for value in values):
            figure = Compared(path, tuple(map(float, values[:-1])), float(values[-1]))
            if figure.mean > (SHORTEST_MS if "_ms." in path else 0):
                found.append(figure)
    return tuple(found)


@dataclass(frozen=True)
class Ranking:
    """Of pairs of policies that the measurement tells apart, how many the simulation orders alike; ``ties`` it does
    not tell apart."""

    path: str
    alike: int
    unlike: int
    ties: int

    @property
    def tau(self) -> float | None:
        """Kendall's tau over the pairs that are told apart; ``None`` where there are none."""
        pairs = self.alike + self.unlike
        return (self.alike - self.unlike) / pairs if pairs else None


def ranking(cells: Iterable[CellResult], path: str) -> Ranking:
    """Rank policies by the figure at ``path`` among cells of one model, workload, layout and load.

    Cells that were run once do not count: nobody knows their spread.
    """
    groups: dict[tuple[Any, ...], list[Compared]] = {}
    for cell in cells:
        figure = cell.figure(path)
        if figure is not None and figure.spread is not None:
            groups.setdefault((cell.model, cell.workload, cell.layout, cell.load), []).append(figure)
    alike = unlike = ties = 0
    for figures in groups.values():
        for one, other in combinations(figures, 2):
            if max(one.rounds) >= min(other.rounds) and max(other.rounds) >= min(one.rounds):
                ties += 1
            elif (one.mean < other.mean) == (one.simulated < other.simulated):
                alike += 1
            else:
                unlike += 1
    return Ranking(path, alike, unlike, ties)


def table(cells: Iterable[CellResult]) -> pd.DataFrame:
    """A row for each figure of each cell; times in ms, rates per second, errors and spreads as shares."""
    rows = [
        {
            "model": cell.model, "workload": cell.workload, "policy": cell.policy, "layout": cell.layout,
            "load": cell.load, "rate_per_s": round(cell.rate_per_s, 6), "requests": cell.requests,
            "figure": figure.path, "rounds": len(figure.rounds), "lowest": min(figure.rounds), "mean": figure.mean,
            "highest": max(figure.rounds), "simulated": figure.simulated, "error": round(figure.error, 6),
            "spread": None if figure.spread is None else round(figure.spread, 6),
            "within_spread": int(figure.within_spread),
        }
        for cell in cells
        for figure in cell.figures
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _percent(value: float) -> str:
    return f"{100 * value:+.1f}"


def _cell(figure: Compared | None) -> str:
    if figure is None:
        return ""
    mark = "" if figure.met else " **!**"
    spread = "" if figure.spread is None else f" ({100 * figure.spread:.1f})"
    return f"{_percent(figure.error)}{spread}{mark}"


#: columns of the table of cells: a title and the figure
_SHOWN = (
    ("output tok/s", "output_tokens_per_s"),
    ("TTFT mean", "ttft_ms.mean"), ("TTFT P99", "ttft_ms.p99"),
    ("TPOT mean", "tpot_ms.mean"), ("TPOT P99", "tpot_ms.p99"),
    ("ITL P99", "itl_ms.p99"),
    ("E2E mean", "e2e_ms.mean"), ("E2E P50", "e2e_ms.p50"), ("E2E P99", "e2e_ms.p99"),
)  # fmt: skip


def markdown(cells: Sequence[CellResult]) -> str:
    """The matrix for people: a line on each target, the cells, the figures at a glance, and the rankings."""
    lines = [*verdict_lines(cells), ""]
    lines.append("Error in % of the mean of the rounds (spread of the rounds, highest less lowest, in brackets). "
                 "**!**: beyond its target and outside the spread, where a target is set.")  # fmt: skip
    lines.append("")
    titles = ("model", "workload", "policy", "layout", "load", "requests/s", *(title for title, _ in _SHOWN))
    lines += [_row(titles), _row("---" for _ in titles)]
    for cell in cells:
        shown = [_cell(cell.figure(path)) for _, path in _SHOWN]
        if cell.load >= 1:
            shown = [shown[0], *(text.replace(" **!**", "") for text in shown[1:])]
        about = (cell.model, cell.workload, cell.policy, cell.layout, f"{100 * cell.load:.0f} %")
        lines.append(_row((*about, f"{cell.rate_per_s:.3g}", *shown)))
    titles = (
        "figure",
        "cells",
        "mean size of the error",
        "median",
        "largest",
        "mean spread",
        "within target or spread",
    )
    lines += ["", _row(titles), _row("---" for _ in titles)]
    for path in PATHS:
        figures = [figure for cell in cells for figure in cell.judged if figure.path == path]
        if figures:
            sizes = sorted(abs(figure.error) for figure in figures)
            spreads = [figure.spread for figure in figures if figure.spread is not None]
            spread = f"{100 * math.fsum(spreads) / len(spreads):.1f} %" if spreads else "not known"
            met = sum(figure.met for figure in figures)
            title = figure_at(path).title
            lines.append(
                f"| {title} | {len(figures)} | {100 * math.fsum(sizes) / len(sizes):.1f} % | "
                f"{100 * sizes[len(sizes) // 2]:.1f} % | {100 * sizes[-1]:.1f} % | {spread} | "
                f"{met} of {len(figures)} |"
            )
    return "\n".join(lines) + "\n"


def verdict_lines(cells: Sequence[CellResult]) -> list[str]:
    """A line on each target: how many of the figures meet it."""
    lines = []
    for title, paths, target in (
        ("Throughput", RATES[:1], RATE_TARGET),
        ("Latencies below capacity", PATHS[len(RATES) :], LATENCY_TARGET),
    ):
        figures = [figure for cell in cells for figure in cell.judged if figure.path in paths]
        if figures:
            close = sum(abs(figure.error) <= target for figure in figures)
            met = sum(figure.met for figure in figures)
            mean = math.fsum(abs(figure.error) for figure in figures) / len(figures)
            lines.append(
                f"- {title}: {close} of {len(figures)} figures within {100 * target:.0f} %, {met} within that or the "
                f"spread of the rounds; mean size of the error {100 * mean:.1f} %"
            )
    for path in RANKED_BY:
        found = ranking(cells, path)
        if found.tau is not None:
            lines.append(
                f"- Policies ranked by {figure_at(path).title}: Kendall's tau {found.tau:.2f} over "
                f"{found.alike + found.unlike} pairs that the rounds tell apart ({found.ties} pairs they do not)"
            )
    replays = [cell.replayed for cell in cells]
    lines.append(
        f"- Plans and counters, replayed on the measured clock: equal in every round of {sum(replays)} of "
        f"{len(replays)} cells"
    )
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
