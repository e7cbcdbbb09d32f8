"""Two runs beside each other, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass

from reports.figures import FIGURES, Figure, figure_at, interval_at, latency_paths, occurs
from reports.run import Run, look_up
from reports.settings import asked

Interval = tuple[float, float]


@dataclass(frozen=True)
class Compared:
    """A figure of run A and run B; ``None`` where a run does not have it."""

    figure: Figure
    a: float | None
    b: float | None
    a_interval: Interval | None
    b_interval: Interval | None

    @property
    def difference(self) -> float | None:
        """B - A."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def ratio(self) -> float | None:
        """B / A."""
        return None if self.a is None or self.b is None or not self.a else self.b / self.a

    @property
    def distinct(self) -> bool | None:
        """Whether the 95 % intervals do not overlap; ``None`` where a run has no interval."""
        if self.a_interval is None or self.b_interval is None:
            return None
        return self.a_interval[1] < self.b_interval[0] or self.b_interval[1] < self.a_interval[0]

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` (B than A), ``equal``, ``differs`` (no direction is better); empty if not known."""
        if self.difference is None:
            return ""
        if not self.difference:
            return "equal"
        if self.figure.better is None:
            return "differs"
        return "better" if (self.difference < 0) == (self.figure.better == "lower") else "worse"


@dataclass(frozen=True)
class Comparison:
    """Run A, run B, and all figures that either has."""

    a: Run
    b: Run
    rows: tuple[Compared, ...]


def compare(a: Run, b: Run) -> Comparison:
    """Every figure of two runs. One run of each says nothing of the spread between runs: the intervals are those of
    the requests within a run."""
    summaries = (a.summary, b.summary)
    figures = [*(figure_at(path) for path in latency_paths()), *(f for f in FIGURES if occurs(f, summaries))]
    rows = (
        Compared(
            figure,
            look_up(a.summary, figure.path),
            look_up(b.summary, figure.path),
            interval_at(a.summary, figure.path),
            interval_at(b.summary, figure.path),
        )
        for figure in figures
    )
    return Comparison(a, b, tuple(row for row in rows if row.a is not None or row.b is not None))


def labels(runs: list[Run]) -> list[str]:
    """A label for each run, no two the same: where labels repeat what tells the runs apart is added, of the settings,
    the world, the seed, the run's name, and at last a number."""
    texts = [run.label for run in runs]
    settings = [asked(run.summary.get("scheduler")) for run in runs]
    shared = [
        set.intersection(*(set(words) for other, words in zip(texts, settings, strict=True) if other == text))
        for text in texts
    ]
    additions: list[list[str]] = [
        [", ".join(word for word in words if word not in same) for words, same in zip(settings, shared, strict=True)],
        [run.world for run in runs],
        [f"seed {run.manifest['seed']}" if "seed" in run.manifest else "" for run in runs],
        [run.name for run in runs],
        [str(number) for number in range(1, len(runs) + 1)],
    ]
    for addition in additions:
        if len(set(texts)) == len(texts):
            break
        alike: dict[str, set[str]] = {}
        for text, more in zip(texts, addition, strict=True):
            alike.setdefault(text, set()).add(more)
        texts = [
            f"{text} ({more})" if more and len(alike[text]) > 1 else text
            for text, more in zip(texts, addition, strict=True)
        ]
    return texts
