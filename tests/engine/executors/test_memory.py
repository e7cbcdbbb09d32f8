"""Who gets how much memory: KV has what is left, and where that is too little it is said with the numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import engine.executors
from engine.errors import DeviceMemoryError
from engine.executors import FusedExecutor, build_executor, plan_memory, start_executor
from engine.executors.memory import Needs, estimated_needs, share_out, used_bytes, weights_bytes
from engine.executors.probe import largest_steps, measured_needs
from engine.faults import free_unused
from engine.fused.graphs import DecodeSteps
from engine.models import LoadedModel, load_model, loaded
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.graphs import graph_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GIB = 1 << 30
CONFIG = SchedulerConfig(max_running=4, block_tokens=16)


@pytest.fixture
def small(reference: Callable[[str], Any]) -> LoadedModel:
    """Contexts of 512 tokens, 256 bytes of KV a token in float32: two layers, two heads of 8, keys and values."""
    return loaded("small", copy.deepcopy(reference("qwen2").ours.model))


# -- sharing out


def test_on_a_cpu_the_memory_is_whole_blocks_and_no_more_than_the_contexts_need(small: LoadedModel) -> None:
    assert plan_memory(small, replace(CONFIG, max_running=3, block_tokens=100)).kv_tokens == 3 * 600
    assert plan_memory(small, replace(CONFIG, max_running=10**9)).kv_tokens == 2 * GIB // 256
    assert plan_memory(small, replace(CONFIG, context_tokens=64)).kv_tokens == 4 * 64
    assert plan_memory(small, CONFIG, kv_tokens=100).kv_tokens == 100


def test_kv_gets_what_is_left_of_the_share(small: LoadedModel) -> None:
    weights = weights_bytes(small)
    needs = Needs(step=3 << 20, graphs=2 << 20, other=1 << 20, measured=True)
    config = replace(CONFIG, max_running=10**6)
    total = 40 << 20
    plan = share_out(small, config, needs, total_bytes=total, utilization=0.5)
    left = (20 << 20) - (6 << 20) - weights
    assert plan.left_bytes == left
    assert plan.kv_tokens == left // 256 // 16 * 16
    assert plan.kv_bytes <= left < plan.kv_bytes + 16 * 256
    assert share_out(small, CONFIG, needs, total_bytes=total, utilization=0.5).kv_tokens == 4 * 512


def test_a_pool_without_block_ids_leaves_room_for_a_block_of_each_sequence(small: LoadedModel) -> None:
    needs = Needs(0, 0, 0, True)
    config = replace(CONFIG, max_running=1000)
    paged, contiguous = (
        share_out(small, replace(config, kv_pool=pool), needs, total_bytes=40 << 20).kv_tokens
        for pool in ("paged", "contiguous")
    )  # fmt: skip
    assert paged - contiguous == 1001 * 16


NUMBERS = re.compile(r"weights \d+\.\d+, the largest step .* CUDA graphs .* other .*measured.*may be used, 90% of \d+")


def test_what_is_asked_for_and_does_not_fit_is_refused_with_the_numbers(small: LoadedModel) -> None:
    needs = Needs(1 << 20, 1 << 20, 1 << 20, True)
    with pytest.raises(DeviceMemoryError, match="a KV memory of 500,000 tokens takes") as refused:
        share_out(small, CONFIG, needs, total_bytes=40 << 20, kv_tokens=500_000)
    assert NUMBERS.search(str(refused.value))
    assert share_out(small, CONFIG, needs, total_bytes=40 << 20, kv_tokens=80).kv_tokens == 80


def test_a_memory_for_less_than_one_sequence_is_refused_unless_it_is_asked_for(small: LoadedModel) -> None:
    total = int((weights_bytes(small) + 400 * 256) / 0.9)
    needs = Needs(0, 0, 0, True)
    with pytest.raises(DeviceMemoryError, match="too few for one sequence of 512") as refused:
        share_out(small, CONFIG, needs, total_bytes=total)
    assert NUMBERS.search(str(refused.value))
    assert share_out(small, CONFIG, needs, total_bytes=total, kv_tokens=320).kv_tokens == 320
    assert share_out(small, replace(CONFIG, context_tokens=320), needs, total_bytes=total).kv_tokens >= 320


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_is_more_than_nothing_and_at_most_all(small: LoadedModel, share: float) -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        plan_memory(small, CONFIG, utilization=share)


def test_shared_weights_count_once(small: LoadedModel) -> None:
    size = weights_bytes(small)
    causal: Any = small.model
    tied = loaded("tied", copy.deepcopy(causal))
    tied.model.lm_head.weight = tied.model.model.embed_tokens.weight
    assert size - weights_bytes(tied) == causal.lm_head.weight.numel() * 4


def test_a_second_executor_has_the_weights_of_the_first(small: LoadedModel) -> None:
    size = weights_bytes(small)
    first, second = (FusedExecutor(small, kv_tokens=64, max_running=2).decoder._layers[1].qkv for _ in range(2))
    assert first.data_ptr() == second.data_ptr()
    assert first.shape == second.shape
    assert weights_bytes(small) == size


# -- starting


def tight(monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> list[int]:
    """Executors with more than ``most_tokens`` of KV cannot be built; what was tried."""
    tried = []

    def build(model: LoadedModel, config: SchedulerConfig) -> Any:
        tried.append(config.kv_tokens)
        if config.kv_tokens > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")
        return build_executor(model, config)

    monkeypatch.setattr(engine.executors, "build_executor", build)
    return tried


def test_it_starts_with_less_where_the_memory_cannot_be_had_and_says_so(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = plan_memory(small, CONFIG)
    tried = tight(monkeypatch, 1500)
    said: list[str] = []
    executor, config, got = start_executor(small, replace(CONFIG, kv_tokens=memory.kv_tokens), memory, said.append)
    assert tried == [2048, 1840, 1648, 1472]
    assert config.kv_tokens == got.kv_tokens == executor.kv_tokens == 1472
    assert len(said) == 3
    assert said[0].startswith("memory for 2,048 tokens of KV cannot be had (CUDA out of memory. Tried to allocate")
    assert "trying 1,840" in said[0]


def test_what_an_executor_before_has_left_is_given_back_before_it_starts(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = plan_memory(small, CONFIG)
    tried = tight(monkeypatch, 0)
    left = [1]

    def free(device: torch.device) -> None:
        if left:
            assert not tried
            left.clear()
            tight(monkeypatch, 1 << 30)

    monkeypatch.setattr(engine.executors, "free_unused", free)
    _, _, got = start_executor(small, replace(CONFIG, kv_tokens=memory.kv_tokens), memory)
    assert got.kv_tokens == memory.kv_tokens


def test_it_refuses_where_not_even_one_sequence_fits(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = plan_memory(small, CONFIG)
    tried = tight(monkeypatch, 100)
    with pytest.raises(DeviceMemoryError, match=r"cannot be started: CUDA out of memory. Tried.*KV memory .* weights"):
        start_executor(small, replace(CONFIG, kv_tokens=memory.kv_tokens), memory, lambda text: None)
    assert min(tried) >= 512


def test_what_was_asked_for_is_not_made_less(small: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = plan_memory(small, CONFIG, kv_tokens=2048)
    tried = tight(monkeypatch, 1500)
    with pytest.raises(DeviceMemoryError):
        start_executor(small, replace(CONFIG, kv_tokens=2048), memory, lambda text: None)
    assert tried == [2048]


def test_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    monkeypatch.setattr("engine.models._load_shape", fail)
    with pytest.raises(DeviceMemoryError, match=r"^the weights do not fit: CUDA out of memory. Tried.*2.00 GiB.$"):
        load_model("shape:tiny", device="cpu")


# -- the largest steps


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"max_prefill_tokens": 128}, (128, 128, 4)),
        ({"max_prefill_tokens": 24, "max_running": 40}, (24, 40, 40)),
        ({"max_prefill_tokens": 128, "max_rows": 2, "chunk_tokens": 300}, (300, 300, 2)),
        ({"max_prefill_tokens": 2048}, (512, 2048, 4)),
    ],
)
def test_the_largest_steps_run_over_one_block(
    small: LoadedModel, settings: dict[str, Any], tokens: tuple[int, ...]
) -> None:
    config = replace(CONFIG, **settings)
    executor = FusedExecutor(small, kv_tokens=16, max_running=config.max_running, max_rows=config.rows)
    for step, expected in zip(largest_steps(small, config), tokens, strict=True):
        assert sum(chunk.tokens for chunk in step.plan.chunks) == expected
        assert len(executor.execute(step.plan, step.states).tokens) == len(step.plan.chunks)


class Gpu:
    """What a GPU would say of its memory: weights and 7 MB of others, and what steps and graphs leave behind."""

    def __init__(self, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, step: int = 0) -> None:
        self.used = weights_bytes(model) + (7 << 20)
        self.captured: list[int] = []
        execute = FusedExecutor.execute
        steps = iter((step, 0, 0))

        def leave(executor: FusedExecutor, plan: Any, states: Any) -> Any:
            self.used += next(steps)
            return execute(executor, plan, states)

        monkeypatch.setattr(FusedExecutor, "execute", leave)
        monkeypatch.setattr(DecodeSteps, "capture", self.capture)
        monkeypatch.setattr("engine.executors.probe.used_bytes", lambda device: (self.used, 1 << 30))

    def capture(self, size: int) -> None:
        self.used += (0 if self.captured else 50_000_000) + 1_000_000 + size * 20_000
        self.captured.append(size)


@pytest.mark.parametrize("rows", [1, 2, 40, 100])
def test_what_steps_and_graphs_leave_behind_is_what_they_need(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    gpu = Gpu(small, monkeypatch, step=9_000_000)
    sizes = graph_sizes(rows)
    needs = measured_needs(small, replace(CONFIG, max_running=rows, max_prefill_tokens=64, graph_rows=sizes))
    assert needs.step == 9_000_000 - 16 * 256
    assert needs.other == 7 << 20
    # three graphs stand for all
    assert gpu.captured == sorted({sizes[0], sizes[-1], sizes[max(0, len(sizes) - 2)]}, reverse=True)
    assert needs.graphs == 50_000_000 + sum(1_000_000 + size * 20_000 for size in sizes)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(1, 2), (2, 8, 64)])
def test_graphs_of_any_sizes_are_measured(sizes: tuple[int, ...]) -> None:
    """Smaller ones than the rows of a step, and larger ones."""
    model = load_model("shape:tiny", device="cuda")
    needs = measured_needs(model, replace(CONFIG, max_running=16, max_prefill_tokens=64, graph_rows=sizes))
    assert needs.graphs > 0


def test_a_step_that_does_not_fit_without_any_kv_is_refused_with_the_numbers(
    small: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gpu(small, monkeypatch)

    def fail(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(FusedExecutor, "execute", fail)
    with pytest.raises(DeviceMemoryError, match=r"0.01 GiB of 1.00 GiB are in use, weights 0.00 GiB; a step of 64"):
        measured_needs(small, replace(CONFIG, max_prefill_tokens=64))


@pytest.mark.gpu
@pytest.mark.whole_gpu
@pytest.mark.parametrize("max_rows", [64, 256])
def test_the_pool_fills_the_gpu_to_within_five_percent(max_rows: int) -> None:
    """Beside the pool the largest steps run, and what is in use then is the share that was to be used."""
    model = load_model("shape:smollm2-135m", device="cuda")
    config = SchedulerConfig(
        max_running=4096,
        max_rows=max_rows,
        max_prefill_tokens=4096,
        block_tokens=16,
        overlap=True,
        graph_rows=graph_sizes(max_rows),
    )
    memory = plan_memory(model, config)
    print(memory)
    print("estimated", estimated_needs(model, config, used_bytes(model.device)[0]))
    assert memory.measured
    assert memory.kv_tokens < config.max_running * model.context_tokens
    executor, _, got = start_executor(model, replace(config, kv_tokens=memory.kv_tokens), memory)
    assert isinstance(executor, FusedExecutor)
    assert got.kv_tokens == memory.kv_tokens
    for step in largest_steps(model, config, block=got.kv_tokens // config.block_tokens - 1):
        executor.execute(step.plan, step.states)
    torch.cuda.synchronize()
    pool = sum(tensor.nbytes for tensor in (*executor.cache.keys, *executor.cache.values))
    used, total = used_bytes(model.device)
    possible = memory.utilization * total - (used - pool)
    print(f"pool {pool / GIB:.2f} GiB, possible {possible / GIB:.2f} GiB, in use {used / total:.1%}")
    assert abs(pool - possible) <= 0.05 * possible
    assert pool == memory.kv_bytes


@pytest.mark.gpu
def test_a_memory_that_the_gpu_has_not_is_refused() -> None:
    model = load_model("shape:tiny", device="cuda")
    with pytest.raises(DeviceMemoryError) as refused:
        plan_memory(model, SchedulerConfig(max_running=16), kv_tokens=10**10)
    assert NUMBERS.search(str(refused.value))


@pytest.mark.gpu
@pytest.mark.whole_gpu
def test_where_others_take_the_memory_after_the_plan_it_starts_with_less() -> None:
    model = load_model("shape:smollm2-135m", device="cuda")
    free_unused(model.device)
    config = SchedulerConfig(max_running=4096, max_rows=64, block_tokens=64)
    memory = plan_memory(model, config)
    taken = torch.empty(int(0.2 * torch.cuda.mem_get_info()[1]), dtype=torch.int8, device="cuda")
    said: list[str] = []
    try:
        executor, config, got = start_executor(model, replace(config, kv_tokens=memory.kv_tokens), memory, said.append)
    finally:
        del taken
    assert said
    assert got.kv_tokens == config.kv_tokens < memory.kv_tokens
    del executor
    free_unused(model.device)
