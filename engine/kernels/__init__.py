"""The kernels of a decoder: plain torch on a CPU, Triton on a GPU, under the same names and signatures.

``kernels_for(device)`` is a module; ``kernels_for(device).rms_norm(...)`` a call. See ``docs/kernels.md``.
"""

from __future__ import annotations

from typing import Literal

import torch

from engine.errors import MissingExtraError
from engine.kernels import reference
from engine.kernels.interface import (
    Activation,
    DecodeWorkspace,
    Heads,
    Kernels,
    Rotary,
    Splits,
    decode_splits,
    processors_of,
)

__all__ = [
    "Activation",
    "DecodeWorkspace",
    "Heads",
    "Kernels",
    "Rotary",
    "Splits",
    "decode_splits",
    "kernels_for",
    "processors_of",
]


def kernels_for(device: torch.device, implementation: Literal["reference", "triton"] | None = None) -> Kernels:
    """The kernels to be used on ``device``: Triton's for CUDA, else the reference, unless ``implementation`` is given.

    Raises :class:`~engine.errors.MissingExtraError` where Triton is needed and not installed.
    """
    if implementation == "reference" or (implementation is None and device.type != "cuda"):
        return reference
    try:
        from engine.kernels import compiled
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "triton") from error
    return compiled
