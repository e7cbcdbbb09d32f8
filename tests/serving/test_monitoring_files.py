"""Dashboard, alerts and scrape example: what they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse
from still_engine import Watched

from engine.loop import TokenOutput
from scheduler.request import Request
from serving.exchanges import Exchange

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
PROMTOOL = shutil.which("promtool")
_SELECTOR = re.compile(r"((?:vllm|lockstep):\w+|process_\w+|up)(?:\{([^}]*)\})?")
#: that every scrape adds
ADDED = {"instance", "job"}


@pytest.fixture(scope="module")
def samples() -> dict[str, list[dict[str, str]]]:
    """The labels of every sample of a server that has done a little of everything, by name."""
    watched = Watched()
    watched.traffic.submitted([Request("a", 0, 30)])
    watched.traffic.told([TokenOutput("a", 7, "x", "stop")])
    exchange = Exchange("id", "GET", "/status", [], 0)
    watched.exchanges.over(exchange, {}, 200)
    found: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for family in parse(watched.text()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def wrong(query: str, samples: dict[str, list[dict[str, str]]]) -> list[str]:
    """What a query selects or groups by that no sample has."""
    promql_parser.parse(query)
    problems = []
    labels = set(ADDED)
    for name, matchers in _SELECTOR.findall(query):
        if name not in samples:
            problems.append(f"there is no {name}")
            continue
        labels |= {label for sample in samples[name] for label in sample}
        for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
            values = {sample.get(label) for sample in samples[name]} | ({value} if label in ADDED else set())
            if operator == "=" and value not in values:
                problems.append(f"{name} has no {label} {value}")
            elif operator != "=" and label not in labels:
                problems.append(f"{name} has no label {label}")
    for grouping in re.findall(r"by \(([^)]*)\)", query):
        problems += [f"nothing has a {label}" for label in grouping.split(", ") if label not in labels]
    return problems


def test_what_is_wrong_would_be_seen(samples: dict[str, list[dict[str, str]]]) -> None:
    assert wrong("sum(rate(vllm:tokens_total[1m]))", samples) == ["there is no vllm:tokens_total"]
    assert wrong('lockstep:steps_total{kind="verify"}', samples) == ["lockstep:steps_total has no kind verify"]
    assert wrong('rate(vllm:time_to_first_token_seconds_bucket{le="1.1"}[1m])', samples) != []
    assert wrong("sum by (bucket) (lockstep:cohorts)", samples) == ["nothing has a bucket"]
    with pytest.raises(ValueError):
        wrong("sum(lockstep:cohorts", samples)


def test_every_panel_asks_for_what_there_is(samples: dict[str, list[dict[str, str]]]) -> None:
    asked = list(queries())
    assert len(asked) > 50
    assert {query: problems for query in asked if (problems := wrong(query, samples))} == {}


def test_every_alert_asks_for_what_there_is(samples: dict[str, list[dict[str, str]]]) -> None:
    found = rules()
    assert len(found) >= 10
    for rule in found:
        assert wrong(rule["expr"], samples) == [], rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_every_metric_is_on_the_dashboard(samples: dict[str, list[dict[str, str]]]) -> None:
    on_it = {name for query in queries() for name, _ in _SELECTOR.findall(query)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in on_it}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples if name.startswith(("vllm:", "lockstep:"))}
    unseen = {
        "vllm:cache_config_info", "lockstep:engine_info", "lockstep:draining",  # no figures
        "vllm:time_per_output_token_seconds", "vllm:request_inference_time_seconds",  # there under another name
    }  # fmt: skip
    assert ours - families == unseen


def test_panels_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_scrape_example_has_the_path_and_the_job_that_the_alerts_go_by() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"], config["rule_files"]) == ("lockstep", "/metrics", ["alerts.yml"])


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine")
def test_alerts_fire_when_they_should() -> None:
    subprocess.run([str(PROMTOOL), "test", "rules", "alerts_test.yml"], cwd=FOLDER, check=True, capture_output=True)
    subprocess.run([str(PROMTOOL), "check", "config", "prometheus.yml"], cwd=FOLDER, check=True, capture_output=True)
