"""What is wrong with what a tuning was asked for."""

from __future__ import annotations


class TuningError(ValueError):
    """A tuning that cannot be done as asked; the message is one line for the user."""
