"""How many replicas there are to be: the rule, apart from who starts and stops them.

The settings bear Ray Serve's names (``autoscaling_config``) where they mean the same, and the rule is that of Ray
Serve's default policy: ongoing requests over their target give the factor by which replicas are too few or too many,
and a decision is carried out once it has stood for a delay. Different: a decision is made each ``metrics_interval_s``
(Ray: each 0.1 s, from metrics of that interval), and ``cooldown_s``, ``cold_start_s`` and the metrics ``queue`` and
``slo`` are ours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any, get_type_hints

from scheduler.errors import unknown_name
from simulator.cluster.errors import ClusterError
from simulator.cluster.faults import S, read_yaml

METRICS = ("ongoing", "queue", "slo")


@dataclass(frozen=True)
class AutoscaleSettings:
    """An autoscaler's settings.

    ``metric``: ``ongoing`` keeps the requests that have not ended at ``target_ongoing_requests`` a replica, ``queue``
    those that wait to be admitted at ``target_queued_requests``; ``slo`` adds a replica while fewer than
    ``target_attainment`` of the requests that ended in the look-back period met all objectives, and takes one away
    where that is not so and ``ongoing`` would. ``cold_start_s``: from the decision until a replica takes requests.
    ``cooldown_s``: no other decision is carried out for so long after one. ``replica_hour_price``: for the report.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    initial_replicas: int | None = None
    metric: str = "ongoing"
    target_ongoing_requests: float = 2.0
    target_queued_requests: float = 1.0
    target_attainment: float = 0.95
    metrics_interval_s: float = 10.0
    look_back_period_s: float = 30.0
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    cooldown_s: float = 0.0
    cold_start_s: float = 0.0
    replica_hour_price: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ClusterError(unknown_name("metric", self.metric, METRICS))
        positive = ("min_replicas", "target_ongoing_requests", "target_queued_requests", "target_attainment",
                    "metrics_interval_s", "look_back_period_s", "upscaling_factor", "downscaling_factor")  # fmt: skip
        natural = ("upscale_delay_s", "downscale_delay_s", "cooldown_s", "cold_start_s", "replica_hour_price")
        for name in (*positive, *natural):
            value = getattr(self, name)
            if value is not None and (value < 0 or (name in positive and not value)):
                raise ClusterError(f"{name} is {value:g}; must be {'>' if name in positive else '>='} 0")
        if self.max_replicas < self.min_replicas:
            raise ClusterError(
                f"max_replicas is {self.max_replicas}, fewer than min_replicas, which is {self.min_replicas}"
            )
        if not self.min_replicas <= self.initial <= self.max_replicas:
            raise ClusterError(f"initial_replicas is {self.initial}; must be from min_replicas to max_replicas")
        if self.target_attainment > 1:
            raise ClusterError(f"target_attainment is {self.target_attainment:g}; must be <= 1")

    @property
    def initial(self) -> int:
        """Replicas at the start, which are there from the first nanosecond on."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas

    @property
    def cold_start_ns(self) -> int:
        return round(self.cold_start_s * S)

    @property
    def interval_ns(self) -> int:
        return max(1, round(self.metrics_interval_s * S))


def read_autoscale(path: Path) -> AutoscaleSettings:
    """Settings from a YAML mapping. Raises :class:`ClusterError` for what is no setting, or no value for one."""
    entries = read_yaml(path, "autoscaler settings")
    names = [field.name for field in fields(AutoscaleSettings)]
    if not isinstance(entries, dict):
        raise ClusterError(f"autoscaler settings {path} must be a mapping, such as 'max_replicas: 4'")
    types = get_type_hints(AutoscaleSettings)
    for name, value in entries.items():
        if name not in names:
            raise ClusterError(f"autoscaler settings {path}: {unknown_name('setting', str(name), names)}")
        if not _fits(value, types[name]):
            raise ClusterError(f"autoscaler settings {path}: {name} is {value!r}")
    try:
        return AutoscaleSettings(**entries)
    except ClusterError as error:
        raise ClusterError(f"autoscaler settings {path}: {error}") from None


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool):
        return False
    whole, real = wanted in (int, int | None), wanted in (float, float | None)
    return isinstance(value, int if whole else (int, float) if real else str)


@dataclass(frozen=True)
class Observed:
    """What the autoscaler is told. ``replicas`` are those that take requests or are to; ``good`` of ``ended`` requests
    since it was last told met all objectives."""

    now_ns: int
    replicas: int
    ongoing: int
    queued: int
    ended: int = 0
    good: int = 0


class Autoscaler:
    """Says how many replicas there are to be, each time it is told how things are."""

    def __init__(self, settings: AutoscaleSettings) -> None:
        self.settings = settings
        self._seen: deque[Observed] = deque()
        #: which way the number is to go, and since when
        self._direction = 0
        self._since_ns = 0
        self._acted_ns: int | None = None

    def decide(self, observed: Observed) -> int:
        """The number of replicas from now on: ``observed.replicas`` where nothing is to be done."""
        settings, now_ns = self.settings, observed.now_ns
        self._seen.append(observed)
        while now_ns - self._seen[0].now_ns >= settings.look_back_period_s * S and len(self._seen) > 1:
            self._seen.popleft()
        wanted = self._wanted(observed.replicas)
        direction = (wanted > observed.replicas) - (wanted < observed.replicas)
        if direction != self._direction:
            self._direction, self._since_ns = direction, now_ns
        if not direction:
            return observed.replicas
        delay_s = settings.upscale_delay_s if direction > 0 else settings.downscale_delay_s
        resting = self._acted_ns is not None and now_ns - self._acted_ns < settings.cooldown_s * S
        if resting or now_ns - self._since_ns < delay_s * S:
            return observed.replicas
        self._acted_ns, self._direction = now_ns, 0
        return wanted

    def _wanted(self, replicas: int) -> int:
        settings = self.settings
        if settings.metric == "queue":
            wanted = self._for(replicas, sum(o.queued for o in self._seen), settings.target_queued_requests)
        else:
            wanted = self._for(replicas, sum(o.ongoing for o in self._seen), settings.target_ongoing_requests)
        if settings.metric == "slo":
            ended, good = sum(o.ended for o in self._seen), sum(o.good for o in self._seen)
            missed = good < settings.target_attainment * ended
            wanted = replicas + 1 if missed else max(replicas - 1, min(wanted, replicas))
        return max(settings.min_replicas, min(settings.max_replicas, wanted))

    def _for(self, replicas: int, total: int, target: float) -> int:
        """Replicas for the mean of ``total`` over what was seen, at ``target`` each."""
        settings = self.settings
        if not replicas:
            return 1 if total else 0
        ratio = total / len(self._seen) / replicas / target
        factor = settings.upscaling_factor if ratio >= 1 else settings.downscaling_factor
        wanted = ceil(replicas * (1 + (ratio - 1) * factor))
        # rounding up must not keep a replica that smoothing would take away
        return replicas - 1 if ratio < 1 and wanted == replicas and factor < 1 else wanted
