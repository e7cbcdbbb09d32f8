"""Tokens as they come: what streams are iterated over, in a thread or in a task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Self

from engine.errors import GenerationError
from engine.loop import TokenOutput
from engine.results import GenerationResult
from engine.serving import Mailbox, Serving, TaskMailbox, ThreadMailbox
from scheduler.request import Request

#: a token id, and the new text
Piece = tuple[int, str]


class _Pieces:
    """What both kinds of stream do with the news, and how they end."""

    def __init__(self, serving: Serving, owner: object) -> None:
        self._serving = serving
        #: of the engine, which is not collected while a stream of it is used
        self._owner = owner
        self._mailbox: Mailbox | None = None
        self._ready: deque[Piece] = deque()
        self._closed = False

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        """Nobody wants the rest."""
        self._closed = True
        self._ready.clear()
        if self._mailbox is not None:
            self._serving.leave(self._mailbox)

    def _accept(self, result: GenerationResult, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            result.add(output)
            if output.token_id is not None:
                self._ready.append((output.token_id, output.text))

    def _over(self, result: GenerationResult) -> bool:
        """Whether no more pieces come. Raises :class:`GenerationError` where that is for an error."""
        if result.finish_reason == "error" and not self._closed:
            raise GenerationError(result.error)
        return self._closed or bool(result.finish_reason)


class TokenStream(_Pieces, Iterator[Piece]):
    """Iterate over (token id, new text) of a request. A text may be empty: it is held back until it is whole.

    :meth:`close`, the end of a ``with`` block and letting go of the stream abort the request. ``result`` is filled as
    tokens come. Iterating raises :class:`~engine.errors.GenerationError` where the request could not go on, after its
    tokens.
    """

    def __init__(self, serving: Serving, owner: object, request: Request, result: GenerationResult) -> None:
        super().__init__(serving, owner)
        self.result = result
        self._mailbox = self._news = ThreadMailbox(request.id, [request.id], piecewise=True)
        serving.submit([request], self._news)

    @property
    def request_id(self) -> str:
        """What :meth:`~engine.inference.InferenceEngine.abort` knows the request by."""
        return self.result.request_id

    def __next__(self) -> Piece:
        try:
            while not self._ready:
                if self._over(self.result):
                    raise StopIteration
                self._accept(self.result, self._news.get())
        except BaseException:
            self.close()
            raise
        return self._ready.popleft()

    def close(self) -> None:
        """Abort the request unless it has ended. No more tokens come."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTokenStream(_Pieces, AsyncIterator[Piece]):
    """The same for ``async for``. The request is made and handed in when the first piece is asked for.

    ``ValueError`` comes then, if the prompt is not possible. A task that is cancelled while it waits aborts the
    request, as do :meth:`aclose` and letting go of the stream.
    """

    def __init__(
        self,
        serving: Serving,
        owner: object,
        request_id: str,
        make: Callable[[], tuple[Request, GenerationResult]],
    ) -> None:
        super().__init__(serving, owner)
        self.request_id = request_id
        self._make = make
        self._begun: tuple[TaskMailbox, GenerationResult] | None = None

    @property
    def result(self) -> GenerationResult | None:
        """Filled as tokens come; ``None`` before the first piece is asked for."""
        return None if self._begun is None else self._begun[1]

    async def _begin(self) -> tuple[TaskMailbox, GenerationResult]:
        # long prompts take a while to be encoded
        request, result = await asyncio.to_thread(self._make)
        news = TaskMailbox(request.id, [request.id], piecewise=True)
        self._mailbox, self._begun = news, (news, result)
        self._serving.submit([request], news)
        return news, result

    async def __anext__(self) -> Piece:
        if self._closed:
            raise StopAsyncIteration
        try:
            news, result = self._begun or await self._begin()
            while not self._ready:
                if self._over(result):
                    raise StopAsyncIteration
                self._accept(result, await news.get())
        except BaseException:
            self._leave()
            raise
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Abort the request unless it has ended. No more tokens come."""
        self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()
