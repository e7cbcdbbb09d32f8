"""Who has gone without service for too long, and so starts again at the top of a multi-level feedback queue."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from scheduler.plan import NEVER
from scheduler.sequence import Sequence


class Promotion:
    """Watches every request from its submission to its end.

    A heap holds one entry for each, by the time since which it went unserved when the entry was made; that time is
    read again only when the entry comes up, since service can only have made it later. Who waits at the top already
    has nothing to gain, and is put aside until it is admitted.
    """

    def __init__(self, promote_ns: int) -> None:
        self._promote_ns = promote_ns
        self._heap: list[tuple[int, int, Sequence]] = []
        self._aside: set[int] = set()

    def watch(self, sequence: Sequence) -> None:
        """A new request."""
        heappush(self._heap, (sequence.arrival_ns, sequence.number, sequence))

    def admitted(self, sequence: Sequence, now_ns: int) -> None:
        """It is about to be served."""
        if sequence.number in self._aside:
            self._aside.discard(sequence.number)
            heappush(self._heap, (now_ns, sequence.number, sequence))

    def next_ns(self) -> int:
        """No promotion is due before; :data:`~scheduler.plan.NEVER` if nobody is watched."""
        return self._heap[0][0] + self._promote_ns if self._heap else NEVER

    def due(self, now_ns: int, unserved_since: Callable[[Sequence], int]) -> list[Sequence]:
        """Those to be promoted now; their time begins anew."""
        found = []
        while self._heap and self._heap[0][0] + self._promote_ns <= now_ns:
            _, number, sequence = heappop(self._heap)
            if sequence.ended:
                continue
            since_ns = unserved_since(sequence)
            if since_ns + self._promote_ns <= now_ns:
                sequence.idle_since_ns = since_ns = now_ns
                if sequence.state == "waiting" and not sequence.service_ns:
                    self._aside.add(number)
                    continue
                found.append(sequence)
            heappush(self._heap, (since_ns, number, sequence))
        return found
