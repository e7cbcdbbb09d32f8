"""Sampling: the right distribution, the right filters, and noise that depends on the request alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from engine.draws import Draw, request_seed, row_key, row_keys, seed_key, seed_keys, seed_of_request
from engine.sampling import gumbel_noise, sample
from scheduler.request import SamplingParams

VOCAB = 50


def logits_of(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def draws(params: SamplingParams, count: int, seed: int = 5) -> list[Draw]:
    return [Draw(params, seed, position) for position in range(count)]


@pytest.mark.parametrize("rows", [1, 16, 17, 300])
def test_keys_of_many_rows_are_those_of_each(rows: int) -> None:
    random = np.random.default_rng(rows)
    seeds = [int(seed) for seed in random.integers(0, 1 << 64, rows, dtype=np.uint64)]
    seeds[0] = -3
    positions = random.integers(0, 1 << 40, rows)
    keys = row_keys(seed_keys(seeds), positions)
    assert seed_keys(seeds).tolist() == [seed_key(seed) for seed in seeds]
    assert keys.tolist() == [row_key(seed, position) for seed, position in zip(seeds, positions.tolist(), strict=True)]


def test_greedy_takes_the_largest_logit() -> None:
    logits = logits_of(7)
    assert sample(logits, draws(SamplingParams(), 7)).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_samples_follow_the_softmax(temperature: float) -> None:
    count = 20_000
    logits = logits_of(1, 8)
    tokens = sample(logits.expand(count, -1), draws(SamplingParams(temperature=temperature), count))
    expected = (logits[0].double() / temperature).softmax(-1) * count
    assert chisquare(tokens.bincount(minlength=8).numpy(), expected.numpy()).pvalue > 1e-4


def test_seeds_give_independent_samples() -> None:
    count = 20_000
    logits = logits_of(1, 8)
    tokens = sample(
        logits.expand(count, -1), [Draw(SamplingParams(temperature=1.0), seed, 17) for seed in range(count)]
    )
    assert chisquare(tokens.bincount(minlength=8).numpy(), (logits[0].double().softmax(-1) * count)).pvalue > 1e-4


def test_neighbouring_tokens_positions_and_seeds_are_uncorrelated() -> None:
    keys = torch.randint(0, 1 << 32, (400,), generator=torch.Generator().manual_seed(1))
    noise = gumbel_noise(keys, 400)
    neighbours = gumbel_noise(keys ^ 1, 400)
    for one, other in ((noise[:, :-1], noise[:, 1:]), (noise, neighbours)):
        correlation = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]
        assert abs(float(correlation)) < 0.012  # 4.8 standard deviations of 160,000 pairs
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.02)
    assert torch.isfinite(noise).all()


def test_a_token_does_not_depend_on_who_shares_the_batch() -> None:
    params = SamplingParams(temperature=0.9, top_k=20, top_p=0.9, seed=11)
    others = [Draw(SamplingParams(temperature=1.3, top_p=0.5), seed, 3) for seed in range(6)]
    logits = logits_of(7)
    alone = sample(logits[:1], [Draw(params, 11, 40)])
    last = sample(logits.roll(-1, 0), [*others, Draw(params, 11, 40)])
    first = sample(logits, [Draw(params, 11, 40), *others])
    with_greedy = sample(logits, [Draw(params, 11, 40), *draws(SamplingParams(), 6)])
    assert alone[0] == last[-1] == first[0] == with_greedy[0]
    assert last[:-1].tolist() == first[1:].tolist()


def test_greedy_rows_stay_greedy_beside_random_ones() -> None:
    logits = logits_of(2)
    mixed = [Draw(SamplingParams(temperature=2.0), 1, 1), Draw(SamplingParams(), 1, 1)]
    assert sample(logits, mixed)[1] == logits[1].argmax()


def test_noise_changes_with_seed_and_position() -> None:
    logits = torch.zeros(1, 10_000)
    params = SamplingParams(temperature=1.0)
    drawn = {int(sample(logits, [Draw(params, seed, position)])) for seed in (0, 1, 1 << 40) for position in (0, 1)}
    assert len(drawn) == 6


def reference_support(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Token ids that the filters keep, the plain way."""
    scaled = (logits.double() / params.temperature).tolist()
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if params.top_k:
        order = order[: params.top_k]
    weights = torch.tensor([scaled[token] for token in order], dtype=torch.float64).softmax(-1).tolist()
    kept, before = set(), 0.0
    for token, weight in zip(order, weights, strict=True):
        if not kept or (before < params.top_p and weight >= params.min_p * weights[0]):
            kept.add(token)
        before += weight
    return kept


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=0.8, top_k=500),
        SamplingParams(temperature=1.0, top_p=0.6),
        SamplingParams(temperature=1.0, top_p=1e-6),
        SamplingParams(temperature=1.5, min_p=0.2),
        SamplingParams(temperature=1.2, top_k=12, top_p=0.8, min_p=0.05),
    ],
    ids=lambda params: f"k{params.top_k}-p{params.top_p}-m{params.min_p}",
)
def test_filters_keep_exactly_the_reference_tokens(params: SamplingParams) -> None:
    logits = logits_of(1)
    count = 6_000
    tokens = sample(logits.expand(count, -1), draws(params, count))
    support = reference_support(logits[0], params)
    assert set(tokens.tolist()) <= support
    weights = (logits[0].double() / params.temperature).softmax(-1)
    likely = {token for token in support if weights[token] / sum(weights[list(support)]) > 0.005}
    assert likely <= set(tokens.tolist())


def test_equal_logits_are_cut_by_token_id() -> None:
    tokens = sample(torch.zeros(2_000, VOCAB), draws(SamplingParams(temperature=1.0, top_k=3), 2_000))
    assert set(tokens.tolist()) == {0, 1, 2}


def test_a_request_without_seed_gets_a_stable_one() -> None:
    assert request_seed(SamplingParams(), "a") == seed_of_request("a") == 3_405_396_810_240_292_928
    assert request_seed(SamplingParams(), "b") != seed_of_request("a")
    assert request_seed(SamplingParams(seed=3), "a") == 3
