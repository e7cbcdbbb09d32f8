"""How much better or worse than the first group of runs the others are, with the confidence that repeats give."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import Series
from reports.effects import Effect, Group, effects, groups_of
from reports.figures import quantity
from reports.markup import chip, number_cell, row, section, table
from reports.page.dots import Dot, dots_chart
from reports.page.series import dot, judged

#: the figures of the first sentence
_SAID: tuple[str, ...] = ("output_tokens_per_s", "e2e_ms.mean")
_MOST_SAID = 4
_KINDS = {"better": "good", "worse": "bad"}


class Changes:
    """All groups beside the first one; simulated runs are left out where there are real ones."""

    def __init__(self, series: Sequence[Series]) -> None:
        runs = judged(series)
        of_run = {id(one.run): one for one in runs}
        groups = groups_of([one.run for one in runs])
        names = _names(groups)
        self._groups = groups
        self.baseline = groups[0]
        self.baseline_name = names[0]
        self.others: list[tuple[Series, str, tuple[Effect, ...]]] = [
            (of_run[id(group.runs[0])], name, effects(self.baseline, group))
            for group, name in zip(groups[1:], names[1:], strict=True)
        ]

    @property
    def workloads_differ(self) -> bool:
        return len({group.workload for group in self._groups}) > 1

    def sentences(self) -> list[str]:
        """For each other group a sentence: throughput and latency, with their intervals."""
        said = []
        for _, name, found in self.others[:_MOST_SAID]:
            parts = [f"{_lower(e.figure.title)} {e.text()}" for e in found if e.figure.path in _SAID]
            if parts:
                said.append(f"{name} against {self.baseline_name}: {', '.join(parts)}.")
        if self.workloads_differ:
            said.append("They were not asked the same: their workloads differ, so a change is not the policy's alone.")
        more = len(self.others) - _MOST_SAID
        return [*said, f"And {more} more, below."] if more > 0 else said


def changes_section(changes: Changes) -> str:
    """Nothing without a second group."""
    if not any(found for _, _, found in changes.others):
        return ""
    dots = [
        Dot(effect.figure.title, one, effect.change, *_ends(effect))
        for one, _, found in changes.others
        for effect in found
        if not effect.absolute
    ]
    rows = []
    for one, name, found in changes.others:
        for effect in found:
            kind = _KINDS.get(effect.verdict, "plain")
            unit = effect.figure.unit
            cells = [
                f"<td>{dot(one)}{escape(name)}</td>",
                number_cell(quantity(effect.baseline, unit)),
                number_cell(quantity(effect.other, unit)),
                f'<td>{chip(effect.verdict, kind)} <span class="aside">{escape(_rest(effect))}</span></td>',
            ]
            rows.append(row(escape(effect.figure.title), cells))
    head = [("Figure", "first"), ("Run", ""), (f"Baseline: {changes.baseline_name}", "number"), ("Value", "number"),
            ("Change", "")]  # fmt: skip
    lead = (
        f"Against {changes.baseline_name}. Runs that differ only in their seeds are repeats: intervals (95 %, by "
        "Student's t) are over pairs with the same seeds, or else over the means. One run each: means of "
        "latencies over pairs of the same requests, which allows for these requests but not for another run; all else "
        "has no interval."
    )
    chart = dots_chart("changes", f"Change against {changes.baseline_name}", dots, "change", 13.2)
    keys = "".join(f"<li>{dot(one)}{escape(name)}</li>" for one, name, _ in changes.others)
    drawn = f'<ul class="legend">{keys}</ul><div class="card wide">{chart}</div>'
    details = f"<details><summary>All changes in a table</summary>{table(head, rows)}</details>"
    return section("Against the baseline", lead, f'{drawn}<div class="card">{details}</div>')


def _names(groups: Sequence[Group]) -> list[str]:
    names = [f"{group.label}" + (f" (n = {len(group.runs)})" if len(group.runs) > 1 else "") for group in groups]
    return [
        name if names.count(name) == 1 else f"{name}, {group.runs[0].name}"
        for name, group in zip(names, groups, strict=True)
    ]


def _lower(title: str) -> str:
    return title if title.split()[0].isupper() else title[0].lower() + title[1:]


def _ends(effect: Effect) -> tuple[float | None, float | None]:
    if effect.half_width is None:
        return None, None
    return effect.change - effect.half_width, effect.change + effect.half_width


def _rest(effect: Effect) -> str:
    return effect.text().removeprefix(effect.verdict).strip(" :")
