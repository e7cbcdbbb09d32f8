"""The loop with a plan in flight: who is told what and when, and what is left after a surprise."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from fake_scheduler import FakeScheduler

from engine.executors import PaddedExecutor, PagedExecutor, StepResult
from engine.executors.base import SequenceState
from engine.loop import EngineLoop, Progress, TokenOutput
from scheduler.config import SchedulerConfig
from scheduler.plan import StepPlan, iter_sampled
from scheduler.request import Request


class CountingExecutor:
    """Samples, for every sequence, the number of tokens that it has; writes down when it is asked for what.

    ``faults``: calls, such as ``result 3``, that raise.
    """

    layout = "paged"
    launches_ahead = False
    vocab = 1000

    def __init__(self, calls: list[str], faults: tuple[str, ...] = ()) -> None:
        self.calls = calls
        self.faults = set(faults)
        self.at: dict[str, Callable[[], None]] = {}

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Counted:
        self.note(f"launch {plan.index}")
        for sequence, start, tokens, _ in plan.chunks:
            assert len(states[sequence.number].token_ids[start : start + tokens]) == tokens, "no token to compute"
        tokens = {s.number: len(states[s.number].token_ids) for s in iter_sampled(plan)}
        return Counted(self, plan.index, tokens)

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.at.pop(call, lambda: None)()
        if call in self.faults:
            raise RuntimeError(f"{call}: out of memory")


class Counted:
    def __init__(self, executor: CountingExecutor, index: int, tokens: dict[int, int]) -> None:
        self._executor, self._index, self._tokens = executor, index, tokens

    def result(self) -> StepResult:
        self._executor.note(f"result {self._index}")
        return StepResult(self._tokens, 7)


def request(name: str, prompt: int = 3, max_tokens: int = 4, arrival_ns: int = 0, **more: Any) -> Request:
    return Request(name, arrival_ns, prompt, max_tokens, prompt_token_ids=tuple(range(prompt)), **more)


class World:
    """A loop over a fake scheduler and a counting executor; everything that is said, in one list."""

    def __init__(self, ends: tuple[int, ...] = (), faults: tuple[str, ...] = (), **settings: Any) -> None:
        self.scheduler = FakeScheduler(**settings)
        self.calls = self.scheduler.calls
        self.executor = CountingExecutor(self.calls, faults)
        self.heard: list[TokenOutput] = []
        self.loop = EngineLoop(self.scheduler, self.executor, end_token_ids=frozenset(ends), listener=self._hear)

    def _hear(self, output: TokenOutput) -> None:
        self.heard.append(output)
        self.calls.append(f"{output.request_id}: {output.token_id} {output.finish_reason}".strip())

    def told(self, name: str) -> list[tuple[int | None, str]]:
        return [(o.token_id, o.finish_reason) for o in self.heard if o.request_id == name]

    def assert_clean(self) -> None:
        assert self.scheduler.idle
        assert not self.loop.in_flight
        assert self.scheduler.holding <= set(self.scheduler._leaving)


def test_the_next_step_is_planned_while_one_runs_and_launched_with_its_tokens() -> None:
    world = World()
    world.loop.run([request("a", max_tokens=3)])
    assert world.calls == [
        "submit a", "plan 0", "launch 0",
        "plan 1", "result 0", "complete 0", "a: 3", "launch 1",
        "plan 2", "result 1", "complete 1", "a: 4", "launch 2",
        "no plan", "result 2", "complete 2", "a: 5 length",
        "no plan",
    ]  # fmt: skip
    world.assert_clean()


def test_without_overlap_nothing_is_planned_ahead() -> None:
    world = World(config=SchedulerConfig(context_tokens=512))
    world.loop.run([request("a", max_tokens=2)])
    assert world.calls == [
        "submit a", "plan 0", "launch 0", "result 0", "complete 0", "a: 3",
        "plan 1", "launch 1", "result 1", "complete 1", "a: 4 length", "no plan",
    ]  # fmt: skip


def test_an_end_token_wastes_the_row_that_was_planned_already() -> None:
    world = World(ends=(5,))
    world.loop.run([request("a", max_tokens=9), request("b", prompt=4, max_tokens=4)])
    assert world.told("a") == [(3, ""), (4, ""), (5, "eos")]
    assert world.told("b") == [(4, ""), (5, "eos")]
    assert world.scheduler.wasted_rows == 2
    # b's wasted row and a's one are in the steps after theirs
    assert world.calls[-4:] == ["no plan", "result 3", "complete 3", "no plan"]
    assert world.loop.progress()._replace(now_ns=0) == Progress(0, 4, 2, 2, 5)
    world.assert_clean()


def test_no_token_is_reported_after_an_abort() -> None:
    world = World()
    world.executor.at["launch 2"] = lambda: world.loop.abort("a")
    world.loop.run([request("a", max_tokens=50), request("b", prompt=5, max_tokens=5)])
    assert world.told("a") == [(3, ""), (4, ""), (None, "aborted")]
    assert world.told("b") == [(5, ""), (6, ""), (7, ""), (8, ""), (9, "length")]
    # it is told as soon as the abort has been passed on, while its last step runs
    start = world.calls.index("launch 2")
    assert world.calls[start : start + 7] == [
        "launch 2", "abort a", "plan 3", "a: None aborted", "result 2", "complete 2", "b: 7",
    ]  # fmt: skip
    assert world.scheduler.wasted_rows == 1
    assert world.loop.progress()._replace(now_ns=0) == Progress(0, 5, 2, 2, 7)
    world.assert_clean()


def test_an_abort_of_everybody_ends_with_the_step_that_runs() -> None:
    world = World()
    world.loop.submit(request("a", max_tokens=50))
    world.loop.step()
    assert world.loop.in_flight
    world.loop.abort("a")
    assert world.loop.step()
    assert world.told("a") == [(3, ""), (None, "aborted")]
    world.assert_clean()
    assert not world.loop.step()


def test_an_abort_that_crosses_the_end_is_ignored() -> None:
    world = World(ends=(4,))
    # the end token is in step 1, which runs; the abort comes in with plan 3
    world.executor.at["launch 2"] = lambda: world.loop.abort("a")
    world.loop.run([request("a", max_tokens=50), request("b", prompt=9)])
    assert world.told("a") == [(3, ""), (4, "eos")]
    assert world.told("b")[-1] == (12, "length")
    world.assert_clean()


@pytest.mark.parametrize("fault", ["launch 0", "result 0", "launch 2", "result 2"])
def test_a_failing_step_takes_what_was_planned_on_top_of_it_along(fault: str) -> None:
    world = World(faults=(fault,))
    world.loop.submit(request("a", max_tokens=9))
    world.loop.submit(request("b", prompt=5, max_tokens=9))
    with pytest.raises(RuntimeError, match=f"{fault}: out of memory"):
        world.loop.run()
    tokens = int(fault[-1])
    assert world.told("a") == [*((3 + n, "") for n in range(tokens)), (None, "error")]
    assert world.told("b") == [*((5 + n, "") for n in range(tokens)), (None, "error")]
    world.assert_clean()
    world.loop.run([request("c", max_tokens=2)])
    assert world.told("c") == [(3, ""), (4, "length")]
    assert world.loop.progress()._replace(now_ns=0) == Progress(0, tokens + 2, 3, 3, 2 * tokens + 2)


def test_a_failing_chunk_ends_its_request_though_it_was_to_sample_nothing() -> None:
    world = World(faults=("result 0",), chunk_tokens=4)
    world.loop.submit(request("long", prompt=14))
    with pytest.raises(RuntimeError):
        world.loop.step()
    world.loop.run()
    assert world.told("long") == [(None, "error")]
    world.assert_clean()


def test_who_ended_before_a_step_failed_is_told_once() -> None:
    world = World(ends=(4,), faults=("result 2",))
    world.loop.submit(request("a", max_tokens=9))
    world.loop.submit(request("b", prompt=9, max_tokens=9))
    with pytest.raises(RuntimeError):
        world.loop.run()
    assert world.told("a") == [(3, ""), (4, "eos")]
    assert world.told("b") == [(9, ""), (10, ""), (None, "error")]
    world.assert_clean()


def test_a_listener_that_raises_loses_no_step() -> None:
    world = World()
    loop = world.loop
    told: list[TokenOutput] = []

    def hear(output: TokenOutput) -> None:
        told.append(output)
        if len(told) == 2:
            raise ValueError("the listener's own")

    loop._listener = hear
    loop.submit(request("a"))
    with pytest.raises(ValueError, match="the listener's own"):
        loop.run()
    assert loop.in_flight
    loop.run()
    assert [output.token_id for output in told] == [3, 4, 5, 6]
    world.assert_clean()


def test_each_period_is_device_time_and_host_time() -> None:
    world = World()
    world.loop.run([request("a", max_tokens=6), request("b", max_tokens=6)])
    scheduler = world.scheduler
    assert scheduler.times == sorted(scheduler.times)
    assert len(scheduler.outcomes) == 6
    for before, outcome in zip(scheduler.outcomes, scheduler.outcomes[1:], strict=False):
        assert outcome.host_ns >= 0
        assert outcome.ends_ns[0] - before.ends_ns[0] == outcome.device_ns + outcome.host_ns


def test_one_reading_of_the_clock_serves_all_that_came_in() -> None:
    world = World()
    for name in "abc":
        world.loop.submit(request(name))
    world.loop.abort("b")
    world.loop.step()
    # three submits, an abort, and the plan
    assert len(set(world.scheduler.times[:5])) == 1
    assert world.calls[:5] == ["submit a", "submit b", "submit c", "abort b", "plan 0"]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("call", ["launch 3", "result 3"])
def test_ctrl_c_completes_what_is_in_flight_and_aborts_the_rest(call: str) -> None:
    world = World()
    world.executor.at[call] = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        world.loop.run([request("a", max_tokens=50), request("never", arrival_ns=10**15)])
    told = world.told("a")
    assert [token for token, _ in told[:-1]] == list(range(3, 3 + len(told) - 1))
    assert told[-1] == (None, "aborted")
    completed = [call for call in world.calls if call.startswith("complete")]
    # the step at hand, and the one that was launched after it
    assert completed == [f"complete {n}" for n in range(len(completed))]
    assert len(completed) == len(told) - 1 == 4 + (call == "result 3")
    world.assert_clean()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("overlap", [False, True])
def test_real_tokens_with_end_tokens_aborts_and_chunks(
    reference: Callable[[str], Any], layout: str, overlap: bool
) -> None:
    both = reference("qwen2")
    config = SchedulerConfig.from_dict({"overlap": overlap, "layout": layout, "context_tokens": 512})
    scheduler = FakeScheduler(config, chunk_tokens=16)
    executor: Any
    if layout == "padded":
        executor = PaddedExecutor(both.ours, max_running=16, overlap=overlap)
    else:
        executor = PagedExecutor(both.ours, kv_tokens=2048, max_running=16, kv_pool="contiguous", overlap=overlap)
    tokens: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}

    def hear(output: TokenOutput) -> None:
        assert output.request_id not in reasons, "news of a request that has ended"
        if output.token_id is not None:
            tokens.setdefault(output.request_id, []).append(output.token_id)
        if output.finish_reason:
            reasons[output.request_id] = output.finish_reason

    source = random.Random(1)
    prompts = [[source.randrange(10, 512) for _ in range(length)] for length in (3, 17, 40, 5, 33, 9, 21)]
    ends = frozenset(range(0, 512, 40))
    loop = EngineLoop(scheduler, executor, end_token_ids=ends, listener=hear)

    def abort_one(progress: Progress) -> None:
        if progress.steps == 6:
            loop.abort("6")

    loop.run(
        [Request(str(place), 0, len(p), 24, prompt_token_ids=tuple(p)) for place, p in enumerate(prompts)],
        abort_one,
    )  # fmt: skip
    assert scheduler.idle
    assert {"eos", "length"} <= set(reasons.values())
    assert overlap == (scheduler.wasted_rows > 0)
    for place, prompt in enumerate(prompts):
        expected = both.greedy(prompt, 24)
        given = tokens.get(str(place), [])
        end = next((n for n, token in enumerate(given, 1) if token in ends), len(given))
        assert len(given) == end, "tokens after the end token"
        assert given[: len(expected)] == expected[: len(given)]
