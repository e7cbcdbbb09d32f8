"""OpenAI's endpoints, by OpenAI's client."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest
from running_server import RunningServer

CHAT: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
#: an exact length; what the client does not know by name goes here
EXACT = {"ignore_eos": True}


def test_models_are_listed_by_all_their_names(emulated: RunningServer) -> None:
    client = emulated.openai()
    assert [model.id for model in client.models.list()] == ["emulated", "second/name"]
    assert client.models.retrieve("second/name").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is: emulated, second/name"):
        client.models.retrieve("gpt-4")


class TestCompletions:
    def test_there_are_sixteen_tokens_unless_told_otherwise(self, emulated: RunningServer) -> None:
        made = emulated.openai().completions.create(model="emulated", prompt="Hello", extra_body=EXACT)
        (choice,) = made.choices
        assert made.object == "text_completion"
        assert made.id.startswith("cmpl-")
        assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
        assert len(choice.text.split()) == 16
        assert made.usage is not None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (1, 16, 17)

    @pytest.mark.parametrize("prompt", ["Hello there", ["Hello there", "你好"], [19556, 665], [[19556], [19556, 665]]])
    def test_prompts_are_texts_or_tokens_one_or_several_and_each_has_n_choices(
        self, emulated: RunningServer, prompt: Any
    ) -> None:
        made = emulated.openai().completions.create(
            model="emulated", prompt=prompt, n=3, max_tokens=5, seed=7, extra_body=EXACT
        )
        several = 2 if (isinstance(prompt[0], str) and isinstance(prompt, list)) or isinstance(prompt[0], list) else 1
        assert [choice.index for choice in made.choices] == list(range(3 * several))
        assert len({choice.text for choice in made.choices[:3]}) == 3
        assert made.usage is not None
        assert made.usage.completion_tokens == 15 * several

    def test_a_stream_says_what_the_whole_says(self, emulated: RunningServer) -> None:
        client = emulated.openai()
        asked: Any = {"model": "second/name", "prompt": ["a", "b"], "n": 2, "max_tokens": 20, "seed": 1,
                      "extra_body": EXACT}  # fmt: skip
        whole = client.completions.create(**asked)
        texts = [""] * 4
        reasons: list[Any] = [None] * 4
        *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        for chunk in chunks:
            (choice,) = chunk.choices
            assert chunk.usage is None
            assert reasons[choice.index] is None
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
        assert texts == [choice.text for choice in whole.choices]
        assert reasons == ["length"] * 4
        assert (last.choices, last.usage) == ([], whole.usage)

    def test_usage_comes_with_every_event_where_that_is_asked_for(self, emulated: RunningServer) -> None:
        *chunks, _ = emulated.openai().completions.create(
            model="emulated", prompt="a b", max_tokens=5, stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
            extra_body=EXACT,
        )  # fmt: skip
        counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
        assert counts == sorted(counts)
        assert (len(counts), counts[-1]) == (len(chunks), 5)

    def test_the_prompt_is_said_again_where_that_is_asked_for(self, emulated: RunningServer) -> None:
        client = emulated.openai()
        asked: Any = {"model": "emulated", "prompt": ["你好", "b"], "echo": True, "max_tokens": 3, "seed": 1,
                      "extra_body": EXACT}  # fmt: skip
        whole = [choice.text for choice in client.completions.create(**asked).choices]
        assert [text.split(" ")[0] for text in whole] == ["你好", "b"]
        texts = ["", ""]
        for chunk in client.completions.create(**asked, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == whole

    def test_an_answer_that_may_end_by_itself_has_a_word_before_that(self, emulated: RunningServer) -> None:
        made = emulated.openai().completions.create(model="emulated", prompt=["a", "b"], n=128, max_tokens=8, seed=1)
        reasons = [choice.finish_reason for choice in made.choices]
        assert {*reasons} == {"stop", "length"}
        assert all(choice.text for choice in made.choices)

    def test_a_seed_repeats_tokens_and_none_does_not(self, emulated: RunningServer) -> None:
        client = emulated.openai()

        def text(**options: Any) -> str:
            made = client.completions.create(model="emulated", prompt="a", max_tokens=8, extra_body=EXACT, **options)
            return made.choices[0].text

        assert text(seed=5) == text(seed=5) != text(seed=6)
        assert text() != text()

    def test_stop_strings_are_cut_off_and_stop_tokens_end_a_text(self, emulated: RunningServer) -> None:
        client = emulated.openai()
        asked: Any = {"model": "emulated", "prompt": "a", "max_tokens": 20, "seed": 3}
        words = client.completions.create(**asked, extra_body=EXACT).choices[0].text.split(" ")
        stopped = client.completions.create(**asked, stop=[words[4] + " " + words[5]], extra_body=EXACT).choices[0]
        assert stopped.text == " ".join(words[:4]) + " "
        assert stopped.finish_reason == "stop"
        with emulated.client() as http:
            tokens = http.post("/v1/tokenize", json={"prompt": " " + words[3]}).json()["tokens"]
        ended = client.completions.create(**asked, extra_body={**EXACT, "stop_token_ids": tokens}).choices[0]
        assert (ended.text, ended.finish_reason) == (" ".join(words[:3]), "stop")

    def test_log_probabilities_are_those_of_made_up_words(self, emulated: RunningServer) -> None:
        asked: Any = {"model": "emulated", "prompt": "a", "max_tokens": 4, "seed": 3, "logprobs": 2,
                      "extra_body": EXACT}  # fmt: skip
        choice = emulated.openai().completions.create(**asked).choices[0]
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.text_offset is not None
        assert "".join(logprobs.tokens) == choice.text
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            assert choice.text[offset:].startswith(token)
        found: list[Any] = [
            chunk.choices[0].logprobs for chunk in emulated.openai().completions.create(**asked, stream=True)
        ]
        assert [token for part in found for token in part.tokens] == logprobs.tokens
        assert [offset for part in found for offset in part.text_offset] == logprobs.text_offset

    @pytest.mark.model
    def test_chinese_and_emoji_come_whole(self, model: RunningServer) -> None:
        client = model.openai()
        name = client.models.list().data[0].id
        bias = {str(token): 100 for token in _tokens(model, "你好🚀")}
        asked: Any = {"model": name, "prompt": "你好🚀你好🚀", "max_tokens": 24, "logit_bias": bias, "seed": 2}
        whole = client.completions.create(**asked).choices[0].text
        assert any(ord(character) > 0x2000 for character in whole)
        assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == whole


def _tokens(server: RunningServer, text: str) -> list[int]:
    with server.client() as client:
        return list(client.post("/v1/tokenize", json={"prompt": text}).json()["tokens"])


class TestChat:
    def test_a_stream_begins_with_the_role_and_says_what_the_whole_says(self, emulated: RunningServer) -> None:
        client = emulated.openai()
        asked: Any = {"model": "emulated", "messages": CHAT, "max_completion_tokens": 12, "seed": 4, "n": 2,
                      "extra_body": EXACT}  # fmt: skip
        whole = client.chat.completions.create(**asked)
        assert whole.object == "chat.completion"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 24
        texts = ["", ""]
        roles: list[list[Any]] = [[], []]
        for chunk in client.chat.completions.create(**asked, stream=True):
            (choice,) = chunk.choices
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index].append(choice.delta.role)
        assert texts == [choice.message.content for choice in whole.choices]
        assert all(first == "assistant" and set(others) == {None} for first, *others in roles)

    def test_an_answer_may_take_what_the_context_leaves(self, emulated: RunningServer) -> None:
        long: Any = [{"role": "user", "content": "a " * 8100}]
        made = emulated.openai().chat.completions.create(model="emulated", messages=long, extra_body=EXACT)
        assert made.usage is not None
        assert made.usage.total_tokens == 8192
        assert made.choices[0].finish_reason == "length"

    @pytest.mark.model
    def test_the_embedded_model_knows_paris(self, model: RunningServer) -> None:
        client = model.openai()
        name = client.models.list().data[0].id
        made = client.chat.completions.create(
            model=name, messages=CHAT, temperature=0, max_tokens=20, logprobs=True, top_logprobs=3
        )
        choice = made.choices[0]
        assert choice.message.content is not None
        assert "Paris" in choice.message.content
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        text = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content).decode()
        assert text == choice.message.content  # the end token has no part in it
        for token in choice.logprobs.content:
            assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
            assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-6
            assert len(token.top_logprobs) == 3

    @pytest.mark.model
    def test_json_is_what_the_schema_says(self, model: RunningServer) -> None:
        client = model.openai()
        name = client.models.list().data[0].id
        schema = {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
            "required": ["city", "big"],
            "additionalProperties": False,
        }
        asked: Any = {"model": name, "messages": CHAT, "temperature": 0, "max_tokens": 60}
        shape: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        choice = client.chat.completions.create(**asked, response_format=shape).choices[0]
        assert choice.finish_reason == "stop"
        assert set(json.loads(choice.message.content or "")) == {"city", "big"}
        bad: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "nothing"}}}
        with pytest.raises(openai.BadRequestError, match="the json_schema grammar is wrong"):
            client.chat.completions.create(**asked, response_format=bad)
        with pytest.raises(openai.BadRequestError, match="the json_schema grammar is wrong"):
            list(client.chat.completions.create(**asked, response_format=bad, stream=True))

    @pytest.mark.model
    def test_content_in_parts_and_developers_are_understood(self, model: RunningServer) -> None:
        with model.client() as client:
            content = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]
            parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}]
            plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\nyou"}]
            answers = [client.post("/v1/tokenize", json={"messages": messages}).json() for messages in (parts, plain)]
            assert answers[0] == answers[1]
            text = client.post("/v1/detokenize", json={"tokens": answers[0]["tokens"]}).json()["prompt"]
        assert "Be brief." in text
        assert "Hello\nyou" in text


@pytest.mark.model
def test_a_bias_and_penalties_change_what_the_model_says(model: RunningServer) -> None:
    client = model.openai()
    name = client.models.list().data[0].id
    (comma,) = _tokens(model, ",")
    asked: Any = {"model": name, "prompt": "One, two, three", "temperature": 0, "max_tokens": 8}
    biased = client.completions.create(**asked, logit_bias={str(comma): 100}).choices[0].text
    assert biased == "," * 8
    penalties: Any = {"presence_penalty": 2.0, "frequency_penalty": 2.0, "extra_body": {"repetition_penalty": 5.0}}
    punished = client.completions.create(**asked, **penalties, logit_bias={str(comma): 1}).choices[0].text
    assert punished.count(",") <= 1


def test_tokens_go_back_and_forth_at_both_paths(emulated: RunningServer) -> None:
    with emulated.client() as client:
        for path in ("", "/v1"):
            found = client.post(f"{path}/tokenize", json={"prompt": "你好, world", "return_token_strs": True}).json()
            assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
            assert found["max_model_len"] == 8192
            back = client.post(f"{path}/detokenize", json={"tokens": found["tokens"]}).json()
            assert back == {"prompt": "你好, world"}
        assert client.get("/version").json()["version"]


def test_tokens_that_are_parts_of_characters_have_their_bytes(emulated: RunningServer) -> None:
    texts = emulated.server.token_texts
    tokens = _tokens(emulated, "你好 🚀 é<|im_end|>")
    parts = [texts.of(token) for token in tokens]
    assert bytes(byte for _, raw in parts for byte in raw).decode() == "你好 🚀 é<|im_end|>"
    assert "\ufffd" in "".join(text for text, _ in parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [{}]), ("store", True),
     ("modalities", ["text", "audio"]), ("service_tier", "flex"), ("prediction", {}), ("reasoning_effort", "high"),
     ("metadata", {"a": "b"}), ("use_beam_search", True)],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(emulated: RunningServer, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        emulated.openai().chat.completions.create(model="emulated", messages=CHAT, extra_body={field: value})
    error: Any = caught.value.body
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert field in error["message"]


def test_what_is_not_supported_passes_where_it_asks_for_nothing(emulated: RunningServer) -> None:
    nothing = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "best_of": 1, "store": False,
               "modalities": ["text"], "service_tier": "auto", "length_penalty": 1.0}  # fmt: skip
    asked: Any = {"model": "emulated", "messages": CHAT, "max_tokens": 3}
    made = emulated.openai().chat.completions.create(**asked, extra_body=nothing)
    assert made.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("completions", {"prompt": ""}, 400, "prompt", "none of them empty"),
        ("completions", {"prompt": []}, 400, "prompt", "none of them empty"),
        ("completions", {}, 400, "prompt", "'prompt' is missing"),
        ("completions", {"prompt": [10**9]}, 400, "prompt", "token id 1000000000 is out of range"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("completions", {"prompt": "a", "max_tokens": "5"}, 400, "max_tokens", "valid integer"),
        ("completions", {"prompt": "a", "max_tokens": 9000}, 400, "max_tokens", "the model's context is 8192 tokens"),
        ("completions", {"prompt": [1] * 8192}, 400, "prompt", "the prompt has 8192 tokens"),
        ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias", "names are token ids"),
        ("completions", {"prompt": "a", "stop": ["", "b"]}, 400, "stop", "none of them empty"),
        ("completions", {"prompt": "a", "echo": True, "logprobs": 1}, 400, None, "'echo' with 'logprobs'"),
        ("completions", {"prompt": "a", "stream_options": {}}, 400, None, "goes with 'stream'"),
        ("completions", {"prompt": "a", "min_tokens": 20}, 400, None, "min_tokens is 20; must be <= max_tokens"),
        ("completions", {"prompt": ["a"] * 9, "n": 128}, 400, None, "1152 outputs are more than the 288"),
        ("completions", {"prompt": "a", "model": "gpt-4"}, 404, "model", "the model 'gpt-4' is not here"),
        ("completions", {"prompt": "a", "response_format": {"type": "json_object"}}, 400, "response_format",
         "emulated"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1 item"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages", "'system'"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages",
         "messages.0.content"),
        ("chat/completions", {"messages": CHAT, "top_logprobs": 2}, 400, None, "goes with 'logprobs'"),
        ("chat/completions", {"messages": CHAT, "chat_template_kwargs": {"tokenize": True}}, 400,
         "chat_template_kwargs", "the server's to say"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_openais_shape(
    emulated: RunningServer, path: str, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    with emulated.client() as client:
        answer = client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"), (b"[]", "must be a JSON object"), (b"", "must be a JSON object"), (b"\xff", "pars"),
        (b'{"prompt": "\\ud800"}', "'prompt' must be"), (b"[" * 100_000, "pars"), (b'{"prompt": 1e999}', "'prompt'"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "pars"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(emulated: RunningServer, content: bytes, message: str) -> None:
    with emulated.client() as client:
        answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", rb'{"prompt": "a\ud800"}'),
        ("/v1/chat/completions", rb'{"messages": [{"role": "user", "content": "\udc00"}]}'),
        ("/v1/completions", rb'{"prompt": ["a\ud800"], "echo": true}'),
    ],
)
def test_half_of_a_character_is_none(emulated: RunningServer, path: str, body: bytes) -> None:
    with emulated.client() as client:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_other_paths_and_methods_are_said_not_to_be(emulated: RunningServer) -> None:
    with emulated.client() as client:
        answers = [client.get("/v1/nothing"), client.get("/v1/completions")]
    assert [answer.status_code for answer in answers] == [404, 405]
    assert [answer.json()["error"]["message"] for answer in answers] == [
        "there is no /v1/nothing; /docs lists what there is", "GET is not for /v1/completions",
    ]  # fmt: skip
