"""A server for tests: the engine in its process, HTTP in a thread of this one, where its state can be seen."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import httpx
from openai import OpenAI

from serving.messages import Snapshot
from serving.run import open_port, serve_app
from serving.server import Server, ServerSettings, create_app

START_S = 300
PATIENCE_S = 60


class RunningServer:
    """A server on a free port of this machine. Leaving it stops it as SIGTERM does."""

    def __init__(self, settings: ServerSettings) -> None:
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self.code: int | None = None
        self._port = open_port("127.0.0.1", 0)
        # who connects before the server accepts waits for it
        self._port.listen()
        self.port: int = self._port.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, args=(settings,), name="server")
        self._thread.start()
        assert self._started.wait(START_S)
        if self._problem is not None:
            raise self._problem

    def _run(self, settings: ServerSettings) -> None:
        try:
            self.code = asyncio.run(self._serve(settings))
        except BaseException as problem:
            self._problem = problem
        finally:
            self._port.close()
            self._started.set()

    async def _serve(self, settings: ServerSettings) -> int:
        app = create_app(settings)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        async with app.router.lifespan_context(app):
            self.server: Server = app.state.server
            self._started.set()
            return await serve_app(app, self._port, self._stopping)

    def tell_to_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)

    def ended(self, timeout_s: float) -> bool:
        """Whether it has ended, which is waited for so long."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> int | None:
        """Returns the exit code."""
        if self._thread.is_alive():
            self.tell_to_stop()
        self._thread.join(START_S)
        return self.code

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def snapshot(self) -> Snapshot:
        return self.call(self.server.engine.snapshot())

    def idle_snapshot(self) -> Snapshot:
        """When nothing is in flight any more, with what that leaves."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            found = self.snapshot()
            if not (found.running or found.waiting or self.server.engine.in_flight):
                return found
            time.sleep(0.01)
        raise TimeoutError(f"requests go on: {found}")

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, **options)

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S, **options)
