"""The seed's cure for starvation: sjf with a boost for whoever has been in the system for too long."""

from dataclasses import replace

from scheduler.config import SchedulerConfig
from scheduler.policies import sjf
from scheduler.policy import Ageing, Policy

DEFAULT_THRESHOLD_S = 60.0


def build(config: SchedulerConfig) -> Policy:
    """:mod:`scheduler.policies.sjf`, and the oldest request past ``aging_s`` (default 60) leads.

    Promised: while an aged sequence is resident, the oldest one is in every decode step; whenever a slot and KV
    allow, the oldest aged waiting request is admitted first.
    """
    return replace(sjf.build(config), ageing=Ageing(round(DEFAULT_THRESHOLD_S * 1e9)))
