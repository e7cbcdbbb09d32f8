"""What a run tells whoever records it; both worlds are observed through the scheduler, in the same way."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepOutcome, StepPlan
from scheduler.sequence import Sequence


class Observer(Protocol):
    """Called by :class:`~scheduler.scheduler.Scheduler`. All times are integer nanoseconds."""

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        """``steps`` of the plan's steps were run (before any sequence of it is reported as ended)."""

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """``weight`` sequences each saw these gaps between consecutive output tokens (ITL)."""

    def ended(self, sequence: Sequence) -> None:
        """The sequence is finished, rejected or aborted; its fields are final."""
