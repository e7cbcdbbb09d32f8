"""Published results against what the simulator gives: the rows, their verdicts, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: ``equal``: ours must be the published value; or at least, or at most, that
Relation = Literal["equal", "at least", "at most"]
Value = float | str

WITHIN, DIFFERS = "within tolerance", "differs"

COLUMNS = ("experiment", "quantity", "published", "ours", "difference", "tolerance", "statistical_error", "verdict",
           "explanation")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One quantity. Numbers may differ by ``tolerance`` (absolute), and by the statistical ``error`` of ours; texts,
    such as a list of lengths, must be equal. ``allowed`` is the tolerance as it was stated (``2 %``)."""

    quantity: str
    published: Value
    ours: Value
    tolerance: float = 0.0
    error: float = 0.0
    allowed: str = "exact"
    relation: Relation = "equal"
    explanation: str = ""
    digits: int = 3

    @classmethod
    def within(
        cls, quantity: str, published: float, ours: float, share: float, *, error: float = 0.0, explanation: str = "",
        digits: int = 3,
    ) -> Row:  # fmt: skip
        """A row whose tolerance is a share of the published value."""
        allowed = f"{100 * share:g} %"
        return cls(quantity, published, ours, abs(share * published), error, allowed, explanation=explanation,
                   digits=digits)  # fmt: skip

    @classmethod
    def rounded(cls, quantity: str, published: float, ours: float, digits: int, explanation: str = "") -> Row:
        """A row that must agree in every digit that was published: ``digits`` decimals."""
        half = 0.5 * 10.0**-digits * (1 + 1e-9)
        return cls(quantity, published, ours, half, allowed=f"{digits} decimals", explanation=explanation,
                   digits=digits + 1)  # fmt: skip

    @property
    def difference(self) -> float | None:
        """Ours - published; ``None`` for texts."""
        if isinstance(self.ours, str) or isinstance(self.published, str):
            return None
        return self.ours - self.published

    @property
    def passed(self) -> bool:
        """Whether ours is what was published, within what is allowed."""
        difference = self.difference
        if difference is None:
            return self.ours == self.published
        room = self.tolerance + self.error
        if self.relation == "at least":
            return difference >= -room
        if self.relation == "at most":
            return difference <= room
        return abs(difference) <= room

    @property
    def verdict(self) -> str:
        return WITHIN if self.passed else DIFFERS

    def published_text(self) -> str:
        """The published value as a table shows it."""
        sign = {"equal": "", "at least": "≥ ", "at most": "≤ "}[self.relation]
        return sign + self._text(self.published)

    def ours_text(self) -> str:
        """Ours as a table shows it, with its statistical error."""
        error = f" ± {self.error:.{self.digits}f}" if self.error else ""
        return self._text(self.ours) + error

    def difference_text(self) -> str:
        """The difference as a table shows it: as a share of the published value where that says more."""
        difference = self.difference
        if difference is None:
            return "–" if self.passed else "not equal"
        if not difference:
            return "0"
        if isinstance(difference, int):
            return f"{difference:+,}".replace("-", "−")
        if isinstance(self.published, str) or not self.published or self.allowed in ("exact",):
            return f"{difference:+.{self.digits}f}".replace("-", "−")
        return f"{100 * difference / self.published:+.2f} %".replace("-", "−")

    def _text(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        return f"{value:,}" if isinstance(value, int) else f"{value:,.{self.digits}f}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, for ``reproduce.json``."""
        return {
            "quantity": self.quantity,
            "relation": self.relation,
            "published": self.published,
            "ours": self.ours,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "tolerance_stated": self.allowed,
            "statistical_error": self.error,
            "verdict": self.verdict,
            "explanation": self.explanation,
        }


@dataclass(frozen=True)
class Curve:
    """A line of a chart. ``step``: it keeps each value until the next."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    step: bool = False


@dataclass(frozen=True)
class Chart:
    """What an experiment draws besides its rows; without one, published values stand beside ours."""

    curves: tuple[Curve, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Findings:
    """What came out of one experiment. ``setup`` is a sentence, ``notes`` say what a reader must know besides.

    ``not_run`` says why there are no rows. ``extra`` are tables beyond the published rows (a head, then rows of text).
    """

    name: str
    title: str
    source: str
    setup: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    not_run: str = ""
    seconds: float = 0.0
    chart: Chart | None = None
    extra: tuple[tuple[str, ...], ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unexplained(self) -> list[Row]:
        """Rows that differ and do not say why."""
        return [row for row in self.rows if not row.passed and not row.explanation]

    def explanations(self) -> dict[str, list[str]]:
        """The quantities that differ, by why they do; the reason is empty where nobody says."""
        why: dict[str, list[str]] = {}
        for row in self.rows:
            if not row.passed:
                why.setdefault(row.explanation, []).append(row.quantity)
        return why

    def verdict(self) -> str:
        """In a few words, for all rows."""
        if self.not_run:
            return "not run"
        outside = sum(not row.passed for row in self.rows)
        if not outside:
            return f"all {len(self.rows)} within tolerance"
        return f"{outside} of {len(self.rows)} differ"

    def as_dict(self) -> dict[str, Any]:
        """All of it, for ``reproduce.json``."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "setup": self.setup,
            "not_run": self.not_run or None,
            "rows": [row.as_dict() for row in self.rows],
            "notes": list(self.notes),
            "measured": dict(self.measured),
        }


def as_json(findings: Sequence[Findings], command: str) -> str:
    """``reproduce.json``."""
    data = {"schema_version": 1, "command": command, "experiments": [found.as_dict() for found in findings]}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def as_csv(findings: Sequence[Findings]) -> str:
    """``reproduce.csv``: a row each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in findings:
        for row in found.rows:
            difference = "" if row.difference is None else f"{row.difference:.6g}"
            values = [_plain(value) for value in (row.published, row.ours)]
            writer.writerow([found.name, row.quantity, *values, difference, f"{row.tolerance:.6g}",
                             f"{row.error:.6g}", row.verdict, row.explanation])  # fmt: skip
    return stream.getvalue()


def _plain(value: Value) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
