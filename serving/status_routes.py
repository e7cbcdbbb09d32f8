"""How the server is, for people and probes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from serving.server import Server

router = APIRouter(tags=["status"])


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether the engine is there."""
    server: Server = request.app.state.server
    failure = server.engine.failure
    status: dict[str, Any] = {"status": "ok" if failure is None else "dead", "model": server.names[0]}
    if failure is not None:
        status["reason"] = failure
    return JSONResponse(status, 200 if failure is None else 503)


@router.get("/live")
async def live() -> dict[str, str]:
    """That this process answers."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Whether another request is taken."""
    server: Server = request.app.state.server
    if server.engine.failure is not None:
        return JSONResponse({"status": "dead", "reason": server.engine.failure}, 503)
    if server.draining:
        return JSONResponse({"status": "shutting down"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/version")
async def show_version() -> dict[str, str]:
    """Of Lockstep."""
    try:
        return {"version": version("lockstep")}
    except PackageNotFoundError:  # a checkout that is not installed
        return {"version": "unknown"}
