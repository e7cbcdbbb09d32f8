"""What an exception of a step means: too little memory, which may pass, or a device that computes nothing any more."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from engine.errors import DeviceMemoryError, RankError

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
R = TypeVar("R")

#: how libraries say that memory could not be had, where they do not say it by the exception's type
_OUT_OF_MEMORY = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
#: after such an error every later call fails as well
_DEVICE_LOST = ("CUDA error", "Triton Error [CUDA]", "NCCL error")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory of the device (or pinned memory of the host) could not be had."""
    if _is_of_torch(error, "OutOfMemoryError"):
        return True
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY):
        return True
    # the end of a graph's capture may fail because of what was too large in it
    return error.__context__ is not None and is_out_of_memory(error.__context__)


def is_device_lost(error: BaseException) -> bool:
    """Whether ``error`` says that the device has failed for good: a kernel that crashed, a context that is broken."""
    if isinstance(error, RankError):
        return True
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return _is_of_torch(error, "AcceleratorError") or any(text in str(error) for text in _DEVICE_LOST)


def _is_of_torch(error: BaseException, name: str) -> bool:
    """Whether ``error`` is torch's exception of that name, which only a process that has loaded torch can raise."""
    kind = getattr(sys.modules.get("torch"), name, None)
    return kind is not None and isinstance(error, kind)


def refusing_what_does_not_fit(load: Callable[P, R]) -> Callable[P, R]:
    """``load``, with :class:`~engine.errors.DeviceMemoryError` where the device has no memory for the weights."""

    @wraps(load)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        try:
            return load(*args, **options)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(f"the weights do not fit: {first_line(error)}") from error

    return checked


def first_line(error: BaseException) -> str:
    """What ``error`` says, without the advice that follows in its other lines."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def free_unused(device: torch.device) -> None:
    """Give back what no tensor on a GPU needs any more, once it has done what was launched. A CPU keeps nothing."""
    if device.type == "cuda":
        import torch

        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def memory_line(device: torch.device) -> str:
    """How the memory of ``device`` is used now, in words; empty on a CPU."""
    if device.type != "cuda":
        return ""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return (
        f"{gib(free)} GiB of {gib(total)} GiB are free; this process has {gib(allocated)} GiB in tensors and "
        f"{gib(reserved - allocated)} GiB cached"
    )


def gib(size_bytes: int) -> str:
    """``size_bytes`` in GiB, with two decimals."""
    return f"{size_bytes / (1 << 30):.2f}"
