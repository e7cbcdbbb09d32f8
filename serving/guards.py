"""What stands before every endpoint: keys, and a limit to what a client may send."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError

#: what probes and scrapers ask, which have no key
OPEN_PATHS = frozenset({"/health", "/live", "/ready", "/metrics"})
TOO_LARGE = 413


def install_guards(app: FastAPI, max_body_bytes: int, api_keys: Sequence[str], cors_origins: Sequence[str]) -> None:
    """Put them before the endpoints of ``app``. Other origins get nothing from a browser, unless they are named."""
    app.add_middleware(BodyLimit, most_bytes=max_body_bytes)
    if api_keys:
        app.add_middleware(KeyCheck, keys=api_keys)
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"])


class KeyCheck:
    """``Authorization: Bearer KEY`` with one of ``keys``, or 401."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(Headers(scope=scope)):
            error = ApiError(
                401, "give an API key of this server: Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode())
        # digests have one length, and all are compared: the time it takes says nothing about keys
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(known)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class BodyLimit:
    """A body of more than ``most_bytes`` gets 413, as soon as its length is said or so much of it has come."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._most_bytes:
            # whoever is still sending the body is not waited for
            error = ApiError(TOO_LARGE, self._message, headers={"Connection": "close"})
            await error.response()(scope, receive, send)
            return
        got_bytes = 0

        async def counted() -> Message:
            nonlocal got_bytes
            message = await receive()
            got_bytes += len(message.get("body", b""))
            if got_bytes > self._most_bytes:
                raise HTTPException(TOO_LARGE, self._message, {"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the body is larger than {self._most_bytes} bytes"
