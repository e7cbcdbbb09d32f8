"""What happened inside a run, step by step: told by replaying its scheduler, and kept for a sample of its requests.

A run's tables say when a request was first scheduled, when its first token came and when it ended, but not who was in
which step. The scheduler is deterministic, so it is asked again: with the journal of the run where there is one, and
else with the rows of its tables, as far as each plan has the digest that was recorded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.rows import digest_text
from reports.run import Run
from reports.waste import column
from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.errors import ConfigError, PolicyError
from scheduler.journal import JournalError, replay
from scheduler.observer import Observer
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence

JOURNAL_FILE = "replay.jsonl"

#: what a request is at, in the order of the page's legend
QUEUED, PREFILL, DECODE, COHORT, OTHERS, PREEMPTED, SERVED = range(7)
STATES = (
    "queued", "prefilled", "decoding", "waiting for its cohort", "waiting while others are prefilled", "preempted",
    "served",
)  # fmt: skip

#: steps.csv rows that are replayed for a page: some seconds
MOST_PLANS = 100_000
#: pieces of a story; shorter ones are merged into their neighbours, their time stays in the totals
MOST_PIECES = 40
_PIECES_MEANWHILE = 160
#: pieces that memory is looked at in
MEMORY_PIECES = 160


@dataclass(frozen=True)
class Piece:
    """A stretch of a request's time: one of :data:`STATES`, its end, and the tokens known at the end."""

    state: int
    end_ns: int
    tokens: int


@dataclass
class Story:
    """A request from its arrival to its end. ``spent_ns`` is exact for each of :data:`STATES`."""

    number: int
    start_ns: int
    pieces: list[Piece] = field(default_factory=list)
    spent_ns: list[int] = field(default_factory=lambda: [0] * len(STATES))
    steps: int = 0
    """decode steps that it was in"""

    @property
    def end_ns(self) -> int:
        return self.pieces[-1].end_ns if self.pieces else self.start_ns

    @property
    def admitted_ns(self) -> int:
        """When it was first served; its arrival if it did not wait."""
        queued = bool(self.pieces) and self.pieces[0].state == QUEUED
        return self.pieces[0].end_ns if queued else self.start_ns

    def add(self, state: int, end_ns: int, tokens: int) -> None:
        """Until ``end_ns`` it was at ``state``; nothing if that is no later than what is told already."""
        took = end_ns - self.end_ns
        if took <= 0:
            return
        self.spent_ns[state] += took
        if self.pieces and self.pieces[-1].state == state:
            self.pieces[-1] = Piece(state, end_ns, tokens)
        else:
            self.pieces.append(Piece(state, end_ns, tokens))
            if len(self.pieces) > 2 * _PIECES_MEANWHILE:
                self.pieces = merged(self.pieces, self.start_ns, _PIECES_MEANWHILE)


def merged(pieces: list[Piece], start_ns: int, most: int) -> list[Piece]:
    """At most ``most`` pieces: the shortest take the state of the piece before."""
    if len(pieces) <= most:
        return pieces
    starts = [start_ns, *(piece.end_ns for piece in pieces[:-1])]
    lengths = [piece.end_ns - start for piece, start in zip(pieces, starts, strict=True)]
    shortest = set(sorted(range(1, len(pieces)), key=lambda i: (lengths[i], i))[: len(pieces) - most])
    kept: list[Piece] = []
    for index, piece in enumerate(pieces):
        state = kept[-1].state if index in shortest else piece.state
        if kept and kept[-1].state == state:
            kept[-1] = Piece(state, piece.end_ns, piece.tokens)
        else:
            kept.append(Piece(state, piece.end_ns, piece.tokens))
    return kept


@dataclass(frozen=True)
class MemoryOverTime:
    """KV memory in token slots: ``edges_ns[n + 1]`` cut the time where steps ended, ``held`` and the others ``[n]`` are
    means of the pieces between."""

    edges_ns: npt.NDArray[np.int64]
    held: npt.NDArray[np.float64]
    reserved: npt.NDArray[np.float64]
    free: npt.NDArray[np.float64]
    unusable: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chronicle:
    """Stories by request number, and memory over time. ``source``: what they were told by; ``note``: why they are less
    than everything, empty if they are not."""

    stories: dict[int, Story]
    memory: MemoryOverTime | None
    source: str
    note: str

    @property
    def detailed(self) -> bool:
        """Whether it is known who was in which step."""
        return self.source != ""


def tell(run: Run, numbers: Iterable[int], most_pieces: int = MOST_PIECES) -> Chronicle:
    """The stories of the requests with these numbers, and the run's memory; as far as they can be told.

    A request whose steps are not known has a story of what its row says: queued, prefilled, served.
    """
    wanted = set(numbers)
    watcher: _Watcher | None = None
    source = note = ""
    try:
        config = _config_of(run)
        watcher = _Watcher(wanted, _edges(run))
        journal = None if run.folder is None else run.folder / JOURNAL_FILE
        if journal is not None and journal.is_file():
            source = "the journal"
            note = _by_journal(watcher, journal)
        else:
            source = "the rows"
            note = _by_rows(watcher, run, config)
    except (_CannotTellError, JournalError, ConfigError, PolicyError, OSError) as error:
        note = str(error)
    except (ValueError, RuntimeError) as error:
        # rows that no scheduler could have written
        note = f"{source} cannot be replayed: {error}"
    told = {} if watcher is None or not watcher.plans else watcher.told(most_pieces)
    if not told:
        source = ""
    stories = _from_rows(run.requests, wanted)
    for number, story in told.items():
        if number in stories and story.end_ns >= stories[number].end_ns:
            stories[number] = story
    memory = watcher.memory() if watcher is not None and told else None
    return Chronicle(stories, memory, source, note)


class _CannotTellError(Exception):
    """Why a run cannot be replayed, for the reader."""


def _config_of(run: Run) -> SchedulerConfig:
    if run.summary.get("cluster") is not None or "replica" in run.steps:
        raise _CannotTellError("the run was on several replicas")
    try:
        return SchedulerConfig.from_dict(run.manifest["config"])
    except (KeyError, TypeError) as error:
        raise _CannotTellError("the manifest does not hold the scheduler's settings") from error


def _edges(run: Run) -> list[int]:
    """The edges of equal pieces of the run's time."""
    if not len(run.steps):
        raise _CannotTellError("no step was run")
    start = int(column(run.steps, "start_ns").min())
    if len(run.requests):
        start = min(start, int(column(run.requests, "arrival_ns").min()))
    end = int(column(run.steps, "end_ns").max())
    return [start + (end - start) * i // MEMORY_PIECES for i in range(MEMORY_PIECES + 1)]


class _Plans(Protocol):
    """What a watched scheduler tells beside what an observer is told."""

    def planned(self, plan: StepPlan) -> None: ...

    def completed(self, plan: StepPlan, outcome: StepOutcome, counters: RunCounters) -> None: ...


class _WatchedScheduler(Scheduler):
    """Tells its observer of every plan as it is made, and as it is completed."""

    def __init__(self, config: SchedulerConfig, observer: Observer | None = None) -> None:
        super().__init__(config, observer)
        self._watcher = cast(_Plans, observer)

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        plan = super().next_step(now_ns, max_repeat)
        if plan is not None:
            self._watcher.planned(plan)
        return plan

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        ended = super().complete(plan, outcome, now_ns)
        self._watcher.completed(plan, outcome, self.counters)
        return ended


class _EnoughError(Exception):
    """As many plans as a page is worth."""


class _Watcher:
    """Keeps the stories of some requests; an :class:`~scheduler.observer.Observer` of a :class:`_WatchedScheduler`.

    A story goes on when its sequence is served again: what lies between is a wait, for its cohort, for the prompts of
    others, or without its memory.
    """

    def __init__(self, numbers: set[int], edges_ns: list[int]) -> None:
        self._numbers = numbers
        self._edges_ns = edges_ns
        self._last_end_ns = edges_ns[0]
        #: of the plans in flight, by index: the sequences that are told of, and whether a prompt of theirs is computed
        self._members: dict[int, list[tuple[Sequence, bool]]] = {}
        self._stories: dict[int, Story] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        self._prefill_ns = 0
        self._last = (edges_ns[0], 0, 0, 0, 0)
        self._sums = [self._last]
        self.plans = 0

    def planned(self, plan: StepPlan) -> None:
        if self.plans >= MOST_PLANS:
            raise _EnoughError
        self.plans += 1
        decode, numbers = plan.kind == "decode", self._numbers
        self._members[plan.index] = [
            (sequence, not decode and (tokens > 1 or start < sequence.prompt_tokens))
            for sequence, start, tokens, _ in plan.chunks
            if sequence.number in numbers
        ]

    def completed(self, plan: StepPlan, outcome: StepOutcome, counters: RunCounters) -> None:
        start_ns, end_ns = max(plan.now_ns, self._last_end_ns), int(outcome.ends_ns[-1])
        self._last_end_ns = end_ns
        steps = len(outcome.ends_ns)
        before_ns = self._prefill_ns
        if plan.kind == "prefill":
            self._prefill_ns += end_ns - start_ns
        for sequence, prompt in self._members.pop(plan.index):
            number = sequence.number
            story = self._stories.get(number)
            known = sequence.known
            if story is None:
                story = self._stories[number] = Story(number, sequence.arrival_ns)
                story.add(QUEUED, start_ns, sequence.prompt_tokens)
            elif start_ns > story.end_ns:
                self._waited(story, sequence, start_ns, before_ns, known - steps)
            story.steps += 0 if prompt else steps
            story.add(PREFILL if prompt else DECODE, end_ns, known)
            self._marks[number] = (self._prefill_ns, sequence.preemptions)
        self._last = (end_ns, counters.kv_held_token_ns, counters.kv_reserved_token_ns, counters.kv_free_token_ns,
                      counters.kv_unusable_token_ns)  # fmt: skip
        if bisect_right(self._edges_ns, end_ns) > bisect_right(self._edges_ns, self._sums[-1][0]):
            self._sums.append(self._last)

    def _waited(self, story: Story, sequence: Sequence, until_ns: int, prefill_ns: int, known: int) -> None:
        """Since it was last served it has waited; ``prefill_ns``: time of the prefill steps of the run so far."""
        prefill_before_ns, preemptions = self._marks[story.number]
        if sequence.preemptions > preemptions:
            story.add(PREEMPTED, until_ns, known)
            return
        story.add(OTHERS, min(until_ns, story.end_ns + prefill_ns - prefill_before_ns), known)
        story.add(COHORT, until_ns, known)

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        """Told by :meth:`completed`."""

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """In the run's own files."""

    def ended(self, sequence: Sequence) -> None:
        """Seen in :meth:`completed`; one that ends in no step waited until then."""
        story = self._stories.get(sequence.number)
        if story is not None and sequence.state == "aborted":
            self._waited(story, sequence, sequence.finish_ns, self._prefill_ns, sequence.known)

    def told(self, most_pieces: int) -> dict[int, Story]:
        """The stories, each of at most so many pieces."""
        for story in self._stories.values():
            story.pieces = merged(story.pieces, story.start_ns, most_pieces)
        return self._stories

    def memory(self) -> MemoryOverTime | None:
        """Means of the pieces of time between the plans that were looked at."""
        if self._last[0] > self._sums[-1][0]:
            self._sums.append(self._last)
        if len(self._sums) < 2:
            return None
        table = np.array(self._sums, dtype=np.float64)
        took = np.diff(table[:, 0])
        means = np.diff(table[:, 1:], axis=0) / np.maximum(took, 1)[:, None]
        edges = np.array([row[0] for row in self._sums], np.int64)
        return MemoryOverTime(edges, means[:, 0], means[:, 1], means[:, 2], means[:, 3])


def _by_journal(watcher: _Watcher, path: Path) -> str:
    with path.open(encoding="utf-8") as journal:
        try:
            told = replay(journal, watcher, _WatchedScheduler)
        except _EnoughError:
            return f"told for the first {MOST_PLANS:,} steps"
    return "" if told.exact else f"the journal replays to other plans from here on: {told.first_difference}"


def _by_rows(watcher: _Watcher, run: Run, config: SchedulerConfig) -> str:
    """Ask a scheduler for every recorded plan, in turn; where one comes out otherwise, that is as far as it goes.

    Of a stretch the rows know only the end: its steps are taken as equally long.
    """
    if config.overlap:
        raise _CannotTellError("the run overlapped steps, and no journal says when each was planned")
    if config.prefix_cache:
        raise _CannotTellError("the run had a prefix cache, and no journal says what prompts share")
    scheduler = _WatchedScheduler(config, watcher)
    # one more than are told: the watcher says when it is enough
    steps = run.steps[: MOST_PLANS + 1]
    starts, ends, repeats, device, host = (
        column(steps, name).tolist() for name in ("start_ns", "end_ns", "repeat", "device_ns", "host_ns")
    )
    digests = steps["digest"].tolist()
    requests = _requests(run.requests[run.requests["arrival_ns"] <= starts[-1]])
    sent = 0
    for row, (start, end, repeat) in enumerate(zip(starts, ends, repeats, strict=True)):
        while sent < len(requests) and requests[sent].arrival_ns <= start:
            scheduler.submit(requests[sent], requests[sent].arrival_ns)
            sent += 1
        so_far = f"told for the first {row:,} of {len(run.steps):,} rows of steps"
        try:
            plan = scheduler.next_step(start, repeat)
        except _EnoughError:
            return so_far
        if plan is None or plan.repeat != repeat or digest_text(plan.digest_entry, repeat) != digests[row]:
            return f"{so_far}, which say no more of who was in a step"
        each = [start + (end - start) * (step + 1) // repeat for step in range(repeat)]
        scheduler.complete(plan, StepOutcome(each, device[row], host[row]), end)
    return ""


def _requests(table: pd.DataFrame) -> list[Request]:
    """The requests of a run in the order of their numbers."""
    ordered = table.sort_values("number", kind="stable")
    columns = ("id", "arrival_ns", "prompt_tokens", "max_tokens", "output_tokens", "tenant", "priority", "outcome")
    rows: Iterable[tuple[Any, ...]] = zip(*(ordered[name].tolist() for name in columns), strict=True)
    return [
        Request(id=name, arrival_ns=arrival, prompt_tokens=prompt, max_tokens=most, tenant=tenant, priority=priority,
                output_tokens=output if outcome == "finished" else None)
        for name, arrival, prompt, most, output, tenant, priority, outcome in rows
    ]  # fmt: skip


def _from_rows(table: pd.DataFrame, numbers: set[int]) -> dict[int, Story]:
    """What the rows alone say: queued until first scheduled, prefilled until the first token, served until the end."""
    chosen = table[table["number"].isin(numbers)]
    names = ("number", "arrival_ns", "first_scheduled_ns", "first_token_ns", "finish_ns", "prompt_tokens",
             "output_tokens")  # fmt: skip
    stories = {}
    for number, arrival, scheduled, first, finish, prompt, output in zip(
        *(column(chosen, name).tolist() for name in names), strict=True
    ):
        story = stories[number] = Story(number, arrival)
        story.add(QUEUED, scheduled if scheduled >= 0 else finish, prompt)
        if scheduled >= 0:
            story.add(PREFILL, first if first >= 0 else finish, prompt + min(1, output))
        if first >= 0:
            story.add(SERVED, finish, prompt + output)
    return stories
