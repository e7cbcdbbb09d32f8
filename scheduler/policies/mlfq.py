"""Skip-join multi-level feedback queue.

Source: FastServe (arXiv 2305.05920). A request joins the level that its prefill time fits, falls a level when it has
had that level's quantum, and is promoted when it starves.
"""

from scheduler.config import SchedulerConfig
from scheduler.policy import Lane, Order, Policy, View
from scheduler.sequence import Sequence

FIRST_QUANTUM_NS = 10_000_000
PROMOTE_NS = 3_000_000_000
DEFAULT_QUANTUM = 128


def level_of(service_ns: int) -> int:
    """The level after so much service: quanta of 10, 20, 40, ... ms."""
    return (service_ns // FIRST_QUANTUM_NS + 1).bit_length() - 1


def service_before(level: int) -> int:
    """Nanoseconds of service with which a level begins."""
    return FIRST_QUANTUM_NS * ((1 << level) - 1)


class ByLevel(Order):
    """Lanes by level, the first level first; inside one, arrival order."""

    timed = True

    def lane(self, sequence: Sequence, view: View) -> int:
        return level_of(sequence.service_ns)

    def lane_rank(self, lane: Lane) -> int:
        rank: int = lane.key
        return rank

    def time_in_lane(self, sequence: Sequence) -> int:
        service_ns = sequence.service_ns
        return service_before(level_of(service_ns) + 1) - service_ns

    def first_service_ns(self, sequence: Sequence, view: View) -> int:
        """The start of the first level whose quantum the prefill fits into (skip-join)."""
        prefill_ns = view.prefill_ns(sequence.prompt_tokens)
        level = 0
        while FIRST_QUANTUM_NS << level < prefill_ns:
            level += 1
        return service_before(level)


def attained_level(sequence: Sequence, view: View) -> int:
    """The level that a sequence's service so far has brought it to."""
    return level_of(sequence.service_ns)


def build(config: SchedulerConfig) -> Policy:
    """Quanta of 10 ms x 2 a level, of the time of the steps that a sequence is in; after 3 s without service it starts
    again at the top.

    A waiting request may evict one of a later level after ``quantum`` tokens (default 128) since its admission.
    ``prefill_token_ns`` is what a prompt token is taken to cost.
    """
    order = ByLevel()
    return Policy(
        config.policy,
        waiting=order,
        resident=order,
        urgency=attained_level,
        quantum=DEFAULT_QUANTUM if config.quantum is None else config.quantum,
        promote_ns=PROMOTE_NS,
    )
