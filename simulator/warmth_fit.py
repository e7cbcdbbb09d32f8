"""What recorded steps tell of a card's clock: see :mod:`simulator.warmth`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.fits import BETTER
from simulator.warmth import LARGE, Heat, Warmth

#: steps that a fit needs
FEWEST = 100
#: a step that is further from its fit than this was no clock's
FURTHEST = 0.3


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
