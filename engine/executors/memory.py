"""How a device's memory is shared out: weights, what a step needs, CUDA graphs, and KV in what is left."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from engine.errors import DeviceMemoryError
from engine.faults import gib, memory_line
from engine.models import LoadedModel
from scheduler.config import SchedulerConfig

#: share of a GPU's memory that may be in use; vLLM's default
DEFAULT_UTILIZATION = 0.9
#: KV memory on a CPU, at most, where nobody asks for more
CPU_KV_BYTES = 2 << 30
#: bytes of a sampled row, for each entry of the vocabulary, besides the logits: float32 copies, edits, noise, a sort
_SAMPLING_BYTES = 52


class Needs(NamedTuple):
    """Bytes that others than KV need: what a step takes besides the weights, what CUDA graphs take, and all else."""

    step: int
    graphs: int
    other: int
    measured: bool


@dataclass(frozen=True)
class MemoryPlan:
    """Who gets how much of the device's memory, in bytes; ``kv_tokens`` are what the scheduler has to share out.

    ``other_bytes`` were in use when the plan was made, by other processes too. ``total_bytes`` are the device's, 0 on a
    CPU, where nothing is known of the rest either. ``measured``: the steps and graphs were, on the device itself.
    ``asked``: the KV memory is what the user asked for.
    """

    kv_tokens: int
    kv_bytes_per_token: int
    weights_bytes: int
    step_bytes: int
    graphs_bytes: int
    other_bytes: int
    total_bytes: int
    utilization: float
    measured: bool
    asked: bool
    device: torch.device = field(repr=False)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV memory."""
        return self.kv_tokens * self.kv_bytes_per_token

    @property
    def usable_bytes(self) -> int:
        """Bytes of the device that may be in use."""
        return int(self.utilization * self.total_bytes)

    @property
    def left_bytes(self) -> int:
        """Bytes that are left for KV; fewer than none where the rest does not fit."""
        return self.usable_bytes - self.weights_bytes - self.step_bytes - self.graphs_bytes - self.other_bytes

    @property
    def room_tokens(self) -> int:
        """Tokens of KV that there is room for, however few of them ``max_running`` sequences can use."""
        return max(self.kv_tokens, self.left_bytes // self.kv_bytes_per_token if self.total_bytes else 0)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for a manifest."""
        return {
            "kv_tokens": self.kv_tokens,
            "kv_bytes": self.kv_bytes,
            "weights_bytes": self.weights_bytes,
            "step_bytes": self.step_bytes,
            "graphs_bytes": self.graphs_bytes,
            "other_bytes": self.other_bytes,
            "total_bytes": self.total_bytes,
            "utilization": self.utilization,
            "measured": self.measured,
        }

    def __str__(self) -> str:
        return f"KV memory {self.kv_tokens:,} tokens, {gib(self.kv_bytes)} GiB; {self.shares()}"

    def shares(self) -> str:
        """What the rest of the memory is for, in words."""
        if not self.total_bytes:
            return f"weights {gib(self.weights_bytes)} GiB"
        how = "measured" if self.measured else "estimated"
        return (
            f"weights {gib(self.weights_bytes)}, the largest step {gib(self.step_bytes)}, CUDA graphs "
            f"{gib(self.graphs_bytes)}, other {gib(self.other_bytes)} GiB ({how}); "
            f"{gib(self.usable_bytes)} GiB may be used, {self.utilization:.0%} of {gib(self.total_bytes)}"
        )

    def now(self) -> str:
        """The numbers for a message about memory that is too short at this moment."""
        line = memory_line(self.device)
        return f"{self}; now {line}" if line else str(self)


def share_out(
    model: LoadedModel,
    config: SchedulerConfig,
    needs: Needs,
    *,
    total_bytes: int,
    utilization: float = DEFAULT_UTILIZATION,
    kv_tokens: int | None = None,
) -> MemoryPlan:
    """The plan for a device of ``total_bytes`` (0: a CPU's, which has no share to keep to).

    KV gets what is left, in whole blocks, but no more than ``max_running`` sequences of full context can use; or the
    ``kv_tokens`` that the user asks for.

    Raises:
        DeviceMemoryError: what is left does not hold ``kv_tokens``, or one sequence of full context.
    """
    block = config.block_tokens
    context = -(-min(model.context_tokens, config.context_tokens) // block) * block
    plan = MemoryPlan(
        0, model.kv_bytes_per_token, weights_bytes(model), needs.step, needs.graphs, needs.other, total_bytes,
        utilization, needs.measured, kv_tokens is not None, model.device,
    )  # fmt: skip
    room = (plan.left_bytes if total_bytes else CPU_KV_BYTES) // model.kv_bytes_per_token
    room = max(0, (room - _rounding_tokens(config)) // block * block)
    if not total_bytes:
        room = max(block, room)
    elif kv_tokens is not None and kv_tokens > room:
        raise DeviceMemoryError(
            f"a KV memory of {kv_tokens:,} tokens takes {gib(kv_tokens * model.kv_bytes_per_token)} GiB; there is room "
            f"for {room:,}: {plan.shares()}; lower kv_tokens or max_prefill_tokens, or raise gpu_memory_utilization"
        )
    elif kv_tokens is None and room < context:
        raise DeviceMemoryError(
            f"there is room for {room:,} tokens of KV, too few for one sequence of {context:,}: {plan.shares()}; "
            "raise gpu_memory_utilization, lower max_prefill_tokens or max_running, or ask for fewer kv_tokens"
        )
    chosen = min(context * config.max_running, room) if kv_tokens is None else kv_tokens
    return replace(plan, kv_tokens=chosen)


def estimated_needs(model: LoadedModel, config: SchedulerConfig, used_bytes: int = 0) -> Needs:
    """What a step needs, from the model's shape; ``used_bytes`` of the device are in use, weights included.

    The activations of the most prompt tokens that a step may have, and the logits of the most rows.
    """
    item = model.dtype.itemsize
    intermediate: int = getattr(model.model.config, "intermediate_size", None) or 4 * model.hidden
    tokens, rows = _most_tokens(model, config), most_rows(config)
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    activations = tokens * item * (4 * model.hidden + 2 * heads + 3 * intermediate)
    logits = rows * model.vocab * (item + _SAMPLING_BYTES)
    return Needs(activations + logits, 0, max(0, used_bytes - weights_bytes(model)), False)


def weights_bytes(model: LoadedModel) -> int:
    """Bytes of the model's parameters and buffers; what several of them share counts once."""
    causal: Any = model.model
    storages = {}
    for tensor in (*causal.parameters(), *causal.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def most_rows(config: SchedulerConfig) -> int:
    """The most rows that a step may sample."""
    return min(config.rows, config.max_running)


def used_bytes(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU that are in use, by whomever, and all that it has."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def _most_tokens(model: LoadedModel, config: SchedulerConfig) -> int:
    """The most tokens that a step may compute."""
    return max(config.max_prefill_tokens, config.chunk_tokens or 0) + most_rows(config)


def _rounding_tokens(config: SchedulerConfig) -> int:
    """What the paged layout takes more than ``kv_tokens`` under a pool without block ids: a block for each sequence."""
    return 0 if config.pool == "paged" or config.layout == "padded" else (config.max_running + 1) * config.block_tokens
