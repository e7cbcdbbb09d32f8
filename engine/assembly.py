"""From a model's name and some settings to everything that a loop needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.executors import (
    DEFAULT_UTILIZATION,
    Executor,
    MemoryPlan,
    default_graphs,
    plan_memory,
    start_executor,
)
from engine.models import LoadedModel
from engine.parallel.loading import load_divided_model
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.scheduler import Scheduler


class Assembly(NamedTuple):
    """A model, the scheduler's settings, the executor, and how the memory of the device is shared out."""

    model: LoadedModel
    config: SchedulerConfig
    executor: Executor
    memory: MemoryPlan


def assemble(
    model_path: str | Path | None,
    settings: dict[str, Any],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tp: int = 1,
    gpu_memory_utilization: float = DEFAULT_UTILIZATION,
) -> Assembly:
    """Load a model and start its executor; ``settings`` are fields of :class:`~scheduler.config.SchedulerConfig`.

    What they leave open is found out: the context from the model, ``kv_tokens`` from the memory, graphs from the GPU.
    The config that comes back has all of it, and what a policy's own file says by default.

    Raises :class:`~scheduler.config.ConfigError` for a bad setting, before a model is loaded; else as
    :class:`~engine.inference.InferenceEngine`.
    """
    config = Scheduler(SchedulerConfig.from_dict(settings)).config
    if tp != 1 and config.layout != "paged":
        raise ConfigError(f"tp {tp} needs the paged layout; layout is {config.layout!r}")
    model = load_divided_model(model_path, tp, dtype=dtype, device=device)
    given = dict(settings)
    given.setdefault("context_tokens", model.context_tokens)
    given = {**default_graphs(model, config)._asdict(), **given}
    limits = Scheduler(SchedulerConfig.from_dict(given)).config
    asked = settings.get("kv_tokens")
    memory = plan_memory(model, limits, utilization=gpu_memory_utilization, kv_tokens=asked)
    limits = Scheduler(SchedulerConfig.from_dict({**given, "kv_tokens": memory.kv_tokens})).config
    executor, config, memory = start_executor(model, limits, memory)
    return Assembly(model, config, executor, memory)
