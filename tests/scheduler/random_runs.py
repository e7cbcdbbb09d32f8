"""Random workloads and settings for the scheduler's property tests, small enough to preempt, chunk and age."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from scheduler.config import SchedulerConfig
from scheduler.plan import StepFeatures, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.sequence import Sequence
from simulator.costs import IntegerCosts

#: how many times as many examples as continuous integration runs; those of more than 1 are drawn anew each time
SOAK = int(os.environ.get("LOCKSTEP_SOAK", "1"))

#: every policy with the settings of its own that it takes, each with values to draw from
POLICY_SETTINGS: dict[str, dict[str, list[Any]]] = {
    "fcfs": {},
    "static": {"min_batch": [None, 2, 5], "max_wait_s": [None, 3e-6, 1.0]},
    "sjf": {"min_rows": [None, 2, 4]},
    "sjf-bucket": {
        "bucket": [None, 1, 2, 5, 32],
        "bucket_order": [None, "lowest", "fullest", "oldest"],
        "min_rows": [None, 2, 4],
    },
    "sjf-aging": {"aging_s": [0.0, 3e-6, 2e-5, 1e-4, None], "min_rows": [None, 3]},
    "srpt": {"quantum": [0, 1, 4, None], "oracle": [None, "true", "none"]},
}


def examples(count: int) -> settings:
    """``count`` examples, always the same ones; with ``LOCKSTEP_SOAK`` that many times more, and new ones."""
    return settings(max_examples=count * SOAK, deadline=None, derandomize=SOAK == 1)


@dataclass(frozen=True)
class Run:
    """What a scheduler is to be put through."""

    config: SchedulerConfig
    requests: list[Request]
    aborts: list[tuple[int, str]]
    costs: IntegerCosts


def draw_config(rng: Random, policy: str) -> SchedulerConfig:
    """Limits that bind: memory for a few sequences, prompts beyond the budget of a step, thresholds within a run."""
    pick = rng.choice
    return SchedulerConfig(
        policy=policy,
        layout=pick(("paged", "padded")),
        kv_pool=pick((None, "paged", "contiguous")),
        max_running=pick((1, 2, 3, 4, 6, 8)),
        max_rows=pick((None, None, 1, 2, 5)),
        max_prefill_tokens=pick((4, 10, 25, 2048)),
        kv_tokens=pick((48, 52, 64, 80, 130, 600)),
        block_tokens=pick((1, 2, 4, 16)),
        context_tokens=pick((60, 1 << 30)),
        starvation_s=pick((2e-6, 1e-5, 60.0)),
        **_draw_settings(rng, policy),
    )


def _draw_settings(rng: Random, policy: str) -> dict[str, Any]:
    """The policy's own settings; ``min_batch`` and ``max_wait_s`` only go together."""
    drawn = {name: rng.choice(values) for name, values in POLICY_SETTINGS[policy].items()}
    if policy == "static" and None in drawn.values():
        return {}
    return drawn


def draw_requests(rng: Random, count: int) -> list[Request]:
    """Requests in order of arrival: bursts, idle times, arrivals on the very end of a step."""
    busy = rng.choice((True, False))
    found = []
    now = 0
    for number in range(count):
        now += rng.choice((0, 0, 0, 500, 1000) if busy else (0, 500, 1000, 3333, 7000, 20_000, 150_000))
        prompt = rng.choice((1, 2, 3, 5, 6, 8, 8, 13, 20, 31, 32, 33, 45))
        output = rng.choice((1, 2, 5, 7, 12, 12, 16, 20, 26))
        extra = rng.choice((-1, 0, 0, 0, 1, 6))
        hidden = rng.choice((None, output, output, output))
        found.append(Request(f"r{number}", now, prompt, max_tokens=max(1, output + extra), output_tokens=hidden))
    return found


def draw_aborts(rng: Random, requests: list[Request]) -> list[tuple[int, str]]:
    """Mostly none; some twice, of ids that are not there, or of requests that have not arrived or have ended."""
    ids = [request.id for request in requests] + ["nobody"]
    last = requests[-1].arrival_ns + 40_000
    return sorted((rng.randrange(0, last, 500), rng.choice(ids)) for _ in range(rng.choice((0, 0, 1, 4))))


@st.composite
def runs(draw: st.DrawFn, policies: tuple[str, ...] = tuple(POLICY_SETTINGS)) -> Run:
    """A random run: hypothesis draws its size, which it can shrink, and a seed for all the rest."""
    policy = draw(st.sampled_from(policies))
    count = draw(st.sampled_from((1, 2, 3, 5, 8, 12, 18, 24)))
    seed = draw(st.integers(0, 2**32))
    # apart, so that a smaller count leaves everything else as it is
    requests = draw_requests(Random(f"requests {policy} {seed}"), count)
    rng = Random(f"settings {policy} {seed}")
    costs = rng.choice((IntegerCosts(1000, 0, 0, 0), IntegerCosts(1000, 37, 11, 3)))
    return Run(draw_config(rng, policy), requests, draw_aborts(rng, requests), costs)


@dataclass
class Recorder:
    """An observer that keeps all it is told; stretches are taken apart into their steps."""

    gap_counts: Counter[int] = field(default_factory=Counter)
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    features: list[StepFeatures] = field(default_factory=list)
    ended_ids: list[str] = field(default_factory=list)
    plans: int = 0

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.plans += 1
        self.features.append(plan.features)
        columns = plan.columns(0, steps)
        for step, end in enumerate(outcome.ends_ns):
            row = [int(value[step]) if isinstance(value, np.ndarray) else value for value in columns]
            row[2] = 1
            self.steps.append((int(end), *row))

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        for gap in gap_ns:
            self.gap_counts[int(gap)] += weight

    def ended(self, sequence: Sequence) -> None:
        self.ended_ids.append(sequence.id)


def times_of(sequence: Sequence) -> tuple[Any, ...]:
    """What a run says of one request."""
    return (
        sequence.id,
        sequence.state,
        sequence.output_tokens,
        sequence.first_scheduled_ns,
        sequence.first_token_ns,
        sequence.finish_ns,
        sequence.preemptions,
        sequence.recomputed_tokens,
        sequence.over_threshold,
    )
