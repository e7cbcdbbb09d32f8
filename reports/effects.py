"""How much better one group of runs is than another, and how sure that is.

Runs of the same settings are repeats. With repeats of both groups the change has a 95 % interval by Student's t: over
pairs where both were run with the same seeds, and else over the two means (Welch 1947). With one run each there is
only what the same requests took in both: an interval over pairs of requests, which says nothing of another run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from reports.figures import Figure, figure_at
from reports.percentiles import CONFIDENCE
from reports.run import Run, look_up
from reports.settings import asked
from reports.summary import finished, latencies

FloatArray = npt.NDArray[np.float64]

#: what is compared, in the order of a table
PATHS = (
    "output_tokens_per_s", "requests_per_s", "goodput_per_s", "ttft_ms.mean", "ttft_ms.p50", "ttft_ms.p99",
    "tpot_ms.mean", "tpot_ms.p50", "e2e_ms.mean", "e2e_ms.p50", "e2e_ms.p99", "queue_ms.mean", "padding_waste.prefill",
    "padding_waste.decode", "makespan_s",
)  # fmt: skip

#: a change beyond which it is told as a factor
_TIMES = 1.5

Over = Literal["pairs of runs", "runs", "pairs of requests", ""]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds; ``label`` is what all of them are called."""

    label: str
    runs: tuple[Run, ...]

    @property
    def workload(self) -> str:
        """What was asked, in words; the same whatever the seed."""
        return str(self.runs[0].manifest.get("workload") or "")


@dataclass(frozen=True)
class Effect:
    """The change of a figure from the baseline to another group, as a share of the baseline.

    ``half_width``: of its 95 % interval; ``None`` where there are too few runs to have one. ``n``: of what the interval
    is over. A share, such as padding, changes by a difference and not by a share of itself: ``absolute``.
    """

    figure: Figure
    baseline: float
    other: float
    change: float
    half_width: float | None
    n: int
    over: Over
    absolute: bool

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves out 0, else ``not told apart``; without one ``higher`` or
        ``lower``, or ``equal``."""
        if not self.change and not self.half_width:
            return "equal"
        if self.half_width is None:
            return "higher" if self.change > 0 else "lower"
        if abs(self.change) <= self.half_width:
            return "not told apart"
        if self.figure.better is None:
            return "higher" if self.change > 0 else "lower"
        return "better" if (self.change > 0) == (self.figure.better == "higher") else "worse"

    def text(self) -> str:
        """``better by 12 % ± 2 (n = 5 pairs of runs)``."""
        if self.verdict == "equal":
            return "equal"
        factor = not self.absolute and self.change > _TIMES
        if self.absolute:
            size = f"{100 * abs(self.change):.2f} points"
        else:
            size = f"{1 + self.change:.3g} times as much" if factor else f"{100 * abs(self.change):.3g} %"
        said = f"{self.verdict}{':' if factor else ' by'} {size}"
        if self.half_width is None:
            return f"{said} (n = {self.n}, no interval)"
        of = f"(n = {self.n:,} {self.over})"
        half = _two_digits(self.half_width if factor else 100 * self.half_width)
        if self.verdict == "not told apart":
            return f"not told apart: {'+' if self.change > 0 else '−'}{size} ± {half} {of}"
        return f"{said} ± {half} {of}"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by their settings and worlds, in the order of their first run."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        workload = run.manifest.get("workload")
        key = (run.label, run.world, str(workload), run.setting("model"), *asked(run.summary.get("scheduler")))
        found.setdefault(key, []).append(run)
    return [Group(same[0].label, tuple(same)) for same in found.values()]


def effects(baseline: Group, other: Group) -> tuple[Effect, ...]:
    """Every figure of :data:`PATHS` that all runs of both groups have."""
    found = []
    for path in PATHS:
        a, b = (_values(group, path) for group in (baseline, other))
        if a is None or b is None:
            continue
        effect = _effect(figure_at(path), baseline, other, a, b)
        if effect is not None:
            found.append(effect)
    return tuple(found)


def _values(group: Group, path: str) -> FloatArray | None:
    values = [look_up(run.summary, path) for run in group.runs]
    return None if any(value is None for value in values) else np.array(values, np.float64)


def _effect(figure: Figure, baseline: Group, other: Group, a: FloatArray, b: FloatArray) -> Effect | None:
    absolute = figure.unit == "share"
    scale = 1.0 if absolute else float(a.mean())
    if not scale:
        return None
    order = _paired(baseline, other)
    if order is not None and len(a) > 1:
        differences = (b[order] - a) / (1.0 if absolute else a)
        change, half_width = float(differences.mean()), _half_width(differences)
        return Effect(figure, float(a.mean()), float(b.mean()), change, half_width, len(a), "pairs of runs", absolute)
    change = float(b.mean() - a.mean()) / scale
    if len(a) > 1 and len(b) > 1:
        half_width, n = _welch(a / scale, b / scale), len(a) + len(b)
        return Effect(figure, float(a.mean()), float(b.mean()), change, half_width, n, "runs", absolute)
    same = baseline.workload == other.workload
    if same and len(a) == len(b) == 1 and figure.path.endswith("_ms.mean"):
        both = _requests_of_both(figure.path.removesuffix(".mean"), baseline.runs[0], other.runs[0])
        if both is not None:
            first, second = both
            differences = (second - first) / first.mean()
            return Effect(
                figure, float(a[0]), float(b[0]), float(differences.mean()), _half_width(differences), len(first),
                "pairs of requests", absolute,
            )  # fmt: skip
    return Effect(figure, float(a.mean()), float(b.mean()), change, None, min(len(a), len(b)), "", absolute)


def _paired(a: Group, b: Group) -> list[int] | None:
    """For each run of ``a`` the place of the run of ``b`` with the same seed, if each has exactly one."""
    seeds_a, seeds_b = ([run.manifest.get("seed") for run in group.runs] for group in (a, b))
    if None in seeds_a or len(set(seeds_a)) < len(seeds_a) or sorted(map(str, seeds_a)) != sorted(map(str, seeds_b)):
        return None
    return [seeds_b.index(seed) for seed in seeds_a]


def _half_width(differences: FloatArray) -> float | None:
    """Of the interval of the mean, by Student's t."""
    n = len(differences)
    if n < 2:
        return None
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(differences.std(ddof=1)) / math.sqrt(n)


def _welch(a: FloatArray, b: FloatArray) -> float:
    """Half of the width of the interval of the difference of two means."""
    parts = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(parts))


def _requests_of_both(key: str, a: Run, b: Run) -> tuple[FloatArray, FloatArray] | None:
    """The latencies of the requests that finished in both runs, if they were asked the same."""
    tables = []
    for run in (a, b):
        done = finished(run.requests)
        values = latencies(run.requests).in_ms().get(key)
        if values is None:
            return None
        tables.append(
            {
                name: (lengths, value)
                for name, lengths, value in zip(
                    done["id"], zip(done["prompt_tokens"], done["output_tokens"], strict=True), values, strict=True
                )
                if not math.isnan(value)
            }
        )
    shared = [name for name in tables[0] if name in tables[1] and tables[0][name][0] == tables[1][name][0]]
    if len(shared) < 2 or len(shared) < 0.9 * max(map(len, tables)):
        return None
    first, second = (np.array([table[name][1] for name in shared], np.float64) for table in tables)
    return (first, second) if first.mean() > 0 else None
