"""What watches a server: metrics, live page, log lines and traces, put together in one place."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from serving.cohorts import buckets_of
from serving.exchanges import EndedRequest, Exchanges
from serving.live.feed import Feed
from serving.logs import EngineLines, RequestLines, Texts, log_event
from serving.lookout import Look, Lookout
from serving.metrics import ServerMetrics
from serving.status import Status, status
from serving.tracing import traces_from
from serving.traffic import Traffic

if TYPE_CHECKING:
    from serving.server import Server

#: the live page loads nothing from elsewhere, and the browser holds it to that
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(tags=["monitoring"])


class Monitor:
    """Watches ``server`` from its start to its end; ``exchanges`` are those of its application's middleware."""

    def __init__(self, server: Server, exchanges: Exchanges) -> None:
        model, listeners = server.names[0], server.engine.listeners
        texts = None
        if server.settings.log_prompts and server.tokenizer is not None:
            texts = Texts(server.tokenizer.literal)
            listeners.append(texts)  # before the traffic, which says that a request has ended
        self._server = server
        self._exchanges = exchanges
        self._traces = traces_from(os.environ, model)
        self.traffic = Traffic(server.info.context_tokens, self._ended)
        listeners.append(self.traffic)
        listeners.append(EngineLines(lambda: server.draining))
        exchanges.listeners.append(RequestLines(model, texts))
        self._buckets = buckets_of(server.info.config)
        self._lookout = Lookout(server.engine, self.traffic)
        self.metrics = ServerMetrics(server, self.traffic, exchanges, self._lookout, self._buckets)
        self.feed = Feed(self._lookout, self._status, lambda: server.draining)
        info = server.info
        log_event(
            "the engine is ready", model=model, hardware=info.hardware, emulated=info.emulated, pid=server.engine.pid
        )

    def close(self) -> None:
        """The server has ended."""
        self._lookout.stop()
        if self._traces is not None:
            self._traces.close()
        log_event("the server has ended", output_tokens=self.traffic.output_tokens)

    def _status(self, look: Look | None, before: Look | None) -> Status:
        return status(self._server, self.traffic, self._buckets, look, before)

    def _ended(self, request: EndedRequest) -> None:
        if self._traces is not None:
            self._traces(request)
        self._exchanges.ended(request)


@cache
def page() -> str:
    """The live page: it is one file, with its style and its script."""
    return (files("serving.live") / "page.html").read_text("utf-8")


def _monitor(request: Request) -> Monitor:
    monitor: Monitor = request.app.state.monitor
    return monitor


@router.get("/", include_in_schema=False, response_class=HTMLResponse)
async def live_page() -> HTMLResponse:
    return HTMLResponse(page(), headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})


@router.get("/metrics", summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    text, content_type = await _monitor(request).metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


@router.get("/status", summary="How the server is now")
async def present_status(request: Request) -> dict[str, Any]:
    return await _monitor(request).feed.status()


@router.get("/status/events", include_in_schema=False)
async def status_events(request: Request) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_monitor(request).feed.events(), media_type="text/event-stream", headers=headers)
