"""Executors: what runs a step plan on a device. ``padded`` is the plain way, ``paged`` computes no padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from engine.embedded import say
from engine.errors import DeviceMemoryError, ModelError
from engine.executors.fused import FusedExecutor
from engine.executors.memory import (
    DEFAULT_UTILIZATION,
    MemoryPlan,
    estimated_needs,
    share_out,
    used_bytes,
)
from engine.executors.padded import PaddedExecutor
from engine.executors.paged import PagedExecutor
from engine.executors.probe import measured_needs
from engine.faults import first_line, free_unused, gib, is_out_of_memory
from engine.features import beyond_plain_attention
from engine.fused.architecture import missing_features
from engine.models import LoadedModel
from engine.steps import Executor, ExecutorWaste, PendingStep, SequenceState, StepResult
from scheduler.composition import most_mixed_tokens
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.graphs import NO_GRAPHS, Graphs, graph_sizes, prompt_graph_sizes

__all__ = [
    "DEFAULT_UTILIZATION",
    "Executor",
    "ExecutorWaste",
    "FusedExecutor",
    "MemoryPlan",
    "PaddedExecutor",
    "PagedExecutor",
    "PendingStep",
    "SequenceState",
    "Started",
    "StepResult",
    "build_executor",
    "default_graphs",
    "plan_memory",
    "start_executor",
]


#: what a host takes to launch a layer's kernels one by one: 0.25 to 0.5 ms were seen beside H100s
_LAUNCH_S_A_LAYER = 0.25e-3
#: dense 16-bit operations a second of a multiprocessor, by compute capability: datasheets of the A100 and the H100
_FLOPS_A_PROCESSOR = {8: 312e12 / 108, 9: 989e12 / 132}
#: the share of them that products of some hundred rows reach
_REACHED = 0.6


class Started(NamedTuple):
    """An executor, and the settings and the memory that it was started with."""

    executor: Executor
    config: SchedulerConfig
    memory: MemoryPlan


def plan_memory(
    model: LoadedModel,
    config: SchedulerConfig,
    *,
    utilization: float = DEFAULT_UTILIZATION,
    kv_tokens: int | None = None,
) -> MemoryPlan:
    """How the memory of ``model``'s device is shared out, by ``config``'s limits (of which ``kv_tokens`` is not one).

    ``utilization`` is the share of a GPU's memory that may be in use, what others use included. What a fused step and
    its graphs need is measured, which takes some seconds; for the other executors and for models that are divided it is
    estimated. ``kv_tokens``: what
    the user asks for; by default all that is left, or all that ``max_running`` sequences of full context can use.

    Raises:
        ConfigError: ``utilization`` is no share.
        DeviceMemoryError: ``kv_tokens``, or one sequence of full context, does not fit; the message has the numbers.
    """
    if not 0 < utilization <= 1:
        raise ConfigError(f"gpu_memory_utilization is {utilization:g}; must be more than 0 and at most 1")
    device, used, total = model.device, 0, 0
    if device.type == "cuda":
        free_unused(device)
        used, total = used_bytes(device)
    workers = None if model.group is None else model.group.workers
    if workers is not None and total:
        # the rank with the least memory decides
        used = max(used, total - workers.free_bytes())
    # the ranks of a divided model would all have to run the steps
    measured = device.type == "cuda" and workers is None and _runs_fused(model, config)
    needs = measured_needs(model, config) if measured else estimated_needs(model, config, used)
    return share_out(model, config, needs, total_bytes=total, utilization=utilization, kv_tokens=kv_tokens)


def start_executor(
    model: LoadedModel, config: SchedulerConfig, memory: MemoryPlan, notify: Callable[[str], None] = say
) -> Started:
    """The executor of ``config``. Where its KV memory cannot be had after all, one with less, and ``notify`` says so.

    Raises:
        DeviceMemoryError: nor can a memory for one sequence of full context, or the user asked for no less.
    """
    memory = replace(memory, kv_tokens=config.kv_tokens)
    # of an executor that was there before something may be left, which is no reason to begin with less
    free_unused(model.device)
    least = min(model.context_tokens, config.context_tokens)
    while True:
        try:
            executor = build_executor(model, config)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        else:
            free_unused(model.device)
            return Started(executor, config, memory)
        free_unused(model.device)
        smaller = config.kv_tokens * 9 // 10 // config.block_tokens * config.block_tokens
        if memory.asked or smaller < least:
            raise DeviceMemoryError(f"the executor cannot be started: {problem} ({memory.now()})")
        notify(
            f"memory for {config.kv_tokens:,} tokens of KV cannot be had ({problem}); trying {smaller:,}, "
            f"{gib(smaller * memory.kv_bytes_per_token)} GiB"
        )
        config, memory = replace(config, kv_tokens=smaller), replace(memory, kv_tokens=smaller)


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
    for name, sizes in config.graphs._asdict().items():
        if sizes and not _can_run_fused(model):
            raise ConfigError(f"{name}: {model.name!r} is not run by the executor that has graphs; leave them out")
    if _runs_fused(model, config):
        return FusedExecutor(
            model,
            kv_tokens=config.capacity_tokens,
            max_running=config.max_running,
            max_rows=config.rows,
            block_tokens=config.block_tokens,
            kv_pool=config.pool,
            graphs=config.graphs,
        )
    return PagedExecutor(
        model,
        kv_tokens=config.capacity_tokens,
        max_running=config.max_running,
        block_tokens=config.block_tokens,
        kv_pool=config.pool,
        overlap=config.overlap,
    )


def default_graphs(model: LoadedModel, config: SchedulerConfig) -> Graphs:
    """The graphs that steps under ``config``'s limits run as: none but on a GPU, and there for models that run fused.

    Those of steps with prompts pay as long as the GPU is done with a step's products sooner than the host is with
    launching its kernels.
    """
    if config.layout != "paged" or model.device.type != "cuda" or not _can_run_fused(model):
        return NO_GRAPHS
    causal: Any = model.model
    weights = sum(parameter.numel() for parameter in causal.base_model.layers.parameters())
    properties = torch.cuda.get_device_properties(model.device)
    peak = properties.multi_processor_count * _FLOPS_A_PROCESSOR.get(properties.major, _FLOPS_A_PROCESSOR[9])
    tokens = int(model.layers * _LAUNCH_S_A_LAYER * _REACHED * peak / (2 * weights))
    return Graphs(
        graph_sizes(min(config.max_running, config.rows)),
        prompt_graph_sizes(min(tokens, config.max_prefill_tokens)),
        prompt_graph_sizes(min(tokens, most_mixed_tokens(config))),
    )


def _can_run_fused(model: LoadedModel) -> bool:
    config: Any = model.model.config
    return not missing_features(config)


def _runs_fused(model: LoadedModel, config: SchedulerConfig) -> bool:
    """Whether :class:`FusedExecutor` is the executor of ``config``."""
    elsewhere = any(config.graphs) or model.group is not None or bool(beyond_plain_attention(model.model.config))
    return config.layout == "paged" and _can_run_fused(model) and (model.device.type == "cuda" or elsewhere)
