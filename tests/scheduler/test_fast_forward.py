"""Fast-forward is step by step to the last digit: longer runs than the slow reference can take, faults, real costs."""

from __future__ import annotations

from dataclasses import asdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import POLICY_SETTINGS, Run, draw_config, draw_requests, examples, simulated, times_of

from simulator.replica import ANY
from simulator.roofline import roofline

#: times of the random runs are microseconds; a step of these costs takes milliseconds
SLOWER = 20_000


def draw(policy: str, count: int, seed: int) -> Run:
    """A run on a projected GPU, whose steps take fractions of a nanosecond that are rounded.

    Its faults: requests that are aborted one by one, and moments at which all that have arrived are, as when their
    replica is lost.
    """
    rng = Random(f"fast-forward {policy} {seed}")
    config = draw_config(rng, policy)
    requests = draw_requests(rng, count, config.block_tokens, SLOWER)
    last_ns = requests[-1].arrival_ns + 1
    lost = [rng.randrange(last_ns) for _ in range(rng.choice((0, 0, 1, 3)))]
    aborts = [(time_ns, r.id) for time_ns in lost for r in requests if r.arrival_ns <= time_ns]
    aborts += [(rng.randrange(2 * last_ns), rng.choice(requests).id) for _ in range(rng.choice((0, 3, count // 4)))]
    gpu, model = rng.choice((("a100-40gb", "qwen-7b"), ("a100-80gb", "llama-2-7b")))
    return Run(config, requests, sorted(aborts), roofline(gpu, model))


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_fast_forward_is_step_by_step(policy: str) -> None:
    @examples(12)
    @given(st.sampled_from((5, 40, 120)), st.integers(0, 2**32))
    def same(count: int, seed: int) -> None:
        run = draw(policy, count, seed)
        stepped, steps = simulated(run, 1)
        forwarded, stretches = simulated(run, ANY)
        assert [times_of(s) for s in forwarded.all] == [times_of(s) for s in stepped.all]
        assert asdict(forwarded.counters) == asdict(stepped.counters)
        assert forwarded.digest.hexdigest() == stepped.digest.hexdigest()
        assert stretches.steps == steps.steps
        assert stretches.gap_counts == steps.gap_counts

    same()


def test_the_runs_have_stretches_and_faults() -> None:
    """Or the test above would prove little."""
    forwarded = [simulated(draw(policy, 40, seed), ANY) for policy in POLICY_SETTINGS for seed in range(4)]
    assert sum(len(recorder.steps) > recorder.plans for _, recorder in forwarded) > len(forwarded) // 2
    assert sum(scheduler.counters.aborted > 5 for scheduler, _ in forwarded) > len(forwarded) // 8
