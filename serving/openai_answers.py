"""What OpenAI's endpoints answer: whole, and as events that are bytes but for the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.draws import TokenLogprobs
from engine.loop import TokenOutput
from scheduler.request import Request
from serving.answer import Generated
from serving.logprobs import chat_logprobs, completion_logprobs, shown
from serving.messages import EngineInfo
from serving.protocol import StreamOptions
from serving.sse import event
from serving.token_texts import TokenTexts

FINISH_REASONS = {"length": "length", "eos": "stop", "stop": "stop"}


@dataclass
class Call:
    """What every part of an answer says, and what is needed to say the rest. ``n`` choices belong to each prompt."""

    id: str
    created: int
    model: str
    n: int
    texts: TokenTexts
    info: EngineInfo
    prompt_tokens: int = 0
    echoes: list[str] = field(default_factory=list)
    """what each prompt's outputs begin with; none for chats"""

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, output_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
        }

    def echo(self, place: int) -> str:
        return self.echoes[place // self.n] if self.echoes else ""

    def shown(self, request: Request, outputs: Sequence[TokenOutput]) -> list[tuple[int, TokenLogprobs]]:
        return shown(outputs, self.info.end_token_ids.union(request.sampling.stop_token_ids))


def completion(call: Call, requests: Sequence[Request], results: Sequence[Generated]) -> dict[str, Any]:
    """The answer of ``/v1/completions``."""
    choices = []
    for place, (request, result) in enumerate(zip(requests, results, strict=True)):
        logprobs = None
        if request.sampling.logprobs is not None:
            logprobs = completion_logprobs(call.shown(request, result.outputs), call.texts, 0)
        choices.append(
            {
                "index": place,
                "text": call.echo(place) + result.text,
                "logprobs": logprobs,
                "finish_reason": FINISH_REASONS[result.finish_reason],
            }
        )
    return _whole(call, "text_completion", choices, results)


def chat_completion(call: Call, requests: Sequence[Request], results: Sequence[Generated]) -> dict[str, Any]:
    """The answer of ``/v1/chat/completions``."""
    choices = []
    for place, (request, result) in enumerate(zip(requests, results, strict=True)):
        logprobs = None
        if request.sampling.logprobs is not None:
            logprobs = chat_logprobs(call.shown(request, result.outputs), call.texts)
        choices.append(
            {
                "index": place,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": logprobs,
                "finish_reason": FINISH_REASONS[result.finish_reason],
            }
        )
    return _whole(call, "chat.completion", choices, results)


def _whole(call: Call, kind: str, choices: list[dict[str, Any]], results: Sequence[Generated]) -> dict[str, Any]:
    output_tokens = sum(result.output_tokens for result in results)
    return {**call.head(kind), "choices": choices, "usage": call.usage(output_tokens)}


class _Events:
    """Events of choices. What does not change from one to the next is made once for each choice."""

    kind: str
    #: around the text of a choice
    before: bytes
    after: bytes

    def __init__(self, call: Call, requests: Sequence[Request], options: StreamOptions | None) -> None:
        self._call = call
        self._requests = requests
        self._usage = bool(options and options.include_usage)
        self._usage_in_each = bool(options and options.include_usage and options.continuous_usage_stats)
        self._always = call.info.tokenizer is None  # events are then all that shows of tokens
        self._counts = [0] * len(requests)
        self._begun = [False] * len(requests)
        head = orjson.dumps(call.head(self.kind))[:-1]
        self._heads = [
            b'data: %b,"choices":[{"index":%d,%b' % (head, place, self.before) for place in range(len(requests))
        ]
        self._tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"
        self._goes_on = b'%b,"logprobs":null,"finish_reason":null%b' % (self.after, self._tail)

    def events(self, place: int, outputs: list[TokenOutput]) -> bytes:
        """See :class:`~serving.sse.EventWriter`. One event for all of ``outputs``; none where there is no text yet."""
        self._counts[place] += sum(output.token_id is not None for output in outputs)
        text = outputs[0].text if len(outputs) == 1 else "".join([output.text for output in outputs])
        finish_reason = outputs[-1].finish_reason
        begin = b""
        if not self._begun[place]:
            self._begun[place] = True
            begin = self.begin(place)
        if not finish_reason and not self._usage_in_each and outputs[0].logprobs is None:
            if not text and not self._always:
                return begin
            return begin + self._heads[place] + orjson.dumps(text) + self._goes_on
        logprobs = None
        if self._requests[place].sampling.logprobs is not None:
            logprobs = self.logprobs(place, self._call.shown(self._requests[place], outputs))
        reason = FINISH_REASONS[finish_reason] if finish_reason else None
        return b'%b%b%b%b,"logprobs":%b,"finish_reason":%b%b' % (
            begin, self._heads[place], orjson.dumps(text), self.after, orjson.dumps(logprobs), orjson.dumps(reason),
            self._tail_now(place),
        )  # fmt: skip

    def end(self) -> bytes:
        """See :class:`~serving.sse.EventWriter`."""
        if not self._usage:
            return b""
        return event({**self._call.head(self.kind), "choices": [], "usage": self._call.usage(sum(self._counts))})

    def begin(self, place: int) -> bytes:
        """What comes before the first event of a choice."""
        raise NotImplementedError

    def logprobs(self, place: int, tokens: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        """As the endpoint shows them."""
        raise NotImplementedError

    def _tail_now(self, place: int) -> bytes:
        if not self._usage_in_each:
            return self._tail
        prompt = len(self._requests[place].prompt_token_ids or ())
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": self._counts[place],
            "total_tokens": prompt + self._counts[place],
        }
        return b'}],"usage":%b}\n\n' % orjson.dumps(usage)


class CompletionEvents(_Events):
    """The events of ``/v1/completions``."""

    kind = "text_completion"
    before, after = b'"text":', b""

    def __init__(self, call: Call, requests: Sequence[Request], options: StreamOptions | None) -> None:
        super().__init__(call, requests, options)
        self._offsets = [0] * len(requests)

    def begin(self, place: int) -> bytes:
        echo = self._call.echo(place)
        return self._heads[place] + orjson.dumps(echo) + self._goes_on if echo else b""

    def logprobs(self, place: int, tokens: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        found = completion_logprobs(tokens, self._call.texts, self._offsets[place])
        self._offsets[place] += sum(map(len, found["tokens"]))
        return found


class ChatEvents(_Events):
    """The events of ``/v1/chat/completions``."""

    kind = "chat.completion.chunk"
    before, after = b'"delta":{"content":', b"}"

    def begin(self, place: int) -> bytes:
        head = self._heads[place].removesuffix(b'"content":') + b'"role":"assistant","content":""'
        return head + self._goes_on

    def logprobs(self, place: int, tokens: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        return chat_logprobs(tokens, self._call.texts)
