"""What scales a Deployment on Kubernetes, from the settings file of the simulator's autoscaler.

    python deploy/kubernetes_scaling.py --autoscale FILE.yaml --out deploy/kubernetes/components

writes a HorizontalPodAutoscaler with the rules by which prometheus-adapter gives it its metric, and a ScaledObject for
KEDA, which needs no adapter. A setting that neither can have is refused by its name. With ``--also-queued N`` both
look at the queue as well, and whichever of the two metrics asks for more replicas counts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# this folder has no packages of ours
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import yaml

from simulator.cluster.autoscaler import AutoscaleSettings, read_autoscale
from simulator.cluster.errors import ClusterError

#: of the Deployment, and of the Service whose scrapes Prometheus calls a job of that name
NAME = "lockstep"
#: how often a HorizontalPodAutoscaler looks: a setting of the whole cluster, this is its default
LOOK_S = 15
#: the longest that one waits for a decision to stand
MOST_DELAY_S = 3600
#: by the autoscaler's metric: what it is called for prometheus-adapter, and the server's gauges that add up to it
METRICS = {
    "ongoing": ("lockstep_ongoing_requests", ("vllm:num_requests_running", "vllm:num_requests_waiting")),
    "queue": ("lockstep_queued_requests", ("vllm:num_requests_waiting",)),
}
HEADER = "# Written by deploy/kubernetes_scaling.py from {}.\n"


def check(settings: AutoscaleSettings) -> None:
    """Raises :class:`ClusterError` for settings that Kubernetes cannot have."""
    if settings.metric not in METRICS:
        raise ClusterError(f"metric {settings.metric} is not for Kubernetes (possible: {', '.join(METRICS)})")
    for name, only in (("upscaling_factor", 1), ("downscaling_factor", 1), ("cooldown_s", 0)):
        if getattr(settings, name) != only:
            raise ClusterError(f"{name} is {getattr(settings, name):g}; Kubernetes can have {only} only")
    if settings.initial != settings.min_replicas:
        raise ClusterError(f"initial_replicas is {settings.initial}; Kubernetes begins with min_replicas")
    if settings.metrics_interval_s != LOOK_S:
        raise ClusterError(
            f"metrics_interval_s is {settings.metrics_interval_s:g}; a HorizontalPodAutoscaler looks every {LOOK_S} s"
        )
    for name in ("upscale_delay_s", "downscale_delay_s"):
        value = getattr(settings, name)
        if value > MOST_DELAY_S or value != int(value):
            raise ClusterError(f"{name} is {value:g}; Kubernetes can have whole seconds up to {MOST_DELAY_S}")
    if settings.look_back_period_s != int(settings.look_back_period_s):
        raise ClusterError(f"look_back_period_s is {settings.look_back_period_s:g}; Prometheus takes whole seconds")


def target(settings: AutoscaleSettings) -> float:
    """Requests a replica."""
    return settings.target_queued_requests if settings.metric == "queue" else settings.target_ongoing_requests


def behavior(settings: AutoscaleSettings) -> dict[str, Any]:
    """How fast a HorizontalPodAutoscaler may go: at once, when a decision has stood for its delay."""
    delays = {"scaleUp": settings.upscale_delay_s, "scaleDown": settings.downscale_delay_s}
    return {
        way: {
            "stabilizationWindowSeconds": int(delay_s),
            "policies": [{"type": "Pods", "value": settings.max_replicas, "periodSeconds": LOOK_S}],
        }
        for way, delay_s in delays.items()
    }


#: requests a replica, by the metric that is looked at
Targets = dict[str, float]


def targets(settings: AutoscaleSettings, also_queued: float | None) -> Targets:
    """What is looked at. Raises :class:`ClusterError` where the queue is looked at already."""
    found = {settings.metric: target(settings)}
    if also_queued is not None:
        if settings.metric == "queue":
            raise ClusterError("--also-queued is for settings with metric ongoing; these look at the queue already")
        found["queue"] = also_queued
    return found


def autoscaler(settings: AutoscaleSettings, looked_at: Targets) -> dict[str, Any]:
    """The HorizontalPodAutoscaler."""
    metrics = [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": METRICS[metric][0]},
                "target": {"type": "AverageValue", "averageValue": quantity(value)},
            },
        }
        for metric, value in looked_at.items()
    ]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
            "minReplicas": settings.min_replicas,
            "maxReplicas": settings.max_replicas,
            "metrics": metrics,
            "behavior": behavior(settings),
        },
    }


def adapter_rules(settings: AutoscaleSettings, looked_at: Targets) -> dict[str, Any]:
    """Values for the Helm chart of prometheus-adapter: the mean over the look-back period, a pod."""
    return {"rules": {"custom": [_adapter_rule(settings, *METRICS[metric]) for metric in looked_at]}}


def _adapter_rule(settings: AutoscaleSettings, name: str, gauges: tuple[str, ...]) -> dict[str, Any]:
    period = f"[{int(settings.look_back_period_s)}s]"
    terms = [f"sum(avg_over_time({gauge}{{<<.LabelMatchers>>}}{period})) by (<<.GroupBy>>)" for gauge in gauges]
    return {
        "seriesQuery": f'{gauges[-1]}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": ".*", "as": name},
        "metricsQuery": " + ".join(terms),
    }


def scaled_object(settings: AutoscaleSettings, looked_at: Targets) -> dict[str, Any]:
    """The ScaledObject of KEDA, which asks Prometheus itself."""
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"name": NAME},
            "minReplicaCount": settings.min_replicas,
            "maxReplicaCount": settings.max_replicas,
            "pollingInterval": LOOK_S,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior(settings)}},
            "triggers": [_trigger(settings, metric, value) for metric, value in looked_at.items()],
        },
    }


def _trigger(settings: AutoscaleSettings, metric: str, value: float) -> dict[str, Any]:
    name, gauges = METRICS[metric]
    period = f"[{int(settings.look_back_period_s)}s]"
    prometheus = {
        "serverAddress": "http://prometheus-operated.monitoring.svc:9090",
        "query": " + ".join(f'sum(avg_over_time({gauge}{{job="{NAME}"}}{period}))' for gauge in gauges),
        "threshold": f"{value:g}",
    }
    return {"type": "prometheus", "name": name, "metricType": "AverageValue", "metadata": prometheus}


def quantity(value: float) -> str:
    """As Kubernetes writes it: ``4``, or ``2500m`` for 2.5."""
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"


def manifests(settings: AutoscaleSettings, also_queued: float | None = None) -> dict[str, dict[str, Any]]:
    """Everything, by the file that it goes to; ``also_queued``: waiting requests a replica. Raises
    :class:`ClusterError`.
    """
    check(settings)
    looked_at = targets(settings, also_queued)
    return {
        "hpa/autoscaler.yaml": autoscaler(settings, looked_at),
        "hpa/prometheus-adapter-values.yaml": adapter_rules(settings, looked_at),
        "keda/scaled-object.yaml": scaled_object(settings, looked_at),
    }


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range; must be > 0")
    return value


def main() -> int:
    """Write the files; 2 where the settings are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoscale", type=Path, required=True, metavar="FILE.yaml", help="the autoscaler's settings")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where hpa/ and keda/ go")
    parser.add_argument(
        "--also-queued", type=_positive, metavar="N", help="look at the queue too: so many waiting requests a replica"
    )
    args = parser.parse_args()
    try:
        found = manifests(read_autoscale(args.autoscale), args.also_queued)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    for name, content in found.items():
        path = args.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(content, sort_keys=False, width=1000)
        path.write_text(HEADER.format(args.autoscale.name) + text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
