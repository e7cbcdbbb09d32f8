"""The policies by name; one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scheduler.config import ConfigError, SchedulerConfig, unknown_name
from scheduler.policies import fcfs, sjf, sjf_aging, sjf_bucket, srpt, static
from scheduler.policy import Policy


@dataclass(frozen=True)
class PolicyEntry:
    """A policy's builder, its line in ``--list policies``, and the settings it takes besides everybody's."""

    build: Callable[[SchedulerConfig], Policy]
    summary: str
    settings: tuple[str, ...] = ()


POLICIES = {
    "fcfs": PolicyEntry(fcfs.build, "arrival order, iteration level; the newest is preempted when KV runs out (vLLM)"),
    "static": PolicyEntry(
        static.build, "a batch runs until its last member ends (FasterTransformer)", ("min_batch", "max_wait_s")
    ),
    "sjf": PolicyEntry(
        sjf.build, "the seed's: step the shortest current length, only equal lengths together", ("min_rows",)
    ),
    "sjf-bucket": PolicyEntry(
        sjf_bucket.build,
        "the seed's: length buckets, one bucket a step",
        ("bucket", "bucket_order", "min_rows"),
    ),
    "sjf-aging": PolicyEntry(
        sjf_aging.build,
        "sjf; who has been here for 60 s leads, waiting or resident",
        ("aging_s", "min_rows"),
    ),
    "srpt": PolicyEntry(
        srpt.build, "predicted shortest remaining first, evicting (the seed's 'Orca')", ("oracle", "quantum")
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
        if getattr(config, setting) is not None and setting not in entry.settings:
            takes = [other for other, e in POLICIES.items() if setting in e.settings]
            raise ConfigError(f"policy {name} takes no {setting} (it belongs to {', '.join(takes)})")
    return entry.build(config)
