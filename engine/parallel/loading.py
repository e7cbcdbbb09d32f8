"""Loading a model that is divided over several devices, and starting the processes that hold the other shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from engine.embedded import say
from engine.errors import ModelError
from engine.models import DTYPES, SHAPE_PREFIX, LoadedModel, config_of_shape, load_model
from engine.parallel.group import TensorGroup, open_store
from engine.parallel.messages import Begin, Join, ModelBuilder
from engine.parallel.sharding import Division, divide_model, refuse_division
from engine.parallel.workers import Workers
from scheduler.model_shapes import UnknownShapeError, model_shape


def load_divided_model(
    name: str | Path | None,
    tp: int,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    notify: Callable[[str], None] = say,
    progress: bool = True,
) -> LoadedModel:
    """Load a model over ``tp`` devices: rank 0's share, in a group whose other ranks are processes of their own.

    With a ``tp`` of 1 it is the whole model, as :func:`~engine.models.load_model` gives it.

    GPUs are taken from ``device`` on (``cuda``: from the first). On a CPU the ranks share it, which is for tests. The
    other arguments are those of :func:`~engine.models.load_model`. Random weights are the same as without a division;
    each rank makes all of them on its own device first. Each rank reads all of a checkpoint into host memory, and only
    its share goes to its device.

    Raises:
        ModelError: as ``load_model``; a ``tp`` below 1; fewer GPUs than that; a model that cannot be divided by it.
        RankError: another rank could not load its share.
    """
    if tp < 1:
        raise ModelError(f"tp is {tp}; must be >= 1")
    if tp == 1:
        return load_model(name, dtype=dtype, device=device, seed=seed, notify=notify, progress=progress)
    devices = rank_devices(device, tp)
    precision = dtype or ("float32" if devices[0].type == "cpu" else "bfloat16")
    if isinstance(precision, str) and precision not in DTYPES:
        raise ModelError(f"unknown dtype {precision!r} (valid: {', '.join(DTYPES)})")
    random_weights = str(name).startswith(SHAPE_PREFIX)
    if random_weights:
        _refuse_shape(str(name), tp)
    build = partial(_build, name=name, dtype=precision, seed=seed, on_device=random_weights)
    return divide(
        partial(build, notify=notify, progress=progress),
        devices,
        elsewhere=partial(build, notify=_quiet, progress=False),
    )


def divide(build: ModelBuilder, devices: list[torch.device], elsewhere: ModelBuilder | None = None) -> LoadedModel:
    """Rank 0's share of what ``build`` makes, with the other ranks ready to be told what to do.

    ``elsewhere`` (default: ``build``) makes the model in the other processes, which must be able to import it. They
    end when the model that is returned is let go of, or its ``group.workers`` are closed.

    Raises:
        ModelError: the model cannot be divided by so many devices.
        RankError: another rank could not load its share.
    """
    size = len(devices)
    threads = max(1, torch.get_num_threads() // size)
    workers = Workers([
        Begin(elsewhere or build, Division(rank, size), devices[rank], threads) for rank in range(1, size)
    ])  # fmt: skip
    try:
        division = Division(0, size)
        model = divide_model(build(devices[0]), division, devices[0])
        workers.answers()
        store = open_store()
        group = workers.together(
            Join(store.port), lambda: TensorGroup(division, model.vocab, model.dtype, devices[0], store)
        )
        workers.joined(group)
    except BaseException:
        workers.close()
        raise
    group.workers = workers
    return replace(model, group=group)


def rank_devices(device: str | torch.device | None, tp: int) -> list[torch.device]:
    """The device of each rank.

    Raises:
        ModelError: no such device, or fewer GPUs than ranks.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ModelError(f"unknown device {str(device)!r} (valid: cpu, cuda, cuda:N)") from error
    if place.type == "cpu":
        return [place] * tp
    if place.type != "cuda":
        raise ModelError(f"tp {tp} divides a model over CUDA devices, or over processes on cpu; not over {place}")
    count, first = torch.cuda.device_count() if torch.cuda.is_available() else 0, place.index or 0
    if first + tp > count:
        there = f"this machine has {count}; lower tp" if count else "no CUDA device is available here; use cpu"
        raise ModelError(f"tp {tp} needs {tp} GPUs from cuda:{first} on, and {there}")
    return [torch.device("cuda", first + rank) for rank in range(tp)]


def _refuse_shape(name: str, tp: int) -> None:
    """What can be said before any weights are made."""
    try:
        shape = model_shape(name.removeprefix(SHAPE_PREFIX))
    except UnknownShapeError as error:
        raise ModelError(str(error)) from error
    refuse_division(name, config_of_shape(shape), tp)


def _build(
    device: torch.device,
    name: str | Path | None,
    dtype: str | torch.dtype,
    seed: int,
    on_device: bool,
    notify: Callable[[str], None],
    progress: bool,
) -> LoadedModel:
    place = device if on_device else "cpu"
    return load_model(name, dtype=dtype, device=place, seed=seed, notify=notify, progress=progress)


def _quiet(_message: str) -> None:
    """For ranks of which one says it all."""
