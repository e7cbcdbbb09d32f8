"""What GPUs have from sm_90 on: programmatic dependent launch, and an engine that copies tiles.

A kernel that is launched dependently may start while the one before it ends. It waits (:func:`wait`) before it touches
anything that another kernel writes. Until then it may fetch weights (:func:`prefetch`). It pays where kernels are
short: in decode steps of few rows.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

#: rows up to which decode kernels are launched so
MOST_ROWS = 32

if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def wait():
        """The interpreter runs one kernel after the other."""

    @triton.jit
    def release():
        """See above."""

    @triton.jit
    def prefetch(pointers):
        """See above."""

else:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    @triton.jit
    def wait():
        """Until the kernel before has ended, and what it wrote is there."""
        gdc_wait()

    @triton.jit
    def release():
        """The next kernel may start; what it waits for is still the end of this one."""
        gdc_launch_dependents()

    @triton.jit
    def prefetch(pointers):
        """Fetch the lines that ``pointers`` point to into the L2 cache."""
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )


def launch_options(rows: int, device: torch.device) -> dict[str, Any]:
    """Arguments of a kernel's launch: its constant ``DEPENDENT``, and how the driver is told."""
    if rows > MOST_ROWS or device.type != "cuda" or not has_copy_engine(device):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}


@cache
def has_copy_engine(device: torch.device) -> bool:
    """Whether ``device`` fetches tiles by itself. Triton's interpreter, on a CPU, does as if."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
