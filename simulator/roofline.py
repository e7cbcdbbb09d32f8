"""Step costs from a GPU's datasheet and a model's shape: for hardware that nobody has recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.config import unknown_name
from scheduler.model_shapes import DTYPE_BYTES, MODEL_SHAPES, ModelShape
from scheduler.plan import StepColumns
from simulator.costs import CostError
from simulator.gpus import GPUS, Gpu

#: share of the memory that an engine takes, as vLLM's default
MEMORY_SHARE = 0.9
#: bytes set aside for activations and the library's workspaces
WORKSPACE_BYTES = 1 << 30
#: nanoseconds that the host adds to a step: scheduling, launches, sampling's way back
HOST_NS = 300_000


@dataclass(frozen=True)
class RooflineCosts:
    """The matrix products' and attention's times, each the larger of its bytes and its operations, added up.

    A projection, not a measurement: it knows no kernel launch, no tail of a wave, no cache. ``host_ns`` is assumed.
    """

    gpu: Gpu
    shape: ModelShape
    dtype: str = "bfloat16"
    host_ns_per_step: int = HOST_NS

    @property
    def name(self) -> str:
        return f"roofline:{self.gpu.name}:{self.shape.name}"

    @property
    def context_tokens(self) -> int | None:
        return self.shape.context_tokens

    @property
    def kv_tokens(self) -> int | None:
        """KV tokens that fit beside the weights, :data:`WORKSPACE_BYTES` and the tenth that engines leave free."""
        room = self.gpu.memory * MEMORY_SHARE - self.shape.weight_bytes(self.dtype) - WORKSPACE_BYTES
        return max(0, int(room // self.shape.kv_bytes_per_token(DTYPE_BYTES[self.dtype])))

    def device_ns(self, columns: StepColumns) -> npt.NDArray[np.int64]:
        """Integer nanoseconds of each step; see :class:`~simulator.costs.CostModel`."""
        gpu, shape, size = self.gpu, self.shape, DTYPE_BYTES[self.dtype]
        flops = gpu.flops * gpu.compute_efficiency
        sampled = columns.rows_computed if columns.sampled_rows else 0
        operations = columns.new_tokens_computed * shape.linear_flops_per_token(sampled=False)
        operations += sampled * 2 * shape.vocab * shape.hidden
        weights_s = shape.matrix_weights * size / (gpu.bandwidth * gpu.weight_efficiency)
        linear_s = max(weights_s, operations / flops)
        kv_bytes = shape.kv_bytes_per_token(size)
        padded = columns.layout == "padded"
        read = columns.rows_computed * np.asarray(columns.longest_context) if padded else columns.kv_tokens_read
        read_s = np.asarray(read) * (kv_bytes / (gpu.bandwidth * gpu.kv_efficiency))
        pairs_s = np.asarray(columns.kv_columns_computed) * (shape.attention_flops_per_pair() / flops)
        seconds = linear_s + np.maximum(read_s, pairs_s)
        return np.broadcast_to(np.rint(seconds * 1e9).astype(np.int64), (columns.repeat,))

    def host_ns(self, columns: StepColumns) -> npt.NDArray[np.int64]:
        return np.full(columns.repeat, self.host_ns_per_step, np.int64)


def roofline(gpu: str, model: str, dtype: str = "bfloat16") -> RooflineCosts:
    """The roofline of ``model`` on ``gpu``; unknown names and models that do not fit are a :class:`CostError`."""
    if gpu not in GPUS:
        raise CostError(unknown_name("GPU", gpu, GPUS))
    if model not in MODEL_SHAPES:
        raise CostError(unknown_name("model shape", model, MODEL_SHAPES))
    costs = RooflineCosts(GPUS[gpu], MODEL_SHAPES[model], dtype)
    if not costs.kv_tokens:
        raise CostError(f"{model} in {dtype} leaves no room for KV on a {GPUS[gpu].title}; take a smaller model or dtype")
    return costs
