"""Step times that vary as recorded ones do: each step's device and host time is multiplied by a draw of its own, and in
some steps the host is taken away for a while.

The draws of step n hang on the seed and on n alone: they are the same whether steps are run one by one or as
stretches, and a run is the same each time. They are independent of each other. A machine that is slow for a minute is
slow for thousands of steps, and that is not in them: a run with jitter varies less from seed to seed than real runs
do.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from scheduler.plan import StepColumns
from simulator.costs import CostModel, PerStep
from workloads.counter_hash import stream_start, word, words

#: parts of the key of a stream of draws, besides the seed
_DEVICE, _HOST, _STALL = 1, 2, 3

Spread = tuple[float, ...]


class Variation(NamedTuple):
    """How a step's times vary: equally likely factors of device and of host time, whose mean is 1, in rising order.

    In a share of ``stalled`` of the steps the host is away for one of ``stalls`` nanoseconds more, all equally likely.
    """

    device: Spread
    host: Spread
    stalled: float = 0.0
    stalls: Spread = ()


class VaryingCosts(CostModel, Protocol):
    """A cost model that knows how step times vary."""

    def variation(self, columns: StepColumns) -> Variation:
        """That of the steps of ``columns``."""


class Jitter:
    """Draws factors for the steps of one replica. ``replica`` tells those of several apart."""

    def __init__(self, costs: VaryingCosts, seed: int, replica: int = 0) -> None:
        self.seed = seed
        self._costs = costs
        self._device = stream_start(seed, replica, _DEVICE)
        self._host = stream_start(seed, replica, _HOST)
        self._stall = stream_start(seed, replica, _STALL)

    def around(self, costs: CostModel) -> Jitter:
        """The same draws, from the variation of other costs."""
        other = copy(self)
        other._costs = cast(VaryingCosts, costs)
        return other

    def times(self, columns: StepColumns, first: int, device: PerStep, host: PerStep) -> tuple[PerStep, PerStep]:
        """What the steps of ``columns`` take, the first of which is step ``first`` of the run."""
        known, count = self._costs.variation(columns), columns.repeat
        on_host = _varied(host, known.host, self._host, first, count)
        if known.stalls:
            on_host = on_host + _stalls(known, self._stall, first, count)
        return _varied(device, known.device, self._device, first, count), on_host


def _stalls(known: Variation, stream: int, first: int, count: int) -> PerStep:
    """What stalls add to each step: a word's high half says whether there is one, its low half which."""
    limit, choices = round(known.stalled * (1 << 32)), len(known.stalls)
    if count == 1:
        drawn = word(stream, first)
        return round(known.stalls[(drawn & 0xFFFFFFFF) * choices >> 32]) if drawn >> 32 < limit else 0
    drawn_words = words(stream, first, count)
    places = (drawn_words & np.uint64(0xFFFFFFFF)) * np.uint64(choices) >> np.uint64(32)
    times = np.rint(np.array(known.stalls)).astype(np.int64)[places.astype(np.int64)]
    found: npt.NDArray[np.int64] = np.where(drawn_words >> np.uint64(32) < limit, times, 0)
    return found


def _varied(time: PerStep, spread: Spread, stream: int, first: int, count: int) -> PerStep:
    # the high half of a word is enough for a place among few, and its product with their number fits 64 bits
    if count == 1:
        place = (word(stream, first) >> 32) * len(spread) >> 32
        return round(float(np.sum(time)) * spread[place])
    places = (words(stream, first, count) >> np.uint64(32)) * np.uint64(len(spread)) >> np.uint64(32)
    varied: npt.NDArray[np.int64] = np.rint(time * np.array(spread)[places.astype(np.int64)]).astype(np.int64)
    return varied
