"""Longest prefix match: who finds most of its prompt in the prefix cache goes first.

Source: SGLang, which goes back to arrival order while more than 128 wait, as matching them all costs too much.
"""

from scheduler.config import SchedulerConfig
from scheduler.policy import LiveOrder, Policy, Queue, View
from scheduler.sequence import Sequence

MATCHED_AT_MOST = 128


class ByCachedPrefix(LiveOrder):
    """The longest cached prefix first, then in order of submission."""

    def first(self, queue: Queue, view: View) -> Sequence:
        if len(queue.sequences) > MATCHED_AT_MOST:
            return queue.oldest()
        return min(queue.sequences.values(), key=lambda s: (-view.cached_tokens(s), s.number))


def build(config: SchedulerConfig) -> Policy:
    """Needs the prefix cache; not preempting."""
    return Policy(config.policy, waiting=ByCachedPrefix(), needs_prefix_cache=True)
