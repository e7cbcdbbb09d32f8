"""What a page says first: its title, and a verdict in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reports.agreement import Agreement, summary_line
from reports.charts import Series
from reports.figures import figure_at
from reports.page.cells import percent
from reports.run import look_up
from reports.summary import verdict


def header(title: str, series: Sequence[Series]) -> str:
    first = series[0].run.manifest
    worlds = {"projected" if one.run.projection else one.run.world for one in series}
    world = f"{' and '.join(sorted(worlds))} time"
    facts = [str(first.get(name) or "") for name in ("workload", "model")]
    facts += [_hardware_name(first.get("hardware")), world, str(first.get("started_at") or "")]
    context = " · ".join(escape(fact) for fact in facts if fact)
    return (
        f'<header><span class="mark">Lockstep</span><h1>{escape(title)}</h1>\n<p class="context">{context}</p></header>'
    )


def _hardware_name(hardware: Any) -> str:
    if isinstance(hardware, Mapping):
        return str(hardware.get("device") or hardware.get("gpu") or hardware.get("cpu") or "")
    return str(hardware or "")


def paragraph(word: str, text: str) -> str:
    """A sentence behind a word in bold; no word, no space for it."""
    said = f'<span class="word">{escape(word)}</span> ' if word else ""
    return f"<p>{said}{escape(text)}</p>"


def verdicts(series: Sequence[Series], agreements: Sequence[Agreement], changes: Sequence[str] = ()) -> str:
    """The run's own verdict; of several runs: agreement first, then every run that is not simply fine.

    ``changes``: sentences on how the runs compare. What a run's folder lacks is said last.
    """
    boxes: dict[str, list[str]] = {"said": [], "bad": [], "note": [], "good": [], "plain": []}
    boxes["said"] += [paragraph("" if place else "Compared.", text) for place, text in enumerate(changes)]
    if agreements:
        kind = "good" if all(a.same_plans and a.counters_equal for a in agreements) else "note"
        boxes[kind].append(paragraph("Simulation.", _agreement_verdict(agreements)))
    by_text: dict[str, list[str]] = {}
    for one in series:
        by_text.setdefault(verdict(one.run.summary), []).append(one.label)
    for text, names in by_text.items():
        summary = next(one.run.summary for one in series if one.label == names[0])
        kind, word = _verdict_kind(summary)
        who = "" if len(names) == len(series) else f"{', '.join(names)}: "
        boxes[kind].append(paragraph(word, who + text))
    boxes["note"] += _projections(series)
    guesses: dict[str, list[str]] = {}
    for one in series:
        for text in one.run.summary.get("beyond_recorded") or ():
            guesses.setdefault(text, []).append(one.label)
    boxes["note"] += _beyond_recorded(guesses, len(series))
    boxes["note"] += _problems(series)
    parts = [f'<div class="verdict {kind}">{"".join(texts)}</div>' for kind, texts in boxes.items() if texts]
    return "\n".join(parts)


def _problems(series: Sequence[Series]) -> list[str]:
    """What is not there, or cannot be read, of the runs' folders."""
    return [
        paragraph("Incomplete.", f"{one.label + ': ' if len(series) > 1 else ''}{text}.")
        for one in series
        for text in one.run.problems
    ]


def _projections(series: Sequence[Series]) -> list[str]:
    """What runs are projections of, each with the runs that it is true of."""
    found: dict[str, list[str]] = {}
    for one in series:
        if one.run.projection:
            found.setdefault(one.run.projection, []).append(one.label)
    return [
        paragraph("Projection.", f"{'' if len(names) == len(series) else ', '.join(names) + ': '}{text}.")
        for text, names in found.items()
    ]


def _beyond_recorded(guesses: Mapping[str, Sequence[str]], runs: int) -> list[str]:
    """Where costs were not recorded, each with the runs that it is true of; folded where there is much of it."""
    texts = [f"{'' if len(names) == runs else ', '.join(names) + ': '}{text}." for text, names in guesses.items()]
    if len(texts) <= 2:
        return [paragraph("Beyond the recording.", text) for text in texts]
    names = {name for some in guesses.values() for name in some}
    word = '<span class="word">Beyond the recording.</span>'
    what = f"Times are extrapolated for some steps of {len(names)} {'run' if len(names) == 1 else 'runs'}."
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return [f"<details><summary>{word} {what}</summary><ul>{items}</ul></details>"]


def _verdict_kind(summary: Mapping[str, Any]) -> tuple[str, str]:
    if summary["partial"]:
        return "note", "Partial run."
    if not summary["requests"]["finished"]:
        return "bad", "Nothing served."
    saturated = look_up(summary, "load.saturated")
    if saturated:
        return "bad", "Saturated."
    return ("plain", "Load.") if saturated is None else ("good", "Stable.")


def _agreement_verdict(agreements: Sequence[Agreement]) -> str:
    if len(agreements) == 1:
        return f"Against the real run: {summary_line(agreements[0])}."
    plans = sum(agreement.same_plans for agreement in agreements)
    counters = sum(agreement.counters_equal for agreement in agreements)
    text = (
        f"The simulator made the same plans as the engine in {plans} of {len(agreements)} runs, "
        f"with every counter equal in {counters}."
    )
    worst = [(a, a.worst) for a in agreements if a.worst is not None and a.worst.error is not None]
    if not worst:
        return text
    agreement, prediction = max(worst, key=lambda pair: abs(pair[1].error or 0.0) if pair[1] else 0.0)
    means = [a.mean_error for a in agreements if a.mean_error is not None]
    if prediction is None or prediction.error is None:
        return text
    return (
        f"{text} Predicted times and rates are off by {100 * sum(means) / len(means):.1f} % on average, the furthest "
        f"by {percent(prediction.error)} ({figure_at(prediction.path).title} of {agreement.measured.label})."
    )
