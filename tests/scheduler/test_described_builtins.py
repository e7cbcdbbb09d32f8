"""Every built-in policy described in YAML runs as the built-in one does, to the last integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from random_runs import POLICY_SETTINGS, SLOW_MOTION, Recorder, draw_config, draw_run, times_of

from scheduler.config import SchedulerConfig
from scheduler.policies import POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
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


class Remembering(Scheduler):
    """A scheduler that keeps all sequences, the ended ones too."""

    def __init__(self, config: SchedulerConfig, observer: Recorder) -> None:
        super().__init__(config, observer)
        self.all: list[Sequence] = []

    def submit(self, request: Request, now_ns: int) -> Sequence:
        self.all.append(super().submit(request, now_ns))
        return self.all[-1]


def test_every_policy_is_described() -> None:
    assert set(DESCRIPTIONS) == set(POLICIES) == set(POLICY_SETTINGS)


@pytest.mark.parametrize("policy", DESCRIPTIONS)
def test_a_described_policy_is_the_built_in_one(policy: str, tmp_path: Path) -> None:
    steps = 0
    for seed in range(25):
        run = draw_run(policy, 18, seed)
        outcomes = []
        for config in (run.config, described(run.config, tmp_path)):
            for max_repeat in (1, ANY):
                recorder = Recorder()
                scheduler = Remembering(config, recorder)
                simulate(run.requests, scheduler, run.costs, max_repeat=max_repeat, aborted=run.aborts)
                outcomes.append(
                    (
                        scheduler.digest.hexdigest(),
                        asdict(scheduler.counters),
                        [times_of(s) for s in scheduler.all],
                        recorder.steps,
                        recorder.gap_counts,
                    )
                )
                steps += len(recorder.steps)
        assert outcomes[1:] == outcomes[:1] * 3, (seed, run.config)
    assert steps > 1000


def test_the_descriptions_are_told_apart(tmp_path: Path) -> None:
    """Or the test above would prove little: another policy's description gives another run."""
    run = draw_run("fcfs", 18, 3)
    plain = replace(run.config, **dict.fromkeys(("aging", "aging_s", "aging_weight", "oracle", "victim", "batching")))
    plain = SchedulerConfig(
        max_running=3, kv_tokens=80, block_tokens=4, max_rows=2, prefix_cache=True,
        prefill_token_ns=plain.prefill_token_ns, length_quantiles=plain.length_quantiles,
    )  # fmt: skip
    digests = {}
    for policy in DESCRIPTIONS:
        scheduler = Scheduler(described(replace(plain, policy=policy), tmp_path))
        digests[policy] = simulate(run.requests, scheduler, run.costs).digest.hexdigest()
    assert len(set(digests.values())) > len(digests) * 2 // 3, digests
