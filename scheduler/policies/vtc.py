"""Virtual token counter: the tenant that was served least goes first.

Source: VTC, OSDI'24 (arXiv 2401.00588): a token in counts 1, a token out 2; a tenant that comes back is lifted to the
least counter of those that wait, so that nobody saves up for later.
"""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.policy import Lane, Order, Policy, View
from scheduler.sequence import Sequence

INPUT_WEIGHT = 1
OUTPUT_WEIGHT = 2


class Counters:
    """What each tenant has been served, weighted; a :class:`~scheduler.policy.Ledger`."""

    def __init__(self) -> None:
        self.served_tokens: dict[str, int] = {}
        self._waiting: dict[str, int] = {}

    def submitted(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        counter = self.served_tokens.get(tenant, 0)
        if not self._waiting.get(tenant):
            counter = max(counter, min((self.served_tokens[other] for other in self._waiting), default=0))
        self.served_tokens[tenant] = counter
        self._waits(tenant, 1)

    def admitted(self, sequence: Sequence, first: bool) -> None:
        self._waits(sequence.request.tenant, -1)
        if first:
            self.served_tokens[sequence.request.tenant] += INPUT_WEIGHT * sequence.prompt_tokens

    def evicted(self, sequence: Sequence) -> None:
        self._waits(sequence.request.tenant, 1)

    def left(self, sequence: Sequence) -> None:
        self._waits(sequence.request.tenant, -1)

    def served(self, tenant: str, output_tokens: int) -> None:
        self.served_tokens[tenant] += OUTPUT_WEIGHT * output_tokens

    def _waits(self, tenant: str, more: int) -> None:
        self._waiting[tenant] = self._waiting.get(tenant, 0) + more
        if not self._waiting[tenant]:
            del self._waiting[tenant]


class ByTenant(Order):
    """A lane for each tenant, the one with the smallest counter first; arrival order in it."""

    live = True

    def __init__(self, counters: Counters) -> None:
        self.counters = counters

    def lane(self, sequence: Sequence, view: View) -> str:
        return sequence.request.tenant

    def lane_rank(self, lane: Lane) -> int:
        return self.counters.served_tokens[lane.key]


def build(config: SchedulerConfig) -> Policy:
    """The least-served tenant's oldest request is admitted first; nobody is preempted for it."""
    counters = Counters()
    return Policy(config.policy, waiting=ByTenant(counters), ledger=counters)
