"""Confidence intervals of simulated means, by Student's t of independent replications or of batches."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

#: of all intervals here
CONFIDENCE = 0.99


class Estimate(NamedTuple):
    """A mean, and the half-width of its interval."""

    mean: float
    error: float

    def covers(self, value: float) -> bool:
        """Whether ``value`` is in the interval."""
        return abs(value - self.mean) <= self.error


def of_replications(values: Sequence[float], controls: npt.ArrayLike = (), confidence: float = CONFIDENCE) -> Estimate:
    """The mean of what independent replications gave.

    ``controls`` (a row a replication) are quantities whose true mean is 0: what they explain of the values, by least
    squares, is taken out (Lavenberg and Welch, "A perspective on the use of control variables", 1981, equation 12). An
    infinite error where there are too few replications to tell one.
    """
    found = np.asarray(values, np.float64)
    count = len(found)
    explaining = np.asarray(controls, np.float64).reshape(count, -1)
    explaining = explaining[:, np.ptp(explaining, axis=0) > 0]
    design = np.column_stack([np.ones(count), explaining])
    freedom = count - design.shape[1]
    if freedom < 1:
        return Estimate(float(found.mean()), float("inf"))
    weights = np.linalg.lstsq(design, found)[0]
    residual = float(((found - design @ weights) ** 2).sum()) / freedom
    spread = sqrt(residual * float(np.linalg.inv(design.T @ design)[0, 0]))
    return Estimate(float(weights[0]), float(stdtrit(freedom, (1 + confidence) / 2)) * spread)


def of_batches(values: npt.ArrayLike, batches: int = 20, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of one long run, by the means of ``batches`` parts of it, which are taken to be independent.

    What is left over at the end is left out. ``ValueError`` for fewer values than batches.
    """
    flat = np.asarray(values, np.float64)
    size = len(flat) // batches
    if not size:
        raise ValueError(f"{len(flat)} values make no {batches} batches")
    means = flat[: size * batches].reshape(batches, size).mean(1)
    return of_replications(means.tolist(), confidence=confidence)
