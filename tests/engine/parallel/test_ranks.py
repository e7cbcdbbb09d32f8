"""A model over two processes serves what transformers does; and what is left when one of them is gone."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import divided_models
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from served import TIGHT, assert_greedy, greedy, serve

from engine.draws import TokenLogprobs
from engine.errors import DeviceError, GenerationError, ModelError, RankError
from engine.executors import FusedExecutor, build_executor, plan_memory
from engine.inference import InferenceEngine
from engine.loop import TokenOutput
from engine.models import LoadedModel
from engine.parallel.loading import divide, load_divided_model, rank_devices
from engine.parallel.workers import _Watch
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.request import Grammar, SamplingParams

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen2", "gemma2")


def two_ranks(family: str) -> LoadedModel:
    return divide(partial(divided_models.build, family=family), [CPU, CPU])


@pytest.fixture(scope="module")
def divided() -> Iterator[dict[str, LoadedModel]]:
    """A model of each family over two processes; they are started together."""
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        models = dict(zip(FAMILIES, pool.map(two_ranks, FAMILIES), strict=True))
    yield models
    pids = [pid for model in models.values() for pid in workers_of(model).pids]
    workers_of(models["qwen2"]).close()
    # the others end with the last that refers to them
    models.clear()
    gc.collect()
    assert not any(map(is_there, pids))


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    return {family: greedy(divided_models.build(CPU, family)) for family in FAMILIES}


def workers_of(model: LoadedModel) -> Any:
    assert model.group is not None
    return model.group.workers


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**TIGHT, "preemption": "swap", "overlap": True},
        {**TIGHT, "phase": "mixed", "chunk_tokens": 12, "overlap": True},
        {"prefix_cache": True, "block_tokens": 4, "phase": "mixed", "chunk_tokens": 20, "graph_mixed": (8, 20)},
        {"kv_pool": "contiguous", "kv_tokens": 200, "block_tokens": 4, "max_rows": 2},
    ],
    ids=["plain", "swap", "mixed", "prefix", "contiguous"],
)
def test_greedy_tokens_are_transformers(
    divided: dict[str, LoadedModel], expected: Any, family: str, settings: dict[str, Any]
) -> None:
    tokens, scheduler, _ = serve(divided[family], **settings)
    assert_greedy(tokens, expected[family])
    counters = scheduler.counters
    assert not settings.get("prefix_cache") or counters.prefix_hit_tokens
    assert settings.get("preemption") != "swap" or counters.swapped_in
    assert settings.get("phase") != "mixed" or counters.steps_mixed


def test_an_abort_in_flight_leaves_the_others_alone(divided: dict[str, LoadedModel], expected: Any) -> None:
    tokens, scheduler, ends = serve(divided["qwen2"], abort="5", overlap=True, **TIGHT)
    assert scheduler.counters.aborted == 1
    assert ends["5"] == "aborted"
    assert_greedy(tokens, expected["qwen2"], without=(5,))


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.8, seed=4), SamplingParams(temperature=1.2, top_k=20, top_p=0.9, seed=4)]
)
def test_sampled_tokens_are_those_of_one_rank(divided: dict[str, LoadedModel], sampling: SamplingParams) -> None:
    alone, _, _ = serve(divided_models.build(CPU, "qwen2"), sampling)
    found, _, _ = serve(divided["qwen2"], sampling, overlap=True, **TIGHT)
    assert found == alone


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.9, repetition_penalty=1.3, frequency_penalty=1.0, logit_bias=((9, 4.0),), seed=4),
        SamplingParams(temperature=1.2, grammar=Grammar("regex", "[a-d]+(x[0-9]{30})+"), logprobs=2, seed=4),
    ],
    ids=["penalties", "grammar"],
)
def test_what_requests_ask_for_is_the_same_in_every_rank(
    divided: dict[str, LoadedModel], sampling: SamplingParams
) -> None:
    """Each rank reads the tokens that it has drawn itself where the host does not send them."""
    tokenizer = byte_tokenizer()
    told: list[dict[str, list[TokenLogprobs]]] = []

    def serve_with(model: LoadedModel, **settings: Any) -> list[list[int]]:
        heard: dict[str, list[TokenLogprobs]] = {}
        told.append(heard)

        def note(output: TokenOutput) -> None:
            assert (output.logprobs is None) == (sampling.logprobs is None)
            if output.logprobs is not None:
                heard.setdefault(output.request_id, []).append(output.logprobs)

        return serve(model, sampling, on_token=note, tokenizer=tokenizer, **settings)[0]

    alone = serve_with(divided_models.build(CPU, "qwen2"))
    assert serve_with(divided["qwen2"], overlap=True, **TIGHT) == alone
    one, two = told
    assert one.keys() == two.keys()
    for name, found in two.items():
        assert [p.rank for p in found] == [p.rank for p in one[name]]
        assert [p.logprob for p in found] == pytest.approx([p.logprob for p in one[name]], abs=1e-4)
    if sampling.grammar is not None:
        assert all(set(tokenizer.decode(tokens)) <= set("abcdx0123456789") for tokens in alone)


def test_each_rank_holds_its_heads_of_the_kv(divided: dict[str, LoadedModel]) -> None:
    whole, half = divided_models.build(CPU, "llama"), divided["llama"]
    assert half.kv_bytes_per_token * 2 == whole.kv_bytes_per_token
    executor = FusedExecutor(half, kv_tokens=64, max_running=2)
    assert executor.cache.keys[0].shape == (4, 1, 16, 16)
    # of memory that both have, twice as many tokens
    limits = SchedulerConfig(max_running=1 << 30)
    assert plan_memory(half, limits).kv_tokens == 2 * plan_memory(whole, limits).kv_tokens


def test_an_executor_that_was_replaced_says_so(divided: dict[str, LoadedModel]) -> None:
    first = FusedExecutor(divided["llama"], kv_tokens=64, max_running=2)
    FusedExecutor(divided["llama"], kv_tokens=64, max_running=2)
    with pytest.raises(RankError, match="another executor"):
        workers_of(divided["llama"]).run(first._device, None)


def test_the_padded_layout_is_refused(divided: dict[str, LoadedModel]) -> None:
    with pytest.raises(ModelError, match="divided over 2 ranks runs in the paged layout, not in padded"):
        build_executor(divided["llama"], SchedulerConfig(layout="padded"))
    with pytest.raises(ConfigError, match="tp 2 needs the paged layout"):
        InferenceEngine("shape:tiny", tp=2, layout="padded", device="cpu")


def test_a_process_that_is_killed_ends_its_requests_with_an_error() -> None:
    engine = InferenceEngine("shape:tiny", tp=2, device="cpu", kv_tokens=4096, overlap=True)
    alone = InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096)
    prompts = [[1, 2, 3], [9, 8]]
    assert [r.token_ids for r in engine.generate(prompts, max_tokens=6)] == [
        r.token_ids for r in alone.generate(prompts, max_tokens=6)
    ]
    (pid,) = workers_of(engine.model).pids
    stream = engine.stream_generate([1, 2, 3], max_tokens=1000)
    next(stream)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(GenerationError, match=rf"rank 1 \(process {pid}\) ended unexpectedly, killed by SIGKILL"):
        list(stream)
    assert engine.scheduler.idle
    with pytest.raises(DeviceError, match="killed by SIGKILL"):
        engine.generate([1, 2, 3])
    engine.close()
    engine.close()
    assert not is_there(pid)


def test_who_waits_for_the_end_of_a_group_finds_it_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that hears of a killed rank and the one that closes may give the group up at the same time."""
    start, starting, abandoned = threading.Thread.start, threading.Event(), threading.Event()

    def slow_start(thread: threading.Thread) -> None:
        if thread.name == "group's end":
            starting.set()
            time.sleep(0.1)
        start(thread)

    watch = _Watch()
    watch.abort = abandoned.set
    hears = threading.Thread(target=watch.fail, args=("rank 1 ended",))
    monkeypatch.setattr(threading.Thread, "start", slow_start)
    hears.start()
    assert starting.wait(10)
    ending = watch.abandon()
    assert ending is not None
    ending.join(10)
    assert abandoned.is_set()
    hears.join(10)


def test_a_rank_that_cannot_load_its_share_says_why() -> None:
    build = partial(divided_models.build, family="llama")
    with pytest.raises(RankError, match=r"rank 1 .* failed: MemoryError: no room for the weights"):
        divide(build, [CPU, CPU], elsewhere=divided_models.fail_to_build)


def test_a_command_over_two_ranks_leaves_no_process_and_says_so(tmp_path: Path) -> None:
    """The workers inherit standard error: it is not at its end before they are."""
    command = [
        "bench.py", "--mode", "real", "--workload", "tour", "--requests", "3", "--model", "shape:tiny", "--device",
        "cpu", "--max-running", "2", "--kv-tokens", "4096", "--tp", "2", "--out", str(tmp_path / "run"), "--quiet",
    ]  # fmt: skip
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["tp"] == 2


def test_no_process_outlives_rank_0() -> None:
    script = """
import os, signal
from engine.parallel.loading import load_divided_model
model = load_divided_model("shape:tiny", 2, device="cpu")
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_devices_are_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_devices("cpu", 3) == [CPU] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="tp 2 needs 2 GPUs from cuda:0 on, and no CUDA device is available here"):
        rank_devices("cuda", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert rank_devices(None, 2) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert rank_devices("cuda:2", 2) == [torch.device("cuda:2"), torch.device("cuda:3")]
    with pytest.raises(ModelError, match="tp 4 needs 4 GPUs from cuda:1 on, and this machine has 4"):
        rank_devices("cuda:1", 4)


@pytest.mark.parametrize(
    ("name", "tp", "message"),
    [
        ("shape:qwen2.5-0.5b", 4, "its 14 query heads are not a multiple of 4"),
        ("shape:no-such", 2, "no-such"),
        ("shape:tiny", 0, "tp is 0; must be >= 1"),
    ],
)
def test_a_model_that_cannot_be_divided_starts_no_process(name: str, tp: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_divided_model(name, tp, device="cpu")
