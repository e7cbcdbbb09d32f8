"""Multi-bin batching: a batch takes requests of one bin of predicted lengths, so that few wait for the longest.

Source: Multi-Bin Batching (arXiv 2412.04504): bins of equal mass, batches in order, run to completion.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from scheduler.buckets import quantile_edges
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.policy import Lane, Order, Policy, View
from scheduler.sequence import Sequence

DEFAULT_BINS = 4
DEFAULT_MAX_WAIT_S = 1.0


class ByBin(Order):
    """Lanes by predicted length; a lane that fills a batch first, then the one whose request came first."""

    exclusive = True

    def __init__(self, edges: tuple[int, ...], batch: int) -> None:
        self.edges = edges
        self._batch = batch

    def lane(self, sequence: Sequence, view: View) -> int:
        return bisect_left(self.edges, sequence.estimates[0])

    def lane_rank(self, lane: Lane) -> Any:
        return (lane.count < self._batch, lane.oldest)


def equal_mass_bins(config: SchedulerConfig, bins: int, batch: int) -> ByBin:
    """The order of ``bins`` bins over the run's output lengths, in which ``batch`` requests fill a batch."""
    if config.length_quantiles is None:
        raise ConfigError(f"{config.policy} needs length_quantiles: the output lengths that its bins are to divide")
    return ByBin(quantile_edges(config.length_quantiles, bins), batch)


def build(config: SchedulerConfig) -> Policy:
    """``bins`` bins (default 4) of equal mass over the workload's output lengths, by the ``oracle``'s prediction.

    A batch starts when a bin holds ``min_batch`` requests (default ``max_running``), or when the oldest has waited
    for ``max_wait_s`` (default 1).
    """
    batch = config.min_batch or config.max_running
    return Policy(
        config.policy,
        waiting=equal_mass_bins(config, config.bins or DEFAULT_BINS, batch),
        run_to_completion=True,
        min_batch=batch,
        max_wait_ns=round((DEFAULT_MAX_WAIT_S if config.max_wait_s is None else config.max_wait_s) * 1e9),
    )
