"""Requests that ask for much, beside plain ones, on every schedule: tokens are those of a loop over transformers."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from tiny_models import DEVICE, TIE, prompts_of
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from engine.draws import Draw, TokenLogprobs, request_seed, row_key
from engine.executors import FusedExecutor, build_executor
from engine.generation import Generation
from engine.grammar import Grammars
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel, loaded
from engine.sampling import gumbel_noise, sample
from scheduler.config import SchedulerConfig
from scheduler.graphs import Graphs, graph_sizes
from scheduler.request import Grammar, Request, SamplingParams
from scheduler.scheduler import Scheduler

VOCAB = 512
MAX_TOKENS = 12
TOKENIZER = byte_tokenizer()
#: none of the tokenizer's
ENDS = frozenset(range(260, VOCAB, 9))
PLAIN = {0: SamplingParams(), 1: SamplingParams(temperature=1.0)}
ASKING = {
    2: SamplingParams(repetition_penalty=1.4, presence_penalty=1.5, min_tokens=9),
    3: SamplingParams(temperature=1.1, top_p=0.9, frequency_penalty=1.2, logprobs=3),
    4: SamplingParams(temperature=1.3, min_tokens=7, stop_token_ids=tuple(range(0, 260, 2))),
    5: SamplingParams(temperature=0.7, logit_bias=((7, 5.0), (300, 4.0), (511, -100.0)), logprobs=0),
    6: SamplingParams(temperature=1.2, grammar=Grammar("regex", "[a-z]{2,5}( [A-Z][a-z]+)*[.!?]"), logprobs=2),
    7: SamplingParams(grammar=Grammar("json_object"), presence_penalty=1.0),
    8: SamplingParams(temperature=0.9, top_k=30),
    9: SamplingParams(logprobs=20),
}
REQUESTS = PLAIN | ASKING
LENGTHS = (3, 17, 20, 5, 33, 40, 5, 20, 9, 11)
#: memory in which the requests push each other out
TIGHT = {"kv_pool": "paged", "kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16}
SCHEDULES: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded"},
    "padded with overlap": {"layout": "padded", "overlap": True, "max_running": 4},
    "paged": {},
    "evicted": TIGHT,
    "evicted with overlap": {**TIGHT, "overlap": True},
    "swapped with overlap": {**TIGHT, "preemption": "swap", "overlap": True},
    "chunks": {**TIGHT, "phase": "mixed", "chunk_tokens": 12, "overlap": True},
    "prefix": {"prefix_cache": True, "block_tokens": 4, "phase": "mixed", "chunk_tokens": 20, "overlap": True},
}
FUSED = {name: settings for name, settings in SCHEDULES.items() if "padded" not in name}


class Served(NamedTuple):
    """Of each request: its tokens, their log-probabilities, why it ended, and its text."""

    tokens: dict[int, list[int]]
    logprobs: dict[int, list[TokenLogprobs | None]]
    reasons: dict[int, str]
    texts: dict[int, str]
    scheduler: Scheduler


def prompts() -> list[list[int]]:
    found = prompts_of(VOCAB, LENGTHS)
    found[7][:16] = found[2][:16]
    return found


def serve(
    model: LoadedModel, asked: dict[int, SamplingParams], make: Callable[..., Any] = build_executor, **settings: Any
) -> Served:
    config = SchedulerConfig.from_dict({"kv_tokens": 4096, "context_tokens": model.context_tokens, **settings})
    scheduler = Scheduler(config)
    served = Served(
        {place: [] for place in asked}, {place: [] for place in asked}, {}, dict.fromkeys(asked, ""), scheduler
    )

    def hear(output: TokenOutput) -> None:
        place = int(output.request_id)
        assert output.token_id is not None
        assert place not in served.reasons
        served.tokens[place].append(output.token_id)
        served.logprobs[place].append(output.logprobs)
        served.texts[place] += output.text
        if output.finish_reason:
            served.reasons[place] = output.finish_reason

    loop = EngineLoop(scheduler, make(model, config), tokenizer=TOKENIZER, end_token_ids=ENDS, listener=hear)
    loop.run(
        Request(str(place), 0, len(prompt), MAX_TOKENS, prompt_token_ids=tuple(prompt), sampling=asked[place])
        for place, prompt in enumerate(prompts())
        if place in asked
    )
    assert scheduler.idle
    assert not loop._followers
    return served


def fused(model: LoadedModel, config: SchedulerConfig) -> FusedExecutor:
    return FusedExecutor(
        model, kv_tokens=config.capacity_tokens, max_running=config.max_running, max_rows=config.rows,
        block_tokens=config.block_tokens, kv_pool=config.pool, graphs=Graphs(graph_sizes(config.max_running)),
    )  # fmt: skip


# -- what transformers' logits and processors give


class Expected(NamedTuple):
    """Tokens, up to a near-tie; the model's own log-probabilities of the whole vocabulary at each; whether it ended."""

    tokens: list[int]
    own: list[torch.Tensor]
    whole: bool


def expected_of(theirs: Any, place: int) -> Expected:
    """Token by token, each from the whole text; nothing of ours but the noise, the filters and llguidance's masks."""
    prompt, sampling = prompts()[place], REQUESTS[place]
    ends = sorted(ENDS.union(sampling.stop_token_ids))
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias]))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(len(prompt), sampling.min_tokens, ends, device="cpu"))
    grammars = Grammars(TOKENIZER, VOCAB, ENDS)
    matcher = None if sampling.grammar is None else grammars.matcher(sampling.grammar)
    seed = request_seed(sampling, str(place))
    found = Expected([], [], True)
    while len(found.tokens) < MAX_TOKENS:
        ids = torch.tensor([prompt + found.tokens])
        with torch.inference_mode():
            logits = theirs(ids).logits[:, -1].float()
        scores = processors(ids, logits.clone())
        for token, count in Counter(found.tokens).items():
            scores[0, token] -= sampling.frequency_penalty * count + sampling.presence_penalty
        if matcher is not None:
            allowed = np.unpackbits(matcher.allowed.view(np.uint8), bitorder="little")
            scores[0, torch.from_numpy(allowed) == 0] = -torch.inf
        position = len(prompt) + len(found.tokens)
        if tied(scores, sampling, seed, position):
            return found._replace(whole=False)
        drawn = SamplingParams(sampling.temperature, sampling.top_k, sampling.top_p)
        token = sample(scores, [Draw(drawn, seed, position)]).item()
        found.tokens.append(token)
        found.own.append(logits[0].log_softmax(-1))
        if token in ends:
            break
        if matcher is not None:
            matcher.accept(token)
            if matcher.complete:
                break
    return found


def tied(scores: torch.Tensor, sampling: SamplingParams, seed: int, position: int) -> bool:
    """Whether two correct float32 computations may choose differently."""
    if sampling.temperature:
        scores = scores / sampling.temperature + gumbel_noise(torch.tensor([row_key(seed, position)]), VOCAB)
    best, second = scores[0].topk(2).values.tolist()
    return best - second < TIE


@functools.cache
def expectations(theirs: Any) -> dict[int, Expected]:
    return {place: expected_of(theirs, place) for place in REQUESTS}


def assert_expected(served: Served, theirs: Any) -> None:
    compared = 0
    for place, (tokens, own, whole) in expectations(theirs).items():
        found = served.tokens[place]
        assert found[: len(tokens)] == tokens, place
        assert not whole or len(found) == len(tokens), place
        compared += len(tokens)
        asked = REQUESTS[place].logprobs
        for token, all_logprobs, logprobs in zip(tokens, own, served.logprobs[place], strict=False):
            if asked is None:
                assert logprobs is None
                continue
            assert logprobs is not None
            assert logprobs.logprob == pytest.approx(all_logprobs[token].item(), abs=1e-3)
            larger = (all_logprobs > all_logprobs[token] + 1e-3).sum().item()
            least = (all_logprobs > all_logprobs[token] - 1e-3).sum().item()
            assert larger < logprobs.rank <= least
            assert len(logprobs.top) == asked
            values = [value for _, value in logprobs.top]
            assert values == pytest.approx(all_logprobs.topk(asked).values.tolist(), abs=1e-3)
            assert values == pytest.approx([all_logprobs[token].item() for token, _ in logprobs.top], abs=1e-3)
    assert compared > 80, "too many near-ties, or too early ends, to say much"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_those_of_transformers(reference: Callable[[str], Any], schedule: str) -> None:
    both = reference("qwen2")
    served = serve(both.ours, REQUESTS, **SCHEDULES[schedule])
    assert_expected(served, both.theirs.model)
    counters = served.scheduler.counters
    assert not schedule.startswith("evicted") or counters.preemptions
    assert not schedule.startswith("swapped") or counters.swapped_in
    assert schedule != "prefix" or counters.prefix_hit_tokens
    assert schedule != "chunks" or counters.steps_mixed


@pytest.mark.parametrize("schedule", FUSED)
def test_fused_tokens_are_those_of_transformers(reference: Callable[[str], Any], schedule: str) -> None:
    both = reference("qwen2")
    model = loaded("fused", copy.deepcopy(both.ours.model).to(DEVICE))
    served = serve(model, REQUESTS, fused, **FUSED[schedule])
    assert_expected(served, both.theirs.model)
    assert not schedule.startswith(("evicted", "swapped")) or served.scheduler.counters.preemptions


def test_each_request_ends_as_it_has_to(reference: Callable[[str], Any]) -> None:
    both = reference("qwen2")
    served = serve(both.ours, REQUESTS)
    assert all(len(served.tokens[place]) >= REQUESTS[place].min_tokens for place in REQUESTS)
    assert served.reasons[4] == "stop"
    assert len(served.tokens[4]) > REQUESTS[4].min_tokens
    assert served.reasons[6] == "stop"
    assert served.texts[6][-1] in ".!?"
    # without its min_tokens it would have ended earlier
    sooner = serve(both.ours, {4: SamplingParams(temperature=1.3, stop_token_ids=REQUESTS[4].stop_token_ids)})
    assert sooner.reasons[4] in ("stop", "eos")
    assert len(sooner.tokens[4]) < REQUESTS[4].min_tokens


@pytest.mark.parametrize(("make", "layout"), [(build_executor, "padded"), (build_executor, "paged"), (fused, "paged")])
@pytest.mark.parametrize("overlap", [False, True])
def test_plain_rows_do_not_see_what_others_ask_for(
    reference: Callable[[str], Any], make: Callable[..., Any], layout: str, overlap: bool
) -> None:
    """To the bit: all requests have their full length, so that steps have the same rows in both runs."""
    model = reference("qwen2").ours
    loud = {
        place: replace(asked, grammar=None, min_tokens=0, stop_token_ids=(), ignore_eos=True)
        for place, asked in REQUESTS.items()
    }
    quiet = {place: loud[place % len(PLAIN)] for place in REQUESTS}
    one, other = (serve(model, asked, make, layout=layout, overlap=overlap) for asked in (quiet, loud))
    assert all(one.tokens[place] == other.tokens[place] for place in PLAIN)
    assert sum(one.tokens[place] != other.tokens[place] for place in ASKING) >= 5


def test_a_step_is_launched_ahead_unless_a_row_needs_the_token_before(
    reference: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown: list[int] = []
    draw = Generation.draw

    def watched(state: Generation, position: int) -> Draw:
        unknown.append(position - len(state.token_ids))
        return draw(state, position)

    monkeypatch.setattr(Generation, "draw", watched)
    model = loaded("fused", copy.deepcopy(reference("qwen2").ours.model).to(DEVICE))
    # drawn from a part of the vocabulary, and nothing else: the device knows all
    serve(model, {place: REQUESTS[place] for place in (4, 5, 8)}, fused, overlap=True)
    assert set(unknown) == {0, 1}
    unknown.clear()
    guided = serve(model, {place: REQUESTS[place] for place in (4, 7, 8)}, fused, overlap=True)
    assert len(guided.tokens[7]) < len(guided.tokens[8])
    # once the one that needs to know has ended, the others go ahead again
    known = 3 * len(guided.tokens[7])
    assert set(unknown[:known]) == {0}
    assert set(unknown[known + 4 :]) == {1}


def test_what_follows_from_tokens_that_are_not_known_is_not_made_up() -> None:
    request = Request("a", 0, 2, prompt_token_ids=(1, 2), sampling=SamplingParams(presence_penalty=1.0))
    state = Generation(request, frozenset(), None, False, VOCAB)
    assert state.draw(2).edits is not None
    with pytest.raises(RuntimeError, match="the token at 3 follows from those before it, and 2 are known"):
        state.draw(3)


def test_no_stop_string_ends_a_text_before_its_least_length() -> None:
    sampling = SamplingParams(stop=("xy",), min_tokens=4)
    request = Request("a", 0, 1, prompt_token_ids=(1,), sampling=sampling)
    state = Generation(request, frozenset(), TOKENIZER, True, VOCAB)
    given = [state.accept(token) for token in TOKENIZER.encode("xyxxy")]
    assert given == [("", None), ("xy", None), ("", None), ("x", None), ("", "stop")]


def test_more_tokens_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ValueError, match="request a: min_tokens is 9; must be <= max_tokens, which is 8"):
        Request("a", 0, 3, 8, sampling=SamplingParams(min_tokens=9))
