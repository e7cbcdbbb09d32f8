"""What a benchmark plays: rows of requests, how they were made, and the settings that go with them."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from workloads.errors import WorkloadError

#: what a row declares when its trace says nothing
DEFAULT_MAX_TOKENS = 2048
#: the temperature of traces, which record none: the one that the seed's own figures were taken at
DEFAULT_TEMPERATURE = 0.7
#: arrivals are before this: 146 years in nanoseconds, so that every sum of times stays within 64 bits
END_OF_TIME_NS = 1 << 62
#: tokens that an id in ``prefix_ids`` stands for, as in Mooncake's traces
PREFIX_BLOCK_TOKENS = 512


class Row(NamedTuple):
    """One request of a workload.

    ``output_tokens`` is what a benchmark plays out and hides from the policies, which see only ``max_tokens``.
    A named tuple, because a workload may have a million of them.
    """

    arrival_ns: int
    """integer nanoseconds after the start of the workload"""
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    tenant: str = ""
    priority: int = 0
    """smaller is more important"""
    ttft_slo_ns: int | None = None
    """the first token is due so long after the arrival; ``None``: no objective"""
    prefix_ids: tuple[int, ...] = ()
    """one id for each of the prompt's first blocks of the workload's ``prefix_block_tokens``: prompts whose first n
    ids are the same begin with the same n blocks (the last one may be a part of a block)"""

    def arriving_at(self, arrival_ns: int) -> Row:
        """The same request at another time."""
        return Row(arrival_ns, *self[1:])


class LengthSummary(NamedTuple):
    """Order statistics (nearest rank) and mean of a column of lengths, in tokens."""

    min: int
    median: int
    p99: int
    max: int
    mean: float


class WorkloadSummary(NamedTuple):
    """The figures by which a workload is recognised."""

    requests: int
    prompt: LengthSummary
    output: LengthSummary
    span_s: float
    """first to last arrival"""
    rate_per_s: float | None
    """gaps between arrivals divided by the span; ``None`` when all arrive at once"""
    arrival_cv: float | None
    """coefficient of variation of the gaps between arrivals: 0 constant, 1 Poisson; ``None`` when all arrive at once"""


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows in order of arrival.

    ``source`` says in a sentence how they were made. ``temperature`` is how the workload is sampled; ``max_running``
    (sequences holding KV), ``min_rows`` and ``max_rows`` (rows of one step) are the settings that belong to the
    workload's definition, ``None`` where it says nothing. ``prefix_block_tokens``: see :attr:`Row.prefix_ids`.

    Raises :class:`WorkloadError` when a row is out of order or has a length below 1 or beyond its ``max_tokens``.
    """

    name: str
    rows: tuple[Row, ...]
    source: str
    temperature: float = DEFAULT_TEMPERATURE
    max_running: int | None = None
    min_rows: int | None = None
    max_rows: int | None = None
    prefix_block_tokens: int = PREFIX_BLOCK_TOKENS

    def __post_init__(self) -> None:
        if not self.rows:
            raise WorkloadError(f"workload {self.name} has no requests; give at least one")
        if not self.temperature >= 0:
            raise WorkloadError(f"workload {self.name}: temperature is {self.temperature}; must be >= 0 (0 is greedy)")
        before = 0
        for number, (arrival, prompt, output, max_tokens, *_) in enumerate(self.rows):
            if not before <= arrival < END_OF_TIME_NS or prompt < 1 or not 1 <= output <= max_tokens:
                raise WorkloadError(
                    f"workload {self.name}, request {number}: {_what_is_wrong(self.rows[number], before)}"
                )
            before = arrival

    def __len__(self) -> int:
        return len(self.rows)

    def sha256(self) -> str:
        """Hex digest of the rows: equal exactly when the same requests are played, whatever the workload is called.

        Does not depend on the process, the machine or the Python version.
        """
        digest = hashlib.sha256(b"lockstep workload rows 1\n")
        pack = struct.Struct("<qqqqq").pack
        for arrival, prompt, output, max_tokens, tenant, priority, ttft_slo_ns, prefix_ids in self.rows:
            name = tenant.encode()
            digest.update(pack(arrival, prompt, output, max_tokens, len(name)) + name)
            if priority or ttft_slo_ns is not None or prefix_ids:
                # -1 is no arrival: it cannot be taken for the next row
                slo_ns = -1 if ttft_slo_ns is None else ttft_slo_ns
                block_tokens = self.prefix_block_tokens if prefix_ids else 0
                digest.update(pack(-1, priority, slo_ns, block_tokens, len(prefix_ids)))
                digest.update(struct.pack(f"<{len(prefix_ids)}q", *prefix_ids))
        return digest.hexdigest()

    def summary(self) -> WorkloadSummary:
        """Lengths and arrivals in figures."""
        span_ns = self.rows[-1].arrival_ns - self.rows[0].arrival_ns
        return WorkloadSummary(
            requests=len(self.rows),
            prompt=_summarise(row.prompt_tokens for row in self.rows),
            output=_summarise(row.output_tokens for row in self.rows),
            span_s=span_ns / 1e9,
            rate_per_s=(len(self.rows) - 1) / (span_ns / 1e9) if span_ns else None,
            arrival_cv=_gap_cv(self.rows) if span_ns else None,
        )


def _what_is_wrong(row: Row, before: int) -> str:
    if row.prompt_tokens < 1:
        return f"prompt tokens is {row.prompt_tokens}; must be >= 1"
    if row.output_tokens < 1:
        return f"output tokens is {row.output_tokens}; must be >= 1"
    if row.output_tokens > row.max_tokens:
        return f"output tokens is {row.output_tokens} but max_tokens is {row.max_tokens}; must not be less"
    if row.arrival_ns >= END_OF_TIME_NS:
        return f"it arrives at {row.arrival_ns} ns; must be less than {END_OF_TIME_NS} (146 years)"
    return f"it arrives at {row.arrival_ns} ns; must be at {before} ns or later, rows are in order of arrival"


def _summarise(lengths: Iterable[int]) -> LengthSummary:
    ordered = sorted(lengths)
    count = len(ordered)
    # nearest rank: the smallest value with at least that share of the values at or below it
    return LengthSummary(
        min=ordered[0],
        median=ordered[(count - 1) // 2],
        p99=ordered[(99 * count - 1) // 100],
        max=ordered[-1],
        mean=sum(ordered) / count,
    )


def _gap_cv(rows: tuple[Row, ...]) -> float:
    """Population standard deviation of the gaps over their mean, from exact integer sums."""
    total = squares = 0
    before = rows[0].arrival_ns
    for row in rows[1:]:
        gap = row.arrival_ns - before
        before = row.arrival_ns
        total += gap
        squares += gap * gap
    return math.sqrt((len(rows) - 1) * squares - total * total) / total
