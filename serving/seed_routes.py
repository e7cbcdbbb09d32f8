"""The short endpoints: a prompt in, a text out. Greedy unless a temperature is given."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.loop import TokenOutput
from scheduler.request import Request as EngineRequest
from serving.answer import Generated, generated
from serving.errors import invalid
from serving.models import check_model
from serving.openai_answers import FINISH_REASONS
from serving.openai_routes import timeout_of
from serving.prompts import requests_of, sampling_of
from serving.protocol import BatchBody, GenerateBody, SamplingBody
from serving.sse import event, event_stream, json_response

if TYPE_CHECKING:
    from serving.server import Server

#: of a request that does not say
MAX_TOKENS = 100

router = APIRouter(tags=["short"])


@router.post("/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """The text that goes on from a prompt."""
    if body.stream:
        raise invalid("for a stream there is /generate_stream", "stream")
    server: Server = request.app.state.server
    requests = await _requests(server, body, [body.prompt])
    (result,) = await generated(server.answer(requests, request.receive, timeout_of(body, request)))
    return json_response(_result(requests[0], result))


@router.post("/generate_stream")
async def generate_stream(body: GenerateBody, request: Request) -> Response:
    """The same, in pieces as they come: server-sent events."""
    if body.stream is False:
        raise invalid("without a stream there is /generate", "stream")
    server: Server = request.app.state.server
    requests = await _requests(server, body, [body.prompt])
    return await event_stream(server.answer(requests, request.receive, timeout_of(body, request)), Pieces(requests[0]))


@router.post("/batch_generate")
async def batch_generate(body: BatchBody, request: Request) -> Response:
    """The texts that go on from several prompts, in their order."""
    server: Server = request.app.state.server
    requests = await _requests(server, body, body.prompts)
    results = await generated(server.answer(requests, request.receive, timeout_of(body, request)))
    return json_response({"results": [_result(*pair) for pair in zip(requests, results, strict=True)]})


class Pieces:
    """An :class:`~serving.sse.EventWriter`: the new text, and how it ended with the last of it."""

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._output_tokens = 0

    def events(self, place: int, outputs: list[TokenOutput]) -> bytes:
        self._output_tokens += sum(output.token_id is not None for output in outputs)
        text = "".join([output.text for output in outputs])
        if outputs[-1].finish_reason:
            return event({"text": text, **_end(self._request, outputs[-1].finish_reason, self._output_tokens)})
        return b'data: {"text":%b}\n\n' % orjson.dumps(text) if text else b""

    def end(self) -> bytes:
        return b""


async def _requests(server: Server, body: SamplingBody, prompts: Sequence[str | list[int]]) -> list[EngineRequest]:
    check_model(server, body.model)
    sampling = sampling_of(body, server.info, temperature=0.0)
    name = f"gen-{uuid.uuid4().hex}"
    requests: list[EngineRequest] = []
    for place, prompt in enumerate(prompts):
        token_ids = await server.prompts.tokens(prompt)
        limit = server.prompts.output_limit(len(token_ids), body.max_tokens, MAX_TOKENS, clamped=True)
        requests += requests_of(f"{name}-{place}", token_ids, limit, sampling, 1, body)
    return requests


def _result(request: EngineRequest, result: Generated) -> dict[str, Any]:
    return {"text": result.text, **_end(request, result.finish_reason, result.output_tokens)}


def _end(request: EngineRequest, finish_reason: str, output_tokens: int) -> dict[str, Any]:
    return {
        "finish_reason": FINISH_REASONS[finish_reason],
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": output_tokens,
    }
