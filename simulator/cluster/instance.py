"""One start of a replica: its scheduler and its process, what a router sees of it, and what it tells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import HeadStart, Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import UNSET, Sequence
from simulator.cluster.journey import Journey
from simulator.cluster.routers import SentPrefixes
from simulator.replica import Replica


class Instance:
    """A running replica. A :class:`~simulator.cluster.routers.View` for routers, and its scheduler's observer.

    ``ended`` is called with each request that has ended here. ``is_late`` says whether steps that end now have ended.
    """

    def __init__(
        self,
        number: int,
        index: int,
        up_ns: int,
        observe: Callable[[Instance, StepPlan, int, StepOutcome], None],
        gaps: Callable[[npt.NDArray[np.int64], int], None],
        ended: Callable[[Instance, Sequence], None],
        is_late: Callable[[], bool],
    ) -> None:
        self.number = number
        #: of all starts in the run
        self.index = index
        self.up_ns = up_ns
        self.draining = False
        self.alive = True
        self.busy_ns = 0
        self._last_end_ns = up_ns
        self._observe = observe
        self._gaps = gaps
        self._ended = ended
        self._is_late = is_late
        self._expected: dict[str, int] = {}
        self._expected_tokens = 0
        #: sent here and not ended, by id
        self.journeys: dict[str, Journey] = {}
        self.in_transit: set[str] = set()
        self.scheduler: Scheduler
        self.replica: Replica
        self._prefixes: SentPrefixes

    def start(self, scheduler: Scheduler, replica: Replica) -> None:
        """It runs: to be said once, before anything else."""
        self.scheduler, self.replica = scheduler, replica
        config = scheduler.config
        self._prefixes = SentPrefixes(config.capacity_tokens // config.block_tokens)

    # -- what a router sees

    @property
    def outstanding(self) -> int:
        return len(self.journeys)

    @property
    def has_slot(self) -> bool:
        return len(self.journeys) < self.scheduler.config.max_running

    @property
    def kv_tokens(self) -> int:
        transit = sum(self.journeys[name].kv_tokens for name in self.in_transit)
        return self.replica.kv_tokens(self._is_late()) + self.replica.waiting_tokens() + transit

    @property
    def expected_tokens(self) -> int:
        return self._expected_tokens

    def expected_output(self, request: Request) -> int:
        return self.scheduler.predicted_tokens(request)

    def prefix_blocks(self, request: Request) -> int:
        return self._prefixes.match(request)

    # -- what it is given

    @property
    def waiting(self) -> int:
        """Requests that wait to be admitted here."""
        return self.replica.waiting() + len(self.in_transit)

    def expect(self, journey: Journey, request: Request) -> None:
        """``journey`` is sent here as ``request``, and counts from now on."""
        tokens = request.prompt_tokens + self.scheduler.predicted_tokens(request)
        self.journeys[journey.id] = journey
        self._expected[journey.id] = tokens
        self._expected_tokens += tokens
        self._prefixes.add(request)
        journey.replica = self.number

    def forget(self, journey: Journey) -> None:
        """``journey`` is no longer here."""
        del self.journeys[journey.id]
        self._expected_tokens -= self._expected.pop(journey.id)
        self.in_transit.discard(journey.id)

    def submit(self, request: Request) -> None:
        """The request of a journey that was expected is here."""
        self.in_transit.discard(request.id)
        self.replica.submit(request, self._is_late())

    def abort(self, request_id: str) -> None:
        self.replica.abort(request_id, self._is_late())

    # -- what its scheduler tells

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        end_ns = int(outcome.ends_ns[-1])
        self.busy_ns += end_ns - max(plan.now_ns, self._last_end_ns)
        self._last_end_ns = end_ns
        self._observe(self, plan, steps, outcome)

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        self._gaps(gap_ns, weight)

    def ended(self, sequence: Sequence) -> None:
        self._ended(self, sequence)

    # -- when it is lost

    def lose(self) -> tuple[list[Journey], list[Journey]]:
        """It has died: who was here, in order of number, and of them who was to be aborted.

        What they have of tokens is theirs; their KV is lost. Those on their way here are not among them.
        """
        self.alive = False
        inbox = self.replica.stop()
        aborted = {message for message in inbox if isinstance(message, str)}
        for sequence, start in self.scheduler.head_starts():
            journey = self.journeys[sequence.id]
            journey.absorb(sequence, start)
            journey.recomputed_tokens += sequence.computed
            journey.lost_tokens += sequence.computed
        for message in inbox:
            if isinstance(message, Request):
                self.journeys[message.id].brings_kv = False
        here = sorted((j for j in self.journeys.values() if j.id not in self.in_transit), key=lambda j: j.number)
        for journey in here:
            self.forget(journey)
        return here, [journey for journey in here if journey.id in aborted]


def final_start(sequence: Sequence, brings_kv: bool) -> HeadStart:
    """How far a sequence that has ended got."""
    return HeadStart(
        sequence.output_tokens,
        brings_kv,
        sequence.first_scheduled_ns,
        sequence.first_token_ns,
        sequence.finish_ns if sequence.output_tokens else UNSET,
    )
