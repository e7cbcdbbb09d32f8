"""The padding-waste gate: what every policy computes on committed workloads, compared exactly with a baseline.

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
    "steps_prefill", "steps_decode", "preemptions", "recomputed_tokens", "finished", "rejected",
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


#: roomy and all at once; steady under a KV memory that preempts; prompts that go in chunks
LOADS = {
    "burst": GateLoad("seed", 96, 1, "all-at-once", None, {"max_running": 16}),
    "steady": GateLoad(
        "chat", 64, 2, "constant", 4.0, {"max_running": 24, "kv_tokens": 12_000, "context_tokens": 8_192}
    ),
    "chunked": GateLoad("code", 48, 3, "constant", 2.0, {"max_running": 8}),
}

#: policies with the settings that the waste hangs on
VARIANTS: dict[str, dict[str, Any]] = {
    "fcfs": {"policy": "fcfs"},
    "static": {"policy": "static"},
    "sjf": {"policy": "sjf"},
    "sjf-min-rows-4": {"policy": "sjf", "min_rows": 4},
    "sjf-bucket-32": {"policy": "sjf-bucket", "bucket": 32},
    "sjf-bucket-64-fullest": {"policy": "sjf-bucket", "bucket": 64, "bucket_order": "fullest", "min_rows": 4},
    "sjf-aging": {"policy": "sjf-aging", "aging_s": 10.0},
    "srpt": {"policy": "srpt"},
}

#: how rows are computed and KV is held
MEMORIES: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded", "kv_pool": "paged"},
    "padded-contiguous": {"layout": "padded", "kv_pool": "contiguous"},
    "paged": {"layout": "paged", "kv_pool": "paged"},
}


@dataclass(frozen=True)
class Case:
    """One simulated run of the gate."""

    name: str
    key: str
    """hash of the workload and of every setting"""
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
    """Simulate every workload x policy x memory."""
    cases = []
    for load_name, load in LOADS.items():
        workload = load.workload()
        requests = requests_of(workload.rows)
        for variant, settings in VARIANTS.items():
            for memory, kind in MEMORIES.items():
                config = SchedulerConfig(**load.limits, **settings, **kind)
                scheduler = simulate(requests, Scheduler(config), IntegerCosts())
                cases.append(
                    Case(f"{load_name}/{variant}/{memory}", _key(workload, config), _counted(scheduler.counters))
                )
    return cases


def _counted(counters: RunCounters) -> dict[str, int]:
    return {name: getattr(counters, name) for name in COUNTERS}


def _key(workload: Workload, config: SchedulerConfig) -> str:
    text = json.dumps([workload.sha256(), config.as_dict()], sort_keys=True)
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
