"""What can go wrong before a step is run. Messages are one line and say what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Base of the engine's own errors."""


class ModelError(EngineError):
    """A model cannot be found, loaded, or run by this engine."""


class DeviceMemoryError(EngineError):
    """The device has too little memory for what is asked of it; the message has the numbers."""


class DeviceError(EngineError):
    """The device has failed and computes nothing any more: nothing that this process runs on it can go on."""


class RankError(DeviceError):
    """One of the processes that a model is divided over has failed: the others cannot go on without it."""


class GenerationError(EngineError):
    """A request ended with an error; the message says which."""


class EngineStoppedError(GenerationError):
    """The engine serves nobody any more: it has been closed, or has met an error that nobody expected."""


class MissingExtraError(ImportError):
    """A package of the ``engine`` extra is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the engine needs the package {package!r}, which is not installed: pip install lockstep[engine]"
        )
