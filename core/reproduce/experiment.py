"""What an experiment is: a published result, and a run of the simulator that should give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reports.reproduction import Findings
from scheduler.config import SchedulerConfig
from scheduler.plan import StepColumns, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.costs import CostModel
from simulator.replica import simulate

MS = 1_000_000


@dataclass(frozen=True)
class Options:
    """``jobs``: how many of each queue (``None``: as many as end soon); ``seed`` of everything random."""

    jobs: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Experiment:
    """One published result; ``name`` is what ``--experiments`` takes."""

    name: str
    title: str
    source: str
    run: Callable[[Options], Findings]


@dataclass(frozen=True)
class StepCosts:
    """A step costs the same whatever is in it: the time unit of a paper's model. Nothing else costs anything."""

    prefill_ns: int
    decode_ns: int
    name: str = "steps"
    kv_tokens: int | None = None
    context_tokens: int | None = None

    def device_ns(self, columns: StepColumns) -> int:
        return self.prefill_ns if columns.kind == "prefill" else self.decode_ns

    def host_ns(self, columns: StepColumns) -> int:
        return 0


class Ended:
    """An observer that keeps when each request ended, and nothing of the steps."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        pass

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        pass

    def ended(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)


def play(config: SchedulerConfig, requests: list[Request], costs: CostModel) -> tuple[Scheduler, list[Sequence]]:
    """Simulate ``requests`` (in order of arrival) to their ends: the scheduler, and the sequences in that order.

    ``RuntimeError`` if one did not finish.
    """
    ended = Ended()
    scheduler = simulate(requests, Scheduler(config, ended), costs)
    for sequence in ended.sequences:
        if sequence.state != "finished":
            raise RuntimeError(f"{sequence!r} did not finish: {sequence.reason}")
    return scheduler, sorted(ended.sequences, key=lambda sequence: sequence.number)
