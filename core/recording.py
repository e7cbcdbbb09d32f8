"""A run whose steps are the recording that costs are fitted to: it meets the features of a step, evenly and fast.

The loop and the scheduler are the usual ones, on requests of random token ids. What is unusual is who hands them in:
not a workload with its times, but a plan that waits for the steps it wants, and aborts requests to have fewer rows. No
step overlaps another, so that the host's time shows. With ``overlap`` each part of the plan is played a second time,
each step planned and launched while one runs: then the device does not wait for its launches, and its time is less.
Both come in turn, since a host is not the same from one minute to the next.

How much is recorded follows from what the device can do in ``budget_s`` seconds. A pilot finds the prompt tokens that
it computes in a second, and the time that a decode step takes, by its rows. The run's KV memory is what a tenth of the
time fills, at most what the device has. The time goes to the parts of the plan by their weights. A part takes as many
rows as 40% of its time can prefill, and another 40% can step once for each number of rows; it takes more steps of each
as long as there is time. Whatever the time, each part is begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.config import SchedulerConfig
from scheduler.graphs import graph_sizes
from scheduler.observer import Observer
from scheduler.plan import Layout, StepFeatures, StepOutcome, StepPlan
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence as SchedulerSequence
from simulator.recorded import keeps_waiting
from simulator.warmth import LARGE

if TYPE_CHECKING:
    from engine.loop import EngineLoop

#: the shortest prompt, and the shortest mean context of a sweep; each next one is four times as long
SHORTEST_PROMPT, SHORTEST_CONTEXT = 16, 64
#: KV memory for one row, where the device has more
MOST_TOKENS_A_ROW = 4096
#: decode steps that are wanted of each number of rows
STEPS_EACH = 6
#: swaps that are wanted, those that are waited for when the time is up, and the steps to wait for them at most, once
#: the memory is full
SWAPS, FEWEST_SWAPS, SWAP_STEPS = 12, 4, 200
#: rows of a pilot, at most
PILOT_ROWS = 16
#: rows for which a decode step takes twice the time of one of few, at least
_ROWS_OF_TWICE_THE_TIME = 256
#: tokens of a long prompt that a device computes while it decodes one more row of a short context, at most
MOST_TOKENS_OF_A_ROW = 8
#: rests between prompts, at most: a few times what a card needs to cool, see :mod:`simulator.warmth`, and in steps
LONGEST_REST_S, MOST_RESTING = 0.15, 20
#: prompts of lengths of their own, at most, in a part of the plan that has time for them
MOST_DRAWN = 2000
#: rows beside which prompts of any length come, at most
MOST_BESIDE = 48
#: token ids beyond a context's that prompts are taken from
_MORE_IDS = 1 << 16
#: of the memory, what prompts fill at most where nothing is to be swapped
FILL = 0.8


TokenIds = tuple[int, ...]
#: lengths of so many rows whose mean is the first argument, in rising order
Lengths = Callable[[int, int], list[float]]


def similar(mean: int, rows: int) -> list[float]:
    """Half of the mean to one and a half."""
    return [mean * (0.5 + place / rows) for place in range(rows)]


def lognormal(sigma: float) -> Lengths:
    """Lengths of conversations are about lognormal."""

    def lengths(mean: int, rows: int) -> list[float]:
        normal = NormalDist(-(sigma**2) / 2, sigma)
        return [mean * math.exp(normal.inv_cdf((place + 0.5) / rows)) for place in range(rows)]

    return lengths


#: of 256 rows the longest is five times the mean, or eleven times. Rows wait for the longest in the latter and hardly
#: in :func:`similar` ones: where the one turns into the other is between
different, very_different = lognormal(0.6), lognormal(1.0)


class Watch:
    """An observer that passes everything on, and remembers the last step and who has not ended."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self.steps = 0
        self.swaps = 0
        self.last: StepFeatures | None = None
        self.last_device_ns = 0
        #: whether the device may have waited for what comes after the last step
        self.late: bool = False
        #: rows and device time of each decode step
        self.decodes: list[tuple[int, int]] = []
        self.live: dict[str, None] = {}

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.steps += steps
        self.swaps += len(plan.swapped_out) + len(plan.swapped_in)
        self.last, self.last_device_ns = plan.features, outcome.device_ns
        self.late = keeps_waiting(outcome.host_ns, outcome.device_ns)
        if plan.kind == "decode":
            self.decodes.append((plan.features.rows, outcome.device_ns))
        if self._observer is not None:
            self._observer.stepped(plan, steps, outcome)

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        if self._observer is not None:
            self._observer.gaps(gap_ns, weight)

    def ended(self, sequence: SchedulerSequence) -> None:
        self.live.pop(sequence.id, None)
        if self._observer is not None:
            self._observer.ended(sequence)


class Pilot(NamedTuple):
    """What a device can do: prompt tokens a second, the longest prompt that was tried, and seconds of a decode step.

    Those are ``decode_step_s`` and ``decode_row_s`` for each row. On a GPU they are nearly all the step's.
    """

    tokens_per_s: float
    longest_prompt: int
    decode_row_s: float
    decode_step_s: float = 0.0


@dataclass(frozen=True)
class Scale:
    """How large a recording is."""

    config: SchedulerConfig
    """of the run, with its KV memory"""
    pilot: Pilot
    budget_s: float
    """for the plan, each time it is played"""
    context_tokens: int
    """the longest context"""

    @property
    def contexts(self) -> list[int]:
        """Mean contexts of the sweeps over numbers of rows."""
        found = [SHORTEST_CONTEXT]
        while found[-1] * 4 * 1.5 <= self.context_tokens:
            found.append(found[-1] * 4)
        return found


def recording_settings(layout: Layout, max_prefill_tokens: int) -> dict[str, Any]:
    """Settings that a recording is made under: all kinds of step of the layout, and swaps, in one run."""
    paged = {"phase": "mixed", "chunk_tokens": max_prefill_tokens, "prefix_cache": True}
    return {"kv_pool": "paged", "preemption": "swap", **(paged if layout == "paged" else {})}


def scale_of(config: SchedulerConfig, pilot: Pilot, budget_s: float) -> Scale:
    """The scale of a recording under ``config``, whose KV memory is the device's."""
    budget_s /= 1 + config.overlap
    block, longest = config.block_tokens, pilot.longest_prompt
    wanted = max(int(0.1 * budget_s * pilot.tokens_per_s), 2 * longest, 4 * SHORTEST_CONTEXT)
    wanted = min(wanted, max(MOST_TOKENS_A_ROW * config.max_running, 2 * config.context_tokens))
    # a few percent of the time are for swaps, which need rows that fill the memory
    wanted = min(wanted, int(0.45 * swap_rows(config, pilot, budget_s) * config.context_tokens))
    kv_tokens = max(block, min(config.kv_tokens, wanted) // block * block)
    context = min(config.context_tokens, int(FILL * kv_tokens))
    if config.layout == "padded":
        # every slot of a dense cache is as long as the longest, and there are two of them while it grows
        context = min(context, max(SHORTEST_CONTEXT, config.kv_tokens // config.max_running // 3))
    return Scale(replace(config, kv_tokens=kv_tokens), pilot, budget_s, context)


def swap_rows(config: SchedulerConfig, pilot: Pilot, budget_s: float) -> int:
    """Rows among which swaps are recorded: as many as 5% of the time can step 50 times, at least 4."""
    rows_s = 0.05 * budget_s / 50 - pilot.decode_step_s
    return min(config.max_running, max(4, int(rows_s / pilot.decode_row_s)))


def decode_seconds(decodes: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Seconds for a row and for a step, of decode steps (rows, nanoseconds): a straight line, neither below zero.

    Its slope is the median of those between any two (Theil and Sen), since a host may be away for longer than a step.
    Some hundred rows take twice the time of a few, at least: more of them than the pilot has are to be expected slower.
    """
    if not decodes:
        return 1e-9, 0.0
    rows, times_ns = np.array(decodes, dtype=np.float64).T
    one, other = np.triu_indices(len(rows), 1)
    apart = rows[one] != rows[other]
    slopes = (times_ns[other] - times_ns[one])[apart] / (rows[other] - rows[one])[apart]
    slope = float(np.median(slopes)) if len(slopes) else 0.0
    slope = max(slope, float(times_ns.mean()) / _ROWS_OF_TWICE_THE_TIME, 1.0)
    constant = float(np.median(times_ns - slope * rows))
    if constant < 0:
        slope, constant = max(float(times_ns.sum() / rows.sum()), 1.0), 0.0
    return slope / 1e9, constant / 1e9


def run_pilot(
    make_loop: Callable[[Scheduler], EngineLoop], config: SchedulerConfig, vocab: int, budget_s: float
) -> Pilot:
    """Run a few rows and ever longer prompts: what a device meets for the first time is slow, and these are not kept.

    It ends at the longest prompt of a step, or at one that takes 3% of the time.
    """
    watch, rng = Watch(), Random(0)
    longest = min(config.max_prefill_tokens, config.context_tokens - 1)
    needed = (longest + 32 * config.max_running) // config.block_tokens * config.block_tokens
    memory = max(config.block_tokens, min(config.kv_tokens, needed))
    few = tuple(size for size in config.graph_rows if size <= PILOT_ROWS)
    pilot = replace(config, kv_tokens=memory, graph_rows=few, graph_mixed=(), overlap=False)
    loop = make_loop(Scheduler(pilot, watch))
    for attempt in range(2):
        watch.decodes.clear()
        loop.run(
            _request(f"row {row}.{attempt}", _token_ids(8 + row, rng, vocab), row + 2, rng, 0.0, loop.now_ns())
            for row in range(min(config.max_running, PILOT_ROWS))
        )
    size, rate = min(SHORTEST_PROMPT, longest), 1.0
    while True:
        for attempt in range(2):
            loop.run([_request(f"{size}.{attempt}", _token_ids(size, rng, vocab), 1, rng, 0.0, loop.now_ns())])
        seconds = max(watch.last_device_ns, 1) / 1e9
        rate = size / seconds
        if size == longest or seconds > 0.03 * budget_s:
            row_s, step_s = decode_seconds(watch.decodes)
            # a row is a token of a product, and some KV: a slope beyond that is the host's
            return Pilot(rate, size, min(row_s, MOST_TOKENS_OF_A_ROW / rate), step_s)
        size = min(2 * size, longest)


class Recording:
    """Drives a loop through the plan. ``notes``: what was recorded, a line each, and what there was no time for."""

    def __init__(
        self,
        scale: Scale,
        vocab: int,
        *,
        temperature: float,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scale = scale
        self._watch = Watch()
        self.notes: list[str] = []
        self._temperature = temperature
        self._rng = Random(seed)
        self._ids = _token_ids(scale.config.context_tokens + _MORE_IDS, self._rng, vocab)
        self._clock = clock
        self._made = 0
        self._deadline_s = 0.0
        self._part_s = 0.0

    def watching(self, observer: Observer) -> Observer:
        """What the scheduler of the loop is to tell: it passes everything on to ``observer``."""
        self._watch = Watch(observer)
        return self._watch

    def play(self, loop: EngineLoop) -> None:
        """Run the whole plan; on ``KeyboardInterrupt`` everything is aborted, as :meth:`EngineLoop.run` does.

        The loop's scheduler has an observer from :meth:`watching`.
        """
        self._loop = loop
        loop.shares_prompts = False
        try:
            self._play()
        except KeyboardInterrupt:
            loop.abort_all()
            raise

    def _play(self) -> None:
        config, watch = self.scale.config, self._watch
        modes = (False, True)[: 1 + config.overlap]
        schedule = [
            (name, weight, part, overlap)
            for name, *weights, part in self._parts()
            for overlap, weight in zip(modes, weights, strict=False)
        ]
        end_s = self._clock() + self.scale.budget_s * len(modes)
        for place, (name, weight, part, overlap) in enumerate(schedule):
            before = watch.steps
            left = sum(weight for _, weight, *_ in schedule[place:])
            now_s = self._clock()
            self._part_s = max(0.0, end_s - now_s) * weight / left
            self._deadline_s = now_s + self._part_s
            self._loop.overlap = overlap
            part()
            self._drain()
            title = "overlapped, " if overlap else ""
            self.notes.append(f"{title}{name}: {watch.steps - before} steps in {self._clock() - now_s:.1f} s")

    def _parts(self) -> list[tuple[str, float, float, Callable[[], None]]]:
        """What is played: its name, and its weight the first time and the second."""
        contexts = self.scale.contexts
        parts: list[tuple[str, float, float, Callable[[], None]]] = [
            ("prompts", 2, 4, self._prompts),
            ("prompts behind long contexts", 2, 2, self._behind_contexts),
        ]
        if self.scale.config.layout == "paged" and len(contexts) > 1:
            first, *others = contexts
            parts.append((f"rows of about {first:,} tokens", 2, 2, self._sweep_of(first)))
            for context in others:
                parts.append((f"rows of about {context:,} tokens", 1, 1, self._sweep_of(context)))
                spread = self._spread_sweep_of(context, very_different)
                parts.append((f"rows of {context:,} tokens on average", 1, 1, spread))
                if context >= self.scale.config.block_tokens:
                    parts.append((f"rows that share {context:,} tokens", 1, 1, self._sharing_sweep_of(context)))
            parts.append(("rows among which one is long", 1, 1, self._uneven_sweep))
            parts.append(("prompts beside rows", 2, 3, self._drawn_beside_decodes))
        else:
            parts += [(f"rows of about {context:,} tokens", 2, 2, self._sweep_of(context)) for context in contexts]
        parts.append(("swaps", 1, 1, self._swaps))
        # what a fast device has time for: contexts between those, which say how straight the fits are
        for context in contexts:
            if 3 * context <= self.scale.context_tokens:
                between = 2 * context
                parts.append((f"rows of about {between:,} tokens", 0.5, 0.5, self._sweep_of(between)))
                if self.scale.config.layout == "paged":
                    spread = self._spread_sweep_of(between, different)
                    parts.append((f"rows of {between:,} tokens on average", 0.5, 0.5, spread))
        return parts

    # -- the parts

    def _prompts(self) -> None:
        """Prefill steps of 16 tokens to the most of a step, as one chunk and as several; then of any size.

        Each waits for the one before; with overlap it is handed in while that one runs, and every other large one comes
        after a rest: a card that waits for memory is clocked higher than one that has just computed a prompt. Where
        hosts are late with a prompt so short, it comes behind a longest one, which hides its launch.
        """
        most = self.scale.pilot.longest_prompt
        doubled = [*(1 << power for power in range(4, 20) if 1 << power < most), most]
        between = [3 * size // 4 for size in doubled[1:]]
        wanted = [(size, chunks) for sizes in (doubled, between) for chunks in (1, 4, 16) for size in sizes]
        wanted += [(self._drawn(most), (1, 1, 1, 2, 3)[place % 5]) for place in range(MOST_DRAWN)]
        wanted = [(size, chunks) for size, chunks in wanted if chunks == 1 or size // chunks >= 4]
        # it fills its step, so that the next one has something to overlap
        filler = [min(self.scale.config.max_prefill_tokens, self.scale.context_tokens - 2)]
        if self._loop.overlap:
            self._submit(filler, 1)
        for place, (size, chunks) in enumerate(wanted):
            if place >= len(doubled) and self._late:
                break
            if self._loop.overlap and self._watch.late:
                self._submit(filler, 1)
                self._loop.step()
            elif self._loop.overlap and place % 2 and size >= LARGE:
                (name,) = self._submit([SHORTEST_PROMPT], None)
                self._rest()
                self._abort([name])
            self._submit([size // chunks] * min(chunks, self.scale.config.rows), 1)
            if self._loop.overlap:
                self._loop.step()
            else:
                self._drain()

    def _drawn(self, most: int, least: int = SHORTEST_PROMPT) -> int:
        """Tokens of a prompt, from ``least`` to ``most``: as likely twice as long as half as long."""
        return round(least * math.exp(self._rng.uniform(0.0, math.log(max(1.0, most / least)))))

    def _behind_contexts(self) -> None:
        """Chunks of long prompts, the last one of each a short one; then of prompts of any length."""
        most = self.scale.config.max_prefill_tokens
        longest = self.scale.context_tokens - 2
        for share in (8, 4, 2, 1):
            for tail in sorted({SHORTEST_PROMPT, *(max(SHORTEST_PROMPT, most // part) for part in (16, 4, 2))}):
                chunks = max(1, (longest // share - tail) // most)
                if chunks * most + tail > longest:
                    continue
                # two, so that the end of one and the beginning of the other are one step
                for count in (1, 2):
                    if self._late or count * (chunks * most + tail) > FILL * self.scale.config.kv_tokens:
                        break
                    self._submit([chunks * most + tail] * count, 1)
                    self._drain()
        for place in range(MOST_DRAWN):
            lengths = [self._drawn(longest, min(most, longest)) for _ in range(1 + place % 2)]
            if self._late or sum(lengths) > FILL * self.scale.config.kv_tokens:
                break
            self._submit(lengths, 1)
            self._drain()

    def _sweep_of(self, context: int) -> Callable[[], None]:
        return lambda: self._sweep(context, ())

    def _spread_sweep_of(self, context: int, lengths_of: Lengths) -> Callable[[], None]:
        """Rows come in one or two at a time: together they would fill every step, and none would have fewer tokens."""
        return lambda: self._sweep(context, (), lengths_of=lengths_of, at_a_time=2)

    def _sharing_sweep_of(self, shared: int) -> Callable[[], None]:
        """Rows behind one of two beginnings whose KV they share, of ``shared`` tokens and of half as many."""

        def part() -> None:
            beginnings = [self._token_ids(length) for length in (shared, shared // 2)]
            # before they come: what is computed in one step cannot be shared in it
            self._loop.shares_prompts = True
            self._submit([0, 0], 1, beginnings)
            self._drain()
            self._sweep(SHORTEST_CONTEXT, (), beginnings=beginnings)
            self._loop.shares_prompts = False

        return part

    def _uneven_sweep(self) -> None:
        longest = int(0.6 * self.scale.context_tokens)
        affordable = int(0.3 * self._part_s * self.scale.pilot.tokens_per_s)
        self._sweep(SHORTEST_CONTEXT, (max(SHORTEST_CONTEXT, min(longest, affordable)),), most_rows=64)

    def _sweep(
        self,
        context: int,
        longer: Sequence[int],
        most_rows: int = 1 << 20,
        lengths_of: Lengths = similar,
        beginnings: Sequence[TokenIds] = ((),),
        at_a_time: int | None = None,
    ) -> None:
        """Rows of about ``context`` tokens, and some ``longer`` ones, decode together; then fewer and fewer of them.

        All are behind one of the ``beginnings``, in turn. They come in together, or up to ``at_a_time``.
        """
        scale, rng = self.scale, self._rng
        memory = FILL * scale.config.kv_tokens - sum(longer) - sum(map(len, beginnings))
        tokens = min(memory, 0.4 * self._part_s * scale.pilot.tokens_per_s)
        rows = max(1, min(most_rows, scale.config.max_running, int(tokens / context) + len(longer)))
        a_step = scale.config.max_prefill_tokens / context
        if at_a_time is not None:
            a_step = min(a_step, (1 + at_a_time) / 2)
        affordable = next(size for size in reversed((1, *graph_sizes(rows))) if self._affords(size, a_step))
        rows = max(affordable, len(longer) + 1, min(2, scale.config.max_running))
        longest = max(1, scale.context_tokens * 3 // 4 - max(map(len, beginnings)))
        lengths = [max(1, min(int(length), longest)) for length in lengths_of(context, rows)[: rows - len(longer)]]
        rng.shuffle(lengths)
        scheduler: Any = self._loop.scheduler
        while at_a_time is not None and len(lengths) > at_a_time and not self._late:
            self._submit([lengths.pop() for _ in range(rng.randint(1, at_a_time))], None, beginnings)
            while self._loop.step() and scheduler.waiting and not self._late:
                pass
        kept = self._submit([*longer, *lengths], None, beginnings)[: len(longer)]
        self._settle()
        mixed = 0
        for size in reversed(graph_sizes(max(1, self._rows))):
            leaving = [name for name in self._watch.live if name not in kept]
            rng.shuffle(leaving)
            self._abort(leaving[: max(0, len(self._watch.live) - size)])
            for _ in range(1 if self._late else STEPS_EACH):
                if not self._loop.step():
                    return
            if not mixed or (size % 2 == 0 and not self._late):
                mixed += self._beside_decodes(mixed)

    def _affords(self, rows: int, a_step: float) -> bool:
        """Whether 40% of the part's time has steps of ``rows`` rows while they come in, so many of them in ``a_step``,
        and of each size after that."""
        pilot, sizes = self.scale.pilot, graph_sizes(rows)
        coming_in = rows / a_step
        steps_s = (coming_in + len(sizes)) * pilot.decode_step_s
        return rows == 1 or steps_s + (coming_in * rows + sum(sizes)) * pilot.decode_row_s <= 0.4 * self._part_s

    def _beside_decodes(self, number: int) -> bool:
        """A prompt arrives while rows decode; each time one of another length. Whether there was a place for it."""
        sizes = [16 << 2 * power for power in range(8)]
        most = min(self.scale.pilot.longest_prompt, max(16, int(self._part_s * self.scale.pilot.tokens_per_s / 60)))
        sizes = [size for size in sizes if size < most] + [most]
        free = self._loop.scheduler.config.max_running - len(self._watch.live)
        if free < 1:
            return False
        (name,) = self._submit([sizes[number % len(sizes)]], 1)
        for _ in range(4):
            if name not in self._watch.live:
                break
            self._loop.step()
        self._abort([name])
        return True

    def _drawn_beside_decodes(self) -> None:
        """Prompts beside rows that decode, of any context: fewer rows each time, down to two, and then others.

        One in four is of any length, and comes in chunks, most of which fill their step; the others are no longer than
        a step takes, so that there are steps of as many tokens as smaller budgets have. With overlap every other one
        comes after a rest.
        """
        scale = self.scale
        kv_tokens, affordable = scale.config.kv_tokens, self._part_s * scale.pilot.tokens_per_s
        # half of the memory is theirs, of which they fill a half and grow in the other, and a fifth of the time
        theirs = int(min(kv_tokens // 4, 0.2 * affordable))
        most = min(scale.context_tokens * 3 // 4, kv_tokens // 4, int(0.1 * affordable))
        if theirs < 2 * SHORTEST_CONTEXT or most < SHORTEST_PROMPT or scale.config.max_running < 3:
            self.notes.append("no prompts beside rows: there is too little time or memory")
            return
        whole = min(most, scale.config.max_prefill_tokens)
        for place in range(MOST_DRAWN):
            if self._late:
                return
            if len(self._watch.live) <= 2:
                self._abort(list(self._watch.live))
                self._submit(self._drawn_contexts(theirs), None)
                self._settle()
            if self._loop.overlap and place % 2:
                self._rest()
            length = self._rng.randint(SHORTEST_PROMPT, whole) if place % 4 else self._drawn(most)
            (name,) = self._submit([length], 1)
            while name in self._watch.live:
                if self._late or not self._loop.step():
                    return
            self._abort(list(self._watch.live)[:1])

    def _drawn_contexts(self, tokens: int) -> list[int]:
        """Of at least two rows, ``tokens`` together at most."""
        longest = min(self.scale.context_tokens // 2, tokens // 2)
        lengths = [
            self._drawn(longest, SHORTEST_CONTEXT) for _ in range(min(MOST_BESIDE, self.scale.config.max_running - 1))
        ]
        return [length for length, together in zip(lengths, accumulate(lengths), strict=True) if together <= tokens]

    def _swaps(self) -> None:
        """Rows fill the memory and grow; whoever is moved out comes back when others have left."""
        scale = self.scale
        kv_tokens = scale.config.kv_tokens
        rows = swap_rows(scale.config, scale.pilot, scale.budget_s)
        mean = max(2 * scale.config.block_tokens, 256, int(1.3 * kv_tokens / rows))
        most = scale.context_tokens * 3 // 4
        lengths: list[int] = []
        while sum(lengths) < kv_tokens and len(lengths) < rows:
            lengths.append(max(1, min(int(mean * (0.5, 1.25, 0.75, 1.5)[len(lengths) % 4]), most)))
        if sum(lengths) < kv_tokens or len(lengths) < 2:
            self.notes.append(f"no swaps: {rows} rows do not fill the memory")
            return
        self._submit(lengths, None)
        before, steps = self._watch.swaps, self._watch.steps
        # longer than the part's time, if need be: until the memory is full there are none
        end_s = self._clock() + self._part_s + 2 * kv_tokens / scale.pilot.tokens_per_s
        aborted = 0
        most_steps = SWAP_STEPS + len(lengths) + 2 * kv_tokens // scale.config.max_prefill_tokens
        while self._watch.swaps - before < SWAPS and self._watch.steps - steps < most_steps:
            swaps = self._watch.swaps - before
            if swaps > 2 * aborted and len(self._watch.live) > 2:
                self._abort([next(iter(self._watch.live))])
                aborted += 1
            if not self._loop.step() or (self._late and (swaps >= FEWEST_SWAPS or self._clock() > end_s)):
                return

    # -- what they are made of

    def _token_ids(self, length: int) -> TokenIds:
        """Of any beginning among ids that are there already: to make some takes time that would be the host's work."""
        start = self._rng.randrange(len(self._ids) - length + 1)
        return self._ids[start : start + length]

    @property
    def _late(self) -> bool:
        return self._clock() > self._deadline_s

    @property
    def _rows(self) -> int:
        return 0 if self._watch.last is None else self._watch.last.rows

    def _submit(
        self, lengths: Iterable[int], output_tokens: int | None, beginnings: Sequence[TokenIds] = ((),)
    ) -> list[str]:
        """Hand in prompts, to go on for ``output_tokens``, or for as long as the context allows. Returns the ids.

        Each is so long behind one of the ``beginnings``, in turn.
        """
        requests = []
        for place, length in enumerate(lengths):
            prompt = (*beginnings[place % len(beginnings)], *self._token_ids(length))
            most = max(1, min(self.scale.config.context_tokens, self.scale.config.kv_tokens) - len(prompt))
            tokens = min(most, 4096 if output_tokens is None else output_tokens)
            name = f"{self._made}"
            self._made += 1
            requests.append(_request(name, prompt, tokens, self._rng, self._temperature, self._loop.now_ns()))
        for request in requests:
            self._watch.live[request.id] = None
            self._loop.submit(request)
        return [request.id for request in requests]

    def _abort(self, names: Iterable[str]) -> None:
        for name in names:
            self._loop.abort(name)
            self._watch.live.pop(name, None)

    def _rest(self) -> None:
        """Let whoever is there decode for a while, of any length."""
        end_s = self._clock() + self._rng.uniform(0.0, LONGEST_REST_S)
        for _ in range(MOST_RESTING):
            if self._clock() > end_s or self._late or not self._loop.step():
                return

    def _settle(self) -> None:
        """Step until all that there is room for decode, and nothing is left to prefill.

        When the part's time is up, whoever waits is sent away.
        """
        scheduler: Any = self._loop.scheduler
        while self._loop.step():
            if self._late and scheduler.waiting:
                self._abort(list(self._watch.live)[-scheduler.waiting :])
            if self._watch.last is not None and self._watch.last.kind == "decode":
                return

    def _drain(self) -> None:
        """Step until every request that ends by itself has ended, and abort the others."""
        while self._loop.step():
            last = self._watch.last
            if last is not None and last.kind == "decode":
                self._abort(list(self._watch.live))
        # the host's time begins anew with the next step
        self._loop.step()


def _token_ids(length: int, rng: Random, vocab: int) -> TokenIds:
    return tuple(np.random.Generator(np.random.PCG64(rng.getrandbits(64))).integers(0, vocab, length).tolist())


def _request(
    name: str, prompt: TokenIds, output_tokens: int, rng: Random, temperature: float, arrival_ns: int
) -> Request:
    sampling = SamplingParams(temperature=temperature, seed=rng.getrandbits(31))
    return Request(
        name, arrival_ns, len(prompt), output_tokens, output_tokens, prompt_token_ids=prompt, sampling=sampling
    )
