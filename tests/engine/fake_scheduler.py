"""A scheduler that is small enough to be seen through, and plans one step ahead of the device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hand_plans import plan_by_hand

from scheduler.config import SchedulerConfig
from scheduler.plan import Chunk, StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.sequence import Sequence


@dataclass
class Flight:
    plan: StepPlan
    chunks: list[Chunk]
    advanced: bool = False

    @property
    def numbers(self) -> set[int]:
        return {chunk.sequence.number for chunk in self.chunks}


@dataclass
class FakeScheduler:
    """First come, first served: everybody who waits is prefilled, ``chunk_tokens`` tokens of each, then all decode.

    ``calls`` tells what was asked and answered, with the plans by index; ``times`` what the clock said.
    """

    config: SchedulerConfig = field(default_factory=lambda: SchedulerConfig(overlap=True, context_tokens=512))
    chunk_tokens: int = 1 << 30
    calls: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    outcomes: list[StepOutcome] = field(default_factory=list)
    wasted_rows: int = 0

    def __post_init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}
        #: known but not resident: waiting, or in the middle of the prompt
        self._prefilling: dict[int, Sequence] = {}
        self._residents: dict[int, Sequence] = {}
        self._flights: deque[Flight] = deque()
        self._aborts: list[tuple[str, str]] = []
        self._submissions = self._plans = 0
        #: sequences that have ended and whose memory is still somebody's
        self._leaving: list[int] = []
        self.holding: set[int] = set()

    @property
    def idle(self) -> bool:
        return not self._sequences and not self._flights

    def next_wakeup(self) -> int | None:
        return None

    def submit(self, request: Request, now_ns: int) -> Sequence:
        self.calls.append(f"submit {request.id}")
        self.times.append(now_ns)
        sequence = Sequence(request, self._submissions, 0, self.config.context_tokens)
        self._submissions += 1
        self._sequences[request.id] = sequence
        self._prefilling[sequence.number] = sequence
        return sequence

    def abort(self, request_id: str, now_ns: int, reason: str = "aborted") -> None:
        self.calls.append(f"abort {request_id}")
        self.times.append(now_ns)
        self._aborts.append((request_id, reason))

    def next_step(self, now_ns: int, max_repeat: int = 1) -> StepPlan | None:
        if len(self._flights) > self.config.overlap:
            raise RuntimeError(f"plan {self._flights[0].plan.index} has not been completed")
        self.times.append(now_ns)
        for flight in self._flights:
            self._advance(flight)
        for request_id, reason in self._aborts:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                self._end(sequence, reason, aborted=True)
        self._aborts.clear()
        chunks = [self._chunk(s) for s in self._prefilling.values()]
        chunks = chunks or [Chunk(s, s.computed, 1, True) for s in self._residents.values()]
        if not chunks:
            self.calls.append("no plan")
            return None
        plan = plan_by_hand(
            chunks, self.config.layout, index=self._plans, now_ns=now_ns, released=self._released(),
        )  # fmt: skip
        self._plans += 1
        self.calls.append(f"plan {plan.index}")
        self._flights.append(Flight(plan, chunks))
        self.holding |= self._flights[-1].numbers
        return plan

    def complete(self, plan: StepPlan, outcome: StepOutcome, now_ns: int) -> list[Sequence]:
        if not self._flights or self._flights[0].plan is not plan:
            raise RuntimeError(f"plan {plan.index} is not in flight")
        self.times.append(now_ns)
        self.outcomes.append(outcome)
        self.calls.append(f"complete {plan.index}")
        flight = self._flights.popleft()
        self._advance(flight)
        members = {chunk.sequence.number: chunk.sequence for chunk in flight.chunks}
        assert not any(members[number].ended for number in outcome.stops), "it has ended already"
        ended = []
        for chunk in sorted(flight.chunks, key=lambda chunk: chunk.sequence.number):
            sequence = chunk.sequence
            if sequence.ended:
                self.wasted_rows += 1
                continue
            reason = outcome.stops.get(sequence.number, "")
            if chunk.samples and (reason or chunk.start + chunk.tokens + 1 >= sequence.limit):
                self._end(sequence, reason or "length")
                ended.append(sequence)
        return ended

    def _chunk(self, sequence: Sequence) -> Chunk:
        tokens = min(self.chunk_tokens, sequence.known - sequence.computed)
        return Chunk(sequence, sequence.computed, tokens, sequence.computed + tokens == sequence.known)

    def _advance(self, flight: Flight) -> None:
        if flight.advanced:
            return
        flight.advanced = True
        for sequence, start, tokens, samples in flight.chunks:
            if sequence.ended:
                continue
            sequence.place(sequence.known + samples, start + tokens)
            if samples:
                self._prefilling.pop(sequence.number, None)
                self._residents[sequence.number] = sequence
            if samples and sequence.known >= sequence.limit:
                del self._residents[sequence.number]

    def _end(self, sequence: Sequence, reason: str, aborted: bool = False) -> None:
        sequence.state = "aborted" if aborted or reason == "error" else "finished"
        sequence.reason = reason
        del self._sequences[sequence.id]
        self._prefilling.pop(sequence.number, None)
        self._residents.pop(sequence.number, None)
        self._leaving.append(sequence.number)

    def _released(self) -> list[int]:
        """Who has ended and is in no step that runs."""
        busy = {number for flight in self._flights for number in flight.numbers}
        released = [number for number in self._leaving if number not in busy]
        self._leaving = [number for number in self._leaving if number in busy]
        self.holding -= set(released)
        return released
