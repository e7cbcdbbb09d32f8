"""What stands before the replicas on Ray Serve. It knows no engine, and is small and soon there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.cluster.calls import Head, HttpCall
from serving.cluster.metrics import merged

#: how often a call is tried again on another replica, while its client has heard nothing yet
RETRIES = 2
#: between two tries: a replica whose engine has ended is gone by then
PAUSE_S = 1.0
#: how long a replica may take to say how it is
METRICS_S = 5.0
#: what an error is to programs
LOST = "replica_lost"


class Front:
    """Takes calls from Ray Serve's proxy and hands each to a replica.

    One that is lost with its replica is tried again as long as its client has heard nothing. Otherwise, and where no
    other try helps, the client is told.
    """

    def __init__(self, engines: DeploymentHandle[Any], most_bytes: int) -> None:
        self._engines = engines
        self._calls = engines.options(stream=True, method_name="http")
        self._most_bytes = most_bytes

    async def __call__(self, request: HttpRequest) -> Response:
        body = await _body(request, self._most_bytes)
        headers = [(bytes(name).lower(), bytes(value)) for name, value in request.scope["headers"]]
        call = HttpCall(request.method, request.url.path, request.scope["query_string"], headers, body)
        if call.path == "/metrics":
            return await self._metrics(call)
        for tried in range(1 + RETRIES):
            await asyncio.sleep(tried * PAUSE_S)
            parts: AsyncIterator[Any] = self._calls.remote(call).__aiter__()
            try:
                head = await anext(parts)
                if head.lost:
                    continue
                if head.is_stream:
                    return Events(head, await anext(parts, b""), parts)
                response = Response(b"".join([part async for part in parts]), head.status)
                response.raw_headers = head.headers
                return response
            except RayActorError:
                continue
            except BackPressureError:
                return _refusal("too many requests wait for a replica", "overloaded")
            except DeploymentUnavailableError:
                return _refusal("no replica can be started", "no_replica")
        return _refusal(f"the replica that served this was lost, and {RETRIES} others after it", LOST)

    async def _metrics(self, call: HttpCall) -> Response:
        """Those of all replicas that answer."""
        asked = HttpCall(call.method, call.path, b"", [], b"")
        answers = await self._engines.broadcast("metrics", asked).results_async(
            timeout_s=METRICS_S, return_exceptions=True
        )
        found = dict(answer for answer in answers if not isinstance(answer, BaseException))
        return Response(merged(found), media_type="text/plain; version=0.0.4; charset=utf-8")


class Events(Response):
    """A stream of events as it comes, from the ``first`` on; one that breaks off ends with an event that says so."""

    def __init__(self, head: Head, first: bytes, parts: AsyncIterator[Any]) -> None:
        self.status_code = head.status
        self.background = None
        self.raw_headers = head.headers
        self._first = first
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ray Serve cancels this when the client leaves."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        last = b""
        try:
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except RayActorError:
            last = b"data: " + _error("the replica that served this was lost", LOST) + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _error(message: str, code: str) -> bytes:
    """As a server says it."""
    return json.dumps(
        {"error": {"message": message, "type": "service_unavailable_error", "param": None, "code": code}}
    ).encode()


def _refusal(message: str, code: str) -> Response:
    return Response(_error(message, code), 503, {"Retry-After": "1"}, "application/json")


async def _body(request: HttpRequest, most_bytes: int) -> bytes:
    """The body, or of one that is too long so much of it that a replica refuses it."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes:
            break
    return b"".join(pieces)
