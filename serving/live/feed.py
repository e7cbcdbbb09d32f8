"""One stream of frames for all who look: taken while anybody does, encoded once, the newest for those who are slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from serving.lookout import Look, Lookout
from serving.status import Status

#: between two frames
PERIOD_S = 0.25
#: how long a frame's rates go back
RATE_S = 1.0
#: frames that whoever comes is shown first: two minutes of them
KEPT_FRAMES = 480


class Feed:
    """Frames of a server's status. ``status_of`` makes one from a look and an earlier one; ``ending``: end now."""

    def __init__(
        self,
        lookout: Lookout,
        status_of: Callable[[Look | None, Look | None], Status],
        ending: Callable[[], bool],
    ) -> None:
        self._lookout = lookout
        self._status_of = status_of
        self._ending = ending
        #: what charts are drawn from, of each frame
        self._points: deque[dict[str, Any]] = deque(maxlen=KEPT_FRAMES)
        self._frame = b""
        self._count = 0
        self._new = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.viewers = 0

    async def status(self) -> Status:
        """The present."""
        look = await self._lookout.look()
        return self._status_of(look, None if look is None else self._lookout.before(look))

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, until the server ends: ``history`` once, then a ``frame`` four times a second."""
        self.viewers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="live frames")
        try:
            yield b"retry: 1000\n" + _event("history", list(self._points))
            seen = self._count
            while not self._ending():
                if seen == self._count:
                    await self._new.wait()
                else:
                    seen = self._count
                    yield self._frame
        finally:
            self.viewers -= 1

    async def _run(self) -> None:
        """Takes frames while anybody looks."""
        while self.viewers and not self._ending():
            started = asyncio.get_running_loop().time()
            frame = await self.status()
            look = self._lookout.latest
            if look is not None and frame["up"]:
                point = _point(frame, look, self._lookout.before(look, RATE_S))
                self._points.append(point)
                frame["point"] = point
            self._publish(_event("frame", frame))
            await asyncio.sleep(max(0.01, started + PERIOD_S - asyncio.get_running_loop().time()))
        self._publish(self._frame)

    def _publish(self, frame: bytes) -> None:
        """Wake everybody, whose turn to look at :attr:`_ending` it is too."""
        self._frame = frame
        self._count += 1
        self._new.set()
        self._new = asyncio.Event()


def _point(frame: Status, look: Look, before: Look | None) -> dict[str, Any]:
    state, latency = frame["state"], frame["latency_ms"]
    lengths = state["cohorts"]["running"]
    filled = max((place + 1 for place, count in enumerate(lengths) if count), default=0)
    seconds = 0.0 if before is None else (look.at_ns - before.at_ns) / 1e9
    return {
        "t": round(look.unix_s, 3),
        "running": state["running"],
        "waiting": state["waiting"],
        "tokens_per_s": None if before is None else (look.output_tokens - before.output_tokens) / seconds,
        "kv": [state["kv"]["held"], state["kv"]["allocated"], state["kv"]["capacity"]],
        "itl": [latency["itl"]["p50"], latency["itl"]["p99"]],
        "bin_width": state["cohorts"]["bin_width"],
        "lengths": lengths[:filled],
    }


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
