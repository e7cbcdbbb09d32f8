"""Every built-in policy described in YAML runs as the built-in one does, to the last integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from random_runs import POLICY_SETTINGS, Recorder, Remembering, Run, draw_run, times_of

from scheduler.config import SchedulerConfig
from scheduler.policies import POLICIES
from scheduler.scheduler import Scheduler
from simulator.replica import ANY, simulate

Described = dict[str, Any]


def _length(buckets: int | str, **more: Any) -> Described:
    return {"order": "length", "buckets": buckets, **more}


def _sjf(config: SchedulerConfig) -> Described:
    resident = _length(1, pick="lowest", min_rows=config.min_rows or 0)
    return {"waiting": _length(1, pick="fullest"), "resident": resident}


def _sjf_bucket(config: SchedulerConfig) -> Described:
    buckets, pick = config.bucket or 32, config.bucket_order or "lowest"
    resident = _length(buckets, pick=pick, min_rows=config.min_rows or 0, shortest_first=True)
    return {"waiting": _length(buckets, pick="fullest"), "resident": resident}


def _both(order: str, default_quantum: int) -> Callable[[SchedulerConfig], Described]:
    return lambda config: {"waiting": order, "resident": order, "urgency": order, "quantum": default_quantum}


def _multi_bin(config: SchedulerConfig) -> Described:
    return {
        "waiting": {"order": "bin", "bins": config.bins or 4}, "batching": "run-to-completion",
        "min_batch": config.max_running, "max_wait_s": 1.0,
    }  # fmt: skip


#: what each policy is in a description, given the settings that go into its orders
DESCRIPTIONS: dict[str, Callable[[SchedulerConfig], Described]] = {
    "fcfs": lambda config: {},
    "orca-reserve": lambda config: {"admission": "reserve-max"},
    "static": lambda config: {"batching": "run-to-completion"},
    "sjf": _sjf,
    "sjf-bucket": _sjf_bucket,
    "sjf-aging": lambda config: {**_sjf(config), "aging": "threshold", "aging_s": 60},
    "srpt": _both("remaining", 32),
    "sjf-predicted": lambda config: {"waiting": "prediction", "aging": "threshold", "aging_s": 60},
    "trail": lambda config: {**_both("remaining", 32)(config), "evictable_share": 0.8},
    "las": _both("service", 128),
    "mlfq": lambda config: {**_both("level", 128)(config), "promote_s": 3},
    "hrrn": lambda config: {"waiting": "response-ratio"},
    "multi-bin": _multi_bin,
    "bucket-serve": lambda config: {"waiting": _length("adaptive", pick="oldest")},
    "vtc": lambda config: {"waiting": "tenant"},
    "lpm": lambda config: {"waiting": "cached-prefix", "prefix_cache": True},
    "edf": _both("deadline", 128),
}

#: settings that a description has inside its orders
INSIDE = {"bucket": None, "bucket_order": None, "min_rows": None, "bins": None}


def described(config: SchedulerConfig, folder: Path) -> SchedulerConfig:
    """The same settings with the policy from a file."""
    values = {"name": f"my {config.policy}", **DESCRIPTIONS[config.policy](config)}
    path = folder / f"{config.policy}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    settings: dict[str, Any] = {"policy": str(path), **INSIDE}
    if config.policy == "multi-bin":
        # one of the two is enough there
        settings["min_batch"] = config.min_batch or config.max_running
        settings["max_wait_s"] = 1.0 if config.max_wait_s is None else config.max_wait_s
        if config.batching not in (None, "run-to-completion"):
            settings |= {"min_batch": None, "max_wait_s": None}
    return replace(config, **settings)


def outcome(run: Run, config: SchedulerConfig, max_repeat: int) -> tuple[Any, ...]:
    """All that a run says."""
    recorder = Recorder()
    scheduler = Remembering(config, recorder)
    simulate(run.requests, scheduler, run.costs, max_repeat=max_repeat, aborted=run.aborts)
    requests = [times_of(sequence) for sequence in scheduler.all]
    return scheduler.digest.hexdigest(), asdict(scheduler.counters), requests, recorder.steps, recorder.gap_counts


def test_every_policy_is_described() -> None:
    assert set(DESCRIPTIONS) == set(POLICIES) == set(POLICY_SETTINGS)


@pytest.mark.parametrize("policy", DESCRIPTIONS)
def test_a_described_policy_is_the_built_in_one(policy: str, tmp_path: Path) -> None:
    steps = 0
    for seed in range(20):
        run = draw_run(policy, 18, seed)
        config = described(run.config, tmp_path)
        for max_repeat in (1, ANY):
            expected, found = (outcome(run, each, max_repeat) for each in (run.config, config))
            assert found == expected, (seed, max_repeat, run.config)
            steps += len(found[3])
    assert steps > 1000


#: in these runs buckets are never split, and nobody far along could be evicted
ALIKE = [{"fcfs", "bucket-serve"}, {"srpt", "trail"}]


def test_the_descriptions_are_told_apart(tmp_path: Path) -> None:
    """Or the test above would prove little: what is described differently runs differently."""
    run = draw_run("fcfs", 40, 4)
    plain = SchedulerConfig(
        max_running=3, kv_tokens=80, block_tokens=4, max_rows=2, prefix_cache=True, prefill_token_ns=1_000_000,
        length_quantiles=(1, 2, 5, 7, 12, 12, 16, 20, 26),
    )  # fmt: skip
    names: dict[str, set[str]] = {}
    for policy in DESCRIPTIONS:
        own: Described = {"quantum": 1} if "quantum" in POLICIES[policy].settings else {}
        own |= {"aging_s": 2e-5} if policy in ("sjf-aging", "sjf-predicted") else {}
        scheduler = Scheduler(described(replace(plain, policy=policy, **own), tmp_path))
        names.setdefault(simulate(run.requests, scheduler, run.costs).digest.hexdigest(), set()).add(policy)
    assert [alike for alike in names.values() if len(alike) > 1] == ALIKE
