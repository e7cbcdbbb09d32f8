"""KV that nobody owns is never read: blocks full of NaN between their users change no token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_greedy_tokens import output_tokens, prompts_of

from engine.executors import FusedExecutor, PagedExecutor, PendingStep
from engine.executors.base import SequenceState
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel, loaded
from scheduler.config import SchedulerConfig
from scheduler.plan import StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TIGHT = {"kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16}
WORKLOADS: dict[str, dict[str, Any]] = {
    "recompute": TIGHT,
    "swap": {**TIGHT, "preemption": "swap"},
    "mixed": {**TIGHT, "phase": "mixed", "chunk_tokens": 12},
    "prefix": {"kv_tokens": 160, "block_tokens": 4, "prefix_cache": True, "phase": "mixed", "chunk_tokens": 20},
    "private": {"kv_pool": "contiguous", "kv_tokens": 200, "block_tokens": 4},
}


class Poisoned:
    """An executor whose KV blocks are NaN, from the first step on, whenever no sequence and no cache owns them."""

    layout = "paged"

    def __init__(self, executor: Any, scheduler: Scheduler) -> None:
        self.executor = executor
        self.launches_ahead = executor.launches_ahead
        self.vocab = executor.vocab
        self._pool: Any = scheduler.pool
        pools = (
            executor.cache.keys + executor.cache.values
            if isinstance(executor, FusedExecutor)
            else executor.memory.tensors
        )
        self._pools: list[torch.Tensor] = pools
        for pool in pools:
            pool.fill_(torch.nan)
        self.poisonings = 0

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> PendingStep:
        free = sorted(self._unowned(plan))
        self.poisonings += len(free)
        for pool in self._pools:
            pool[free] = torch.nan
        step: PendingStep = self.executor.launch(plan, states)
        return step

    def _unowned(self, plan: StepPlan) -> set[int]:
        private = self.executor._private
        if private is not None:
            return set(private._free)
        owned = {block for table in self._pool._tables.values() for block in table}
        if self._pool.cached_blocks:
            owned |= {block.id for block in self._pool._cache._blocks.values()}
        # it leaves for host memory at the beginning of the step
        owned |= {block for swap in plan.swapped_out for block in swap.blocks}
        return set(range(len(self._pools[0]))) - owned


def serve(
    model: LoadedModel, kind: Any, poisoned: bool, settings: dict[str, Any], overlap: bool
) -> tuple[dict[str, list[int]], Scheduler]:
    """Tokens of the prompts; the third is aborted after three, and all come a second time when they have ended."""
    config = SchedulerConfig.from_dict({"context_tokens": model.context_tokens, "overlap": overlap, **settings})
    scheduler = Scheduler(config)
    made: dict[str, Any] = {
        "kv_tokens": config.capacity_tokens, "max_running": config.max_running, "block_tokens": config.block_tokens,
        "kv_pool": config.pool,
    }  # fmt: skip
    executor = kind(model, **made, **({"overlap": overlap} if kind is PagedExecutor else {}))
    if poisoned:
        executor = Poisoned(executor, scheduler)
    tokens: dict[str, list[int]] = {}

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            got = tokens.setdefault(output.request_id, [])
            got.append(output.token_id)
            if output.request_id == "2" and len(got) == 3:
                loop.abort("2")

    loop = EngineLoop(scheduler, executor, listener=hear)
    prompts = prompts_of(512)
    prompts[3][:4] = prompts[4][:4]
    for again in ("", " again"):
        loop.run(
            Request(f"{place}{again}", 0, len(p), output_tokens(place), output_tokens(place), prompt_token_ids=tuple(p))
            for place, p in enumerate(prompts)
        )
    assert scheduler.idle
    if poisoned:
        assert executor.poisonings
    return tokens, scheduler


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [FusedExecutor, PagedExecutor])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_tokens_do_not_depend_on_what_lies_in_blocks_that_nobody_owns(
    reference: Callable[[str], Any], device: str, kind: Any, overlap: bool, workload: str
) -> None:
    model = loaded("small", copy.deepcopy(reference("qwen2").ours.model).to(device))
    settings = WORKLOADS[workload]
    clean, _ = serve(model, kind, False, settings, overlap)
    found, scheduler = serve(model, kind, True, settings, overlap)
    assert found == clean
    counters = scheduler.counters
    assert counters.aborted == 1
    if workload in ("recompute", "swap", "mixed"):
        assert counters.preemptions
    assert bool(counters.swapped_in) == (workload == "swap")
    assert bool(counters.prefix_hit_tokens) == (workload == "prefix")


@pytest.mark.parametrize("kind", [FusedExecutor, PagedExecutor])
def test_a_poisoned_block_that_is_read_shows(
    reference: Callable[[str], Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: with the blocks poisoned that a sequence owns, tokens change."""
    model = loaded("small", copy.deepcopy(reference("qwen2").ours.model))
    clean, _ = serve(model, kind, False, TIGHT, False)
    monkeypatch.setattr(Poisoned, "_unowned", lambda self, plan: {0})
    found, _ = serve(model, kind, True, TIGHT, False)
    assert found != clean
