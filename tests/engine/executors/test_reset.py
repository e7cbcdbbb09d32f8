"""An executor that is used again by another scheduler gives what a new one would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from engine.executors import build_executor
from engine.loop import EngineLoop, TokenOutput
from engine.steps import Executor
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from tests.engine.tiny_models import loaded

SETTINGS = {
    "padded": {"layout": "padded"},
    "padded, swap": {"layout": "padded", "policy": "srpt", "preemption": "swap", "kv_pool": "paged", "kv_tokens": 64},
    "paged": {"layout": "paged", "kv_tokens": 128},
    "paged, swap": {"layout": "paged", "policy": "srpt", "preemption": "swap", "kv_tokens": 64},
    "paged, private": {"layout": "paged", "kv_pool": "contiguous", "kv_tokens": 128},
    "fused": {"layout": "paged", "kv_tokens": 128, "graph_rows": (1, 2, 4)},
    "fused, swap": {
        "layout": "paged", "policy": "srpt", "preemption": "swap", "kv_tokens": 64, "graph_rows": (1, 2, 4),
    },
    "fused, private": {
        "layout": "paged", "kv_pool": "contiguous", "kv_tokens": 128, "graph_rows": (4,), "graph_tokens": (8, 16, 40),
    },
}  # fmt: skip


def requests(first: int) -> list[Request]:
    return [
        Request(
            str(number), 0, 6 + 3 * number, 20, 9 - number,
            prompt_token_ids=tuple((first + 7 * number + place) % 90 + 3 for place in range(6 + 3 * number)),
        )
        for number in range(6)
    ]  # fmt: skip


def play(executor: Executor, config: SchedulerConfig, asked: list[Request], stop_after: int | None = None) -> Any:
    """The tokens of each request; with ``stop_after`` everything is aborted after so many steps."""
    tokens: dict[str, list[int]] = {}

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            tokens.setdefault(output.request_id, []).append(output.token_id)

    loop = EngineLoop(Scheduler(config), executor, listener=hear)
    if stop_after is None:
        loop.run(asked)
    else:
        for request in asked:
            loop.submit(request)
        for _ in range(stop_after):
            loop.step()
        loop.abort_all()
    return tokens


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_after_a_reset_it_is_as_new(
    reference: Callable[[str], Any], settings: dict[str, Any], overlap: bool, device: str
) -> None:
    model = loaded("small", copy.deepcopy(reference("qwen2").ours.model).to(device))
    config = SchedulerConfig(
        max_running=4, block_tokens=8, context_tokens=64, overlap=overlap, **{"policy": "fcfs", **settings}
    )
    expected = play(build_executor(model, config), config, requests(1))
    assert {len(tokens) for tokens in expected.values()} == set(range(4, 10))
    executor = build_executor(model, config)
    for steps in (3, 5, 7, 9, 11):
        play(executor, config, requests(steps), stop_after=steps)
        executor.reset()
        assert play(executor, config, requests(1)) == expected
        executor.reset()
