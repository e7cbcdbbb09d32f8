"""Clusters: step by step and fast-forward to the last digit, one replica as the plain simulation, nothing lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace

import pytest
from cluster_runs import draw_plan, outcome_of, ran
from hypothesis import given
from hypothesis import strategies as st
from random_runs import POLICY_SETTINGS, Recorder, Remembering, Run, draw_run, examples, runs

from simulator.cluster import ClusterPlan
from simulator.cluster.cluster import NO_REPLICA
from simulator.cluster.routers import ROUTERS
from simulator.replica import ANY, simulate


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_fast_forward_is_step_by_step_and_nothing_is_lost(policy: str) -> None:
    @examples(40)
    @given(runs(policies=(policy,)), st.integers(0, 2**16))
    def agree(run: Run, seed: int) -> None:
        plan = draw_plan(run, seed)
        stepped, steps = ran(run, plan, 1)
        forwarded, stretches = ran(run, plan, ANY)

        assert sorted(map(outcome_of, stretches.journeys)) == sorted(map(outcome_of, steps.journeys))
        assert sorted(stretches.steps) == sorted(steps.steps)
        assert stretches.gap_counts == steps.gap_counts
        assert asdict(forwarded.counters) == asdict(stepped.counters)
        assert forwarded.sizes == stepped.sizes
        assert forwarded.transfers == stepped.transfers
        assert forwarded.usage == stepped.usage
        digests = [[i.scheduler.digest.hexdigest() for i in cluster.instances] for cluster in (stepped, forwarded)]
        assert digests[0] == digests[1]

        counters = forwarded.counters
        assert counters.submitted == len(run.requests) == len(stretches.journeys)
        assert counters.submitted == counters.finished + counters.rejected + counters.aborted
        assert len({journey.id for journey in stretches.journeys}) == counters.submitted
        for journey in stretches.journeys:
            if journey.state == "finished":
                assert journey.arrival_ns <= journey.first_scheduled_ns <= journey.first_token_ns <= journey.finish_ns
                wanted = journey.request.planned_output_tokens
                assert journey.output_tokens == min(wanted, run.config.context_tokens - journey.prompt_tokens)
        assert forwarded.transfers.waiting_tokens == 0
        for instance in forwarded.instances:
            if instance.alive:
                assert instance.outstanding == 0
                # a step of nobody's, planned ahead, is not run where the replica is to die before its end
                if any(fault.kind == "die" and fault.replica == instance.number for fault in plan.faults):
                    continue
                assert instance.scheduler.idle
                assert instance.scheduler.pool.reserved_tokens == 0
                assert instance.outstanding == instance.expected_tokens == 0
                assert instance.scheduler.waiting_tokens == instance.scheduler.kv_tokens == 0

    agree()


@examples(150)
@given(runs(), st.sampled_from([name for name in ROUTERS if name != "central-queue"]))
def test_one_replica_is_the_plain_simulation(run: Run, router: str) -> None:
    """But for aborts of what has not arrived, which a cluster ignores and a replica's inbox may keep for a step."""
    arrivals = {request.id: request.arrival_ns for request in run.requests}
    run = replace(run, aborts=[(time, name) for time, name in run.aborts if time > arrivals.get(name, -1)])
    recorder = Recorder()
    plain = Remembering(run.config, recorder)
    simulate(run.requests, plain, run.costs, aborted=run.aborts)
    cluster, record = ran(run, ClusterPlan((run.config,), (run.costs,), router))
    assert [(step[0], *step[3:]) for step in record.steps] == recorder.steps
    assert record.gap_counts == recorder.gap_counts
    assert asdict(cluster.counters) == asdict(plain.counters)
    assert cluster.instances[0].scheduler.digest.hexdigest() == plain.digest.hexdigest()
    expected = [
        (s.id, s.number, s.state, s.reason, -1 if s.state == "rejected" else 0, 0, s.output_tokens,
         s.first_scheduled_ns, s.first_token_ns, s.finish_ns, s.preemptions, s.recomputed_tokens, s.swapped_out,
         s.swapped_in, s.prefix_hit_tokens, s.over_threshold)
        for s in plain.all
    ]  # fmt: skip
    assert sorted(map(outcome_of, record.journeys)) == sorted(expected)


@examples(40)
@given(runs(), st.integers(0, 2**16))
def test_the_same_cluster_twice_is_the_same(run: Run, seed: int) -> None:
    plan = draw_plan(run, seed)
    (_, first), (_, second) = ran(run, plan), ran(run, plan)
    assert list(map(outcome_of, first.journeys)) == list(map(outcome_of, second.journeys))
    assert first.steps == second.steps


def test_the_random_clusters_reach_every_part() -> None:
    """Or the tests above would prove little."""
    drawn = [draw_run(policy, 18, seed) for policy in POLICY_SETTINGS for seed in range(6)]
    reached = Counter[str]()
    for seed, run in enumerate(drawn):
        plan = draw_plan(run, seed)
        cluster, record = ran(run, plan)
        reached["retried"] += any(journey.retries and journey.output_tokens > 1 for journey in record.journeys)
        reached["returned"] += any(usage.starts > 1 for usage in cluster.usage)
        reached["transferred"] += cluster.transfers.transfers > 0
        reached["transfer lost"] += cluster.transfers.lost > 0
        reached["waited for a link"] += cluster.transfers.waited_ns > 0
        reached["scaled"] += plan.scaling is not None and len(cluster.sizes) > 2
        reached["slow"] += any(fault.kind == "slow" for fault in plan.faults)
        reached["overlap and death"] += run.config.overlap and any(usage.lost for usage in cluster.usage)
        reached["no replica"] += any(journey.reason == NO_REPLICA for journey in record.journeys)
        reached[plan.router] += 1
    assert set(reached) - set(ROUTERS) == {
        "retried", "returned", "transferred", "transfer lost", "waited for a link", "scaled", "slow",
        "overlap and death", "no replica",
    }  # fmt: skip
    assert set(ROUTERS) <= set(reached)
    assert min(reached.values()) > 0, reached
