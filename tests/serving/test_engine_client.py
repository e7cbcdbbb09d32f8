"""The engine in a process of its own: news reach who waits for them, and so does its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError
from scheduler.request import Request, SamplingParams
from serving.engine_client import EngineClient, EngineDeadError, OutputStream
from serving.messages import EngineSettings, Snapshot

EMULATED = EngineSettings(
    emulate="h100-qwen2.5-0.5b", scheduler={"policy": "fcfs", "max_running": 8, "kv_tokens": 65536}
)


def request(name: str, tokens: int = 20, prompt: int = 30) -> Request:
    ids = tuple(range(10, 10 + prompt))
    return Request(name, 0, prompt, tokens, prompt_token_ids=ids, sampling=SamplingParams(ignore_eos=True))


class Shared:
    """An engine, and the event loop that it belongs to."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.engine: EngineClient = runner.run(EngineClient.start(EMULATED))

    def run(self, work: Callable[[EngineClient], Awaitable[None]]) -> None:
        self._runner.run(asyncio.wait_for(work(self.engine), 60))


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """For several tests: to start one takes seconds."""
    with asyncio.Runner() as runner:
        found = Shared(runner)
        yield found
        runner.run(found.engine.close())


async def tokens_of(stream: OutputStream) -> list[int]:
    return [output.token_id async for output in stream if output.token_id is not None]


async def until(true: Callable[[Snapshot], bool], engine: EngineClient) -> Snapshot:
    while not true(snapshot := await engine.snapshot()):
        await asyncio.sleep(0.01)
    return snapshot


def test_what_is_handed_in_comes_back_and_made_up_tokens_depend_on_the_request_alone(shared: Shared) -> None:
    async def work(engine: EngineClient) -> None:
        before = (await engine.snapshot()).counters["finished"]
        together = await asyncio.gather(*map(tokens_of, engine.submit([request(f"r{i}") for i in range(20)])))
        assert [len(tokens) for tokens in together] == [20] * 20
        (alone,) = engine.submit([request("r7")])
        assert await tokens_of(alone) == together[7] != together[8]
        snapshot = await engine.snapshot()
        assert (snapshot.running, snapshot.waiting, snapshot.kv_tokens) == (0, 0, 0)
        assert snapshot.counters["finished"] - before == 21
        assert 0 < snapshot.device_ns <= snapshot.busy_ns <= snapshot.now_ns
        assert engine.in_flight == 0

    shared.run(work)


def test_an_emulated_engine_computes_on_one_thread_unless_it_is_told_otherwise(shared: Shared) -> None:
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")
    environment = Path(f"/proc/{shared.engine.pid}/environ").read_text().split("\0")
    assert f"OPENBLAS_NUM_THREADS={threads}" in environment


def test_who_is_not_wanted_any_more_frees_its_memory(shared: Shared) -> None:
    async def work(engine: EngineClient) -> None:
        before = (await engine.snapshot()).counters["aborted"]
        streams = engine.submit([request(f"r{i}", tokens=5000) for i in range(12)])
        await streams[0].news()
        busy = await until(lambda s: len(s.waiting_lengths) == 4, engine)
        assert (busy.running, busy.waiting, len(busy.lengths)) == (8, 4, 8)
        assert busy.kv_tokens >= 8 * 30
        assert busy.kv_reserved_tokens >= 0
        engine.cancel(streams)
        left = await until(lambda s: s.running == 0, engine)
        assert (left.waiting, left.kv_tokens, left.counters["aborted"] - before) == (0, 0, 12)

    shared.run(work)


def test_what_has_not_ended_is_aborted_when_it_is_closed() -> None:
    async def run() -> None:
        engine = await EngineClient.start(EMULATED)
        (stream,) = engine.submit([request("long", tokens=5000)])
        await stream.news()
        await asyncio.gather(engine.close(), engine.close())
        reasons = [output.finish_reason async for output in stream]
        assert reasons[-1] == "aborted"
        assert engine.failure == "the server is shutting down"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EngineSettings(emulate="h100-nothing"), "neither a run folder nor"),
        (EngineSettings(emulate="h100-qwen-7b", scheduler={"policy": "sjff"}), "sjff"),
        (EngineSettings(emulate="h100-qwen-7b", scheduler={"max_running": 0}), "max_running is 0; must be >= 1"),
    ],
)
def test_an_engine_that_cannot_be_made_says_why(settings: EngineSettings, message: str) -> None:
    async def run() -> None:
        await EngineClient.start(settings)

    with pytest.raises(EngineError, match=message):
        asyncio.run(run())


def test_everybody_hears_at_once_that_the_engine_was_killed(shared: Shared) -> None:
    """The last test: there is no engine after it."""

    async def work(engine: EngineClient) -> None:
        streams = engine.submit([request(f"r{i}", tokens=5000) for i in range(12)])
        await streams[0].news()
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.gather(*map(tokens_of, streams), return_exceptions=True)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert await engine.gone() == "the engine ended, killed by signal 9"
        with pytest.raises(EngineDeadError, match="signal 9"):
            engine.submit([request("late")])
        with pytest.raises(EngineDeadError, match="signal 9"):
            await engine.snapshot()

    shared.run(work)
