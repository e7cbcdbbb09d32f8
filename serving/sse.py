"""Answers as bytes. All that the client of a stream has not heard yet goes out with one send."""

from __future__ import annotations

from typing import Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.loop import TokenOutput
from serving.answer import Answer, News
from serving.errors import ApiError, ClientGoneError

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx waits for a page full of them
]


def event(data: object) -> bytes:
    """``data`` as an event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def json_response(data: object) -> Response:
    """``data`` as a whole."""
    return Response(orjson.dumps(data), media_type="application/json")


class EventWriter(Protocol):
    """How an endpoint says its news."""

    def events(self, place: int, outputs: list[TokenOutput]) -> bytes:
        """Of the request at a place, perhaps none."""

    def end(self) -> bytes:
        """After the last of them."""


class EventStream(Response):
    """An answer as it comes. ``first`` are the news that there are already.

    An error that comes later is an event of its own, after which the stream ends as any other.
    """

    def __init__(self, answer: Answer, first: News, writer: EventWriter) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = _HEADERS.copy()
        self._answer = answer
        self._first = first
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._play(send)
        except ClientGoneError:
            pass
        finally:
            self._answer.close()

    async def _play(self, send: Send) -> None:
        answer, events = self._answer, self._writer.events
        news = self._first
        try:
            while not answer.ended:
                body = b"".join([events(place, outputs) for place, outputs in news])
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                news = await answer.news()
            end = b"".join([events(place, outputs) for place, outputs in news]) + self._writer.end()
        except ApiError as error:
            end = b"data: " + error.body() + b"\n\n"
        await send({"type": "http.response.body", "body": end + DONE, "more_body": False})


async def event_stream(answer: Answer, writer: EventWriter) -> EventStream:
    """The stream, once there is something to say: what is wrong before then has a status of its own.

    Raises as :meth:`~serving.answer.Answer.news`; the answer is closed then.
    """
    try:
        return EventStream(answer, await answer.news(), writer)
    except BaseException:
        answer.close()
        raise
