"""How far a simulation agrees with the real run that it stands for.

Counters and plans must be equal: both worlds ran the same scheduler. Times are predictions, and their error is
(simulated - measured) / measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.figures import COUNTERS, figure_at, latency_paths, occurs
from reports.run import Run, look_up

#: predictions beside the latencies
_RATES = ("makespan_s", "output_tokens_per_s", "total_tokens_per_s", "requests_per_s")


#: a measured latency below this is the loop's own turn-round: a relative error of it would say nothing
SHORTEST_MS = 1.0


@dataclass(frozen=True)
class Prediction:
    """A time or rate, measured and simulated; ``None`` where a run does not have it.

    ``error`` is relative; a latency of less than :data:`SHORTEST_MS` has none.
    """

    path: str
    measured: float | None
    simulated: float | None

    @property
    def error(self) -> float | None:
        if self.measured is None or self.simulated is None or not self.measured:
            return None
        if "_ms." in self.path and self.measured < SHORTEST_MS:
            return None
        return (self.simulated - self.measured) / self.measured


@dataclass(frozen=True)
class CounterCheck:
    """A counter, or a ratio of counters, that must be the same in both worlds."""

    path: str
    measured: float | None
    simulated: float | None

    @property
    def equal(self) -> bool:
        """Exactly equal; ratios of equal integers are equal to the last bit."""
        return self.measured == self.simulated


@dataclass(frozen=True)
class Agreement:
    """A real run beside its simulated twin. ``replayed``: whether replaying the journal gave the same plans; ``None``
    if nobody replayed it."""

    measured: Run
    simulated: Run
    predictions: tuple[Prediction, ...]
    counters: tuple[CounterCheck, ...]
    replayed: bool | None = None

    @property
    def same_plans(self) -> bool:
        """Whether both made the same plans in the same order."""
        digests = (look_up(run.summary, "plan_digest") for run in (self.measured, self.simulated))
        first, second = digests
        return first is not None and first == second

    @property
    def counters_equal(self) -> bool:
        return all(check.equal for check in self.counters)

    @property
    def worst(self) -> Prediction | None:
        """The prediction that is furthest off."""
        known = [prediction for prediction in self.predictions if prediction.error is not None]
        return max(known, key=lambda prediction: abs(prediction.error or 0.0), default=None)

    @property
    def mean_error(self) -> float | None:
        """Mean of the errors' sizes, over all predictions that have one."""
        errors = [abs(p.error) for p in self.predictions if p.error is not None]
        return math.fsum(errors) / len(errors) if errors else None

    def prediction(self, path: str) -> Prediction | None:
        """The prediction of a figure, if there is one."""
        return next((prediction for prediction in self.predictions if prediction.path == path), None)


def agree(measured: Run, simulated: Run, replayed: bool | None = None) -> Agreement:
    """Put a real run and its simulation beside each other."""

    def both(path: str) -> tuple[float | None, float | None]:
        return look_up(measured.summary, path), look_up(simulated.summary, path)

    predictions = (Prediction(path, *both(path)) for path in (*_RATES, *latency_paths()))
    summaries = (measured.summary, simulated.summary)
    checks = (CounterCheck(path, *both(path)) for path in COUNTERS if occurs(figure_at(path), summaries))
    return Agreement(
        measured,
        simulated,
        tuple(p for p in predictions if p.measured is not None or p.simulated is not None),
        tuple(c for c in checks if c.measured is not None or c.simulated is not None),
        replayed,
    )


def summary_line(agreement: Agreement) -> str:
    """One sentence: plans, counters, and the worst error."""
    plans = "same plans" if agreement.same_plans else "different plans"
    differing = sum(not check.equal for check in agreement.counters)
    counters = "all counters equal" if not differing else f"{differing} of {len(agreement.counters)} counters differ"
    worst, mean = agreement.worst, agreement.mean_error
    if worst is None or worst.error is None or mean is None:
        return f"{plans}, {counters}, no latency to compare"
    title = figure_at(worst.path).title
    return f"{plans}, {counters}, mean error {100 * mean:.1f} %, largest {100 * worst.error:+.1f} % ({title})"
