"""Real requests share KV as far as their tokens agree, whatever a workload says of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fake_scheduler import FakeScheduler
from test_overlap import CountingExecutor

from engine.executors import build_executor
from engine.loop import EngineLoop, TokenOutput
from scheduler.config import SchedulerConfig
from scheduler.prefix_hashes import block_hashes_of
from scheduler.request import Request
from scheduler.scheduler import Scheduler


class Keeping(FakeScheduler):
    """Keeps the requests that it was handed."""

    def submit(self, request: Request, now_ns: int) -> Any:
        self.__dict__.setdefault("requests", []).append(request)
        return super().submit(request, now_ns)


def test_a_real_request_gets_the_hashes_of_its_tokens() -> None:
    given: list[Any] = []
    tokens = tuple(range(10))
    for prefix_cache in (False, True):
        scheduler: Any = Keeping(SchedulerConfig(prefix_cache=prefix_cache, block_tokens=4, context_tokens=64))
        EngineLoop(scheduler, CountingExecutor([])).run(
            [Request("a", 0, 10, 1, prompt_token_ids=tokens, block_hashes=(1, 2))]
        )
        given += scheduler.requests
    # without a cache nobody looks
    assert [request.block_hashes for request in given] == [(1, 2), block_hashes_of(tokens, 4)]


def test_prompts_that_begin_alike_are_computed_from_where_they_differ(reference: Callable[[str], Any]) -> None:
    both = reference("qwen2")
    source = random.Random(4)
    shared = [source.randrange(10, 512) for _ in range(20)]
    prompts = [shared + [source.randrange(10, 512) for _ in range(length)] for length in (9, 3, 14)] + [shared[:17]]
    config = SchedulerConfig.from_dict(
        {"prefix_cache": True, "block_tokens": 4, "kv_tokens": 128, "context_tokens": 64, "max_running": 2}
    )
    scheduler = Scheduler(config)
    tokens: dict[str, list[int]] = {}

    def hear(output: TokenOutput) -> None:
        assert output.token_id is not None
        tokens.setdefault(output.request_id, []).append(output.token_id)

    EngineLoop(scheduler, build_executor(both.ours, config), listener=hear).run(
        # a workload that is wrong about who shares what does no harm
        Request(str(place), 0, len(prompt), 8, prompt_token_ids=tuple(prompt), block_hashes=(1, 2, 3, 4))
        for place, prompt in enumerate(prompts)
    )
    # the two that are admitted together find nothing; then 20 tokens, and of 17 the 16 in full blocks
    assert scheduler.counters.prefix_hit_tokens == 20 + 16
    for place, prompt in enumerate(prompts):
        expected = both.greedy(prompt, 8)
        assert tokens[str(place)][: len(expected)] == expected
