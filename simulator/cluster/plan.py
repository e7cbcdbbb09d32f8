"""What a cluster is made of."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.config import SchedulerConfig
from simulator.cluster.autoscaler import AutoscaleSettings
from simulator.cluster.faults import Fault
from simulator.cluster.transfer import Link
from simulator.costs import CostModel


@dataclass(frozen=True)
class ClusterPlan:
    """What a cluster is made of. ``configs`` and ``costs`` are those of each replica, by number.

    With ``prefill`` > 0 that many replicas, the first ones, compute prompts and first tokens, and the others go on from
    there once the KV has gone over ``link``. ``scaling`` starts and stops replicas; without it all run all the time.
    """

    configs: tuple[SchedulerConfig, ...]
    costs: tuple[CostModel, ...]
    router: str = "round-robin"
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    scaling: AutoscaleSettings | None = None
    prefill: int = 0
    link: Link | None = None

    def __post_init__(self) -> None:
        if len(self.configs) != len(self.costs) or not self.costs:
            raise ValueError(f"{len(self.configs)} configurations for {len(self.costs)} cost models")
        if self.prefill and (self.link is None or self.prefill >= len(self.costs) or self.scaling is not None):
            raise ValueError("prefill replicas need a link, decode replicas beside them, and no autoscaler")

    @property
    def replicas(self) -> int:
        """The most there can be."""
        return len(self.costs)
