"""How many replicas there are: the simulator's autoscaler, told by Ray Serve how the replicas are.

Ray Serve's own rule is left out of it (its delays are 0 and its factors 1), so that a settings file means the same in
a simulation and here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from simulator.cluster.autoscaler import Autoscaler, AutoscaleSettings, Observed
from simulator.cluster.errors import ClusterError

#: what each replica tells of itself: requests in flight and waiting to be admitted; ended and good since it began
ONGOING, QUEUED, ENDED, GOOD = "ongoing", "queued", "ended", "good"


class Point(Protocol):
    """A figure that a replica told."""

    value: float


class Context(Protocol):
    """What is used of Ray Serve's ``AutoscalingContext``."""

    current_time: float
    target_num_replicas: int
    running_replicas: Sequence[Any]
    raw_metrics: Mapping[str, Mapping[Any, Sequence[Point]]]
    total_queued_requests: float


def check_served(settings: AutoscaleSettings, has_slo: bool) -> None:
    """Raises :class:`ClusterError` for settings that a simulation may have and Ray Serve may not."""
    if settings.metric == "slo" and not has_slo:
        raise ClusterError("the metric slo needs --slo, such as --slo ttft_ms=500")


class AutoscalePolicy:
    """An autoscaling policy for Ray Serve. ``settings`` are those of an :class:`AutoscaleSettings`."""

    def __init__(self, **settings: Any) -> None:
        self._autoscaler = Autoscaler(AutoscaleSettings(**settings))
        self._next_ns = 0
        #: what each replica had told of the requests that ended, at the last look
        self._ended: dict[Any, tuple[float, float]] = {}

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of replicas from now on. Ray Serve asks more often than there is to be a look."""
        now_ns = round(context.current_time * 1e9)
        if now_ns < self._next_ns:
            return context.target_num_replicas, {}
        self._next_ns = now_ns + self._autoscaler.settings.interval_ns
        told = self._told(context)
        waiting = round(context.total_queued_requests)
        counts = {replica: (told(ENDED, replica), told(GOOD, replica)) for replica in context.running_replicas}
        news = [
            (ended - self._ended.get(replica, (0.0, 0.0))[0], good - self._ended.get(replica, (0.0, 0.0))[1])
            for replica, (ended, good) in counts.items()
        ]
        self._ended = counts
        observed = Observed(
            now_ns=now_ns,
            replicas=context.target_num_replicas,
            ongoing=waiting + round(sum(told(ONGOING, replica) for replica in context.running_replicas)),
            queued=waiting + round(sum(told(QUEUED, replica) for replica in context.running_replicas)),
            ended=round(sum(ended for ended, _ in news)),
            good=round(sum(good for _, good in news)),
        )
        return self._autoscaler.decide(observed), {}

    @staticmethod
    def _told(context: Context) -> Callable[[str, Any], float]:
        def newest(name: str, replica: Any) -> float:
            points = context.raw_metrics.get(name, {}).get(replica)
            return points[-1].value if points else 0.0

        return newest
