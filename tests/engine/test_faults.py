"""Steps that fail: who ends with what, who goes on with the right tokens, and that nobody waits for ever."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faults import DEVICE_LOST, OUT_OF_MEMORY, Faults, Faulty, at, device_lost, out_of_memory

from core.engine import InferenceEngine
from engine.errors import DeviceError, GenerationError
from engine.executors import FusedExecutor, PaddedExecutor, PagedExecutor, plan_memory, start_executor
from engine.faults import free_unused, is_device_lost, is_out_of_memory
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel, load_model, loaded
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler

TIGHT = {"kv_pool": "paged", "kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {"kv_tokens": 1024, "block_tokens": 4},
    "tight": TIGHT,
    "swap": {**TIGHT, "preemption": "swap"},
    "mixed": {**TIGHT, "phase": "mixed", "chunk_tokens": 12},
    "prefix": {"kv_tokens": 160, "block_tokens": 4, "prefix_cache": True, "phase": "mixed", "chunk_tokens": 20},
    "private": {"kv_pool": "contiguous", "kv_tokens": 200, "block_tokens": 4},
}
KINDS = ["padded", "paged", "fused"]


def executor_of(kind: str, model: LoadedModel, config: SchedulerConfig) -> Any:
    if kind == "padded":
        return PaddedExecutor(model, max_running=config.max_running, overlap=config.overlap)
    made: dict[str, Any] = {
        "kv_tokens": config.capacity_tokens, "max_running": config.max_running, "block_tokens": config.block_tokens,
        "kv_pool": config.pool,
    }  # fmt: skip
    return FusedExecutor(model, **made) if kind == "fused" else PagedExecutor(model, overlap=config.overlap, **made)


class World:
    """A loop over an executor that fails, and what its requests were told."""

    def __init__(self, model: LoadedModel, kind: str, faults: Faults, **settings: Any) -> None:
        layout = "padded" if kind == "padded" else "paged"
        self.config = SchedulerConfig.from_dict({"context_tokens": model.context_tokens, "layout": layout, **settings})
        self.scheduler = Scheduler(self.config)
        self.executor = Faulty(executor_of(kind, model, self.config), faults)
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, TokenOutput] = {}
        memory = plan_memory(model, self.config, kv_tokens=self.config.kv_tokens)
        self.loop = EngineLoop(self.scheduler, self.executor, listener=self.hear, memory=memory)

    def hear(self, output: TokenOutput) -> None:
        assert output.request_id not in self.ends, "news of a request that has ended"
        if output.token_id is not None:
            self.tokens.setdefault(output.request_id, []).append(output.token_id)
        if output.finish_reason:
            self.ends[output.request_id] = output

    def reasons(self) -> dict[str, str]:
        return {name: end.finish_reason for name, end in self.ends.items()}

    def assert_clean(self) -> None:
        """Nothing is left of anybody, in the scheduler or on the device, when one more request has been served."""
        assert self.scheduler.idle
        assert not self.loop.in_flight
        assert not self.loop._live
        assert not self.loop._failed
        self.executor.faults = lambda place, count: None
        self.loop.run([request("last", [7, 8, 9, 10, 11], 3), request("the very last", [1, 2], 2)])
        assert self.ends["last"].finish_reason == "length"
        self.loop.run([request("after all", [1], 1)])
        pool: Any = self.scheduler.pool
        if self.config.pool == "paged":
            assert pool.free_blocks == pool.capacity_blocks
        inner = self.executor.executor
        assert len(inner.host_copies) == 0
        held = {"PaddedExecutor": "_slot_of", "FusedExecutor": "_places"}.get(type(inner).__name__)
        assert held is None or len(getattr(inner, held)) <= 1
        counters = self.scheduler.counters
        assert counters.submitted == counters.finished + counters.aborted + counters.rejected


def request(name: str, prompt: list[int], output: int) -> Request:
    return Request(name, 0, len(prompt), output, output, prompt_token_ids=tuple(prompt))


def workload() -> list[Request]:
    source = random.Random(3)
    prompts = [[source.randrange(10, 512) for _ in range(length)] for length in (3, 17, 17, 5, 33, 48, 5, 20)]
    prompts[3][:4] = prompts[6][:4]
    return [request(str(place), prompt, 6 + place * 5 % 9) for place, prompt in enumerate(prompts)]


def assert_right(both: Any, world: World, requests: list[Request]) -> None:
    """What each request got are its first tokens: all of them, unless it ended with an error."""
    for asked in requests:
        given = world.tokens.get(asked.id, [])
        expected = both.greedy(list(asked.prompt_token_ids or ()), asked.max_tokens)
        assert given[: len(expected)] == expected[: len(given)]
        if world.ends[asked.id].finish_reason == "length":
            assert len(given) == asked.max_tokens


def model_of(both: Any, device: str = "cpu") -> LoadedModel:
    return loaded("small", copy.deepcopy(both.ours.model).to(device))


def test_errors_are_told_apart() -> None:
    assert is_out_of_memory(out_of_memory())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_device_lost(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert is_device_lost(device_lost())
    assert is_device_lost(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert is_device_lost(torch.AcceleratorError("an illegal memory access was encountered"))
    assert not is_device_lost(RuntimeError("the size of tensor a (3) must match"))
    assert not is_out_of_memory(RuntimeError("the size of tensor a (3) must match"))


# -- too little memory


@pytest.mark.parametrize("place", ["work", "result"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_step_that_fails_once_is_run_again_and_nobody_notices(
    reference: Callable[[str], Any], kind: str, overlap: bool, step: int, place: str
) -> None:
    both = reference("qwen2")
    world = World(model_of(both), kind, at(place, step), overlap=overlap, kv_tokens=1024, block_tokens=4)
    requests = workload()
    world.loop.run(requests)
    assert world.executor.raised == 1
    if place == "work" or not (overlap and kind == "fused"):
        assert set(world.reasons().values()) == {"length"}
    assert_right(both, world, requests)
    world.assert_clean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("parts", PARTS)
def test_a_step_that_fails_twice_is_run_in_pieces(
    reference: Callable[[str], Any], kind: str, overlap: bool, parts: str
) -> None:
    if kind == "padded" and parts not in ("plain", "swap"):
        pytest.skip("not a composition of this layout")
    both = reference("llama")
    # the second step, whole and again
    world = World(model_of(both), kind, at("work", 1, 2), overlap=overlap, **PARTS[parts])
    requests = workload()
    world.loop.run(requests)
    assert world.executor.raised == 2
    assert set(world.reasons().values()) == {"length"}
    assert_right(both, world, requests)
    world.assert_clean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_for_which_there_is_no_memory_ends_its_requests_and_no_others(
    reference: Callable[[str], Any], kind: str, overlap: bool
) -> None:
    both = reference("qwen2")
    state = {"failing": False}
    world = World(
        model_of(both), kind, lambda place, count: out_of_memory() if place == "work" and state["failing"] else None,
        overlap=overlap, kv_tokens=1024, block_tokens=4, max_running=4,
    )  # fmt: skip
    launch = world.executor.launch
    failed: list[str] = []

    def launch_some(plan: Any, states: Any) -> Any:
        """The prompts after the first ones cannot be computed."""
        members = [chunk.sequence.id for chunk in plan.chunks]
        state["failing"] = plan.index > 0 and any(chunk.start == 0 for chunk in plan.chunks) and not (
            failed and members != failed
        )  # fmt: skip
        if state["failing"]:
            failed[:] = members
        return launch(plan, states)

    world.executor.launch = launch_some  # type: ignore[method-assign]
    requests = workload()
    world.loop.run(requests)
    assert failed
    for name, end in world.ends.items():
        assert (end.finish_reason == "error") == (name in failed)
        if name in failed:
            assert end.detail.startswith(f"memory is too short for the step: {OUT_OF_MEMORY} (KV memory ")
            assert "weights" in end.detail
            assert name not in world.tokens
    assert (world.loop.errors, world.loop.last_error) == (len(failed), world.ends[failed[-1]].detail)
    assert_right(both, world, requests)
    assert world.scheduler.counters.aborted == len(failed)
    state["failing"] = False
    world.executor.launch = launch  # type: ignore[method-assign]
    world.assert_clean()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prompt_that_was_not_computed_is_shared_with_nobody(reference: Callable[[str], Any], overlap: bool) -> None:
    both = reference("qwen2")
    world = World(
        model_of(both), "paged", lambda place, count: out_of_memory() if place == "work" else None, overlap=overlap,
        kv_tokens=512, block_tokens=4, prefix_cache=True, max_prefill_tokens=8,
    )  # fmt: skip
    prompt = list(range(30, 53))
    world.loop.run([request("lost", prompt, 4)])
    assert world.reasons() == {"lost": "error"}
    world.executor.faults = lambda place, count: None
    world.loop.run([request("next", prompt, 4)])
    assert world.scheduler.counters.prefix_hit_tokens == 0
    assert_right(both, world, [request("next", prompt, 4)])


@pytest.mark.parametrize("seed", range(24))
def test_wherever_memory_is_short_tokens_are_right_and_nothing_is_left(
    reference: Callable[[str], Any], seed: int
) -> None:
    source = random.Random(seed)
    kind = source.choice(KINDS)
    parts = source.choice(["plain", "swap"] if kind == "padded" else list(PARTS))
    rate = source.choice([0.05, 0.3, 0.7])
    # static batches neither swap nor mix
    closed = ["static"] if parts in ("plain", "tight", "private") else []
    policy = source.choice(["fcfs", "sjf-bucket", "srpt", *closed])
    both = reference("qwen2")
    world = World(
        model_of(both), kind, lambda place, count: out_of_memory() if source.random() < rate else None,
        overlap=source.random() < 0.5, policy=policy, **PARTS[parts],
    )  # fmt: skip
    requests = workload()
    world.loop.run(requests)
    assert world.executor.raised or rate < 0.3
    assert set(world.reasons()) == {asked.id for asked in requests}
    assert set(world.reasons().values()) <= {"length", "error"}
    assert_right(both, world, requests)
    world.assert_clean()


# -- a device that is lost


@pytest.mark.parametrize("place", ["work", "result"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", [0, 4])
def test_when_the_device_is_lost_every_request_ends_with_an_error(
    reference: Callable[[str], Any], kind: str, overlap: bool, step: int, place: str
) -> None:
    both = reference("qwen2")
    faults = lambda reached, count: device_lost() if reached == place and count >= step else None  # noqa: E731
    world = World(model_of(both), kind, faults, overlap=overlap, kv_tokens=1024, block_tokens=4, max_running=3)
    requests = workload()
    with pytest.raises(DeviceError, match=f"the device has failed: {DEVICE_LOST}$"):
        world.loop.run(requests)
    assert set(world.reasons()) == {asked.id for asked in requests}
    assert "error" in world.reasons().values()
    for end in world.ends.values():
        if end.finish_reason == "error":
            assert end.detail == f"the device has failed: {DEVICE_LOST}"
    assert_right(both, world, requests)
    assert world.scheduler.idle
    assert not world.loop.in_flight
    counters = world.scheduler.counters
    assert counters.submitted == 8 == counters.finished + counters.aborted
    for call in (world.loop.step, lambda: world.loop.submit(requests[0]), lambda: world.loop.run(requests)):
        with pytest.raises(DeviceError, match=DEVICE_LOST):
            call()
    world.loop.abort("0")
    world.loop.abort_all()


def test_what_comes_in_while_the_device_is_being_lost_ends_too(reference: Callable[[str], Any]) -> None:
    model = model_of(reference("qwen2"))
    late = request("late", [5, 6, 7], 3)

    def faults(place: str, count: int) -> Exception | None:
        if place == "work" and count == 2:
            world.loop.submit(late)
            return device_lost()
        return None

    world = World(model, "paged", faults, kv_tokens=1024)
    with pytest.raises(DeviceError):
        world.loop.run(workload())
    assert world.reasons()["late"] == "error"


@pytest.mark.parametrize("overlap", [False, True])
def test_memory_that_is_short_before_the_device_is_lost_changes_nothing(
    reference: Callable[[str], Any], overlap: bool
) -> None:
    def faults(place: str, count: int) -> Exception | None:
        return {3: out_of_memory(), 4: device_lost()}.get(count) if place == "work" else None

    world = World(model_of(reference("qwen2")), "fused", faults, overlap=overlap, kv_tokens=1024)
    with pytest.raises(DeviceError):
        world.loop.run(workload())
    assert set(world.reasons().values()) <= {"length", "error"}
    assert len(world.ends) == 8


# -- the front door


def broken_engine(faults: Faults, **settings: Any) -> InferenceEngine:
    engine = InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096, **settings)
    engine.loop.executor = Faulty(engine.loop.executor, faults)
    return engine


@pytest.mark.parametrize("overlap", [False, True])
def test_generate_gives_what_there_was_and_refuses_the_next_call(overlap: bool) -> None:
    engine = broken_engine(at("work", 5, error=device_lost), overlap=overlap)
    short, long = engine.generate([[1, 2, 3], [4, 5]], max_tokens=30)
    assert {short.finish_reason, long.finish_reason} == {"error"}
    assert 0 < len(short.token_ids) < 30
    assert DEVICE_LOST in short.error
    with pytest.raises(DeviceError, match=DEVICE_LOST):
        engine.generate([1, 2, 3])
    with pytest.raises(DeviceError, match=DEVICE_LOST):
        next(engine.stream_generate([1, 2, 3]))
    assert engine.scheduler.idle


def test_a_request_that_memory_does_not_suffice_for_is_told_and_the_next_is_served() -> None:
    engine = broken_engine(at("work", 3, 4, 5))
    stream = engine.stream_generate([1, 2, 3], max_tokens=10)
    assert [next(stream) for _ in range(3)]
    with pytest.raises(GenerationError, match="memory is too short"):
        next(stream)
    assert engine.generate([1, 2, 3], max_tokens=10)[0].finish_reason == "length"


@pytest.mark.parametrize("overlap", [False, True])
def test_no_stream_waits_for_ever(overlap: bool) -> None:
    engine = broken_engine(at("work", 9, error=device_lost), overlap=overlap)
    ends: dict[int, Exception] = {}

    def consume(place: int) -> None:
        try:
            for _ in engine.stream_generate([place + 1, place + 2], max_tokens=200):
                pass
        except (GenerationError, DeviceError) as error:
            ends[place] = error

    threads = [threading.Thread(target=consume, args=(place,), daemon=True) for place in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ends) == 24
    assert all(DEVICE_LOST in str(error) for error in ends.values())


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", ["paged", "fused"])
def test_on_a_gpu_wherever_memory_is_short_tokens_are_those_of_an_undisturbed_run(
    reference: Callable[[str], Any], kind: str, parts: str, overlap: bool
) -> None:
    model = model_of(reference("qwen2"), "cuda")
    requests = workload()
    clean = World(model, kind, lambda place, count: None, overlap=overlap, **PARTS[parts])
    clean.loop.run(requests)
    # pieces are computed by other kernels: a near-tie may go the other way in one request
    for seed in range(3):
        source = random.Random(seed)

        def faults(place: str, count: int, source: random.Random = source) -> Exception | None:
            return out_of_memory() if place == "work" and source.random() < 0.3 else None

        world = World(model, kind, faults, overlap=overlap, **PARTS[parts])
        world.loop.run(requests)
        assert world.executor.raised
        pairs = [(world.tokens.get(asked.id, []), clean.tokens[asked.id]) for asked in requests]
        same = sum(found == expected[: len(found)] for found, expected in pairs)
        assert same >= len(requests) - 1
        world.assert_clean()


@pytest.mark.gpu
@pytest.mark.whole_gpu
def test_on_a_gpu_that_is_full_requests_go_on_in_pieces_or_end_with_the_numbers() -> None:
    """All but a little of the memory is taken before the prompts come: those that fit in pieces do, and all end."""
    model = load_model("shape:smollm2-135m", device="cuda")
    config = SchedulerConfig(max_running=64, max_prefill_tokens=8192, kv_tokens=65_536, block_tokens=16, overlap=True,
                             context_tokens=model.context_tokens)  # fmt: skip
    executor, config, memory = start_executor(model, config, plan_memory(model, config, kv_tokens=65_536))
    ends: dict[str, TokenOutput] = {}
    tokens: dict[str, list[int]] = {}

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            tokens.setdefault(output.request_id, []).append(output.token_id)
        if output.finish_reason:
            ends[output.request_id] = output

    loop = EngineLoop(Scheduler(config), executor, listener=hear, memory=memory)
    source = random.Random(1)
    requests = [request(str(n), [source.randrange(40_000) for _ in range(600)], 8) for n in range(48)]
    # what kernels need memory for when they are first used is there
    loop.run([request("first", list(range(600)), 4)])
    free_unused(model.device)
    free = torch.cuda.mem_get_info()[0]
    taken = torch.empty(free - (64 << 20), dtype=torch.int8, device="cuda")
    torch.cuda.empty_cache()
    attempts = 0
    compute = executor._compute  # type: ignore[attr-defined]

    def counted(rows: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return compute(rows)

    executor._compute = counted  # type: ignore[attr-defined]
    before = loop.progress().steps
    loop.run(requests)
    print(f"{attempts} computations, {loop.errors} errors; {loop.last_error}")
    assert set(ends) == {"first", *(asked.id for asked in requests)}
    errors = [end for end in ends.values() if end.finish_reason == "error"]
    assert all("CUDA out of memory" in end.detail and "GiB are free" in end.detail for end in errors)
    # steps were run in pieces, or could not be run
    assert attempts > loop.progress().steps - before
    del taken
    free_unused(model.device)
    again = [request(f"again {n}", [n + 1, n + 2, n + 3], 8) for n in range(4)]
    loop.run(again)
    assert all(ends[asked.id].finish_reason == "length" for asked in again)
    assert loop.scheduler.idle
