"""Who has gone without service for too long, and so starts again at the top of a multi-level feedback queue."""

from __future__ import annotations

from heapq import heappop, heappush

from scheduler.cohorts import Residents
from scheduler.plan import NEVER
from scheduler.sequence import UNSET, Sequence


class Promotion:
    """Watches every request from its submission to its end.

    A heap holds one entry for each, by the time since which it went unserved when the entry was made; that time is
    read again only when the entry comes up, since service can only have made it later.
    """

    def __init__(self, promote_ns: int) -> None:
        self._promote_ns = promote_ns
        self._heap: list[tuple[int, int, Sequence]] = []

    def watch(self, sequence: Sequence) -> None:
        """A new request."""
        heappush(self._heap, (sequence.arrival_ns, sequence.number, sequence))

    def next_ns(self) -> int:
        """No promotion is due before; :data:`~scheduler.plan.NEVER` if nobody is watched."""
        return self._heap[0][0] + self._promote_ns if self._heap else NEVER

    def due(self, now_ns: int, residents: Residents) -> list[Sequence]:
        """Those to be promoted now; their time begins anew."""
        found = []
        while self._heap and self._heap[0][0] + self._promote_ns <= now_ns:
            _, number, sequence = heappop(self._heap)
            if sequence.ended:
                continue
            since_ns = self._unserved_since(sequence, now_ns, residents)
            if since_ns + self._promote_ns <= now_ns:
                sequence.promoted_ns = since_ns = now_ns
                found.append(sequence)
            heappush(self._heap, (since_ns, number, sequence))
        return found

    @staticmethod
    def _unserved_since(sequence: Sequence, now_ns: int, residents: Residents) -> int:
        served = residents.served(sequence)
        served_ns = sequence.arrival_ns if served is None else now_ns if served.end_ns == UNSET else served.end_ns
        return max(sequence.promoted_ns, served_ns)
