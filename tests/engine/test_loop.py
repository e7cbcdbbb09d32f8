"""The loop: what it tells the scheduler, what it tells the listener, and what is left after a surprise."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from engine.executors import StepResult, build_executor
from engine.loop import EngineLoop, Progress, TokenOutput
from engine.steps import SequenceState
from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan, iter_sampled
from scheduler.request import HeadStart, Request, SamplingParams
from scheduler.scheduler import Scheduler


class Sampled(NamedTuple):
    """A step that has been run."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value


class CountingExecutor:
    """Samples, for every sequence, the number of tokens that it has."""

    layout = "paged"
    launches_ahead = False
    vocab = 1000

    def __init__(self, before: Callable[[StepPlan], None] = lambda plan: None) -> None:
        self._before = before

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Sampled:
        self._before(plan)
        return Sampled(StepResult({s.number: len(states[s.number].token_ids) for s in iter_sampled(plan)}, 7))


class Recording(Scheduler):
    """A scheduler that notes the times it is told and the outcomes it gets."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self.times: list[int] = []
        self.outcomes: list[StepOutcome] = []

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        self.times.append(now_ns)
        return super().next_step(now_ns, max_repeat)

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> Any:
        self.times.append(now_ns)
        self.outcomes.append(outcome)
        return super().complete(plan, outcome, now_ns)


def request(name: str, prompt: int = 3, max_tokens: int = 4, arrival_ns: int = 0, **more: Any) -> Request:
    return Request(name, arrival_ns, prompt, max_tokens, prompt_token_ids=tuple(range(prompt)), **more)


def loop_of(executor: Any, heard: list[TokenOutput] | None = None, ends: tuple[int, ...] = (), **settings: Any) -> Any:
    scheduler = Recording(SchedulerConfig.from_dict({"kv_tokens": 1024, "context_tokens": 512, **settings}))
    listener = None if heard is None else heard.append
    return EngineLoop(scheduler, executor, end_token_ids=frozenset(ends), listener=listener)


def test_every_token_is_reported_and_the_last_one_says_why() -> None:
    heard: list[TokenOutput] = []
    loop_of(CountingExecutor(), heard).run([request("a"), request("b", prompt=5, max_tokens=1)])
    assert [o.token_id for o in heard if o.request_id == "a"] == [3, 4, 5, 6]
    assert [o.finish_reason for o in heard if o.request_id == "a"] == ["", "", "", "length"]
    (last,) = [o for o in heard if o.request_id == "b"]
    assert last[:4] == ("b", 5, "", "length")
    assert last.metrics is not None
    assert last.metrics.first_token_ns == last.metrics.finish_ns > 0
    assert all((o.metrics is None) == (not o.finish_reason) for o in heard)


def test_end_token_stops_unless_the_request_plays_out_its_length() -> None:
    heard: list[TokenOutput] = []
    loop_of(CountingExecutor(), heard, ends=(4,)).run(
        [
            request("stops"),
            request("ignores", sampling=SamplingParams(ignore_eos=True)),
            request("hidden", output_tokens=3),
            request("own", sampling=SamplingParams(ignore_eos=True, stop_token_ids=(5,))),
        ]
    )
    ends = {o.request_id: (o.token_id, o.finish_reason) for o in heard if o.finish_reason}
    assert ends == {"stops": (4, "eos"), "ignores": (6, "length"), "hidden": (5, "length"), "own": (5, "stop")}


def test_times_never_run_backwards_and_host_time_is_the_rest_of_the_period() -> None:
    loop = loop_of(CountingExecutor())
    loop.run([request("a"), request("b")])
    scheduler = loop.scheduler
    assert scheduler.times == sorted(scheduler.times)
    for before, outcome in zip(scheduler.outcomes, scheduler.outcomes[1:], strict=False):
        assert outcome.device_ns == 7
        assert outcome.ends_ns[0] - before.ends_ns[0] == outcome.device_ns + outcome.host_ns


def test_a_request_is_not_taken_up_before_its_arrival() -> None:
    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(), heard)
    seen: list[Progress] = []
    loop.run([request("late", arrival_ns=30_000_000), request("early")], progress=seen.append)
    assert [o.request_id for o in heard] == ["early"] * 4 + ["late"] * 4
    assert seen[4].now_ns >= 30_000_000
    assert seen[-1]._replace(now_ns=0) == Progress(0, 8, 2, 2, 8)


def test_a_rejected_request_is_reported_with_its_reason() -> None:
    heard: list[TokenOutput] = []
    loop_of(CountingExecutor(), heard).run([request("long", prompt=600)])
    assert heard[0].finish_reason == "rejected"
    assert "512" in heard[0].detail


def test_abort_ends_a_request_and_frees_its_memory() -> None:
    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(), heard)
    loop.submit(request("a", max_tokens=100))
    loop.submit(request("b", max_tokens=100))
    loop.step()
    loop.abort("a")
    loop.abort("unknown")
    loop.step()
    loop.abort("b")
    assert not loop.step()
    assert [(o.request_id, o.finish_reason) for o in heard if o.finish_reason] == [("a", "aborted"), ("b", "aborted")]
    assert loop.scheduler.idle
    assert loop.scheduler.pool.free_blocks == loop.scheduler.pool.capacity_blocks


def test_a_failing_step_leaves_a_consistent_scheduler() -> None:
    broken = True

    def fail(plan: StepPlan) -> None:
        if broken:
            raise RuntimeError("out of memory")

    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(fail), heard)
    loop.submit(request("a"))
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.step()
    assert [(o.request_id, o.finish_reason) for o in heard] == [("a", "error")]
    broken = False
    loop.run([request("b")])
    assert heard[-1].finish_reason == "length"
    assert loop.scheduler.idle


def test_a_failing_chunk_of_a_long_prompt_ends_its_request() -> None:
    calls = iter([True])

    def fail(plan: StepPlan) -> None:
        if next(calls, False):
            raise RuntimeError("out of memory")

    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(fail), heard, max_prefill_tokens=4)
    loop.submit(request("a", prompt=9))
    with pytest.raises(RuntimeError):
        loop.step()
    loop.run()
    assert [(o.request_id, o.finish_reason, o.detail) for o in heard] == [("a", "error", "out of memory")]
    assert loop.scheduler.idle


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Python's own handler, also where the tests run in a background job, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_completes_the_step_and_aborts_the_rest() -> None:
    def interrupt(plan: StepPlan) -> None:
        if plan.index == 3:
            signal.raise_signal(signal.SIGINT)

    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(interrupt), heard)
    with pytest.raises(KeyboardInterrupt):
        loop.run([request("a", max_tokens=50), request("never", arrival_ns=10**15)])
    counters = loop.scheduler.counters
    assert len(loop.scheduler.outcomes) == 4
    assert (counters.submitted, counters.aborted) == (1, 1)
    assert heard[-1].finish_reason == "aborted"
    assert loop.scheduler.idle
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_requests_may_come_from_other_threads() -> None:
    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(), heard)
    threads = [threading.Thread(target=loop.submit, args=(request(str(n)),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.run()
    assert sorted(o.request_id for o in heard if o.finish_reason) == sorted(map(str, range(20)))


def test_a_batch_that_waits_for_company_starts_when_its_time_is_up() -> None:
    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(), heard, policy="static", min_batch=4, max_wait_s=0.02)
    loop.run([request("a")])
    assert heard[-1].finish_reason == "length"
    assert loop.scheduler.outcomes[0].ends_ns[0] >= 20_000_000


def test_a_request_without_token_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt_token_ids"):
        loop_of(CountingExecutor()).submit(Request("a", 0, 3))


def test_a_request_that_has_got_on_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        loop_of(CountingExecutor()).submit(Request("a", 0, 3, prompt_token_ids=(1, 2, 3), head_start=HeadStart(1)))


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(ValueError, match="stop strings"):
        loop_of(CountingExecutor()).submit(request("a", sampling=SamplingParams(stop=("x",))))


def test_random_tokens_do_not_depend_on_the_schedule(reference: Callable[[str], Any]) -> None:
    model = reference("qwen2").ours
    sampling = SamplingParams(temperature=1.0, top_p=0.95)
    told: list[dict[str, list[int]]] = []
    for settings in ({"policy": "fcfs"}, {"policy": "sjf", "max_running": 2}, {"policy": "fcfs", "layout": "padded"}):
        config = SchedulerConfig.from_dict({"kv_tokens": 2048, "context_tokens": 512, **settings})
        tokens: dict[str, list[int]] = {}
        loop = EngineLoop(
            Scheduler(config),
            build_executor(model, config),
            listener=lambda o, tokens=tokens: tokens.setdefault(o.request_id, []).append(o.token_id),
        )
        loop.run([request(str(n), prompt=n + 2, max_tokens=8, sampling=sampling) for n in range(5)])
        told.append(tokens)
    assert told[0] == told[1] == told[2]
    assert len({tuple(tokens) for tokens in told[0].values()}) == 5


def test_while_a_workload_is_played_collections_leave_alone_what_was_there() -> None:
    frozen: list[int] = []
    before = gc.get_freeze_count()
    loop = EngineLoop(
        Scheduler(SchedulerConfig()), CountingExecutor(), listener=lambda _: frozen.append(gc.get_freeze_count())
    )
    loop.run([Request("a", 0, 3, 4, 4, prompt_token_ids=(1, 2, 3))])
    assert len(frozen) == 4
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == before

    def fail(_: object) -> None:
        raise KeyboardInterrupt

    loop = EngineLoop(Scheduler(SchedulerConfig()), CountingExecutor(), listener=fail)
    with pytest.raises(KeyboardInterrupt):
        loop.run([Request("b", 0, 3, 4, 4, prompt_token_ids=(1, 2, 3))])
    assert gc.get_freeze_count() == before


@pytest.mark.parametrize("overlap", [False, True])
def test_requests_are_served_as_they_come_until_it_is_stopped(overlap: bool) -> None:
    heard: list[TokenOutput] = []
    ended, told = threading.Event(), [0]
    loop = loop_of(CountingExecutor(), heard, overlap=overlap)

    def after() -> None:
        told[0] += 1
        if heard and heard[-1].finish_reason:
            ended.set()

    thread = threading.Thread(target=loop.serve, args=(after,))
    thread.start()
    for name in ("first", "second"):
        ended.clear()
        loop.submit(request(name))
        assert ended.wait(10)
    residents: list[int] = []
    read = threading.Event()
    loop.call(lambda: (residents.append(loop.scheduler.resident), read.set()))
    assert read.wait(10)
    loop.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert residents == [0]
    assert [o.request_id for o in heard if o.finish_reason] == ["first", "second"]
    assert 8 <= told[0] < 30


def test_what_was_stopped_half_way_can_be_ended() -> None:
    heard: list[TokenOutput] = []
    loop = loop_of(CountingExecutor(), heard)
    loop.submit(request("long", max_tokens=400))
    loop.serve(loop.stop)
    assert len(heard) == 1
    loop.abort_all()
    assert heard[-1].finish_reason == "aborted"
    assert heard[-1].metrics is not None
    assert heard[-1].metrics.first_token_ns is not None
    assert loop.scheduler.idle


class Waited(NamedTuple):
    """A step that takes 100 of a clock's nanoseconds, once it is asked for."""

    clock: list[int]
    sampled: Sampled

    def result(self) -> StepResult:
        self.clock[0] += 100
        return self.sampled.result()


class AheadExecutor(CountingExecutor):
    """Launches in 3 of a clock's nanoseconds, while another step runs."""

    launches_ahead = True

    def __init__(self, clock: list[int]) -> None:
        super().__init__()
        self.clock = clock

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> Any:
        self.clock[0] += 3
        return Waited(self.clock, super().launch(plan, states))


def test_the_hosts_work_is_what_it_does_between_two_waits() -> None:
    clock = [0]
    loop = loop_of(AheadExecutor(clock), overlap=True)
    loop.now_ns = lambda: clock[0]
    loop.run([request("a", max_tokens=5)])
    # nothing is known of the first, and the second was launched before the host had waited at all
    assert [outcome.work_ns for outcome in loop.scheduler.outcomes] == [0, 0, 3, 3, 3]
    # the engine was idle in between: it begins anew
    loop.run([request("b", max_tokens=3)])
    assert [outcome.work_ns for outcome in loop.scheduler.outcomes[5:]] == [0, 0, 3]
    plain = loop_of(CountingExecutor(), overlap=True)
    plain.run([request("a")])
    assert {outcome.work_ns for outcome in plain.scheduler.outcomes} == {0}
