"""Plans that have been handed out and not been completed, and batches that have been closed."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.accounting import Memory, Waits
from scheduler.features import Draft
from scheduler.plan import StepPlan
from scheduler.sequence import Sequence, Served


class Flight:
    """A plan that has been handed out and not been completed, and what of the scheduler's state it moves."""

    __slots__ = (
        "advanced",
        "charged_steps",
        "draft",
        "dropped",
        "ending",
        "held",
        "hidden",
        "members",
        "memory",
        "plan",
        "served",
        "service_ns",
        "steps",
        "unusable_tokens",
        "waits",
    )

    def __init__(self, plan: StepPlan, draft: Draft, steps: int, unusable_tokens: int) -> None:
        self.plan = plan
        self.draft = draft
        #: how many of the plan's steps are run, as far as is known
        self.steps = steps
        self.unusable_tokens = unusable_tokens
        #: as many steps a policy's ledger knows of
        self.charged_steps = 0
        #: so much of its time has been counted as service
        self.service_ns = 0
        self.served = Served()
        self.advanced = False
        self.waits: Waits | None = None
        self.memory: Memory | None = None
        #: reach the end that was foreseen
        self.ending: list[Sequence] = []
        #: reach an end that shows only when the step is done
        self.hidden: list[Sequence] = []
        #: have ended, and their blocks are given back when the step is done
        self.held: list[tuple[Sequence, int | None]] = []
        #: aborted while it runs
        self.dropped: set[int] = set()
        #: the decode rows, where they are looked at again after their cohorts have changed
        self.members: list[Sequence] | None = None

    @property
    def changes_the_next(self) -> bool:
        """Whether its completion may change a decision."""
        return bool(self.draft.chunks or self.ending or self.hidden or self.held)

    def steps_on(self, sequence: Sequence) -> bool:
        """Whether ``sequence``, not yet advanced, is a decode row of the plan."""
        return self.draft.steps_on(sequence)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the plan, advanced already, works on ``sequence``."""
        draft = self.draft
        return (
            sequence in (self.members or ())
            or sequence in draft.joining
            or any(chunk.sequence is sequence for chunk in draft.chunks)
        )

    def drop(self, sequence: Sequence, blocks: int) -> None:
        """``sequence`` was aborted: its token of this plan does not count, its memory is held to the end of it."""
        self.dropped.add(sequence.number)
        self.held.append((sequence, blocks))
        if sequence in self.ending:
            self.ending.remove(sequence)
        sampled = [chunk for chunk in self.draft.chunks if chunk.sequence is sequence and chunk.samples]
        if sampled or sequence in (self.members or ()):
            sequence.place(sequence.known - 1, sequence.computed)


@dataclass(slots=True)
class Batch:
    """A batch that has been closed: nobody joins it."""

    rows: int
    """of its first decode step"""
    steps_left: int | None
    """``None``: until its last member ends"""
    members: set[int] | None
    """``None``: all residents"""


class BusyError(Exception):
    """A decision needs the plan in flight to be completed first."""
