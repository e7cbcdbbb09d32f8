"""The thread that serves an engine, and those who wait for it: in threads, in tasks, to the end, or not so long."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import DEVICE_LOST, Faulty, at, device_lost

from core.engine import DeviceError, EngineStoppedError, GenerationError, GenerationResult, InferenceEngine
from engine.loop import TokenOutput
from engine.serving import Mailbox
from scheduler.errors import PolicyError
from scheduler.scheduler import Scheduler

ROOT = Path(__file__).parents[2]
#: some seconds, if nobody cuts it short
LONG = 1500
#: how long ends are waited for that are to come at once
PATIENCE_S = 60


def make(**settings: Any) -> InferenceEngine:
    return InferenceEngine("shape:tiny", device="cpu", **{"kv_tokens": 4096, **settings})


@pytest.fixture(scope="module", params=[False, True], ids=["", "overlap"])
def engine(request: pytest.FixtureRequest) -> Iterator[InferenceEngine]:
    with make(overlap=request.param) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone() -> Callable[[tuple[int, ...], int], list[int]]:
    """The tokens of a prompt that nothing else is served beside."""
    engine = make(max_running=1)
    known: dict[tuple[int, ...], list[int]] = {}

    def tokens(prompt: tuple[int, ...], count: int) -> list[int]:
        if len(known.get(prompt, ())) < count:
            known[prompt] = engine.generate(prompt, max_tokens=count)[0].token_ids
        return known[prompt][:count]

    return tokens


def is_free(scheduler: Scheduler) -> bool:
    return scheduler.idle and scheduler.pool.free_blocks == scheduler.pool.capacity_blocks


def free(engine: InferenceEngine) -> bool:
    """Whether no memory is used: at the latest two plans after whatever has been told or aborted by now."""
    return any(engine.inspect(is_free) for _ in range(3))


def aborted(engine: InferenceEngine) -> int:
    return engine.inspect(lambda scheduler: scheduler.counters.aborted)


def threads_of_engines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "engine" or thread.name.startswith("step")]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do ``work`` in ``count`` threads, and raise what any of them does."""
    problems: list[BaseException] = []

    def guarded(place: int) -> None:
        try:
            work(place)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(place,), daemon=True) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    if problems:
        raise problems[0]


# -- many at once


def test_whoever_joins_and_leaves_the_others_tokens_are_what_they_are_alone(
    engine: InferenceEngine, alone: Callable[[tuple[int, ...], int], list[int]]
) -> None:
    """Threads and tasks generate and stream, are aborted or leave early, at random."""
    prompts = [tuple(range(n + 1, n + 2 + n % 5)) for n in range(8)]
    for prompt in prompts:
        alone(prompt, 40)

    def check(prompt: tuple[int, ...], result: GenerationResult, count: int) -> None:
        assert result.token_ids == alone(prompt, 40)[: len(result.token_ids)]
        assert len(result.token_ids) == count or result.finish_reason in ("aborted", "")

    def in_a_thread(place: int) -> None:
        source = random.Random(place)
        for turn in range(6):
            prompt, count = source.choice(prompts), source.randint(1, 40)
            match source.randrange(4):
                case 0:
                    check(prompt, engine.generate(prompt, max_tokens=count)[0], count)
                case 1:
                    some = source.sample(prompts, 3)
                    for asked, result in zip(some, engine.generate(some, max_tokens=count), strict=True):
                        check(asked, result, count)
                case 2:
                    with engine.stream_generate(prompt, max_tokens=count) as stream:
                        for _ in zip(range(source.randint(0, 20)), stream, strict=False):
                            pass
                    check(prompt, stream.result, count)
                case 3:
                    name = f"{place}-{turn}"
                    ender = threading.Timer(source.random() / 50, engine.abort, (name,))
                    ender.start()
                    check(prompt, engine.generate(prompt, max_tokens=count, request_id=name)[0], count)
                    ender.join()

    async def in_a_task(place: int) -> None:
        source = random.Random(100 + place)
        for _ in range(6):
            prompt, count = source.choice(prompts), source.randint(1, 40)
            if source.random() < 0.5:
                task = asyncio.create_task(engine.generate_async(prompt, max_tokens=count))
                if source.random() < 0.5:
                    await asyncio.sleep(source.random() / 50)
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    check(prompt, (await task)[0], count)
            else:
                seen: list[int] = []
                async with engine.stream_generate_async(prompt, max_tokens=count) as stream:
                    async for token, _ in stream:
                        seen.append(token)
                        if source.random() < 0.05:
                            break
                assert seen == alone(prompt, 40)[: len(seen)]

    async def tasks() -> None:
        await asyncio.gather(*(in_a_task(place) for place in range(6)))

    in_threads(8, lambda place: asyncio.run(tasks()) if place == 0 else in_a_thread(place))
    assert free(engine)
    counters = engine.inspect(lambda scheduler: replace(scheduler.counters))
    assert counters.submitted == counters.finished + counters.aborted
    assert counters.aborted > 0


def test_the_prompts_of_a_call_are_taken_up_together() -> None:
    with make(policy="fcfs") as engine:
        engine.generate([[n + 1, 2] for n in range(16)], max_tokens=4)
        steps = engine.inspect(lambda scheduler: (scheduler.counters.steps_prefill, scheduler.counters.steps_decode))
    assert steps == (1, 3)


def test_whoever_wants_the_whole_is_woken_once_and_a_stream_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: dict[str, int] = {}
    take = Mailbox.take

    def counting(mailbox: Mailbox, outputs: list[TokenOutput]) -> None:
        put = mailbox.put

        def counted(news: Any) -> None:
            woken[mailbox.name] = woken.get(mailbox.name, 0) + 1
            put(news)

        monkeypatch.setattr(mailbox, "put", counted)
        take(mailbox, outputs)
        monkeypatch.setattr(mailbox, "put", put)

    monkeypatch.setattr(Mailbox, "take", counting)
    with make() as engine:
        engine.generate([[1, 2], [3, 4]], max_tokens=20, request_id="whole")
        list(engine.stream_generate([1, 2], max_tokens=20, request_id="stream"))
    assert woken == {"whole": 1, "stream": 20}


def test_the_tasks_of_an_event_loop_are_told_in_one_call_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    async def together(engine: InferenceEngine) -> list[int]:
        nonlocal calls
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def counted(callback: Any, *args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += threading.current_thread().name == "engine"
            return call(callback, *args, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)

        async def one(place: int) -> int:
            return len([token async for token, _ in engine.stream_generate_async([place + 1, 2], max_tokens=50)])

        return await asyncio.gather(*(one(place) for place in range(8)))

    with make() as engine:
        assert asyncio.run(together(engine)) == [50] * 8
        steps = engine.inspect(lambda scheduler: scheduler.counters.steps_prefill + scheduler.counters.steps_decode)
    assert calls == steps < 8 * 50 // 2


# -- tasks


def test_tasks_get_what_threads_get(engine: InferenceEngine) -> None:
    prompts = [[n + 1, n + 2] for n in range(5)]
    expected = [result.token_ids for result in engine.generate(prompts, max_tokens=8)]

    async def both() -> tuple[list[list[int]], list[int], str]:
        results = await engine.generate_async(prompts, max_tokens=8, request_id="whole")
        assert [result.request_id for result in results] == [f"whole-{n}" for n in range(5)]
        stream = engine.stream_generate_async(prompts[2], max_tokens=8, request_id="stream")
        assert (stream.request_id, stream.result) == ("stream", None)
        tokens = [token async for token, _ in stream]
        assert stream.result is not None
        assert stream.result.metrics is not None
        return [result.token_ids for result in results], tokens, stream.result.finish_reason

    assert asyncio.run(both()) == (expected, expected[2], "length")


def test_the_event_loop_goes_on_while_tasks_wait(engine: InferenceEngine) -> None:
    async def count() -> int:
        turns = 0
        task = asyncio.create_task(engine.generate_async([1, 2, 3], max_tokens=100))
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert (await task)[0].finish_reason == "length"
        return turns

    assert asyncio.run(count()) > 100


def test_what_is_wrong_with_a_prompt_is_raised_in_the_task(engine: InferenceEngine) -> None:
    async def stream() -> None:
        async for _ in engine.stream_generate_async([]):
            pass

    with pytest.raises(ValueError, match="prompt 1 is empty"):
        asyncio.run(engine.generate_async([[1], []]))
    with pytest.raises(ValueError, match="the prompt is empty"):
        asyncio.run(stream())
    assert asyncio.run(engine.generate_async([])).items() == []


def many_waiters(engine: InferenceEngine, then: Callable[[], None] = lambda: None) -> list[Exception | str]:
    """What 24 that wait in threads and tasks are told, an exception or the error of a result. ``then`` is called when
    all of them have handed their requests in."""
    told: list[Exception | str] = []

    async def in_a_task(place: int) -> None:
        try:
            if place % 2:
                told.append((await engine.generate_async([place, 2], max_tokens=LONG))[0].error)
            else:
                async for _ in engine.stream_generate_async([place, 2], max_tokens=LONG):
                    pass
        except Exception as error:
            told.append(error)

    async def in_two_tasks(place: int) -> None:
        await asyncio.gather(in_a_task(place), in_a_task(place))

    def in_a_thread(place: int) -> None:
        try:
            if place % 2:
                told.append(engine.generate([place, 2], max_tokens=LONG)[0].error)
            else:
                list(engine.stream_generate([place, 2], max_tokens=LONG))
        except Exception as error:
            told.append(error)

    def wait(place: int) -> None:
        if place == 16:
            while engine.inspect(lambda scheduler: scheduler.counters.submitted) < 24 and not told:
                pass
            then()
        elif place % 4 < 2:
            asyncio.run(in_two_tasks(place))
        else:
            in_a_thread(place)

    in_threads(17, wait)
    return told


async def is_served(engine: InferenceEngine) -> None:
    while not await asyncio.to_thread(engine.inspect, lambda scheduler: scheduler.resident):
        pass


async def generates(engine: InferenceEngine) -> None:
    await engine.generate_async([[1, 2, 3], [4]], max_tokens=LONG)


async def reads(engine: InferenceEngine) -> None:
    async for _ in engine.stream_generate_async([1, 2, 3], max_tokens=LONG):
        pass


@pytest.mark.parametrize("work", [generates, reads])
def test_cancellation_aborts_and_frees_the_memory(engine: InferenceEngine, work: Callable[..., Any]) -> None:
    before = aborted(engine)

    async def cancelled() -> None:
        task = asyncio.create_task(work(engine))
        await is_served(engine)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert free(engine)
    assert aborted(engine) == before + (2 if work is generates else 1)


def test_an_async_stream_that_is_let_go_of_is_aborted(engine: InferenceEngine) -> None:
    before = aborted(engine)

    async def first() -> None:
        async for _ in engine.stream_generate_async([1, 2, 3], max_tokens=LONG):
            break

    asyncio.run(first())
    assert free(engine)
    assert aborted(engine) == before + 1


def test_an_aborted_request_takes_part_in_no_plan_after_it(engine: InferenceEngine) -> None:
    """From the abort to where it holds no memory there are as many steps as are in flight, and no more."""
    stream = engine.stream_generate([1, 2, 3], max_tokens=LONG)
    next(stream)

    def abort(scheduler: Scheduler) -> int:
        engine.abort(stream.request_id)
        return scheduler.counters.steps_decode

    steps = engine.inspect(abort)
    assert free(engine)
    assert engine.inspect(lambda scheduler: scheduler.counters.steps_decode) - steps <= 1 + engine.config.overlap


def test_an_event_loop_that_is_gone_takes_its_requests_with_it(engine: InferenceEngine) -> None:
    """Not by a cancelled task: the loop is closed over one that waits."""
    before = aborted(engine)
    loop = asyncio.new_event_loop()
    work = generates(engine)
    task = loop.create_task(work)
    loop.run_until_complete(is_served(engine))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    # the next news find nobody
    assert any(free(engine) for _ in range(1000))
    assert aborted(engine) == before + 2
    with suppress(RuntimeError):
        work.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


# -- the end


@pytest.mark.parametrize("overlap", [False, True])
def test_who_waits_when_the_engine_is_closed_is_told(overlap: bool) -> None:
    engine = make(overlap=overlap, max_running=2)
    told = many_waiters(engine, then=engine.close)
    assert len(told) == 24
    assert {(type(one), str(one)) for one in told} == {(EngineStoppedError, "the engine has been closed")}
    engine.close()
    for late in (lambda: engine.generate([1, 2]), lambda: engine.stream_generate([1, 2])):
        with pytest.raises(EngineStoppedError, match="the engine has been closed"):
            late()
    with pytest.raises(EngineStoppedError, match="the engine has been closed"):
        asyncio.run(engine.generate_async([1, 2]))
    assert engine.inspect(is_free)
    assert not engine.abort("generate-0")


def test_blocks_close_the_engine_and_leave_no_thread() -> None:
    before = len(threads_of_engines())

    async def block() -> InferenceEngine:
        async with make(overlap=True) as inner:
            await inner.generate_async([1, 2], max_tokens=3)
        return inner

    with make(overlap=True) as outer:
        outer.generate([1, 2], max_tokens=3)
        assert len(threads_of_engines()) == before + 2
    for closed in (outer, asyncio.run(block())):
        with pytest.raises(EngineStoppedError):
            closed.generate([1, 2])
    assert len(threads_of_engines()) == before


@pytest.mark.parametrize("way", ["idle", "after a stream", "in a cycle"])
def test_an_engine_that_is_let_go_of_is_collected_and_its_thread_ends(way: str) -> None:
    engine = make(overlap=True)
    dead, model = weakref.ref(engine), weakref.ref(engine.model.model)
    (thread,) = (
        thread for thread in threads_of_engines() if thread.ident == engine.inspect(lambda _: threading.get_ident())
    )
    if way == "after a stream":
        stream = engine.stream_generate([1, 2], max_tokens=LONG)
        del engine
        # it goes on as long as somebody reads
        assert len([next(stream) for _ in range(5)]) == 5
        del stream
    elif way == "in a cycle":
        engine.itself = engine  # type: ignore[attr-defined]
        del engine
        assert dead() is not None
        gc.collect()
    else:
        engine.generate([1, 2], max_tokens=3)
        del engine
    assert dead() is None
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    gc.collect()
    assert model() is None


HEAD = """
import os, signal, threading
from core.engine import InferenceEngine

# whoever runs the tests in the background may have it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
engine = InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096)
"""
SCRIPTS = {
    "in the middle of a step": """
stream = engine.stream_generate([1, 2], max_tokens=1500)
print(len([next(stream) for _ in range(3)]), flush=True)
raise SystemExit(3)
""",
    "after other threads have": """
def work():
    print(len(engine.generate([1, 2], max_tokens=200)[0].token_ids))

threading.Thread(target=work).start()
""",
    "after it was let go of": """
engines = [engine, *(InferenceEngine("shape:tiny", device="cpu", kv_tokens=4096, overlap=True) for _ in range(4))]
streams = [one.stream_generate([1, 2], max_tokens=1500) for one in engines]
print([len([next(stream)]) for stream in streams])
del engine, engines, streams
""",
    "after Ctrl-C": """
def interrupt(count):
    while engine.inspect(lambda scheduler: scheduler.resident) < count:
        pass
    os.kill(os.getpid(), signal.SIGINT)

def stream(prompts, max_tokens):
    for _ in engine.stream_generate(prompts[0], max_tokens=max_tokens):
        pass

for call, count in ((engine.generate, 2), (stream, 1)):
    thread = threading.Thread(target=interrupt, args=(count,))
    thread.start()
    try:
        call([[1, 2], [3, 4]], max_tokens=1500)
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    # memory is free two plans later
    print([engine.inspect(lambda scheduler: (scheduler.idle, scheduler.counters.aborted)) for _ in range(3)][-1])
print(len(engine.generate([1, 2], max_tokens=3)[0].token_ids))
""",
}
PRINTED = {
    "in the middle of a step": ["3"],
    "after other threads have": ["200"],
    "after it was let go of": ["[1, 1, 1, 1, 1]"],
    "after Ctrl-C": ["interrupted", "(True, 2)", "interrupted", "(True, 3)", "3"],
}


@pytest.mark.parametrize("when", SCRIPTS)
def test_an_interpreter_comes_to_its_end_with_an_engine_that_nobody_closed(when: str) -> None:
    command = [sys.executable, "-c", HEAD + SCRIPTS[when]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines() == PRINTED[when]
    assert (done.returncode, done.stderr) == (3 if "SystemExit" in SCRIPTS[when] else 0, "")


# -- when something goes wrong


@pytest.mark.parametrize("overlap", [False, True])
def test_a_lost_device_reaches_everybody_who_waits_and_later_calls(overlap: bool) -> None:
    engine = make(overlap=overlap)
    engine.loop.executor = Faulty(engine.loop.executor, at("work", 9, error=device_lost))
    told = many_waiters(engine)
    assert len(told) == 24
    assert all(DEVICE_LOST in str(one) for one in told)
    assert {type(one) for one in told} <= {str, GenerationError, DeviceError}
    for late in (lambda: engine.generate([1, 2]), lambda: engine.stream_generate([1, 2])):
        with pytest.raises(DeviceError, match=DEVICE_LOST):
            late()
    assert engine.inspect(lambda scheduler: scheduler.idle)
    engine.close()


FAILING = """
from scheduler.policy import Order


class Failing(Order):
    def rank(self, sequence, view):
        return 1 // (sequence.prompt_tokens - 7)
"""


def test_a_policy_that_fails_reaches_everybody_who_waits_and_later_calls(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    engine = make(policy=f"{tmp_path / 'failing.py'}:Failing")
    stream = engine.stream_generate([1, 2], max_tokens=LONG)
    next(stream)
    with pytest.raises(PolicyError, match="ZeroDivisionError"):
        engine.generate([[1, 2], [1] * 7], max_tokens=LONG)
    with pytest.raises(PolicyError, match="ZeroDivisionError"):
        list(stream)
    with pytest.raises(PolicyError, match="ZeroDivisionError"):
        engine.generate([1, 2])
    engine.close()


def test_what_nobody_expected_leaves_nobody_waiting_and_says_where_it_was() -> None:
    engine = make()
    engine.loop.executor = Faulty(engine.loop.executor, at("result", 9, error=lambda: KeyError("a mistake of ours")))
    told = many_waiters(engine)
    assert len(told) == 24
    assert all("a mistake of ours" in str(one) for one in told)
    with pytest.raises(EngineStoppedError, match="unexpected error: KeyError: 'a mistake of ours'") as caught:
        engine.generate([1, 2])
    assert "in reach" in caught.value.__notes__[0]
    assert engine.inspect(lambda scheduler: scheduler.waiting) >= 0
    engine.close()


def test_questions_are_answered_whenever_the_thread_ends() -> None:
    for _ in range(20):
        engine = make()
        answers: list[bool] = []

        def ask(place: int, engine: InferenceEngine = engine, answers: list[bool] = answers) -> None:
            if place == 0:
                engine.close()
            else:
                answers.extend(engine.inspect(is_free) for _ in range(20))

        in_threads(4, ask)
        assert answers == [True] * 60
