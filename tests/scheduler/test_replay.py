"""Replay: a recorded run repeats exactly, and one world that differs in the least is found out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from fake_world import drive
from random_runs import Recorder

from scheduler.buckets import FixedWidth
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.journal import JournaledScheduler, JournalError, replay
from scheduler.observer import Observer
from scheduler.orders import ByLength
from scheduler.policy import Lane, Order, View
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from scheduler.waiting import build_waiting

#: policies with settings under which each of their parts is at work in runs of some 40 steps
POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "static": {"min_batch": 3, "max_wait_s": 5e-6},
    "sjf": {},
    "sjf-min-rows": {"policy": "sjf", "min_rows": 3},
    "sjf-bucket": {"bucket": 5},
    "sjf-bucket-fullest": {"policy": "sjf-bucket", "bucket": 4, "bucket_order": "fullest", "min_rows": 2},
    "sjf-bucket-oldest": {"policy": "sjf-bucket", "bucket": 8, "bucket_order": "oldest"},
    "sjf-aging": {"aging_s": 12e-6},
    "srpt": {"quantum": 2},
    "orca": {"quantum": 0, "oracle": "none"},
}
LAYOUTS = ("paged", "padded")
SEEDS = range(6)


def config_of(policy: str, layout: str) -> SchedulerConfig:
    """A small pool: a few sequences fit, and preempt each other where they grow."""
    settings = {"policy": policy, "layout": layout, "kv_tokens": 64, "block_tokens": 4, "max_running": 5,
                "max_rows": 4, "max_prefill_tokens": 16, "starvation_s": 5e-6} | POLICIES[policy]  # fmt: skip
    return SchedulerConfig.from_dict(settings)


def requests_of(rng: Random) -> list[Request]:
    now = 0
    found = []
    for number in range(18):
        now += rng.choice((0, 0, 300, 2000, 9000))
        prompt, most, hidden = rng.randint(1, 24), rng.randint(3, 20), rng.choice((None, rng.randint(1, 20)))
        found.append(Request(f"request {number}", now, prompt, max_tokens=most, output_tokens=hidden))
    return found


def record(
    config: SchedulerConfig, seed: int, stop_chance: float = 0.0, abort_chance: float = 0.0
) -> tuple[list[str], JournaledScheduler, Recorder]:
    rng = Random(seed)
    stream, recorder = io.StringIO(), Recorder()
    scheduler = JournaledScheduler(config, stream, recorder)
    drive(scheduler, requests_of(rng), rng, stop_chance=stop_chance, abort_chance=abort_chance)
    return stream.getvalue().splitlines(keepends=True), scheduler, recorder


LIVELY = {"stop_chance": 0.04, "abort_chance": 0.03}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_replay_repeats_every_plan(policy: str, layout: str) -> None:
    for seed in SEEDS:
        lines, recorded, observed = record(config_of(policy, layout), seed, **LIVELY)
        again = Recorder()
        replayed = replay(lines, again)
        assert replayed.exact, replayed.first_difference
        assert replayed.plans == observed.plans > 20
        assert replayed.scheduler.digest.hexdigest() == recorded.digest.hexdigest()
        assert replayed.scheduler.counters == recorded.counters
        assert replayed.scheduler.idle
        assert again == observed


def test_the_recorded_runs_have_stops_aborts_preemptions_and_chunks() -> None:
    """Or the test above would prove little."""
    seen = {"stop": 0, "abort": 0, "preemption": 0, "chunk": 0}
    for seed in SEEDS:
        lines, recorded, observed = record(config_of("fcfs", "paged"), seed, **LIVELY)
        seen["stop"] += sum('"stops"' in line for line in lines)
        seen["abort"] += recorded.counters.aborted
        seen["preemption"] += recorded.counters.preemptions
        seen["chunk"] += sum(sampled < rows for _, _, _, _, rows, *_, sampled in observed.steps)
    assert all(seen.values()), seen


# -- teeth: one world changes, the other does not


def broken(change: Callable[[Scheduler], None]) -> type[Scheduler]:
    """A scheduler like the real one but for ``change``, made before anything is submitted."""

    class Broken(Scheduler):
        def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
            super().__init__(config, observer)
            change(self)

    return Broken


class NewestFirst(Order):
    """Arrival order with its tie-break the wrong way round."""

    def rank(self, sequence: Sequence, view: View) -> int:
        return -sequence.number


class OffByOne(ByLength):
    """A bucket edge that is one token too high: 32 belongs to the second bucket."""

    def lane(self, sequence: Sequence, view: View) -> int:
        return sequence.known // 5

    def steps_in_lane(self, sequence: Sequence, view: View) -> int:
        return 5 - sequence.known % 5


class TiesToTheNewest(ByLength):
    """Equally full lanes go by their last submitted member."""

    def lane_rank(self, lane: Lane) -> Any:
        return (-lane.count, -lane.oldest)


def with_waiting(order: Order) -> type[Scheduler]:
    def change(scheduler: Scheduler) -> None:
        state = scheduler._state
        state.waiting = build_waiting(order, state.view)

    return broken(change)


def with_resident(order: Order) -> type[Scheduler]:
    def change(scheduler: Scheduler) -> None:
        state = scheduler._state
        state.policy = replace(state.policy, resident=order)
        state.residents.order = order

    return broken(change)


def evicts_the_oldest(scheduler: Scheduler) -> None:
    """Memory is taken from the oldest, not from the newest."""
    state = scheduler._state
    state.eviction.victim = state.residents.oldest  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("policy", "world"),
    [
        ("fcfs", with_waiting(NewestFirst())),
        ("fcfs", broken(evicts_the_oldest)),
        ("sjf", with_waiting(TiesToTheNewest(FixedWidth(1), "fullest"))),
        ("sjf-bucket", with_resident(OffByOne(FixedWidth(5), "lowest", shortest_first=True))),
        ("sjf-bucket", with_resident(ByLength(FixedWidth(6), "lowest", shortest_first=True))),
        ("sjf-bucket-oldest", with_resident(ByLength(FixedWidth(8), "lowest", shortest_first=True))),
    ],
)
def test_a_change_in_one_world_only_is_found(policy: str, world: type[Scheduler]) -> None:
    found = 0
    for seed in SEEDS:
        lines, _, _ = record(config_of(policy, "paged"), seed, **LIVELY)
        assert replay(lines).exact
        difference = replay(lines, world=world).first_difference
        if difference is not None:
            found += 1
            assert difference.startswith("line ")
            assert "recorded" in difference
    assert found >= len(SEEDS) // 2


def test_a_world_with_another_setting_is_found() -> None:
    """As if one world read the configuration differently."""
    lines, _, _ = record(config_of("srpt", "paged"), 1, **LIVELY)

    class Shorter(Scheduler):
        def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
            super().__init__(replace(config, max_prefill_tokens=config.max_prefill_tokens - 1), observer)

    assert not replay(lines, world=Shorter).exact


def edited(lines: list[str], change: Callable[[dict[str, Any]], None]) -> list[str]:
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        change(entry)
    return [json.dumps(entry) + "\n" for entry in entries]


def test_rounding_the_clock_is_found() -> None:
    """With ageing a decision depends on the very nanosecond that was read; steps take about 1,000 of them here."""

    def round_now(entry: dict[str, Any]) -> None:
        if "now" in entry:
            entry["now"] = round(entry["now"], -3)

    config = replace(config_of("sjf-aging", "paged"), aging_s=40e-6, kv_tokens=200)
    different = 0
    for seed in range(12):
        lines, _, _ = record(config, seed)
        assert replay(edited(lines, lambda entry: None)).exact
        different += not replay(edited(lines, round_now)).exact
    assert different >= 2


def test_dropping_the_stops_is_found() -> None:
    """A world that takes an end token for foreseen goes on with a sequence that has ended."""
    for seed in SEEDS:
        lines, _, _ = record(config_of("fcfs", "paged"), seed, stop_chance=0.05)
        assert any('"stops"' in line for line in lines)
        assert not replay(edited(lines, lambda entry: entry.pop("stops", None))).exact


def test_dropping_an_abort_is_found() -> None:
    def drop(entry: dict[str, Any]) -> None:
        if "in" in entry:
            entry["in"] = [call for call in entry["in"] if call[0] != "abort"]

    different = 0
    for seed in SEEDS:
        lines, _, _ = record(config_of("sjf", "paged"), seed, abort_chance=0.2)
        different += not replay(edited(lines, drop)).exact
    assert different == len(SEEDS)


# -- journals that are not whole


@pytest.fixture
def journal() -> list[str]:
    lines, _, _ = record(config_of("fcfs", "paged"), 0, **LIVELY)
    return lines


@pytest.mark.parametrize("left", [1, 10, 40])
def test_a_half_written_last_line_ends_the_replay(journal: list[str], left: int) -> None:
    """A killed run leaves one."""
    half = [*journal[:30], journal[30][:left]]
    replayed = replay(half)
    assert replayed.exact
    assert replayed.plans == replay(journal[:30]).plans > 10


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("{not json}\n", "not JSON"),
        ('["a list"]\n', "not a JSON object"),
        ("12\n", "not a JSON object"),
        ("{}\n", "malformed"),
        ('{"e":"plan","now":1}\n', "malformed"),
        ('{"e":"plan","now":1,"in":[["submit",1,"x"]]}\n', "malformed"),
        ('{"e":"plan","now":1,"in":[["submit",1,"x",0,1,1,"length",1,"",0]]}\n', "malformed"),
        ('{"e":"plan","now":1,"in":[["dance",1,"x"]]}\n', "malformed"),
        ('{"e":"complete","i":9,"now":1}\n', "malformed"),
        ('{"e":"complete","i":9,"now":1,"ends":[],"device_ns":1,"host_ns":1}\n', "malformed"),
        ('{"e":"nonsense","now":1}\n', "malformed"),
    ],
)
def test_a_malformed_line_is_named(journal: list[str], line: str, where: str) -> None:
    # a plan is in flight after line 20, or there would be nothing to complete
    at = next(i for i in range(20, 40) if '"e":"complete"' in journal[i])
    with pytest.raises(JournalError, match=f"^line {at + 1}: .*{where}"):
        replay([*journal[:at], line, *journal[at:]])


def test_a_missing_line_is_named(journal: list[str]) -> None:
    at = next(i for i in range(20, 40) if '"e":"complete"' in journal[i])
    with pytest.raises(JournalError, match=f"^line {at + 1}: "):
        replay(journal[:at] + journal[at + 1 :])


@pytest.mark.parametrize(
    "head", [[], ["{}\n"], ['{"e":"header","schema":99,"config":{}}\n'], ['{"e":"plan","now":0,"in":[]}\n']]
)
def test_a_journal_starts_with_its_header(head: list[str], journal: list[str]) -> None:
    with pytest.raises(JournalError, match=r"^line 1: no journal header of schema 2"):
        replay([*head, *journal[1:3]] if head else [])


def test_a_header_without_settings_is_named() -> None:
    with pytest.raises(JournalError, match=r"^line 1: "):
        replay(['{"e":"header","schema":2}\n'])


def test_a_setting_of_another_version_is_named(journal: list[str]) -> None:
    header = journal[0].replace('"max_running"', '"max_runing"')
    with pytest.raises(ConfigError, match=r"max_runing.*did you mean max_running"):
        replay([header, *journal[1:]])
