"""The optimum in hindsight of a few requests, every policy beside it, and the bound that needs no solver below it."""

from __future__ import annotations

from random import Random
from typing import Any

from core.reproduce.experiment import MS, Experiment, Options, StepCosts, play
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.sequence import Sequence
from simulator.bounds import Job, volume_bound
from simulator.optimum import Round, optimum

REQUESTS = 8
KV_TOKENS = 14
INSTANCES = 3

#: policies and their settings; all on the same paged memory of blocks of one token
POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fcfs", {"policy": "fcfs"}),
    ("fcfs, mixed steps", {"policy": "fcfs", "phase": "mixed"}),
    ("orca-reserve", {"policy": "orca-reserve"}),
    ("static", {"policy": "static"}),
    ("sjf", {"policy": "sjf"}),
    ("sjf-bucket", {"policy": "sjf-bucket", "bucket": 4}),
    ("srpt", {"policy": "srpt", "oracle": "true", "quantum": 0}),
    ("srpt, mixed steps", {"policy": "srpt", "oracle": "true", "quantum": 0, "phase": "mixed"}),
    ("sjf-predicted", {"policy": "sjf-predicted", "oracle": "true", "aging": "none"}),
    ("trail", {"policy": "trail", "oracle": "true"}),
    ("las", {"policy": "las", "quantum": 2}),
    ("hrrn", {"policy": "hrrn", "oracle": "true"}),
)


def instance(seed: int, count: int = REQUESTS) -> list[Round]:
    """A few short requests that come close together, so that memory is what they fight for."""
    rng = Random(f"hindsight {seed}")

    def pick(low: int, high: int) -> int:
        return low + int(rng.random() * (high - low + 1))

    return sorted(Round(pick(0, 8), pick(1, 4), pick(1, 6)) for _ in range(count))


def play_rounds(rounds: list[Round], kv_tokens: int, settings: dict[str, Any]) -> list[Sequence]:
    """The instance in the simulator: a step is a round, and a prompt has one token more (see ``simulator.optimum``)."""
    requests = [
        Request(f"h{index}", r.arrival * MS, r.prompt_tokens + 1, r.output_tokens, r.output_tokens)
        for index, r in enumerate(rounds)
    ]
    config = SchedulerConfig(max_running=len(rounds), kv_tokens=kv_tokens, block_tokens=1, **settings)
    _, sequences = play(config, requests, StepCosts(MS, MS))
    return sequences


def total_rounds(sequences: list[Sequence]) -> float:
    """Total latency in rounds."""
    return sum(sequence.finish_ns - sequence.arrival_ns for sequence in sequences) / MS


def volume_rounds(rounds: list[Round], kv_tokens: int) -> float:
    """The volume bound on the total latency, in rounds."""
    jobs = [Job(r.arrival * MS, r.prompt_tokens + 1, r.output_tokens) for r in rounds]
    return volume_bound(jobs, kv_tokens, MS) / MS


def run(options: Options) -> Findings:
    """Every policy against the exact optima, over a few instances."""
    instances = [instance(options.seed * INSTANCES + index) for index in range(INSTANCES)]
    batch = [optimum(rounds, KV_TOKENS) for rounds in instances]
    relaxed = [optimum(rounds, KV_TOKENS, preemptive=True, time_limit_s=20) for rounds in instances]
    volumes = [volume_rounds(rounds, KV_TOKENS) for rounds in instances]
    table: list[tuple[str, ...]] = [("Policy", *(f"instance {index + 1}" for index in range(INSTANCES)), "mean")]
    least, least_batch = [], []
    for title, settings in POLICIES:
        totals = [total_rounds(play_rounds(rounds, KV_TOKENS, settings)) for rounds in instances]
        over_batch = [total / best.bound for total, best in zip(totals, batch, strict=True)]
        least += [total / best.bound for total, best in zip(totals, relaxed, strict=True)]
        least_batch += over_batch
        table.append((title, *(f"{ratio:.3f}" for ratio in over_batch), f"{sum(over_batch) / INSTANCES:.3f}"))
    for title, values in (("preemptive optimum", [best.total_latency for best in relaxed]), ("volume bound", volumes)):
        ratios = [value / best.total_latency for value, best in zip(values, batch, strict=True)]
        table.append((title, *(f"{ratio:.3f}" for ratio in ratios), f"{sum(ratios) / INSTANCES:.3f}"))
    largest = max(volume / best.total_latency for volume, best in zip(volumes, relaxed, strict=True))
    steps = [best.total_latency / other.total_latency for best, other in zip(relaxed, batch, strict=True)]
    rows = (
        Row(
            "least policy / batch-schedule optimum",
            1.0,
            min(least_batch),
            relation="at least",
            allowed="at least",
            explanation="a policy that pauses or evicts is no batch schedule and may beat the best of them",
        ),
        Row("least policy / preemptive optimum", 1.0, min(least), relation="at least", allowed="at least"),
        Row("largest preemptive / batch-schedule optimum", 1.0, max(steps), relation="at most", allowed="at most"),
        Row("largest volume bound / preemptive optimum", 1.0, largest, relation="at most", allowed="at most"),
    )
    proven = all(best.proven for best in (*batch, *relaxed))
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup=(
            f"{INSTANCES} instances of {REQUESTS} requests, a KV memory of {KV_TOKENS} tokens, a step a round; total "
            "latency over that of the optimum in hindsight (CP-SAT)."
        ),
        rows=rows,
        notes=(
            "The batch-schedule optimum runs what it has started to its end; the preemptive one may leave any request "
            "out of any round, and is what a policy that pauses or evicts is bound by. The table is over the former.",
            "Both optima are proven." if proven else "The solver ran out of time: ratios are over its lower bound.",
        ),
        extra=tuple(table),
    )


EXPERIMENT = Experiment(
    "hindsight",
    "The optimum in hindsight",
    "Jaillet et al., Online Scheduling for LLM Inference with KV Cache Constraints (arXiv 2502.07115)",
    run,
)
