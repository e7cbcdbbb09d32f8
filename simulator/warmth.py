"""What a GPU's clock follows: how long it has done matrix products, or rested from them.

A card that computes at its full power is clocked down within tens of milliseconds, and up again when it reads memory
or waits. On H100s steps of some hundred prompt tokens took a tenth less after a rest than right behind others like
them; decode steps, which wait for memory, are not affected. How much is told by the recording that costs are fitted to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.bounds import ROUNDING_NS, StepFloor
from simulator.fits import BETTER

#: how fast a card warms and cools: it is 63 % of the way after so long
TIME_NS = 60e6
#: tokens of a step whose products ask a card for its power
LARGE = 256
#: steps that a fit needs
FEWEST = 100
#: a step that is further from its fit than this was no clock's
FURTHEST = 0.3


class Warmth(NamedTuple):
    """A step of ``large`` new tokens or more takes ``cool`` times what costs say on a card that has rested, and
    ``warm`` times on one that has not."""

    cool: float
    warm: float
    large: int = LARGE
    time_ns: float = TIME_NS

    def warms(self, features: Any) -> Any:
        """Whether a step, or each of many, is large: decode steps are not."""
        return features.new_tokens_computed >= self.large

    def factor(self, heat: float) -> float:
        """Of a step during which the card is at ``heat``, 0 to 1."""
        return self.cool + (self.warm - self.cool) * heat

    def lowered(self, floor: StepFloor) -> StepFloor:
        """What no large step takes less than, whose costs have this floor; it is rounded once more."""
        least = min(1.0, self.cool, self.warm)
        step_ns, *others = (least * part for part in floor)
        return StepFloor(max(0.0, step_ns - ROUNDING_NS), *others)


@dataclass
class Heat:
    """How warm a card is, 0 to 1: it nears 1 while large steps run, and 0 while none does."""

    time_ns: float = TIME_NS
    level: float = 0.0
    since_ns: float = 0.0

    def during(self, start_ns: float, took_ns: float) -> float:
        """The mean over a large step that would start then and take so long."""
        share = took_ns / self.time_ns
        away = 1.0 - self._at(start_ns)
        return 1.0 - away * (1.0 - math.exp(-share)) / share if share > 0 else 1.0 - away

    def run(self, start_ns: float, took_ns: float) -> None:
        """A large step runs from ``start_ns`` on."""
        self.level = 1.0 - (1.0 - self._at(start_ns)) * math.exp(-took_ns / self.time_ns)
        self.since_ns = start_ns + took_ns

    def _at(self, time_ns: float) -> float:
        return self.level * math.exp(-max(0.0, time_ns - self.since_ns) / self.time_ns)


def fitted(steps: pd.DataFrame, predicted: npt.NDArray[np.float64]) -> Warmth | None:
    """What recorded ``steps``, in their order, tell of the card; ``predicted``: device nanoseconds, NaN for those that
    are no part of it.

    A line over the heat that leaves the sum of the times as it is. ``None`` where there are too few large steps, where
    they tell of no clock, or where knowing it would not make the prediction better by 2 %.
    """
    device_ns = steps["device_ns"].to_numpy(np.float64)
    large = ((steps["new_tokens_computed"] >= LARGE) & (steps["kind"] != "decode")).to_numpy()
    ends_ns = np.cumsum(device_ns + steps["host_ns"].to_numpy(np.float64))
    heat, heats = Heat(), np.zeros(len(steps))
    for place in np.flatnonzero(large).tolist():
        start_ns, took_ns = float(ends_ns[place] - device_ns[place]), float(device_ns[place])
        heats[place] = heat.during(start_ns, took_ns)
        heat.run(start_ns, took_ns)
    with np.errstate(invalid="ignore"):
        chosen = large & (np.abs(device_ns / predicted - 1.0) < FURTHEST)
    if chosen.sum() < FEWEST:
        return None
    level, weight = heats[chosen], np.sqrt(predicted[chosen])
    ratio = device_ns[chosen] / predicted[chosen]
    lines = np.column_stack([np.ones(len(level)), level])
    (cool, rise), *_ = np.linalg.lstsq(lines * weight[:, None], ratio * weight, rcond=None)
    before = (ratio - np.average(ratio, weights=weight**2)) * weight
    after = (ratio - cool - rise * level) * weight
    if rise <= 0 or cool <= 0 or after.std() > BETTER * before.std():
        return None
    return Warmth(float(cool), float(cool + rise))
