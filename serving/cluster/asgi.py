"""An ASGI application called from within its process: its answer as it comes, its client gone when nobody listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

from fastapi import FastAPI

from serving.cluster.calls import Head, HttpCall

_LOG = logging.getLogger("ray.serve")
#: how long an application may take to see that its client is gone before it is cancelled
GRACE_S = 5.0


async def answer(app: FastAPI, call: HttpCall) -> AsyncGenerator[Head | bytes]:
    """The head of the application's answer to ``call``, then its body, in pieces.

    Raises what the application raises before it has answered; afterwards that is for the log alone. Closing it early is
    to the application as a client that disconnects.
    """
    messages: asyncio.Queue[MutableMapping[str, Any] | None] = asyncio.Queue()
    asked = iter([{"type": "http.request", "body": call.body, "more_body": False}])
    gone = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        for message in asked:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if gone.is_set():
            raise OSError("the client has disconnected")
        messages.put_nowait(message)

    async def run() -> None:
        try:
            await app(_scope(call), receive, send)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run(), name=f"{call.method} {call.path}")
    answered = False
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
                yield Head(message["status"], headers, lost=False)
            elif message["type"] == "http.response.body":
                answered = not message.get("more_body", False)
                if message.get("body"):
                    yield bytes(message["body"])
        try:
            await task
        except Exception:
            if not answered:
                raise
            _LOG.exception("%s %s", call.method, call.path)
    finally:
        gone.set()
        if not task.done():
            await asyncio.wait({task}, timeout=GRACE_S)
            task.cancel()


def _scope(call: HttpCall) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": call.query,
        "root_path": "",
        "headers": call.headers,
        "client": None,
        "server": None,
        "state": {},
    }
