"""Steps as graphs of fixed sizes: which sizes there are, and which one a step takes.

A GPU replays a recorded graph of kernels faster than a host can launch them, but a graph has a fixed number of rows.
A decode step of R rows runs as the smallest graph of G >= R rows, and G - R rows are computed for nothing. So does a
step of prompts alone, of so many tokens in at most :data:`MOST_CHUNKS` chunks, and a step of prompts beside rows, of so
many tokens with those of the rows; one of more tokens than the largest graph runs as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

#: dense where rows are few, and a row more is a larger share
_SIZES = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 1025, 32))


#: chunks of prompts that a graph has room for
MOST_CHUNKS = 16
#: tokens of prompts, likewise
_TOKENS = (16, 32, 64, 96, *range(128, 512, 64), *range(512, 2048, 128), *range(2048, 8193, 256))


class Graphs(NamedTuple):
    """Sizes of graphs, increasing; of none where steps run as they are. Named as the settings of a scheduler."""

    graph_rows: tuple[int, ...] = ()
    """rows of decode steps"""
    graph_tokens: tuple[int, ...] = ()
    """tokens of steps of prompts"""
    graph_mixed: tuple[int, ...] = ()
    """tokens of steps of prompts beside rows"""


NO_GRAPHS = Graphs()


def is_row(start: int, tokens: int) -> bool:
    """Whether a chunk is a row of one token behind others."""
    return tokens == 1 and start > 0


def prompt_graph_sizes(most: int) -> tuple[int, ...]:
    """The numbers of prompt tokens that an engine has graphs for, increasing, up to ``most``."""
    return tuple(size for size in _TOKENS if size <= most)


def graph_tokens_for(tokens: int, chunks: int, sizes: Sequence[int]) -> int:
    """Tokens of the graph that a step with so many ``chunks`` of prompts runs as; 0 where there is none.

    Beside rows a chunk of one token behind others is one of them (:func:`is_row`).
    """
    return graph_rows_for(tokens, sizes) if chunks <= MOST_CHUNKS else 0


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
