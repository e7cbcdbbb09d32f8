"""How sure a recommendation is: on parts that the search has not seen, over seeds, and knob by knob."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from tuning.objectives import Objective
from tuning.parts import Parts
from tuning.setting import Setting, Value
from tuning.space import Space
from tuning.world import Evaluation, Job, Part

Simulate = Callable[[Sequence[Job]], list[Evaluation]]

#: runs whose step times vary, beside the one whose do not
SEEDS = 2
#: a gain that is larger counts as this
MOST = 10.0
#: of a knob, beside the recommended one
LEVELS = 4
#: requests that knobs are moved on
MOST_MOVED = 3000
#: a knob that changes the objective by less does not matter
MATTERS = 0.01


@dataclass(frozen=True)
class Gain:
    """How much better a setting is than another, as a share: the mean over parts, its interval, and each part's."""

    mean: float
    low: float
    high: float
    parts: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """What can be said of the sign."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"


def gain_over(gains: Sequence[float], confidence: float) -> Gain:
    """The mean gain of independent parts with its interval by Student's t.

    Parts of which nothing can be said (the other setting served nobody) are left out.
    """
    finite = [gain for gain in gains if math.isfinite(gain)]
    if len(finite) < 2:
        value = finite[0] if finite else math.nan
        return Gain(value, -math.inf, math.inf, tuple(finite))
    mean = float(np.mean(finite))
    error = float(np.std(finite, ddof=1)) / math.sqrt(len(finite))
    spread = float(stdtrit(len(finite) - 1, (1 + confidence) / 2)) * error
    return Gain(mean, mean - spread, mean + spread, tuple(finite))


def held_out_jobs(setting: Setting, parts: Parts, seeds: Sequence[tuple[int, bool]]) -> list[Job]:
    """A setting on what is held out, with each seed."""
    return [Job(setting, parts.held_out, seed, varied) for seed, varied in seeds]


def compared(
    results: Sequence[Evaluation], others: Sequence[Evaluation], objective: Objective, axis: int
) -> list[float]:  # fmt: skip
    """The gain in each piece of what is held out, the mean over the seeds; both have a result for each seed.

    A piece's gain is a share of what the other setting came to over all pieces, so that one in which that served hardly
    anybody does not count more than the rest; their mean is the gain over all. Where the other setting served nobody
    well anywhere, it is :data:`MOST`.
    """
    by_seed = [
        [-math.inf] * len(other.pieces)
        if one.failed
        else _gains([piece[axis] for piece in one.pieces], [piece[axis] for piece in other.pieces], objective)
        for one, other in zip(results, others, strict=True)
    ]
    return [float(np.mean(gains)) for gains in zip(*by_seed, strict=True)]


def _gains(values: Sequence[float], others: Sequence[float], objective: Objective) -> list[float]:
    scale = float(np.mean(others))
    if not scale or not np.isfinite([*values, *others]).all():
        return [min(MOST, objective.gain(a, b)) for a, b in zip(values, others, strict=True)]
    sign = 1 if objective.maximise else -1
    return [min(MOST, sign * (a - b) / scale) for a, b in zip(values, others, strict=True)]


@dataclass(frozen=True)
class Sensitivity:
    """What the first objective does as one knob alone is moved away from the recommended setting: the change at each
    value, as a share; below 0 is worse."""

    knob: str
    value: Value | None
    changes: tuple[tuple[Value | None, float], ...]

    @property
    def worst(self) -> float:
        return min((change for _, change in self.changes), default=0.0)

    @property
    def largest(self) -> float:
        """The size of the largest change."""
        return max((abs(change) for _, change in self.changes), default=0.0)

    @property
    def matters(self) -> bool:
        return self.largest > MATTERS


def sensitivity(
    space: Space, setting: Setting, values: dict[str, Value | None], objective: Objective, parts: Parts, seed: int,
    simulate: Simulate,
) -> list[Sensitivity]:  # fmt: skip
    """Each free knob of ``setting`` moved alone, on all that is searched or the first part of it; those that matter
    most come first. Knobs that the setting's policy does not take are left out."""
    part = Part(0, min(MOST_MOVED, parts.searched.stop), whole=True)
    moved: list[tuple[str, Value | None, Setting]] = []
    for knob in space.free:
        for value in knob.levels(LEVELS + 1):
            other = space.setting({**values, knob.name: value})
            if other.key != setting.key and other.values.get(knob.name) != setting.values.get(knob.name):
                moved.append((knob.name, value, other))
    jobs = [Job(setting, part, seed), *(Job(other, part, seed) for _, _, other in moved)]
    base, *results = simulate(jobs)
    if base.failed:
        return []
    changes: dict[str, list[tuple[Value | None, float]]] = {}
    for (name, value, _), result in zip(moved, results, strict=True):
        change = -1.0 if result.failed else objective.gain(result.values[0], base.values[0])
        changes.setdefault(name, []).append((value, max(-1.0, change) if not math.isnan(change) else 0.0))
    found = [Sensitivity(name, setting.values.get(name), tuple(moves)) for name, moves in changes.items()]
    return sorted(found, key=lambda one: -one.largest)
