"""A replica on Ray Serve: a whole server, with its engine in a process of its own, that is called through Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from ray import serve

from reports.slo import Slo
from serving.cluster.asgi import answer
from serving.cluster.attainment import Attainment
from serving.cluster.autoscaling import ENDED, GOOD, ONGOING, QUEUED
from serving.cluster.calls import Head, HttpCall
from serving.engine_client import EngineDeadError
from serving.server import Server, ServerSettings, create_app

_LOG = logging.getLogger("ray.serve")
#: for telling everybody that the engine has ended
LAST_WORDS_S = 1.0
FAILED = 1


class EngineReplica:
    """A server without a port: its calls come through Ray. It ends with its engine, so that Ray starts another."""

    # Ray Serve waits for it
    async def __init__(  # type: ignore[misc]
        self, settings: ServerSettings, slo: Slo | None, cold_start_s: float
    ) -> None:
        began = time.monotonic()
        self._stack = AsyncExitStack()
        self._app = create_app(settings)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self._server: Server = self._app.state.server
        self._attainment = None if slo is None else Attainment(slo)
        if self._attainment is not None:
            self._server.engine.listeners.append(self._attainment)
        took_s = time.monotonic() - began
        if took_s > cold_start_s:
            _LOG.warning("the engine took %.1f s to start; cold_start_s is %g in the settings", took_s, cold_start_s)
        self._closing = False
        self._watch = asyncio.create_task(self._end_with_engine(), name="engine's end")

    async def http(self, call: HttpCall) -> AsyncGenerator[Head | bytes]:
        """The server's answer: its head, then its body in pieces."""
        async for part in answer(self._app, call):
            if isinstance(part, Head):
                part = part._replace(lost=part.status >= 500 and self._server.engine.failure is not None)
            yield part

    async def metrics(self, call: HttpCall) -> tuple[str, str]:
        """Its name, and what it has for Prometheus; nothing where there are no metrics."""
        parts = [part async for part in answer(self._app, call)]
        body = b"".join(part for part in parts if isinstance(part, bytes))
        found = any(isinstance(part, Head) and part.status == 200 for part in parts)
        return serve.get_replica_context().replica_id.unique_id, body.decode() if found else ""

    async def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that raises. Raises :class:`EngineDeadError`."""
        if self._server.engine.failure is not None:
            raise EngineDeadError(self._server.engine.failure)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaler goes by."""
        snapshot = await self._server.engine.snapshot()
        counts: dict[str, float] = {ONGOING: self._server.engine.in_flight, QUEUED: snapshot.waiting}
        if self._attainment is not None:
            counts |= {ENDED: self._attainment.ended, GOOD: self._attainment.good}
        return counts

    async def record_routing_stats(self) -> dict[str, int]:
        """What routers go by, as it changes."""
        snapshot = await self._server.engine.snapshot()
        return {"kv_tokens": snapshot.kv_tokens + sum(snapshot.waiting_lengths)}

    async def record_replica_metadata(self) -> dict[str, int]:
        """What routers go by, of what does not change."""
        snapshot = await self._server.engine.snapshot()
        return {
            "max_running": int(self._server.info.config["max_running"]),
            "kv_tokens": snapshot.kv_capacity_tokens,
        }

    async def state(self) -> dict[str, Any]:
        """Its processes and its engine's counters, for those who look after a cluster."""
        engine = self._server.engine
        return {"replica": os.getpid(), "engine": engine.pid, "counters": (await engine.snapshot()).counters}

    async def __del__(self) -> None:
        self._closing = True
        await self._stack.aclose()

    async def _end_with_engine(self) -> None:
        reason = await self._server.engine.gone()
        if not self._closing:
            _LOG.error("%s", reason)
            await asyncio.sleep(LAST_WORDS_S)
            os._exit(FAILED)
