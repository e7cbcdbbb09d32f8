"""Ray Serve's figures, and that the simulator's autoscaler decides by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from engine.loop import RequestMetrics, TokenOutput
from reports.slo import Slo
from scheduler.request import Request
from serving.cluster.attainment import Attainment
from serving.cluster.autoscaling import AutoscalePolicy, check_served
from simulator.cluster.autoscaler import AutoscaleSettings
from simulator.cluster.errors import ClusterError


@dataclass
class Told:
    value: float


@dataclass
class Serve:
    """Ray Serve, as a policy is told of it."""

    target_num_replicas: int = 1
    current_time: float = 1000.0
    running_replicas: Sequence[Any] = ("a",)
    raw_metrics: dict[str, dict[Any, list[Told]]] = field(default_factory=dict)
    total_queued_requests: float = 0.0

    def say(self, name: str, *values: float) -> None:
        """What each replica says now."""
        self.raw_metrics[name] = {
            replica: [Told(9999), Told(value)] for replica, value in zip(self.running_replicas, values, strict=False)
        }


def policy(**settings: Any) -> AutoscalePolicy:
    every = {"max_replicas": 4, "metrics_interval_s": 1, "look_back_period_s": 1, "upscale_delay_s": 0, **settings}
    return AutoscalePolicy(**asdict(AutoscaleSettings(**every)))


def look(one: AutoscalePolicy, serve: Serve, after_s: float = 1.0) -> int:
    """Carry out what it says after some time."""
    serve.current_time += after_s
    serve.target_num_replicas, state = one(serve)
    assert state == {}
    return serve.target_num_replicas


def test_ongoing_requests_of_all_replicas_and_of_those_that_wait_for_one_count() -> None:
    one, serve = policy(target_ongoing_requests=10), Serve(running_replicas=("a", "b"), target_num_replicas=2)
    serve.say("ongoing", 11, 4)
    assert look(one, serve) == 2
    serve.total_queued_requests = 6
    assert look(one, serve) == 3


def test_waiting_requests_count_for_the_queue_alone() -> None:
    one, serve = policy(metric="queue", target_queued_requests=2), Serve()
    serve.say("ongoing", 100)
    serve.say("queued", 2)
    assert look(one, serve) == 1
    serve.say("queued", 5)
    assert look(one, serve) == 3


def test_decisions_are_made_at_each_interval_only_and_stand_for_their_delay() -> None:
    one = policy(target_ongoing_requests=1, metrics_interval_s=10, look_back_period_s=10, upscale_delay_s=10)
    serve = Serve()
    serve.say("ongoing", 3)
    assert [look(one, serve, 1) for _ in range(25)] == [1] * 10 + [3] * 15


def test_a_replica_that_has_said_nothing_yet_has_nothing() -> None:
    one, serve = policy(downscale_delay_s=0), Serve(target_num_replicas=3, running_replicas=("a", "b", "c"))
    assert look(one, serve) == 1


def test_objectives_count_from_look_to_look_and_a_new_replica_from_nothing() -> None:
    one = policy(metric="slo", target_ongoing_requests=100, downscale_delay_s=1000)
    serve = Serve()
    serve.say("ended", 100)
    serve.say("good", 99)
    assert look(one, serve) == 1
    serve.say("ended", 200)
    serve.say("good", 198)
    assert look(one, serve) == 1
    serve.say("ended", 210)
    serve.say("good", 200)
    assert look(one, serve) == 2
    serve.running_replicas = ("a", "b")
    serve.say("ended", 310, 10)
    serve.say("good", 300, 3)
    assert look(one, serve) == 3
    serve.say("ended", 310, 10)
    serve.say("good", 300, 3)
    assert look(one, serve) == 3


def test_objectives_need_to_be_known() -> None:
    settings = AutoscaleSettings(metric="slo")
    check_served(settings, has_slo=True)
    with pytest.raises(ClusterError, match="the metric slo needs --slo"):
        check_served(settings, has_slo=False)


def token(name: str, reason: str = "", first_ms: float = 0, finish_ms: float = 0) -> TokenOutput:
    metrics = RequestMetrics(0, 0, round(first_ms * 1e6), round(finish_ms * 1e6), 0, 0, 0) if reason else None
    return TokenOutput(name, 5, "a", reason, metrics=metrics)


def test_good_are_those_that_finished_in_time() -> None:
    counts = Attainment(Slo.parse("ttft_ms=100,tpot_ms=10"))
    names = ("good", "late", "slow", "left", "refused")
    counts.submitted([Request(name, 0, 4) for name in names])
    counts.told([token(name) for name in names[:4]] * 10)
    counts.told([token("good", "length", 100, 200), token("late", "eos", 101, 102), token("slow", "stop", 50, 151)])
    counts.told([TokenOutput("left", None, "", "aborted", metrics=RequestMetrics(0, 0, 1, 2, 0, 0, 0))])
    counts.told([TokenOutput("refused", None, "", "rejected")])
    assert (counts.ended, counts.good) == (4, 1)
