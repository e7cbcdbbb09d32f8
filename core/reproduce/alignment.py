"""The seed's alignment example: lengths [50, 52, 55, 60, 100], the shortest stepped until it meets the next."""

from __future__ import annotations

from core.reproduce.experiment import MS, Experiment, Options
from reports.reproduction import Chart, Curve, Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome
from scheduler.request import Request
from scheduler.scheduler import Scheduler

LENGTHS = (50, 52, 55, 60, 100)
STEPS = 50

#: published lengths, where arithmetic leaves no choice: from 50 to 52 it takes 2 steps, to 55 3 more, to 60 5 more
PUBLISHED = {
    0: [50, 52, 55, 60, 100],
    2: [52, 52, 55, 60, 100],
    5: [55, 55, 55, 60, 100],
    10: [60, 60, 60, 60, 100],
    50: [100, 100, 100, 100, 100],
}


def lengths_by_step() -> list[list[int]]:
    """The five lengths at t = 0, 1, ..., 50, under ``sjf``."""
    scheduler = Scheduler(SchedulerConfig(policy="sjf"))
    # a prefill gives a token: a prompt of n - 1 tokens makes a sequence of n. One length a step, before any decode.
    members = [scheduler.submit(Request(f"length {n}", 0, n - 1, max_tokens=400), 0) for n in LENGTHS]
    now = 0
    history = []
    for step in range(len(LENGTHS) + STEPS):
        plan = scheduler.next_step(now)
        if plan is None:
            raise RuntimeError(f"no plan for step {step}")
        now += MS
        scheduler.complete(plan, StepOutcome([now], MS, 0), now)
        if step >= len(LENGTHS) - 1:
            history.append([member.known for member in members])
    return history


def first_aligned(history: list[list[int]], count: int) -> int:
    """The first t at which ``count`` sequences have the shortest length."""
    return next(t for t, lengths in enumerate(history) if lengths.count(min(lengths)) >= count)


def tokens(history: list[list[int]], steps: int) -> int:
    """Tokens made in the first ``steps`` steps."""
    return sum(history[steps]) - sum(history[0])


def run(options: Options) -> Findings:
    """Lengths, alignments, tokens."""
    history = lengths_by_step()
    wrong = (
        "the README's own lengths say 10: the shortest goes from 50 to 52 in 2 steps, both to 55 in 3 more, all three "
        "to 60 in 5 more; at t = 8 the lengths are " + str(history[8])
    )
    rows = [Row(f"lengths at t = {t}", str(lengths), str(history[t])) for t, lengths in PUBLISHED.items()]
    rows += [
        Row("four aligned at t =", 10, first_aligned(history, 4)),
        Row("four aligned at t =, as the README has it", 8, first_aligned(history, 4), explanation=wrong),
        Row("five aligned at t =", 50, first_aligned(history, 5)),
        Row("tokens in 10 steps", 23, tokens(history, 10)),
        Row("tokens in 50 steps", 183, tokens(history, 50)),
    ]
    times = list(range(len(history)))
    curves = [Curve(str(start), times, [row[i] for row in history]) for i, start in enumerate(LENGTHS)]
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup="Five sequences of these lengths under sjf, which steps the shortest length and all who have it.",
        rows=tuple(rows),
        notes=("A batch of all five makes 50 tokens in the first 10 steps: aligning makes 23.",),
        chart=Chart(tuple(curves), "steps", "tokens"),
    )


EXPERIMENT = Experiment("alignment", "The alignment of [50, 52, 55, 60, 100]", "the seed's README, and arithmetic", run)
