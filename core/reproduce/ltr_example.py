"""vllm-ltr's example: three jobs, the longest first in line, one at a time."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from core.reproduce.experiment import MS, Experiment, Options, StepCosts, play
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.request import Request

LENGTHS = (10, 2, 1)
STEP_NS = 1_000 * MS

#: policy and published seconds a token
ORDERS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("FCFS", {"policy": "fcfs"}, 6.67),
    ("shortest first", {"policy": "sjf-predicted", "oracle": "true", "aging": "none"}, 1.27),
)


def mean_normalized_s(settings: dict[str, Any]) -> Fraction:
    """Mean over the jobs of E2E seconds a token: the prefill gives a token as every other step does, in a second."""
    requests = [Request(f"{length} tokens", 0, 1, length, length) for length in LENGTHS]
    _, sequences = play(SchedulerConfig(max_running=1, **settings), requests, StepCosts(STEP_NS, STEP_NS))
    seconds = [Fraction(sequence.finish_ns, STEP_NS * sequence.output_tokens) for sequence in sequences]
    return sum(seconds, Fraction()) / len(seconds)


def run(options: Options) -> Findings:
    """Both orders."""
    rows = tuple(
        Row.rounded(f"{title}, s/token", published, float(mean_normalized_s(settings)), 2)
        for title, settings, published in ORDERS
    )
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup="Jobs of 10, 2 and 1 tokens, all there at once in this order, one at a time, a token a second; mean of "
        "E2E / tokens.",
        rows=rows,
    )


EXPERIMENT = Experiment(
    "ltr-example",
    "Why long jobs first hurts",
    "Fu et al., Efficient LLM Scheduling by Learning to Rank, NeurIPS 2024 (arXiv 2408.15792)",
    run,
)
