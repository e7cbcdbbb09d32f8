"""Compiles every Triton kernel for a GPU that need not be there: ``compile_kernels.py 80``.

The kernels' own functions are called, on tensors in host memory, with a driver that knows nothing but the target. What
they would launch is compiled, down to machine code, and not run. Prints the name of each kernel that was compiled.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from engine.kernels import DecodeWorkspace, Heads, Rotary, Splits, hopper, skinny
from engine.kernels import compiled as kernels

#: shared memory that a block may have on an A100 and on an H100 (CUDA C++ programming guide, compute capabilities)
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}


class NoDriver:
    """A driver for a device of compute capability ``capability`` (80: an A100)."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(capability: int) -> list[str]:
    """The names of the kernels compiled for ``capability``, in the order of their calls."""
    triton.runtime.driver.set_active(NoDriver(capability))
    compiled: list[str] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if capability < 90:
            options.pop("launch_pdl", None)
        found = run(kernel, *args, grid=grid, warmup=True, **options)
        assert found.asm["cubin"]
        # tiles of products are tried, and left where they do not fit
        if kernel.__name__ != "_skinny_kernel":
            assert found.metadata.shared <= SHARED_BYTES[capability], kernel.__name__
        assert f".target sm_{capability}" in found.asm["ptx"]
        compiled.append(kernel.__name__)
        return found

    JITFunction.run = compile_only  # type: ignore[method-assign]
    engine_there = capability >= 90
    hopper.has_copy_engine.cache_clear()
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("engine.kernels") and hasattr(module, "has_copy_engine"):
            module.has_copy_engine = lambda device: engine_there  # type: ignore[attr-defined]
    call_all(torch.bfloat16, (Heads(8, 2, 128), Heads(4, 1, 256)), dependent=engine_there)
    call_attention(torch.float16, Heads(4, 4, 96))
    return compiled


def call_all(dtype: torch.dtype, heads_of: tuple[Heads, ...], dependent: bool) -> None:
    """Every kernel, with and without what is optional; ``dependent``: as on a GPU that can launch kernels so."""
    if dependent:
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("engine.kernels") and hasattr(module, "launch_options"):
                module.launch_options = lambda rows, device: {"DEPENDENT": rows <= 32, "launch_pdl": rows <= 32}  # type: ignore[attr-defined]
    for heads in heads_of:
        call_attention(dtype, heads)
    x, weight = _zeros(dtype, 4, 1024), _zeros(dtype, 1024)
    tokens = _zeros(torch.int64, 4)
    kernels.take_in(tokens, tokens, tokens, tokens, _zeros(torch.int32, 5, 9), tokens, 16)
    kernels.embed(_zeros(torch.int64, 4), _zeros(dtype, 64, 1024), 2.0)
    kernels.rms_norm(x, weight, 1e-6)
    parts = _zeros(torch.float32, 2, 4, 1024)
    kernels.add_rms_norm(parts, _zeros(dtype, 4, 1024), weight, 1e-6, post_norm=weight, offset=1.0)
    for activation in ("silu", "gelu", "gelu_tanh"):
        kernels.gated(_zeros(dtype, 4, 2048), activation)  # type: ignore[arg-type]
    kernels.sample(_zeros(dtype, 4, 9000), _zeros(torch.float32, 4), _zeros(torch.int64, 4))
    for rows in (16, 32, 64, 128):
        x = _zeros(dtype, rows, 1024)
        for gated in (False, True):
            for tiles in skinny.candidates(rows, 1024, 1024, gated, False, bulk=dependent):
                if gated:
                    skinny.gated_product(x, _zeros(dtype, 2048, 1024), tiles, "silu")
                else:
                    skinny.product(x, _zeros(dtype, 1024, 1024), tiles)
    skinny.product(x, _zeros(dtype, 1024, 1024), tiles._replace(parts=2))


def call_attention(dtype: torch.dtype, heads: Heads) -> None:
    """The rotation and the attention of decodes and prompts."""
    rotary = Rotary(*(_zeros(torch.float32, 512, heads.dim // 2) for _ in range(2)), heads.dim)
    norms = {
        "bias": _zeros(dtype, heads.columns),
        "q_norm": _zeros(dtype, heads.dim),
        "k_norm": _zeros(dtype, heads.dim),
    }
    keys, values = (_zeros(dtype, 8, heads.key_value, 64, heads.dim) for _ in range(2))
    for tokens, extras in ((4, {}), (64, norms)):
        positions, slots = _zeros(torch.int64, tokens), _zeros(torch.int64, tokens)
        qkv = _zeros(dtype, tokens, heads.columns)
        kernels.rotate_and_store(qkv, rotary, positions, slots, keys, values, heads, **extras)  # type: ignore[arg-type]
    query, tables = _zeros(dtype, 64, heads.query, heads.dim), _zeros(torch.int32, 64, 8)
    workspace = DecodeWorkspace(64, heads, 4, torch.device("cpu"))
    for splits, window, softcap in ((1, None, None), (4, 100, 30.0)):
        kernels.decode_attention(query, keys, values, tables, _zeros(torch.int32, 64), scale=0.1, splits=Splits(splits),
                                 window=window, softcap=softcap, workspace=workspace)  # fmt: skip
    chunk = (_zeros(torch.int32, 1), _zeros(torch.int32, 2))
    for longest, window, softcap in ((64, None, None), (4096, None, None), (64, 100, 30.0)):
        kernels.prefill_attention(
            query, keys, values, tables, *chunk, longest, scale=0.1, window=window, softcap=softcap
        )


def _zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


if __name__ == "__main__":
    print(" ".join(sorted(set(compile_for(int(sys.argv[1]))))))
