"""Executors: what runs a step plan on a device. ``padded`` is the plain way, ``paged`` computes no padding."""

from __future__ import annotations

from engine.executors.base import Executor, ExecutorWaste, PendingStep, SequenceState, StepResult
from engine.executors.memory import default_kv_tokens
from engine.executors.padded import PaddedExecutor
from engine.executors.paged import PagedExecutor
from engine.models import LoadedModel
from scheduler.config import SchedulerConfig

__all__ = [
    "Executor",
    "ExecutorWaste",
    "PaddedExecutor",
    "PagedExecutor",
    "PendingStep",
    "SequenceState",
    "StepResult",
    "build_executor",
    "default_kv_tokens",
]


def build_executor(model: LoadedModel, config: SchedulerConfig) -> Executor:
    """The executor of ``config``'s layout, with the memory that ``config`` accounts for."""
    if config.layout == "padded":
        return PaddedExecutor(model, max_running=config.max_running, overlap=config.overlap)
    return PagedExecutor(
        model,
        kv_tokens=config.capacity_tokens,
        max_running=config.max_running,
        block_tokens=config.block_tokens,
        kv_pool=config.pool,
        overlap=config.overlap,
    )
