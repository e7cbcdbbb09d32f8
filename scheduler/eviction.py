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
        if worth is None:
            return residents.newest()
        return max(residents.members(), key=lambda s: (worth(s, view), s.number))

    def none_weaker(self, sequence: Sequence) -> bool:
        """Whether it is plain that :meth:`weaker` has nobody to show."""
        urgency = self._policy.urgency
        return urgency is None or self._residents.none_above(urgency(sequence, self._view))

    def weaker(self, sequence: Sequence, more: Callable[[Sequence], bool]) -> None:
        """Show ``more`` the residents that ``sequence`` may take the place of, the least urgent first.

        It says of each whether it wants to see another.
        """
        urgency, evictable, view = self._policy.urgency, self._policy.evictable, self._view
        if urgency is None:
            return

        def more_evictable(resident: Sequence) -> bool:
            return more(resident) if evictable is None or evictable(resident, view) else True

        self._residents.above(urgency(sequence, view), more_evictable)
