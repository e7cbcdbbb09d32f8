"""Runs written by hand, in integers: what every figure must come to can be worked out on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reports.run_folder import RunWriter
from reports.summary import WallClock
from scheduler.counters import RunCounters
from scheduler.digest import PlanDigest, hash_id
from scheduler.plan import DigestEntry, Kind, Layout, StepFeatures, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.sequence import Sequence, State

MS = 1_000_000


@dataclass
class FakeClock:
    """Seconds that only a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def request_row(
    number: int,
    arrival: int,
    scheduled: int = -1,
    first: int = -1,
    finish: int = -1,
    prompt: int = 8,
    output: int = 0,
    state: State = "finished",
    reason: str = "length",
    name: str = "",
    tenant: str = "",
) -> Sequence:
    """A sequence that has ended; times in milliseconds, -1 where it did not get that far."""
    request = Request(name or f"r{number}", arrival * MS, prompt, 64, max(1, output), tenant=tenant)
    sequence = Sequence(request, number, hash_id(request.id), 4096)
    sequence.place(prompt + output, prompt + output)
    sequence.state, sequence.reason = state, reason
    for field, time in (("first_scheduled_ns", scheduled), ("first_token_ns", first), ("finish_ns", finish)):
        setattr(sequence, field, time * MS if time >= 0 else -1)
    return sequence


def step(
    index: int,
    start: int,
    ends: list[int],
    kind: Kind = "decode",
    layout: Layout = "padded",
    rows: int = 2,
    tokens: int = 1,
    longest: int = 8,
    shorter: int = 0,
) -> tuple[StepPlan, StepOutcome]:
    """A step or stretch of ``rows`` sequences; all have ``longest`` tokens but the last, which has ``shorter`` fewer.

    In a prefill each row computes all its tokens. Times in milliseconds.
    """
    useful = rows * longest - shorter
    if kind == "prefill":
        pairs = (rows - 1) * longest * (longest + 1) // 2 + (longest - shorter) * (longest - shorter + 1) // 2
        new, new_computed, columns = useful, rows * longest, rows * longest * longest
    else:
        pairs, new, new_computed, columns = useful, rows * tokens, rows * tokens, rows * longest
    if layout == "paged":
        new_computed, columns = new, pairs
    features = StepFeatures(
        layout, kind, rows, rows, new, new_computed, pairs, columns, useful, longest, rows, rows
    )  # fmt: skip
    entry = DigestEntry(kind, rows, 1000 + index, 5000 + index, 1000 + index, len(ends))
    plan = StepPlan(index, start * MS, len(ends), features, entry, 1 << 62, False, (), list, lambda _: [])
    host = MS // 10 * len(ends)
    device = (ends[-1] - start) * MS - host
    return plan, StepOutcome(np.array(ends, np.int64) * MS, device, host)


class HandMade:
    """Writes a run by hand and keeps the counters that a scheduler would keep."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None, clock: FakeClock | None = None) -> None:
        self.writer = RunWriter(folder, manifest or {"name": folder.name}, clock or FakeClock())
        self.counters = RunCounters()
        self.digest = PlanDigest()

    def step(self, *args: Any, **kwargs: Any) -> None:
        plan, outcome = step(*args, **kwargs)
        self.counters.add_steps(plan.features, plan.repeat)
        self.digest.add(plan.digest_entry)
        self.writer.stepped(plan, plan.repeat, outcome)

    def request(self, *args: Any, **kwargs: Any) -> None:
        sequence = request_row(*args, **kwargs)
        self.counters.submitted += 1
        setattr(self.counters, sequence.state, getattr(self.counters, sequence.state) + 1)
        self.writer.ended(sequence)

    def close(self, **kwargs: Any) -> Any:
        kwargs.setdefault("wall", WallClock("2026-01-02T03:04:05Z", 1.5, 3_000_000))
        return self.writer.close(self.counters, self.digest.hexdigest(), **kwargs)


def four_requests(folder: Path, manifest: Mapping[str, Any] | None = None, slower: int = 1) -> HandMade:
    """Two requests finish, one is rejected, one aborted; a prefill with padding and a stretch of two decode steps.

    ``slower`` stretches all times but the arrivals.
    """
    run = HandMade(folder, manifest)
    run.request(2, 100, state="rejected", reason="100 tokens are more than the model's context of 64", prompt=100)
    run.step(0, 0, [100 * slower], kind="prefill", rows=2, longest=8, shorter=2)
    run.step(1, 100 * slower, [200 * slower, 300 * slower], rows=2, longest=9, shorter=2)
    run.writer.gaps(np.array([100 * slower, 100 * slower]) * MS, 1)
    run.request(1, 50, 100 * slower, 200 * slower, 200 * slower, prompt=20, output=1, tenant="b")
    run.request(3, 100, finish=250 * slower, state="aborted", reason="aborted")
    run.request(0, 0, 0, 100 * slower, 300 * slower, prompt=10, output=3, tenant="a")
    run.counters.kv_peak_tokens = 40
    run.counters.kv_held_sum, run.counters.kv_reserved_sum = 30, 40
    run.counters.kv_free_sum, run.counters.kv_unusable_sum = 50, 10
    run.counters.kv_allocations, run.counters.kv_reused = 8, 2
    run.counters.longest_wait_ns, run.counters.longest_gap_ns = 50 * MS, 100 * slower * MS
    return run
