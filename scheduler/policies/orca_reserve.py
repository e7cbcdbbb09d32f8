"""Orca's scheduling: first come, first served, at iteration level, with all memory reserved up front.

Source: Orca, OSDI'22. It predicts nothing; what the seed calls 'Orca' is :mod:`scheduler.policies.srpt`.
"""

from scheduler.config import SchedulerConfig
from scheduler.policy import Policy


def build(config: SchedulerConfig) -> Policy:
    """Arrival order everywhere; prompt and ``max_tokens`` are booked at admission, so that nobody is preempted."""
    return Policy(config.policy, reserves=True)
