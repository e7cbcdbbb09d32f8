"""What requests ask of logits before a token is drawn: biases, penalties, tokens that are impossible.

:class:`RequestEdits` follows a request on the host and says what is to be done to its next row. That is plain numbers,
which go to every rank; :class:`~engine.edited_rows.EditedRows` does it on the device. Rows of other requests stay as
they are, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.grammar import GrammarMatcher, bits_of
from scheduler.request import SamplingParams

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
_NO_IDS: Ids = np.empty(0, dtype=np.int64)
_NO_VALUES: Values = np.empty(0, dtype=np.float32)


class Edits(NamedTuple):
    """What is done to one row of logits, in the order of the fields.

    ``bias`` is added at ``biased``. Logits of the tokens that are ``seen`` are divided by ``repetition`` (negative ones
    multiplied), and ``lowered`` is subtracted. ``banned`` tokens are made impossible, and all that have no bit in
    ``allowed`` ``int32[ceil(vocab / 32)]``.
    """

    biased: Ids = _NO_IDS
    bias: Values = _NO_VALUES
    seen: Ids = _NO_IDS
    repetition: float = 1.0
    lowered: Values = _NO_VALUES
    banned: Ids = _NO_IDS
    allowed: npt.NDArray[np.int32] | None = None


class RequestEdits:
    """What a request asks of its logits, kept up with its tokens.

    ``end_token_ids`` are the tokens that end it, of which it must not get any before its ``min_tokens``.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_token_ids: Sequence[int],
        end_token_ids: Iterable[int],
        vocab: int,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._biased = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self._ends = np.array(sorted(token for token in set(end_token_ids) if 0 <= token < vocab), dtype=np.int64)
        self._not_ends = ~bits_of(self._ends, vocab)
        self._seen = _TokenCounts()
        if sampling.repetition_penalty != 1:
            for token_id in prompt_token_ids:
                self._seen.add(token_id, 0)

    def accept(self, token_id: int) -> None:
        """The output has one token more."""
        if self._sampling.penalizes:
            self._seen.add(token_id, 1)

    def after(self, output_tokens: int) -> Edits | None:
        """What is to be done to the row that gives the token after so many, ``None`` if nothing."""
        sampling = self._sampling
        too_early = output_tokens < sampling.min_tokens and len(self._ends) > 0
        if not (sampling.follows_output or len(self._biased) or too_early):
            return None
        edits = Edits(self._biased, self._bias, banned=self._ends if too_early else _NO_IDS)
        if sampling.penalizes:
            ids, counts = self._seen.ids, self._seen.counts
            lowered = (sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)).astype(
                np.float32
            )
            edits = edits._replace(seen=ids, repetition=sampling.repetition_penalty, lowered=lowered)
        if self._grammar is not None:
            allowed = self._grammar.allowed
            if too_early:
                without = allowed & self._not_ends
                # text that is complete can only end
                edits = edits._replace(banned=_NO_IDS)
                allowed = without if without.any() else allowed
            edits = edits._replace(allowed=allowed)
        return edits


class _TokenCounts:
    """How often each token has come, in arrays that grow."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.int64)

    def add(self, token_id: int, times: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token_id
        self._counts[place] += times

    @property
    def ids(self) -> Ids:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return self._counts[: len(self._places)]
