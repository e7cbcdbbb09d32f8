"""A random-looking 64-bit number for any tuple of integers, the same in every process and Python version.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) walks a counter by a
constant and scrambles it; here the counter is reached directly, so that word 17 of stream (seed, index) costs as
little as word 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def scramble(state: int) -> int:
    """SplitMix64's output function: a bijection of the 64-bit integers in which every bit reaches every bit."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def stream_start(*key: int) -> int:
    """The counter at which the stream of ``key`` starts. Any integers; the order of the key matters."""
    state = len(key)
    for part in key:
        state = scramble((state + GOLDEN_GAMMA * ((part & MASK) + 1)) & MASK)
    return state


def word(start: int, position: int) -> int:
    """Word ``position`` (from 0) of the SplitMix64 stream whose state is ``start``."""
    return scramble((start + GOLDEN_GAMMA * (position + 1)) & MASK)


def words(start: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Words ``first`` to ``first + count - 1`` of that stream."""
    positions = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    state = np.uint64(start) + np.uint64(GOLDEN_GAMMA) * positions
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
