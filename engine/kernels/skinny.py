"""Products of few rows: the weights are read once, at the speed of the memory.

Up to 32 rows a library product is bound by how it reads the weights; these tiles read them faster. Large sums are cut
into parts, so that all processors have work, and the parts are added up where the result is read anyway
(:func:`~engine.kernels.norms.add_rms_norm`). Launched while the kernel before ends, a product fetches its first tiles
of weights meanwhile.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.activation import activated, gated
from engine.kernels.dependent_launch import launch_options, prefetch, release, wait
from engine.kernels.interface import Activation

#: rows beyond which the library's products are the faster ones
MOST_ROWS = 32


class Tiles(NamedTuple):
    """How a product is cut: columns of the result and of the sum in a tile, parts of the sum, warps, stages."""

    columns: int
    depth: int
    parts: int
    warps: int
    stages: int


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, weight, bias, out, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """``x`` ``[rows, depth]`` times the transpose of ``weight``; with ``GATED`` that has twice ``columns`` rows."""
    part = tl.program_id(1)
    m = tl.arange(0, ROWS)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    width = depth // PARTS
    real = (m[:, None] < rows) & (n[None, :] < columns)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    if DEPENDENT:
        # the first two tiles of weights, a line of 128 bytes (64 numbers) at a time
        line = part * width + tl.arange(0, (2 * DEPTH + 63) // 64) * 64
        ahead = tl.minimum(n, columns - 1)[:, None].to(tl.int64) * depth + line[None, :]
        prefetch(weight + ahead)
        if GATED:
            prefetch(weight + columns.to(tl.int64) * depth + ahead)
        wait()
    for k0 in tl.range(part * width, part * width + width, DEPTH, num_stages=STAGES):
        k = k0 + tl.arange(0, DEPTH)
        a = tl.load(x + m[:, None] * depth + k[None, :], mask=m[:, None] < rows, other=0.0)
        place = n[None, :].to(tl.int64) * depth + k[:, None]
        b = tl.load(weight + place, mask=n[None, :] < columns, other=0.0, eviction_policy="evict_first")
        if GATED:
            gate = tl.dot(a, b, gate, input_precision="ieee")
            place += columns.to(tl.int64) * depth
            b = tl.load(weight + place, mask=n[None, :] < columns, other=0.0, eviction_policy="evict_first")
        total = tl.dot(a, b, total, input_precision="ieee")
    if DEPENDENT:
        release()
    dtype = out.dtype.element_ty
    if BIAS:
        total += tl.load(bias + n, mask=n < columns, other=0.0).to(tl.float32)[None, :]
    if GATED:
        gate = activated(gate.to(dtype).to(tl.float32), ACTIVATION).to(dtype).to(tl.float32)
        total = gate * total.to(dtype).to(tl.float32)
    place = (part * rows + m[:, None]) * columns + n[None, :]
    tl.store(out + place, total.to(dtype), mask=real)


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, columns: int, tiles: Tiles, activation: str | None
) -> None:
    rows, depth = x.shape
    kernel: Any = _skinny_kernel
    kernel[(triton.cdiv(columns, tiles.columns), tiles.parts)](
        x, weight, weight if bias is None else bias, out, rows, columns, depth,
        ROWS=max(16, triton.next_power_of_2(rows)), COLUMNS=tiles.columns, DEPTH=tiles.depth, PARTS=tiles.parts,
        GATED=activation is not None, ACTIVATION=activation or "", BIAS=bias is not None, STAGES=tiles.stages,
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(rows, x.device),
    )  # fmt: skip


def candidates(columns: int, depth: int, gated: bool, parts: bool) -> list[Tiles]:
    """Tiles worth trying for a product of few rows; ``parts``: the sum may be left in parts."""
    if gated:
        found = [Tiles(32, 128, 1, 4, 4), Tiles(32, 128, 1, 4, 5), Tiles(32, 256, 1, 4, 3), Tiles(64, 64, 1, 4, 5),
                 Tiles(64, 128, 1, 4, 3), Tiles(64, 128, 1, 8, 4), Tiles(16, 256, 1, 4, 4)]  # fmt: skip
    else:
        found = [Tiles(32, 256, 1, 4, 4), Tiles(64, 128, 1, 4, 4), Tiles(64, 128, 1, 4, 5), Tiles(64, 256, 1, 4, 3),
                 Tiles(128, 128, 1, 4, 4), Tiles(128, 128, 1, 8, 4), Tiles(16, 256, 1, 4, 5)]  # fmt: skip
        if parts:
            found += [Tiles(32, 128, 2, 4, 5), Tiles(32, 256, 2, 4, 4), Tiles(64, 128, 2, 4, 4),
                      Tiles(64, 128, 2, 4, 5), Tiles(128, 128, 2, 4, 4), Tiles(64, 128, 4, 4, 4),
                      Tiles(128, 128, 4, 4, 4), Tiles(32, 128, 4, 4, 4)]  # fmt: skip
    return [tiles for tiles in found if depth % (tiles.depth * tiles.parts) == 0 and tiles.columns <= columns]


def product(x: Tensor, weight: Tensor, tiles: Tiles, bias: Tensor | None = None) -> Tensor:
    """``x`` ``[T, K]`` times the transpose of ``weight`` ``[N, K]``: ``[T, N]``, or its float32 parts ``[P, T, N]``.

    A bias belongs to a sum in one part only.
    """
    columns = len(weight)
    shape, dtype = ((len(x), columns), x.dtype) if tiles.parts == 1 else ((tiles.parts, len(x), columns), torch.float32)
    if bias is not None and tiles.parts > 1:
        raise ValueError("a bias cannot be added to a sum in parts")
    out = torch.empty(shape, dtype=dtype, device=x.device)
    _launch(x, weight, bias, out, columns, tiles, None)
    return out


def gated_product(x: Tensor, weight: Tensor, tiles: Tiles, activation: Activation) -> Tensor:
    """``activation(gate) * up`` ``[T, I]`` of ``x`` ``[T, K]`` and the merged ``weight`` ``[2I, K]``."""
    columns = len(weight) // 2
    out = torch.empty(len(x), columns, dtype=x.dtype, device=x.device)
    _launch(x, weight, None, out, columns, tiles, activation)
    return out


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, parts: bool = False) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.skinny_linear`."""
    tiles = _tiles_for(x, len(weight), None, parts and bias is None)
    return torch.nn.functional.linear(x, weight, bias) if tiles is None else product(x, weight, tiles, bias)


def skinny_gated(x: Tensor, weight: Tensor, activation: Activation) -> Tensor:
    """See :meth:`~engine.kernels.interface.Kernels.skinny_gated`."""
    tiles = _tiles_for(x, len(weight) // 2, activation, False)
    if tiles is None:
        return gated(torch.nn.functional.linear(x, weight), activation)
    return gated_product(x, weight, tiles, activation)


def _tiles_for(x: Tensor, columns: int, activation: Activation | None, parts: bool) -> Tiles | None:
    rows = len(x)
    if rows > MOST_ROWS or x.dtype == torch.float32 or not x.is_cuda:
        return None
    return best_tiles(16 if rows <= 16 else 32, columns, x.shape[1], x.dtype, x.device, activation, parts)


@cache
def best_tiles(
    rows: int, columns: int, depth: int, dtype: torch.dtype, device: torch.device, activation: Activation | None,
    parts: bool,
) -> Tiles | None:  # fmt: skip
    """The fastest tiles for a product of this shape on this GPU, or ``None`` where the library is faster still.

    Measured once a process, in some tens of milliseconds: each candidate reads weights that are in no cache, between
    two CUDA events. The choice has no bearing on results beyond rounding.
    """
    height = columns * (1 if activation is None else 2)
    copies = max(2, min(16, int(2e8 / (height * depth * dtype.itemsize)) + 1))
    weights = [torch.empty(height, depth, dtype=dtype, device=device).normal_(std=0.02) for _ in range(copies)]
    x = torch.empty(rows, depth, dtype=dtype, device=device).normal_()

    def library() -> None:
        for weight in weights:
            y = torch.nn.functional.linear(x, weight)
            if activation is not None:
                gated(y, activation)

    best, best_ms = None, _graph_ms(library)
    for tiles in candidates(columns, depth, activation is not None, parts):

        def ours(tiles: Tiles = tiles) -> None:
            for weight in weights:
                if activation is None:
                    product(x, weight, tiles)
                else:
                    gated_product(x, weight, tiles, activation)

        try:
            ms = _graph_ms(ours)
        except triton.runtime.errors.OutOfResources:
            continue
        if ms < best_ms:
            best, best_ms = tiles, ms
    return best


def _graph_ms(work: Any) -> float:
    """Least milliseconds of ``work`` as a CUDA graph."""
    stream: Any = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    event: Any = torch.cuda.Event
    found = []
    for _ in range(5):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return float(min(found))
