"""What a step costs: the interface of every cost model. Models are in ``recorded`` and ``roofline``."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepColumns


class CostModel(Protocol):
    """Predicts the time of each step of a stretch, in integer nanoseconds (each step rounded, then summed).

    ``name`` is what ``--costs`` was given. ``kv_tokens`` is the KV capacity of the hardware that the model stands
    for and ``context_tokens`` the longest sequence its model takes, or ``None`` where it does not know them.
    """

    name: str
    kv_tokens: int | None
    context_tokens: int | None

    def device_ns(self, columns: StepColumns) -> npt.NDArray[np.int64]:
        """Time on the device, ``int64[columns.repeat]``."""

    def host_ns(self, columns: StepColumns) -> npt.NDArray[np.int64]:
        """Time on the host around the device's, ``int64[columns.repeat]``."""
