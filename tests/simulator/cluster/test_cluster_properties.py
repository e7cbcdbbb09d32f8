"""Clusters: step by step and fast-forward to the last digit, one replica as the plain simulation, nothing lost."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from cluster_runs import draw_plan, outcome_of, ran
from hypothesis import given
from hypothesis import strategies as st
from random_runs import POLICY_SETTINGS, Recorder, Run, examples, runs

from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.cluster import ClusterPlan
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
                assert instance.scheduler.idle
                assert instance.scheduler.pool.reserved_tokens == 0
                assert instance.outstanding == instance.expected_tokens == 0
                assert instance.scheduler.waiting_tokens == instance.scheduler.kv_tokens == 0

    agree()


class Remembering(Scheduler):
    """A scheduler that keeps all sequences, the ended ones too."""

    def __init__(self, config: SchedulerConfig, observer: Recorder) -> None:
        super().__init__(config, observer)
        self.all: list[Sequence] = []

    def submit(self, request: Request, now_ns: int) -> Sequence:
        self.all.append(super().submit(request, now_ns))
        return self.all[-1]


@examples(150)
@given(runs(), st.sampled_from(list(ROUTERS)))
def test_one_replica_is_the_plain_simulation(run: Run, router: str) -> None:
    recorder = Recorder()
    plain = Remembering(run.config, recorder)
    simulate(run.requests, plain, run.costs, aborted=run.aborts)
    cluster, record = ran(run, ClusterPlan((run.config,), (run.costs,), router))
    if router != "central-queue":
        assert [(*step[:1], *step[3:]) for step in record.steps] == recorder.steps
        assert record.gap_counts == recorder.gap_counts
        assert asdict(cluster.counters) == asdict(plain.counters)
        assert cluster.instances[0].scheduler.digest.hexdigest() == plain.digest.hexdigest()
    expected = [
        (s.id, s.number, s.state, s.reason, 0 if s.state != "rejected" else -1, 0, s.output_tokens,
         s.first_scheduled_ns, s.first_token_ns, s.finish_ns, s.preemptions, s.recomputed_tokens, s.swapped_out,
         s.swapped_in, s.prefix_hit_tokens, s.over_threshold)
        for s in plain.all
    ]  # fmt: skip
    if router != "central-queue":
        assert sorted(map(outcome_of, record.journeys)) == sorted(expected)
