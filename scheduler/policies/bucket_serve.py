"""Prompts are prefilled in buckets of similar lengths, which are split while many wait.

Source: BucketServe (arXiv 2507.17120).
"""

from scheduler.buckets import AdaptiveSplit
from scheduler.config import SchedulerConfig
from scheduler.orders import ByLength
from scheduler.policy import Policy


def build(config: SchedulerConfig) -> Policy:
    """Prefill: the bucket of the request that came first, in arrival order. Decode: everybody."""
    return Policy(config.policy, waiting=ByLength(AdaptiveSplit(), "oldest", feeds=True))
