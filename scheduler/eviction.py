"""Who loses its KV memory, and where the KV goes: one part of every policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scheduler.cohorts import Residents
from scheduler.policy import Policy, View
from scheduler.sequence import Sequence


def _left(sequence: Sequence, view: View) -> int:
    return max(1, view.predicted(sequence) - sequence.output_tokens)


def _priority(sequence: Sequence, view: View) -> int:
    return sequence.request.priority


class Eviction:
    """Finds victims under one policy and one ``victim`` rule (``None``: the policy's urgency, else the newest)."""

    def __init__(self, policy: Policy, victim: str | None, residents: Residents, view: View) -> None:
        self._policy = policy
        self._residents = residents
        self._view = view
        self._worth: Callable[[Sequence, View], Any] | None = {
            "longest-remaining": _left,
            "lowest-priority": _priority,
            "newest": None,
        }.get(victim or "", policy.urgency if victim is None else None)

    def victim(self) -> Sequence:
        """Who loses its KV when memory runs out."""
        residents, worth, view = self._residents, self._worth, self._view
        if residents.count == 1:
            raise RuntimeError(f"{residents.newest()!r} alone does not fit into the KV memory")
        if worth is None:
            return residents.newest()
        return max(residents.members(), key=lambda s: (worth(s, view), s.number))

    def weaker(self, sequence: Sequence) -> list[Sequence]:
        """Residents that ``sequence`` may take the place of, the least urgent first."""
        urgency, view = self._policy.urgency, self._view
        if urgency is None:
            return []
        own = urgency(sequence, view)
        found = [
            (rank, s.number, s)
            for s in self._residents.members()
            if (rank := urgency(s, view)) > own and self.may_go(s)
        ]
        found.sort(key=lambda entry: entry[:2], reverse=True)
        return [s for _, _, s in found]

    def may_go(self, sequence: Sequence) -> bool:
        """Whether a resident sequence has had its quantum and is not protected."""
        if sequence.known - sequence.admitted_known < self._policy.quantum:
            return False
        return self._policy.evictable is None or self._policy.evictable(sequence, self._view)

    def steps_to_quantum(self) -> int:
        """Steps until the next resident sequence has had its quantum; a large number if all have."""
        quantum = self._policy.quantum
        left = [quantum - (s.known - s.admitted_known) for s in self._residents.members()]
        return min((steps for steps in left if steps > 0), default=1 << 60)
