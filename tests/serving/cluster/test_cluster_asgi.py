"""An application called from within: its answer in pieces, its errors, and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from serving.cluster.asgi import answer
from serving.cluster.calls import Head, HttpCall


def call(method: str, path: str, body: bytes = b"", query: bytes = b"") -> HttpCall:
    return HttpCall(method, path, query, [(b"content-type", b"application/json"), (b"x-mark", b"7")], body)


def app() -> FastAPI:
    one = FastAPI()
    one.state.left = asyncio.Event()

    @one.post("/echo")
    async def echo(request: Request) -> dict[str, str]:
        query, mark = request.query_params["q"], request.headers["x-mark"]
        return {"body": (await request.body()).decode(), "query": query, "mark": mark}

    @one.get("/endless")
    async def endless(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            try:
                for number in range(1 << 30):
                    yield f"{number},"
                    await asyncio.sleep(0)
            finally:
                one.state.left.set()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @one.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    return one


def test_a_call_gets_through_whole_and_so_does_its_answer() -> None:
    async def run() -> list[Head | bytes]:
        return [part async for part in answer(app(), call("POST", "/echo", b'"hello"', b"q=1%202"))]

    head, *body = asyncio.run(run())
    assert isinstance(head, Head)
    assert head.status == 200
    assert (
        b"".join(part for part in body if isinstance(part, bytes)) == b'{"body":"\\"hello\\"","query":"1 2","mark":"7"}'
    )
    assert not head.is_stream


def test_pieces_come_as_they_are_made_and_who_leaves_is_seen_to_leave() -> None:
    async def run() -> list[Head | bytes]:
        one = app()
        parts = answer(one, call("GET", "/endless"))
        first = [await anext(parts) for _ in range(4)]
        await parts.aclose()
        await asyncio.wait_for(one.state.left.wait(), 5)
        return first

    head, *pieces = asyncio.run(run())
    assert isinstance(head, Head)
    assert head.is_stream
    assert pieces == [b"0,", b"1,", b"2,"]


def test_what_the_application_raises_after_its_answer_is_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[Head | bytes]:
        return [part async for part in answer(app(), call("GET", "/broken"))]

    head, body = asyncio.run(run())
    assert isinstance(head, Head)
    assert (head.status, body) == (500, b"Internal Server Error")
    assert "ZeroDivisionError" in caplog.text


def test_what_the_application_raises_before_it_has_answered_is_raised() -> None:
    one = app()

    @one.get("/cut")
    async def cut() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "a"
            raise ZeroDivisionError

        return StreamingResponse(pieces())

    async def run() -> None:
        async for _ in answer(one, call("GET", "/cut")):
            pass

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
