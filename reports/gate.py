"""The padding-waste gate: what policies and their parts compute on committed workloads, compared with a baseline.

Simulated, with an integer cost table, so the counters are the same on every machine. Any difference fails, an
improvement too, until the baseline is updated on purpose.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.policies import POLICIES
from scheduler.quantiles import quantile_table
from scheduler.request import requests_of
from scheduler.scheduler import Scheduler
from simulator.costs import IntegerCosts
from simulator.replica import simulate
from workloads.load import load_workload
from workloads.workload import Workload

SCHEMA = 1

#: the committed baseline
BASELINE = Path(__file__).with_name("padding_baseline.json")

#: what is compared
COUNTERS = (
    "linear_useful_prefill", "linear_computed_prefill", "attention_useful_prefill", "attention_computed_prefill",
    "linear_useful_decode", "linear_computed_decode", "attention_useful_decode", "attention_computed_decode",
    "steps_prefill", "steps_decode", "steps_mixed", "decode_rows", "decode_rows_computed", "preemptions",
    "recomputed_tokens", "swapped_tokens", "prefix_hit_tokens", "finished", "rejected",
)  # fmt: skip


class GateError(ValueError):
    """The gate cannot run; the message is one line for the user."""


@dataclass(frozen=True)
class GateLoad:
    """A seeded workload and the limits that it is run under."""

    preset: str
    requests: int
    seed: int
    arrivals: str
    rate: float | None
    limits: Mapping[str, Any]

    def workload(self) -> Workload:
        return load_workload(
            self.preset, rng=random.Random(self.seed), requests=self.requests, arrivals=self.arrivals, rate=self.rate
        )


#: roomy and all at once; steady under a KV memory that preempts; prompts that go in chunks; prompts that begin alike
LOADS = {
    "burst": GateLoad("seed", 96, 1, "all-at-once", None, {"max_running": 16}),
    "steady": GateLoad(
        "chat", 64, 2, "constant", 4.0, {"max_running": 24, "kv_tokens": 12_000, "context_tokens": 8_192}
    ),
    "chunked": GateLoad("code", 48, 3, "constant", 2.0, {"max_running": 8}),
    "sessions": GateLoad(
        "chat-sessions", 64, 4, "all-at-once", None,
        {"max_running": 16, "kv_tokens": 12_000, "context_tokens": 8_192},
    ),
}  # fmt: skip

#: how rows are computed and KV is held
MEMORIES: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded", "kv_pool": "paged"},
    "padded-contiguous": {"layout": "padded", "kv_pool": "contiguous"},
    "padded-buddy": {"layout": "padded", "kv_pool": "buddy"},
    "paged": {"layout": "paged", "kv_pool": "paged"},
}

_USUAL_LOADS = ("burst", "steady", "chunked")
_USUAL_MEMORIES = ("padded", "padded-contiguous", "paged")


@dataclass(frozen=True)
class Variant:
    """A policy with the settings that the waste hangs on, and what it is run on."""

    settings: Mapping[str, Any]
    memories: tuple[str, ...] = _USUAL_MEMORIES
    loads: tuple[str, ...] = _USUAL_LOADS


VARIANTS = {
    "fcfs": Variant({"policy": "fcfs"}),
    "static": Variant({"policy": "static"}),
    "sjf": Variant({"policy": "sjf"}),
    "sjf-min-rows-4": Variant({"policy": "sjf", "min_rows": 4}),
    "sjf-bucket-32": Variant({"policy": "sjf-bucket", "bucket": 32}),
    "sjf-bucket-64-fullest": Variant({"policy": "sjf-bucket", "bucket": 64, "bucket_order": "fullest", "min_rows": 4}),
    "sjf-aging": Variant({"policy": "sjf-aging", "aging_s": 10.0}),
    "srpt": Variant({"policy": "srpt"}),
    "multi-bin": Variant({"policy": "multi-bin"}),
    "bucket-serve": Variant({"policy": "bucket-serve"}),
    "slice-8": Variant({"policy": "fcfs", "batching": "slice:8"}),
    # the slow ones among them where waste shows
    "sjf-bucket-pow2": Variant({"policy": "sjf-bucket", "bucket": "pow2"}, ("padded",), ("steady", "chunked")),
    "sjf-bucket-edges": Variant(
        {"policy": "sjf-bucket", "bucket": "edges:64,128,256,1024"}, ("padded",), ("burst", "chunked")
    ),
    "orca-reserve": Variant({"policy": "orca-reserve"}, ("padded-buddy", "paged")),
    "mixed": Variant({"policy": "fcfs", "phase": "mixed", "chunk_tokens": 256}, ("paged",)),
    "swap": Variant({"policy": "fcfs", "preemption": "swap"}, ("padded", "paged"), ("steady",)),
    "no-prefix-cache": Variant({"policy": "fcfs"}, ("paged",), ("sessions",)),
    "prefix-cache": Variant({"policy": "fcfs", "prefix_cache": True}, ("paged",), ("sessions",)),
    "prefix-cache-lpm": Variant({"policy": "lpm", "prefix_cache": True}, ("paged",), ("sessions",)),
    "prefix-cache-mixed": Variant(
        {"policy": "fcfs", "prefix_cache": True, "phase": "mixed", "chunk_tokens": 256}, ("paged",), ("sessions",)
    ),
}


@dataclass(frozen=True)
class Case:
    """One simulated run of the gate."""

    name: str
    key: str
    """hash of the workload and of the settings"""
    counters: dict[str, int]


@dataclass(frozen=True)
class Difference:
    """A counter that is not what the baseline says; ``None`` where one side does not have it."""

    case: str
    counter: str
    baseline: int | None
    now: int | None


@dataclass(frozen=True)
class GateResult:
    """What the gate found: differences in counters, and reasons why a comparison could not be made."""

    cases: list[Case]
    differences: list[Difference]
    stale: list[str]

    @property
    def passed(self) -> bool:
        return not self.differences and not self.stale


def run_cases() -> list[Case]:
    """Simulate every variant on its workloads and memories."""
    cases = []
    for load_name, load in LOADS.items():
        workload = load.workload()
        for name, variant in VARIANTS.items():
            if load_name in variant.loads:
                for memory in variant.memories:
                    config = _config(load, variant, MEMORIES[memory], workload)
                    cases.append(_case(f"{load_name}/{name}/{memory}", workload, config))
    return cases


def _config(load: GateLoad, variant: Variant, memory: Mapping[str, Any], workload: Workload) -> SchedulerConfig:
    settings = {**load.limits, **variant.settings, **memory}
    if "bins" in POLICIES[settings["policy"]].settings:
        settings["length_quantiles"] = quantile_table(row.output_tokens for row in workload.rows)
    return SchedulerConfig(**settings)


def _case(name: str, workload: Workload, config: SchedulerConfig) -> Case:
    requests = requests_of(
        workload.rows, config.block_tokens, workload.prefix_block_tokens, prefix_cache=config.prefix_cache
    )
    scheduler = simulate(requests, Scheduler(config), IntegerCosts())
    return Case(name, _key(workload, config), _counted(scheduler.counters))


def _counted(counters: RunCounters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in COUNTERS}


def _key(workload: Workload, config: SchedulerConfig) -> str:
    """Of the workload and the settings that are not the default: a setting that is new is no other configuration."""
    usual = SchedulerConfig().as_dict()
    settings = {name: value for name, value in config.as_dict().items() if value != usual[name]}
    text = json.dumps([workload.sha256(), settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(baseline: Path = BASELINE) -> GateResult:
    """Run all cases and compare them with ``baseline``; a file that is no baseline is a :class:`GateError`."""
    recorded = _read(baseline) if baseline.exists() else None
    cases = run_cases()
    if recorded is None:
        return GateResult(cases, [], [f"{baseline} does not exist; make it with --update-baseline"])
    stale: list[str] = []
    differences: list[Difference] = []
    for case in cases:
        before = recorded.get(case.name)
        if before is None:
            stale.append(f"{case.name} is not in the baseline")
        elif before["key"] != case.key:
            stale.append(f"{case.name} was recorded for another workload or other settings")
        else:
            differences += _differences(case, before["counters"])
    gone = recorded.keys() - {case.name for case in cases}
    stale += [f"{name} is in the baseline, but is no longer run" for name in gone]
    return GateResult(cases, differences, sorted(stale))


def _differences(case: Case, before: Mapping[str, int]) -> list[Difference]:
    return [
        Difference(case.name, counter, before.get(counter), case.counters.get(counter))
        for counter in dict.fromkeys([*case.counters, *before])
        if before.get(counter) != case.counters.get(counter)
    ]


def _read(baseline: Path) -> dict[str, Any]:
    try:
        data = json.loads(baseline.read_text())
        cases = data["cases"]
        if data["schema"] != SCHEMA or not all({"key", "counters"} <= case.keys() for case in cases.values()):
            raise KeyError(f"schema {SCHEMA}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GateError(f"{baseline} is no baseline of the gate ({error}); make it with --update-baseline") from error
    return dict(cases)


def update(baseline: Path = BASELINE) -> list[Case]:
    """Record what every case gives now as the baseline."""
    cases = run_cases()
    data = {"schema": SCHEMA, "cases": {case.name: {"key": case.key, "counters": case.counters} for case in cases}}
    try:
        baseline.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise GateError(f"{baseline} cannot be written: {error.strerror}") from error
    return cases
