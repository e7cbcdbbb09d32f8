"""A server as a process: its port, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop
from fastapi import FastAPI

from engine.loop import undisturbed
from serving.logs import log_event
from serving.server import Server, ServerSettings, create_app

OK, FAILED = 0, 1
#: for what the engine's end has to be told to everybody
LAST_WORDS_S = 1.0
#: for answers that are ready, to clients that do not read them
FLUSH_S = 5
_BACKLOG = 2048


class PortError(Exception):
    """The server cannot listen there; the message is one line."""


class _HttpServer(uvicorn.Server):
    """uvicorn, but signals are this module's: what runs is finished before the port closes."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def open_port(host: str, port: int) -> socket.socket:
    """A socket of that address. Raises :class:`PortError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        raise PortError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
    opened.set_inheritable(False)
    return opened


def run(settings: ServerSettings, port: socket.socket) -> int:
    """Serve until a signal says to stop, or the engine ends. Returns the exit code.

    Raises :class:`~engine.errors.EngineError` where the engine cannot be made, and :class:`PortError`.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, port))


async def _run(settings: ServerSettings, port: socket.socket) -> int:
    app = create_app(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)  # while there is nothing to finish
    async with app.router.lifespan_context(app):
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        with undisturbed():
            return await serve_app(app, port, stopping)


async def serve_app(app: FastAPI, port: socket.socket, stopping: asyncio.Event) -> int:
    """Serve a started application until ``stopping`` is set or its engine ends. Returns the exit code."""
    server: Server = app.state.server
    config = uvicorn.Config(
        app, lifespan="off", access_log=False, log_config=None, http="httptools", ws="none", backlog=_BACKLOG,
        timeout_graceful_shutdown=FLUSH_S, server_header=False,
    )  # fmt: skip
    try:
        port.listen(_BACKLOG)
    except OSError as error:
        host, number = port.getsockname()[:2]
        raise PortError(f"cannot listen at {host}:{number}: {error.strerror or error}") from error
    http = _HttpServer(config)
    serving = asyncio.create_task(http.serve([port]))
    host, number = port.getsockname()[:2]
    log_event(f"serving {server.names[0]} at http://{host}:{number}")
    code = await _until_the_end(server, stopping)
    stopping.clear()
    http.should_exit = True
    again = asyncio.create_task(stopping.wait())
    await asyncio.wait([serving, again], return_when=asyncio.FIRST_COMPLETED)
    http.force_exit = again.done()
    again.cancel()
    await serving
    return code


async def _until_the_end(server: Server, stopping: asyncio.Event) -> int:
    """Wait for the end of the engine, or for a signal, after which what runs may finish. A second one waits no more."""
    gone = asyncio.create_task(server.engine.gone())
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait([gone, told], return_when=asyncio.FIRST_COMPLETED)
    if not gone.done():
        stopping.clear()
        again = asyncio.create_task(stopping.wait())
        drained = asyncio.create_task(server.drain())
        await asyncio.wait([gone, again, drained], return_when=asyncio.FIRST_COMPLETED)
        for task in (again, drained):
            task.cancel()
        if not gone.done():
            gone.cancel()
            await server.stop()
            return OK
    told.cancel()
    await asyncio.sleep(LAST_WORDS_S)
    return FAILED
