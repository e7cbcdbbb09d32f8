"""Faults: what is lost, when it goes on, and what a client sees of it, with exact times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster_runs import Record

from scheduler.config import SchedulerConfig
from scheduler.plan import NEVER
from scheduler.request import Request
from simulator.cluster import Cluster, ClusterError, ClusterPlan, simulate_cluster
from simulator.cluster.cluster import NO_REPLICA
from simulator.cluster.faults import Fault, ReplicaConditions, read_faults
from simulator.costs import IntegerCosts
from simulator.replica import ANY

S = 1_000_000_000
SECOND = IntegerCosts(step_ns=S, row_ns=0, token_ns=0, column_ns=0)


def run(
    requests: list[Request], faults: str, replicas: int = 2, max_repeat: int = ANY, **settings: Any
) -> tuple[Cluster, Record]:
    record = Record()
    config = SchedulerConfig(kv_tokens=1000, **settings)
    plan = ClusterPlan(
        (config,) * replicas, (SECOND,) * replicas, "least-outstanding", faults=read_faults(faults, replicas)
    )
    return simulate_cluster(requests, plan, record, max_repeat=max_repeat), record


@pytest.mark.parametrize("max_repeat", [1, ANY])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("at", "had", "finish", "gap"), [("2.5", 2, 10.5, 1.5), ("3", 2, 11, 2), ("3.5", 3, 10.5, 1.5)]
)
def test_a_request_goes_on_elsewhere_from_the_tokens_that_it_has(
    at: str, had: int, finish: float, gap: float, overlap: bool, max_repeat: int
) -> None:
    """Ten tokens, one a second. A step that ends as the replica dies is lost; no token is told twice to the client."""
    cluster, record = run([Request("a", 0, 4, 10, 10)], f"die:0@{at}+100", max_repeat=max_repeat, overlap=overlap)
    (a,) = record.journeys
    assert (a.state, a.replica, a.retries, a.output_tokens) == ("finished", 1, 1, 10)
    assert (a.first_scheduled_ns, a.first_token_ns) == (0, S), "as before"
    assert a.finish_ns == finish * S
    assert a.recomputed_tokens == a.lost_tokens == 4 + had - 1
    assert sum(record.gap_counts.values()) == 9, "one between each two tokens"
    assert record.gap_counts[round(gap * S)] == 1
    assert cluster.usage[0].lost == 1
    assert cluster.counters.recomputed_tokens == a.recomputed_tokens
    steps = [(end / S, replica) for end, replica, *_ in record.steps]
    assert steps[had - 1 : had + 1] == [(had, 0), (float(at) + 1, 1)]


def test_who_waits_at_a_replica_that_dies_goes_on_in_order_of_arrival() -> None:
    requests = [Request(name, number, 4, 5, 5) for number, name in enumerate("abcd")]
    _, record = run(requests, "die:0@1.5", max_running=1)
    found = {j.id: (j.replica, j.retries, j.first_scheduled_ns / S) for j in record.journeys}
    # a has a token, c waits behind it; b runs until 5 s at the other one, d waits there
    assert found == {
        "a": (1, 1, 0), "b": (1, 0, 1e-9), "c": (1, 1, found["c"][2]), "d": (1, 0, found["d"][2]),
    }  # fmt: skip
    assert found["d"][2] < found["c"][2]
    assert [j.state for j in record.journeys] == ["finished"] * 4


def test_a_replica_returns_cold_after_its_downtime() -> None:
    requests = [Request("a", 0, 4, 3, 3), Request("b", 5 * S, 4, 3, 3)]
    cluster, record = run(requests, "die:0@1.5+6", replicas=1)
    assert {j.id: (j.finish_ns / S, j.retries) for j in record.journeys} == {"a": (9.5, 1), "b": (10.5, 0)}
    assert cluster.sizes == [(0, 1, 0), (1.5 * S, 0, 1), (7.5 * S, 1, 0)]
    assert [usage.held_ns for usage in cluster.usage] == [round((1.5 + 3) * S)], "not while it was down"
    assert cluster.usage[0].starts == 2


def test_who_finds_no_replica_that_is_left_is_aborted() -> None:
    requests = [Request("a", 0, 4, 9, 9), Request("b", 5 * S, 4, 3, 3)]
    cluster, record = run(requests, "die:0@1.5", replicas=1)
    found = [(j.id, j.state, j.reason, j.finish_ns / S, j.output_tokens) for j in record.journeys]
    assert found == [("a", "aborted", NO_REPLICA, 1.5, 1), ("b", "aborted", NO_REPLICA, 5, 0)]
    assert (cluster.counters.submitted, cluster.counters.aborted) == (2, 2)


@pytest.mark.parametrize("max_repeat", [1, ANY])
@pytest.mark.parametrize("overlap", [False, True])
def test_steps_that_begin_while_a_replica_is_slow_take_longer(overlap: bool, max_repeat: int) -> None:
    """The step that runs at 2.5 s keeps its time; those that begin at 3 and 5 s take two seconds, that at 7 s one."""
    _, record = run([Request("a", 0, 4, 7, 7)], "slow:0@2.5+4x2", 1, max_repeat, overlap=overlap)
    assert [end / S for end, *_ in record.steps] == [1, 2, 3, 5, 7, 8, 9]


def test_conditions_are_those_of_the_replica_after_its_start() -> None:
    faults = read_faults("die:0@5+2,die:0@9,slow:0@1+3x2,slow:0@2+1x3", 1)
    conditions = ReplicaConditions(faults, 0)
    assert conditions.ends_ns == 5 * S
    assert [conditions.factor_at(second * S) for second in (0, 1, 2, 3, 4)] == [1, 2, 6, 2, 1]
    assert [conditions.next_change_ns(second * S) for second in (0, 1, 2, 3, 4)] == [S, 2 * S, 3 * S, 4 * S, NEVER]
    assert ReplicaConditions(faults, 7 * S).ends_ns == 9 * S


def test_faults_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(
        "- {kind: slow, replica: 1, at_s: 10, for_s: 60, factor: 2}\n- {kind: die, replica: 0, at_s: 3.5, for_s: 20}\n"
    )
    expected = (Fault("die", 0, 3.5, 20), Fault("slow", 1, 10, 60, 2))
    assert read_faults(str(path), 2) == expected == read_faults("slow:1@10+60x2, die:0@3.5+20", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("die:1", "'die:1' is not die:REPLICA@SECONDS"),
        ("slow:0@1x2", "is not die:REPLICA@SECONDS"),
        ("die:2@1", "die:2@1: there is no replica 2 (valid: 0 to 1)"),
        ("die:0@0", "must be >= 0 and the time > 0"),
        ("die:0@1+0", "it lasts 0 s"),
        ("slow:0@1+1x0", "a factor > 0"),
        ("die:0@5+5,die:0@8", "replica 0 is to die at 8 s, before it has returned"),
        ("die:0@5,die:0@8", "before it has returned"),
        ("none.yaml", "cannot be read"),
    ],
)
def test_faults_that_cannot_be_are_named(text: str, message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        read_faults(text, 2)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: die", "must be a list"),
        ("- die", "entry 1: must be a mapping"),
        ("- {kind: die, replica: 0}", "entry 1: at_s is not given"),
        ("- {kind: die, replica: 0, at_s: soon}", "entry 1: at_s is 'soon'"),
        ("- {kind: die, replica: 0, at: 1}", "'at' is unknown"),
        ("- {kind: burn, replica: 0, at_s: 1}", "'burn' is unknown (valid: die, slow)"),
    ],
)
def test_files_of_faults_that_cannot_be_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError) as caught:
        read_faults(str(path), 2)
    assert message in str(caught.value)
