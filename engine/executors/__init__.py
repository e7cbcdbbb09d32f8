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
from scheduler.errors import ConfigError
from scheduler.graphs import graph_sizes
from scheduler.plan import Layout

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
    "default_graph_rows",
    "default_kv_tokens",
]


def build_executor(model: LoadedModel, config: SchedulerConfig) -> Executor:
    """The executor of ``config``'s layout, with the memory that ``config`` accounts for.

    On a GPU models of a known architecture run fused, others through transformers' own modules; a model that is divided
    over several ranks runs fused everywhere.

    Raises :class:`~engine.errors.ModelError` for a divided model in the padded layout, and
    :class:`~scheduler.errors.ConfigError` for ``graph_rows`` where no executor with graphs runs the model.
    """
    if model.group is not None and config.layout != "paged":
        raise ModelError(
            f"a model that is divided over {model.group.size} ranks runs in the paged layout, not in {config.layout}"
        )
    if config.layout == "padded":
        return PaddedExecutor(model, max_running=config.max_running, overlap=config.overlap)
    if config.graph_rows and not _can_run_fused(model):
        raise ConfigError(f"graph_rows: {model.name!r} is not run by the executor that has graphs; leave them out")
    if config.graph_rows or _runs_fused(model):
        return FusedExecutor(
            model,
            kv_tokens=config.capacity_tokens,
            max_running=config.max_running,
            max_rows=config.rows,
            block_tokens=config.block_tokens,
            kv_pool=config.pool,
            graph_rows=config.graph_rows,
        )
    return PagedExecutor(
        model,
        kv_tokens=config.capacity_tokens,
        max_running=config.max_running,
        block_tokens=config.block_tokens,
        kv_pool=config.pool,
        overlap=config.overlap,
    )


def default_graph_rows(model: LoadedModel, layout: Layout, most_rows: int) -> tuple[int, ...]:
    """The sizes of the graphs that decode steps of at most ``most_rows`` rows run as, for a scheduler's config.

    None but on a GPU, and there for models that run fused.
    """
    graphs = layout == "paged" and model.device.type == "cuda" and _runs_fused(model)
    return graph_sizes(most_rows) if graphs else ()


def _can_run_fused(model: LoadedModel) -> bool:
    config: Any = model.model.config
    return not missing_features(config)


def _runs_fused(model: LoadedModel) -> bool:
    """Whether the fused executor is the one for its paged layout."""
    config: Any = model.model.config
    elsewhere = model.group is not None or bool(beyond_plain_attention(config))
    return _can_run_fused(model) and (model.device.type == "cuda" or elsewhere)
