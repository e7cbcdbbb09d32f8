"""Predicted shortest job first, not preempting, with ageing.

Sources: SSJF (arXiv 2404.08509) ranks by a predicted output length; vllm-ltr (arXiv 2408.15792) needs only the rank,
and promotes who has waited for too long.
"""

from scheduler.config import SchedulerConfig
from scheduler.orders import ByPrediction
from scheduler.policy import Ageing, Policy

DEFAULT_THRESHOLD_S = 60.0


def build(config: SchedulerConfig) -> Policy:
    """The shortest predicted output is admitted first; who is resident stays. Past 60 s the oldest is admitted first.

    ``oracle`` (default ``true``) says where predictions come from; ``aging none`` takes the cure for starvation away.
    """
    return Policy(config.policy, waiting=ByPrediction(), ageing=Ageing(round(DEFAULT_THRESHOLD_S * 1e9)))
