"""What the HTTP endpoints share: the engine, its tokenizer, and whether another request may come in."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.types import Receive

from engine.pretrained import tokenizer_from
from engine.tokenizer import Tokenizer
from scheduler.request import Request
from serving import openai_routes, seed_routes, status_routes, token_routes
from serving.answer import Answer
from serving.engine_client import EngineClient, OutputStream
from serving.errors import RefusedError, install_error_handlers, invalid
from serving.exchanges import ExchangeMiddleware, Exchanges
from serving.guards import install_guards
from serving.messages import EngineInfo, EngineSettings
from serving.monitor import Monitor
from serving.monitor import router as monitoring
from serving.prompts import Prompts
from serving.token_texts import TokenTexts

DEFAULT_MAX_BODY_BYTES = 8 << 20


@dataclass(frozen=True)
class ServerSettings:
    """``max_queue``: requests beyond the engine's ``max_running`` that may be in flight. Times are seconds.

    ``served_names``: what clients may call the model, the first of which is shown; by default the model's own.
    ``request_timeout_s``: how long any request may take, however long its client would wait.
    ``api_keys``: one of them has to come with every request, where there are any.
    ``log_prompts``: log lines have prompts and outputs, which otherwise they never have.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    served_names: tuple[str, ...] = ()
    max_queue: int = 1024
    drain_s: float = 30.0
    request_timeout_s: float | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False


class Server:
    """One engine behind HTTP. Belongs to the event loop that started it."""

    def __init__(self, settings: ServerSettings, engine: EngineClient, tokenizer: Tokenizer | None) -> None:
        self.settings = settings
        self.engine = engine
        self.tokenizer = tokenizer
        self.prompts = Prompts(engine.info, tokenizer)
        self.token_texts = TokenTexts(tokenizer)
        #: seconds since the epoch
        self.started_s = int(time.time())
        #: no request is taken any more: the server is about to end
        self.draining = False
        #: requests that were not taken, by why: ``draining``, ``queue_full`` or ``engine_gone``
        self.refused: Counter[str] = Counter()

    @classmethod
    async def start(cls, settings: ServerSettings) -> Server:
        """Start the engine. Raises :class:`~engine.errors.EngineError`."""
        engine = await EngineClient.start(settings.engine)
        source = engine.info.tokenizer
        tokenizer = None if source is None else await asyncio.to_thread(tokenizer_from, source)
        return cls(settings, engine, tokenizer)

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def names(self) -> tuple[str, ...]:
        """What the model is called."""
        return self.settings.served_names or (self.info.model,)

    @property
    def most_in_flight(self) -> int:
        """Requests that may be in flight."""
        return int(self.info.config["max_running"]) + self.settings.max_queue

    def submit(self, requests: Sequence[Request]) -> list[OutputStream]:
        """Hand requests in, all or none.

        Raises :class:`~serving.errors.RefusedError` where too many are in flight already or the server is about to
        end, and :class:`~serving.engine_client.EngineDeadError`.
        """
        if self.draining:
            self.refused["draining"] += len(requests)
            raise RefusedError("the server is shutting down", 5)
        most = self.most_in_flight
        if self.engine.in_flight + len(requests) > most:
            self.refused["queue_full"] += len(requests)
            raise RefusedError(f"{self.engine.in_flight} requests are in flight, of {most} at most; try again later", 1)
        if self.engine.failure is not None:
            self.refused["engine_gone"] += len(requests)
        return self.engine.submit(requests)

    def answer(self, requests: Sequence[Request], receive: Receive, timeout_s: float | None = None) -> Answer:
        """Hand requests in for the client at ``receive``, who has so much patience; else as :meth:`submit`."""
        if len(requests) > self.most_in_flight:
            raise invalid(f"{len(requests)} outputs are more than the {self.most_in_flight} that may be in flight")
        limits = [limit for limit in (timeout_s, self.settings.request_timeout_s) if limit is not None]
        return Answer(self.engine, self.submit(requests), receive, min(limits, default=None))

    async def drain(self) -> None:
        """Take no more requests, and wait for those in flight, at most as long as the settings say."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.engine.idle(), self.settings.drain_s)

    async def stop(self) -> None:
        """End the engine: what is still in flight is aborted."""
        self.draining = True
        await self.engine.close()


def create_app(settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application, with which the engine starts and ends.

    ``app.state.server`` is the :class:`Server`.
    """

    exchanges = Exchanges()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.server = server = await Server.start(settings)
        app.state.monitor = monitor = Monitor(server, exchanges)
        try:
            yield
        finally:
            await server.drain()
            await server.stop()
            monitor.close()

    app = FastAPI(title="Lockstep", lifespan=lifespan)
    install_error_handlers(app)
    install_guards(app, settings.max_body_bytes, settings.api_keys, settings.cors_origins)
    app.add_middleware(ExchangeMiddleware, exchanges=exchanges)
    for routes in (openai_routes, token_routes, seed_routes, status_routes):
        app.include_router(routes.router)
    app.include_router(monitoring)
    return app
