"""Launching a Triton kernel with little work of the host.

Triton binds and specialises the arguments of every launch anew before it looks up what they were compiled to. That
takes longer than many a kernel, and a step with prompts, which is no graph, has some ten launches a layer. Here it is
looked up by what Triton specialises on: the type of each argument, whether an address or a number is divisible by 16,
whether a number is 1, the constants and the options.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_BEYOND_INT32 = 1 << 31


class _Compiled(NamedTuple):
    run: Callable[..., None]
    function: Any
    metadata: Any
    constants: tuple[Any, ...]


_COMPILED: dict[tuple[Any, ...], _Compiled] = {}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
    """``kernel[grid](*args, **settings)``, on the current stream of the device of the first argument, a tensor.

    ``args`` are all that are no constants; ``settings`` are the constants and the options of the launch, named in the
    same order wherever the kernel is launched.
    """
    first: Tensor = args[0]
    if _INTERPRETED or first.device.type != "cuda":
        kernel[grid](*args, **settings)
        return
    key = (kernel.fn, first.device.index, *map(_special, args), *settings.values())
    compiled = _COMPILED.get(key)
    if compiled is None:
        made = kernel[grid](*args, **settings)
        constants = tuple(settings[name] for name in kernel.arg_names[len(args) :])
        _COMPILED[key] = _Compiled(made.run, made.function, made.packed_metadata, constants)
        return
    x, y, z = (*grid, 1, 1)[:3]
    stream = _stream(first.device.index)
    # neither metadata nor hooks: those are for Triton's own profiler
    compiled.run(x, y, z, stream, compiled.function, compiled.metadata, None, None, None, *args, *compiled.constants)


def _special(value: Any) -> Any:
    """What Triton compiles a kernel anew for."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return value == 1, value % 16 == 0, -_BEYOND_INT32 <= value < _BEYOND_INT32
    if isinstance(value, float):
        return None
    # a description of tiles for the copy engine
    return value.base.dtype, tuple(value.block_shape)


def _stream(device: int) -> int:
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream
