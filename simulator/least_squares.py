"""Weights that are not negative, of steps whose times are noisy, and now and then far too long.

Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, for the weights; deviations count relative to
the time of the step, and large ones less (Huber, "Robust Estimation of a Location Parameter", 1964). What that takes
from the mean, :func:`to_the_mean` gives back.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from threadpoolctl import ThreadpoolController

Floats = npt.NDArray[np.float64]

_BLAS = ThreadpoolController()

#: a step this share off the fit counts in full, one further off the less the further; fits until that is settled
STALL, ROUNDS = 0.5, 6
#: fewer steps than this say nothing of a floor
FEWEST_AT_FLOOR = 3
#: shares of the steps that are first taken for those at the floor: the ones of the least work
_GUESSES = (0.15, 0.35, 0.55, 0.75)


def one_thread() -> AbstractContextManager[Any]:
    """Fit on one thread: on matrices so small more gain nothing, and where other processes want the cores they wait for
    each other (a hundred times as long was seen)."""
    limited: AbstractContextManager[Any] = _BLAS.limit(limits=1, user_api="blas")
    return limited


def weights_of(matrix: Floats, times: Floats, rounds: int = ROUNDS) -> Floats:
    """Weights >= 0 of the columns of ``matrix`` ``[steps, columns]`` with the least relative deviations."""
    scale = np.maximum(matrix.max(axis=0), 1e-9)
    scaled = matrix / scale
    shares = np.ones(len(times))
    least = 0.02 * max(float(times.mean()), 1.0)
    found = np.zeros(matrix.shape[1])
    for _ in range(rounds):
        small = np.asarray(np.linalg.qr(np.column_stack([scaled, times]) * shares[:, None], mode="r"))
        found, _ = nnls(small[:, :-1], small[:, -1])
        predicted = np.maximum(scaled @ found, least)
        shares = _shares(times, predicted) / predicted
    weights: Floats = found / scale
    return weights


def floored_weights(
    matrix: Floats, times: Floats, near: tuple[float, Floats] | None = None
) -> tuple[float, Floats] | None:
    """The floor F and weights W of times that are max(F, matrix W); ``None`` where no floor shows.

    ``near``: those of steps much like these, to begin with.
    Steps are told apart by what they are predicted to take, not by what they took: those whose work is below the floor
    give the floor, the others the weights, until none changes sides (Magnani and Boyd, "Convex piecewise-linear
    fitting", 2009).
    """
    best: tuple[float, float, Floats] | None = None
    if near is None:
        work = matrix @ weights_of(matrix, times)
        guesses = [work > guess for guess in np.unique(np.quantile(work, _GUESSES)).tolist()]
    else:
        guesses = [matrix @ near[1] >= near[0]]
    for above in guesses:
        for _ in range(ROUNDS):
            if min(above.sum(), (~above).sum()) <= FEWEST_AT_FLOOR:
                break
            floor = _settled_mean(times[~above])
            weights = weights_of(matrix[above], times[above], ROUNDS // 2)
            now = matrix @ weights
            error = float(np.abs(np.maximum(now, floor) - times).clip(max=times).sum())
            if best is None or error < best[0]:
                best = error, floor, weights
            if (above == (now >= floor)).all():
                break
            above = now >= floor
    return None if best is None else best[1:]


def to_the_mean(predicted: Floats, times: Floats) -> float:
    """The factor by which predictions add up to ``times``: a sum needs means, and a fit that bears stalls has less."""
    total = float(predicted.sum())
    return float(times.sum()) / total if total > 0 else 1.0


def _settled_mean(times: Floats) -> float:
    """A mean to which what is far off counts less."""
    mean = float(np.median(times))
    for _ in range(ROUNDS):
        shares = _shares(times, np.full(len(times), max(mean, 1.0)))
        mean = float(shares @ times / shares.sum())
    return mean


def _shares(times: Floats, predicted: Floats) -> Floats:
    off = np.abs(times - predicted) / predicted
    shares: Floats = np.minimum(1.0, STALL / np.maximum(off, STALL))
    return shares
