"""When requests arrive: as recorded, or synthetic. Integer nanoseconds, the first at 0, never falling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from workloads.errors import WorkloadError, did_you_mean, shown
from workloads.random_source import RandomSource
from workloads.workload import END_OF_TIME_NS

Process = Literal["poisson", "gamma", "constant", "all-at-once", "trace"]

#: what ``--arrivals`` takes, one line each
PROCESSES = {
    "poisson": "independent arrivals: exponential gaps with mean 1 / rate",
    "gamma:CV": "gamma gaps with mean 1 / rate and coefficient of variation CV; above 1 is burstier than Poisson",
    "constant": "one arrival every 1 / rate seconds",
    "all-at-once": "every request at time 0",
    "trace": "as the trace recorded them",
}
LOWEST_RATE, HIGHEST_RATE = 1e-6, 1e6
LOWEST_CV, HIGHEST_CV = 1e-3, 1e3
LOWEST_SCALE, HIGHEST_SCALE = 1e-6, 1e6


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process. ``cv`` (of the gaps) belongs to ``gamma`` only and is 0 for every other."""

    process: Process
    cv: float = 0.0

    @classmethod
    def parse(cls, spec: str) -> Arrivals:
        """From what ``--arrivals`` was given: see :data:`PROCESSES`. Raises :class:`WorkloadError`."""
        name, colon, argument = spec.partition(":")
        for process in get_args(Process):
            if process == name:
                if process == "gamma":
                    return cls("gamma", _parse_cv(spec, argument))
                if colon:
                    raise WorkloadError(f"arrivals {shown(spec)}: {name} takes no value after a colon; write {name}")
                return cls(process)
        raise WorkloadError(
            f"unknown arrivals {shown(spec)}{did_you_mean(name, get_args(Process))} valid: {', '.join(PROCESSES)}"
        )

    @property
    def has_rate(self) -> bool:
        """Whether the process is one of so many requests per second."""
        return self.process in ("poisson", "gamma", "constant")

    def __str__(self) -> str:
        return f"gamma:{self.cv:g}" if self.process == "gamma" else self.process


@dataclass(frozen=True, slots=True)
class ArrivalPlan:
    """Everything that decides arrival times but the random numbers; made by :func:`plan_arrivals`.

    ``rate_per_s`` is before scaling. ``time_scale`` multiplies every time: 2 plays at half the speed.
    """

    arrivals: Arrivals
    rate_per_s: float | None
    time_scale: float = 1.0

    def times_ns(self, count: int, rng: RandomSource, recorded_ns: Sequence[int] | None = None) -> list[int]:
        """``count`` arrival times; ``recorded_ns`` are the trace's own, needed for ``trace``."""
        times = self._unscaled_ns(count, rng, recorded_ns)
        if self.time_scale != 1:
            times = [int(time * self.time_scale + 0.5) for time in times]
        if times and times[-1] >= END_OF_TIME_NS:
            raise WorkloadError(f"{self} put the last of {count} requests beyond 146 years; make them faster")
        return times

    def _unscaled_ns(self, count: int, rng: RandomSource, recorded_ns: Sequence[int] | None) -> list[int]:
        if self.arrivals.process == "all-at-once":
            return [0] * count
        if self.rate_per_s is None:
            if recorded_ns is None or len(recorded_ns) != count:
                raise WorkloadError(f"arrivals trace need {count} recorded times")
            return list(recorded_ns)
        gap_ns = 1e9 / self.rate_per_s
        if self.arrivals.process == "constant":
            return [int(number * gap_ns + 0.5) for number in range(count)]
        return _accumulate(count, gap_ns, _unit_gaps(self.arrivals, rng))

    def __str__(self) -> str:
        match self.arrivals.process:
            case "all-at-once":
                text = "arrivals all at once"
            case "trace":
                text = "arrivals as recorded"
            case "gamma":
                text = f"gamma arrivals with CV {self.arrivals.cv:g} at {self.rate_per_s:g}/s"
            case "constant":
                text = f"constant arrivals at {self.rate_per_s:g}/s"
            case "poisson":
                text = f"Poisson arrivals at {self.rate_per_s:g}/s"
        if self.time_scale > 1:
            return f"{text}, then {self.time_scale:g} times as slow (time scale {self.time_scale:g})"
        if self.time_scale < 1:
            return f"{text}, then {1 / self.time_scale:g} times as fast (time scale {self.time_scale:g})"
        return text


def plan_arrivals(
    asked: str | None,
    *,
    rate: float | None,
    time_scale: float | None,
    default: Arrivals | None,
    default_rate: float | None,
    recorded: bool,
    what: str,
) -> ArrivalPlan:
    """Put the user's settings and the workload's own together; whatever would have no effect is an error.

    ``default`` and ``default_rate`` are the workload's, ``recorded`` says whether it has times of its own, ``what``
    names it in errors. A rate without a process means ``poisson``, unless the default is itself a process with a rate.
    Raises :class:`WorkloadError`.
    """
    _check_range("rate", rate, LOWEST_RATE, HIGHEST_RATE, "requests per second")
    _check_range("time scale", time_scale, LOWEST_SCALE, HIGHEST_SCALE, "2 is twice as slow")
    arrivals = default if asked is None else Arrivals.parse(asked)
    if asked is None and rate is not None and (arrivals is None or not arrivals.has_rate):
        arrivals = Arrivals("poisson")
    if arrivals is None:
        raise WorkloadError(
            f"{what} has lengths but no arrival times; give a rate (--rate R) or --arrivals all-at-once"
        )
    if arrivals.process == "trace" and not recorded:
        raise WorkloadError(
            f"arrivals trace: {what} has no recorded arrival times; valid here: poisson, gamma:CV, constant, "
            "all-at-once"
        )
    scale = 1.0 if time_scale is None else time_scale
    if arrivals.process == "all-at-once" and scale != 1:
        raise WorkloadError(f"time scale {scale:g} has no effect on arrivals all-at-once; leave it out")
    if not arrivals.has_rate:
        if rate is not None:
            raise WorkloadError(f"rate {rate:g} has no effect on arrivals {arrivals}; leave one of the two out")
        return ArrivalPlan(arrivals, None, scale)
    rate = default_rate if rate is None else rate
    if rate is None:
        raise WorkloadError(f"arrivals {arrivals}: {what} has no rate of its own; give one (--rate R, per second)")
    return ArrivalPlan(arrivals, rate, scale)


def _parse_cv(spec: str, argument: str) -> float:
    try:
        cv = float(argument)
    except ValueError:
        raise WorkloadError(
            f"arrivals {shown(spec)}: gamma needs its coefficient of variation as a number, for example gamma:2"
        ) from None
    if not LOWEST_CV <= cv <= HIGHEST_CV:
        raise WorkloadError(
            f"arrivals {shown(spec)}: the coefficient of variation must be from {LOWEST_CV:g} to {HIGHEST_CV:g}; "
            "for evenly spaced arrivals use constant"
        )
    return cv


def _check_range(name: str, value: float | None, lowest: float, highest: float, meaning: str) -> None:
    if value is not None and not lowest <= value <= highest:
        raise WorkloadError(f"{name} is {value:g}; must be from {lowest:g} to {highest:g} ({meaning})")


def _accumulate(count: int, gap_ns: float, unit_gap: Callable[[], float]) -> list[int]:
    """Times whose gaps are ``unit_gap() * gap_ns``, each rounded to a whole nanosecond, then summed exactly."""
    now = 0
    times = [now]
    for _ in range(count - 1):
        gap = unit_gap() * gap_ns
        if gap + now >= END_OF_TIME_NS:
            raise WorkloadError(f"{count} requests at {1e9 / gap_ns:g}/s take more than 146 years; raise the rate")
        now += int(gap + 0.5)
        times.append(now)
    return times


def _unit_gaps(arrivals: Arrivals, rng: RandomSource) -> Callable[[], float]:
    """A source of gaps with mean 1."""
    if arrivals.process == "poisson":
        return lambda: -math.log(1.0 - rng.random())
    shape = 1.0 / (arrivals.cv * arrivals.cv)
    return lambda: gamma_variate(shape, rng) / shape


def gamma_variate(shape: float, rng: RandomSource) -> float:
    """A gamma variate of the given shape and scale 1: mean ``shape``, coefficient of variation ``shape ** -0.5``.

    Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000: a squeeze on a cubed
    normal. Below shape 1, their remark in section 6: a variate of shape + 1 times a uniform to the power 1 / shape.
    """
    if shape < 1.0:
        return gamma_variate(shape + 1.0, rng) * math.pow(1.0 - rng.random(), 1.0 / shape)
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        x = _normal_variate(rng)
        root = 1.0 + c * x
        if root <= 0.0:
            continue
        v = root * root * root
        u = 1.0 - rng.random()
        if u < 1.0 - 0.0331 * x * x * x * x or math.log(u) < 0.5 * x * x + d * (1.0 - v + math.log(v)):
            return d * v


def _normal_variate(rng: RandomSource) -> float:
    """A standard normal variate by Marsaglia's polar method (the second one of each pair is not kept)."""
    while True:
        x = 2.0 * rng.random() - 1.0
        y = 2.0 * rng.random() - 1.0
        radius = x * x + y * y
        if 0.0 < radius < 1.0:
            return x * math.sqrt(-2.0 * math.log(radius) / radius)
