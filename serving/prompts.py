"""From what clients send to requests for the engine: prompts as tokens, limits, sampling."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from engine.tokenizer import Tokenizer
from scheduler.config import SchedulerConfig
from scheduler.request import Grammar, Request, SamplingParams
from serving.errors import invalid
from serving.messages import EngineInfo
from serving.protocol import Message, ResponseFormat, SamplingBody

#: longer texts are made tokens of by another thread, so that nobody waits for them
LONG_TEXT = 2048
#: below this a temperature is 0: most likely tokens only
LEAST_TEMPERATURE = 1e-5
_THREADS = 2


class Prompts:
    """Makes tokens of prompts, and says which are impossible."""

    def __init__(self, info: EngineInfo, tokenizer: Tokenizer | None) -> None:
        self._info = info
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        #: the longest output and prompt together
        self.most_tokens = min(info.context_tokens, SchedulerConfig.from_dict(info.config).capacity_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises :class:`~serving.errors.ApiError` where there is none."""
        if self._tokenizer is None:
            raise invalid(f"{self._info.model} has no tokenizer: give prompts as token ids", "prompt")
        return self._tokenizer

    async def tokens(self, prompt: str | Sequence[int], special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt.

        Raises :class:`~serving.errors.ApiError` for an empty one and for ids that the model has not.
        """
        if isinstance(prompt, str):
            token_ids = await self.text_tokens(prompt, special_tokens)
        else:
            token_ids = list(prompt)
            self.check_ids(token_ids, "prompt")
        if not token_ids:
            raise invalid("the prompt has no tokens; give at least one", "prompt")
        return token_ids

    async def chat_tokens(self, messages: Sequence[Message], **template_arguments: Any) -> list[int]:
        """Token ids of a conversation through the model's chat template. Raises :class:`~serving.errors.ApiError`."""
        tokenizer = self.tokenizer
        try:
            text = tokenizer.chat_text([message.for_template() for message in messages], **template_arguments)
        except Exception as error:  # whatever a template says of a conversation that it is not made for
            reason = " ".join(str(error).split())
            raise invalid(f"the model's chat template does not take this conversation: {reason}", "messages") from error
        token_ids = await self.text_tokens(text, special_tokens=False)
        if not token_ids:
            raise invalid("the conversation has no tokens; give at least one", "messages")
        return token_ids

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise :class:`~serving.errors.ApiError` for an id that the model has not."""
        bad = next((token_id for token_id in token_ids if not 0 <= token_id < self._info.vocab), None)
        if bad is not None:
            raise invalid(f"token id {bad} is out of range; the model's go from 0 to {self._info.vocab - 1}", param)

    def output_limit(self, prompt_tokens: int, asked: int | None, default: int | None, *, clamped: bool = False) -> int:
        """The most tokens of an output: what is asked for, else ``default`` as far as there is room, else all of it.

        ``clamped``: what is asked for, as far as there is room.
        Raises :class:`~serving.errors.ApiError` where there is none.
        """
        context = self._info.context_tokens
        room = self.most_tokens - prompt_tokens
        if room < 1 or (asked is not None and not clamped and asked > room):
            whose = f"the model's context is {context} tokens"
            if self.most_tokens < context:
                whose += f", of which the KV memory holds {self.most_tokens}"
            and_output = "" if asked is None else f" and max_tokens is {asked}"
            raise invalid(
                f"the prompt has {prompt_tokens} tokens{and_output}; {whose}, for prompt and output together",
                "max_tokens" if room >= 1 else "prompt",
                "context_length_exceeded",
            )
        wanted = default if asked is None else asked
        return room if wanted is None else min(wanted, room)

    async def text_tokens(self, text: str, special_tokens: bool) -> list[int]:
        """Token ids of a text, perhaps none. Raises :class:`~serving.errors.ApiError` where there is no tokenizer."""
        tokenizer = self.tokenizer
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise invalid(f"the text has half of a surrogate pair at {error.start}: no character", "prompt") from error
        if len(text) < LONG_TEXT:
            return tokenizer.encode(text, special_tokens=special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: tokenizer.encode(text, special_tokens=special_tokens))


def sampling_of(
    body: SamplingBody, info: EngineInfo, *, temperature: float, logprobs: int | None = None,
    response_format: ResponseFormat | None = None,
) -> SamplingParams:  # fmt: skip
    """How a request's tokens are chosen; ``temperature`` is the endpoint's default.

    Raises :class:`~serving.errors.ApiError`.
    """
    heat = temperature if body.temperature is None else body.temperature
    stop = body.stop or ()
    bias = _logit_bias(body.logit_bias or {}, info)
    grammar = _grammar(response_format)
    if grammar is not None and info.emulated is not None:
        raise invalid("'response_format' is not for an emulated engine, whose words are made up", "response_format")
    for token_id in body.stop_token_ids or ():
        if token_id >= info.vocab:
            raise invalid(f"token id {token_id} is out of range; the model's go from 0 to {info.vocab - 1}",
                          "stop_token_ids")  # fmt: skip
    try:
        return SamplingParams(
            temperature=0.0 if heat < LEAST_TEMPERATURE else heat,
            top_k=max(0, body.top_k or 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
            seed=body.seed,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=tuple(body.stop_token_ids or ()),
            ignore_eos=bool(body.ignore_eos),
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            logit_bias=bias,
            min_tokens=body.min_tokens or 0,
            grammar=grammar,
            logprobs=logprobs,
        )
    except ValueError as error:
        raise invalid(str(error)) from error


def _logit_bias(asked: dict[str, float], info: EngineInfo) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for text, bias in asked.items():
        if not (text.isascii() and text.isdecimal()) or int(text[:20]) >= info.vocab:
            raise invalid(f"logit_bias has {text[:40]!r}; its names are token ids, from 0 to {info.vocab - 1}",
                          "logit_bias")  # fmt: skip
        found[int(text)] = bias
    return tuple(found.items())


def _grammar(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return Grammar("json_object")
    try:
        return Grammar("json_schema", asked.schema_text)
    except RecursionError:
        raise invalid("the JSON schema is nested too deep", "response_format") from None


def requests_of(
    name: str, token_ids: Sequence[int], max_tokens: int, sampling: SamplingParams, n: int, body: SamplingBody
) -> list[Request]:
    """``n`` requests of a prompt, with names that begin with ``name``. Each draws its tokens with a seed of its own."""
    prompt = tuple(token_ids)
    requests = []
    for place in range(n):
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed + place
        try:
            request = Request(
                id=f"{name}-{place}",
                arrival_ns=0,
                prompt_tokens=len(prompt),
                max_tokens=max_tokens,
                tenant=body.user or "",
                priority=body.priority or 0,
                prompt_token_ids=prompt,
                sampling=replace(sampling, seed=seed),
            )
        except ValueError as error:
            raise invalid(str(error).removeprefix(f"request {name}-{place}: ")) from error
        requests.append(request)
    return requests
