"""Grammars: what is allowed next, when a text is complete, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import END, byte_tokenizer
from model_folders import write_tokenizer
from tokenizers import decoders
from transformers import AutoTokenizer

from engine.executors import build_executor
from engine.grammar import GrammarError, GrammarMatcher, Grammars
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel
from engine.tokenizer import Tokenizer
from scheduler.config import SchedulerConfig
from scheduler.request import Grammar, Request, SamplingParams
from scheduler.scheduler import Scheduler

TOKENIZER = byte_tokenizer()
#: as the tests' tiny models have
VOCAB = 512
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "size": {"enum": ["small", "large"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
    },
    "required": ["name", "size", "counts"],
    "additionalProperties": False,
}
JSON_SCHEMA = Grammar("json_schema", json.dumps(SCHEMA))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, VOCAB, [END, 300])


def allowed(matcher: GrammarMatcher) -> set[int]:
    return set(np.nonzero(np.unpackbits(matcher.allowed.view(np.uint8), bitorder="little"))[0].tolist())


def ids(*texts: str) -> set[int]:
    return {token for text in texts for token in TOKENIZER.encode(text)}


def test_what_comes_next_and_when_the_text_may_end(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar("regex", "a?b{2}c*"))
    assert allowed(matcher) == ids("a", "b", "ab")
    (ab,) = ids("ab")
    matcher.accept(ab)
    assert allowed(matcher) == ids("b")
    matcher.accept(*ids("b"))
    # all of the model's end tokens
    assert allowed(matcher) == ids("c") | {END, 300}
    assert not matcher.complete
    matcher.accept(300)
    assert matcher.complete


def test_a_text_that_nothing_can_follow_is_complete(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar("lark", 'start: "x" ("y" | "z")'))
    for letter in "xz":
        assert not matcher.complete
        matcher.accept(*ids(letter))
    assert matcher.complete


def test_to_the_end_a_text_ends_only_where_it_must(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar("regex", "ab?"), to_the_end=True)
    matcher.accept(*ids("a"))
    assert allowed(matcher) == ids("b")
    matcher.accept(*ids("b"))
    assert matcher.complete


def test_each_request_has_its_own_place_in_a_grammar(grammars: Grammars) -> None:
    one, other = grammars.matcher(Grammar("regex", "[xy]z")), grammars.matcher(Grammar("regex", "[xy]z"))
    one.accept(*ids("x"))
    assert allowed(one) == ids("z")
    assert allowed(other) == ids("x", "y")


def test_a_model_with_fewer_tokens_than_its_tokenizer_writes_what_it_can() -> None:
    (b,) = ids("b")
    few = Grammars(TOKENIZER, b, ())
    assert allowed(few.matcher(Grammar("regex", "[ab]"))) == ids("a")
    with pytest.raises(GrammarError, match="no token of the model can come next"):
        few.matcher(Grammar("regex", "b"))


def test_without_end_tokens_no_ordinary_token_ends_a_text() -> None:
    matcher = Grammars(TOKENIZER, VOCAB, ()).matcher(Grammar("regex", "[a-z!]*"))
    assert allowed(matcher) == {*ids(*"abcdefghijklmnopqrstuvwxyz!"), *ids("ab")}


def test_white_space_in_json_comes_to_an_end(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar("json_object"))
    (space,) = ids(" ")
    matcher.accept(*ids("{"))
    for _ in range(32):
        assert space in allowed(matcher)
        matcher.accept(space)
    assert space not in allowed(matcher)
    assert allowed(matcher) >= ids('"', "}")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("regex", "(a"), "the regex grammar is wrong: .*unclosed group"),
        (Grammar("regex", ""), "the regex grammar is wrong: no text but the empty one"),
        (Grammar("json_schema", "{nothing"), "the json_schema grammar is wrong: not JSON"),
        (Grammar("json_schema", "[1]"), "a schema is an object or a boolean"),
        (Grammar("json_schema", '{"type": "thing"}'), "the json_schema grammar is wrong: Invalid type: thing"),
        (Grammar("json_schema", '{"not": {}}'), 'Unimplemented keys: \\["not"\\]'),
        (Grammar("lark", "start: other"), 'the lark grammar is wrong: .*unknown name: "other"'),
    ],
)
def test_what_is_wrong_is_said_in_one_line(grammars: Grammars, grammar: Grammar, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        grammars.check(grammar)
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_whose_texts_are_not_known_is_refused(tmp_path: Any) -> None:
    write_tokenizer(tmp_path)
    words = Tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    with pytest.raises(GrammarError, match=r"grammars cannot be followed with this model's tokenizer: .*decoder"):
        Grammars(words, 64)


def test_spaces_are_read_as_they_are_written_whatever_the_steps_of_the_decoder() -> None:
    """As in a tokenizer that was converted from GGUF."""
    steps: list[Any] = [decoders.ByteFallback(), decoders.Fuse(), decoders.ByteLevel()]
    tokenizer = byte_tokenizer(decoders.Sequence(steps))
    assert allowed(Grammars(tokenizer, VOCAB).matcher(Grammar("regex", "[ \n\u00e9]"))) == {
        *ids(" ", "\n"), TOKENIZER.encode("\u00e9")[0]
    }  # fmt: skip


def test_a_tokenizer_that_writes_other_texts_than_the_library_reads_is_refused() -> None:
    shouting: list[Any] = [decoders.ByteLevel(), decoders.Replace("name", "NAME")]
    with pytest.raises(GrammarError, match=r'it writes .*NAME.* where the library expects .*"name"'):
        Grammars(byte_tokenizer(decoders.Sequence(shouting)), VOCAB)


# -- through a model


def written(model: LoadedModel, grammar: Grammar, count: int = 6, **more: Any) -> list[tuple[str, str]]:
    """Texts of prompts of random tokens, and why they ended."""
    config = SchedulerConfig.from_dict({"kv_tokens": 4096, "context_tokens": 512, "overlap": True})
    texts = [""] * count
    ends = [""] * count

    def hear(output: TokenOutput) -> None:
        texts[int(output.request_id)] += output.text
        ends[int(output.request_id)] = output.finish_reason

    executor = build_executor(model, config)
    loop = EngineLoop(Scheduler(config), executor, tokenizer=TOKENIZER, end_token_ids=frozenset({END}), listener=hear)
    source = random.Random(2)
    loop.run(
        Request(
            str(place), 0, 5, 480, prompt_token_ids=tuple(source.randrange(256) for _ in range(5)),
            sampling=SamplingParams(grammar=grammar, temperature=place / 2, seed=place, **more),
        )
        for place in range(count)
    )  # fmt: skip
    return list(zip(texts, ends, strict=True))


@pytest.mark.parametrize("more", [{}, {"top_p": 0.5, "repetition_penalty": 1.2, "min_tokens": 40}])
def test_a_random_model_writes_json_of_the_schema(reference: Callable[[str], Any], more: dict[str, Any]) -> None:
    found = written(reference("qwen2").ours, JSON_SCHEMA, **more)
    assert len({text for text, _ in found}) > 3
    for text, end in found:
        assert end == "stop"
        value = json.loads(text)
        assert list(value) == ["name", "size", "counts"]
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 6
        assert value["size"] in ("small", "large")
        assert len(value["counts"]) <= 2
        assert all(type(count) is int and 0 <= count <= 99 for count in value["counts"])


def test_end_tokens_end_a_text_where_they_may_unless_they_are_ignored(reference: Callable[[str], Any]) -> None:
    model, grammar = reference("qwen2").ours, Grammar("regex", "[c-z]{2,5}")
    eager = ((END, 100.0),)
    assert {(len(text), end) for text, end in written(model, grammar, logit_bias=eager)} == {(2, "eos")}
    found = written(model, grammar, logit_bias=eager, ignore_eos=True)
    assert {(len(text), end) for text, end in found} == {(5, "stop")}
    found = written(model, grammar, logit_bias=eager, min_tokens=4)
    assert {(len(text), end) for text, end in found} == {(4, "eos")}


@pytest.mark.model
def test_the_embedded_models_tokens_are_read_as_they_are_written(embedded: Any) -> None:
    model = embedded.ours
    grammars = Grammars(model.tokenizer, model.vocab, model.eos_token_ids)
    matcher = grammars.matcher(JSON_SCHEMA)
    text = json.dumps({"name": "J\u00f6 \u732b", "size": "large", "counts": [7, 42]}, ensure_ascii=False, indent=2)
    for token in model.tokenizer.encode(text, special_tokens=False):
        assert token in allowed(matcher)
        matcher.accept(token)
    assert matcher.complete
    # no line may end in a string
    matcher = grammars.matcher(Grammar("json_schema", '{"type": "string"}'))
    matcher.accept(*model.tokenizer.encode('"', special_tokens=False))
    possible = [model.tokenizer.decode([token]) for token in sorted(allowed(matcher))]
    assert len(possible) > 10_000
    assert not any("\n" in piece for piece in possible)


@pytest.mark.model
def test_the_embedded_model_writes_json(embedded: Any) -> None:
    model = embedded.ours
    config = SchedulerConfig.from_dict({"kv_tokens": 1024, "context_tokens": 512})
    text = ""
    end = ""

    def hear(output: TokenOutput) -> None:
        nonlocal text, end
        text += output.text
        end = output.finish_reason

    loop = EngineLoop(
        Scheduler(config), build_executor(model, config), tokenizer=model.tokenizer, end_token_ids=model.eos_token_ids,
        listener=hear,
    )  # fmt: skip
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    prompt = model.tokenizer.encode_chat([{"role": "user", "content": "Paris is a city in which country? As JSON."}])
    sampling = SamplingParams(grammar=Grammar("json_schema", json.dumps(schema)))
    loop.run([Request("a", 0, len(prompt), 80, prompt_token_ids=tuple(prompt), sampling=sampling)])
    assert end == "stop"
    value = json.loads(text)
    assert value.keys() == {"city", "country"}
    assert "france" in value["country"].lower()


def test_a_grammar_that_grows_too_large_ends_its_request_alone(reference: Callable[[str], Any]) -> None:
    model = reference("qwen2").ours
    config = SchedulerConfig.from_dict({"kv_tokens": 1024, "context_tokens": 512})
    heard: list[TokenOutput] = []
    loop = EngineLoop(Scheduler(config), build_executor(model, config), tokenizer=TOKENIZER, listener=heard.append)
    guided = SamplingParams(grammar=Grammar("regex", "[a-z]*"))
    loop.submit(Request("guided", 0, 3, 9, prompt_token_ids=(1, 2, 3), sampling=guided))
    loop.submit(Request("plain", 0, 3, 9, prompt_token_ids=(1, 2, 3)))
    loop.step()
    (guided_state,) = [state for _, state in loop._live.values() if state.request.id == "guided"]

    def give_up(_token: int) -> None:
        raise GrammarError("the grammar cannot be followed: too large")

    guided_state._grammar.accept = give_up  # type: ignore[method-assign, union-attr]
    loop.run()
    last = [output for output in heard if output.request_id == "guided"][-1]
    assert (last.finish_reason, last.detail) == ("error", "the grammar cannot be followed: too large")
    assert [output for output in heard if output.request_id == "plain"][-1].finish_reason == "length"
    assert loop.scheduler.idle


def test_a_loop_refuses_what_its_model_cannot_do(reference: Callable[[str], Any]) -> None:
    model = reference("qwen2").ours
    config = SchedulerConfig.from_dict({"kv_tokens": 1024, "context_tokens": 512})
    executor = build_executor(model, config)
    mute = EngineLoop(Scheduler(config), executor)
    with pytest.raises(ValueError, match="request a: there is a grammar, but the engine has no tokenizer"):
        mute.submit(Request("a", 0, 1, 2, prompt_token_ids=(1,), sampling=SamplingParams(grammar=JSON_SCHEMA)))
    with pytest.raises(ValueError, match="logit_bias has token 512; the model's ids go from 0 to 511"):
        mute.check_sampling(SamplingParams(logit_bias=((3, 1.0), (512, 1.0))))
    loop = EngineLoop(Scheduler(config), executor, tokenizer=TOKENIZER)
    loop.check_sampling(SamplingParams(grammar=JSON_SCHEMA, logit_bias=((511, 1.0),)))
    with pytest.raises(ValueError, match="the regex grammar is wrong"):
        loop.check_sampling(SamplingParams(grammar=Grammar("regex", "[")))
    assert loop.scheduler.idle
