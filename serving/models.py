"""The model by the names that clients may call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.server import Server


def check_model(server: Server, name: str | None) -> str:
    """The model's name as a client calls it, by default the first. Raises :class:`~serving.errors.ApiError`."""
    if not name:
        return server.names[0]
    if name not in server.names:
        there = ", ".join(server.names)
        raise ApiError(404, f"the model {name!r} is not here; there is: {there}", param="model", code="model_not_found")
    return name


def model_card(server: Server, name: str) -> dict[str, Any]:
    """A model as ``/v1/models`` shows it."""
    return {
        "id": name,
        "object": "model",
        "created": server.started_s,
        "owned_by": "lockstep",
        "root": server.info.model,
        "parent": None,
        "max_model_len": server.info.context_tokens,
    }
