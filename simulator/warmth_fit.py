"""What recorded steps tell of a card's clock: see :mod:`simulator.warmth`.

Which steps of a recording come after a rest is no accident: most full ones come right behind others. A cost that knows
nothing of rests is then fitted to some of what they do, and what it leaves shows half of it. So costs are fitted for
several clocks, to the times that such a clock leaves, and the clock is the one with which they are nearest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.fits import BETTER
from simulator.warmth import LARGE, Heat, Warmth

Floats = npt.NDArray[np.float64]

#: steps that a fit needs
FEWEST = 100
#: a step that is further from its fit than this was no clock's
FURTHEST = 0.3
#: shares that a warm card takes longer than one that has rested, of those that are tried beside none
RISES = (0.05, 0.1, 0.15, 0.2, 0.25)


def fitted(
    steps: pd.DataFrame, told: npt.NDArray[np.bool_], predict: Callable[[pd.DataFrame], Floats]
) -> tuple[Warmth, pd.DataFrame] | None:
    """What recorded ``steps``, in their order, tell of the card, and the steps as one would do them whose clock stays.

    ``told``: those that may be part of it. ``predict`` fits costs to such steps and says what each takes in device
    nanoseconds, NaN for those that are no part of it. A line over the heat, of mean 1, so that the costs have the sum
    of the times. ``None`` where there are too few large steps, where they tell of no clock, or where knowing it would
    not make the prediction better by 2 %.
    """
    device_ns = steps["device_ns"].to_numpy(np.float64)
    large, heats = _heats(steps)
    large_told = large & told
    if large_told.sum() < FEWEST:
        return None
    plain = predict(steps)
    with np.errstate(invalid="ignore"):
        chosen = large_told & (np.abs(device_ns / plain - 1.0) < FURTHEST)
    if chosen.sum() < FEWEST:
        return None
    weight = plain[chosen]
    mean = float(np.average(heats[chosen], weights=weight))

    def variance(predicted: Floats) -> float:
        """Of what is taken over what is predicted."""
        ratio = (device_ns / predicted)[chosen]
        return float(np.average((ratio - np.average(ratio, weights=weight)) ** 2, weights=weight))

    def clocked(rise: float) -> tuple[float, pd.DataFrame]:
        """How far times are from costs fitted with such a clock, and the steps without it."""
        factors = np.where(large, 1.0 + rise * (heats - mean), 1.0)
        steady = steps.assign(device_ns=device_ns / factors)
        return variance(predict(steady) * factors), steady

    unclocked = variance(plain)
    bend, slope, _ = np.polyfit((0.0, *RISES), [unclocked, *(clocked(rise)[0] for rise in RISES)], 2)
    rise = float(np.clip(-slope / (2 * bend), 0.0, RISES[-1])) if bend > 0 else 0.0
    if rise == 0:
        return None
    left, steady = clocked(rise)
    if left > BETTER**2 * unclocked:
        return None
    return Warmth(1.0 - rise * mean, 1.0 + rise * (1.0 - mean)), steady


def _heats(steps: pd.DataFrame) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which steps are large, and the heat of the card during each of those."""
    device_ns = steps["device_ns"].to_numpy(np.float64)
    large = ((steps["new_tokens_computed"] >= LARGE) & (steps["kind"] != "decode")).to_numpy()
    ends_ns = np.cumsum(device_ns + steps["host_ns"].to_numpy(np.float64))
    heat, heats = Heat(), np.zeros(len(steps))
    for place in np.flatnonzero(large).tolist():
        start_ns, took_ns = float(ends_ns[place] - device_ns[place]), float(device_ns[place])
        heats[place] = heat.during(start_ns, took_ns)
        heat.run(start_ns, took_ns)
    return large, heats
