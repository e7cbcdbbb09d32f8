"""What rank 0 and the processes of the other ranks say to each other, over a pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.models import LoadedModel
from engine.parallel.sharding import Division

#: makes the whole model, on the device that it is given or in host memory: the same weights wherever it is called. It
#: can be pickled
ModelBuilder = Callable[[torch.device], LoadedModel]


class Begin(NamedTuple):
    """Load a share of a model. Answered by ``Done``."""

    build: ModelBuilder
    division: Division
    device: torch.device
    threads: int


class Join(NamedTuple):
    """Make the group, with all others; its store listens at ``port``. Answered by ``Done``."""

    port: int


class FreeMemory(NamedTuple):
    """Say how many bytes are free on the device, after letting go of what is not needed. Answered by ``Done``."""

    drop: bool
    """what was built last is not used any more"""


class Done(NamedTuple):
    """What was asked for has been done."""

    number: int = 0


class Failed(NamedTuple):
    """The rank cannot go on, and its process ends."""

    reason: str
    traceback: str
