"""The exact optimum against a search through all schedules, and against the bound that needs no solver."""

from __future__ import annotations

import sys
from functools import cache
from itertools import combinations
from random import Random

import pytest

from simulator.bounds import Job, volume_bound
from simulator.optimum import MissingSolverError, Round, optimum


def least_preemptive(requests: list[Round], kv_tokens: int) -> int:
    """The least total latency, by trying every set of requests in every round."""

    @cache
    def least(now: int, given: tuple[int, ...]) -> int:
        left = [i for i, r in enumerate(requests) if given[i] < r.output_tokens]
        there = [i for i in left if requests[i].arrival <= now]
        if not left:
            return 0
        totals = [
            least(now + 1, tuple(g + (i in chosen) for i, g in enumerate(given)))
            for size in range(1 if there else 0, len(there) + 1)
            for chosen in combinations(there, size)
            if sum(requests[i].prompt_tokens + given[i] + 1 for i in chosen) <= kv_tokens
        ]
        return len(there) + min(totals)

    return least(0, (0,) * len(requests))


def least_started(requests: list[Round], kv_tokens: int) -> int:
    """Without preemption: every combination of starting rounds."""
    horizon = max(r.arrival for r in requests) + sum(r.output_tokens for r in requests)
    best = 1 << 30

    def place(index: int, held: tuple[int, ...], total: int) -> None:
        nonlocal best
        if total >= best:
            return
        if index == len(requests):
            best = total
            return
        arrival, prompt, output = requests[index]
        for start in range(arrival, horizon - output + 1):
            after = list(held)
            for j in range(output):
                after[start + j] += prompt + j + 1
            if max(after[start : start + output]) <= kv_tokens:
                place(index + 1, tuple(after), total + start + output - arrival)

    place(0, (0,) * horizon, 0)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("preemptive", [False, True])
def test_the_optimum_is_that_of_a_search(seed: int, preemptive: bool) -> None:
    rng = Random(f"optimum {seed}")
    requests = [Round(rng.randrange(3), rng.randrange(1, 4), rng.randrange(1, 5)) for _ in range(4)]
    found = optimum(requests, 8, preemptive=preemptive)
    assert found.proven
    search = least_preemptive if preemptive else least_started
    assert found.total_latency == found.bound == search(requests, 8)


def test_pausing_can_beat_running_to_the_end() -> None:
    """A long request leaves out a round for two short ones that do not fit beside it."""
    requests = [Round(0, 2, 6), Round(3, 3, 1), Round(3, 3, 1)]
    assert optimum(requests, 8, preemptive=True).total_latency < optimum(requests, 8).total_latency


def test_its_schedule_keeps_to_memory_and_order() -> None:
    rng = Random("schedule")
    requests = [Round(rng.randrange(5), rng.randrange(1, 5), rng.randrange(1, 6)) for _ in range(6)]
    for preemptive in (False, True):
        found = optimum(requests, 12, preemptive=preemptive)
        held: dict[int, int] = {}
        for request, rounds in zip(requests, found.rounds, strict=True):
            assert len(rounds) == request.output_tokens
            assert rounds[0] >= request.arrival
            assert list(rounds) == sorted(set(rounds))
            if not preemptive:
                assert rounds[-1] - rounds[0] == len(rounds) - 1
            for j, now in enumerate(rounds):
                held[now] = held.get(now, 0) + request.prompt_tokens + j + 1
        assert max(held.values()) <= 12
        ends = sum(rounds[-1] + 1 - request.arrival for request, rounds in zip(requests, found.rounds, strict=True))
        assert ends == found.total_latency


@pytest.mark.parametrize("seed", range(4))
def test_the_volume_bound_is_below_both_optima(seed: int) -> None:
    rng = Random(f"volume {seed}")
    requests = [Round(rng.randrange(4), rng.randrange(1, 5), rng.randrange(1, 6)) for _ in range(6)]
    relaxed, batch = optimum(requests, 12, preemptive=True), optimum(requests, 12)
    bound = volume_bound([Job(r.arrival, r.prompt_tokens + 1, r.output_tokens) for r in requests], 12, 1)
    assert bound <= relaxed.total_latency <= batch.total_latency


def test_a_request_that_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="request 1 needs 9 KV tokens"):
        optimum([Round(0, 1, 1), Round(0, 4, 5)], 8)


def test_without_the_solver_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(MissingSolverError, match=r"lockstep\[bounds\]"):
        optimum([Round(0, 1, 1)], 8)
