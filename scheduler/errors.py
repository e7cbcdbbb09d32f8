"""What goes wrong with settings is told in one line that names what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot be; the message is one line for the user."""


class PolicyError(Exception):
    """A policy of the user's own raised an exception or broke a promise while it ran; the message is one line.

    The scheduler that it happened in is of no further use: it was in the middle of a decision.
    """


def unknown_name(what: str, name: str, valid: Iterable[str]) -> str:
    """One line that says that ``name`` is no ``what``, which the nearest valid one is, and lists them all."""
    valid = list(valid)
    near = [other for other in valid if other.startswith(name)] or difflib.get_close_matches(name, valid, 1, 0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name!r}{hint} (valid: {', '.join(valid)})"
