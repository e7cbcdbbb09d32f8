"""Claims against what was measured: what a claim says, how it is judged, and the files that hold the outcome.

A claim has *readings*: its words, made into a condition on figures of runs before and after. Where the words leave
something open, a claim has more than one reading. A reading is true if the runs of every round meet its condition,
false if those of none do; otherwise the rounds disagree. Runs are compared within a round, in which all have the same
requests; rounds differ in their requests, so that the spread over rounds has both the machine's and the workload's.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from reports.percentiles import nearest_rank, samples_needed

SCHEMA_VERSION = 1
CONFIDENCE = 0.95

#: what a reading looks at: a run's figure alone (``after``), or that beside the run before: their ratio, the growth or
#: the drop as a share of before, the difference; ``best``: the ratio to the best of others (the lowest, or the highest)
Quantity = Literal["after", "ratio", "growth", "drop", "difference", "to lowest", "to highest"]
Relation = Literal["at least", "at most", "above", "below", "equal"]
#: ``favourable`` and ``realistic`` readings of what a claim leaves open, ``literal`` ones of what it does not;
#: ``beside``: shown, and not judged by
Kind = Literal["literal", "favourable", "realistic", "beside"]
Outcome = Literal["true", "false", "rounds disagree", "not measured"]
Verdict = Literal["holds", "holds in part", "does not hold", "not decided", "not measured"]

_SIGNS = {"at least": "≥", "at most": "≤", "above": ">", "below": "<", "equal": "="}
_METS: dict[Relation, Callable[[float, float, float], bool]] = {
    "at least": lambda value, bound, _: value >= bound,
    "at most": lambda value, bound, _: value <= bound,
    "above": lambda value, bound, _: value > bound,
    "below": lambda value, bound, _: value < bound,
    "equal": lambda value, bound, tolerance: abs(value - bound) <= tolerance,
}

COLUMNS = ("machine", "claim", "reading", "kind", "figure", "run_before", "run_after", "before", "after", "quantity",
           "mean", "half_width_95", "lowest", "highest", "n", "relation", "bound", "outcome", "reason")  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One condition. ``after``, ``before`` and ``others`` are names of runs, ``figure`` of a figure that they have.

    ``unit`` is how figures and quantities are written: ``%`` of shares, or the unit itself. ``percent``: the figure is
    that percentile of the samples of all rounds together, which no single round has enough of.
    """

    text: str
    figure: str
    after: str
    relation: Relation
    bound: float
    before: str | None = None
    others: tuple[str, ...] = ()
    quantity: Quantity = "after"
    kind: Kind = "literal"
    unit: str = ""
    tolerance: float = 0.0
    percent: int | None = None

    @property
    def runs(self) -> tuple[str, ...]:
        """All runs that it needs."""
        return tuple(name for name in (self.before, *self.others, self.after) if name is not None)

    @property
    def counts(self) -> bool:
        """Whether the claim is judged by it."""
        return self.kind != "beside"

    def claimed_text(self) -> str:
        """The condition as a table shows it."""
        return f"{_SIGNS[self.relation]} {self.quantity_text(self.bound)}"

    def quantity_text(self, value: float) -> str:
        """A value of the quantity that is judged."""
        match self.quantity:
            case "ratio" | "to lowest" | "to highest":
                return f"x{number(value)}"
            case "growth" | "drop":
                return f"{number(100 * value)} %"
            case "difference":
                return f"{number(100 * value)} points" if self.unit == "%" else self.figure_text(value)
            case "after":
                return self.figure_text(value)

    def figure_text(self, value: float) -> str:
        """A value of the figure."""
        if self.unit == "%":
            return f"{number(100 * value)} %"
        return f"{number(value)} {self.unit}".rstrip()


@dataclass(frozen=True)
class Claim:
    """A row of the seed's claims. ``why`` says what makes the difference where it does not simply hold."""

    name: str
    title: str
    claimed: str
    before: str
    after: str
    readings: tuple[Reading, ...]
    why: str


@dataclass(frozen=True)
class Measured:
    """What the runs of one name gave: figures and samples by round; ``absent`` says why some are not there."""

    rounds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    samples: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Values of several rounds; ``half_width`` is that of the 95 % interval of their mean, by Student's t."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def half_width(self) -> float | None:
        n = len(self.values)
        if n < 2:
            return None
        variance = math.fsum((value - self.mean) ** 2 for value in self.values) / (n - 1)
        return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / n)


@dataclass(frozen=True)
class Judged:
    """A reading with what came out. ``n`` counts the rounds, or the samples of a pooled percentile."""

    reading: Reading
    outcome: Outcome
    spread: Spread | None = None
    before: float | None = None
    after: float | None = None
    n: int = 0
    reason: str = ""

    def spread_text(self) -> str:
        """The quantity with its spread."""
        if self.spread is None:
            return "–"
        text, width = self.reading.quantity_text(self.spread.mean), self.spread.half_width
        if width is None or width == 0:
            return text
        around = self.reading.quantity_text(width).removeprefix("x")
        return f"{text} ± {around}"

    def n_text(self) -> str:
        """How many rounds or requests are behind it."""
        if not self.n:
            return "–"
        return f"{self.n} requests" if self.reading.percent else str(self.n)

    def figure_text(self, value: float | None) -> str:
        """The figure before or after."""
        return "–" if value is None else self.reading.figure_text(value)


def judge(reading: Reading, measured: Mapping[str, Measured]) -> Judged:
    """Whether ``reading`` is true of what was measured."""
    runs = [measured.get(name, Measured()) for name in reading.runs]
    if reading.percent is not None:
        return _judge_pooled(reading, runs, reading.percent)
    rounds = [number for number in sorted(runs[-1].rounds)
              if all(reading.figure in run.rounds.get(number, {}) for run in runs)]  # fmt: skip
    if not rounds:
        return Judged(reading, "not measured", reason=_why_absent(reading, runs))
    table = [[run.rounds[number][reading.figure] for run in runs] for number in rounds]
    befores = [_before(reading, row[:-1]) for row in table]
    afters = [row[-1] for row in table]
    try:
        values = [_quantity(reading, before, after) for before, after in zip(befores, afters, strict=True)]
    except ZeroDivisionError:
        return Judged(reading, "not measured", reason=f"{reading.figure} was 0 before: there is nothing to compare to")
    mean_before = None if befores[0] is None else math.fsum(b for b in befores if b is not None) / len(befores)
    return Judged(reading, _outcome(reading, values), Spread(tuple(values)), mean_before,
                  math.fsum(afters) / len(afters), len(rounds))  # fmt: skip


def _judge_pooled(reading: Reading, runs: Sequence[Measured], percent: int) -> Judged:
    """A percentile over the samples of all rounds that every run has."""
    rounds = [number for number in sorted(runs[-1].samples)
              if all(reading.figure in run.samples.get(number, {}) for run in runs)]  # fmt: skip
    if not rounds:
        return Judged(reading, "not measured", reason=_why_absent(reading, runs))
    pools = [np.sort(np.concatenate([run.samples[number][reading.figure] for number in rounds])) for run in runs]
    n, needed = min(map(len, pools)), samples_needed(percent)
    if n < needed:
        return Judged(reading, "not measured", n=n, reason=f"n too small: n = {n}, p{percent} needs {needed}")
    row = [float(pool[nearest_rank(percent, len(pool)) - 1]) for pool in pools]
    before = _before(reading, row[:-1])
    value = _quantity(reading, before, row[-1])
    return Judged(reading, _outcome(reading, [value]), Spread((value,)), before, row[-1], n)


def _before(reading: Reading, row: Sequence[float]) -> float | None:
    if reading.quantity == "to lowest":
        return min(row)
    if reading.quantity == "to highest":
        return max(row)
    return row[0] if row else None


def _quantity(reading: Reading, before: float | None, after: float) -> float:
    if before is None:
        return after
    match reading.quantity:
        case "ratio" | "to lowest" | "to highest":
            return after / before
        case "growth":
            return after / before - 1
        case "drop":
            return 1 - after / before
        case "difference":
            return after - before
        case "after":
            return after


def _outcome(reading: Reading, values: Sequence[float]) -> Outcome:
    met = [_METS[reading.relation](value, reading.bound, reading.tolerance) for value in values]
    return "true" if all(met) else "rounds disagree" if any(met) else "false"


def _why_absent(reading: Reading, runs: Sequence[Measured]) -> str:
    reasons = [run.absent[reading.figure] for run in runs if reading.figure in run.absent]
    if reasons:
        return reasons[0]
    lacking = [name for name, run in zip(reading.runs, runs, strict=True) if not run.rounds]
    return f"not run: {', '.join(lacking)}" if lacking else f"no round has {reading.figure} in all of its runs"


@dataclass(frozen=True)
class Answer:
    """A claim with what came out of its readings."""

    claim: Claim
    judged: tuple[Judged, ...]

    @property
    def verdict(self) -> Verdict:
        """By the readings that count and could be measured."""
        outcomes = [one.outcome for one in self.judged if one.reading.counts and one.outcome != "not measured"]
        if not outcomes:
            return "not measured"
        if all(outcome == "true" for outcome in outcomes):
            return "holds"
        if "true" in outcomes:
            return "holds in part"
        return "does not hold" if all(outcome == "false" for outcome in outcomes) else "not decided"

    def condition(self) -> str:
        """Under which readings it is true, if not under all; on which rounds disagree; what was not measured."""
        counted = [one for one in self.judged if one.reading.counts]
        true = [one.reading.text for one in counted if one.outcome == "true"]
        open_ = [one.reading.text for one in counted if one.outcome == "rounds disagree"]
        missing = sum(one.outcome == "not measured" for one in counted)
        parts = []
        if self.verdict == "holds in part":
            parts.append(f"true only for: {'; '.join(true)}")
        if open_:
            parts.append(f"rounds disagree on: {'; '.join(open_)}")
        if missing:
            parts.append(f"{missing} of {len(counted)} readings not measured")
        return ". ".join(parts)


def answer(claim: Claim, measured: Mapping[str, Measured]) -> Answer:
    """``claim`` judged by what was measured."""
    return Answer(claim, tuple(judge(reading, measured) for reading in claim.readings))


# -- the experiment that the claims leave out


@dataclass(frozen=True)
class Cell:
    """A run of the experiment of layouts x batchings x policies, and the run of plain arrival order beside it."""

    layout: str
    batching: str
    policy: str
    run: str
    plain: str


@dataclass(frozen=True)
class Contrast:
    """A cell's figures; ``ratio`` is its throughput over that of arrival order in the same round."""

    cell: Cell
    n: int
    prefill_waste: float
    decode_waste: float
    decode_batch: float
    tokens_per_s: Spread
    e2e_ms: Spread
    ratio: Spread
    e2e_ratio: Spread

    @property
    def word(self) -> str:
        """Whether the policy pays in throughput: in every round, in none, or it depends."""
        if self.cell.run == self.cell.plain:
            return "–"
        return _pays(self.ratio.values, higher=True)

    @property
    def latency_word(self) -> str:
        """Whether it pays in mean E2E."""
        if self.cell.run == self.cell.plain:
            return "–"
        return _pays(self.e2e_ratio.values, higher=False)


def _pays(ratios: Sequence[float], higher: bool) -> str:
    gains = [ratio > 1 if higher else ratio < 1 for ratio in ratios]
    return "pays" if all(gains) else "costs" if not any(gains) else "rounds disagree"


def contrast(cell: Cell, measured: Mapping[str, Measured]) -> Contrast | None:
    """The figures of ``cell``; ``None`` where its run, or the plain one, was not measured."""
    own, plain = measured.get(cell.run, Measured()).rounds, measured.get(cell.plain, Measured()).rounds
    rounds = sorted(set(own) & set(plain))
    if not rounds:
        return None

    def spread(figure: str) -> Spread:
        return Spread(tuple(own[number][figure] for number in rounds))

    def ratio(figure: str) -> Spread:
        return Spread(tuple(own[number][figure] / plain[number][figure] for number in rounds))

    return Contrast(
        cell, len(rounds), spread("prefill_waste").mean, spread("decode_waste").mean, spread("decode_batch").mean,
        spread("output_tokens_per_s"), spread("e2e_ms.mean"), ratio("output_tokens_per_s"), ratio("e2e_ms.mean"),
    )  # fmt: skip


def contrast_lines(contrasts: Sequence[Contrast]) -> list[str]:
    """Where grouping by length pays and where it costs, a sentence for each layout and batching."""
    lines = []
    for layout, batching in dict.fromkeys((one.cell.layout, one.cell.batching) for one in contrasts):
        group = [one for one in contrasts
                 if (one.cell.layout, one.cell.batching) == (layout, batching) and one.word != "–"]  # fmt: skip
        if group:
            said = [f"{one.cell.policy} {one.word} (x{number(one.ratio.mean)} tok/s, x{number(one.e2e_ratio.mean)} "
                    f"mean E2E)" for one in group]  # fmt: skip
            lines.append(f"{layout}, {batching}: {'; '.join(said)}.")
    return lines


# -- files


@dataclass(frozen=True)
class Results:
    """What one machine gave. ``about``: command, machine, model, versions, what the runs were; all for readers."""

    about: Mapping[str, Any]
    measured: Mapping[str, Measured]

    @property
    def machine(self) -> str:
        return str(self.about.get("machine", "this machine"))

    def as_json(self) -> str:
        """``claims.json``, from which everything else can be made again."""
        runs = {
            name: {
                "rounds": {str(number): dict(figures) for number, figures in one.rounds.items()},
                "samples": {str(number): {key: [*values] for key, values in samples.items()}
                            for number, samples in one.samples.items()},
                "absent": dict(one.absent),
            }
            for name, one in self.measured.items()
        }  # fmt: skip
        data = {"schema_version": SCHEMA_VERSION, "about": dict(self.about), "runs": runs}
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """The inverse of :meth:`as_json`; ``ValueError`` for anything else."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION or "runs" not in data:
            raise ValueError(f"it does not hold claims of schema version {SCHEMA_VERSION}")
        measured = {
            name: Measured(
                {int(number): figures for number, figures in one["rounds"].items()},
                {int(number): samples for number, samples in one["samples"].items()},
                one["absent"],
            )
            for name, one in data["runs"].items()
        }
        return cls(data["about"], measured)


def as_csv(results: Results, answers: Sequence[Answer]) -> str:
    """``claims.csv``: a row for each reading; figures in the units of ``summary.json``, shares as shares."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in answers:
        for one in found.judged:
            reading, spread = one.reading, one.spread
            values = () if spread is None else spread.values
            numbers = (None if spread is None else spread.mean, None if spread is None else spread.half_width,
                       min(values, default=None), max(values, default=None))  # fmt: skip
            writer.writerow([
                results.machine, found.claim.name, reading.text, reading.kind, reading.figure,
                "; ".join(reading.runs[:-1]), reading.after, _plain(one.before), _plain(one.after), reading.quantity,
                *map(_plain, numbers), one.n, reading.relation, _plain(reading.bound), one.outcome, one.reason,
            ])  # fmt: skip
    return stream.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def number(value: float) -> str:
    """A number in three digits or all before the point, with a true minus."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 4)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")
