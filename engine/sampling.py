"""From logits to tokens: greedy or Gumbel-max, with noise that is a pure function of (seed, position, token id).

What a request asks of its logits comes before (:mod:`engine.logit_edits`); log-probabilities are the model's own.

Whoever shares a step with a request, in whatever order, on whatever schedule, its noise is the same: a token depends on
the request alone. The hash, and the key of a row that it begins with, are those of :mod:`engine.draws`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from engine.draws import MULTIPLY_1, MULTIPLY_2, TOKEN_STRIDE, WORD, Draw, TokenLogprobs, row_keys, seed_keys
from engine.edited_rows import EditedRows
from engine.tensors import upload
from scheduler.request import SamplingParams

#: the largest float32 below 1
_BELOW_ONE = 1.0 - 2.0**-24


class LogprobRows(NamedTuple):
    """Log-probabilities of some rows of a step. ``counts``: how many of the ``top`` are wanted for each."""

    rows: list[int]
    counts: list[int]
    chosen: torch.Tensor
    """``float32[rows]``"""
    ranks: torch.Tensor
    """``int64[rows]``"""
    top: torch.Tensor
    """``float32[rows, most]``, falling"""
    top_ids: torch.Tensor

    def by_row(self) -> dict[int, TokenLogprobs]:
        """In host memory: by the row of the step."""
        columns = (self.chosen.tolist(), self.ranks.tolist(), self.top.tolist(), self.top_ids.tolist())
        return {
            row: TokenLogprobs(chosen, rank, tuple(zip(ids[:count], top[:count], strict=True)))
            for row, count, chosen, rank, top, ids in zip(self.rows, self.counts, *columns, strict=True)
        }


class Sampled(NamedTuple):
    """What the rows of a step gave: tokens ``int64[rows]``, and log-probabilities where some are asked for."""

    tokens: torch.Tensor
    logprobs: LogprobRows | None = None

    def to_host(self) -> Sampled:
        """A copy in host memory, which is pinned: nobody waits here, and it is good when the device has come so far."""
        logprobs = self.logprobs
        if logprobs is not None:
            tensors = (logprobs.chosen, logprobs.ranks, logprobs.top, logprobs.top_ids)
            logprobs = LogprobRows(logprobs.rows, logprobs.counts, *map(_on_host, tensors))
        return Sampled(_on_host(self.tokens), logprobs)

    def by_number(self, numbers: Sequence[int]) -> tuple[dict[int, int], dict[int, TokenLogprobs]]:
        """Tokens and log-probabilities by sequence number; ``numbers`` are those of the rows."""
        tokens = dict(zip(numbers, self.tokens.tolist(), strict=True))
        if self.logprobs is None:
            return tokens, {}
        return tokens, {numbers[row]: logprobs for row, logprobs in self.logprobs.by_row().items()}


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", non_blocking=True, copy=True)


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """One token id for each row of ``logits`` ``[rows, vocab]``: ``int64[rows]``, on the same device."""
    return Sampler(draws, logits.shape[-1], logits.device)(logits).tokens


class Sampler:
    """How the rows of one step are sampled. What it needs is on ``device`` before the step runs.

    Edits first, then the temperature, then top-k, top-p (over what top-k left) and min-p (relative to the most likely
    token).
    """

    def __init__(self, draws: Sequence[Draw], vocab: int, device: torch.device) -> None:
        params = [draw.params for draw in draws]
        self._greedy = all(p.temperature == 0 for p in params)
        self._filter: _Filter | None = None
        edits = [(row, draw.edits) for row, draw in enumerate(draws) if draw.edits is not None]
        self._edited = EditedRows(edits, device) if edits else None
        asked = [(row, min(p.logprobs, vocab)) for row, p in enumerate(params) if p.logprobs is not None]
        self._logprobs = _Logprobs(asked, device) if asked else None
        if self._greedy:
            return
        self._temperature = upload([p.temperature for p in params], torch.float32, device)
        keys = row_keys(seed_keys([draw.seed for draw in draws]), np.array([draw.position for draw in draws]))
        self._keys = upload(keys, torch.int64, device)
        rows = [i for i, p in enumerate(params) if 0 < p.top_k < vocab or p.top_p < 1 or p.min_p > 0]
        if rows:
            self._filter = _Filter(rows, params, vocab, device)

    def __call__(self, logits: torch.Tensor) -> Sampled:
        """One token id for each row of ``logits`` ``[rows, vocab]``. Does not wait for the device."""
        logits = logits.float()
        tokens = self._chosen(logits if self._edited is None else self._edited(logits))
        return Sampled(tokens, None if self._logprobs is None else self._logprobs(logits, tokens))

    def _chosen(self, logits: torch.Tensor) -> torch.Tensor:
        if self._greedy:
            return logits.argmax(dim=-1)
        greedy = self._temperature == 0
        scaled = logits / torch.where(greedy, 1.0, self._temperature)[:, None]
        if self._filter is not None:
            scaled = self._filter(scaled)
        noisy = scaled + gumbel_noise(self._keys, logits.shape[-1])
        return torch.where(greedy, logits.argmax(dim=-1), noisy.argmax(dim=-1))


class _Filter:
    """Puts minus infinity where a row's filters drop a token. Rows without filters are left alone."""

    def __init__(self, rows: list[int], params: list[SamplingParams], vocab: int, device: torch.device) -> None:
        self._rows = upload(rows, torch.int64, device)
        self._top_k = upload([params[i].top_k or vocab for i in rows], torch.int64, device)
        self._top_p = upload([params[i].top_p for i in rows], torch.float32, device)
        self._min_p = upload([params[i].min_p for i in rows], torch.float32, device)

    def __call__(self, scaled: torch.Tensor) -> torch.Tensor:
        ordered, tokens = scaled[self._rows].sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(scaled.shape[-1], device=scaled.device)
        ordered = ordered.masked_fill(rank >= self._top_k[:, None], -torch.inf)
        probability = ordered.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        kept = (before < self._top_p[:, None]) & (probability >= self._min_p[:, None] * probability[:, :1])
        kept[:, 0] = True
        ordered = ordered.masked_fill(~kept, -torch.inf)
        return scaled.index_copy(0, self._rows, torch.empty_like(ordered).scatter_(1, tokens, ordered))


class _Logprobs:
    """Log-probabilities of the rows that ask for them: (row, how many of the most likely tokens)."""

    def __init__(self, asked: list[tuple[int, int]], device: torch.device) -> None:
        self._rows = [row for row, _ in asked]
        self._counts = [count for _, count in asked]
        self._indices = upload(self._rows, torch.int64, device)

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> LogprobRows:
        logprobs = logits[self._indices].log_softmax(dim=-1)
        chosen = logprobs.gather(1, tokens[self._indices, None])
        ranks = (logprobs > chosen).sum(dim=-1) + 1
        top, ids = logprobs.topk(max(self._counts), dim=-1)
        return LogprobRows(self._rows, self._counts, chosen[:, 0], ranks, top, ids)


def gumbel_noise(keys: torch.Tensor, vocab: int) -> torch.Tensor:
    """Standard Gumbel noise ``float32[rows, vocab]`` of the row keys ``int64[rows]`` (each below 2**32).

    Small exponentials decide a Gumbel maximum, so that the resolution is put there: down to 2**-33.
    """
    tokens = torch.arange(vocab, dtype=torch.int64, device=keys.device)
    words = _mixed((tokens * TOKEN_STRIDE & WORD)[None, :] ^ keys[:, None])
    words = _mixed(words + keys[:, None] & WORD)
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """An avalanche of 32-bit ``words`` held in int64: every input bit changes each output bit half of the time."""
    words = (words ^ (words >> 16)) * MULTIPLY_1 & WORD
    words = (words ^ (words >> 15)) * MULTIPLY_2 & WORD
    return words ^ (words >> 16)
