"""The front's view of the engine process: hand requests in, hear what becomes of them, and know when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from engine.errors import EngineError
from engine.loop import TokenOutput
from engine.processes import start_module
from scheduler.request import Request
from serving.channel import packed, receive
from serving.messages import (
    Ask,
    Broken,
    Cancel,
    EngineInfo,
    EngineSettings,
    Leave,
    Outputs,
    Snapshot,
    Submit,
)

#: how long the process may take to leave before it is killed
PATIENCE_S = 10.0
#: fits of costs are many small products: several threads wait for each other longer than they compute
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")


class EngineDeadError(EngineError):
    """The engine has ended: requests in flight are lost, and no other is taken."""


class OutputStream:
    """What becomes of one request. For one task; there is news until the last of it has a finish reason."""

    def __init__(self, request: Request) -> None:
        self.request = request
        #: called whenever there is something to :meth:`take`; whoever waits with :meth:`news` needs none
        self.watcher: Callable[[], None] | None = None
        self.ended = False
        self._news: list[TokenOutput] = []
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None

    def take(self) -> list[TokenOutput]:
        """What there is by now, in order. Raises :class:`EngineDeadError` where no more will come."""
        news = self._news
        if news:
            self._news = []
        elif self._failure is not None:
            raise EngineDeadError(self._failure)
        return news

    async def news(self) -> list[TokenOutput]:
        """As :meth:`take`, but waits until there is something."""
        while not (news := self.take()):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return news

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        """The news one by one, to the last."""
        while True:
            for output in await self.news():
                yield output
                if output.finish_reason:
                    return

    def tell(self, output: TokenOutput) -> None:
        self._news.append(output)
        if output.finish_reason:
            self.ended = True
        self._wake()

    def fail(self, reason: str) -> None:
        self._failure = reason
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self.watcher is not None:
            self.watcher()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None


class EngineListener(Protocol):
    """Hears of everything that goes to and comes from an engine, for metrics and logs. Must not wait or raise."""

    def submitted(self, requests: Sequence[Request]) -> None:
        """They have been handed in."""

    def told(self, outputs: Sequence[TokenOutput]) -> None:
        """News of requests, those that nobody waits for any more included."""

    def gone(self, reason: str, lost: int) -> None:
        """The engine has ended, and ``lost`` requests with it."""


class EngineClient:
    """An engine in a process of its own. Belongs to the event loop that :meth:`start` ran in."""

    def __init__(
        self,
        info: EngineInfo,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.info = info
        #: why the engine is gone, once it is
        self.failure: str | None = None
        self.listeners: list[EngineListener] = []
        self._process = process
        self._reader, self._writer = reader, writer
        self._streams: dict[str, OutputStream] = {}
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Snapshot]] = {}
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()
        self._task = asyncio.create_task(self._listen(), name="engine's news")

    @classmethod
    async def start(cls, settings: EngineSettings) -> EngineClient:
        """Start the process and wait until its engine is ready.

        Raises :class:`~engine.errors.EngineError` with the reason when it cannot be made.
        """
        ours, theirs = socket.socketpair()
        environment = None if settings.emulate is None else _ONE_THREAD
        process = start_module("serving.engine_process", theirs.fileno(), environment)
        theirs.close()
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
            writer.write(packed(settings))
            first = await receive(reader)
        except EOFError:
            code = process.wait()
            raise EngineError(f"the engine's process ended before it was ready ({_how(code)})") from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        if isinstance(first, Broken):
            await asyncio.to_thread(process.wait)
            raise EngineError(first.reason)
        return cls(first, process, reader, writer)

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """Requests that have been handed in and have not ended."""
        return len(self._streams)

    def submit(self, requests: Sequence[Request]) -> list[OutputStream]:
        """Hand requests in, all at once; their ids must be in use by no other. Raises :class:`EngineDeadError`."""
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        streams = [OutputStream(request) for request in requests]
        for stream in streams:
            self._streams[stream.request.id] = stream
        self._idle.clear()
        self._writer.write(packed(Submit(list(requests))))
        for listener in self.listeners:
            listener.submitted(requests)
        return streams

    def cancel(self, streams: Sequence[OutputStream]) -> None:
        """Nobody wants to hear of these any more; those that have not ended are aborted at the next step."""
        left = [stream.request.id for stream in streams if not stream.ended]
        for stream in streams:
            self._streams.pop(stream.request.id, None)
        if left and self.failure is None:
            self._writer.write(packed(Cancel(left)))
        if not self._streams:
            self._idle.set()

    async def snapshot(self) -> Snapshot:
        """How the engine is now, between two steps. Raises :class:`EngineDeadError`."""
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        number = next(self._numbers)
        answer: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._writer.write(packed(Ask(number)))
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    async def gone(self) -> str:
        """Wait until the engine has ended, and say why."""
        await self._gone.wait()
        return self.failure or ""

    async def close(self) -> None:
        """End the process: what has not ended is aborted. More than once does nothing."""
        if self._closing:
            return
        self._closing = True
        if self.failure is None:
            self._writer.write(packed(Leave()))
        try:
            await asyncio.wait_for(self._task, PATIENCE_S)
        except TimeoutError:
            self._process.kill()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await asyncio.to_thread(self._process.wait)

    async def _listen(self) -> None:
        reason = ""
        streams = self._streams
        while True:
            try:
                message = await receive(self._reader)
            except EOFError:
                break
            if isinstance(message, Outputs):
                for listener in self.listeners:
                    listener.told(message.outputs)
                for output in message.outputs:
                    stream = streams.get(output.request_id)
                    if stream is None:
                        continue
                    stream.tell(output)
                    if output.finish_reason:
                        del streams[output.request_id]
                if not streams:
                    self._idle.set()
            elif isinstance(message, Snapshot):
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            elif isinstance(message, Broken):
                reason = message.reason
        code = await asyncio.to_thread(self._process.wait)
        self._fail("the server is shutting down" if self._closing else reason or f"the engine ended, {_how(code)}")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        for listener in self.listeners:
            listener.gone(reason, len(self._streams))
        for stream in self._streams.values():
            stream.fail(reason)
        self._streams.clear()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(EngineDeadError(reason))
        self._idle.set()
        self._gone.set()


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
