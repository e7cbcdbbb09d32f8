"""The exact optimum of a handful of requests in hindsight, by constraint programming (OR-tools' CP-SAT).

The batch-schedule model of Jaillet et al., "Online Scheduling for LLM Inference with KV Cache Constraints"
(arXiv 2502.07115): time goes in rounds. A request (arrival a, prompt s, output o) once started runs for o rounds on
end; in the j-th of them it gives output token j and holds s + j tokens, and in each round all that run hold at most
``kv_tokens``. What is minimised is the total latency, completion - arrival, in rounds.

``preemptive`` relaxes it: a request may be left out of any round and holds nothing then. No schedule of the simulator
whose steps all take one round is better than that, whatever it pauses or evicts; one that keeps running what it has
started is no better than the first. A request of this model is one of the simulator's with one prompt token more,
because there the KV of the newest token is written by the step after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class MissingSolverError(ImportError):
    """OR-tools is not installed; the message says which extra has it."""


class Round(NamedTuple):
    """A request in rounds: it may run from round ``arrival`` on."""

    arrival: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Optimum:
    """The least total latency in rounds, and for each request the rounds in which it runs.

    ``proven`` is false if the solver ran out of time: the schedule is then one that was found, ``bound`` what none can
    be below.
    """

    total_latency: int
    bound: int
    proven: bool
    rounds: tuple[tuple[int, ...], ...]


def optimum(
    requests: Sequence[Round], kv_tokens: int, *, preemptive: bool = False, time_limit_s: float = 60.0
) -> Optimum:
    """The optimum of a few short requests (eight of a dozen tokens take about a second).

    Raises :class:`MissingSolverError` without OR-tools, ``ValueError`` for a request that never fits and
    ``TimeoutError`` if not even one schedule was found in time.
    """
    for index, request in enumerate(requests):
        if request.prompt_tokens + request.output_tokens > kv_tokens:
            raise ValueError(f"request {index} needs {request.prompt_tokens + request.output_tokens} KV tokens, "
                             f"more than the memory of {kv_tokens}")  # fmt: skip
    solver_module = _solver()
    model = solver_module.CpModel()
    ends_by = _latest_ends(requests, kv_tokens)
    tokens = [_tokens(model, request, end, preemptive) for request, end in zip(requests, ends_by, strict=True)]
    for now in range(max(ends_by)):
        held = [
            (request.prompt_tokens + position + 1) * at[now]
            for request, positions in zip(requests, tokens, strict=True)
            for position, at in enumerate(positions)
            if now in at
        ]
        if held:
            model.add(sum(held) <= kv_tokens)
    ends = [sum((now + 1) * chosen for now, chosen in positions[-1].items()) for positions in tokens]
    arrivals = sum(request.arrival for request in requests)
    model.minimize(sum(ends) - arrivals)
    solver = solver_module.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (solver_module.OPTIMAL, solver_module.FEASIBLE):
        raise TimeoutError(f"no schedule of {len(requests)} requests was found in {time_limit_s:g} s")
    rounds = tuple(
        tuple(next(now for now, chosen in at.items() if solver.value(chosen)) for at in positions)
        for positions in tokens
    )
    return Optimum(
        total_latency=round(solver.objective_value),
        bound=round(solver.best_objective_bound),
        proven=status == solver_module.OPTIMAL,
        rounds=rounds,
    )


def _latest_ends(requests: Sequence[Round], kv_tokens: int) -> list[int]:
    """For each request the round before which it has ended in a best schedule.

    One schedule is easily found; whoever ends so late in another that even with all others as if alone it has a larger
    total is in none of the best.
    """
    found = _one_schedule(requests, kv_tokens)
    total = sum(end - request.arrival for end, request in zip(found, requests, strict=True))
    alone = sum(request.output_tokens for request in requests)
    return [request.arrival + total - (alone - request.output_tokens) for request in requests]


def _one_schedule(requests: Sequence[Round], kv_tokens: int) -> list[int]:
    """When each request ends if the shortest goes first, each at the first round from which it fits to its end."""
    held: dict[int, int] = {}
    ends = [0] * len(requests)
    for index in sorted(range(len(requests)), key=lambda i: (requests[i].output_tokens, requests[i].arrival)):
        arrival, prompt, output = requests[index]
        start = arrival
        while any(held.get(start + j, 0) + prompt + j + 1 > kv_tokens for j in range(output)):
            start += 1
        for j in range(output):
            held[start + j] = held.get(start + j, 0) + prompt + j + 1
        ends[index] = start + output
    return ends


def _tokens(model: Any, request: Round, end: int, preemptive: bool) -> list[dict[int, Any]]:
    """For each output token, by round, whether the request gives it there."""
    output = request.output_tokens
    if not preemptive:
        starts = {now: model.new_bool_var("") for now in range(request.arrival, end - output + 1)}
        model.add_exactly_one(starts.values())
        return [{now + position: chosen for now, chosen in starts.items()} for position in range(output)]
    # done[now]: the token has been given in round now or before. Monotone, and each token after the one before it.
    positions: list[dict[int, Any]] = []
    before: dict[int, Any] = {}
    for position in range(output):
        first, last = request.arrival + position, end - output + position
        done: dict[int, Any] = {now: model.new_bool_var("") for now in range(first, last)}
        done[last] = 1
        for now in range(first, last):
            if now + 1 < last:
                model.add_implication(done[now], done[now + 1])
            if position:
                model.add_implication(done[now], before[now - 1])
        positions.append(
            {now: done[now] - done[now - 1] if now > first else done[now] for now in range(first, last + 1)}
        )
        before = done
    return positions


def _solver() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingSolverError(
            "the exact optimum needs OR-tools; install it with: pip install 'lockstep[bounds]'"
        ) from None
    return cp_model
