"""OpenAI's endpoints: models, completions, chat completions."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from scheduler.request import Request as EngineRequest
from scheduler.request import SamplingParams
from serving.answer import generated
from serving.errors import invalid
from serving.models import check_model, model_card
from serving.openai_answers import Call, ChatEvents, CompletionEvents, chat_completion, completion
from serving.prompts import requests_of, sampling_of
from serving.protocol import ChatBody, CompletionBody, OpenAIBody, SamplingBody
from serving.sse import event_stream, json_response

if TYPE_CHECKING:
    from serving.server import Server

#: seconds that the client would wait; ``timeout`` in the body says the same
TIMEOUT_HEADER = "x-request-timeout"
#: of a completion that does not say; as at OpenAI and vLLM
COMPLETION_TOKENS = 16
TEMPERATURE = 1.0

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The model, by each of its names."""
    server: Server = request.app.state.server
    return {"object": "list", "data": [model_card(server, name) for name in server.names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of the names."""
    server: Server = request.app.state.server
    return model_card(server, check_model(server, name))


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """Texts that go on from prompts."""
    server: Server = request.app.state.server
    name = check_model(server, body.model)
    sampling = _sampling(server, body, body.logprobs)
    call = Call(f"cmpl-{uuid.uuid4().hex}", int(time.time()), name, body.n or 1, server.token_texts, server.info)
    requests: list[EngineRequest] = []
    for place, prompt in enumerate(_prompts(body.prompt)):
        token_ids = await server.prompts.tokens(prompt, body.add_special_tokens is not False)
        limit = server.prompts.output_limit(len(token_ids), body.max_tokens, COMPLETION_TOKENS)
        requests += requests_of(f"{call.id}-{place}", token_ids, limit, sampling, call.n, body)
        call.prompt_tokens += len(token_ids)
        call.echoes.append(_echo(server, prompt) if body.echo else "")
    answer = server.answer(requests, request.receive, timeout_of(body, request))
    if body.stream:
        return await event_stream(answer, CompletionEvents(call, requests, body.stream_options))
    return json_response(completion(call, requests, await generated(answer)))


@router.post("/v1/chat/completions")
async def chat(body: ChatBody, request: Request) -> Response:
    """The assistant's next message."""
    server: Server = request.app.state.server
    name = check_model(server, body.model)
    sampling = _sampling(server, body, (body.top_logprobs or 0) if body.logprobs else None)
    call = Call(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name, body.n or 1, server.token_texts, server.info)
    token_ids = await server.prompts.chat_tokens(body.messages, **template_arguments(body))
    limit = server.prompts.output_limit(len(token_ids), body.most_tokens, None)
    requests = requests_of(call.id, token_ids, limit, sampling, call.n, body)
    call.prompt_tokens = len(token_ids)
    answer = server.answer(requests, request.receive, timeout_of(body, request))
    if body.stream:
        return await event_stream(answer, ChatEvents(call, requests, body.stream_options))
    return json_response(chat_completion(call, requests, await generated(answer)))


def timeout_of(body: SamplingBody, request: Request) -> float | None:
    """Seconds that the client would wait, by the body or a header. Raises :class:`~serving.errors.ApiError`."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return body.timeout
    try:
        header = float(text)
    except ValueError:
        header = -1.0
    if not 0 < header < float("inf"):
        raise invalid(f"the header {TIMEOUT_HEADER} is {text!r}; it must be a number of seconds > 0", TIMEOUT_HEADER)
    return header if body.timeout is None else min(header, body.timeout)


def template_arguments(body: ChatBody) -> dict[str, Any]:
    """What a client gives to the chat template. Raises :class:`~serving.errors.ApiError` for what is not its own."""
    arguments = body.chat_template_kwargs or {}
    ours = {"conversation", "tools", "documents", "chat_template", "tokenize", "padding", "truncation", "max_length",
            "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "messages",
            "continue_final_message", "add_generation_prompt"}  # fmt: skip
    for name in arguments:
        if name in ours:
            raise invalid(f"chat_template_kwargs has {name!r}, which is the server's to say", "chat_template_kwargs")
    return arguments


def _sampling(server: Server, body: OpenAIBody, logprobs: int | None) -> SamplingParams:
    return sampling_of(
        body, server.info, temperature=TEMPERATURE, logprobs=logprobs, response_format=body.response_format
    )


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One prompt or several, as a list."""
    return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def _echo(server: Server, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else server.prompts.tokenizer.decode(prompt)
