"""No run of any policy beats the bounds, whatever parts it is made of."""

from __future__ import annotations

from hypothesis import given
from random_runs import POLICY_SETTINGS, Recorder, Run, examples, runs

from core.reproduce.experiment import Ended
from scheduler.config import SchedulerConfig
from scheduler.policies import POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.bounds import Job, Limits, bounds
from simulator.costs import IntegerCosts
from simulator.replica import simulate
from simulator.roofline import roofline


def test_the_random_runs_know_every_policy() -> None:
    assert set(POLICY_SETTINGS) == set(POLICIES)


@examples(400)
@given(runs())
def test_no_run_is_faster_than_its_bounds(run: Run) -> None:
    ended = Ended()
    simulate(run.requests, Scheduler(run.config, ended), run.costs, aborted=run.aborts)
    done = [sequence for sequence in ended.sequences if sequence.state == "finished"]
    if not done:
        return
    jobs = [Job(s.arrival_ns, s.prompt_tokens, s.output_tokens) for s in done]
    least = bounds(jobs, run.costs.floors(run.config.layout, run.config.overlap), Limits.of(run.config))
    mean_ns = sum(s.finish_ns - s.arrival_ns for s in done) / len(done)
    assert least.mean_latency.ns <= mean_ns
    assert least.makespan.ns <= max(s.finish_ns for s in done) - min(s.arrival_ns for s in done)


@examples(60)
@given(runs())
def test_no_run_on_a_roofline_is_faster_than_its_bounds(run: Run) -> None:
    costs = roofline("a100-40gb", "qwen-7b")
    ended = Ended()
    slower = [
        Request(r.id, r.arrival_ns * 10_000, r.prompt_tokens, r.max_tokens, r.output_tokens) for r in run.requests
    ]
    simulate(slower, Scheduler(run.config, ended), costs)
    done = [sequence for sequence in ended.sequences if sequence.state == "finished"]
    if not done:
        return
    jobs = [Job(s.arrival_ns, s.prompt_tokens, s.output_tokens) for s in done]
    least = bounds(jobs, costs.floors(run.config.layout, run.config.overlap), Limits.of(run.config))
    assert least.mean_latency.ns * len(done) <= sum(s.finish_ns - s.arrival_ns for s in done)
    assert least.makespan.ns <= max(s.finish_ns for s in done) - min(s.arrival_ns for s in done)


def test_every_step_takes_at_least_its_floor() -> None:
    """The floors themselves, on plans of a run with prefills and decodes."""
    costs = IntegerCosts(1000, 37, 11, 3)
    recorder = Recorder()
    run = [Request(f"r{i}", i * 700, 5 + i, 9, 9) for i in range(12)]
    simulate(run, Scheduler(SchedulerConfig(max_running=4, kv_tokens=160), recorder), costs)
    floors = costs.floors("paged")
    for features in recorder.features:
        (floor,) = floors[features.kind]
        row = costs.step_ns + (costs.token_ns if features.kind == "prefill" else costs.row_ns) * features.new_tokens
        row += costs.column_ns * features.kv_tokens_read
        assert floor.step_ns + floor.token_ns * features.new_tokens + floor.column_ns * features.kv_tokens_read <= row
