"""The manifests: what Kubernetes accepts, what fits together, and what the autoscaler's settings come to there."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import kubernetes_scaling
from deploy.kubernetes_scaling import manifests
from serving.arguments import build_parser
from serving.engine_client import PATIENCE_S
from simulator.cluster.autoscaler import AutoscaleSettings, read_autoscale
from simulator.cluster.errors import ClusterError

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
FOLDER = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
#: kinds that come with operators: their fields are those of the checks below
CUSTOM = {
    "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"},
    ),
}
VERSIONS = ("1.31", "1.37")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def resources(folder: Path) -> list[dict[str, Any]]:
    """Those that a kustomization names, those of its bases and components first."""
    kustomization = load(folder / "kustomization.yaml")
    found = []
    for name in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        path = folder / name
        found += resources(path) if path.is_dir() else [load(path)]
    for image in kustomization.get("images", ()):
        for container in containers(found):
            if container["image"] == image["name"]:
                container["image"] += ":" + image["newTag"]
    for patch in kustomization.get("patches", ()):
        (target,) = [one for one in found if one["kind"] == patch["target"]["kind"]]
        assert target["metadata"]["name"] == patch["target"]["name"]
        for change in load(folder / patch["path"]):
            apply(target, change)
    return found


def apply(target: Any, change: dict[str, Any]) -> None:
    """A change of RFC 6902 whose place is there."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
    for part in way:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if isinstance(target, list):
        assert (change["op"], last) == ("add", "-")
        target.append(change["value"])
    else:
        assert (last in target) == (change["op"] == "replace"), change["path"]
        target[last] = change["value"]


def containers(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        one for made in found if made["kind"] == "Deployment" for one in made["spec"]["template"]["spec"]["containers"]
    ]


def one(kind: str, overlay: str = "cpu") -> dict[str, Any]:
    (found,) = [made for made in resources(FOLDER / "overlays" / overlay) if made["kind"] == kind]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field(overlay: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kinds = []
    for made in resources(FOLDER / "overlays" / overlay):
        kinds.append(made["kind"])
        if made["kind"] in CUSTOM:
            assert (made["apiVersion"], set(made["spec"])) == CUSTOM[made["kind"]]
        else:
            kubernetes_validate.validate(made, version, strict=True)
    assert sorted(kinds) == [
        "Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Service", "ServiceMonitor",
    ]  # fmt: skip


def test_every_component_is_one_of_an_overlay_or_stands_in_for_one() -> None:
    (scaled,) = resources(FOLDER / "components" / "keda")
    api, fields = CUSTOM["ScaledObject"]
    assert (scaled["apiVersion"], set(scaled["spec"])) == (api, fields)
    for folder in (FOLDER / "components").iterdir():
        assert load(folder / "kustomization.yaml")["kind"] == "Component"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_labels_ports_and_names_fit_together(overlay: str) -> None:
    deployment, service = one("Deployment", overlay), one("Service", overlay)
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert one("PodDisruptionBudget", overlay)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    monitor = one("ServiceMonitor", overlay)["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {end["port"] for end in monitor["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    assert one("HorizontalPodAutoscaler", overlay)["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["image"] == f"lockstep:{overlay}"
    gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
    assert gpus == (1 if overlay == "cuda" else 0)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_runs_may_end_before_a_pod_is_killed(overlay: str) -> None:
    spec = one("Deployment", overlay)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = build_parser().parse(container["args"])
    (program, wait_s) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, args.device) == ("sleep", overlay)
    assert spec["terminationGracePeriodSeconds"] >= int(wait_s) + args.drain_s + PATIENCE_S
    # not before the Service has left out a pod that is not ready
    probe = container["readinessProbe"]
    assert int(wait_s) >= 5
    assert probe["periodSeconds"] * probe["failureThreshold"] <= args.drain_s


def test_nothing_runs_as_root_or_writes_where_it_should_not() -> None:
    spec = one("Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not spec["automountServiceAccountToken"]
    assert "replicas" not in one("Deployment")["spec"], "the autoscaler says how many"


def test_the_autoscalers_are_those_of_the_settings_file() -> None:
    for name, content in manifests(read_autoscale(DEPLOY / "autoscale.yaml")).items():
        assert load(FOLDER / "components" / name) == content, f"write them again: {kubernetes_scaling.__doc__}"


@pytest.mark.parametrize(
    ("metric", "target", "gauges", "quantity"),
    [
        ("ongoing", 24, ("running", "waiting"), "24"),
        ("queue", 2.5, ("waiting",), "2500m"),
    ],
)
def test_every_setting_has_its_place(metric: str, target: float, gauges: tuple[str, ...], quantity: str) -> None:
    named = {"ongoing": "target_ongoing_requests", "queue": "target_queued_requests"}[metric]
    settings = AutoscaleSettings(
        2, 7, metric=metric, metrics_interval_s=15, look_back_period_s=45, upscale_delay_s=5, downscale_delay_s=70,
        **{named: target},  # type: ignore[arg-type]
    )  # fmt: skip
    made = manifests(settings)
    scaler = made["hpa/autoscaler.yaml"]["spec"]
    (pods,) = scaler["metrics"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 7)
    assert pods["pods"]["target"]["averageValue"] == quantity
    (rule,) = made["hpa/prometheus-adapter-values.yaml"]["rules"]["custom"]
    assert rule["name"]["as"] == pods["pods"]["metric"]["name"]
    keda = made["keda/scaled-object.yaml"]["spec"]
    (trigger,) = keda["triggers"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"], keda["pollingInterval"]) == (2, 7, 15)
    assert (float(trigger["metadata"]["threshold"]), trigger["metricType"]) == (target, "AverageValue")
    for behavior in (scaler["behavior"], keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]):
        delays = [behavior[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")]
        assert delays == [5, 70]
    for query in (rule["metricsQuery"], trigger["metadata"]["query"]):
        asked = [name for name in ("running", "waiting") if f"vllm:num_requests_{name}" in query]
        assert tuple(asked) == gauges
        assert query.count("[45s]") == len(gauges)


def test_the_queue_may_be_looked_at_too() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    settings = read_autoscale(DEPLOY / "autoscale.yaml")
    alone, both = manifests(settings), manifests(settings, also_queued=2.5)
    for version in VERSIONS:
        kubernetes_validate.validate(both["hpa/autoscaler.yaml"], version, strict=True)
    queue = manifests(AutoscaleSettings(
        settings.min_replicas, settings.max_replicas, metric="queue", target_queued_requests=2.5,
        metrics_interval_s=settings.metrics_interval_s, look_back_period_s=settings.look_back_period_s,
    ))  # fmt: skip
    for name, *path in (
        ("hpa/autoscaler.yaml", "spec", "metrics"),
        ("hpa/prometheus-adapter-values.yaml", "rules", "custom"),
        ("keda/scaled-object.yaml", "spec", "triggers"),
    ):
        first, second, together = (reduce(getitem, path, made[name]) for made in (alone, queue, both))
        assert together == first + second
    with pytest.raises(ClusterError, match="look at the queue already"):
        manifests(AutoscaleSettings(max_replicas=4, metric="queue", metrics_interval_s=15), also_queued=3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"metric": "slo"}, r"metric slo is not for Kubernetes \(possible: ongoing, queue\)"),
        ({"upscaling_factor": 0.5}, "upscaling_factor is 0.5; Kubernetes can have 1 only"),
        ({"cooldown_s": 3}, "cooldown_s is 3; Kubernetes can have 0 only"),
        ({"initial_replicas": 3}, "initial_replicas is 3; Kubernetes begins with min_replicas"),
        ({"metrics_interval_s": 1}, "metrics_interval_s is 1; a HorizontalPodAutoscaler looks every 15 s"),
        ({"downscale_delay_s": 4000}, "downscale_delay_s is 4000; Kubernetes can have whole seconds up to 3600"),
        ({"upscale_delay_s": 0.5}, "upscale_delay_s is 0.5"),
        ({"look_back_period_s": 2.5}, "look_back_period_s is 2.5"),
    ],
)
def test_what_kubernetes_cannot_have_is_refused(setting: dict[str, Any], message: str) -> None:
    settings = AutoscaleSettings(**{"max_replicas": 4, "metrics_interval_s": 15, **setting})
    with pytest.raises(ClusterError, match=message):
        manifests(settings)
