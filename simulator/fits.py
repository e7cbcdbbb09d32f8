"""What a step of one kind costs, fitted to recorded ones: a rising line through knots, and what attention adds.

Matrix products take as long as the weights take to be read, however few rows there are, and then longer with each; a
step that runs as a graph takes as long as the graph. So the time over the rows of the products is a line through
knots that never falls, with a knot for each size of graph where steps ran as graphs. To it come terms that are linear:
the columns that attention multiplies, the KV that it reads, the longest context, which one row waits for.

No weight is negative (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23): more work never costs
less. Deviations count relative to the time of the step, and those of more than half of it the less the larger they are,
so that neither long steps nor a stall decide the fit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from simulator.bounds import ROUNDING_NS, StepFloor

Floats = npt.NDArray[np.float64]

#: columns of a recorded step that a cost is made of
COST_COLUMNS = ("rows_computed", "new_tokens_computed", "kv_columns_computed", "kv_tokens_read", "longest_context",
                "decode_rows", "decode_context_tokens")  # fmt: skip

#: fewer recorded steps than this make neither a fit nor a knot
FEWEST_STEPS = 3
#: steps between two knots, at least, where steps are no graphs
STEPS_A_KNOT = 6
#: a step this share off the fit counts in full, one further off the less the further; fits until that is settled
STALL, ROUNDS = 0.5, 6
#: parts that steps are held out in, and blocks of neighbours that are dealt to them
FOLDS, BLOCKS = 5, 50


class Features(Protocol):
    """What a cost reads of a step, or of many: numbers or arrays."""

    @property
    def rows_computed(self) -> Any: ...
    @property
    def new_tokens_computed(self) -> Any: ...
    @property
    def kv_columns_computed(self) -> Any: ...
    @property
    def kv_tokens_read(self) -> Any: ...
    @property
    def longest_context(self) -> Any: ...
    @property
    def decode_rows(self) -> Any: ...
    @property
    def decode_context_tokens(self) -> Any: ...


def axis(kind: str, features: Features) -> Any:
    """Rows of the matrix products, which the line goes over."""
    return features.rows_computed if kind == "decode" else features.new_tokens_computed


def terms(kind: str, features: Features) -> dict[str, Any]:
    """What else a step of ``kind`` takes time for, by name; one function for recorded steps and for predicted ones."""
    f = features
    if kind == "decode":
        return {"kv_columns": f.kv_columns_computed, "longest_context": f.longest_context}
    decoded = f.decode_context_tokens if kind == "mixed" else 0
    prompts = {
        "kv_columns": f.kv_columns_computed - decoded,
        "kv_tokens": f.kv_tokens_read - decoded,
        "rows": f.rows_computed,
    }
    return prompts if kind == "prefill" else {**prompts, "decode_kv": decoded}


@dataclass(frozen=True)
class Line:
    """Straight between its knots, flat below the first, and with slope ``beyond`` above the last. It never falls."""

    knots: tuple[float, ...]
    values: tuple[float, ...]
    beyond: float

    def at(self, x: float) -> float:
        """The value at ``x``."""
        place = bisect_right(self.knots, x)
        if place == 0:
            return self.values[0]
        if place == len(self.knots):
            return self.values[-1] + self.beyond * (x - self.knots[-1])
        low, high = self.knots[place - 1], self.knots[place]
        share = (x - low) / (high - low)
        return self.values[place - 1] + share * (self.values[place] - self.values[place - 1])

    def floors(self) -> list[tuple[float, float]]:
        """Straight lines (value at 0, >= 0; slope) that are nowhere above: edges of the lower hull, three at most."""
        far = 100 * self.knots[-1] + 1
        hull: list[tuple[float, float]] = []
        for point in [*zip(self.knots, self.values, strict=True), (far, self.at(far))]:
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        edges = [(b[1] - _slope(a, b) * b[0], _slope(a, b)) for a, b in pairwise(hull)]
        # an edge that is below 0 at 0 makes room for the steepest line that is not
        steepest = (0.0, min(value / knot for knot, value in hull))
        rising = [edge if edge[0] >= 0 else steepest for edge in edges]
        return [rising[place] for place in sorted({0, len(edges) // 2, len(edges) - 1})]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


@dataclass(frozen=True)
class StepCost:
    """``line(axis) + sum(weight x term)`` nanoseconds, see :func:`axis` and :func:`terms`.

    ``error`` is the mean of |error| / mean over the ``steps`` that it was fitted to, ``held_out`` the same over steps
    that were left out in turn; ``None`` where there were too few to leave any out.
    """

    kind: str
    line: Line
    weights: Mapping[str, float]
    steps: int
    error: float
    held_out: float | None

    @property
    def constant(self) -> float:
        """What the smallest recorded step takes, attention apart."""
        return self.line.values[0]

    def total(self, features: Features) -> Any:
        """Of one step or of a stretch, whose rows are the same in all steps; not rounded."""
        return self.line.at(axis(self.kind, features)) + self.attention(features)

    def attention(self, features: Features) -> Any:
        """What the terms come to."""
        found = terms(self.kind, features)
        total: Any = 0.0
        for name, weight in self.weights.items():
            total = total + weight * found[name]
        return total

    def totals(self, table: Features) -> Floats:
        """Of every row of a table of steps."""
        rows = np.asarray(axis(self.kind, table), dtype=np.float64)
        total: Floats = np.array([self.line.at(x) for x in rows.tolist()]) + self.attention(table)
        return total

    def floors(self) -> tuple[StepFloor, ...]:
        """What no step can be faster than; each holds. Attention has at least as many columns as it reads tokens."""
        weight = self.weights.get
        column_ns = weight("kv_columns", 0.0) + weight("kv_tokens", 0.0)
        if self.kind == "mixed":
            column_ns = min(column_ns, weight("decode_kv", 0.0))
        return tuple(
            StepFloor(max(0.0, constant - ROUNDING_NS), slope, column_ns) for constant, slope in self.line.floors()
        )


@dataclass(frozen=True)
class Part:
    """The prompts or the decode rows of mixed steps, as steps of their own."""

    rows_computed: Any
    new_tokens_computed: Any
    kv_columns_computed: Any
    kv_tokens_read: Any
    longest_context: Any
    decode_rows: Any = 0
    decode_context_tokens: Any = 0


@dataclass(frozen=True)
class MixedCost:
    """A mixed step put together from the costs of both kinds of step that it is made of, where none was recorded.

    Its tokens, prompts' and decode rows', are one product, as those of a prefill are; it takes no less than the decode
    rows alone. To that, what attention adds for the prompts in a prefill, and for the decode rows in a decode step.
    """

    prefill: StepCost
    decode: StepCost

    def total(self, features: Features) -> Any:
        """See :meth:`StepCost.total`."""
        f, rows, context = features, features.decode_rows, features.decode_context_tokens
        prompts = Part(
            f.rows_computed - rows, f.new_tokens_computed - rows, f.kv_columns_computed - context,
            f.kv_tokens_read - context, f.longest_context,
        )  # fmt: skip
        decodes = Part(rows, rows, context, context, context / max(rows, 1))
        products = max(self.prefill.line.at(f.new_tokens_computed), self.decode.line.at(rows))
        return products + self.prefill.attention(prompts) + self.decode.attention(decodes)


def fit(kind: str, table: Any, times: Floats) -> StepCost:
    """The cost of ``times`` (nanoseconds) that the steps of ``table`` took, with the error on steps left out of it.

    ``table`` has :data:`COST_COLUMNS` and ``graph_rows`` as attributes, a value for each step, in the order recorded.
    """
    design = _design(kind, table, len(times))
    weights = _solve(design.matrix, times)
    error = mean_error(design.matrix @ weights, times)
    line = _line(design.knots, weights)
    named = dict(zip(design.names, map(float, weights[len(design.knots) :]), strict=True))
    return StepCost(kind, line, named, len(times), error, _held_out(design.matrix, times))


@dataclass(frozen=True)
class _Design:
    """``matrix`` ``float64[steps, knots + names]``: of each knot how far a step is past it, then the terms."""

    knots: tuple[float, ...]
    names: tuple[str, ...]
    matrix: Floats


def _design(kind: str, table: Any, count: int) -> _Design:
    over = np.asarray(axis(kind, table), dtype=np.float64)
    as_graphs = kind == "decode" and bool((np.asarray(table.graph_rows) > 0).all())
    knots = _knots(over, as_graphs)
    columns = [np.ones(count)]
    columns += [np.clip((over - low) / (high - low), 0.0, 1.0) for low, high in pairwise(knots)]
    names: list[str] = []
    kept: list[Floats] = []
    for name, value in terms(kind, table).items():
        amounts = np.asarray(value, dtype=np.float64)
        # what is the same in all steps is the constant's, and what is another term all over again is that term's
        if np.ptp(amounts) > 1e-3 * amounts.max(initial=0.0) and not any(_alike(amounts, other) for other in kept):
            names.append(name)
            kept.append(amounts)
    return _Design(knots, tuple(names), np.column_stack([*columns, *kept]))


def _alike(a: Floats, b: Floats) -> bool:
    return bool(np.abs(a * b.sum() - b * a.sum()).max() <= 1e-9 * np.abs(a * b.sum()).max())


def _knots(over: Floats, as_graphs: bool) -> tuple[float, ...]:
    """Sizes of graphs, or powers of two from the least to the most; each with steps enough since the one before."""
    values = np.sort(over)
    least, most = float(values[0]), float(values[-1])
    if least == most:
        return (least,)
    inner = np.unique(values) if as_graphs else 2.0 ** np.arange(np.ceil(np.log2(least + 1)), np.log2(most))
    knots = [least]
    wanted = FEWEST_STEPS if as_graphs else STEPS_A_KNOT
    for knot in inner[(inner > least) & (inner < most)].tolist():
        if np.searchsorted(values, knot, "right") - np.searchsorted(values, knots[-1], "right") >= wanted:
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


def _solve(matrix: Floats, times: Floats) -> Floats:
    """Weights >= 0 of the least relative deviations."""
    scale = np.maximum(matrix.max(axis=0), 1e-9)
    scaled = matrix / scale
    shares = np.ones(len(times))
    least = 0.02 * max(float(times.mean()), 1.0)
    found = np.zeros(matrix.shape[1])
    for _ in range(ROUNDS):
        small: Floats = np.linalg.qr(np.column_stack([scaled, times]) * shares[:, None]).R
        found, _ = nnls(small[:, :-1], small[:, -1])
        predicted = np.maximum(scaled @ found, least)
        beyond = np.abs(times - predicted) / predicted
        shares = np.minimum(1.0, STALL / np.maximum(beyond, STALL)) / predicted
    weights: Floats = found / scale
    return weights


def mean_error(predicted: Floats, times: Floats) -> float:
    """Mean |error| as a share of the mean time."""
    return float(np.abs(predicted - times).mean() / max(times.mean(), 1.0))


def _held_out(matrix: Floats, times: Floats) -> float | None:
    """The error on a fifth of the steps by a fit to the others, over all fifths.

    Neighbours are left out together: steps that follow each other are nearly the same one.
    """
    count = len(times)
    if count < 2 * matrix.shape[1] or count < 2 * FOLDS:
        return None
    folds = np.arange(count) * min(BLOCKS, count) // count % FOLDS
    predicted = np.empty(count)
    for fold in range(FOLDS):
        out = folds == fold
        predicted[out] = matrix[out] @ _solve(matrix[~out], times[~out])
    return mean_error(predicted, times)
