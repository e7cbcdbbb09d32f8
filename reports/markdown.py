"""``summary.md``: a report in GitHub's Markdown, short enough for a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.agreement import Agreement, summary_line
from reports.comparison import labels
from reports.effects import Effect, effects, groups_of
from reports.figures import figure_at, interval_at, interval_text, quantity
from reports.run import Run, look_up
from reports.summary import verdict

_PATHS = ("output_tokens_per_s", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "e2e_ms.p50", "e2e_ms.p99",
          "padding_waste.prefill", "padding_waste.decode", "preemptions")  # fmt: skip
_MARKS = {"better": "🟢", "worse": "🔴"}


def markdown_summary(runs: Sequence[Run], agreements: Sequence[Agreement] = (), command: str | None = None) -> str:
    """Verdicts, the key figures, what changed against the first runs, and how to reproduce it."""
    names = labels(list(runs))
    lines = ["## Lockstep report", ""]
    lines += [f"- **{name}**: {verdict(run.summary)}" for name, run in zip(names, runs, strict=True)]
    lines += [f"- **{a.measured.label}**, simulated: {summary_line(a)}." for a in agreements]
    lines += [f"- **{name}** is incomplete: {problem}." for name, run in zip(names, runs, strict=True)
              for problem in run.problems]  # fmt: skip
    figures = [figure_at(path) for path in _PATHS]
    figures = [one for one in figures if any(look_up(run.summary, one.path) is not None for run in runs)]
    lines += ["", *_table(["run", *(figure.title for figure in figures), "n"], [
        [name, *(_value(run, figure.path) for figure in figures), f"{look_up(run.summary, 'requests.finished'):,}"]
        for name, run in zip(names, runs, strict=True)
    ])]  # fmt: skip
    lines += _changes(runs)
    command = command or str(runs[0].manifest.get("command") or "")
    if command:
        lines += ["", "```sh", command, "```"]
    return "\n".join(lines) + "\n"


def _value(run: Run, path: str) -> str:
    unit = figure_at(path).unit
    interval = interval_text(interval_at(run.summary, path), unit)
    return quantity(look_up(run.summary, path), unit) + (f"<br><sub>{interval}</sub>" if interval else "")


def _changes(runs: Sequence[Run]) -> list[str]:
    """The changes against the first group of runs, folded: a table each."""
    groups = groups_of([run for run in runs if not run.simulated] or list(runs))
    lines: list[str] = []
    for group in groups[1:]:
        found = effects(groups[0], group)
        if found:
            lines += ["", f"<details><summary>{group.label} against {groups[0].label}</summary>", ""]
            lines += _table(["figure", "baseline", "value", "change"], [_change(effect) for effect in found])
            lines += ["", "</details>"]
    return lines


def _change(effect: Effect) -> list[str]:
    unit = effect.figure.unit
    mark = _MARKS.get(effect.verdict, "")
    return [effect.figure.title, quantity(effect.baseline, unit), quantity(effect.other, unit),
            f"{mark} {effect.text()}".strip()]  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
