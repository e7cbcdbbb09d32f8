"""What a scheduler was told, in call order: enough to repeat every plan exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, TextIO

from scheduler.config import SchedulerConfig
from scheduler.observer import Observer
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import HeadStart, Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence

SCHEMA = 2

#: two entries a step: to make an encoder for each takes as long as to encode it
_encode = json.JSONEncoder(separators=(",", ":")).encode


class JournalError(ValueError):
    """A journal that cannot be replayed; the message is one line that names the place."""


class BlockNumbers:
    """Block hashes as small numbers, by first appearance: what a journal keeps of them.

    A scheduler asks of two hashes only whether they are equal. A prompt's blocks that no prompt had before get
    consecutive numbers, so that a prompt is a few runs of numbers however long it is.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def runs(self, hashes: Iterable[int]) -> list[int]:
        """The numbers of ``hashes`` as runs: first number, count, first number, count, ..."""
        numbers = self._numbers
        runs: list[int] = []
        for block_hash in hashes:
            number = numbers.setdefault(block_hash, len(numbers))
            if runs and number == runs[-2] + runs[-1]:
                runs[-1] += 1
            else:
                runs += (number, 1)
        return runs

    @staticmethod
    def expand(runs: list[int]) -> tuple[int, ...]:
        """The numbers in ``runs``; they serve as hashes."""
        pairs = zip(runs[::2], runs[1::2], strict=True)
        return tuple(number for first, count in pairs for number in range(first, first + count))


class JournaledScheduler(Scheduler):
    """A scheduler that writes down each call.

    One JSON object a line: a header, then in the order of the calls ``plan`` (the time that was read, what came in
    since the plan before, and the digest of what was planned, if anything was) and ``complete`` (the index of the
    plan, the end times, device and host nanoseconds, and who was stopped by an end token or a stop string). With
    overlap there is a ``plan`` between a plan and its ``complete``; a stretch in flight may be the subject of a
    ``shorten`` before it. Times are integers and are never computed again.
    """

    def __init__(self, config: SchedulerConfig, stream: TextIO, observer: Observer | None = None) -> None:
        super().__init__(config, observer)
        self._stream = stream
        self._inbox: list[list[Any]] = []
        self._in_flight = 0
        self._blocks = BlockNumbers()
        self._write({"e": "header", "schema": SCHEMA, "config": self.config.as_dict()})

    def _write(self, entry: dict[str, Any]) -> None:
        self._stream.write(_encode(entry) + "\n")

    def submit(self, request: Request, now_ns: int) -> Sequence:
        sequence = super().submit(request, now_ns)
        r = request
        call = ["submit", now_ns, r.id, r.prompt_tokens, r.max_tokens, r.output_tokens, r.stop_kind, r.arrival_ns,
                r.tenant, r.priority]  # fmt: skip
        more = [r.deadline_ns, self._blocks.runs(r.block_hashes), [] if r.head_start is None else astuple(r.head_start)]
        while more and more[-1] in (None, []):
            more.pop()
        call += more
        self._inbox.append(call)
        return sequence

    def abort(self, request_id: str, now_ns: int, reason: str = "aborted") -> None:
        super().abort(request_id, now_ns, reason)
        self._inbox.append(["abort", now_ns, request_id, *([] if reason == "aborted" else [reason])])

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        plan = super().next_step(now_ns, max_repeat)
        # to be asked moves the plan in flight on, also where no other is made
        if plan is None and not self._inbox and not self._in_flight:
            return None
        entry: dict[str, Any] = {"e": "plan", "now": now_ns, "in": self._inbox}
        if max_repeat != 1:
            entry["max_repeat"] = max_repeat
        if plan is not None:
            entry["i"] = plan.index
            entry["run"] = list(plan.digest())
            self._in_flight += 1
        self._write(entry)
        self._inbox = []
        return plan

    def shorten(self, plan: StepPlan, steps: int) -> None:
        super().shorten(plan, steps)
        self._write({"e": "shorten", "i": plan.index, "steps": steps})

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        entry = {
            "e": "complete", "i": plan.index, "now": now_ns, "ends": [int(end) for end in outcome.ends_ns],
            "device_ns": outcome.device_ns, "host_ns": outcome.host_ns,
        }  # fmt: skip
        if outcome.stops:
            entry["stops"] = [[number, reason] for number, reason in outcome.stops.items()]
        self._write(entry)
        self._in_flight -= 1
        return super().complete(plan, outcome, now_ns)


@dataclass(frozen=True)
class Replay:
    """A journal replayed: the scheduler as it ended, and where its plans first differed from the recorded ones."""

    scheduler: Scheduler
    plans: int
    first_difference: str | None

    @property
    def exact(self) -> bool:
        """Whether every plan came out as recorded."""
        return self.first_difference is None


def replay(lines: Iterable[str], observer: Observer | None = None, world: type[Scheduler] = Scheduler) -> Replay:
    """Tell a new scheduler what the journal's was told, and compare its plans.

    A half-written last line (of a killed run) ends the replay; anything else that is malformed is a
    :class:`JournalError` naming the line. ``world`` lets a test replay on a scheduler that differs.
    """
    entries = _parse(lines)
    number, header = next(entries, (1, {}))
    config = header.get("config")
    if header.get("e") != "header" or header.get("schema") != SCHEMA or not isinstance(config, dict):
        raise JournalError(f"line {number}: no journal header of schema {SCHEMA}")
    scheduler = world(SchedulerConfig.from_dict(config), observer)
    in_flight: dict[int, StepPlan] = {}
    plans = 0
    for number, entry in entries:
        try:
            if entry["e"] == "plan":
                for call in entry["in"]:
                    _deliver(scheduler, call)
                plan = scheduler.next_step(entry["now"], entry.get("max_repeat", 1))
                planned = None
                if plan is not None:
                    plans += 1
                    in_flight[plan.index] = plan
                    planned = list(plan.digest())
                if planned != entry.get("run"):
                    where = f"line {number}: planned {planned}, recorded {entry.get('run')}"
                    return Replay(scheduler, plans, where)
            elif entry["e"] == "shorten":
                scheduler.shorten(_named(in_flight, entry), entry["steps"])
            elif entry["e"] == "complete":
                stops = dict(entry.get("stops", ()))
                outcome = StepOutcome(entry["ends"], entry["device_ns"], entry["host_ns"], stops)
                scheduler.complete(_named(in_flight, entry), outcome, entry["now"])
                del in_flight[entry["i"]]
            else:
                raise ValueError(f"no entry is called {entry['e']!r}")
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            raise JournalError(f"line {number}: malformed entry ({error!r})") from error
    return Replay(scheduler, plans, None)


def _named(in_flight: dict[int, StepPlan], entry: dict[str, Any]) -> StepPlan:
    plan = in_flight.get(entry["i"])
    if plan is None:
        raise ValueError(f"plan {entry['i']} is not in flight")
    return plan


def _parse(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if line.endswith("\n"):
                raise JournalError(f"line {number}: not JSON ({error.msg})") from error
            return
        if not isinstance(entry, dict):
            raise JournalError(f"line {number}: not a JSON object")
        yield number, entry


def _deliver(scheduler: Scheduler, call: list[Any]) -> None:
    kind, now_ns, request_id, *rest = call
    if kind == "abort":
        scheduler.abort(request_id, now_ns, *rest)
        return
    prompt, most, output, stop_kind, arrival_ns, tenant, priority, *more = rest
    padded: tuple[Any, ...] = (*more, *(None, [], [])[len(more) :])
    deadline_ns, runs, start = padded
    request = Request(
        id=request_id, arrival_ns=arrival_ns, prompt_tokens=prompt, max_tokens=most, output_tokens=output,
        stop_kind=stop_kind, tenant=tenant, priority=priority, deadline_ns=deadline_ns,
        block_hashes=BlockNumbers.expand(runs), head_start=HeadStart(*start) if start else None,
    )  # fmt: skip
    scheduler.submit(request, now_ns)
