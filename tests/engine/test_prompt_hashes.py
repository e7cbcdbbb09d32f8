"""Hashes of prompt blocks agree exactly as far as the prompts do, and real requests get them."""

from __future__ import annotations

import random

from fake_scheduler import FakeScheduler
from test_overlap import CountingExecutor

from engine.loop import EngineLoop
from engine.prompt_hashes import block_hashes_of
from scheduler.config import SchedulerConfig
from scheduler.request import Request


def shared_blocks(a: list[int], b: list[int], size: int) -> int:
    pairs = zip(block_hashes_of(a, size), block_hashes_of(b, size), strict=False)
    return next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)) // size)


def test_only_full_blocks_count() -> None:
    assert [len(block_hashes_of(range(n), 4)) for n in (0, 3, 4, 7, 8, 9)] == [0, 0, 1, 1, 2, 2]


def test_a_block_stands_for_all_before_it() -> None:
    source = random.Random(1)
    for _ in range(50):
        a = [source.randrange(100_000) for _ in range(40)]
        differs = source.randrange(40)
        b = [*a[:differs], a[differs] + 1, *a[differs + 1 :]]
        assert shared_blocks(a, b, 4) == differs // 4
        # nothing after the difference is equal by its own tokens
        assert not set(block_hashes_of(a, 4)[differs // 4 :]) & set(block_hashes_of(b, 4))


def test_the_hashes_are_the_same_in_every_process() -> None:
    assert block_hashes_of((1, 2, 3, 4), 2) == (11868681386100499350, 12340372733252014964)


def test_a_real_request_gets_the_hashes_of_its_tokens() -> None:
    given: list[Request] = []

    class Keeping(FakeScheduler):
        def submit(self, request: Request, now_ns: int):  # type: ignore[no-untyped-def]
            given.append(request)
            return super().submit(request, now_ns)

    tokens = tuple(range(10))
    for prefix_cache in (False, True):
        scheduler = Keeping(SchedulerConfig(prefix_cache=prefix_cache, block_tokens=4, context_tokens=64))
        loop = EngineLoop(scheduler, CountingExecutor([]))
        loop.run([Request("a", 0, 10, 1, prompt_token_ids=tokens, block_hashes=(1, 2))])
    # without a cache nobody looks; with one, KV is shared by what the tokens are and not by what a workload says
    assert [request.block_hashes for request in given] == [(1, 2), block_hashes_of(tokens, 4)]
