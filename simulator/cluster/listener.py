"""Who records what happens in a cluster."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepOutcome, StepPlan
from simulator.cluster.journey import Journey


class Listener(Protocol):
    """Told of what happens in a cluster. All times are integer nanoseconds."""

    def stepped(self, replica: int, start: int, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        """``steps`` of the plan's steps were run on ``replica``, in its ``start``-th start of the run."""

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """``weight`` requests each saw these gaps between output tokens."""

    def ended(self, journey: Journey) -> None:
        """A request has ended; its fields are final."""


class Silent:
    """Listens to nothing."""

    def stepped(self, replica: int, start: int, plan: StepPlan, steps: int, outcome: StepOutcome) -> None: ...

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None: ...

    def ended(self, journey: Journey) -> None: ...
