"""Step costs of a GPU that nobody has recorded, from a recording of another one: its shares of the datasheet, moved.

What a recording reached of its GPU's bandwidth and operations is kept, and so is what does not depend on the GPU: the
launches, the shortest that a layer can take, the host's time. :mod:`simulator.calibration` finds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from scheduler.model_shapes import DTYPE_BYTES, ModelShape
from scheduler.plan import Kind, Layout, StepColumns
from simulator.bounds import Floors, StepFloor
from simulator.costs import CostError, PerStep, whole_ns
from simulator.gpus import Gpu
from simulator.recorded import Key, RecordedCosts
from simulator.roofline import Parts, RooflineCosts, kv_tokens

#: Weights, products and the shortest that the layers can take hide each other only in part: a step takes the root of
#: the sum of their powers. 2.5 describes the matrix products of one decode step of Qwen-7B's shape, by the library, on
#: an H100 within 3 %: 5.39, 5.53, 5.69, 5.88 and 6.71 ms at 1, 16, 64, 128 and 256 rows.
OVERLAP_POWER = 2.5
#: Shares of a model carry over to one of its own size: between shapes of 7 billion weights steps are off by a tenth, to
#: one of less than a tenth of the weights by a third to one and a half (``benchmarks/projection.py``).
MOST_TIMES_WEIGHTS = 4


@dataclass(frozen=True)
class Shares:
    """What steps reached of a datasheet, and what they took besides.

    Shares of the bandwidth: ``weights`` of reading weights, ``kv`` of reading the KV of many decode rows, ``row_kv`` of
    the longest row's own KV, which few of the GPU's parts read. Shares of the operations: ``products`` in matrix
    products, ``attention`` in that of prompts. Share of the link to host memory: ``link``, in swaps.

    Each logit of a row that is sampled takes the time of moving ``logit_bytes``. A layer takes ``layer_ns`` at least. A
    mixed step takes ``mixed`` times (1 or more) what its parts come to. Launching a layer takes ``launch_ns``, by kind
    of step, and no step that is no graph is shorter than the launches of all its layers.
    """

    weights: float
    products: float
    kv: float
    row_kv: float
    attention: float
    link: float
    logit_bytes: float
    layer_ns: float
    mixed: float
    launch_ns: Mapping[Kind, float]

    def reached_on(self, gpu: Gpu) -> Gpu:
        """``gpu`` as it is where these shares of its datasheet are reached."""
        return replace(
            gpu,
            weight_efficiency=self.weights,
            kv_efficiency=self.kv,
            compute_efficiency=self.products,
            attention_efficiency=self.attention,
            host_efficiency=self.link,
        )


class SharedRoofline:
    """A roofline at given :class:`Shares`: seconds of a step on the device."""

    def __init__(self, gpu: Gpu, shape: ModelShape, shares: Shares, dtype: str) -> None:
        self.roofline = RooflineCosts(shares.reached_on(gpu), shape, dtype, host_ns_per_step=0)
        self.shares = shares
        self._row_token_s = shape.kv_bytes_per_token(DTYPE_BYTES[dtype]) / (gpu.bandwidth * shares.row_kv)
        self._logits_s = shape.vocab * shares.logit_bytes / gpu.bandwidth
        self._layers_s = shape.layers * shares.layer_ns / 1e9
        self._launches_s = {kind: shape.layers * ns / 1e9 for kind, ns in shares.launch_ns.items()}

    def seconds(self, columns: StepColumns, graph: bool) -> Any:
        """Of a step, or of each of a stretch. ``graph``: whether it runs as one."""
        parts: Parts = self.roofline.parts(columns)
        linear_s = _root_of_powers(parts.weights_s, parts.products_s, self._layers_s)
        work_s = linear_s + parts.attention_s + parts.sampled * self._logits_s
        if columns.kind == "decode":
            work_s = work_s + columns.longest_context * self._row_token_s
        if columns.kind == "mixed":
            work_s = work_s * self.shares.mixed
        return (work_s if graph else np.maximum(work_s, self.launches_s(columns.kind))) + parts.swap_s

    def launches_s(self, kind: Kind) -> float:
        """What launching a step of ``kind`` takes; where none was recorded, what the longest of another kind does."""
        return self._launches_s.get(kind, max(self._launches_s.values(), default=0.0))


def _size(weights: int, recorded: int) -> str:
    return "smaller" if weights < recorded else "larger"


def _root_of_powers(*times_s: Any) -> Any:
    total = sum(time_s**OVERLAP_POWER for time_s in times_s)
    return total ** (1 / OVERLAP_POWER)


class ProjectedCosts:
    """Costs of ``shape`` on ``gpu``, at the shares that ``recorded`` reached on another GPU; a projection.

    ``shares`` by layout; host times, graph sizes and layouts are those of the recording. ``workspace_bytes`` is what
    the recorded engine held besides weights and KV. ``errors``: what the calibration is off by on the recording itself.
    """

    def __init__(
        self,
        name: str,
        gpu: Gpu,
        shape: ModelShape,
        dtype: str,
        shares: Mapping[Layout, Shares],
        recorded: RecordedCosts,
        errors: Mapping[Key, float],
        workspace_bytes: int,
        origin: str,
        recorded_shape: ModelShape,
    ) -> None:
        self.name = name
        self.gpu, self.shape, self.dtype = gpu, shape, dtype
        self.shares = dict(shares)
        self.recorded = recorded
        self.errors = dict(errors)
        self.origin = origin
        self.recorded_shape = recorded_shape
        self.graphs = recorded.graphs
        self.context_tokens: int | None = shape.context_tokens
        self.kv_tokens: int | None = kv_tokens(gpu, shape, dtype, workspace_bytes)
        self.rooflines = {layout: SharedRoofline(gpu, shape, reached, dtype) for layout, reached in shares.items()}

    @property
    def projection(self) -> str:
        """What a reader must know of it, in a line."""
        sizes = self.shape.matrix_weights, self.recorded_shape.matrix_weights
        far = max(sizes) > MOST_TIMES_WEIGHTS * min(sizes)
        beyond = f", whose shares need not be those of a model so much {_size(*sizes)}" if far else ""
        return (
            f"{self.shape.name} on an {self.gpu.title}, calibrated on {self.origin}{beyond}; not measured on that GPU"
        )

    def device_ns(self, columns: StepColumns) -> PerStep:
        return whole_ns(self._roofline(columns.layout).seconds(columns, columns.graph_rows > 0) * 1e9)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return self.recorded.host_ns(columns)

    def layers_ns(self, columns: StepColumns) -> PerStep:
        """What the kernels of the layers take alone: no output head, no sampling, no launches, no host.

        For a comparison with measurements of single operators, which leave these out.
        """
        shares = replace(self.shares[columns.layout], launch_ns={})
        layers = SharedRoofline(self.gpu, replace(self.shape, vocab=0), shares, self.dtype)
        return whole_ns(layers.seconds(columns, graph=True) * 1e9)

    def require(self, layout: Layout) -> None:
        """Raise :class:`CostError` unless prefill and decode steps were recorded on ``layout``, and their host time."""
        self.recorded.require(layout)

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`."""
        self.require(layout)
        shared = self._roofline(layout)
        device = shared.roofline.floors(layout)
        device["prefill"] += (StepFloor(shared.launches_s("prefill") * 1e9, 0.0, 0.0),)
        floors: Floors = {}
        for kind, kinds in device.items():
            host = self.recorded.host[layout, kind].floors()[:1]
            floors[kind] = tuple(kinds) if overlap else tuple(d.plus(h) for d in kinds for h in host)
        return floors

    def notes(self) -> dict[str, Any]:
        """For the manifest: that this is a projection, of what, and how good the calibration is."""
        return {
            "projection": self.projection,
            "calibration": {layout: asdict(shares) for layout, shares in self.shares.items()},
            "calibration_error": {f"{layout} {kind}": round(error, 4) for (layout, kind), error in self.errors.items()},
            "sha256": {"costs": self.recorded.sha256},
        }

    def _roofline(self, layout: Layout) -> SharedRoofline:
        if layout not in self.rooflines:
            self.recorded.require(layout)
            raise CostError(f"{self.name} has too few {layout} steps to be calibrated on; record a longer run")
        return self.rooflines[layout]
