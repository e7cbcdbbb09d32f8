"""What can go wrong before a step is run. Messages are one line and say what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Base of the engine's own errors."""


class ModelError(EngineError):
    """A model cannot be found, loaded, or run by this engine."""


class RankError(EngineError):
    """One of the processes that a model is divided over has failed: the others cannot go on without it."""


class MissingExtraError(ImportError):
    """A package of the ``engine`` extra is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the engine needs the package {package!r}, which is not installed: pip install lockstep[engine]"
        )
