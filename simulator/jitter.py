"""Step times that vary as recorded ones do: each step's device and host time is multiplied by a draw of its own.

The draws of step n hang on the seed and on n alone: they are the same whether steps are run one by one or as
stretches, and a run is the same each time. They are independent of each other. A machine that is slow for a minute is
slow for thousands of steps, and that is not in them: a run with jitter varies less from seed to seed than real runs
do.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepColumns
from simulator.costs import CostModel, PerStep
from workloads.counter_hash import stream_start, word, words

#: parts of the key of a stream of draws, besides the seed
_DEVICE, _HOST = 1, 2

Spread = tuple[float, ...]


class SpreadCosts(CostModel, Protocol):
    """A cost model that knows how step times are spread."""

    def spreads(self, columns: StepColumns) -> tuple[Spread, Spread]:
        """Of device and of host time: equally likely factors whose mean is 1, in rising order."""


class Jitter:
    """Draws factors for the steps of one replica. ``replica`` tells those of several apart."""

    def __init__(self, costs: SpreadCosts, seed: int, replica: int = 0) -> None:
        self.seed = seed
        self._costs = costs
        self._device = stream_start(seed, replica, _DEVICE)
        self._host = stream_start(seed, replica, _HOST)

    def around(self, costs: CostModel) -> Jitter:
        """The same draws, from the spreads of other costs."""
        other = copy(self)
        other._costs = cast(SpreadCosts, costs)
        return other

    def times(self, columns: StepColumns, first: int, device: PerStep, host: PerStep) -> tuple[PerStep, PerStep]:
        """What the steps of ``columns`` take, the first of which is step ``first`` of the run."""
        of_device, of_host = self._costs.spreads(columns)
        count = columns.repeat
        return _varied(device, of_device, self._device, first, count), _varied(host, of_host, self._host, first, count)


def _varied(time: PerStep, spread: Spread, stream: int, first: int, count: int) -> PerStep:
    # the high half of a word is enough for a place among few, and its product with their number fits 64 bits
    if count == 1:
        place = (word(stream, first) >> 32) * len(spread) >> 32
        return round(float(np.sum(time)) * spread[place])
    places = (words(stream, first, count) >> np.uint64(32)) * np.uint64(len(spread)) >> np.uint64(32)
    varied: npt.NDArray[np.int64] = np.rint(time * np.array(spread)[places.astype(np.int64)]).astype(np.int64)
    return varied
