"""The autoscaler's rule, its settings, and scenarios with exact times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_runs import Record

from scheduler.config import SchedulerConfig
from scheduler.request import Request
from simulator.cluster import Cluster, ClusterError, ClusterPlan, simulate_cluster
from simulator.cluster.autoscaler import Autoscaler, AutoscaleSettings, Observed, read_autoscale
from simulator.costs import IntegerCosts

S = 1_000_000_000
#: every step takes a second, whatever it holds
SECOND = IntegerCosts(step_ns=S, row_ns=0, token_ns=0, column_ns=0)


def settings(**values: Any) -> AutoscaleSettings:
    plain = {"max_replicas": 10, "metrics_interval_s": 1, "look_back_period_s": 1, "upscale_delay_s": 0,
             "downscale_delay_s": 0}  # fmt: skip
    return AutoscaleSettings(**{**plain, **values})


def decided(autoscaler: Autoscaler, *seen: tuple[int, int, int]) -> list[int]:
    """Decisions for (seconds, replicas, ongoing)."""
    return [autoscaler.decide(Observed(time * S, replicas, ongoing, ongoing)) for time, replicas, ongoing in seen]


@pytest.mark.parametrize(
    ("replicas", "ongoing", "wanted"),
    [(1, 2, 1), (1, 3, 2), (2, 9, 5), (4, 8, 4), (4, 7, 4), (4, 6, 3), (4, 0, 1), (3, 100, 10)],
)
def test_replicas_follow_ongoing_requests_over_their_target(replicas: int, ongoing: int, wanted: int) -> None:
    assert decided(Autoscaler(settings(target_ongoing_requests=2)), (1, replicas, ongoing)) == [wanted]


def test_factors_damp_and_do_not_hold_on_to_a_replica() -> None:
    assert decided(Autoscaler(settings(upscaling_factor=0.5)), (1, 2, 12)) == [4]
    assert decided(Autoscaler(settings(downscaling_factor=0.1)), (1, 4, 6)) == [3]


def test_the_mean_of_the_look_back_period_counts() -> None:
    autoscaler = Autoscaler(settings(look_back_period_s=3, upscale_delay_s=99))
    assert decided(autoscaler, (1, 1, 0), (2, 1, 0), (3, 1, 12)) == [1, 1, 1]
    assert autoscaler._wanted(1) == 2, "the mean of 0, 0, 12"
    decided(autoscaler, (4, 1, 12))
    assert autoscaler._wanted(1) == 4, "of 0, 12, 12"


def test_a_decision_has_to_stand_for_its_delay() -> None:
    autoscaler = Autoscaler(settings(upscale_delay_s=2, downscale_delay_s=3))
    assert decided(autoscaler, (1, 1, 9), (2, 1, 9), (3, 1, 9)) == [1, 1, 5]
    assert decided(autoscaler, (4, 5, 2), (5, 5, 2), (6, 5, 10), (7, 5, 2), (8, 5, 2), (9, 5, 2), (10, 5, 2)) == [
        5, 5, 5, 5, 5, 5, 1,
    ]  # fmt: skip


def test_nothing_is_decided_while_it_cools_down() -> None:
    autoscaler = Autoscaler(settings(cooldown_s=3))
    assert decided(autoscaler, (1, 1, 4), (2, 2, 8), (3, 2, 8), (4, 2, 8)) == [2, 2, 2, 4]


def test_objectives_add_a_replica_while_they_are_missed() -> None:
    autoscaler = Autoscaler(settings(metric="slo", target_attainment=0.9, target_ongoing_requests=2))
    assert autoscaler.decide(Observed(S, 2, 0, 0, ended=10, good=8)) == 3
    assert autoscaler.decide(Observed(2 * S, 3, 6, 0, ended=10, good=9)) == 3, "as many as the load needs"
    assert autoscaler.decide(Observed(3 * S, 3, 1, 0, ended=10, good=10)) == 2, "one at a time"
    assert autoscaler.decide(Observed(4 * S, 2, 3, 0)) == 2, "nothing is missed where nothing ended"


def scaled(requests: list[Request], replicas: int, **values: Any) -> tuple[Cluster, Record]:
    record = Record()
    config = SchedulerConfig(max_running=1, kv_tokens=1000)
    plan = ClusterPlan(
        (config,) * replicas, (SECOND,) * replicas, "central-queue", scaling=settings(max_replicas=replicas, **values)
    )
    return simulate_cluster(requests, plan, record), record


def test_a_replica_takes_requests_once_it_has_started_and_is_given_back_when_idle() -> None:
    """Ten steps of a second a request: two at 0 make the autoscaler, at 1 s, want another, which is there at 4 s."""
    requests = [Request("a", 0, 1, 10, 10), Request("b", 0, 1, 10, 10), Request("c", 30 * S, 1, 2, 2)]
    cluster, record = scaled(requests, 2, target_ongoing_requests=1, cold_start_s=3, downscale_delay_s=2)
    scheduled = {journey.id: (journey.first_scheduled_ns, journey.replica) for journey in record.journeys}
    assert scheduled == {"a": (0, 0), "b": (4 * S, 1), "c": (30 * S, 1)}
    # a ends at 10 s; from 11 s on one is enough, and after the delay, at 13 s, the idle one goes, which a was at
    assert cluster.sizes == [(0, 1, 0), (1 * S, 1, 1), (4 * S, 2, 0), (13 * S, 1, 0)]


def test_held_time_counts_the_cold_start_and_ends_as_it_stops() -> None:
    requests = [Request(name, 0, 1, 4, 4) for name in "ab"] + [Request("c", 20 * S, 1, 1, 1)]
    cluster, _ = scaled(requests, 2, target_ongoing_requests=1, cold_start_s=2)
    # decided at 1 s, up at 3 s, b runs from 3 to 7 s; a ends at 4 s, which is seen at 5 s: the idle one goes
    assert [usage.held_ns for usage in cluster.usage] == [5 * S, 20 * S]
    assert cluster.end_ns == 21 * S


def test_what_starts_is_called_off_first() -> None:
    requests = [Request(name, 0, 1, 1, 1) for name in "abc"] + [Request("d", 9 * S, 1, 1, 1)]
    cluster, record = scaled(requests, 3, target_ongoing_requests=1, cold_start_s=100)
    assert {journey.replica for journey in record.journeys} == {0}
    assert cluster.sizes[0] == (0, 1, 0)
    assert cluster.sizes[-1][1:] == (1, 0)


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    path.write_text("min_replicas: 2\nmax_replicas: 5\ntarget_ongoing_requests: 8\nupscale_delay_s: 0.5\n")
    assert read_autoscale(path) == AutoscaleSettings(2, 5, target_ongoing_requests=8, upscale_delay_s=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_replica: 5", "did you mean max_replicas"),
        ("max_replicas: many", "max_replicas is 'many'"),
        ("max_replicas: 1.5", "max_replicas is 1.5"),
        ("max_replicas: true", "max_replicas is True"),
        ("min_replicas: 3", "max_replicas is 1, fewer than min_replicas, which is 3"),
        ("metric: cpu", "cpu"),
        ("upscale_delay_s: -1", "upscale_delay_s is -1; must be >= 0"),
        ("{max_replicas: 2, initial_replicas: 3}", "initial_replicas is 3"),
        ("target_attainment: 1.5", "target_attainment is 1.5; must be <= 1"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_settings_that_cannot_be_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scale.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=r"scale\.yaml") as caught:
        read_autoscale(path)
    assert message in str(caught.value)
    with pytest.raises(ClusterError, match="cannot be read"):
        read_autoscale(tmp_path / "none.yaml")
