"""What a token is drawn with, and what is said of it: plain numbers, for processes with torch and without.

The key of a row's noise is a pure function of (seed, position). Its hash needs integer ``*``, ``^`` and ``>>`` only, on
32-bit words carried in int64, so that a GPU kernel can produce the very same (:mod:`engine.sampling`). Its multipliers
are below 2**31: no product leaves 63 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from engine.logit_edits import Edits
from scheduler.request import SamplingParams

WORD = 0xFFFFFFFF
MULTIPLY_1 = 0x7FEB352D
MULTIPLY_2 = 0x45D9F3B5
TOKEN_STRIDE = 0x1E3779B1
Words = TypeVar("Words", int, npt.NDArray[np.int64])


class Draw(NamedTuple):
    """What one row of logits is sampled with. ``position`` is the index, in its sequence, of the token to come.

    ``edits``: what is done to the row before. It goes to every rank.
    """

    params: SamplingParams
    seed: int
    position: int
    edits: Edits | None = None

    @property
    def plain(self) -> bool:
        """Whether the temperature and the noise say all about it."""
        return self.edits is None and self.params.plain


class TokenLogprobs(NamedTuple):
    """What the model thought of a token, in natural logarithms: of its own distribution, before any change to it.

    ``rank`` is 1 for the most likely token. ``top``: the most likely tokens, each with its log-probability, as many as
    were asked for.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


def seed_of_request(request_id: str) -> int:
    """A 64-bit seed from a request's id: the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


def request_seed(params: SamplingParams, request_id: str) -> int:
    """The request's own seed, or one derived from its id."""
    return seed_of_request(request_id) if params.seed is None else params.seed


def seed_key(seed: int) -> int:
    """What :func:`row_key` makes of a ``seed``, before it knows the position: 32 bits."""
    return _absorbed(_absorbed(0, seed & WORD), seed >> 32 & WORD)


def seed_keys(seeds: Sequence[int]) -> npt.NDArray[np.int64]:
    """:func:`seed_key` of many: ``int64[seeds]``."""
    low = np.array([seed & WORD for seed in seeds], dtype=np.int64)
    high = np.array([seed >> 32 & WORD for seed in seeds], dtype=np.int64)
    return _absorbed(_absorbed(np.zeros_like(low), low), high)


def row_key(seed: int, position: int) -> int:
    """A 32-bit key of a row; mixed as :mod:`engine.sampling` mixes words, on Python integers."""
    return _absorbed(seed_key(seed), position & WORD)


def row_keys(keys: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """:func:`row_key` of many rows, ``int64[rows]``, from the :func:`seed_keys` of theirs."""
    return _absorbed(keys, positions & WORD)


def _absorbed(key: Words, word: Words) -> Words:
    """``key`` with 32 bits more in it."""
    key = (key + word + TOKEN_STRIDE) & WORD
    key = (key ^ (key >> 16)) * MULTIPLY_1 & WORD
    key = (key ^ (key >> 15)) * MULTIPLY_2 & WORD
    return key ^ (key >> 16)
