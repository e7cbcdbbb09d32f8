"""Covering arrays of strength two: few rows in which every pair of values of two parameters occurs.

Most faults take at most two settings to show (NIST, Kuhn et al.), and pairs grow with the square of the values where
combinations grow with their product. Greedy, and without a random source: the same rows every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

Row = dict[str, Any]
#: ((parameter, value), (another parameter, value)), in the order of the parameters
Pair = tuple[tuple[str, Any], tuple[str, Any]]


class CoveringArray(NamedTuple):
    """``rows`` cover every pair but the ``impossible`` ones, for which no valid row was found."""

    rows: list[Row]
    impossible: list[Pair]


def all_pairs(parameters: Mapping[str, Sequence[Any]]) -> list[Pair]:
    """Every pair of values of two parameters."""
    return [
        ((a, x), (b, y))
        for a, b in combinations(parameters, 2)
        for x, y in product(parameters[a], parameters[b])
    ]  # fmt: skip


def pairs_in(row: Row) -> list[Pair]:
    """The pairs that a row covers. Its keys must be in the order of the parameters."""
    return list(combinations(row.items(), 2))


def covering_array(
    parameters: Mapping[str, Sequence[Any]], valid: Callable[[Row], bool] = lambda row: True
) -> CoveringArray:
    """Rows that cover all pairs of ``parameters`` of which a ``valid`` row exists.

    The first value of each parameter is its default. A row for a pair is looked for among those in which up to two
    more parameters differ from their defaults; then every other parameter takes the value that covers most.
    """
    return _Search(parameters, valid).run()


class _Search:
    def __init__(self, parameters: Mapping[str, Sequence[Any]], valid: Callable[[Row], bool]) -> None:
        self._parameters = parameters
        self._valid = valid
        self._known: dict[tuple[Any, ...], bool] = {}
        # as a dict, which keeps the order
        self._open: dict[Pair, None] = dict.fromkeys(all_pairs(parameters))

    def run(self) -> CoveringArray:
        rows: list[Row] = []
        impossible: list[Pair] = []
        while self._open:
            pair = next(iter(self._open))
            seed = next(filter(self._holds, self._rows_with(pair)), None)
            if seed is None:
                impossible.append(pair)
                del self._open[pair]
                continue
            row = self._improved(seed, {pair[0][0], pair[1][0]})
            for covered in pairs_in(row):
                self._open.pop(covered, None)
            rows.append(row)
        return CoveringArray(rows, impossible)

    def _holds(self, row: Row) -> bool:
        key = tuple(row.values())
        if key not in self._known:
            self._known[key] = self._valid(row)
        return self._known[key]

    def _rows_with(self, pair: Pair) -> Iterator[Row]:
        """Rows that have the pair, the plainest first."""
        plain = {name: values[0] for name, values in self._parameters.items()} | dict(pair)
        others = [name for name in self._parameters if name not in dict(pair)]
        for changes in range(3):
            for names in combinations(others, changes):
                for values in product(*(self._parameters[name][1:] for name in names)):
                    yield {**plain, **dict(zip(names, values, strict=True))}

    def _improved(self, row: Row, fixed: set[str]) -> Row:
        """``row`` with other values, which cover more open pairs, wherever it stays valid; twice round."""
        for name in [name for name in self._parameters if name not in fixed] * 2:
            best = self._gain(row, name)
            for value in self._parameters[name]:
                other = {**row, name: value}
                gain = self._gain(other, name)
                if gain > best and self._holds(other):
                    row, best = other, gain
        return row

    def _gain(self, row: Row, name: str) -> int:
        """Open pairs that the value of ``name`` takes part in."""
        place = list(row).index(name)
        items = list(row.items())
        mine = items[place]
        before = sum((other, mine) in self._open for other in items[:place])
        return before + sum((mine, other) in self._open for other in items[place + 1 :])
