"""What an engine's loop and whatever runs its steps say to each other.

A step is launched, and its result is asked for later: in between the device works, and the host may plan ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from engine.draws import Draw, TokenLogprobs
from scheduler.plan import Layout, StepPlan
from scheduler.request import SamplingParams


class SequenceState(Protocol):
    """What an executor reads of a sequence. The engine keeps it; ``token_ids`` are prompt and output so far.

    ``plain``: the temperature and the seed say all about how its tokens are drawn.
    """

    token_ids: list[int]
    seed: int
    plain: bool

    @property
    def sampling(self) -> SamplingParams: ...

    def draw(self, position: int) -> Draw:
        """What the token at ``position`` is sampled with."""


class ExecutorWaste(NamedTuple):
    """Slots that an executor computed beyond what the layout's formula says; see ``docs/metrics.md``."""

    linear_slots: int = 0
    attention_slots: int = 0


class StepResult(NamedTuple):
    """What a step gave: the token sampled for each sequence number, the device's time, and what it wasted.

    ``launch_ns``: how long the host was about launching the work on a GPU, most of which the device runs meanwhile.
    ``logprobs``: of the sequences that ask for them, by number.
    """

    tokens: dict[int, int]
    device_ns: int
    waste: ExecutorWaste = ExecutorWaste()
    launch_ns: int = 0
    logprobs: Mapping[int, TokenLogprobs] = MappingProxyType({})


class PendingStep(Protocol):
    """A step that has been launched."""

    def result(self) -> StepResult:
        """What it gave, waiting for the device. Raises what running it raised."""


class Executor(Protocol):
    """Runs step plans on a device."""

    @property
    def layout(self) -> Layout:
        """The layout whose slots it computes."""

    @property
    def vocab(self) -> int:
        """Tokens that its model's logits are over."""

    @property
    def launches_ahead(self) -> bool:
        """Whether a step may be launched before the one before has given its result."""

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> PendingStep:
        """Start one step; the one before must have given its result, unless the executor launches ahead.

        ``states`` has an entry for the number of every sequence in the plan. The plan's chunks, its block tables and
        the states are read before this returns.

        ``torch.OutOfMemoryError``, from here or from the result, leaves the executor as it was but for what the plan
        releases and moves. The same plan may then be launched again, after all others have given their results: what
        has been released and moved is not released and moved twice, and the rest is computed in smaller pieces where
        that is what memory allows.
        """

    def reset(self) -> None:
        """Forget all sequences and their KV: the next plan is a new scheduler's. No step may be running."""

    def close(self) -> None:
        """End the threads of its own, where it has any. No step may be running, and none can be launched any more."""
