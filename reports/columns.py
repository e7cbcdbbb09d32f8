"""A table that grows: rows come in one by one and are kept as columns, some bytes a cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

#: rows of a chunk of columns
CHUNK_ROWS = 4096
#: what an empty cell is once read
UNSET = -1

Cell = int | str | None


class Columns:
    """The columns ``names`` of a table, those of ``text`` as text and all others as integers.

    ``optional`` ones may be ``None``, which becomes :data:`UNSET`. Rows are tuples in the order of ``names``; they wait
    until there are enough of them to be turned into columns together.
    """

    def __init__(self, names: tuple[str, ...], text: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        self._names = names
        self._text: dict[str, list[str]] = {name: [] for name in names if name in text}
        self._numbers: dict[str, list[npt.NDArray[np.int64] | npt.NDArray[np.int32]]] = {
            name: [] for name in names if name not in text
        }
        self._optional = optional
        self._rows: list[tuple[Cell, ...]] = []

    def extend(self, rows: list[tuple[Cell, ...]]) -> None:
        """Add rows."""
        self._rows += rows
        if len(self._rows) >= CHUNK_ROWS:
            self._turn()

    def _turn(self) -> None:
        if not self._rows:
            return
        for name, values in zip(self._names, zip(*self._rows, strict=True), strict=True):
            if name in self._text:
                self._text[name].extend(values)
                continue
            if name in self._optional:
                values = tuple(UNSET if value is None else value for value in values)
            self._numbers[name].append(_packed(np.array(values, np.int64)))
        self._rows = []

    def frame(self) -> pd.DataFrame:
        """All rows, as :mod:`reports.rows` reads them from a file. The columns are handed over: nothing is left."""
        self._turn()
        return pd.DataFrame(dict(self._taken()), columns=list(self._names), copy=False)

    def _taken(self) -> Iterator[tuple[str, pd.Series | npt.NDArray[np.int64]]]:
        for name in self._names:
            if name in self._text:
                yield name, pd.Series(self._text.pop(name), dtype=str)
            else:
                chunks = self._numbers.pop(name)
                yield name, np.concatenate(chunks, dtype=np.int64) if chunks else np.empty(0, np.int64)


def _packed(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | npt.NDArray[np.int32]:
    """``values`` in half of the bytes, if they are small enough."""
    narrow = np.iinfo(np.int32)
    if int(values.min()) >= narrow.min and int(values.max()) <= narrow.max:
        return values.astype(np.int32)
    return values
