"""The policies by name; one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scheduler.config import ConfigError, SchedulerConfig, unknown_name
from scheduler.policies import (
    bucket_serve,
    edf,
    fcfs,
    hrrn,
    las,
    lpm,
    mlfq,
    multi_bin,
    orca_reserve,
    sjf,
    sjf_aging,
    sjf_bucket,
    sjf_predicted,
    srpt,
    static,
    trail,
    vtc,
)
from scheduler.policy import Policy


@dataclass(frozen=True)
class PolicyEntry:
    """A policy's builder, its line in ``--list policies``, and the settings it takes besides everybody's."""

    build: Callable[[SchedulerConfig], Policy]
    summary: str
    settings: tuple[str, ...] = ()
    needs: str = "-"
    """what it has to know of a request"""
    preempts: str = "no"
    """whether it takes the turn or the place of a request that runs"""
    starvation_free: str = "no"
    """whether every request is served in the end, however many others come"""


_PREDICTS = ("oracle",)

POLICIES = {
    "fcfs": PolicyEntry(
        fcfs.build,
        "arrival order, iteration level; the newest is preempted when KV runs out (vLLM)",
        preempts="on OOM",
        starvation_free="yes",
    ),
    "orca-reserve": PolicyEntry(
        orca_reserve.build,
        "fcfs, prompt + max_tokens reserved up front (Orca, OSDI'22)",
        needs="max_tokens",
        starvation_free="yes",
    ),
    "static": PolicyEntry(
        static.build,
        "a batch runs until its last member ends (FasterTransformer)",
        ("min_batch", "max_wait_s"),
        starvation_free="yes",
    ),
    "sjf": PolicyEntry(
        sjf.build,
        "the seed's: step the shortest current length, only equal lengths together",
        ("min_rows",),
        preempts="yes",
    ),
    "sjf-bucket": PolicyEntry(
        sjf_bucket.build,
        "the seed's: length buckets, one bucket a step",
        ("bucket", "bucket_order", "min_rows"),
        preempts="yes",
        starvation_free="depends",
    ),
    "sjf-aging": PolicyEntry(
        sjf_aging.build,
        "sjf; who has been here for 60 s leads, waiting or resident",
        ("min_rows",),
        preempts="yes",
        starvation_free="yes",
    ),
    "srpt": PolicyEntry(
        srpt.build,
        "predicted shortest remaining first, evicting (the seed's 'Orca')",
        (*_PREDICTS, "quantum"),
        needs="remaining length",
        preempts="yes",
    ),
    "sjf-predicted": PolicyEntry(
        sjf_predicted.build,
        "predicted shortest first, not preempting, ageing past 60 s (SSJF, vllm-ltr)",
        _PREDICTS,
        needs="length",
        starvation_free="with ageing",
    ),
    "trail": PolicyEntry(
        trail.build,
        "srpt, evicting only in the first 0.8 of the predicted output (TRAIL)",
        (*_PREDICTS, "quantum"),
        needs="remaining length",
        preempts="limited",
    ),
    "las": PolicyEntry(
        las.build,
        "least attained service: the fewest output tokens first, evicting",
        ("quantum",),
        preempts="yes",
    ),
    "mlfq": PolicyEntry(
        mlfq.build,
        "skip-join multi-level feedback queue, 10 ms x 2 a level, promoted after 3 s (FastServe)",
        ("quantum",),
        needs="prefill time",
        preempts="yes",
        starvation_free="by promotion",
    ),
    "hrrn": PolicyEntry(
        hrrn.build,
        "highest response ratio next: waiting over predicted length (Magnus, SGLang)",
        _PREDICTS,
        needs="length",
        starvation_free="below overload",
    ),
    "multi-bin": PolicyEntry(
        multi_bin.build,
        "batches from one of equal-mass bins of predicted length, run to completion (arXiv 2412.04504)",
        (*_PREDICTS, "bins", "min_batch", "max_wait_s"),
        needs="length bin",
    ),
    "bucket-serve": PolicyEntry(
        bucket_serve.build,
        "prompts by length bucket, split under load, oldest bucket first (BucketServe)",
        needs="prompt length",
        starvation_free="yes",
    ),
    "vtc": PolicyEntry(
        vtc.build,
        "the tenant served least first, 1 a token in, 2 a token out (VTC, OSDI'24)",
        needs="tenant",
        starvation_free="fair",
    ),
    "lpm": PolicyEntry(
        lpm.build,
        "longest cached prefix first, arrival order beyond 128 waiting (SGLang)",
        needs="prefix cache",
    ),
    "edf": PolicyEntry(
        edf.build,
        "earliest first-token deadline first, evicting",
        ("quantum",),
        needs="deadline",
        preempts="yes",
        starvation_free="with a deadline",
    ),
}

ALIASES = {"orca": "srpt"}

POLICY_SETTINGS = tuple(sorted({setting for entry in POLICIES.values() for setting in entry.settings}))


def policy_name(name: str) -> str:
    """The canonical name of a policy; raises :class:`ConfigError` for an unknown one."""
    canonical = ALIASES.get(name, name)
    if canonical not in POLICIES:
        raise ConfigError(unknown_name("policy", name, [*POLICIES, *ALIASES]))
    return canonical


def build_policy(config: SchedulerConfig) -> Policy:
    """The policy that ``config`` names. A setting that this policy does not take is a :class:`ConfigError`."""
    name = policy_name(config.policy)
    entry = POLICIES[name]
    for setting in POLICY_SETTINGS:
        if setting != "oracle" and getattr(config, setting) is not None and setting not in entry.settings:
            takes = [other for other, e in POLICIES.items() if setting in e.settings]
            raise ConfigError(f"policy {name} takes no {setting} (it belongs to {', '.join(takes)})")
    return entry.build(config)
