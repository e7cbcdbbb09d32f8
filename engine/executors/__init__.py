"""Executors: what runs a step plan on a device. ``padded`` is the plain way, ``paged`` computes no padding."""

from __future__ import annotations

from typing import Any

from engine.errors import ModelError
from engine.executors.base import Executor, ExecutorWaste, PendingStep, SequenceState, StepResult
from engine.executors.fused import FusedExecutor
from engine.executors.memory import default_kv_tokens
from engine.executors.padded import PaddedExecutor
from engine.executors.paged import PagedExecutor
from engine.features import beyond_plain_attention
from engine.fused.architecture import missing_features
from engine.models import LoadedModel
from scheduler.config import SchedulerConfig

__all__ = [
    "Executor",
    "ExecutorWaste",
    "FusedExecutor",
    "PaddedExecutor",
    "PagedExecutor",
    "PendingStep",
    "SequenceState",
    "StepResult",
    "build_executor",
    "default_kv_tokens",
]


def build_executor(model: LoadedModel, config: SchedulerConfig) -> Executor:
    """The executor of ``config``'s layout, with the memory that ``config`` accounts for.

    On a GPU models of a known architecture run fused, others through transformers' own modules; a model that is divided
    over several ranks runs fused everywhere.

    Raises :class:`~engine.errors.ModelError` for a divided model in the padded layout.
    """
    if model.group is not None and config.layout != "paged":
        raise ModelError(
            f"a model that is divided over {model.group.size} ranks runs in the paged layout, not in {config.layout}"
        )
    if config.layout == "padded":
        return PaddedExecutor(model, max_running=config.max_running, overlap=config.overlap)
    transformers_config: Any = model.model.config
    if not missing_features(transformers_config) and (
        model.device.type == "cuda" or model.group is not None or beyond_plain_attention(transformers_config)
    ):
        return FusedExecutor(
            model,
            kv_tokens=config.capacity_tokens,
            max_running=config.max_running,
            max_rows=config.rows,
            block_tokens=config.block_tokens,
            kv_pool=config.pool,
        )
    return PagedExecutor(
        model,
        kv_tokens=config.capacity_tokens,
        max_running=config.max_running,
        block_tokens=config.block_tokens,
        kv_pool=config.pool,
        overlap=config.overlap,
    )
