"""The scheduler against a slow second writing of its semantics: step by step and in stretches, to the last integer."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import PARTS, POLICY_SETTINGS, Run, draw_run, examples, runs, simulated, times_of, with_head_starts
from slow_orders import Job
from slow_reference import Reference

from simulator.replica import ANY


def job_times(job: Job) -> tuple[object, ...]:
    first = job.token_times[0] if job.token_times else -1
    return (
        job.request.id, job.state, job.known - job.request.prompt_tokens, job.first_scheduled, first, job.finish,
        job.preemptions, job.recomputed, job.starved,
    )  # fmt: skip


def check(run: Run) -> None:
    slow = Reference(run.config, run.costs, run.requests, run.aborts, run.jitter()).run()
    stepped, steps = simulated(run, 1)
    forwarded, stretches = simulated(run, ANY)

    assert [times_of(s) for s in stepped.all] == [job_times(job) for job in slow.jobs]
    assert asdict(stepped.counters) == asdict(slow.counters)
    assert steps.features == slow.features
    assert stepped.digest.hexdigest() == slow.hexdigest()
    assert steps.gap_counts == slow.gaps

    for counter in ("preemptions", "recomputed_tokens", "swapped_out", "swapped_in", "prefix_hit_tokens"):
        of_each = [getattr(sequence, counter) for sequence in stepped.all]
        assert sum(of_each) == getattr(stepped.counters, counter)
        assert of_each == [getattr(sequence, counter) for sequence in forwarded.all]

    assert [times_of(s) for s in forwarded.all] == [times_of(s) for s in stepped.all]
    assert asdict(forwarded.counters) == asdict(stepped.counters)
    assert stretches.steps == steps.steps
    assert forwarded.digest.hexdigest() == stepped.digest.hexdigest()
    assert stretches.gap_counts == steps.gap_counts
    # who is rejected in the middle of a stretch is told so at its end
    rejected = {s.id for s in stepped.all if s.state == "rejected"}
    assert [i for i in stretches.ended_ids if i not in rejected] == [i for i in steps.ended_ids if i not in rejected]
    assert sorted(stretches.ended_ids) == sorted(steps.ended_ids)
    assert stretches.plans <= steps.plans


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_slow_reference_single_steps_and_stretches_agree(policy: str) -> None:
    @examples(45)
    @given(runs(policies=(policy,)))
    def agree(run: Run) -> None:
        check(run)

    agree()


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_requests_that_have_got_on_elsewhere_agree(policy: str) -> None:
    """With output tokens, with the KV of all but the newest, or with neither: the same as an eviction's return."""

    @examples(20)
    @given(runs(policies=(policy,)), st.integers(0, 2**16))
    def agree(run: Run, seed: int) -> None:
        check(with_head_starts(run, seed))

    agree()


@pytest.mark.parametrize(
    ("policy", "count", "seed"),
    [
        ("mlfq", 18, 101947), ("mlfq", 18, 102072), ("mlfq", 18, 102575), ("mlfq", 12, 102950), ("mlfq", 5, 103488),
        ("srpt", 12, 303582),
    ],
)  # fmt: skip
def test_runs_that_once_differed_agree(policy: str, count: int, seed: int) -> None:
    """Too rare for the runs above: stretches of ``mlfq`` with overlap, the only resident evicted beside a prompt."""
    check(replace(draw_run(policy, count, seed), jitter_seed=None))


#: what random runs must reach, and the least share of all of them that does
REACHED = {
    "preemptions": 0.25,
    "swapped_in": 0.03,
    "steps_mixed": 0.06,
    "wasted_rows": 0.05,
    "prefix_hit_tokens": 0.05,
    "kv_unusable_sum": 0.02,
    "kv_reused": 0.5,
    "graph_rows": 0.2,
    "aborted": 0.2,
    "rejected": 0.05,
}


def test_the_random_runs_reach_every_part() -> None:
    """Or the test above would prove little: each counter moves in a fair share of runs, each part is in some."""
    counts = dict.fromkeys(REACHED, 0)
    parts: dict[str, set[object]] = {name: set() for name in (*PARTS, "kv_pool", "layout")}
    drawn = [draw_run(policy, 18, seed) for policy in POLICY_SETTINGS for seed in range(12)]
    for run in drawn:
        counters = Reference(run.config, run.costs, run.requests, run.aborts).run().counters
        for name in counts:
            counts[name] += getattr(counters, name) > 0
        for name, values in parts.items():
            values.add(getattr(run.config, name))
    for name, share in REACHED.items():
        assert counts[name] >= share * len(drawn), (name, counts[name], len(drawn))
    for name, drawable in PARTS.items():
        assert parts[name] >= set(drawable), name
    assert parts["kv_pool"] >= {"paged", "contiguous", "buddy"}
    assert parts["layout"] == {"paged", "padded"}
