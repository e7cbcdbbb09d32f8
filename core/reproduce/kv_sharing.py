"""How many requests share a memory: Orca's reservations and vLLM's pages (SOSP'23, figures 2 and 13).

OPT-13B on an A100 with 40 GB, 15.7K slots of KV memory, ShareGPT at 2 requests/s. Orca books the longest sequence that
the model takes (Max), the prompt and the next power of two of the output (Pow2), or prompt and output (Oracle), in one
piece, which a buddy allocator hands out; vLLM books blocks of 16 tokens as it goes.

The paper gives ShareGPT's means only. A share of memory follows from more than means: requests that run are long ones
more often than requests that come. So lengths are lognormal with those means, and their spread is fitted (``FITTED``);
the other spreads say how much hangs on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log, sqrt
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from core.reproduce.experiment import Experiment, Options
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.model_shapes import model_shape
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.gpus import GPUS
from simulator.replica import simulate
from simulator.roofline import HOST_NS, RooflineCosts

GPU, MODEL = "a100-40gb", "opt-13b"
KV_TOKENS, CONTEXT_TOKENS, BLOCK_TOKENS = 15_700, 2_048, 16
RATE_PER_S = 2.0
MEAN_PROMPT, MEAN_OUTPUT = 161, 338
MAX_RUNNING = 256
#: arrivals, and the share of their time before which nothing is counted: the queue has to build up
REQUESTS, WARM_UP = 1_500, 0.2


@dataclass(frozen=True)
class Spread:
    """Standard deviation over mean, of prompts and of outputs."""

    prompt: float
    output: float

    def __str__(self) -> str:
        return f"{self.prompt:g} in, {self.output:g} out"


FITTED = Spread(1.5, 1.1)
OTHERS = (Spread(0.8, 0.7), Spread(1.1, 1.5))
#: requests of a run under one of the other spreads
FEWER = 800

#: milliseconds that the host adds to vLLM's steps in the second pair of its rows: then a step takes the 45 ms that the
#: paper's own figures imply by Little's law
SLOW_HOST_MS = 10.0


@dataclass(frozen=True)
class System:
    """One of the paper's systems: settings of ours, and its mean batch and its share of KV slots that hold a token's
    state as published, each with the tolerance that is stated for it."""

    title: str
    settings: dict[str, Any]
    batch: float
    held: float
    tolerance: float


SYSTEMS = (
    System("Orca (Max)", {"policy": "orca-reserve", "kv_pool": "buddy", "admission": "reserve-max"}, 7.00, 0.204, 0.0),
    System("Orca (Pow2)", {"policy": "orca-reserve", "kv_pool": "buddy", "admission": "reserve-pow2"}, 9.81, 0.268,
           0.1),
    System("Orca (Oracle)", {"policy": "orca-reserve", "kv_pool": "buddy", "admission": "reserve-oracle"}, 13.62,
           0.382, 0.1),
    System("vLLM", {"policy": "fcfs"}, 30.42, 0.963, 0.2),
)  # fmt: skip


class Occupancy:
    """An observer: sums over the decode steps that end in a window of time."""

    def __init__(self, start_ns: int, end_ns: int) -> None:
        self._start_ns, self._end_ns = start_ns, end_ns
        self.steps = self.rows = self.held = self.time_ns = 0

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        if plan.kind == "prefill":
            return
        inside = [index for index, end in enumerate(outcome.ends_ns) if self._start_ns <= end < self._end_ns]
        count, rows = len(inside), plan.features.decode_rows or plan.features.rows
        self.steps += count
        self.rows += count * rows
        self.held += count * plan.features.kv_tokens_read + rows * sum(inside)
        self.time_ns += (outcome.device_ns + outcome.host_ns) * count // steps

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        pass

    def ended(self, sequence: Sequence) -> None:
        pass

    @property
    def mean_rows(self) -> float:
        """Mean decode batch."""
        return self.rows / max(1, self.steps)

    @property
    def held_share(self) -> float:
        """KV slots that hold a token's state, of all, over the steps."""
        return self.held / max(1, self.steps) / KV_TOKENS

    @property
    def step_ms(self) -> float:
        """Mean duration of a decode step."""
        return self.time_ns / max(1, self.steps) / 1e6


@cache
def lognormal(mean: float, spread: float, most: int) -> tuple[int, ...]:
    """1,000 quantiles of the lognormal of this spread, cut off at ``most`` tokens, whose mean is ``mean``.

    What lies beyond is drawn again, as data sets leave out what is too long; the scale makes up for what that takes
    from the mean.
    """
    sigma = sqrt(log(1 + spread**2))
    normal = NormalDist()

    def quantiles(scale: float) -> list[float]:
        top = normal.cdf(log(most / scale) / sigma)
        return [scale * np.exp(sigma * normal.inv_cdf(top * (index + 0.5) / 1000)) for index in range(1000)]

    low, high = 0.01 * mean, 10.0 * mean
    for _ in range(60):
        scale = sqrt(low * high)
        low, high = (scale, high) if sum(quantiles(scale)) < 1000 * mean else (low, scale)
    return tuple(max(1, round(value)) for value in quantiles(low))


def requests_of(spread: Spread, seed: int, count: int = REQUESTS) -> list[Request]:
    """Poisson arrivals; an answer may take all that the model's context leaves to its prompt."""
    rng = Random(f"kv sharing {seed}")
    prompts = lognormal(MEAN_PROMPT, spread.prompt, CONTEXT_TOKENS // 2)
    outputs = lognormal(MEAN_OUTPUT, spread.output, CONTEXT_TOKENS - 1)
    requests: list[Request] = []
    now = 0.0
    while len(requests) < count:
        now -= log(1 - rng.random()) / RATE_PER_S * 1e9
        prompt, output = prompts[int(rng.random() * 1000)], outputs[int(rng.random() * 1000)]
        left = CONTEXT_TOKENS - prompt
        requests.append(Request(f"s{len(requests)}", round(now), prompt, left, min(output, left)))
    return requests


def costs(host_ms: float | None = None) -> RooflineCosts:
    """OPT-13B's roofline, with what the host adds to a step (default: the roofline's own)."""
    host_ns = HOST_NS if host_ms is None else round(host_ms * 1e6)
    return RooflineCosts(GPUS[GPU], model_shape(MODEL), "float16", host_ns)


def occupancy(settings: dict[str, Any], requests: list[Request], model: RooflineCosts) -> Occupancy:
    """One system on one workload, counted while requests arrive."""
    config = SchedulerConfig(
        max_running=MAX_RUNNING, kv_tokens=KV_TOKENS, block_tokens=BLOCK_TOKENS, context_tokens=CONTEXT_TOKENS,
        **settings,
    )  # fmt: skip
    end_ns = requests[-1].arrival_ns
    seen = Occupancy(round(WARM_UP * end_ns), end_ns)
    simulate(requests, Scheduler(config, seen), model)
    return seen


def run(options: Options) -> Findings:
    """The four systems; the allocators and the spreads that could have been; vLLM at the step time of the paper."""
    requests = requests_of(FITTED, options.seed)
    plain, slow = costs(), costs(SLOW_HOST_MS)
    rows: list[Row] = []
    table: list[tuple[str, ...]] = [("Lengths (spread), memory", *(system.title for system in SYSTEMS))]
    cells: list[str] = []
    for system in SYSTEMS:
        seen = occupancy(system.settings, requests, plain)
        why = _too_fast(seen) if system is SYSTEMS[-1] else ""
        rows += _rows(system, system.title, seen, why)
        cells.append(_cell(seen))
    paged = SYSTEMS[-1]
    seen = occupancy(paged.settings, requests, slow)
    rows += _rows(paged, f"vLLM, {seen.step_ms:.0f} ms a step", seen, "")
    table.append((f"{FITTED}, buddy (fitted)", *cells))
    table.append((f"{FITTED}, first fit", *(_cell(occupancy(_first_fit(s), requests, plain)) for s in SYSTEMS[:-1]),
                  f"{_cell(seen)} at {seen.step_ms:.0f} ms a step"))  # fmt: skip
    for spread in OTHERS:
        fewer = requests_of(spread, options.seed, FEWER)
        cells = [_cell(occupancy(s.settings, fewer, slow if s is paged else plain)) for s in SYSTEMS]
        table.append((f"{spread}, buddy", *cells))
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup=(
            f"OPT-13B on an A100 40 GB (roofline), {KV_TOKENS:,} KV slots, context {CONTEXT_TOKENS:,}, {REQUESTS:,} "
            f"requests at {RATE_PER_S:g}/s, lengths lognormal with means {MEAN_PROMPT} in and {MEAN_OUTPUT} out and "
            f"standard deviations {FITTED.prompt:g} and {FITTED.output:g} times that, cut off at the context."
        ),
        rows=tuple(rows),
        notes=(
            "Means over the decode steps while requests arrive, the first fifth left out. KV in use is the share "
            "of all slots that hold a token's state. The paper gives no spread: "
            "this one was fitted to all eight figures; the table has other spreads and the allocator that it is not. "
            "Orca's figures fit the buddy allocator that the paper assumes; in pieces of just the size (first fit) far "
            "more requests would run. The last two lines have vLLM at the slower step.",
        ),
        extra=tuple(table),
        measured={"spread_prompt": FITTED.prompt, "spread_output": FITTED.output},
    )


def _rows(system: System, title: str, seen: Occupancy, why: str) -> list[Row]:
    batch = f"{title}, mean batch"
    first = (
        Row.within(batch, system.batch, seen.mean_rows, system.tolerance, digits=2, explanation=why)
        if system.tolerance
        else Row.rounded(batch, system.batch, seen.mean_rows, 2)
    )
    share = system.tolerance or 0.1
    held = Row.within(f"{title}, KV in use, %", 100 * system.held, 100 * seen.held_share, share,
                      digits=1, explanation=why)  # fmt: skip
    return [first, held]


def _too_fast(seen: Occupancy) -> str:
    """Why vLLM's memory is not full on a roofline, by Little's law from the published figures."""
    tokens_per_s = RATE_PER_S * MEAN_OUTPUT
    implied_ms = SYSTEMS[-1].batch / tokens_per_s * 1e3
    return (
        f"the roofline's step is too fast: {RATE_PER_S:g} requests/s of {MEAN_OUTPUT} tokens with "
        f"{SYSTEMS[-1].batch} running mean {implied_ms:.0f} ms a token in the paper's engine (Little's law), and "
        f"{seen.step_ms:.0f} ms here, so that fewer run at a time; see the rows with the paper's step time"
    )


def _first_fit(system: System) -> dict[str, Any]:
    return {**system.settings, "kv_pool": "contiguous"}


def _cell(seen: Occupancy) -> str:
    return f"{seen.mean_rows:.2f} · {100 * seen.held_share:.1f} %"


EXPERIMENT = Experiment(
    "kv-sharing",
    "How many requests share a memory",
    "Kwon et al., Efficient Memory Management for LLM Serving with PagedAttention, SOSP 2023, figures 2 and 13",
    run,
)
