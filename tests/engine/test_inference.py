"""The front door: results, streams, and the mistakes that a user can make."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from core.engine import InferenceEngine
from scheduler.config import ConfigError
from scheduler.request import Grammar


@pytest.fixture(scope="module")
def tiny() -> InferenceEngine:
    return InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096)


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(device="cpu", kv_tokens=4096)


def free(engine: InferenceEngine) -> bool:
    pool = engine.scheduler.pool
    return engine.scheduler.idle and pool.free_blocks == pool.capacity_blocks


def test_one_prompt_of_ids_or_several(tiny: InferenceEngine) -> None:
    alone = tiny.generate([1, 2, 3], max_tokens=4)
    several = tiny.generate([[1, 2, 3], [4, 5], [1, 2, 3]], max_tokens=4)
    assert len(alone) == 1
    assert len(several) == len(several.items()) == 3
    assert several[0].token_ids == several[2].token_ids == alone[0].token_ids
    assert several[0] is not several[2]
    assert len(several[1].token_ids) == 4
    assert {result.finish_reason for result in several} == {"length"}


def test_no_prompts_give_no_results(tiny: InferenceEngine) -> None:
    assert tiny.generate([]).items() == []


def test_seeded_sampling_repeats(tiny: InferenceEngine) -> None:
    first, again, other = (
        tiny.generate([7, 8], max_tokens=12, temperature=1.0, seed=seed)[0].token_ids for seed in (1, 1, 2)
    )
    assert first == again != other


def test_what_is_asked_of_sampling_reaches_the_tokens(tiny: InferenceEngine) -> None:
    greedy = tiny.generate([7, 8], max_tokens=6)[0]
    assert greedy.logprobs == []
    biased = tiny.generate([7, 8], max_tokens=6, logit_bias={11: 100.0}, logprobs=2)[0]
    assert biased.token_ids == [11] * 6
    assert [len(logprobs.top) for logprobs in biased.logprobs] == [2] * 6
    assert biased.logprobs[0].top[0][0] == greedy.token_ids[0]
    varied = tiny.generate([7, 8], max_tokens=6, logit_bias={11: 40.0, 12: 40.0}, frequency_penalty=2.0)[0]
    assert set(varied.token_ids) == {11, 12}
    assert max(map(varied.token_ids.count, (11, 12))) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {49_152: 1.0}}, "logit_bias has token 49152; the model's ids go from 0 to 49151"),
        ({"grammar": Grammar("json_object")}, "there is a grammar, but the engine has no tokenizer"),
        ({"stop": "x"}, "there are stop strings, but the engine has no tokenizer"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_the_call(tiny: InferenceEngine, options: Any, message: str) -> None:
    for call in (tiny.generate, tiny.stream_generate):
        with pytest.raises(ValueError, match=message):
            call([1, 2], **options)
    assert free(tiny)


def test_generation_ends_with_the_context(tiny: InferenceEngine) -> None:
    context = tiny.model.context_tokens
    result = tiny.generate(list(range(context - 3)), max_tokens=50)[0]
    assert (len(result.token_ids), result.finish_reason) == (3, "length")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "prompt 0 is empty"),
        ([[1], []], "prompt 1 is empty"),
        ("text", "has no tokenizer"),
        ([[1, 49_152]], "token id 49152"),
        ([[1] * 2_048], "2048 tokens; the model's context is 2048"),
    ],
)
def test_bad_prompts_are_named(tiny: InferenceEngine, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.generate(prompt)
    assert free(tiny)


def test_a_request_beyond_the_kv_memory_is_refused() -> None:
    small = InferenceEngine("shape:tiny", device="cpu", kv_tokens=64)
    with pytest.raises(ValueError, match="KV memory of 64"):
        small.generate([1] * 60, max_tokens=10)


def test_unknown_policy_and_setting_are_named_before_a_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match="sjf-bucket"):
        InferenceEngine("no such model", policy="sjf-buckets")
    with pytest.raises(ConfigError, match="max_prefill_tokens"):
        InferenceEngine("no such model", max_prefill_token=7)


def test_a_stream_that_is_closed_frees_its_memory(tiny: InferenceEngine) -> None:
    stream = tiny.stream_generate([1, 2, 3], max_tokens=100)
    next(stream)
    assert not tiny.scheduler.idle
    stream.close()
    assert free(tiny)


def test_streams_may_take_turns(tiny: InferenceEngine) -> None:
    alone = [tiny.generate(prompt, max_tokens=6)[0].token_ids for prompt in ([1, 2, 3], [9, 8])]
    streams = [tiny.stream_generate(prompt, max_tokens=6) for prompt in ([1, 2, 3], [9, 8])]
    turns = list(zip(*streams, strict=True))
    assert [[turn[place][0] for turn in turns] for place in (0, 1)] == alone
    assert free(tiny)


def test_threads_share_the_engine(tiny: InferenceEngine) -> None:
    prompts = [[n + 1, n + 2] for n in range(6)]
    expected = [result.token_ids for result in tiny.generate(prompts, max_tokens=8)]
    got: dict[int, list[int]] = {}

    def work(place: int) -> None:
        got[place] = tiny.generate(prompts[place], max_tokens=8)[0].token_ids

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[place] for place in range(6)] == expected
    assert free(tiny)


@pytest.mark.model
def test_the_quick_start_iterates_over_prompts_and_texts(engine: InferenceEngine) -> None:
    results = engine.generate(["Hello, my name is", "The future of AI is", "Hello, my name is"], max_tokens=8)
    printed = [(seq.prompt, text) for seq, text in results.items()]
    assert [prompt for prompt, _ in printed] == ["Hello, my name is", "The future of AI is", "Hello, my name is"]
    assert printed[0] == printed[2]
    assert all(text.strip() for _, text in printed)


@pytest.mark.model
def test_the_stream_gives_new_pieces_that_make_the_whole_text(engine: InferenceEngine) -> None:
    whole = engine.generate("人工智能的未来是", max_tokens=24)[0]
    pieces = list(engine.stream_generate("人工智能的未来是", max_tokens=24))
    assert [token for token, _ in pieces] == whole.token_ids
    assert "".join(text for _, text in pieces) == whole.text


@pytest.mark.model
def test_a_chat_is_answered_and_ends_by_itself(engine: InferenceEngine) -> None:
    assert engine.model.tokenizer is not None
    prompt = engine.model.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    result = engine.generate(prompt, max_tokens=40)[0]
    assert result.text == "The capital of France is Paris."
    assert result.finish_reason == "eos"


@pytest.mark.model
def test_a_stop_string_is_cut_off(engine: InferenceEngine) -> None:
    whole = engine.generate("The capital of France is", max_tokens=12)[0].text
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    result = engine.generate("The capital of France is", max_tokens=12, stop=stop)[0]
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


@pytest.fixture(scope="module", params=[{}, {"phase": "mixed", "prefix_cache": True}], ids=["plain", "with parts"])
def overlapping(request: pytest.FixtureRequest) -> InferenceEngine:
    return InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096, overlap=True, **request.param)


def test_with_overlap_tokens_are_the_same_and_nothing_is_left_running(
    tiny: InferenceEngine, overlapping: InferenceEngine
) -> None:
    prompts = [[n + 1, n + 2, *range(30)] for n in range(5)]
    expected = [result.token_ids for result in tiny.generate(prompts, max_tokens=8)]
    for stop in ([], [expected[0][3], expected[2][5]]):
        results = overlapping.generate(prompts, max_tokens=8, stop_token_ids=stop)
        ends = [next((n for n, token in enumerate(e, 1) if token in stop), 8) for e in expected]
        assert [result.token_ids for result in results] == [e[:end] for e, end in zip(expected, ends, strict=True)]
        assert not overlapping.loop.in_flight
        assert free(overlapping)
    assert overlapping.scheduler.counters.wasted_rows > 0


def test_with_overlap_a_stream_that_is_closed_frees_its_memory(overlapping: InferenceEngine) -> None:
    stream = overlapping.stream_generate([1, 2, 3], max_tokens=100)
    for _ in range(3):
        next(stream)
    assert overlapping.loop.in_flight
    stream.close()
    assert not overlapping.loop.in_flight
    assert free(overlapping)


def test_with_overlap_threads_share_the_engine(tiny: InferenceEngine, overlapping: InferenceEngine) -> None:
    prompts = [[n + 1, n + 2] for n in range(6)]
    expected = [result.token_ids for result in tiny.generate(prompts, max_tokens=8)]
    got: dict[int, list[int]] = {}

    def work(place: int) -> None:
        got[place] = overlapping.generate(prompts[place], max_tokens=8)[0].token_ids

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[place] for place in range(6)] == expected
    assert free(overlapping)
