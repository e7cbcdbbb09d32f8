"""Looks at the engine, shared by all who want to see it, however often they ask."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple

from serving.engine_client import EngineClient, EngineDeadError
from serving.messages import Snapshot
from serving.traffic import Traffic

#: how long to wait for the engine, which answers between two steps
PATIENCE_S = 1.0
#: how far back rates and shares of the present go
WINDOW_S = 10.0


class Look(NamedTuple):
    """A snapshot, when it was taken, and what had gone through the front by then."""

    snapshot: Snapshot
    at_ns: int
    """monotonic"""
    unix_s: float
    prompt_tokens: int
    output_tokens: int
    ended: int


class Lookout:
    """Whoever asks while a snapshot is on its way waits for that one."""

    def __init__(self, engine: EngineClient, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic
        self._looks: deque[Look] = deque()
        self._looking: asyncio.Task[None] | None = None

    @property
    def latest(self) -> Look | None:
        """The last look there was, however old."""
        return self._looks[-1] if self._looks else None

    async def look(self, patience_s: float = PATIENCE_S) -> Look | None:
        """How the engine is now, or was when it last answered: it may be gone, or busy with a long step."""
        if self._engine.failure is None:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._take(), name="snapshot")
            await asyncio.wait({self._looking}, timeout=patience_s)
        return self.latest

    def before(self, look: Look, age_s: float = WINDOW_S) -> Look | None:
        """The last look that is older than ``look`` by ``age_s``, or else the first one that is older at all."""
        limit_ns = look.at_ns - int(age_s * 1e9)
        earlier = [other for other in self._looks if other.at_ns < look.at_ns]
        aged = [other for other in earlier if other.at_ns <= limit_ns]
        return aged[-1] if aged else earlier[0] if earlier else None

    def stop(self) -> None:
        """Wait for nothing any more."""
        if self._looking is not None:
            self._looking.cancel()

    async def _take(self) -> None:
        try:
            snapshot = await self._engine.snapshot()
        except EngineDeadError:
            return
        traffic, now_ns = self._traffic, time.monotonic_ns()
        look = Look(
            snapshot, now_ns, time.time(), traffic.prompt_tokens, traffic.output_tokens, traffic.finished.total()
        )
        self._looks.append(look)
        while len(self._looks) > 2 and self._looks[1].at_ns <= now_ns - int(WINDOW_S * 1e9):
            self._looks.popleft()
