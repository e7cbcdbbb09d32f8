"""Step costs from a GPU's datasheet and a model's shape: for hardware that nobody has recorded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from scheduler.config import unknown_name
from scheduler.model_shapes import DTYPE_BYTES, ModelShape, UnknownShapeError, model_shape
from scheduler.plan import Layout, StepColumns, StepFeatures
from simulator.bounds import ROUNDING_NS, Floors, StepFloor
from simulator.costs import CostError, DecodeLine, PerStep, whole_ns
from simulator.gpus import GPUS, Gpu

#: share of the memory that an engine takes, as vLLM's default
MEMORY_SHARE = 0.9
#: bytes set aside for activations and the library's workspaces
WORKSPACE_BYTES = 1 << 30
#: nanoseconds that the host adds to a step: scheduling, launches, sampling's way back
HOST_NS = 300_000


class Parts(NamedTuple):
    """What a step is made of, in seconds: one number, or one for each of many steps."""

    weights_s: Any
    """reading the weights"""
    products_s: Any
    """the matrix products' operations"""
    attention_s: Any
    swap_s: Any
    sampled: Any
    """rows that go through the output head"""


class RooflineCosts:
    """The matrix products' and attention's times, each the larger of its bytes and its operations, added up.

    A mixed step reads the weights once for the tokens of both its parts; its prompts' attention and its decode rows'
    are two kernels. KV that is swapped moves over the link to host memory before the step, nothing beside it.

    A projection, not a measurement: it knows no kernel launch, no tail of a wave, no cache, and the host's share is
    assumed to be ``host_ns_per_step``.
    """

    def __init__(self, gpu: Gpu, shape: ModelShape, dtype: str = "bfloat16", host_ns_per_step: int = HOST_NS) -> None:
        size = DTYPE_BYTES[dtype]
        flops = gpu.flops * gpu.compute_efficiency
        attention = gpu.compute_efficiency if gpu.attention_efficiency is None else gpu.attention_efficiency
        kv_bytes = shape.kv_bytes_per_token(size)
        self.kv_token_bytes = kv_bytes
        self.gpu = gpu
        self.shape = shape
        self.name = f"roofline:{gpu.name}:{shape.name}"
        self.context_tokens: int | None = shape.context_tokens
        self.kv_tokens: int | None = kv_tokens(gpu, shape, dtype)
        self.host_ns_per_step = host_ns_per_step
        self._weights_s = shape.matrix_weights * size / (gpu.bandwidth * gpu.weight_efficiency)
        self._token_s = shape.linear_flops_per_token(sampled=False) / flops
        self._sampled_row_s = 2 * shape.vocab * shape.hidden / flops
        self._kv_token_s = kv_bytes / (gpu.bandwidth * gpu.kv_efficiency)
        self._pair_s = shape.attention_flops_per_pair() / (gpu.flops * attention)
        self._column_s = max(self._kv_token_s, self._pair_s)
        self._swap_token_s = kv_bytes / (gpu.host_bandwidth * gpu.host_efficiency)

    def device_ns(self, columns: StepColumns) -> PerStep:
        parts = self.parts(columns)
        linear_s = _larger(parts.weights_s, parts.products_s)
        return whole_ns((linear_s + parts.attention_s + parts.swap_s) * 1e9)

    def parts(self, columns: StepColumns) -> Parts:
        """What a step, or each of a stretch, is made of."""
        mixed = columns.kind == "mixed"
        sampled = columns.sampled_rows if mixed else columns.rows_computed if columns.sampled_rows else 0
        products_s = columns.new_tokens_computed * self._token_s + sampled * self._sampled_row_s
        attention_s: Any
        if columns.kind == "decode":
            # a row reads as many columns as it multiplies by
            attention_s = columns.kv_columns_computed * self._column_s
        else:
            padded = columns.layout == "padded"
            read = columns.rows_computed * columns.longest_context if padded else columns.kv_tokens_read
            decoded = columns.decode_context_tokens if mixed else 0
            pairs = columns.kv_columns_computed - decoded
            attention_s = _larger((read - decoded) * self._kv_token_s, pairs * self._pair_s)
            attention_s = attention_s + decoded * self._column_s
        return Parts(self._weights_s, products_s, attention_s, columns.swapped_tokens * self._swap_token_s, sampled)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return self.host_ns_per_step

    def decode_line(self, features: StepFeatures) -> DecodeLine | None:
        """See :class:`~simulator.costs.LinearDecode`."""
        if features.swapped_tokens:
            return None
        products_s = features.new_tokens_computed * self._token_s + features.rows_computed * self._sampled_row_s
        return max(self._weights_s, products_s), self._column_s, 1e9, self.host_ns_per_step

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`.

        The weights are read, or the products computed: each is a floor of its own. A prefill multiplies at least as
        many pairs as it reads tokens.
        """
        host_ns = 0 if overlap else self.host_ns_per_step
        column_ns = max(self._kv_token_s, self._pair_s) * 1e9
        reads = StepFloor(max(0.0, self._weights_s * 1e9 + host_ns - ROUNDING_NS), 0.0, column_ns)
        computes = StepFloor(max(0.0, host_ns - ROUNDING_NS), self._token_s * 1e9, column_ns)
        both: tuple[StepFloor, ...] = (reads, computes)
        if overlap:
            both = (reads, computes, StepFloor(self.host_ns_per_step, 0.0, 0.0))
        return {"prefill": both, "decode": both}


def _larger(a: Any, b: Any) -> Any:
    """The larger of two numbers, or of two arrays element by element."""
    return max(a, b) if isinstance(a, float) and isinstance(b, float) else np.maximum(a, b)


def kv_tokens(gpu: Gpu, shape: ModelShape, dtype: str, workspace_bytes: int = WORKSPACE_BYTES) -> int:
    """Tokens whose KV fits beside the weights, ``workspace_bytes`` and the share of memory that engines leave free."""
    room = gpu.memory * MEMORY_SHARE - shape.weight_bytes(dtype) - workspace_bytes
    return max(0, int(room // shape.kv_bytes_per_token(DTYPE_BYTES[dtype])))


def roofline(gpu: str, model: str, dtype: str = "bfloat16") -> RooflineCosts:
    """The roofline of ``model`` on ``gpu``; unknown names and models that do not fit are a :class:`CostError`."""
    if gpu not in GPUS:
        raise CostError(unknown_name("GPU", gpu, GPUS))
    try:
        costs = RooflineCosts(GPUS[gpu], model_shape(model), dtype)
    except UnknownShapeError as error:
        raise CostError(str(error)) from None
    if not costs.kv_tokens:
        raise CostError(
            f"{model} in {dtype} leaves no room for KV on a {GPUS[gpu].title}; take a smaller model or dtype"
        )
    return costs
