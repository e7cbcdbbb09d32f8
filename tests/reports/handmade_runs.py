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
    decoding = (rows, pairs) if kind == "decode" else (0, 0)
    features = StepFeatures(
        layout, kind, rows, rows, new, new_computed, pairs, columns, useful, longest, rows, rows, *decoding
    )  # fmt: skip
    entry = DigestEntry(kind, rows, 1000 + index, 5000 + index, 1000 + index, len(ends))
    plan = StepPlan(index, start * MS, len(ends), features, entry, 1 << 62, False, (), list, lambda _: [])
    host = MS // 10 * len(ends)
    device = (ends[-1] - start) * MS - host
    return plan, StepOutcome(np.array(ends, np.int64) * MS, device, host)


def mixed_step(
    index: int, planned: int, end: int, start: int | None = None, prompt: int = 8, rows: int = 2, context: int = 20,
    swapped: int = 0,
) -> tuple[StepPlan, StepOutcome]:  # fmt: skip
    """A prompt of ``prompt`` tokens beside ``rows`` decode rows that hold ``context`` tokens in all, on paged memory.

    Planned at ``planned``, run from ``start`` (default: then) to ``end``, in milliseconds.
    """
    new, pairs = prompt + rows, prompt * (prompt + 1) // 2 + context
    features = StepFeatures("paged", "mixed", rows + 1, rows + 1, new, new, pairs, pairs, prompt + context, prompt,
                            rows + 1, rows + 1, rows, context, swapped)  # fmt: skip
    entry = DigestEntry("mixed", rows + 1, 1000 + index, 5000 + index, 3000 + index, 1)
    plan = StepPlan(index, planned * MS, 1, features, entry, 1 << 62, False, (), list, lambda _: [])
    device = (end - (planned if start is None else start)) * MS
    return plan, StepOutcome(np.array([end], np.int64) * MS, device, 0)


class HandMade:
    """Writes a run by hand and keeps the counters that a scheduler would keep."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None, clock: FakeClock | None = None) -> None:
        self.writer = RunWriter(folder, manifest or {"name": folder.name}, clock or FakeClock())
        self.counters = RunCounters()
        self.digest = PlanDigest()

    def step(self, *args: Any, **kwargs: Any) -> None:
        self.ran(*step(*args, **kwargs))

    def mixed(self, *args: Any, **kwargs: Any) -> None:
        self.ran(*mixed_step(*args, **kwargs))

    def ran(self, plan: StepPlan, outcome: StepOutcome) -> None:
        self.counters.add_steps(plan.features, plan.repeat)
        self.digest.add(plan.digest_entry)
        self.writer.stepped(plan, plan.repeat, outcome)

    def request(self, *args: Any, counts: Mapping[str, int] | None = None, **kwargs: Any) -> None:
        """``counts``: what the request adds to counters that are also columns."""
        sequence = request_row(*args, **kwargs)
        for name, count in (counts or {}).items():
            setattr(sequence, name, count)
            setattr(self.counters, name, getattr(self.counters, name) + count)
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
    run.counters.kv_held_token_ns, run.counters.kv_reserved_token_ns = 24 * MS, 30 * MS
    run.counters.kv_free_token_ns, run.counters.kv_unusable_token_ns = 60 * MS, 15 * MS
    run.counters.kv_allocations, run.counters.kv_reused = 8, 2
    run.counters.longest_wait_ns, run.counters.longest_gap_ns = 50 * MS, 100 * slower * MS
    return run


def every_part(folder: Path, manifest: Mapping[str, Any] | None = None) -> HandMade:
    """A run that has mixed steps, swaps, a prefix cache and overlap; two requests, both served.

    A prefill of 10 tokens, then a mixed step planned while it runs, and two mixed steps with swaps between decodes.
    """
    run = HandMade(folder, manifest)
    run.step(0, 0, [100], kind="prefill", layout="paged", rows=1, longest=10)
    run.mixed(1, 40, 200, start=100, prompt=8, rows=1, context=11)
    run.step(2, 200, [300, 400], layout="paged", rows=2, longest=12, shorter=3)
    run.mixed(3, 400, 500, prompt=4, rows=2, context=24, swapped=9)
    run.mixed(4, 500, 600, prompt=4, rows=1, context=14, swapped=9)
    run.request(0, 0, 0, 100, 600, prompt=10, output=6, tenant="a")
    counts = {"preemptions": 1, "swapped_out": 1, "swapped_in": 1, "prefix_hit_tokens": 16}
    run.request(1, 20, 100, 200, 500, prompt=8, output=4, tenant="b", counts=counts)
    counters = run.counters
    counters.swapped_tokens = 18
    counters.wasted_rows = 2
    counters.prefix_query_tokens = 40
    counters.kv_held_sum, counters.kv_reserved_sum, counters.kv_free_sum = 60, 80, 100
    counters.kv_held_token_ns, counters.kv_reserved_token_ns, counters.kv_free_token_ns = 9 * MS, 10 * MS, 5 * MS
    counters.kv_allocations, counters.kv_reused, counters.kv_reused_after_preemption = 10, 3, 2
    return run
