"""Static batching: the 'before' of continuous batching, and with ``max_running`` 1 the seed's normal mode."""

from scheduler.config import ConfigError, SchedulerConfig
from scheduler.policy import Policy


def build(config: SchedulerConfig) -> Policy:
    """Arrival order; a batch is closed by its first decode step and runs until its last member ends.

    ``min_batch`` requests or ``max_wait_s`` of waiting start a batch; without them, whoever waits does.
    """
    if (config.min_batch is None) != (config.max_wait_s is None):
        raise ConfigError("min_batch and max_wait_s go together: a batch starts with so many, or after so long")
    return Policy(
        config.policy,
        run_to_completion=True,
        min_batch=config.min_batch or 1,
        max_wait_ns=round((config.max_wait_s or 0) * 1e9),
    )
