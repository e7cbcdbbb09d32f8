"""What a step of one kind costs: the larger of a floor and of its work, which is a rising line and some terms.

Matrix products take as long as the weights take to be read, however few rows there are, and then longer with each; a
step that runs as a graph takes as long as the graph. So the time over the rows of the products is a line through
knots that never falls. To it come terms that are linear in what attention does. A step whose kernels are launched one
by one takes no less than the host takes to launch them, whatever they do meanwhile: that is the floor.

No weight is negative: among as many rows and tokens more work never costs less, and what is below the total is so
whatever the step. With more rows beside it a long one may be done sooner, since it is cut into fewer parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simulator.bounds import ROUNDING_NS, StepFloor

Floats = npt.NDArray[np.float64]

#: columns of a recorded step that a cost is made of
COST_COLUMNS = ("rows_computed", "new_tokens_computed", "kv_columns_computed", "kv_tokens_read", "longest_context",
                "decode_rows", "decode_context_tokens", "longest_decode_context", "released",
                "shared_kv_tokens")  # fmt: skip
#: rows that may be as many as a device works on at a time
FILLS = (4, 8, 16, 32, 64, 128, 256)


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
    @property
    def longest_decode_context(self) -> Any: ...
    @property
    def released(self) -> Any: ...
    @property
    def shared_kv_tokens(self) -> Any: ...
    @property
    def graph_rows(self) -> Any: ...


Term = Callable[[Features], Any]


def axis(kind: str, features: Features) -> Any:
    """Rows of the matrix products, which the line goes over."""
    return features.rows_computed if kind == "decode" else features.new_tokens_computed


def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers, or of each pair."""
    # a stretch has few steps, as a rule: for two numbers NumPy takes ten times as long
    return max(a, b) if isinstance(a, int | float) and isinstance(b, int | float) else np.maximum(a, b)


def _share(amount: Any, parts: Any) -> Any:
    """Of each of so many parts, of which there may be none."""
    return amount / larger(parts, 1)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two numbers, or of each pair."""
    return min(a, b) if isinstance(a, int | float) and isinstance(b, int | float) else np.minimum(a, b)


def _decode_fill(device_rows: int) -> Term:
    def term(f: Features) -> Any:
        rows = f.rows_computed
        at_a_time = min(rows, device_rows) if isinstance(rows, int | float) else np.minimum(rows, device_rows)
        return larger(f.kv_columns_computed, f.longest_context * at_a_time)

    return term


def _mixed_fill(device_rows: int) -> Term:
    return lambda f: larger(f.decode_context_tokens, f.longest_decode_context * device_rows)


#: terms of the attention of rows that decode beside each other, by name. A device that works on ``n`` rows at a time
#: takes no less than the mean of them and no less than the longest row (Graham, "Bounds for certain multiprocessing
#: anomalies", 1966): n times that is max(KV columns, n x longest context). Decode kernels cut a context into parts
#: while there are fewer rows than that, so that it is the rows there are which wait for the longest
FILL_TERMS: dict[str, dict[str, Term]] = {
    "decode": {f"fill_{rows}": _decode_fill(rows) for rows in FILLS},
    "prefill": {},
    "mixed": {f"fill_{rows}": _mixed_fill(rows) for rows in FILLS},
}
#: all other terms: columns that attention multiplies, KV that it reads, KV of decode rows that it has not just read for
#: another row, chunks, rows beside them, and sequences whose places have to be cleared. Decode kernels cut a context
#: into as many parts as it is long, up to some length from which on there are no more of them, the more of them the
#: fewer rows there are: what the longest row takes rises fast first, and then slowly. The
#: chunks of a mixed step have no parts: they take what their context does, however few their tokens are.
PLAIN_TERMS: dict[str, dict[str, Term]] = {
    "decode": {
        "kv_columns": lambda f: f.kv_columns_computed,
        "own_kv": lambda f: larger(f.kv_columns_computed - f.shared_kv_tokens, 0),
        "longest_context": lambda f: f.longest_context,
        "longest_512": lambda f: smaller(f.longest_context, 512),
        "longest_2048": lambda f: smaller(f.longest_context, 2048),
        "longest_2048_a_row": lambda f: _share(smaller(f.longest_context, 2048), f.rows_computed),
        "released": lambda f: f.released,
    },
    "prefill": {
        "kv_columns": lambda f: f.kv_columns_computed,
        "kv_tokens": lambda f: f.kv_tokens_read,
        "rows": lambda f: f.rows_computed,
        "released": lambda f: f.released,
    },
    "mixed": {
        "kv_columns": lambda f: f.kv_columns_computed - f.decode_context_tokens,
        "kv_tokens": lambda f: f.kv_tokens_read - f.decode_context_tokens,
        "mean_context": lambda f: _share(
            f.kv_columns_computed - f.decode_context_tokens, f.new_tokens_computed - f.decode_rows
        ),
        "rows": lambda f: f.rows_computed - f.decode_rows,
        "decode_rows": lambda f: f.decode_rows,
        "decode_kv": lambda f: f.decode_context_tokens,
        "own_decode_kv": lambda f: larger(f.decode_context_tokens - f.shared_kv_tokens, 0),
        "released": lambda f: f.released,
    },
}


#: numbers of rows up to which decode kernels are much alike: how they cut contexts, how they are launched and which
#: products they are made of hangs on the rows
GROUPS = (4, 32, 64)
#: terms that know the rows, or have nothing to do with them
_FOR_ALL_ROWS = ("longest_2048_a_row", "released")


def _within(term: Term, above: float, most: float) -> Term:
    """``term`` of steps of so many rows, 0 of others."""

    def within(f: Features) -> Any:
        rows = f.rows_computed
        if isinstance(rows, int | float):
            return term(f) if above < rows <= most else 0
        return np.where((rows > above) & (rows <= most), term(f), 0)

    return within


def _grouped(terms: Mapping[str, Term]) -> dict[str, Term]:
    """``terms``, those of attention once for every group of rows."""
    found = {name: terms[name] for name in _FOR_ALL_ROWS}
    for name in [name for name in terms if name not in _FOR_ALL_ROWS]:
        for place, (above, most) in enumerate(pairwise((0, *GROUPS, float("inf")))):
            found[f"{name}_{place}"] = _within(terms[name], above, most)
    return found


#: terms of attention for each group of rows apart
GROUPED_TERMS: dict[str, dict[str, Term]] = {"decode": _grouped({**PLAIN_TERMS["decode"], **FILL_TERMS["decode"]})}


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
class Quality:
    """How well a cost says what steps take.

    ``error`` is the mean of |error| / mean over the ``steps`` that it was fitted to, ``held_out`` the same over steps
    that were left out in turn, and ``bias`` (predicted - recorded) / recorded of their sum; ``None`` where there were
    too few to leave any out. ``interruptions``: steps that took so much longer than any like them that they are no
    part of the fit, and ``interrupted_ns`` what they took in all; ``stalled`` is the share of steps that were away for
    no longer than a stall is, and ``stalls`` how much more than predicted they took. ``spread``: what a step took /
    what was predicted, equally likely values in rising order whose mean is 1, of steps that were left out.
    """

    steps: int
    error: float
    held_out: float | None = None
    bias: float | None = None
    interruptions: int = 0
    interrupted_ns: float = 0.0
    spread: tuple[float, ...] = (1.0,)
    stalled: float = 0.0
    stalls: tuple[float, ...] = ()

    def larger(self, other: Any, mean: Any) -> Any:
        """Mean of the larger of ``other`` and of a time that is ``mean`` on average and spread as these are."""
        shares, means = self._larger
        share = np.asarray(other) / np.maximum(mean, 1)
        # at least the one and the other: rounded, the mean of the spread is not quite 1
        found = np.maximum(np.maximum(np.interp(share, shares, means) * mean, other), mean)
        return found if found.ndim else float(found)

    def beside(self, other: Quality, took: float, others: float) -> Quality:
        """That of both sorts of steps, which ``took`` so long in all and ``others``; they vary as these do."""

        def both(one: float, two: float) -> float:
            return (one * took + two * others) / max(took + others, 1.0)

        def known(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else both(one, two)

        return replace(
            self, steps=self.steps + other.steps, error=both(self.error, other.error),
            held_out=known(self.held_out, other.held_out), bias=known(self.bias, other.bias),
            interruptions=self.interruptions + other.interruptions,
            interrupted_ns=self.interrupted_ns + other.interrupted_ns,
        )  # fmt: skip

    @cached_property
    def _larger(self) -> tuple[Floats, Floats]:
        """What the mean of the larger is for a constant of each value of the spread; straight between them."""
        spread = np.array(self.spread)
        return spread, np.maximum(spread[:, None], spread[None, :]).mean(axis=1)


@dataclass(frozen=True)
class StepCost:
    """``max(floor, line(axis) + sum(weight x term))`` nanoseconds; see :func:`axis` and :data:`PLAIN_TERMS`.

    ``form``: which of the candidates it is, see :mod:`simulator.fits`. ``eager``: of steps whose kernels are launched
    one by one, where those were told apart from graphs.
    """

    kind: str
    line: Line
    weights: Mapping[str, float]
    quality: Quality = field(compare=False)
    floor: float = 0.0
    form: str = "linear"
    eager: StepCost | None = None

    @property
    def constant(self) -> float:
        """What the smallest recorded step takes, attention apart."""
        return max(self.floor, self.line.values[0])

    def total(self, features: Features) -> Any:
        """Of one step or of a stretch, whose rows are the same in all steps; not rounded."""
        if self.eager is not None and not features.graph_rows:
            return self.eager.total(features)
        work = self.line.at(axis(self.kind, features)) + self.attention(features)
        return larger(work, self.floor) if self.floor else work

    def attention(self, features: Features) -> Any:
        """What the terms come to."""
        total: Any = 0.0
        for weight, term in self._weighted:
            total = total + weight * term(features)
        return total

    @cached_property
    def _weighted(self) -> tuple[tuple[float, Term], ...]:
        found = {**PLAIN_TERMS[self.kind], **FILL_TERMS[self.kind], **GROUPED_TERMS.get(self.kind, {})}
        return tuple((weight, found[name]) for name, weight in self.weights.items() if weight)

    def __getstate__(self) -> dict[str, Any]:
        # terms are functions, which other processes find by their names
        return {name: value for name, value in vars(self).items() if name != "_weighted"}

    def totals(self, table: Features) -> Floats:
        """Of every row of a table of steps."""
        rows = np.asarray(axis(self.kind, table), dtype=np.float64)
        line = np.array([self.line.at(x) for x in rows.tolist()])
        total: Floats = np.maximum(line + np.asarray(self.attention(table), dtype=np.float64), self.floor)
        if self.eager is not None:
            total = np.where(np.asarray(table.graph_rows) > 0, total, self.eager.totals(table))
        return total

    def floors(self) -> tuple[StepFloor, ...]:
        """What no step can be faster than; each holds. Attention has at least as many columns as it reads tokens."""

        def weight(name: str, default: float) -> float:
            """Of all groups of rows the least, where a term has a weight for each."""
            groups = [self.weights.get(f"{name}_{place}", default) for place in range(len(GROUPS) + 1)]
            return self.weights.get(name, min(groups))

        fills = sum(weight(f"fill_{rows}", 0.0) for rows in FILLS)
        column_ns = weight("kv_columns", 0.0) + weight("kv_tokens", 0.0)
        own_ns = weight("own_kv", 0.0)
        if self.kind == "mixed":
            decode_ns = weight("decode_kv", 0.0) + fills
            own_ns = max(0.0, min(column_ns - decode_ns, weight("own_decode_kv", 0.0)))
            column_ns = min(column_ns, decode_ns)
        else:
            column_ns += fills
        found = [
            StepFloor(max(0.0, value - ROUNDING_NS), slope, column_ns, own_ns) for value, slope in self.line.floors()
        ]
        if self.floor:
            found.append(StepFloor(max(0.0, self.floor - ROUNDING_NS), 0.0, 0.0))
        if self.eager is not None:
            found = [floor.below(other) for floor in found for other in self.eager.floors()]
        return tuple(found)


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
    longest_decode_context: Any = 0
    released: Any = 0
    shared_kv_tokens: Any = 0
    graph_rows: Any = 0


@dataclass(frozen=True)
class MixedCost:
    """A mixed step put together from the costs of both kinds of step that it is made of, where none was recorded.

    Its tokens, prompts' and decode rows', are one product, as those of a prefill are; it takes no less than the decode
    rows alone. To that, what attention adds for the prompts in a prefill, and for the decode rows in a decode step. It
    has the floor of a prefill.
    """

    prefill: StepCost
    decode: StepCost

    @property
    def quality(self) -> Quality:
        """That of a prefill, which most of a mixed step is."""
        return self.prefill.quality

    def total(self, features: Features) -> Any:
        """See :meth:`StepCost.total`."""
        f, rows, context = features, features.decode_rows, features.decode_context_tokens
        prompts = Part(
            f.rows_computed - rows, f.new_tokens_computed - rows, f.kv_columns_computed - context,
            f.kv_tokens_read - context, f.longest_context, released=f.released,
        )  # fmt: skip
        # files from before it was recorded have 0
        longest, mean = f.longest_decode_context, context / max(rows, 1)
        longest = (longest or mean) if isinstance(longest, int | float) else np.where(longest > 0, longest, mean)
        decodes = Part(rows, rows, context, context, longest, shared_kv_tokens=f.shared_kv_tokens)
        eager = None if f.graph_rows else self.prefill.eager
        prefill = self.prefill if eager is None else eager
        products = max(prefill.line.at(f.new_tokens_computed), self.decode.line.at(rows))
        work = products + prefill.attention(prompts) + self.decode.attention(decodes)
        return larger(work, max(prefill.floor, self.decode.floor))
