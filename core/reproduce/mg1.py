"""Mean response times of the M/G/1 queue with exponential service (mean 1), under four disciplines, as integrals.

Harchol-Balter, "Performance Modeling and Design of Computer Systems" (Cambridge University Press, 2013), chapters 29
(FCFS), 31 (shortest job first) and 33 (SRPT), and 32 for foreground-background, which is least attained service.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf

from scipy.integrate import quad


def fcfs(rho: float) -> float:
    """First come, first served; any order that does not look at sizes has this mean."""
    return 1 / (1 - rho)


def sjf(rho: float) -> float:
    """Shortest job first, not preempting: a job of size x waits for who is in service and for all that are shorter."""
    residual = rho  # lambda E[S^2] / 2
    return 1 + _mean(lambda x: residual / (1 - _load_of_shorter(rho, x)) ** 2)


def srpt(rho: float) -> float:
    """Shortest remaining processing time (Schrage and Miller, 1966): waiting, then residence."""

    def waiting(x: float) -> float:
        # lambda (integral of t^2 f(t) up to x + x^2 (1 - F(x))) / 2 = lambda E[min(S, x)^2] / 2
        return _truncated_square(rho, x) / (1 - _load_of_shorter(rho, x)) ** 2

    def residence(x: float) -> float:
        return _integral(lambda t: 1 / (1 - _load_of_shorter(rho, t)), 0, x)

    return _mean(lambda x: waiting(x) + residence(x))


def las(rho: float) -> float:
    """Least attained service: to a job of size x every other job is cut off at x."""

    def response(x: float) -> float:
        idle = 1 - rho * (1 - exp(-x))
        return _truncated_square(rho, x) / idle**2 + x / idle

    return _mean(response)


def _load_of_shorter(rho: float, x: float) -> float:
    """The load of jobs of size at most x."""
    return rho * (1 - (1 + x) * exp(-x))


def _truncated_square(rho: float, x: float) -> float:
    """lambda E[min(S, x)^2] / 2."""
    return rho * (1 - (1 + x) * exp(-x))


def _mean(response: Callable[[float], float]) -> float:
    """Over job sizes."""
    return _integral(lambda x: response(x) * exp(-x), 0, inf)


def _integral(function: Callable[[float], float], low: float, high: float) -> float:
    value, _ = quad(function, low, high, epsabs=1e-10, epsrel=1e-10, limit=200)
    return float(value)
