"""Random workloads and settings for the scheduler's property tests, small enough to preempt, chunk and age."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from scheduler.config import ConfigError, SchedulerConfig
from scheduler.plan import Layout, StepColumns, StepFeatures, StepOutcome, StepPlan
from scheduler.request import HeadStart, Request, StopKind
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.bounds import Floors, StepFloor
from simulator.costs import IntegerCosts, PerStep
from simulator.jitter import Jitter, Variation
from simulator.replica import simulate
from simulator.warmth import Warmth

#: how many times as many examples as continuous integration runs; those of more than 1 are drawn anew each time
SOAK = int(os.environ.get("LOCKSTEP_SOAK", "1"))

#: every policy with the settings of its own that it takes, each with values to draw from
POLICY_SETTINGS: dict[str, dict[str, list[Any]]] = {
    "fcfs": {},
    "orca-reserve": {},
    "static": {"min_batch": [None, 2, 5], "max_wait_s": [None, 3e-6, 1.0]},
    "sjf": {"min_rows": [None, 2, 4]},
    "sjf-bucket": {
        "bucket": [None, 1, 2, 5, 32, "pow2", "edges:4,9,30", "adaptive"],
        "bucket_order": [None, "lowest", "fullest", "oldest"],
        "min_rows": [None, 2, 4],
    },
    "sjf-aging": {"aging_s": [0.0, 3e-6, 2e-5, 1e-4, None], "min_rows": [None, 3]},
    "srpt": {"quantum": [0, 1, 4, None]},
    "sjf-predicted": {"aging_s": [None, 3e-6, 2e-5, 1e-4]},
    "trail": {"quantum": [0, 1, 4, None]},
    "las": {"quantum": [1, 2, 5, None]},
    "mlfq": {"quantum": [0, 1, 4, None]},
    "hrrn": {},
    "multi-bin": {"bins": [None, 1, 2, 3, 6], "min_batch": [None, 2, 5], "max_wait_s": [None, 3e-6, 2e-5]},
    "bucket-serve": {},
    "vtc": {},
    "lpm": {},
    "edf": {"quantum": [0, 1, 4, None]},
}

#: the parts that go with any policy; what does not go together is refused, and drawn again
PARTS: dict[str, list[Any]] = {
    "batching": ["slice:1", "slice:3", "slice:7", "run-to-completion", "iteration"],
    "phase": ["mixed", "mixed", "decode-first", "prefill-first"],
    "admission": ["reserve-max", "reserve-pow2", "reserve-oracle", "peak-future", "quantile", "quantile:0.5", "now"],
    "aging": ["linear", "linear", "threshold", "none"],
    "victim": ["newest", "longest-remaining", "lowest-priority"],
    "preemption": ["swap", "swap", "swap", "recompute"],
    "prefix_cache": [True],
    "overlap": [True],
    "oracle": ["true", "none", "noisy:0.5:3", "noisy:0.9", "history"],
}

#: what goes only with a part
PART_SETTINGS: dict[tuple[str, Any], dict[str, list[Any]]] = {
    ("phase", "mixed"): {"chunk_tokens": [1, 3, 8, 20, None]},
    ("aging", "linear"): {"aging_weight": [None, 1e4, 4e5, 5e6]},
    ("aging", "threshold"): {"aging_s": [0.0, 3e-6, 2e-5, 1e-4, None]},
    ("preemption", "swap"): {"swap_tokens": [None, 20, 60]},
}

#: policies whose thresholds are milliseconds and seconds run in slow motion
SLOW_MOTION = {"mlfq": (2_000, 50_000, 400_000)}


def examples(count: int) -> settings:
    """``count`` examples, always the same ones; with ``LOCKSTEP_SOAK`` that many times more, and new ones."""
    return settings(max_examples=count * SOAK, deadline=None, derandomize=SOAK == 1)


@dataclass(frozen=True)
class HostCosts:
    """Costs of a device, and a constant time on the host around each step."""

    device: IntegerCosts
    host: int
    name: str = "device and host"
    kv_tokens: int | None = None
    context_tokens: int | None = None

    def device_ns(self, columns: StepColumns) -> PerStep:
        return self.device.device_ns(columns)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return self.host

    def variation(self, columns: StepColumns) -> Variation:
        return Variation((0.8, 0.95, 1.25), (0.5, 1.5), 0.1, (3.0, 40.0))

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        both = {}
        for kind, (device,) in self.device.floors(layout).items():
            host = StepFloor(self.host, 0, 0)
            both[kind] = (device,) if overlap else (device.plus(host),)
        return both


@dataclass(frozen=True)
class LaunchCosts(HostCosts):
    """The same, of a device that begins a step while the host is still launching the rest of it, unless it is a graph;
    where the host has less to do, a step takes a little more than the larger of the two."""

    launch: int = 0
    warmth: Warmth | None = None

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        floors = super().floors(layout, overlap)
        if self.warmth is None or not overlap:
            return floors
        return {kind: found if kind == "decode" else tuple(map(self.warmth.lowered, found))
                for kind, found in floors.items()}  # fmt: skip

    def overlapped(self) -> LaunchCosts:
        return self

    def together_ns(self, columns: StepColumns, device: PerStep, host: PerStep) -> PerStep:
        both = np.maximum(device, host) + np.maximum(device - host, 0) // 16
        return both if isinstance(both, np.ndarray) else int(both)

    def launching_ns(self, columns: StepColumns) -> PerStep:
        return 0 if columns.graph_rows else self.launch + columns.kv_columns_computed * (self.launch // 64)


@dataclass(frozen=True)
class Run:
    """What a scheduler is to be put through."""

    config: SchedulerConfig
    requests: list[Request]
    aborts: list[tuple[int, str]]
    costs: HostCosts
    jitter_seed: int | None = None
    """step times vary by it; ``None``: they do not"""

    def jitter(self) -> Jitter | None:
        """Draws of their own for each world that is run."""
        return None if self.jitter_seed is None else Jitter(self.costs, self.jitter_seed)


def draw_config(rng: Random, policy: str) -> SchedulerConfig:
    """Limits that bind: memory for a few sequences, prompts beyond the budget of a step, thresholds within a run.

    Each part is there half of the time or less. A composition that the scheduler refuses is drawn again.
    """
    for _ in range(2000):
        config = _draw_any_config(rng, policy)
        try:
            Scheduler(config)
        except ConfigError:
            continue
        return config
    raise RuntimeError(f"no composition with {policy} is accepted")


def _draw_any_config(rng: Random, policy: str) -> SchedulerConfig:
    pick = rng.choice
    drawn: dict[str, Any] = {}
    share = pick((0.0, 0.2, 0.4, 0.6))
    for part, values in PARTS.items():
        if rng.random() < share:
            drawn[part] = pick(values)
    for (part, value), settings_of_part in PART_SETTINGS.items():
        if drawn.get(part) == value:
            drawn |= {name: pick(values) for name, values in settings_of_part.items()}
    own = {name: pick(values) for name, values in POLICY_SETTINGS[policy].items()}
    mixed = drawn.get("phase") == "mixed"
    paged = mixed or "prefix_cache" in drawn or "preemption" in drawn
    layout: Layout = "paged" if paged else pick(("paged", "padded"))
    return SchedulerConfig(
        policy=policy,
        layout=layout,
        kv_pool=None if paged else pick((None, None, "paged", "contiguous", "buddy")),
        max_running=pick((2, 3, 4, 6, 8) if mixed else (1, 2, 3, 4, 6, 8)),
        max_rows=pick((None, None, 2, 5) if mixed else (None, None, 1, 2, 5)),
        max_prefill_tokens=pick((4, 10, 25, 2048)),
        kv_tokens=pick((48, 52, 64, 80, 130, 600)),
        block_tokens=pick((1, 2, 4, 16)),
        context_tokens=pick((60, 1 << 30)),
        starvation_s=pick((2e-6, 1e-5, 60.0)),
        prefill_token_ns=pick((50_000, 1_000_000, 5_000_000)),
        length_quantiles=pick(((1, 2, 5, 7, 12, 12, 16, 20, 26), (3, 3, 9), tuple(range(1, 30)))),
        graph_rows=pick(((), (), (1, 2, 4, 8), (3,), (2, 5))) if layout == "paged" else (),
        graph_tokens=pick(((), (), (16, 32, 64), (40,), (7, 90))) if layout == "paged" else (),
        graph_mixed=pick(((), (8, 24, 64), (40,), (5, 90))) if layout == "paged" else (),
        **(own | drawn),
    )


def draw_requests(rng: Random, count: int, block_tokens: int = 4, scale: int = 1) -> list[Request]:
    """Requests in order of arrival: bursts, idle times, arrivals on the very end of a step.

    Some share the first blocks of their prompts. All times are multiplied by ``scale``.
    """
    found = []
    now = 0
    busy = rng.choice((True, False))
    ends: tuple[StopKind, ...] = rng.choice((("length",), ("length", "eos"), ("eos",)))
    sharing = rng.choice((0.0, 0.6, 1.0))
    for number in range(count):
        now += rng.choice((0, 0, 0, 500, 1000) if busy else (0, 500, 1000, 3333, 7000, 20_000, 150_000))
        prompt = rng.choice((1, 2, 3, 5, 6, 8, 8, 13, 20, 31, 32, 33, 45))
        output = rng.choice((1, 2, 5, 7, 12, 12, 16, 20, 26))
        extra = rng.choice((-1, 0, 0, 0, 1, 6))
        hidden = rng.choice((None, output, output, output))
        family, shared = rng.randrange(2), rng.choice((0, 4, 12, 20, 45))
        deadline = rng.choice((None, 2_000, 9_000, 30_000, 80_000))
        hashes = [
            index + 1000 * (1 + family if (index + 1) * block_tokens <= shared else 10 + number)
            for index in range(prompt // block_tokens)
        ]
        found.append(
            Request(
                f"r{number}",
                now * scale,
                prompt,
                max_tokens=max(1, output + extra),
                output_tokens=hidden,
                stop_kind=rng.choice(ends),
                tenant=rng.choice(("", "a", "b")),
                priority=rng.choice((0, 0, 1, 2)),
                deadline_ns=None if deadline is None else (now + deadline) * scale,
                block_hashes=tuple(hashes) if rng.random() < sharing else (),
            )
        )
    return found


def with_head_starts(run: Run, seed: int) -> Run:
    """The same, but some requests have got on elsewhere: with tokens, with their KV, or no further than a step."""
    rng = Random(f"head starts {seed}")
    found = []
    for request in run.requests:
        had = rng.choice((0, 1, 1, 2, 5))
        if rng.random() < 0.5 and had < request.planned_output_tokens:
            now = request.arrival_ns
            first = max(0, now - rng.choice((0, 500, 4000))) if had > 1 else now if had else -1
            scheduled = rng.choice((-1, max(0, now - 5000))) if not had else max(0, now - 5000)
            start = HeadStart(had, had > 0 and rng.random() < 0.7, scheduled, first, now if had else -1)
            request = replace(request, head_start=start)
        found.append(request)
    return replace(run, requests=found)


def draw_aborts(rng: Random, requests: list[Request], scale: int = 1) -> list[tuple[int, str]]:
    """Mostly none; some twice, of ids that are not there, or of requests that have not arrived or have ended."""
    ids = [request.id for request in requests] + ["nobody"]
    last = requests[-1].arrival_ns + 40_000 * scale
    return sorted((rng.randrange(0, last, 500 * scale), rng.choice(ids)) for _ in range(rng.choice((0, 0, 1, 4))))


@st.composite
def runs(draw: st.DrawFn, policies: tuple[str, ...] = tuple(POLICY_SETTINGS)) -> Run:
    """A random run: hypothesis draws its size, which it can shrink, and a seed for all the rest."""
    policy = draw(st.sampled_from(policies))
    # adaptive buckets split while more than 16 wait
    most = (30, 40) if policy in ("bucket-serve", "sjf-bucket") else (24,)
    count = draw(st.sampled_from((1, 2, 3, 5, 8, 12, 18, *most)))
    return draw_run(policy, count, draw(st.integers(0, 2**32)))


def draw_run(policy: str, count: int, seed: int) -> Run:
    """The run of ``count`` requests that ``seed`` stands for."""
    rng = Random(f"settings {policy} {seed}")
    config = draw_config(rng, policy)
    scale = rng.choice(SLOW_MOTION.get(policy, (1,)))
    costs = rng.choice(((1000, 0, 0, 0, 0), (1000, 37, 11, 3, 0), (1000, 37, 11, 3, 400), (700, 0, 0, 0, 900)))
    # apart, so that a smaller count leaves everything else as it is
    requests = draw_requests(Random(f"requests {policy} {seed}"), count, config.block_tokens, scale)
    step_ns, row_ns, token_ns, column_ns, host_ns = (cost * scale for cost in costs)
    device = IntegerCosts(step_ns, row_ns, token_ns, column_ns)
    aborts = draw_aborts(rng, requests, scale)
    launch_ns = scale * Random(f"launch {policy} {seed}").choice((0, 100, 700, 1500))
    warmth = Random(f"warmth {policy} {seed}").choice((None, Warmth(0.6, 1.2, 4, 5000.0 * scale)))
    overlapping = LaunchCosts(device, host_ns, launch=launch_ns, warmth=warmth)
    jitter_seed = rng.choice((None, None, 1, 2))
    return Run(config, requests, aborts, overlapping if config.overlap else HostCosts(device, host_ns), jitter_seed)


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


class Remembering(Scheduler):
    """A scheduler that keeps all sequences, the ended ones too."""

    def __init__(self, config: SchedulerConfig, observer: Recorder) -> None:
        super().__init__(config, observer)
        self.all: list[Sequence] = []

    def submit(self, request: Request, now_ns: int) -> Sequence:
        self.all.append(super().submit(request, now_ns))
        return self.all[-1]


def simulated(run: Run, max_repeat: int) -> tuple[Remembering, Recorder]:
    recorder = Recorder()
    scheduler = Remembering(run.config, recorder)
    simulate(run.requests, scheduler, run.costs, max_repeat=max_repeat, aborted=run.aborts, jitter=run.jitter())
    return scheduler, recorder
