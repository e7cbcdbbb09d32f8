"""Earliest deadline first: the deadline is that of the first token (a request's TTFT objective)."""

from scheduler.config import SchedulerConfig
from scheduler.orders import ByDeadline, deadline
from scheduler.policy import Policy

DEFAULT_QUANTUM = 128


def build(config: SchedulerConfig) -> Policy:
    """An earlier deadline is admitted first and may evict the latest, after ``quantum`` tokens (default 128) since its
    admission. Requests without a deadline go last, in arrival order.
    """
    order = ByDeadline()
    return Policy(
        config.policy,
        waiting=order,
        resident=order,
        urgency=deadline,
        quantum=DEFAULT_QUANTUM if config.quantum is None else config.quantum,
    )
