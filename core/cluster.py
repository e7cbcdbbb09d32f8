"""The cluster that the flags ask for: how many replicas, on what costs, behind which router."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.arguments import UsageError, flag_of
from core.costs import read_costs
from reports.slo import Slo
from scheduler.config import SchedulerConfig
from scheduler.model_shapes import DTYPE_BYTES, UnknownShapeError, model_shape
from scheduler.plan import StepOutcome, StepPlan
from simulator.cluster import ClusterPlan, Journey, Listener
from simulator.cluster.autoscaler import AutoscaleSettings, read_autoscale
from simulator.cluster.faults import Fault, read_faults
from simulator.cluster.routers import ROUTERS
from simulator.cluster.transfer import Link
from simulator.costs import CostModel
from simulator.recorded import RecordedCosts
from simulator.roofline import RooflineCosts

DEFAULT_ROUTER = "round-robin"
#: flags that make a run one of a cluster
ASKING = ("replicas", "replica_costs", "autoscale", "faults", "disaggregate")
#: flags that say how KV goes from prefill to decode replicas
TRANSFER = ("kv_transfer", "kv_latency_ms", "kv_token_bytes")


@dataclass(frozen=True)
class ClusterSetup:
    """What the flags say of a cluster; a policy's settings make a :class:`~simulator.cluster.ClusterPlan` of it."""

    costs: tuple[CostModel, ...]
    router: str
    seed: int
    faults: tuple[Fault, ...]
    scaling: AutoscaleSettings | None
    prefill: int
    link: Link | None

    def plan(self, configs: list[SchedulerConfig]) -> ClusterPlan:
        """The cluster with the schedulers' settings of each replica. Raises :class:`UsageError`."""
        if ROUTERS[self.router].needs_prefix_cache and not all(config.prefix_cache for config in configs):
            raise UsageError(f"--router {self.router} needs --prefix-cache: it would have nothing to go by")
        return ClusterPlan(
            tuple(configs), self.costs, self.router, self.seed, self.faults, self.scaling, self.prefill, self.link
        )

    @property
    def distinct_costs(self) -> list[CostModel]:
        """Each cost model once."""
        return list({id(costs): costs for costs in self.costs}.values())

    @property
    def gpus(self) -> int:
        """Of each replica."""
        return max(costs.tp if isinstance(costs, RecordedCosts) else 1 for costs in self.costs)

    def notes(self) -> dict[str, Any]:
        """For the manifest."""
        scaling = None if self.scaling is None else {k: v for k, v in vars(self.scaling).items() if v is not None}
        link = None if self.link is None else dict(vars(self.link))
        return {
            "router": self.router,
            "replica_costs": [costs.name for costs in self.costs],
            "faults": [str(fault) for fault in self.faults],
            "autoscale": scaling,
            "prefill_replicas": self.prefill,
            "kv_link": link,
        }


def cluster_setup(
    args: argparse.Namespace,
    scaling: AutoscaleSettings | None = None,
    read: Callable[[str], CostModel] = read_costs,
) -> ClusterSetup | None:
    """The cluster that the flags ask for; ``None`` for a single replica.

    ``scaling``: an autoscaler's settings in the place of a file's. ``read`` finds the costs of a name.

    Raises :class:`UsageError`, :class:`~simulator.cluster.ClusterError` and :class:`~simulator.costs.CostError`.
    """
    given = [name for name in ASKING if getattr(args, name) is not None]
    if not given and scaling is None:
        for name in ("router", *TRANSFER):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"{flag_of(name)} has no effect on a single replica; give --replicas N, or leave it out"
                )
        return None
    if args.jitter:
        raise UsageError("--jitter has no effect on several replicas; leave it out")
    if args.autoscale is not None:
        scaling = read_autoscale(args.autoscale)
    prefill = _check_counts(args, scaling)
    costs = _costs(args, scaling, read)
    if len(costs) == 1 and args.router is not None:
        raise UsageError(f"--router {args.router} has no effect on one replica; leave it out")
    if scaling is not None and scaling.metric == "slo" and not args.slo:
        raise UsageError(f"{args.autoscale or 'the autoscaler'} scales by objectives, and there are none; give --slo")
    faults = () if args.faults is None else read_faults(args.faults, len(costs))
    link = _link(args, costs[:prefill]) if prefill else None
    router = args.router or DEFAULT_ROUTER
    return ClusterSetup(costs, router, args.seed, faults, scaling, prefill, link)


def _check_counts(args: argparse.Namespace, scaling: AutoscaleSettings | None) -> int:
    """Refuse flags that say the same thing twice. Returns the number of prefill replicas."""
    if scaling is not None:
        for name in ("replicas", "disaggregate"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"{flag_of(name)} does not go with --autoscale, whose file says how many; leave one out"
                )
    if args.disaggregate is None:
        for name in TRANSFER:
            if getattr(args, name) is not None:
                raise UsageError(f"{flag_of(name)} has no effect without --disaggregate; leave it out")
        return 0
    if args.replicas is not None:
        raise UsageError("--replicas does not go with --disaggregate, which says how many; leave it out")
    return int(args.disaggregate[0])


def _costs(
    args: argparse.Namespace, scaling: AutoscaleSettings | None, read: Callable[[str], CostModel]
) -> tuple[CostModel, ...]:
    """The cost model of each replica; the same object where it is the same."""
    wanted = args.replicas or (sum(args.disaggregate) if args.disaggregate else None)
    wanted = scaling.max_replicas if scaling is not None else wanted
    if args.replica_costs is None:
        if not args.costs:
            raise UsageError(
                "a cluster needs --costs, or --replica-costs with those of each replica (see --list costs)"
            )
        return (read(args.costs),) * (wanted or 1)
    if args.costs:
        raise UsageError("--costs and --replica-costs say the same twice; leave one out")
    names = args.replica_costs
    if wanted is not None and len(names) != wanted:
        raise UsageError(f"--replica-costs names {len(names)} replicas, and there are {wanted}")
    known = {name: read(name) for name in dict.fromkeys(names)}
    return tuple(known[name] for name in names)


def _link(args: argparse.Namespace, costs: tuple[CostModel, ...]) -> Link:
    token_bytes = args.kv_token_bytes or max((_token_bytes(model) or 0) for model in costs)
    if not token_bytes:
        raise UsageError("these costs do not say what KV a token has; give --kv-token-bytes")
    rates = [
        model.gpu.host_bandwidth * model.gpu.host_efficiency for model in costs if isinstance(model, RooflineCosts)
    ]
    if args.kv_transfer is None and len(rates) < len(costs):
        raise UsageError("recorded costs do not say how fast KV leaves a GPU; give --kv-transfer in GB/s")
    rate = min(rates) if args.kv_transfer is None else args.kv_transfer * 1e9
    return Link(token_bytes, rate, (args.kv_latency_ms or 0) / 1e3)


def _token_bytes(costs: CostModel) -> int | None:
    """KV bytes of a token, where the costs are of a model that is known."""
    if isinstance(costs, RooflineCosts):
        return costs.kv_token_bytes
    if isinstance(costs, RecordedCosts):
        try:
            shape = model_shape(str(costs.about.get("model", "")).removeprefix("shape:"))
        except UnknownShapeError:
            return None
        return shape.kv_bytes_per_token(DTYPE_BYTES.get(str(costs.about.get("dtype")), 2))
    return None


def meets(slo: Slo | None) -> Callable[[Journey], bool]:
    """Whether a request that finished met all objectives; all do where there are none."""
    if slo is None:
        return lambda journey: True

    def good(journey: Journey) -> bool:
        e2e_ns, between = journey.finish_ns - journey.arrival_ns, max(1, journey.output_tokens - 1)
        latencies = {
            "ttft_ms": journey.first_token_ns - journey.arrival_ns,
            "tpot_ms": (journey.finish_ns - journey.first_token_ns) / between,
            "e2e_ms": e2e_ns,
            "queue_ms": journey.first_scheduled_ns - journey.arrival_ns,
            "normalized_ms": e2e_ns / max(1, journey.output_tokens),
        }
        return bool(slo.met({name: np.array([value / 1e6]) for name, value in latencies.items()})[0])

    return good


class CountingListener:
    """A listener that passes everything on, and says when a request has ended."""

    def __init__(self, listener: Listener, advance: Callable[[], None]) -> None:
        self._listener = listener
        self._advance = advance

    def stepped(self, replica: int, start: int, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self._listener.stepped(replica, start, plan, steps, outcome)

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        self._listener.gaps(gap_ns, weight)

    def ended(self, journey: Journey) -> None:
        self._listener.ended(journey)
        self._advance()
