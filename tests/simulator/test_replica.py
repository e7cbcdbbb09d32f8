"""Simulated time: who sees what when, and that a stretch is cut only where it matters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simpy

from scheduler.config import SchedulerConfig
from scheduler.plan import StepOutcome, StepPlan
from scheduler.policies import POLICIES
from scheduler.request import HeadStart, Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from simulator.costs import IntegerCosts
from simulator.replica import ANY, Replica, simulate
from simulator.roofline import roofline
from workloads.traces import read_trace

#: every step takes exactly a thousand nanoseconds
THOUSAND = IntegerCosts(step_ns=1000, row_ns=0, token_ns=0, column_ns=0)

#: what a policy cannot do without
NEEDED: dict[str, dict[str, Any]] = {"lpm": {"prefix_cache": True}, "multi-bin": {"length_quantiles": (2, 9, 17, 30)}}

AZURE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "AzureLLMInferenceTrace_conv.csv"


@dataclass
class Log:
    """An observer that keeps plans as (start, kind, rows, steps), and ended sequences by id."""

    plans: list[tuple[int, str, int, int]] = field(default_factory=list)
    ended_by_id: dict[str, Sequence] = field(default_factory=dict)
    device_ns: int = 0
    host_ns: int = 0

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.plans.append((plan.now_ns, plan.kind, plan.features.rows, steps))
        self.device_ns += outcome.device_ns
        self.host_ns += outcome.host_ns

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None: ...

    def ended(self, sequence: Sequence) -> None:
        self.ended_by_id[sequence.id] = sequence


def run(
    requests: list[Request],
    costs: IntegerCosts = THOUSAND,
    aborted: tuple[tuple[int, str], ...] = (),
    max_repeat: int = ANY,
    **settings: Any,
) -> tuple[Log, Scheduler]:
    log = Log()
    scheduler = Scheduler(SchedulerConfig.from_dict({"policy": "fcfs", **settings}), log)
    return log, simulate(requests, scheduler, costs, aborted=aborted, max_repeat=max_repeat)


def request(name: str, arrival_ns: int, output: int = 10) -> Request:
    return Request(name, arrival_ns, 4, max_tokens=output)


@pytest.mark.parametrize("max_repeat", [1, ANY])
@pytest.mark.parametrize(("arrival", "scheduled"), [(2999, 3000), (3000, 3000), (3001, 4000)])
def test_what_arrives_as_a_step_ends_is_seen_by_the_next_plan(arrival: int, scheduled: int, max_repeat: int) -> None:
    log, _ = run([request("a", 0), request("b", arrival)], max_repeat=max_repeat)
    assert log.ended_by_id["b"].first_scheduled_ns == scheduled


def test_all_that_arrive_at_one_time_are_prefilled_together() -> None:
    log, _ = run([request(name, 700) for name in "abc"])
    assert log.plans[0] == (700, "prefill", 3, 1)


def test_idle_time_is_skipped() -> None:
    log, _ = run([request("a", 5, 1), request("b", 10**15, 1)])
    assert [start for start, *_ in log.plans] == [5, 10**15]
    assert log.ended_by_id["b"].finish_ns == 10**15 + 1000


def test_an_arrival_cuts_a_stretch_when_a_slot_is_free() -> None:
    log, _ = run([request("a", 0), request("b", 3500, 1)])
    assert log.plans == [(0, "prefill", 1, 1), (1000, "decode", 1, 3), (4000, "prefill", 1, 1), (5000, "decode", 1, 6)]


def test_an_arrival_cuts_no_stretch_when_no_slot_is_free() -> None:
    log, _ = run([request("a", 0), request("b", 3500, 1)], max_running=1)
    assert log.plans == [(0, "prefill", 1, 1), (1000, "decode", 1, 9), (10000, "prefill", 1, 1)]


def test_an_arrival_cuts_no_stretch_of_a_closed_batch() -> None:
    log, _ = run([request("a", 0), request("b", 3500, 1)], policy="static", max_running=8)
    assert log.plans == [(0, "prefill", 1, 1), (1000, "decode", 1, 9), (10000, "prefill", 1, 1)]


def test_an_arrival_that_may_evict_cuts_a_stretch() -> None:
    log, scheduler = run([request("a", 0), request("b", 3500, 1)], policy="srpt", quantum=2, max_running=1)
    assert [start for start, *_ in log.plans][:3] == [0, 1000, 4000]
    assert log.ended_by_id["b"].finish_ns == 5000
    assert scheduler.counters.preemptions == 1


def test_a_stretch_ends_when_somebody_ages() -> None:
    """The stretch ends with the first step that ends at the threshold or later."""
    log, _ = run([request("a", 0, 20)], policy="sjf-aging", aging_s=4.5e-6)
    assert log.plans == [(0, "prefill", 1, 1), (1000, "decode", 1, 4), (5000, "decode", 1, 15)]


@pytest.mark.parametrize("max_repeat", [1, ANY])
def test_a_stretch_ends_when_one_that_waits_ages(max_repeat: int) -> None:
    """Two long prompts make the fullest group and do not fit; a short one that does leads once it has aged."""
    requests = [Request("resident", 0, 30, max_tokens=20)]
    requests += [Request(name, 500, prompt, max_tokens=8) for name, prompt in (("short", 5), ("c", 40), ("d", 40))]
    log, _ = run(
        requests, policy="sjf-aging", aging_s=6e-6, kv_tokens=64, block_tokens=4, max_repeat=max_repeat
    )  # fmt: skip
    assert log.ended_by_id["short"].first_scheduled_ns == 7000


@pytest.mark.parametrize("max_repeat", [1, ANY])
@pytest.mark.parametrize(("abort", "end"), [(2500, 3000), (3000, 3000)])
def test_an_abort_applies_at_the_end_of_the_step_that_runs(abort: int, end: int, max_repeat: int) -> None:
    log, scheduler = run([request("a", 0)], aborted=((abort, "a"),), max_repeat=max_repeat, max_running=1)
    ended = log.ended_by_id["a"]
    assert (ended.state, ended.finish_ns, ended.output_tokens) == ("aborted", end, 3)
    assert scheduler.counters.aborted == 1


def test_aborts_come_too_early_too_late_and_for_nobody() -> None:
    aborted = ((100, "b"), (5000, "nobody"), (10**9, "a"))
    log, scheduler = run([request("a", 0, 3), request("b", 10_000, 3)], aborted=aborted)
    assert [s.state for s in log.ended_by_id.values()] == ["finished", "finished"]
    assert scheduler.counters.aborted == 0


@pytest.mark.parametrize("max_repeat", [1, ANY])
def test_a_short_batch_starts_when_its_oldest_has_waited(max_repeat: int) -> None:
    requests = [request("a", 0, 2), request("b", 700, 2), request("c", 90_000, 2)]
    log, _ = run(requests, policy="static", min_batch=3, max_wait_s=5e-6, max_repeat=max_repeat)
    assert log.plans == [(5000, "prefill", 2, 1), (6000, "decode", 2, 1), (95_000, "prefill", 1, 1),
                         (96_000, "decode", 1, 1)]  # fmt: skip


def test_tokens_that_wait_are_known_ones_wherever_they_wait() -> None:
    """In the queue, or to be handed over after a stretch in which arrivals do not matter."""
    env = simpy.Environment(initial_time=0)
    replica = Replica(env, Scheduler(SchedulerConfig(max_running=1)), THOUSAND)
    replica.submit(request("a", 0))
    env.run(until=1500)
    replica.submit(replace(request("b", 1500), head_start=HeadStart(3, first_token_ns=7, last_token_ns=9)))
    assert replica.waiting_tokens() == 4 + 3
    replica.scheduler.submit(
        replace(request("c", 1500), head_start=HeadStart(2, first_token_ns=7, last_token_ns=9)), 1500
    )
    assert replica.waiting_tokens() == 4 + 3 + 4 + 2


def test_device_and_host_time_add_up() -> None:
    class WithHost(IntegerCosts):
        def host_ns(self, columns: Any) -> int:
            return 50

    log, _ = run([request("a", 0, 6)], WithHost(step_ns=1000, row_ns=10, token_ns=3, column_ns=2))
    # prefill of 4: 1000 + 12 + 2 * 4; decode steps read 5, 6, 7, 8, 9 tokens
    device = 1020 + sum(1010 + 2 * context for context in (5, 6, 7, 8, 9))
    assert log.device_ns == device
    assert log.host_ns == 6 * 50
    assert log.ended_by_id["a"].finish_ns == device + 300


def test_the_same_simulation_twice_is_the_same() -> None:
    requests = [Request(str(i), i * 1700, 3 + i * 7 % 40, max_tokens=1 + i * 5 % 31) for i in range(60)]
    for policy in POLICIES:
        first, second = (
            run(
                requests,
                IntegerCosts(1000, 37, 11, 3),
                policy=policy,
                kv_tokens=160,
                max_running=6,
                **NEEDED.get(policy, {}),
            )
            for _ in range(2)
        )
        assert first[0].plans == second[0].plans
        assert first[1].counters == second[1].counters
        assert first[1].digest.hexdigest() == second[1].digest.hexdigest()


def test_a_replica_that_cannot_go_on_says_so() -> None:
    """A scheduler that hands out no plan although somebody waits."""

    class Stuck(Scheduler):
        def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
            return None

    with pytest.raises(RuntimeError, match="the simulation stopped with 1 waiting, 0 resident"):
        simulate([request("a", 0)], Stuck(SchedulerConfig()), THOUSAND)


@pytest.mark.skipif(not AZURE.is_file(), reason="the Azure trace is not beside the repository")
@pytest.mark.parametrize(
    ("policy", "layout"),
    # lpm needs a prefix cache, which shares blocks
    [
        (policy, layout)
        for policy in POLICIES
        for layout in ("paged", "padded")
        if (policy, layout) != ("lpm", "padded")
    ],
)
def test_every_policy_ends_the_azure_trace(policy: str, layout: str) -> None:
    """Its first 500 rows on a projected A100: all end, and no policy makes or loses a token."""
    rows = read_trace(str(AZURE)).rows[:500]
    costs = roofline("a100-40gb", "qwen-7b")
    assert costs.kv_tokens is not None
    assert costs.context_tokens is not None
    requests = [
        Request(str(i), row.arrival_ns, row.prompt_tokens, row.max_tokens, row.output_tokens)
        for i, row in enumerate(rows)
    ]
    config = SchedulerConfig.from_dict(
        {
            "policy": policy,
            "layout": layout,
            "kv_tokens": costs.kv_tokens,
            "context_tokens": costs.context_tokens,
            **NEEDED.get(policy, {}),
        }
    )
    log = Log()
    counters = simulate(requests, Scheduler(config, log), costs).counters
    assert counters.finished + counters.rejected == 500
    assert counters.aborted == 0
    finished = [s for s in log.ended_by_id.values() if s.state == "finished"]
    assert all(s.output_tokens == s.request.output_tokens for s in finished)
    # each prefill that ends and each decode row emits one token
    tokens = sum(s.output_tokens for s in finished)
    assert counters.decode_rows + len(finished) + counters.preemptions == tokens
    useful = sum(s.prompt_tokens + s.output_tokens - 1 for s in finished)
    computed = counters.linear_useful_prefill + counters.linear_useful_decode
    assert computed - counters.recomputed_tokens == useful
