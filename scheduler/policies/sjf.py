"""The seed's alignment policy: the shortest current length is stepped, and only equal lengths share a step."""

from scheduler.buckets import FixedWidth
from scheduler.config import SchedulerConfig
from scheduler.orders import ByLength
from scheduler.policy import Policy


def build(config: SchedulerConfig) -> Policy:
    """Prefill: the input length with the most waiting requests. Decode: the lowest current length, all of that length.

    It ranks by current position, which is not the classic shortest job first: it favours the youngest sequences.
    ``min_rows`` (default 0) lets a cohort that is smaller take rows from the next lengths, which pads.
    """
    return Policy(
        config.policy,
        waiting=ByLength(FixedWidth(1), "fullest"),
        resident=ByLength(FixedWidth(1), "lowest", config.min_rows or 0),
    )
