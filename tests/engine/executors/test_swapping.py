"""KV that goes to host memory and comes back elsewhere is the KV that left: the tokens are transformers' own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_plans import Desk, executor_of

from engine.host_copies import to_host
from scheduler.plan import Swap

MEMORIES = ["padded", "paged", "private blocks", "kernels"]


def prompts_of(*lengths: int) -> list[list[int]]:
    source = random.Random(5)
    return [[source.randrange(10, 512) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_sequence_goes_on_after_its_kv_was_elsewhere(
    reference: Callable[[str], Any], memory: str, overlap: bool
) -> None:
    both = reference("qwen2")
    executor = executor_of(both.ours, memory, overlap)
    desk = Desk(executor, prompts_of(9, 6, 11))
    desk.tables = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7, 8]}
    desk.step(desk.prefill(0), desk.prefill(1))
    for _ in range(3):
        desk.step(desk.decode(0, 1))
    out = desk.swap(0)
    # the newcomer takes the very blocks (or the slot) in the step in which they are given up
    desk.tables[2] = [1, 0, 3, 2, 9]
    desk.step(desk.prefill(2), swapped_out=[out])
    assert len(executor.host_copies) == 1
    for _ in range(4):
        desk.step(desk.decode(1, 2))
    # it comes back to memory that another one gives up, while it is needed
    desk.tables[0] = [8, 4, 6, 7, 5]
    desk.step(desk.decode(2), released=[1], swapped_in=[desk.swap(0)])
    assert len(executor.host_copies) == 0
    for _ in range(4):
        desk.step(desk.decode(0, 2))
    for place in range(3):
        expected = both.greedy(desk.prompts[place], len(desk.outputs(place)))
        assert len(expected) >= 4
        assert desk.outputs(place)[: len(expected)] == expected


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_leaves_as_another_comes_back(reference: Callable[[str], Any], memory: str) -> None:
    both = reference("llama")
    executor = executor_of(both.ours, memory)
    desk = Desk(executor, prompts_of(7, 10))
    desk.tables = {0: [0, 1, 2]}
    desk.step(desk.prefill(0))
    out = desk.swap(0)
    desk.tables[1] = [0, 1, 2]
    desk.step(desk.prefill(1), swapped_out=[out])
    for _ in range(2):
        other = desk.swap(1)
        desk.tables[0] = [2, 1, 0]
        desk.step(desk.decode(0), swapped_out=[other], swapped_in=[desk.swap(0)])
        out = desk.swap(0)
        desk.tables[1] = [1, 0, 2]
        desk.step(desk.decode(1), swapped_out=[out], swapped_in=[desk.swap(1)])
    for place in range(2):
        assert desk.outputs(place) == both.greedy(desk.prompts[place], 3)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_host_copy_of_one_that_never_comes_back_is_dropped(reference: Callable[[str], Any], memory: str) -> None:
    executor = executor_of(reference("qwen2").ours, memory)
    desk = Desk(executor, prompts_of(7, 5, 5))
    desk.tables = {0: [0, 1], 1: [2, 3], 2: [4, 5]}
    desk.step(desk.prefill(0), desk.prefill(1))
    desk.step(desk.decode(1), swapped_out=[desk.swap(0)])
    desk.step(desk.prefill(2), released=[0])
    assert len(executor.host_copies) == 0


@pytest.mark.parametrize("memory", MEMORIES)
def test_nothing_comes_back_that_never_left(reference: Callable[[str], Any], memory: str) -> None:
    desk = Desk(executor_of(reference("qwen2").ours, memory), prompts_of(7, 5))
    desk.tables = {0: [0, 1], 1: [2, 3]}
    desk.step(desk.prefill(0))
    with pytest.raises(RuntimeError, match="number 1 is to be swapped in"):
        desk.step(desk.decode(0), swapped_in=[Swap(1, 5, (2, 3))])


def test_nothing_leaves_twice(reference: Callable[[str], Any]) -> None:
    desk = Desk(executor_of(reference("qwen2").ours, "paged"), prompts_of(7, 5))
    desk.tables = {0: [0, 1], 1: [2, 3]}
    desk.step(desk.prefill(0))
    desk.step(desk.prefill(1), swapped_out=[desk.swap(0)])
    with pytest.raises(RuntimeError, match="number 0 was swapped out twice"):
        desk.step(desk.decode(1), swapped_out=[desk.swap(0)])


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_time_of_moving_kv_is_the_devices(
    reference: Callable[[str], Any], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock says between the start and the end of the copies is in the step's time."""
    executor = executor_of(reference("qwen2").ours, memory)
    desk = Desk(executor, prompts_of(7, 5))
    desk.tables = {0: [0, 1], 1: [2, 3]}
    desk.step(desk.prefill(0))
    clock = iter(range(0, 10**9, 1000))
    monkeypatch.setattr("engine.executors.base.time.perf_counter_ns", lambda: next(clock))
    swap_out = executor.swap_out

    def slow(swap: Swap) -> Any:
        copy = swap_out(swap)
        return lambda: [next(clock) for _ in range(5)] and copy()

    monkeypatch.setattr(executor, "swap_out", slow)
    assert desk.step(desk.prefill(1), swapped_out=[desk.swap(0)]).device_ns == 6000


def test_host_copies_have_the_models_precision(reference: Callable[[str], Any]) -> None:
    executor = executor_of(reference("qwen2").ours, "kernels")
    assert to_host(executor.memory.tensors, [0, 3]).dtype == torch.float32
