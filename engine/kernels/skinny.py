"""Products of the rows of a decode step: the weights are read once, at the speed of the memory.

Up to some hundred rows a product is bound by how the weights are read, and a library's tiles leave processors idle
where their number does not divide the work. Here the tiles of each shape are searched once; large sums are cut into
parts, so that all processors have work, and the parts are added up where the result is read anyway
(:func:`~engine.kernels.norms.add_rms_norm`, :func:`~engine.kernels.rotary.rotate_and_store`). Launched while the
kernel before ends, a product fetches its first tiles of weights meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.activation import activated, gated
from engine.kernels.captures import captured
from engine.kernels.hopper import has_copy_engine, launch_options, prefetch, release, wait
from engine.kernels.interface import Activation
from engine.kernels.launching import launch

#: rows beyond which the library's products are taken
MOST_ROWS = 128


class Tiles(NamedTuple):
    """How a product is cut.

    ``rows`` and ``columns`` of the result and ``depth`` of the sum in a tile; ``parts`` of the sum; warps and stages of
    the pipeline; ``bulk``: tiles are fetched by the copy engine that GPUs have from sm_90 on.
    """

    rows: int
    columns: int
    depth: int
    parts: int
    warps: int
    stages: int
    bulk: bool = False


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    x, weight, bias, out, x_tiles, weight_tiles, rows, columns, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, GATED: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr, BULK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """``x`` ``[rows, depth]`` times the transpose of ``weight``; with ``GATED`` that has twice ``columns`` rows.

    ``x_tiles`` and ``weight_tiles`` describe the same tensors to the copy engine where ``BULK``.
    """
    # programs that are neighbours share a tile of weights
    row_tiles = tl.cdiv(rows, ROWS)
    m0 = (tl.program_id(0) % row_tiles) * ROWS
    n0 = (tl.program_id(0) // row_tiles) * COLUMNS
    part = tl.program_id(1)
    m = m0 + tl.arange(0, ROWS)
    n = n0 + tl.arange(0, COLUMNS)
    width = depth // PARTS
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
        if BULK:
            a = x_tiles.load([m0, k0])
            b = tl.trans(weight_tiles.load([n0, k0]))
            if GATED:
                gate = tl.dot(a, b, gate, input_precision="ieee")
                b = tl.trans(weight_tiles.load([columns + n0, k0]))
            total = tl.dot(a, b, total, input_precision="ieee")
        else:
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
    place = (part * rows + m[:, None]).to(tl.int64) * columns + n[None, :]
    tl.store(out + place, total.to(dtype), mask=(m[:, None] < rows) & (n[None, :] < columns))


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, columns: int, tiles: Tiles, activation: str | None
) -> None:
    rows, depth = x.shape
    x_tiles: Any = x
    weight_tiles: Any = weight
    if tiles.bulk:
        x_tiles = TensorDescriptor.from_tensor(x, [tiles.rows, tiles.depth])
        weight_tiles = TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.depth])
    launch(
        _skinny_kernel, (triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns), tiles.parts),
        x, weight, weight if bias is None else bias, out, x_tiles, weight_tiles, rows, columns, depth,
        ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=tiles.depth, PARTS=tiles.parts,
        GATED=activation is not None, ACTIVATION=activation or "", BIAS=bias is not None, STAGES=tiles.stages,
        BULK=tiles.bulk, num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(rows, x.device),
    )  # fmt: skip


#: tiles worth trying, by how many rows they take: of a plain product, whose sum may be cut into two or four parts, and
#: of a gated one
_PLAIN = {
    16: [(16, 64, 256, 4, 4, True), (16, 64, 128, 4, 5, True), (16, 128, 128, 8, 4, True), (16, 16, 512, 4, 4, True),
         (16, 32, 256, 4, 4, True), (16, 32, 128, 4, 5, False), (16, 64, 128, 4, 5, False), (16, 32, 256, 4, 4, False)],
    32: [(32, 64, 256, 4, 3, True), (32, 64, 128, 4, 5, True), (32, 128, 128, 4, 4, True), (32, 32, 256, 4, 4, True),
         (32, 64, 128, 4, 4, False), (32, 32, 256, 4, 3, False)],
    64: [(64, 64, 128, 4, 6, True), (64, 128, 128, 4, 4, True), (64, 32, 256, 4, 4, True), (64, 64, 128, 4, 4, False)],
    128: [(128, 128, 64, 4, 5, True), (128, 128, 128, 8, 3, True), (128, 64, 128, 4, 4, True),
          (128, 64, 64, 4, 6, False)],
}  # fmt: skip
_GATED = {
    16: [(16, 32, 256, 4, 3, True), (16, 64, 128, 4, 4, True), (16, 32, 128, 4, 4, False), (16, 64, 128, 4, 3, False)],
    32: [(32, 32, 256, 4, 3, True), (32, 64, 128, 4, 4, True), (32, 32, 128, 4, 5, False), (32, 64, 64, 4, 5, False)],
    64: [(64, 64, 128, 8, 3, True), (64, 32, 128, 4, 4, True), (64, 128, 64, 8, 4, True), (64, 32, 128, 4, 4, False)],
    128: [(128, 128, 64, 8, 4, True), (128, 64, 128, 8, 3, True), (128, 32, 128, 4, 4, True),
          (128, 64, 64, 4, 4, False)],
}  # fmt: skip


def candidates(rows: int, columns: int, depth: int, gated: bool, parts: bool, bulk: bool) -> list[Tiles]:
    """Tiles worth trying for a product of ``rows`` rows; ``parts``: its sum may be left in parts.

    Without ``bulk`` only those that every GPU can fetch.
    """
    found = []
    for in_parts in (1, 2, 4) if parts and not gated else (1,):
        for height, width, deep, warps, stages, engine in (_GATED if gated else _PLAIN)[_bucket(rows)]:
            fits = depth % (deep * in_parts) == 0 and width <= columns
            if fits and (bulk or not engine):
                found.append(Tiles(height, width, deep, in_parts, warps, stages, engine))
    return found


def _bucket(rows: int) -> int:
    """The rows of the tiles for ``rows`` rows."""
    return max(16, 1 << (rows - 1).bit_length())


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
    return best_tiles(_bucket(rows), columns, x.shape[1], x.dtype, x.device, activation, parts)


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
    # not the user's random numbers
    source = torch.Generator(device).manual_seed(0)
    weights = [
        torch.empty(height, depth, dtype=dtype, device=device).normal_(std=0.02, generator=source)
        for _ in range(copies)
    ]
    x = torch.empty(rows, depth, dtype=dtype, device=device).normal_(generator=source)

    def library() -> None:
        for weight in weights:
            y = torch.nn.functional.linear(x, weight)
            if activation is not None:
                gated(y, activation)

    best, best_ms = None, _graph_ms(library, device)
    for tiles in candidates(rows, columns, depth, activation is not None, parts, has_copy_engine(device)):

        def ours(tiles: Tiles = tiles) -> None:
            for weight in weights:
                if activation is None:
                    product(x, weight, tiles)
                else:
                    gated_product(x, weight, tiles, activation)

        try:
            ms = _graph_ms(ours, device)
        except triton.runtime.errors.OutOfResources:
            continue
        if ms < best_ms:
            best, best_ms = tiles, ms
    return best


def _graph_ms(work: Callable[[], None], device: torch.device) -> float:
    """Least milliseconds of ``work`` as a CUDA graph."""
    graph, _ = captured(work, device)
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
