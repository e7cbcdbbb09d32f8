"""How many requests of an engine ended, and how many of them met all objectives: for an autoscaler that goes by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.loop import TokenOutput
from reports.slo import Slo
from scheduler.request import Request

FINISHED = ("length", "eos", "stop")


class Attainment:
    """A listener of an engine: ``ended`` requests but rejected ones, ``good`` those that finished and met ``slo``."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self._tokens: dict[str, int] = {}
        self.ended = 0
        self.good = 0

    def submitted(self, requests: Sequence[Request]) -> None:
        self._tokens.update((request.id, 0) for request in requests)

    def told(self, outputs: Sequence[TokenOutput]) -> None:
        for output in outputs:
            if output.token_id is not None and output.request_id in self._tokens:
                self._tokens[output.request_id] += 1
            if output.finish_reason:
                tokens = self._tokens.pop(output.request_id, 0)
                self.ended += output.finish_reason != "rejected"
                self.good += output.finish_reason in FINISHED and self._is_good(output, tokens)

    def gone(self, reason: str, lost: int) -> None:
        self._tokens.clear()

    def _is_good(self, output: TokenOutput, tokens: int) -> bool:
        metrics = output.metrics
        assert metrics is not None, "they come with the last news"
        first_ns = metrics.finish_ns if metrics.first_token_ns is None else metrics.first_token_ns
        scheduled_ns = first_ns if metrics.first_scheduled_ns is None else metrics.first_scheduled_ns
        e2e_ns = metrics.finish_ns - metrics.arrival_ns
        latencies_ns = {
            "ttft_ms": first_ns - metrics.arrival_ns,
            "tpot_ms": (metrics.finish_ns - first_ns) / max(1, tokens - 1),
            "e2e_ms": e2e_ns,
            "queue_ms": scheduled_ns - metrics.arrival_ns,
            "normalized_ms": e2e_ns / max(1, tokens),
        }
        return bool(self._slo.met({name: np.array([value / 1e6]) for name, value in latencies_ns.items()})[0])
