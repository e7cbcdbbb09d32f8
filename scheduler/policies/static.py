"""Static batching: the 'before' of continuous batching, and with ``max_running`` 1 the seed's normal mode."""

from scheduler.config import SchedulerConfig
from scheduler.policy import Policy, reserve_max


def build(config: SchedulerConfig) -> Policy:
    """Arrival order; a batch is closed by its first decode step and runs until its last member ends.

    ``min_batch`` requests (default 1) or ``max_wait_s`` of waiting (default 0) start a batch.
    """
    return Policy(
        config.policy,
        mode="run-to-completion",
        reserve=reserve_max,
        min_batch=config.min_batch or 1,
        max_wait_ns=round((config.max_wait_s or 0) * 1e9),
    )
