"""What goes wrong, in the shape that OpenAI's clients know: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.engine_client import EngineDeadError
from serving.protocol import FIELDS, UNSUPPORTED

#: kinds of errors by status; any other of the client's is an ``invalid_request_error``
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "service_unavailable_error", 504: "timeout_error"}
#: what fields of several shapes take
_SHAPES = {
    "prompt": "a text or token ids, and where several are taken a list of either; none of them empty",
    "prompts": "a list of texts or of token ids, none of them empty",
    "stop": "a text or at most 64, none of them empty",
}
#: what a status means to a client that has left
CLIENT_CLOSED = 499


class ApiError(Exception):
    """An answer that says what is wrong. ``param`` names the field, ``code`` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """As JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        # a message may quote what is no character at all, such as half of a surrogate pair
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        """As an HTTP response."""
        return Response(self.body(), self.status, self.headers, "application/json")


class RefusedError(ApiError):
    """No request is taken now; another try may do in ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(503, message, code="overloaded", headers={"Retry-After": str(retry_after_s)})


class DeadlineError(ApiError):
    """A request took longer than it may."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(504, f"the request was not done within {timeout_s:g} s", code="timeout")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request cannot be served as it is."""
    return ApiError(400, message, param=param, code=code)


def dead(error: EngineDeadError) -> ApiError:
    """The engine is gone, and with it what it was asked for."""
    return ApiError(503, str(error), code="engine_dead")


def install_error_handlers(app: FastAPI) -> None:
    """Have ``app`` answer with errors of this shape, whatever goes wrong."""

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(EngineDeadError)
    async def engine_dead(_: Request, error: EngineDeadError) -> Response:
        return dead(error).response()

    @app.exception_handler(ClientGoneError)
    async def client_gone(_: Request, error: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(_: Request, error: RequestValidationError) -> Response:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            message = f"{request.method} is not for {request.url.path}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return ApiError(500, "the server made a mistake; its log has the details").response()


def _of_validation(error: RequestValidationError) -> ApiError:
    """One line about the first thing that is wrong with a request."""
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['ctx']['error']} (character {first['loc'][-1]})")
    place = [str(part) for part in first["loc"][1:]]
    message = str(first["msg"]).removeprefix("Value error, ")
    if not place:
        if first["type"] == "value_error":
            return invalid(message)
        return invalid("the body must be a JSON object, sent with Content-Type: application/json")
    name = place[0]
    if first["type"] == "extra_forbidden":
        return _no_field(name, place[-1])
    # between the fields and places are the kinds of value that were tried
    path = ".".join(part for part in place if part.isdecimal() or part in FIELDS)
    if first["type"] == "missing":
        return invalid(f"{path!r} is missing", name)
    if name in _SHAPES:
        return invalid(f"{name!r} must be {_SHAPES[name]}", name)
    return invalid(f"{path}: {message}", name)


def _no_field(name: str, field: str) -> ApiError:
    if field in UNSUPPORTED:
        return invalid(f"{field!r} is not supported with this value", name, "unsupported_parameter")
    near = difflib.get_close_matches(field, FIELDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return invalid(f"there is no field {field!r}{hint}", name, "unknown_parameter")
