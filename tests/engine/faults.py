"""Executors that fail where a test wants it: in the device's work of a step, or when its result is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.executors import FusedExecutor, PendingStep, StepResult

#: given the place (``work`` or ``result``) and how often it has been reached, what is raised there, if anything
Faults = Callable[[str, int], Exception | None]

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
DEVICE_LOST = "CUDA error: device-side assert triggered"


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError(f"{OUT_OF_MEMORY}\nSee the documentation")


def device_lost() -> Exception:
    return RuntimeError(f"{DEVICE_LOST}\nCompile with TORCH_USE_CUDA_DSA")


class Faulty:
    """Passes plans on to ``executor``, whose work on the device fails as ``faults`` says.

    ``work`` is reached whenever a step, or a piece of one, has been computed and before its tokens are given out, so
    that whatever it leaves behind is there. ``result`` is reached when a result is asked for.
    """

    def __init__(self, executor: Any, faults: Faults) -> None:
        self.executor = executor
        self.layout = executor.layout
        self.launches_ahead = executor.launches_ahead
        self.vocab = executor.vocab
        self.faults = faults
        self.reached = {"work": 0, "result": 0}
        self.raised = 0
        name = "_compute" if isinstance(executor, FusedExecutor) else "_run"
        work = getattr(executor, name)

        def failing(*args: Any) -> Any:
            done = work(*args)
            self.reach("work")
            return done

        setattr(executor, name, failing)

    def launch(self, plan: Any, states: Any) -> PendingStep:
        return _Pending(self, self.executor.launch(plan, states))

    def reach(self, place: str) -> None:
        count = self.reached[place]
        self.reached[place] += 1
        error = self.faults(place, count)
        if error is not None:
            self.raised += 1
            raise error


class _Pending:
    def __init__(self, owner: Faulty, pending: PendingStep) -> None:
        self._owner, self._pending = owner, pending

    def result(self) -> StepResult:
        result = self._pending.result()
        self._owner.reach("result")
        return result


def at(place: str, *counts: int, error: Callable[[], Exception] = out_of_memory) -> Faults:
    """``error`` when ``place`` is reached for the time(s) ``counts``, from 0 on."""
    return lambda reached, count: error() if reached == place and count in counts else None
