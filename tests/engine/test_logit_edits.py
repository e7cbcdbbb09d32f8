"""Edits of logits do what transformers' own processors do, and leave the rows of others as they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from engine.draws import Draw, TokenLogprobs
from engine.edited_rows import EditedRows
from engine.logit_edits import Edits, RequestEdits
from engine.sampling import Sampler
from scheduler.request import Grammar, SamplingParams

VOCAB = 100
CPU = torch.device("cpu")
PROMPT = [3, 7, 7, 99, 9]
OUTPUT = [7, 42, 42, 42, 5]


def logits_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1)) * 3


def edits_of(sampling: SamplingParams, output: list[int] = OUTPUT, ends: tuple[int, ...] = ()) -> Edits | None:
    edits = RequestEdits(sampling, PROMPT, ends, VOCAB)
    for token in output:
        edits.accept(token)
    return edits.after(len(output))


def edited(sampling: SamplingParams, ends: tuple[int, ...] = (), output: list[int] = OUTPUT) -> torch.Tensor:
    """The row of logits of a request with these tokens."""
    edits = edits_of(sampling, output, ends)
    assert edits is not None
    return EditedRows([(0, edits)], CPU)(logits_of(1))


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_is_penalized_as_transformers_does(penalty: float) -> None:
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + OUTPUT]), logits_of(1))
    assert torch.equal(edited(SamplingParams(repetition_penalty=penalty)), expected)
    assert len(set((logits_of(1)[0, PROMPT + OUTPUT] > 0).tolist())) == 2


def test_biases_are_added_as_transformers_does() -> None:
    bias = ((4, 2.5), (99, -100.0), (1, 0.25))
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias])
    expected = processor(torch.tensor([PROMPT + OUTPUT]), logits_of(1))
    assert torch.equal(edited(SamplingParams(logit_bias=bias)), expected)


def test_presence_and_frequency_are_counted_in_the_output_alone() -> None:
    found = edited(SamplingParams(presence_penalty=0.75, frequency_penalty=-0.5))
    expected = logits_of(1)
    for token, count in Counter(OUTPUT).items():
        expected[0, token] -= 0.75 - 0.5 * count
    assert torch.allclose(found, expected, atol=1e-6)
    assert set((found != logits_of(1)).nonzero()[:, 1].tolist()) == set(OUTPUT)


def test_a_bias_comes_before_penalties_and_repetition_before_the_others() -> None:
    found = edited(SamplingParams(logit_bias=((42, 10.0),), repetition_penalty=2.0, frequency_penalty=1.0))
    assert found[0, 42].item() == pytest.approx((logits_of(1)[0, 42].item() + 10) / 2 - 3, abs=1e-5)


def test_end_tokens_are_impossible_until_there_are_enough_tokens() -> None:
    ends = (17, 99)
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, list(ends), device="cpu")
    expected = processor(torch.tensor([PROMPT + OUTPUT]), logits_of(1))
    # one that the model does not have is none
    assert torch.equal(edited(SamplingParams(min_tokens=6), (*ends, VOCAB + 3)), expected)
    assert edits_of(SamplingParams(min_tokens=5), ends=ends) is None
    assert edits_of(SamplingParams(min_tokens=6)) is None


def test_many_different_tokens_are_counted() -> None:
    output = [token % VOCAB for token in range(0, 7 * 150, 7)]
    found = edited(SamplingParams(frequency_penalty=1.0), output=output)
    counts = torch.tensor([output.count(token) for token in range(VOCAB)], dtype=torch.float32)
    assert torch.equal(found[0], logits_of(1)[0] - counts)


MIXED = [
    SamplingParams(),
    SamplingParams(temperature=1.0, presence_penalty=1.0, repetition_penalty=1.5, logprobs=3),
    SamplingParams(temperature=0.8),
    SamplingParams(logit_bias=((3, 50.0),)),
    SamplingParams(temperature=1.2, top_p=0.7, frequency_penalty=2.0),
    SamplingParams(temperature=1.0, top_k=5),
    SamplingParams(logprobs=0),
]


def test_rows_are_sampled_as_each_one_alone() -> None:
    logits = logits_of(len(MIXED))
    before = logits.clone()
    draws = [
        Draw(params, 9, 20, edits_of(params) if place in (1, 3, 4) else None) for place, params in enumerate(MIXED)
    ]
    together = Sampler(draws, VOCAB, CPU)(logits)
    assert torch.equal(logits, before)
    tokens, logprobs = together.by_number(range(len(MIXED)))
    for row, draw in enumerate(draws):
        token, alone = Sampler([draw], VOCAB, CPU)(logits[row : row + 1]).by_number([row])
        assert token[row] == tokens[row]
        assert alone.get(row) == logprobs.get(row)
    assert tokens[3] == 3
    assert sorted(logprobs) == [1, 6]


def test_edits_change_the_distribution_that_is_sampled() -> None:
    count = 20_000
    logits = torch.zeros(1, 4)
    edits = Edits(np.array([1]), np.array([2.0], dtype=np.float32), banned=np.array([3]))
    draws = [Draw(SamplingParams(temperature=1.0), 3, place, edits) for place in range(count)]
    tokens = Sampler(draws, 4, CPU)(logits.expand(count, -1)).tokens
    shares = tokens.bincount(minlength=4) / count
    expected = torch.tensor([0.0, 2.0, 0.0, -torch.inf]).softmax(-1)
    assert torch.allclose(shares, expected, atol=0.015)
    assert shares[3] == 0


def test_log_probabilities_are_the_models_own() -> None:
    logits = logits_of(2)
    params = SamplingParams(temperature=0.3, top_k=1, logit_bias=((8, 100.0),), logprobs=4)
    draws = [Draw(SamplingParams(logprobs=2), 0, 5), Draw(params, 0, 5, edits_of(params))]
    _, logprobs = Sampler(draws, VOCAB, CPU)(logits).by_number("ab")
    own = logits.log_softmax(-1)
    order = own.argsort(-1, descending=True).tolist()
    first = tuple((token, own[0, token].item()) for token in order[0][:2])
    assert logprobs["a"] == TokenLogprobs(first[0][1], 1, first)
    assert logprobs["b"].logprob == own[1, 8].item()
    assert logprobs["b"].rank == order[1].index(8) + 1 > 1
    assert [token for token, _ in logprobs["b"].top] == order[1][:4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"presence_penalty": 2.1}, r"presence_penalty is 2.1; must be in \[-2, 2\]"),
        ({"frequency_penalty": -3}, r"frequency_penalty is -3; must be in \[-2, 2\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; must be > 0"),
        ({"logit_bias": ((1, 101.0),)}, r"logit_bias of token 1 is 101.0; must be in \[-100, 100\]"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, "logit_bias has token 1 twice"),
        ({"min_tokens": -1}, "min_tokens is -1; must be >= 0"),
        ({"logprobs": 21}, "logprobs is 21; must be from 0 to 20, or None"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("ebnf", "x", r"unknown grammar kind 'ebnf' \(valid: json_schema, json_object, regex, lark\)"),
        ("json_object", "{}", "a json_object grammar has no source"),
        ("json_schema", " ", "the source of a json_schema grammar is empty"),
    ],
)
def test_grammars_of_no_kind_are_refused(kind: str, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar(kind, source)  # type: ignore[arg-type]
