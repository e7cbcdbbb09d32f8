"""Least attained service: who has been given the fewest output tokens goes first. It needs to know nothing."""

from scheduler.config import SchedulerConfig
from scheduler.orders import ByService, attained
from scheduler.policy import Policy

DEFAULT_QUANTUM = 128


def build(config: SchedulerConfig) -> Policy:
    """Service counts in quanta of ``quantum`` output tokens (default 128); inside one, arrival order.

    A newcomer may evict who has had the most, after ``quantum`` tokens since its admission.
    """
    quantum = DEFAULT_QUANTUM if config.quantum is None else config.quantum
    order = ByService(quantum)
    return Policy(config.policy, waiting=order, resident=order, urgency=attained(order.quantum), quantum=quantum)
