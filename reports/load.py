"""Whether the hardware carries the load, told from the queue while requests still arrive.

The backlog N(t) is every request that has arrived and not left, waiting or running. Its growth is the least-squares
slope of N over the second half of the arrivals (from the median arrival to the last one), when the first ramp is over.

A queue's own fluctuations are correlated, so the ordinary error of such a slope is far too small. The slope is
therefore compared with what a random walk *without* drift would show, which moves more than any stable queue does: with
a variance of v requests**2 per second the slope over a time T has the variance 6 v / (5 T) (Durlauf and Phillips 1988).
v is estimated from the changes of N over equal pieces of the window. The load is called more than the hardware can
carry when the slope's 95 % interval by Student's t lies above 0, and the queue grows by at least 1 % of the arrivals.
Where nobody waits to be admitted and the window is shorter than a request's service, growth may be the ramp to a full
batch: then nothing is concluded.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

IntArray = npt.NDArray[np.int64]

#: arrivals in the window below which no statement is made
MIN_ARRIVALS = 24
MIN_GROWTH_SHARE = 0.01
_GRID = 512
_MAX_PIECES = 32
_ARRIVALS_A_PIECE = 3


@dataclass(frozen=True)
class LoadStability:
    """What the backlog says. ``saturated`` is ``None`` where it cannot be told; ``note`` says why.

    ``queue_growth_ci`` is the 95 % interval of ``queue_growth_per_s`` under the random-walk error.
    """

    arrival_rate_per_s: float | None
    service_rate_per_s: float | None
    queue_growth_per_s: float | None
    queue_growth_ci: tuple[float, float] | None
    backlog_at_last_arrival: int | None
    saturated: bool | None
    note: str | None

    def as_dict(self) -> dict[str, Any]:
        """As ``summary.json`` holds it."""
        data = asdict(self)
        data["queue_growth_ci"] = None if self.queue_growth_ci is None else list(self.queue_growth_ci)
        return data


@dataclass(frozen=True)
class Trend:
    """A slope (requests/s), its standard error and the degrees of freedom of that."""

    slope: float
    error: float
    freedom: int

    def interval(self) -> tuple[float, float]:
        spread = float(stdtrit(self.freedom, 0.975)) * self.error
        return self.slope - spread, self.slope + spread

    @property
    def grows(self) -> bool:
        return self.interval()[0] > 0


def unknown_load(note: str) -> LoadStability:
    """Nothing can be told, and why."""
    return LoadStability(None, None, None, None, None, None, note)


def assess_load(arrivals_ns: IntArray, admitted_ns: IntArray, left_ns: IntArray) -> LoadStability:
    """Judge the load from each served request's times, ``int64[n]``, in any order.

    ``admitted_ns`` is when it was first scheduled (-1: never), ``left_ns`` when it finished or was aborted. Requests
    that were rejected are no load and must not be among them.
    """
    arrivals, left = np.sort(arrivals_ns), np.sort(left_ns)
    if not len(arrivals):
        return unknown_load("no request was served")
    first, last = int(arrivals[0]), int(arrivals[-1])
    if first == last:
        return unknown_load("all requests arrive at once, so there is no arrival period in which a queue could grow")
    seconds = (last - first) / 1e9
    rate = (len(arrivals) - 1) / seconds
    middle = int(arrivals[len(arrivals) // 2])
    in_window = len(arrivals) - len(arrivals) // 2
    backlog = len(arrivals) - int(np.searchsorted(left, last, side="right"))
    if in_window < MIN_ARRIVALS or middle == last:
        few = f"too few arrivals to tell: {in_window} in the second half of the arrivals, {MIN_ARRIVALS} are needed"
        return LoadStability(_digits(rate), None, None, None, backlog, None, few)
    window_s = (last - middle) / 1e9
    served = int(np.searchsorted(left, last, side="right") - np.searchsorted(left, middle, side="right"))
    trend = _trend(arrivals, left, middle, last, in_window)
    waiting_grows = _trend(arrivals, np.sort(_admissions(admitted_ns, left_ns)), middle, last, in_window).grows
    saturated: bool | None = trend.grows and trend.slope >= MIN_GROWTH_SHARE * rate
    note: str | None = None
    service_s = float(np.median((left_ns - _admissions(admitted_ns, left_ns)) / 1e9))
    if saturated and not waiting_grows and window_s < service_s:
        saturated = None
        note = (
            f"cannot be told: nobody waits, and half of the arrivals came within {window_s:.3g} s, "
            f"less than a request's service of {service_s:.3g} s"
        )
    low, high = trend.interval()
    return LoadStability(
        arrival_rate_per_s=_digits(rate),
        service_rate_per_s=_digits(served / window_s),
        queue_growth_per_s=_digits(trend.slope),
        queue_growth_ci=(_digits(low), _digits(high)),
        backlog_at_last_arrival=backlog,
        saturated=saturated,
        note=note,
    )


def _admissions(admitted_ns: IntArray, left_ns: IntArray) -> IntArray:
    """When each stopped waiting: admitted, or gone before that."""
    return np.where(admitted_ns < 0, left_ns, admitted_ns)


def _trend(entered: IntArray, gone: IntArray, start: int, end: int, arrivals: int) -> Trend:
    """The slope of (entered - gone) from ``start`` to ``end``; both arrays sorted."""

    def count(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        here = np.searchsorted(entered, times, side="right") - np.searchsorted(gone, times, side="right")
        return here.astype(np.float64)

    seconds = (end - start) / 1e9
    grid = np.linspace(start, end, _GRID)
    time = (grid - (start + end) / 2) / 1e9
    size = count(grid)
    slope = float(np.sum(time * (size - size.mean())) / np.sum(time * time))
    pieces = max(4, min(_MAX_PIECES, arrivals // _ARRIVALS_A_PIECE))
    changes = np.diff(count(np.linspace(start, end, pieces + 1)))
    variance_per_s = float(np.var(changes, ddof=1)) * pieces / seconds
    return Trend(slope, math.sqrt(6 * variance_per_s / (5 * seconds)), pieces - 1)


def _digits(value: float) -> float:
    """Nine significant digits: what does not depend on the order in which a platform adds."""
    return float(f"{value:.9g}")
