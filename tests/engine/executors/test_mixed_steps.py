"""Decode rows beside prompt chunks, prompts that begin with somebody else's blocks, and steps in a thread."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_plans import Desk

from engine.executors import PagedExecutor, build_executor
from engine.executors.paged_memory import PackedChunk
from engine.kernels import kernels_for
from scheduler.config import SchedulerConfig


def prompts_of(*lengths: int) -> list[list[int]]:
    source = random.Random(9)
    return [[source.randrange(10, 512) for _ in range(length)] for length in lengths]


def paged(model: Any, **more: Any) -> PagedExecutor:
    return PagedExecutor(model, kv_tokens=128, max_running=4, block_tokens=4, **more)


def assert_greedy(desk: Desk, both: Any) -> None:
    for place, prompt in enumerate(desk.prompts):
        outputs = desk.outputs(place)
        expected = both.greedy(prompt, len(outputs))
        assert len(expected) > len(outputs) // 2
        assert outputs[: len(expected)] == expected


@pytest.mark.parametrize("family", ["qwen2", "opt"])
@pytest.mark.parametrize("kv_pool", ["paged", "contiguous"])
@pytest.mark.parametrize("kernels", [None, kernels_for(torch.device("cpu"))], ids=["gathered", "kernels"])
def test_prompts_are_computed_beside_decodes(
    reference: Callable[[str], Any], family: str, kv_pool: Any, kernels: Any
) -> None:
    both = reference(family)
    desk = Desk(paged(both.ours, kv_pool=kv_pool, kernels=kernels), prompts_of(6, 13, 5, 9))
    desk.tables = {0: [3, 1, 4, 8], 1: [0, 2, 5, 6, 7], 2: [9, 10, 11], 3: [12, 13, 14, 15]}
    desk.step(desk.prefill(0), desk.prefill(2))
    # a chunk in between two rows, and none of its tokens sampled yet
    desk.step(desk.decode(0), desk.prefill(1, 0, 6), desk.decode(2))
    desk.step(desk.decode(0), desk.prefill(1, 6, 7), desk.decode(2))
    # the end of one prompt and the beginning of the next
    desk.step(desk.decode(0), desk.prefill(1, 7), desk.decode(2), desk.prefill(3, 0, 4))
    desk.step(desk.decode(0, 1), desk.prefill(3, 4))
    desk.step(desk.decode(0, 1, 2, 3))
    desk.step(desk.decode(3, 2, 1))
    assert [len(desk.outputs(place)) for place in range(4)] == [6, 4, 6, 3]
    assert_greedy(desk, both)


@pytest.mark.parametrize("blocks", [1, 2, 16, 17])
def test_tables_have_one_kind_of_stride_however_long_they_are(reference: Callable[[str], Any], blocks: int) -> None:
    """Kernels are compiled anew for a stride of another kind, while requests wait."""
    memory = paged(reference("qwen2").ours, kernels=kernels_for(torch.device("cpu"))).memory
    longest = list(range(2, blocks + 2))
    chunks = [PackedChunk(0, 1, 4 * blocks, longest), PackedChunk(1, 3, 3, [1])]
    attention: Any = memory.attention(chunks, [4 * longest[-1], 4, 5, 6], 4 * blocks)
    for tables in (attention.chunks.tables, attention.rows.tables):
        assert tables.stride(0) % 16 == 0
    assert attention.chunks.tables[0, :1].tolist() == [1]
    assert attention.rows.tables[0, :blocks].tolist() == longest


def test_a_prompt_goes_on_from_blocks_that_another_one_computed(reference: Callable[[str], Any]) -> None:
    both = reference("qwen2")
    first, second, third = prompts_of(11, 14, 9)
    desk = Desk(paged(both.ours), [first, first[:8] + second, first[:4] + third])
    desk.tables = {0: [2, 0, 5, 7], 1: [2, 0, 1, 3, 4, 6, 9], 2: [2, 8, 10, 11, 12]}
    desk.step(desk.prefill(0))
    desk.step(desk.decode(0), desk.prefill(1, 8))
    desk.step(desk.decode(0, 1), desk.prefill(2, 4))
    # the one that computed the shared blocks goes; they stay
    desk.step(desk.decode(1, 2), released=[0])
    desk.step(desk.decode(1, 2))
    assert_greedy(desk, both)


def test_a_whole_prompt_from_the_cache_but_for_its_last_tokens(reference: Callable[[str], Any]) -> None:
    both = reference("llama")
    (prompt,) = prompts_of(12)
    desk = Desk(paged(both.ours), [prompt, prompt])
    desk.tables = {0: [0, 1, 2, 3], 1: [0, 1, 4, 5]}
    desk.step(desk.prefill(0))
    desk.step(desk.decode(0), desk.prefill(1, 8))
    desk.step(desk.decode(0, 1))
    assert desk.outputs(1) == desk.outputs(0)[:2]
    assert_greedy(desk, both)


@pytest.mark.parametrize("layout", ["padded", "paged"])
def test_with_overlap_a_launched_step_runs_in_another_thread(
    reference: Callable[[str], Any], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    desks: list[Desk] = []
    for overlap in (False, True):
        config = SchedulerConfig.from_dict({"layout": layout, "kv_tokens": 64, "max_running": 2, "overlap": overlap})
        executor: Any = build_executor(reference("qwen2").ours, config)
        body = executor._body

        def run(*args: Any, body: Any = body, **more: Any) -> Any:
            threads.append(threading.current_thread())
            return body(*args, **more)

        monkeypatch.setattr(executor, "_body", run)
        desk = Desk(executor, prompts_of(9, 6), tables={0: [0], 1: [1]}, block_tokens=16)
        desk.step(desk.prefill(0), desk.prefill(1))
        desk.step(desk.decode(0, 1))
        desks.append(desk)
    assert desks[0].states == desks[1].states
    assert [thread is threading.main_thread() for thread in threads] == [True, True, False, False]
    assert threads[2] is threads[3]


def test_what_goes_wrong_in_the_other_thread_comes_out_with_the_result(
    reference: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor: Any = paged(reference("qwen2").ours, overlap=True)
    desk = Desk(executor, prompts_of(9), tables={0: [0, 1, 2]})
    body = executor._body

    def fail(**_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(executor, "_body", fail)
    with pytest.raises(MemoryError, match="no room"):
        desk.step(desk.prefill(0))
    monkeypatch.setattr(executor, "_body", body)
    desk.step(desk.prefill(0))
    assert_greedy(desk, reference("qwen2"))
