"""What becomes of one HTTP request: news of its requests to the engine, until they end, time is up or nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import Receive

from engine.loop import TokenOutput
from serving.engine_client import EngineClient, EngineDeadError, OutputStream
from serving.errors import ApiError, ClientGoneError, DeadlineError, dead, invalid

#: news of one of the requests, by its place
News = list[tuple[int, list[TokenOutput]]]


class Answer:
    """The outputs of requests that were handed in together. Whoever has one closes it, which aborts what goes on.

    ``receive`` is the connection, whose body has been read: what comes next is that the client has left.
    """

    def __init__(
        self, engine: EngineClient, streams: Sequence[OutputStream], receive: Receive, timeout_s: float | None = None
    ) -> None:
        self.streams = streams
        self._engine = engine
        self._left = len(streams)
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        loop = asyncio.get_running_loop()
        for stream in streams:
            stream.watcher = self._wake
        self._timer = None if timeout_s is None else loop.call_later(timeout_s, self._fail, DeadlineError(timeout_s))
        self._watch = loop.create_task(self._watch_client(receive))

    @property
    def ended(self) -> bool:
        """Whether all there is has been given out."""
        return self._left == 0

    async def news(self) -> News:
        """What there is, at least one output.

        Raises :class:`~serving.errors.ClientGoneError`, or an :class:`~serving.errors.ApiError` where a request cannot
        go on: it was refused, failed, took too long, or the engine is gone.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                news = [(place, outputs) for place, stream in enumerate(self.streams) if (outputs := stream.take())]
            except EngineDeadError as error:
                raise dead(error) from error
            if news:
                for _, outputs in news:
                    if outputs[-1].finish_reason:
                        self._ended(outputs[-1])
                return news
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def close(self) -> None:
        """Nobody waits any more: what goes on is aborted at the engine's next step."""
        if self._timer is not None:
            self._timer.cancel()
        self._watch.cancel()
        self._engine.cancel(self.streams)

    def _ended(self, last: TokenOutput) -> None:
        self._left -= 1
        if last.finish_reason == "rejected":
            raise invalid(last.detail)
        if last.finish_reason == "error":
            raise ApiError(500, f"the request could not go on: {last.detail}")
        if last.finish_reason == "aborted":
            raise ApiError(503, "the server is shutting down", code="shutting_down")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._wake()

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._fail(ClientGoneError())


@dataclass
class Generated:
    """The whole output of one request."""

    outputs: list[TokenOutput] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join([output.text for output in self.outputs])

    @property
    def output_tokens(self) -> int:
        """The end token included."""
        return sum(output.token_id is not None for output in self.outputs)

    @property
    def finish_reason(self) -> str:
        return self.outputs[-1].finish_reason


async def generated(answer: Answer) -> list[Generated]:
    """All there is, in the order of the requests. Raises as :meth:`Answer.news`; the answer is closed."""
    results = [Generated() for _ in answer.streams]
    try:
        while not answer.ended:
            for place, outputs in await answer.news():
                results[place].outputs += outputs
    finally:
        answer.close()
    return results
