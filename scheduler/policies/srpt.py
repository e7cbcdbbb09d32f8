"""Predicted shortest remaining first, the policy that the seed calls 'Orca'.

The Orca of OSDI'22 predicts nothing: it is :mod:`scheduler.policies.orca_reserve`.
"""

from scheduler.config import SchedulerConfig
from scheduler.orders import ByRemaining, remaining
from scheduler.policy import Policy

DEFAULT_QUANTUM = 32


def build(config: SchedulerConfig) -> Policy:
    """The shortest predicted remaining output is admitted first and may evict the longest resident one.

    ``oracle`` (default ``true``) says where predictions come from; a resident sequence may be evicted for rank after
    ``quantum`` tokens (default 32) since its admission, or evictions cost more than they gain.
    """
    return Policy(
        config.policy,
        waiting=ByRemaining(),
        resident=ByRemaining(),
        urgency=remaining,
        quantum=DEFAULT_QUANTUM if config.quantum is None else config.quantum,
    )
