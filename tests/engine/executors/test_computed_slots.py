"""An executor computes the slots that its layout's formula says, and owns up to those beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from engine import attention
from engine.executors import PaddedExecutor, StepResult, build_executor
from engine.executors.paged import PrivateBlocks
from engine.loop import EngineLoop
from scheduler.config import SchedulerConfig
from scheduler.plan import StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler


class SlotMeter:
    """Counts the attention slots of every SDPA call, head by head, and compares the sums with each plan's formula."""

    launches_ahead = False

    def __init__(self, executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._executor = executor
        self.vocab = executor.vocab
        self._sdpa = torch.nn.functional.scaled_dot_product_attention
        self._pairs = 0
        self.steps = 0
        self.wasted = 0
        monkeypatch.setattr(attention, "scaled_dot_product_attention", self._attend)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        (rows, heads, tokens, _), context = query.shape, key.shape[2]
        self._pairs += rows * heads * (tokens * (tokens + 1) // 2 if options.get("is_causal") else tokens * context)
        return self._sdpa(query, key, *args, **options)

    def launch(self, plan: StepPlan, states: Mapping[int, Any]) -> Any:
        self._pairs = 0
        pending = self._executor.launch(plan, states)
        result: StepResult = pending.result()
        formula = plan.features.kv_columns_computed + result.waste.attention_slots
        assert self._pairs == formula * self._executor.model.layers * self._executor.model.heads
        assert result.waste.linear_slots == 0
        self.steps += 1
        self.wasted += result.waste.attention_slots
        return pending


@pytest.mark.parametrize(
    ("layout", "max_prefill_tokens", "wastes"), [("padded", 2048, False), ("paged", 2048, False), ("paged", 7, True)]
)
def test_attention_slots_are_those_of_the_formula(
    reference: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    max_prefill_tokens: int,
    wastes: bool,
) -> None:
    config = SchedulerConfig.from_dict(
        {"policy": "static", "layout": layout, "kv_tokens": 2048, "context_tokens": 512, "max_running": 4,
         "max_prefill_tokens": max_prefill_tokens}
    )  # fmt: skip
    model = reference("qwen2").ours
    meter = SlotMeter(build_executor(model, config), monkeypatch)
    EngineLoop(Scheduler(config), meter).run(
        Request(str(n), 0, 3 + 4 * n, 3 + n, prompt_token_ids=tuple(range(3 + 4 * n))) for n in range(7)
    )
    assert meter.steps > 10
    assert (meter.wasted > 0) == wastes


def test_a_padded_step_is_rows_times_longest(reference: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = SchedulerConfig(policy="static", layout="padded", kv_tokens=2048, context_tokens=512, max_running=4)
    executor = PaddedExecutor(reference("qwen2").ours, max_running=4)
    prepare = executor.prepare
    steps = []

    def watch(plan: StepPlan, states: Mapping[int, Any]) -> Any:
        batch = prepare(plan, states)
        steps.append((batch.token_ids.numel(), plan.features.new_tokens_computed))
        return batch

    monkeypatch.setattr(executor, "prepare", watch)
    EngineLoop(Scheduler(config), executor).run(
        Request(str(n), 0, 3 + 4 * n, 3 + n, prompt_token_ids=tuple(range(3 + 4 * n))) for n in range(4)
    )
    assert all(computed == formula for computed, formula in steps)


def test_private_blocks_are_given_back() -> None:
    blocks = PrivateBlocks(4, 16)
    first = list(blocks.table(1, 33))
    assert len(set(first)) == 3
    assert blocks.table(1, 34) == first
    blocks.release(1)
    blocks.release(1)
    assert sorted(blocks.table(2, 64)) == [0, 1, 2, 3]
