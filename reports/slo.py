"""Service-level objectives: what counts as a good request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.config import unknown_name

#: what an objective can be set on: per-request latencies, in milliseconds
OBJECTIVES = ("ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "normalized_ms")


class SloError(ValueError):
    """An objective that cannot be; the message is one line for the user."""


@dataclass(frozen=True)
class Slo:
    """Upper limits in milliseconds, each on one latency of a request. A request is good if it meets all of them."""

    limits_ms: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, limit in self.limits_ms.items():
            if name not in OBJECTIVES:
                raise SloError(unknown_name("objective", name, OBJECTIVES))
            if not 0 < limit < float("inf"):
                raise SloError(f"objective {name} is {limit}; must be > 0 ms")

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From a command line: ``ttft_ms=500,tpot_ms=50``. Raises :class:`SloError`."""
        limits: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise SloError(f"objective {part!r} has no limit; write it as ttft_ms=500")
            if name.strip() in limits:
                raise SloError(f"objective {name.strip()} is given twice")
            try:
                limits[name.strip()] = float(value)
            except ValueError as error:
                raise SloError(f"objective {name.strip()} has the limit {value!r}; must be a number of ms") from error
        if not limits:
            raise SloError(f"no objective given; write e.g. ttft_ms=500 (valid: {', '.join(OBJECTIVES)})")
        return cls(limits)

    def met(self, latencies_ms: Mapping[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """Which requests meet every objective. An undefined latency (NaN: TPOT of one token) breaks no objective."""
        met: npt.NDArray[np.bool_] = np.ones(len(latencies_ms["e2e_ms"]), np.bool_)
        for name, limit in self.limits_ms.items():
            met &= ~(latencies_ms[name] > limit)
        return met

    def __str__(self) -> str:
        return ", ".join(f"{name} <= {limit:g}" for name, limit in self.limits_ms.items())
