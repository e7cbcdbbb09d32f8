"""HTTP requests around a small application: their ids, their counts, and when they are over."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from engine.loop import TokenOutput
from scheduler.request import Request
from serving.exchanges import CURRENT, ExchangeMiddleware, Exchanges
from serving.traffic import Traffic


def application(exchanges: Exchanges, traffic: Traffic) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ExchangeMiddleware, exchanges=exchanges)

    @app.get("/items/{name}")
    async def item(name: str) -> dict[str, Any]:
        exchange = CURRENT.get()
        return {"id": None if exchange is None else exchange.id}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("no")

    @app.get("/tokens")
    async def tokens() -> StreamingResponse:
        traffic.submitted([Request("r0", 0, 5), Request("r1", 0, 7)])

        async def body() -> Any:
            traffic.told([TokenOutput("r0", 7, "a", "length"), TokenOutput("r1", 7, "b")])
            yield "ab"

        return StreamingResponse(body())

    return app


@pytest.fixture
def exchanges() -> Exchanges:
    return Exchanges()


@pytest.fixture
def traffic(exchanges: Exchanges) -> Traffic:
    return Traffic(1000, exchanges.ended)


def asked(exchanges: Exchanges, traffic: Traffic, *calls: tuple[str, str, dict[str, str]]) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application(exchanges, traffic), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, headers=headers) for method, path, headers in calls]

    return asyncio.run(run())


def test_ids_are_taken_or_made_and_returned(exchanges: Exchanges, traffic: Traffic) -> None:
    given, made, refused = asked(
        exchanges,
        traffic,
        ("GET", "/items/a", {"X-Request-Id": "job-17/3"}),
        ("GET", "/items/b", {}),
        ("GET", "/items/c", {"X-Request-Id": 'a"; drop\t'}),
    )
    assert given.headers["x-request-id"] == given.json()["id"] == "job-17/3"
    assert len(made.headers["x-request-id"]) == 32
    assert made.headers["x-request-id"] == made.json()["id"]
    assert len(refused.headers["x-request-id"]) == 32


def test_counts_are_by_route_not_by_path(exchanges: Exchanges, traffic: Traffic) -> None:
    asked(
        exchanges,
        traffic,
        ("GET", "/items/a", {}),
        ("GET", "/items/b", {}),
        ("POST", "/items/a", {}),
        ("GET", "/nowhere/1", {}),
        ("BREW", "/nowhere/2", {}),
        ("GET", "/broken", {}),
    )
    assert dict(exchanges.answered) == {
        ("/items/{name}", "GET", 200): 2,
        ("/items/{name}", "POST", 405): 1,
        ("unknown", "GET", 404): 1,
        ("unknown", "other", 404): 1,
        ("/broken", "GET", 500): 1,
    }
    durations = exchanges.durations["/items/{name}", "GET"]
    durations.settle(0)
    assert durations.counts.sum() == 2


def test_an_exchange_is_over_when_its_requests_have_ended_too(exchanges: Exchanges, traffic: Traffic) -> None:
    over = []
    exchanges.listeners.append(over.append)
    (answer,) = asked(exchanges, traffic, ("GET", "/tokens", {}))
    assert answer.text == "ab"
    assert not over  # r1 has not ended
    traffic.told([TokenOutput("r1", None, "", "aborted")])
    (exchange,) = over
    assert (exchange.route, exchange.status) == ("/tokens", 200)
    assert [(ended.request.id, ended.finish_reason) for ended in exchange.ended] == [
        ("r0", "length"),
        ("r1", "aborted"),
    ]


def test_a_client_that_leaves_before_the_answer_is_seen(exchanges: Exchanges) -> None:
    async def run() -> None:
        started = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            started.set()
            await asyncio.Event().wait()

        async def nothing(*_: Any) -> Any: ...

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.create_task(ExchangeMiddleware(slow, exchanges)(scope, nothing, nothing))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert dict(exchanges.answered) == {("unknown", "GET", 499): 1}
