"""What a step of one kind costs, fitted to recorded ones: candidates, and the one that errs least on steps left out.

| form | |
|---|---|
| ``linear`` | a rising line through knots, and what attention reads and multiplies |
| ``filled`` | the same, and rows that wait for the longest one of those that a device works on at a time |
| ``floored`` | the larger of that and of a floor |
| ``grouped`` | of decode steps ``filled``, with weights of their own for few rows, more and many |

All are scaled so that they add up to the times they were fitted to: a simulation adds up steps, and a fit to the
typical step makes each stall a loss. A step of more than :data:`INTERRUPTION` times its fit is none of that: a kernel
was compiled, or the machine was taken away. Such steps are counted and left out.

A recording has thousands of some decode steps and a few of others, and a fit to all of them is one to the former: of
those of about as many rows and tokens no more than :data:`MOST_ALIKE` count. Steps with prompts that run as graphs and
those whose kernels are launched one by one have fits of their own, where that is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.least_squares import Floats, floored_weights, one_thread, to_the_mean, weights_of
from simulator.step_cost import (
    COST_COLUMNS,
    FILL_TERMS,
    GROUPED_TERMS,
    GROUPS,
    PLAIN_TERMS,
    Line,
    Quality,
    StepCost,
    Term,
    axis,
)

#: fewer recorded steps than this make neither a fit nor a knot
FEWEST_STEPS = 3
#: steps between two knots, at least, where steps are no graphs
STEPS_A_KNOT = 6
#: parts that steps are held out in, and blocks of neighbours that are dealt to them
FOLDS, BLOCKS = 5, 50
#: a step that takes this many times what is predicted was interrupted; not if that is more than this share of them
INTERRUPTION, MOST_INTERRUPTED = 10.0, 0.05
#: the same of a host's work beside a running step, which varies less: it does not wait for the device
STALL = 3.0
#: a form takes the place of a simpler one if its error is at most this share of the other's
BETTER = 0.98
#: decode steps that are much like each other, at most, of those that are fitted to
MOST_ALIKE = 20
#: graphs, and steps that are none, from which on they may be fitted apart
FEWEST_APART = 20
#: steps of every group of rows, at least, that have so many tokens a row of their own, for groups to be told apart
FEWEST_LONG, LONG_CONTEXT = 20, 1000
#: values that the spread of a step's time is kept in
SPREAD = 64
#: a host that is away for longer was doing something else: kernels are compiled in half a second
LONGEST_STALL_NS = 100e6


class Found(NamedTuple):
    """``max(floor, matrix @ weights)``."""

    floor: float
    weights: Floats

    def of(self, matrix: Floats) -> Floats:
        """Predicted times."""
        predicted: Floats = np.maximum(matrix @ self.weights, self.floor)
        return predicted

    def scaled(self, matrix: Floats, times: Floats) -> Found:
        """So that the predictions for ``matrix`` add up to ``times``."""
        factor = to_the_mean(self.of(matrix), times)
        return Found(self.floor * factor, self.weights * factor)


@dataclass(frozen=True)
class Candidate:
    """A form of cost: whether it has the terms of :data:`~simulator.step_cost.FILL_TERMS`, and how it is solved.

    ``grouped``: it is of decode steps, and has the terms of :data:`~simulator.step_cost.GROUPED_TERMS`.
    ``solve`` is given a matrix ``[steps, columns]``, times, and what was found for steps much like these, if anything.
    It may find that steps are not of this form.
    """

    form: str
    fills: bool
    solve: Callable[[Floats, Floats, Found | None], Found | None]
    grouped: bool = False


def _plain(matrix: Floats, times: Floats, near: Found | None) -> Found | None:
    return Found(0.0, weights_of(matrix, times))


def _floored(matrix: Floats, times: Floats, near: Found | None) -> Found | None:
    found = floored_weights(matrix, times, near)
    return None if found is None else Found(*found)


LINEAR = Candidate("linear", False, _plain)
#: of device time, the simpler first. Host time is linear: its parts come one after the other
CANDIDATES = (
    LINEAR,
    Candidate("filled", True, _plain),
    Candidate("floored", True, _floored),
    Candidate("grouped", False, _plain, grouped=True),
)


def fit(
    kind: str,
    table: Any,
    times: Floats,
    candidates: Iterable[Candidate] = CANDIDATES,
    interruption: float = INTERRUPTION,
    most_alike: int = MOST_ALIKE,
    apart: bool = True,
) -> StepCost:
    """The cost of ``times`` (nanoseconds) that the steps of ``table`` took, of the best of ``candidates``.

    Steps that run as graphs and those that do not may have fits of their own where they are to be told ``apart``.

    ``table`` has :data:`~simulator.step_cost.COST_COLUMNS` and ``graph_rows`` as attributes, a value for each step, in
    the order recorded. The first candidate is taken where there are too few steps to compare.
    """
    candidates = tuple(candidates)
    together = _fit_all(kind, table, times, candidates, interruption, most_alike)
    graphs = np.asarray(table.graph_rows) > 0
    if not apart or kind == "decode" or min(graphs.sum(), (~graphs).sum()) < FEWEST_APART:
        return together
    as_graph, eager = (
        _fit_all(kind, _Rows(table, which), times[which], candidates, interruption, most_alike)
        for which in (graphs, ~graphs)
    )
    quality = as_graph.quality.beside(eager.quality, float(times[graphs].sum()), float(times[~graphs].sum()))
    both = replace(as_graph, eager=eager, quality=quality)
    return both if _better(both, together) else together


def _fit_all(
    kind: str, table: Any, times: Floats, candidates: Sequence[Candidate], interruption: float, most_alike: int
) -> StepCost:
    """One cost of all steps of ``table``, see :func:`fit`."""
    chosen: StepCost | None = None
    with one_thread():
        kept = _uninterrupted(_design(kind, table, len(times), LINEAR).matrix, times, interruption)
        even = _even(table, kept, most_alike) if kind == "decode" else kept
        for candidate in candidates:
            if candidate.grouped and not _tells_groups(kind, table, kept):
                continue
            cost = _fit_one(kind, candidate, _design(kind, table, len(times), candidate), kept, even, times)
            if cost is not None and (chosen is None or _better(cost, chosen)):
                chosen = cost
    if chosen is None:
        raise ValueError(f"no candidate fits {kind} steps; the first must fit any")
    return chosen


def _better(cost: StepCost, other: StepCost) -> bool:
    error, others = cost.quality.held_out, other.quality.held_out
    return error is not None and others is not None and error <= BETTER * others


def _fit_one(kind: str, candidate: Candidate, design: _Design, kept: Any, even: Any, times: Floats) -> StepCost | None:
    """A fit to the steps ``even`` of those ``kept``; the others were interrupted."""
    matrix, recorded = design.matrix[even], times[even]
    found = candidate.solve(matrix, recorded, None)
    if found is None:
        return None
    held_out = _held_out(matrix, recorded, candidate, found)
    found = found.scaled(matrix, recorded)
    error, bias = (None, None) if held_out is None else (mean_error(held_out, recorded), _bias(held_out, recorded))
    predicted = found.of(matrix)
    beyond = times[~kept] - found.of(design.matrix[~kept])
    stalls = beyond[beyond <= LONGEST_STALL_NS]
    quality = Quality(
        len(times), mean_error(predicted, recorded), error, bias, int((~kept).sum()), float(times[~kept].sum()),
        _spread(predicted if held_out is None else held_out, recorded), len(stalls) / len(times), _condensed(stalls),
    )  # fmt: skip
    named = dict(zip(design.names, map(float, found.weights[len(design.knots) :]), strict=True))
    return StepCost(kind, _line(design.knots, found.weights), named, quality, found.floor, candidate.form)


def _uninterrupted(matrix: Floats, times: Floats, interruption: float) -> Any:
    """``bool[steps]``: those that are part of the fit."""
    expected = np.maximum(matrix @ weights_of(matrix, times), 0.02 * max(float(times.mean()), 1.0))
    kept = times <= interruption * expected
    return kept if (~kept).mean() <= MOST_INTERRUPTED else np.ones(len(times), dtype=bool)


def _tells_groups(kind: str, table: Any, kept: Any) -> bool:
    """Whether every group of rows has steps of long contexts: what a group has not met it would go on from blindly."""
    if kind not in GROUPED_TERMS:
        return False
    rows = np.asarray(table.rows_computed)
    own = np.asarray(table.kv_tokens_read) - np.asarray(table.shared_kv_tokens)
    long = kept & (own >= LONG_CONTEXT * rows)
    groups = np.bincount(np.searchsorted(GROUPS, rows[long]), minlength=len(GROUPS) + 1)
    return bool(groups.min() >= FEWEST_LONG)


def _even(table: Any, kept: Any, most: int) -> Any:
    """``bool[steps]``: of those ``kept``, ``most`` of each sort at most, from the first recorded to the last."""
    sizes = (table.rows_computed, table.longest_context, table.kv_tokens_read)
    octaves = [np.log2(np.maximum(np.asarray(size, dtype=np.float64), 1.0)) for size in sizes]
    sorts = np.column_stack([
        np.floor(4 * octaves[0]), np.floor(octaves[1]), np.floor(octaves[2]), np.asarray(table.shared_kv_tokens) > 0,
    ])  # fmt: skip
    _, sort = np.unique(sorts, axis=0, return_inverse=True)
    even = np.zeros(len(kept), dtype=bool)
    for place in range(sort.max() + 1):
        alike = np.flatnonzero((sort == place) & kept)
        count = min(most, len(alike))
        even[alike[np.arange(count) * len(alike) // max(1, count)]] = True
    return even


class _Rows:
    """Some rows of a table of steps."""

    def __init__(self, table: Any, which: Any) -> None:
        for name in (*COST_COLUMNS, "graph_rows"):
            setattr(self, name, np.asarray(getattr(table, name))[which])


@dataclass(frozen=True)
class _Design:
    """``matrix`` ``float64[steps, knots + names]``: of each knot how far a step is past it, then the terms."""

    knots: tuple[float, ...]
    names: tuple[str, ...]
    matrix: Floats


def _design(kind: str, table: Any, count: int, form: Candidate) -> _Design:
    over = np.asarray(axis(kind, table), dtype=np.float64)
    knots = _knots(over, np.asarray(table.graph_rows) > 0)
    columns = [np.ones(count)]
    columns += [np.clip((over - low) / (high - low), 0.0, 1.0) for low, high in pairwise(knots)]
    names: list[str] = []
    kept: list[Floats] = []
    ungrouped: dict[str, Term] = {**PLAIN_TERMS[kind], **(FILL_TERMS[kind] if form.fills else {})}
    wanted = GROUPED_TERMS[kind] if form.grouped else ungrouped
    for name, term in wanted.items():
        amounts = np.asarray(term(table), dtype=np.float64)
        # what is the same in all steps is the constant's, and what is another term all over again is that term's
        if np.ptp(amounts) > 1e-3 * amounts.max(initial=0.0) and not any(_alike(amounts, other) for other in kept):
            names.append(name)
            kept.append(amounts)
    return _Design(knots, tuple(names), np.column_stack([*columns, *kept]))


def _alike(a: Floats, b: Floats) -> bool:
    return bool(np.abs(a * b.sum() - b * a.sum()).max() <= 1e-9 * np.abs(a * b.sum()).max())


def _knots(over: Floats, graphs: npt.NDArray[np.bool_]) -> tuple[float, ...]:
    """From the least to the most, each with steps enough since the one before: sizes of ``graphs``, and for the steps
    that are none powers of two."""
    values = np.sort(over)
    least, most = float(values[0]), float(values[-1])
    if least == most:
        return (least,)
    wanted = {}
    if not graphs.all():
        doubled = 2.0 ** np.arange(np.ceil(np.log2(over[~graphs].min() + 1)), np.log2(over[~graphs].max()))
        wanted = dict.fromkeys(doubled.tolist(), STEPS_A_KNOT)
    wanted |= dict.fromkeys(over[graphs].tolist(), FEWEST_STEPS)
    knots = [least]
    for knot in sorted(size for size in wanted if least < size < most):
        if np.searchsorted(values, knot, "right") - np.searchsorted(values, knots[-1], "right") >= wanted[knot]:
            knots.append(knot)
    if len(knots) > 1 and len(values) - np.searchsorted(values, knots[-1], "right") < FEWEST_STEPS:
        knots.pop()
    return (*knots, most)


def _line(knots: tuple[float, ...], weights: Floats) -> Line:
    values = np.cumsum(weights[: len(knots)])
    # on from the upper half of what was recorded
    half = max((place for place, knot in enumerate(knots) if knot <= knots[-1] / 2), default=0)
    beyond = 0.0 if len(knots) == 1 else float(values[-1] - values[half]) / (knots[-1] - knots[half])
    return Line(knots, tuple(map(float, values)), beyond)


def mean_error(predicted: Floats, times: Floats) -> float:
    """Mean |error| as a share of the mean time."""
    return float(np.abs(predicted - times).mean() / max(times.mean(), 1.0))


def _bias(predicted: Floats, times: Floats) -> float:
    return float((predicted.sum() - times.sum()) / max(times.sum(), 1.0))


def _spread(predicted: Floats, times: Floats) -> tuple[float, ...]:
    """Means of equal parts of the ratios in rising order, scaled to a mean of 1."""
    means = np.array(_condensed(times / np.maximum(predicted, 1.0)))
    mean = float(means.mean())
    return tuple((means / mean).tolist()) if mean > 0 else (1.0,)


def _condensed(values: Floats) -> tuple[float, ...]:
    """Means of at most ``SPREAD`` equal parts of them, in rising order."""
    parts = np.array_split(np.sort(values), min(SPREAD, len(values))) if len(values) else []
    return tuple(float(part.mean()) for part in parts)


def _held_out(matrix: Floats, times: Floats, candidate: Candidate, near: Found) -> Floats | None:
    """What a fit to the others predicts for each fifth of the steps; ``None`` where there are too few.

    Neighbours are left out together: steps that follow each other are nearly the same one.
    """
    count = len(times)
    if count < 2 * matrix.shape[1] or count < 2 * FOLDS:
        return None
    folds = np.arange(count) * min(BLOCKS, count) // count % FOLDS
    predicted = np.empty(count)
    for fold in range(FOLDS):
        out = folds == fold
        found = candidate.solve(matrix[~out], times[~out], near)
        if found is None:
            return None
        predicted[out] = found.scaled(matrix[~out], times[~out]).of(matrix[out])
    return predicted
