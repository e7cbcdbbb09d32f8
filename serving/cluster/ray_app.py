"""The server as an application of Ray Serve: a front, and as many replicas behind it as the autoscaler says."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from reports.slo import Slo
from serving.cluster.autoscaling import AutoscalePolicy, check_served
from serving.cluster.engine_replica import EngineReplica
from serving.cluster.front import Front
from serving.cluster.ray_router import LockstepRouter
from serving.cluster.routing import check_router
from serving.server import ServerSettings
from simulator.cluster.autoscaler import AutoscaleSettings

#: what the two deployments are called in Ray
FRONT, ENGINES = "front", "engines"
#: how often replicas say how much KV they hold
REPORT_S = 1.0


@dataclass(frozen=True)
class ClusterSettings:
    """What runs on a cluster. ``cpus`` and ``gpus`` are what Ray reserves for a replica.

    ``slo`` is for an autoscaler that goes by it.
    """

    server: ServerSettings
    scaling: AutoscaleSettings
    router: str = "round-robin"
    slo: Slo | None = None
    cpus: float = 1.0
    gpus: float = 0.0


def build(settings: ClusterSettings) -> serve.Application:
    """The application, to be run with ``serve.run``.

    Raises :class:`~simulator.cluster.errors.ClusterError` for settings that cannot be had.
    """
    server, scaling = settings.server, settings.scaling
    check_router(settings.router, bool(server.engine.scheduler.get("prefix_cache")))
    check_served(scaling, settings.slo is not None)
    engines = serve.deployment(
        name=ENGINES,
        # a server refuses by itself what is too much
        max_ongoing_requests=1 << 20,
        max_queued_requests=max(1, server.max_queue),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=server.drain_s + 5,
        health_check_period_s=1,
        max_constructor_retry_count=1,
        logging_config=LoggingConfig(enable_access_log=False),
        request_router_config=RequestRouterConfig(
            request_router_class=f"{LockstepRouter.__module__}.{LockstepRouter.__name__}",
            request_router_kwargs={"router": settings.router},
            request_routing_stats_period_s=REPORT_S,
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            initial_replicas=scaling.initial,
            metrics_interval_s=scaling.metrics_interval_s,
            # of calls that wait for a replica; the policy looks back by itself
            look_back_period_s=2 * scaling.metrics_interval_s,
            upscale_delay_s=0,
            downscale_delay_s=0,
            policy=AutoscalingPolicy(policy_function=AutoscalePolicy, policy_kwargs=asdict(scaling)),
        ),
    )(EngineReplica)
    front = serve.deployment(
        name=FRONT,
        max_ongoing_requests=1 << 20,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=server.drain_s + 5,
        logging_config=LoggingConfig(enable_access_log=False),
    )(Front)
    return front.bind(engines.bind(server, settings.slo, scaling.cold_start_s), server.max_body_bytes)
