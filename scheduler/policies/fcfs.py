"""First come, first served, at iteration level, as vLLM runs it by default."""

from scheduler.config import SchedulerConfig
from scheduler.policy import Policy


def build(config: SchedulerConfig) -> Policy:
    """Arrival order everywhere; all resident sequences are stepped together."""
    return Policy(config.policy)
