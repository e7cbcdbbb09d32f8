"""Highest response ratio next: (waiting + service) / service, so that short ones go first and long ones get their turn.

Sources: Magnus (arXiv 2406.04785), and SGLang's policy of that name.
"""

from fractions import Fraction

import numpy as np

from scheduler.config import SchedulerConfig
from scheduler.policy import LiveOrder, Policy, Queue, View
from scheduler.sequence import Sequence


class ByResponseRatio(LiveOrder):
    """The largest waiting time for each predicted output token first; equal ones in order of submission."""

    def first(self, queue: Queue, view: View) -> Sequence:
        waits_ns, predictions = view.now_ns - queue.arrivals_ns, queue.predictions
        ratios = waits_ns / predictions
        near = np.flatnonzero(ratios >= ratios.max() - 1e-12 * abs(ratios.max()))
        first = min(near, key=lambda row: (-Fraction(int(waits_ns[row]), int(predictions[row])), queue.numbers[row]))
        return queue.sequences[int(queue.numbers[first])]


def build(config: SchedulerConfig) -> Policy:
    """Not preempting; ``oracle`` (default ``true``) says where the predicted outputs come from."""
    return Policy(config.policy, waiting=ByResponseRatio())
