"""The server as an application of Ray Serve: a front that takes calls, and replicas, each of which is a whole server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from reports.slo import Slo
from scheduler.config import SchedulerConfig
from serving.cluster.asgi import answer
from serving.cluster.attainment import Attainment
from serving.cluster.autoscaling import ENDED, GOOD, ONGOING, QUEUED, AutoscalePolicy, check_served
from serving.cluster.calls import Head, HttpCall
from serving.cluster.ray_router import LockstepRouter
from serving.cluster.routing import check_router
from serving.engine_client import EngineDeadError
from serving.server import Server, ServerSettings
from simulator.cluster.autoscaler import AutoscaleSettings

_LOG = logging.getLogger("ray.serve")
#: how often a call is tried again on another replica, while its client has heard nothing yet
RETRIES = 2
LOST = "the replica that served this request was lost"
#: how often replicas say how much KV they hold
REPORT_S = 1.0
#: what replicas are called in Ray
ENGINES = "engines"


@dataclass(frozen=True)
class ClusterSettings:
    """What runs on a cluster. ``make_app`` makes a replica's application of ``server``.

    ``cpus`` and ``gpus`` are what Ray reserves for a replica. ``slo`` is for an autoscaler that goes by it.
    """

    server: ServerSettings
    make_app: Callable[[ServerSettings], FastAPI]
    scaling: AutoscaleSettings
    router: str = "round-robin"
    slo: Slo | None = None
    cpus: float = 1.0
    gpus: float = 0.0


class EngineReplica:
    """A server without a port: its calls come through Ray."""

    async def __init__(self, settings: ClusterSettings) -> None:  # type: ignore[misc]
        began = time.monotonic()
        self._stack = AsyncExitStack()
        self._app = settings.make_app(settings.server)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self._server: Server = self._app.state.server
        self._attainment = None if settings.slo is None else Attainment(settings.slo)
        if self._attainment is not None:
            self._server.engine.listeners.append(self._attainment)
        took_s, foreseen_s = time.monotonic() - began, settings.scaling.cold_start_s
        if took_s > foreseen_s:
            _LOG.warning("the engine took %.1f s to start; cold_start_s is %g in the settings", took_s, foreseen_s)

    async def http(self, call: HttpCall) -> AsyncGenerator[Head | bytes]:
        """The server's answer: its head, then its body in pieces."""
        async for part in answer(self._app, call):
            if isinstance(part, Head):
                part = part._replace(lost=part.status >= 500 and self._server.engine.failure is not None)
            yield part

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

    async def pids(self) -> tuple[int, int]:
        """Of the engine's process and of whoever calls it, for those who look after a cluster."""
        import os

        return self._server.engine.pid, os.getpid()

    async def __del__(self) -> None:  # type: ignore[misc]
        await self._stack.aclose()


class Front:
    """Takes calls from Ray Serve's proxy and hands each to a replica.

    One that is lost with its replica is tried again as long as its client has heard nothing. Otherwise, and where no
    other try helps, the client is told.
    """

    def __init__(self, engines: DeploymentHandle[Any]) -> None:
        self._engines = engines.options(stream=True, method_name="http")

    async def __call__(self, request: HttpRequest) -> Response:
        path = request.url.path
        call = HttpCall(request.method, path, request.scope["query_string"], _headers(request), await request.body())
        for _ in range(1 + RETRIES):
            parts = aiter(self._engines.remote(call))
            try:
                head = await anext(parts)
                if head.lost:
                    continue
                if not head.is_stream:
                    body = b"".join([part async for part in parts])
                    return _response(head, body)
                first = await anext(parts, b"")
                return StreamingResponse(_events(first, parts), head.status, dict(_texts(head)))
            except RayActorError:
                continue
            except BackPressureError:
                return _refusal("too many requests wait for a replica; try again later", 503)
            except DeploymentUnavailableError:
                return _refusal("no replica can be started", 503)
        return _refusal(f"{LOST}, and so were {RETRIES} others that it was handed to", 503)


async def _events(first: bytes, parts: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """A stream of events; one that breaks off ends with an event that says so."""
    yield first
    try:
        async for part in parts:
            yield part
    except RayActorError:
        yield b"data: " + json.dumps(_error(LOST, 503)).encode() + b"\n\n"


def _error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def _refusal(message: str, code: int) -> Response:
    return JSONResponse(_error(message, code), code, {"Retry-After": "1"})


def _response(head: Head, body: bytes) -> Response:
    response = Response(body, head.status)
    response.raw_headers = [pair for pair in head.headers if pair[0] != b"transfer-encoding"]
    return response


def _texts(head: Head) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]


def _headers(request: HttpRequest) -> list[tuple[bytes, bytes]]:
    return [(bytes(name).lower(), bytes(value)) for name, value in request.scope["headers"]]


def build(settings: ClusterSettings) -> serve.Application:
    """The application, to be run with ``serve.run``.

    Raises :class:`~simulator.cluster.errors.ClusterError` for settings that cannot be had.
    """
    scheduler = settings.server.engine.scheduler
    check_router(settings.router, bool(scheduler.get("prefix_cache")))
    check_served(settings.scaling, settings.slo is not None)
    scaling = settings.scaling
    most = int(scheduler.get("max_running") or SchedulerConfig.max_running) + settings.server.max_queue
    engines = serve.deployment(EngineReplica, name=ENGINES).options(
        # refused by the server, not by Ray Serve
        max_ongoing_requests=most + 1,
        max_queued_requests=max(1, settings.server.max_queue),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.server.drain_s + 5,
        health_check_period_s=1,
        request_router_config=RequestRouterConfig(
            request_router_class=LockstepRouter,
            request_router_kwargs={"router": settings.router},
            request_routing_stats_period_s=REPORT_S,
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            initial_replicas=scaling.initial,
            metrics_interval_s=scaling.metrics_interval_s,
            # of calls that wait for a replica; the policy looks back by itself
            look_back_period_s=2 * scaling.metrics_interval_s,
            upscale_delay_s=0,
            downscale_delay_s=0,
            policy=AutoscalingPolicy(policy_function=AutoscalePolicy, policy_kwargs=asdict(scaling)),
        ),
    )
    front = serve.deployment(Front, name="front").options(
        max_ongoing_requests=1 << 16, ray_actor_options={"num_cpus": 0}, graceful_shutdown_wait_loop_s=0.5
    )
    return front.bind(engines.bind(settings))
