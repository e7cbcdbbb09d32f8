"""Highest response ratio next: (waiting + service) / service, so that short ones go first and long ones get their turn.

Sources: Magnus (arXiv 2406.04785), and SGLang's policy of that name.
"""

from fractions import Fraction

from scheduler.config import SchedulerConfig
from scheduler.policy import LiveOrder, Policy, Queue, View
from scheduler.sequence import Sequence


class ByResponseRatio(LiveOrder):
    """The largest waiting time for each predicted output token first; equal ones in order of submission."""

    def first(self, queue: Queue, view: View) -> Sequence:
        waits_ns, predictions = view.now_ns - queue.arrivals_ns, queue.predictions
        ratios = waits_ns / predictions
        first = int(ratios.argmax())
        largest = float(ratios[first])
        (near,) = (ratios >= largest - 1e-12 * abs(largest)).nonzero()
        if len(near) > 1:
            # too near for floats to tell apart
            ranks = [(-Fraction(int(waits_ns[row]), int(predictions[row])), queue.numbers[row], row) for row in near]
            first = int(min(ranks)[2])
        return queue.sequences[int(queue.numbers[first])]


def build(config: SchedulerConfig) -> Policy:
    """Not preempting; ``oracle`` (default ``true``) says where the predicted outputs come from."""
    return Policy(config.policy, waiting=ByResponseRatio())
