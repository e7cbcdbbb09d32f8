"""How a page came about: settings, command, versions, hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reports.charts import Series
from reports.markup import row, section, table
from reports.page.series import dot, has_twin
from reports.settings import readable


def settings_section(series: Sequence[Series]) -> str:
    """The scheduler's settings as they were in force: a list for one run, a table for several."""
    lists = [(one, readable(one.run.summary.get("scheduler"))) for one in series if not one.dashed]
    lists = [(one, lines) for one, lines in lists if lines]
    if not lists:
        return ""
    lead = "What was asked for, and what the policy decided where nothing was."
    if len(series) == 1:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lists[0][1])
        return section("Scheduler", lead, f'<div class="card"><dl class="facts">{rows}</dl></div>')
    of_run = [dict(lines) for _, lines in lists]
    names = dict.fromkeys(name for _, lines in lists for name, _ in lines)
    table_rows = []
    for name in names:
        values = [settings.get(name, "–") for settings in of_run]
        if len(set(values)) == 1:
            table_rows.append(row(escape(name), [f'<td colspan="{len(lists)}">{escape(values[0])}</td>']))
        else:
            table_rows.append(row(escape(name), [f"<td>{escape(value)}</td>" for value in values]))
    names_of_runs = [one.run.label if has_twin(one, series) else one.label for one, _ in lists]
    head = [("Setting", "first"), *((label, "") for label in names_of_runs)]
    return section("Scheduler", f"{lead} A value that stands alone is that of all runs.", table(head, table_rows))


def reproduce_section(series: Sequence[Series], command: str | None) -> str:
    manifests = [one.run.manifest for one in series]
    command = command or str(manifests[0].get("command") or "")
    parts = []
    if command:
        parts.append(f"<pre>{escape(command)}</pre>")
    shared = _facts(manifests[0], ("git_commit", "seed", "hardware", "versions", "sha256"))
    if shared:
        parts.append(f'<div class="card" style="margin-top:14px">{_fact_list(shared)}</div>')
    for one in series:
        facts = [("folder", str(one.run.folder or "")), ("plan digest", str(one.run.summary.get("plan_digest")))]
        facts += _facts(one.run.manifest, tuple(key for key in one.run.manifest if key not in ("name", "label")))
        summary = f"<summary>{dot(one)}Everything in the manifest of {escape(one.label)}</summary>"
        parts.append(f'<div class="card"><details>{summary}{_fact_list(facts)}</details></div>')
    lead = "The same command on the same commit gives the same plans; simulated times to the nanosecond."
    return section("How to reproduce", lead, "\n".join(parts))


def _facts(manifest: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values to show, nested ones with their path."""
    facts: list[tuple[str, str]] = []
    for key in keys:
        value = manifest.get(key)
        if isinstance(value, Mapping):
            inner = _facts(value, tuple(value))
            facts += [(f"{key.replace('_', ' ')}: {name}", text) for name, text in inner]
        elif value not in (None, "", [], ()):
            facts.append((key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return facts


def _fact_list(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts if value)
    return f'<dl class="facts">{rows}</dl>'


def footer() -> str:
    text = (
        "Latencies are those of finished requests. Intervals take requests as independent; requests that shared a "
        "queue are not quite, so they are the least that must be allowed for. A load is called more than the hardware "
        "can carry when waiting + running requests grow over the second half of the arrivals by more than a random "
        "walk without drift would (95 %), and by at least 1 % of the arrivals."
    )
    return f"<footer>{escape(text)}</footer>"
