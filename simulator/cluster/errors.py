"""What is wrong with a cluster's settings."""

from __future__ import annotations


class ClusterError(ValueError):
    """A cluster that cannot be; the message is one line for the user."""
