"""Decode steps as graphs of fixed sizes: which sizes there are, and which one a step takes.

A GPU replays a recorded graph of kernels faster than a host can launch them, but a graph has a fixed number of rows.
A step of R rows runs as the smallest graph of G >= R rows, and G - R rows are computed for nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

#: dense where rows are few, and a row more is a larger share
_SIZES = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 1025, 32))


def graph_sizes(most: int) -> tuple[int, ...]:
    """The numbers of rows that an engine has graphs for, increasing, when a step has at most ``most`` rows (>= 1)."""
    return (*(size for size in _SIZES if size < most), most)


def resized(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """What the engine that had graphs of ``sizes`` would have for ``most`` rows; none where it had none."""
    if not sizes:
        return ()
    if tuple(sizes) == graph_sizes(sizes[-1]):
        return graph_sizes(most)
    return (*(size for size in sizes if size < most), most)


def graph_rows_for(rows: int, sizes: Sequence[int]) -> int:
    """Rows of the graph that a decode step of ``rows`` rows runs as; 0 where no graph of ``sizes`` is large enough."""
    place = bisect_left(sizes, rows)
    return sizes[place] if place < len(sizes) else 0
