"""What goes wrong with a workload is told in one line that names what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_SHOWN = 60


class WorkloadError(ValueError):
    """A workload cannot be made as asked: a bad name, file, row or setting. The message is one line for the user."""


def shown(value: object) -> str:
    """``value`` as an error message quotes it: one line, control characters escaped, cut when long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text)} characters)"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that ``name`` most likely meant, or ``None`` when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean X?"``, or nothing when no choice is close: to be put after what was wrong."""
    choice = nearest(name, choices)
    return f"; did you mean {choice!r}?" if choice else ";"
