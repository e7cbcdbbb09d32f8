"""The seed's recommendation for production: length buckets, shortest first inside, one bucket a step."""

from scheduler.buckets import parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.orders import ByLength
from scheduler.policy import Policy

DEFAULT_WIDTH = 32


def build(config: SchedulerConfig) -> Policy:
    """Prefill: the bucket of input lengths with the most waiting requests. Decode: one bucket of current lengths.

    ``bucket`` is the width (default 32, the seed's 0-32, 33-64) or another scheme of :mod:`scheduler.buckets`;
    ``bucket_order`` says which bucket is stepped: ``lowest`` (default, shortest first as the seed says), ``fullest`` or
    ``oldest``; ``min_rows`` (default 0) lets a small bucket take rows from the next ones.
    """
    buckets = parse_buckets(config.bucket or DEFAULT_WIDTH)
    return Policy(
        config.policy,
        waiting=ByLength(buckets, "fullest", feeds=True),
        resident=ByLength(buckets, config.bucket_order or "lowest", config.min_rows or 0, shortest_first=True),
    )
