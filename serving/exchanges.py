"""HTTP requests as they come and go: an id for each, what it handed to the engine, and when all of that has ended."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.loop import RequestMetrics
from scheduler.request import Request
from serving.latencies import Durations

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
#: for a path that nothing answers to, whatever it is
UNKNOWN_ROUTE = "unknown"
#: nobody waited for the answer, as proxies write it
CLIENT_CLOSED = 499
_EDGES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class EndedRequest(NamedTuple):
    """What became of a request of the engine, as the front saw it. Monotonic nanoseconds, ``None``: never happened.

    ``finish_reason`` and ``detail`` as in :class:`~engine.loop.TokenOutput`; a request that went down with the engine
    has the reason ``error`` and no ``metrics``. ``ended_unix_ns`` is the time of day of ``ended_ns``.
    """

    request: Request
    exchange: Exchange | None
    output_tokens: int
    finish_reason: str
    detail: str
    submitted_ns: int
    first_token_ns: int | None
    ended_ns: int
    ended_unix_ns: int
    metrics: RequestMetrics | None


@dataclass(slots=True, eq=False)
class Exchange:
    """An HTTP request, and its answer so far. ``open``: what it handed to the engine and has not ended there."""

    id: str
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    started_ns: int
    route: str = UNKNOWN_ROUTE
    status: int = 0
    answered: bool = False
    duration_ns: int = 0
    open: int = 0
    ended: list[EndedRequest] = field(default_factory=list)


#: the HTTP request that the running code answers, if any
CURRENT: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


class Exchanges:
    """Counts HTTP requests, and tells ``listeners`` of each that is over here and in the engine."""

    def __init__(self) -> None:
        #: by route, method and status
        self.answered: Counter[tuple[str, str, int]] = Counter()
        #: by route and method
        self.durations: dict[tuple[str, str], Durations] = {}
        self.listeners: list[Callable[[Exchange], None]] = []

    def begun(self, scope: Scope) -> Exchange:
        method = scope["method"]
        exchange = Exchange(
            _request_id(scope["headers"]),
            method if method in METHODS else "other",
            scope["path"],
            scope["headers"],
            time.monotonic_ns(),
        )
        scope.setdefault("state", {})["request_id"] = exchange.id
        return exchange

    def over(self, exchange: Exchange, scope: Scope, fallback_status: int) -> None:
        """Its answer has been given, or nobody waits for it; ``fallback_status`` if none had begun."""
        now_ns = time.monotonic_ns()
        exchange.route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        exchange.status = exchange.status or fallback_status
        exchange.duration_ns = now_ns - exchange.started_ns
        exchange.answered = True
        self.answered[exchange.route, exchange.method, exchange.status] += 1
        durations = self.durations.get((exchange.route, exchange.method))
        if durations is None:
            durations = self.durations[exchange.route, exchange.method] = Durations(_EDGES_S)
        durations.pending.append(exchange.duration_ns)
        if len(durations.pending) >= 256:
            durations.settle(now_ns)
        self._tell_if_over(exchange)

    def ended(self, request: EndedRequest) -> None:
        """A request of the engine has ended."""
        exchange = request.exchange
        if exchange is not None:
            exchange.open -= 1
            exchange.ended.append(request)
            self._tell_if_over(exchange)

    def _tell_if_over(self, exchange: Exchange) -> None:
        if exchange.answered and not exchange.open:
            for listener in self.listeners:
                listener(exchange)


class ExchangeMiddleware:
    """Puts an :class:`Exchange` around each HTTP request: pure ASGI, a look at each message's type and no more.

    ``X-Request-Id`` is taken from the request where it is a plain word, made up where it is not, and returned.
    """

    def __init__(self, app: App, exchanges: Exchanges) -> None:
        self._app = app
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._exchanges.begun(scope)

        def passed_on(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = list(message.get("headers", ()))
                if not any(name.lower() == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", exchange.id.encode()))
                message["headers"] = headers
            return send(message)

        fallback = CLIENT_CLOSED
        token = CURRENT.set(exchange)
        try:
            await self._app(scope, receive, passed_on)
        except Exception:
            fallback = 500
            raise
        finally:
            CURRENT.reset(token)
            self._exchanges.over(exchange, scope, fallback)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value.decode("latin-1")):
            return value.decode("latin-1")
    return uuid.uuid4().hex
