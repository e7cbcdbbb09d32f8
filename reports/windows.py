"""A run in windows of time: what it gave in each, and how long those who finished in it had taken."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from reports.run import Run
from reports.summary import finished, latencies
from reports.waste import column

#: requests that a window needs to say anything
_LEAST = 5
_MOST_WINDOWS = 40


class Window(NamedTuple):
    """``start_s`` and ``end_s`` since the first arrival; ``n`` requests finished in it."""

    start_s: float
    end_s: float
    n: int
    output_tokens_per_s: float
    e2e_p50_ms: float
    ttft_p50_ms: float


def windows_of(run: Run) -> list[Window]:
    """Equal windows of the run's time, but those in which fewer than five requests finished; of a short run none."""
    done = finished(run.requests)
    if len(done) < 4 * _LEAST:
        return []
    finish = column(done, "finish_ns")
    start, end = int(column(run.requests, "arrival_ns").min()), int(finish.max())
    if end <= start:
        return []
    count = min(_MOST_WINDOWS, len(done) // 10)
    edges = np.linspace(start, end, count + 1)
    place = np.clip(np.searchsorted(edges, finish, side="left") - 1, 0, count - 1)
    tokens = column(done, "output_tokens")
    of = latencies(run.requests)
    windows = []
    for index in range(count):
        here = place == index
        if here.sum() >= _LEAST:
            first, last = ((edge - start) / 1e9 for edge in edges[index : index + 2])
            windows.append(
                Window(
                    float(first), float(last), int(here.sum()), float(tokens[here].sum() / (last - first)),
                    float(np.median(of.e2e[here])) / 1e6, float(np.median(of.ttft[here])) / 1e6,
                )
            )  # fmt: skip
    return windows
