"""The metrics of all replicas as one text for Prometheus, each sample with its replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

#: the label that says which
LABEL = "replica"


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def merged(texts: Mapping[str, str]) -> bytes:
    """One text of ``texts``, which are by the name of the replica."""
    metrics: dict[str, Metric] = {}
    for replica, text in texts.items():
        for found in text_string_to_metric_families(text):
            metric = metrics.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                metric.samples.append(sample._replace(labels={**sample.labels, LABEL: replica}))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics.values()))
    return generate_latest(registry)
