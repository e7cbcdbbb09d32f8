"""What no schedule can beat: the least mean latency and the most throughput that requests, memory and costs allow.

The model is a relaxation of everything that the simulator does. Time is spent in steps, one after the other. Output
token j of a request with p prompt tokens comes out of one step, which holds at least p + j - 1 of its tokens in KV
memory; that step has at most ``rows`` rows and ``kv_tokens`` tokens in all. Requests may be paused, evicted and brought
back for nothing, and nothing starts before it arrives. A step takes at least what a :class:`StepFloor` says.

So every output token takes a share of a step: of its rows 1 / ``rows``, of its memory (p + j - 1) / ``kv_tokens``. Add
these up, with the time that the cost model asks for each token, and each request is work for one machine that serves
one at a time. Of all schedules of such a machine, shortest remaining work first has the least total latency (Schrage,
"A proof of the optimality of the shortest remaining processing time discipline", 1968): a bound for every policy.

The share of memory is the volume bound of Jaillet et al., "Online Scheduling for LLM Inference with KV Cache
Constraints" (arXiv 2502.07115): vol_i = s_i o_i + o_i (o_i + 1) / 2. Their s_i is p_i - 1 here, since the KV of the
newest token is written by the step after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, pairwise, product
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scheduler.config import SchedulerConfig
from scheduler.plan import Layout

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


#: a step's time is rounded to whole nanoseconds, so that it may be this much below what its costs add up to
ROUNDING_NS = 0.5


class StepFloor(NamedTuple):
    """A step takes at least ``step_ns + token_ns x new tokens + column_ns x KV tokens read``, and ``own_ns`` more for
    each of those that it does not read for another row, too; nanoseconds, none < 0."""

    step_ns: float
    token_ns: float
    column_ns: float
    own_ns: float = 0.0

    def below(self, other: StepFloor) -> StepFloor:
        """A floor that is below both."""
        return StepFloor(*(min(a, b) for a, b in zip(self, other, strict=True)))

    def plus(self, other: StepFloor) -> StepFloor:
        """The floor of a step that takes both times."""
        return StepFloor(*(a + b for a, b in zip(self, other, strict=True)))


#: floors by kind of step; each of a kind's floors holds
Floors = dict[str, tuple[StepFloor, ...]]


@runtime_checkable
class FlooredCosts(Protocol):
    """A cost model that can say what no step of a kind can be faster than."""

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """The floors of prefill, decode and (where it has them) mixed steps.

        Of device and host time together; under ``overlap``, which hides the one under the other, of device time.
        """


class Job(NamedTuple):
    """A request as a bound sees it."""

    arrival_ns: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Limits:
    """What a schedule has to keep to. ``shared_prefixes``: a prefix cache may hold KV once for several requests, so
    that neither memory nor prompts bind; ``mixed``: prefill and decode share steps."""

    rows: int
    kv_tokens: int
    shared_prefixes: bool = False
    mixed: bool = False

    @classmethod
    def of(cls, config: SchedulerConfig) -> Limits:
        """Those of a scheduler."""
        return cls(
            rows=min(config.rows, config.max_running),
            kv_tokens=config.capacity_tokens,
            shared_prefixes=config.prefix_cache,
            mixed=config.phase == "mixed",
        )


class Least(NamedTuple):
    """A lower bound in nanoseconds, and what binds: ``alone`` (requests as if alone), ``rows``, ``memory``."""

    ns: float
    binding: str


@dataclass(frozen=True)
class Bounds:
    """What no schedule of some requests can beat: their mean latency, and their makespan from the first arrival."""

    mean_latency: Least
    makespan: Least
    output_tokens: int

    @property
    def output_tokens_per_s(self) -> float | None:
        """The most output tokens per second of makespan; ``None`` if the bound on the makespan is 0."""
        return self.output_tokens / self.makespan.ns * 1e9 if self.makespan.ns else None


def volume(prompt_tokens: int, output_tokens: int) -> int:
    """KV tokens held, summed over the steps that give the output: one step a token, p + j - 1 tokens for the j-th."""
    return prompt_tokens * output_tokens + output_tokens * (output_tokens - 1) // 2


def srpt_latency(releases: Sequence[int], work: Sequence[int]) -> int:
    """Total latency (completion - release) of jobs on one machine under preemptive shortest remaining work first.

    No other schedule of the machine has less. Exact for integers, in whatever unit they are.
    """
    order = _by_release(releases)
    heap: list[tuple[int, int]] = []
    now = total = 0
    following = 0
    while heap or following < len(order):
        if not heap:
            now = max(now, releases[order[following]])
        while following < len(order) and releases[order[following]] <= now:
            heappush(heap, (work[order[following]], order[following]))
            following += 1
        left, index = heappop(heap)
        until = releases[order[following]] if following < len(order) else now + left
        if now + left <= until:
            now += left
            total += now - releases[index]
        else:
            heappush(heap, (left - (until - now), index))
            now = until
    return total


def busy_until(releases: Sequence[int], work: Sequence[int]) -> int:
    """When one machine has done all jobs, at the earliest: it never idles while there is one."""
    now = 0
    for index in _by_release(releases):
        now = max(now, releases[index]) + work[index]
    return now


def _by_release(releases: Sequence[int]) -> Sequence[int]:
    """Indices in order of release; most requests come in it."""
    count = range(len(releases))
    if all(earlier <= later for earlier, later in pairwise(releases)):
        return count
    return sorted(count, key=lambda index: releases[index])


def volume_bound(jobs: Iterable[Job], kv_tokens: int, step_ns: int) -> float:
    """The least total latency (ns) for a memory of ``kv_tokens`` tokens and steps of at least ``step_ns``, by volume.

    Nothing else limits: not the rows, not that a request's own tokens come one after the other.
    """
    every = list(jobs)
    work = [volume(job.prompt_tokens, job.output_tokens) * step_ns for job in every]
    return srpt_latency([job.arrival_ns * kv_tokens for job in every], work) / kv_tokens


def bounds(jobs: Iterable[Job], floors: Floors, limits: Limits) -> Bounds:
    """The bounds for requests that were all served. ``ValueError`` for none.

    A prefill step is taken to cost its prompt tokens, unless a prefix cache may have spared them. An output token that
    an evicted request's prefill gives on its return is taken at the cheaper of the kinds of step.
    """
    table = np.fromiter(chain.from_iterable(jobs), dtype=np.int64).reshape(-1, 3)
    if not len(table):
        raise ValueError("no request: a bound needs at least one")
    arrival, prompt, output = (table[:, column] for column in range(3))
    held = prompt * output + output * (output - 1) // 2
    releases: list[int] = (arrival - arrival.min()).tolist()
    #: of a step that gives one output token of a request, how much that token takes up
    shares = {"alone": output.astype(np.float64), "rows": output / limits.rows}
    if not limits.shared_prefixes:
        shares["memory"] = held / limits.kv_tokens
    families = list(_families(floors, limits, prompt, output, held))
    latencies: list[Least] = []
    makespans: list[Least] = []
    for binding, share in shares.items():
        # floored, so that each request's work is at most what it really takes
        works = [np.floor(step_ns * share + tokens_ns).astype(np.int64) for step_ns, tokens_ns in families]
        work = max(works, key=lambda amounts: int(amounts.sum()))
        if binding == "alone":
            latencies.append(Least(float(work.sum()), binding))
            makespans.append(Least(float((np.array(releases) + work).max()), binding))
        else:
            latencies.append(Least(float(srpt_latency(releases, work.tolist())), binding))
            makespans.append(Least(float(busy_until(releases, work.tolist())), binding))
    latency = max(latencies)
    return Bounds(Least(latency.ns / len(table), latency.binding), max(makespans), int(output.sum()))


def _families(
    floors: Floors, limits: Limits, prompt: IntArray, output: IntArray, held: IntArray
) -> Iterator[tuple[float, FloatArray]]:
    """Ways to put floors together, one for each kind of step: nanoseconds of a whole step, and of each request's
    tokens besides."""
    kinds = [kind for kind in floors if kind != "mixed" or limits.mixed]
    for chosen in product(*(floors[kind] for kind in kinds)):
        least = StepFloor(*(min(values) for values in zip(*chosen, strict=True)))
        prefill = least if limits.mixed else chosen[kinds.index("prefill")]
        computed = np.ones_like(prompt) if limits.shared_prefixes else prompt
        first_ns = prefill.token_ns * computed + _column_ns(prefill, limits) * prompt
        others_ns = least.token_ns * (output - 1) + _column_ns(least, limits) * (held - prompt)
        yield least.step_ns, first_ns + others_ns


def _column_ns(floor: StepFloor, limits: Limits) -> float:
    return floor.column_ns if limits.shared_prefixes else floor.column_ns + floor.own_ns
