"""The numbers of a step, as one flat array that is copied to the device at once, and read there in place.

Every line of them begins at a multiple of 128 bytes, whatever the sizes: kernels are compiled anew for addresses that
are not divisible by 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

#: numbers that a line is filled up to a multiple of
_ALIGNED = 16

#: lines of the numbers of a decode step, one value for each row
ID, PLACE, POSITION, SLOT, LENGTH, TEMPERATURE, KEY = range(7)
COLUMNS = 7


class PromptSizes(NamedTuple):
    """Room for so many packed tokens, in so many chunks of prompts and rows of one token, of which so many sample.

    Of a graph there may be less of each than there is room for.
    """

    tokens: int
    chunks: int
    rows: int
    samples: int


class PromptLines(NamedTuple):
    """The numbers of a step with prompts: views of one flat array or tensor of int64.

    ``ids``, ``positions``, ``slots`` and ``places`` are those of the packed tokens: rows of one token, then chunks of
    prompts. An id of -1 is the last token that was sampled at its place. ``chunk_places``, ``starts`` and ``offsets``
    (one more) belong to the chunks, ``row_places`` and ``lengths`` to the rows. ``sampled`` are indices of packed
    tokens, ``sampling_places`` whose they are; ``temperatures`` has the bits of float32.
    """

    ids: Any
    positions: Any
    slots: Any
    places: Any
    chunk_places: Any
    starts: Any
    offsets: Any
    row_places: Any
    lengths: Any
    sampled: Any
    sampling_places: Any
    temperatures: Any
    keys: Any


def line_length(count: int) -> int:
    """Numbers that a line of ``count`` takes."""
    return -(-count // _ALIGNED) * _ALIGNED


def prompt_numbers(sizes: PromptSizes) -> int:
    """Numbers that a step of so much room has."""
    return sum(map(line_length, _counts(sizes)))


def prompt_lines(numbers: Any, sizes: PromptSizes) -> PromptLines:
    """``numbers`` (an array or a tensor, flat) as lines."""
    counts = _counts(sizes)
    begins = accumulate(map(line_length, counts), initial=0)
    return PromptLines(*(numbers[begin : begin + count] for begin, count in zip(begins, counts, strict=False)))


def _counts(sizes: PromptSizes) -> Sequence[int]:
    tokens, chunks, rows, samples = sizes
    return [tokens] * 4 + [chunks, chunks, chunks + 1, rows, rows] + [samples] * 4
