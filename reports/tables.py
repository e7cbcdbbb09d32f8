"""What a report shows as tidy tables: a row for each thing, a column for each of its properties, units in the names.

``docs/report.md`` documents the columns.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.agreement import Agreement
from reports.charts import timeline_of
from reports.chronicle import STATES
from reports.comparison import labels
from reports.effects import effects, groups_of
from reports.figures import FIGURES, figure_at, interval_at, latency_paths, occurs, why_missing
from reports.page.inside import Inside
from reports.run import Run, look_up
from reports.summary import finished, latencies

#: enough digits for whoever computes with them, and the same on every machine
_FLOATS = "%.10g"
_OF_REQUESTS = (
    "tenant", "priority", "outcome", "reason", "prompt_tokens", "max_tokens", "output_tokens", "preemptions",
    "recomputed_tokens", "prefix_hit_tokens",
)  # fmt: skip


def tables_of(
    runs: Sequence[Run], agreements: Sequence[Agreement] = (), insides: Sequence[Inside] = ()
) -> dict[str, pd.DataFrame]:
    """The tables by name; those that would be empty are left out. A run is named in each by its label."""
    names = labels(list(runs))
    named = list(zip(names, runs, strict=True))
    found = {
        "runs": _frame(_run(name, run) for name, run in named),
        "figures": _frame(row for name, run in named for row in _figures(name, run)),
        "requests": pd.concat([_requests(name, run) for name, run in named], ignore_index=True),
        "timeline": _frame(row for name, run in named for row in _timeline(name, run)),
        "memory": _frame(row for inside in insides for row in _memory(inside)),
        "stories": _frame(row for inside in insides for row in _stories(inside)),
        "changes": _frame(_changes(runs)),
        "agreement": _frame(row for agreement in agreements for row in _agreement(agreement)),
    }
    return {name: table for name, table in found.items() if len(table)}


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write each table as CSV and, where pyarrow is installed, as Parquet; ``OSError`` is the caller's.

    The CSV files of the same runs are the same on every machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in tables.items():
        paths.append(folder / f"{name}.csv")
        table.to_csv(paths[-1], index=False, float_format=_FLOATS, lineterminator="\n")
        if has_parquet():
            paths.append(folder / f"{name}.parquet")
            table.to_parquet(paths[-1], engine="pyarrow", index=False)
    return paths


def has_parquet() -> bool:
    """Whether Parquet files can be written here."""
    return importlib.util.find_spec("pyarrow") is not None


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def _run(name: str, run: Run) -> dict[str, Any]:
    manifest = run.manifest
    hardware = manifest.get("hardware")
    device = hardware.get("device") if isinstance(hardware, Mapping) else hardware
    return {
        "run": name, "name": run.name, "world": run.world, "partial": int(run.partial),
        "policy": run.setting("policy"), "layout": run.setting("layout"),
        "workload": str(manifest.get("workload") or ""), "model": str(manifest.get("model") or ""),
        "seed": manifest.get("seed"), "hardware": str(device or ""),
        "git_commit": str(manifest.get("git_commit") or ""),
        "started_at": str(manifest.get("started_at") or ""), "plan_digest": str(run.summary.get("plan_digest") or ""),
        "problems": "; ".join(run.problems),
    }  # fmt: skip


def _figures(name: str, run: Run) -> Iterable[dict[str, Any]]:
    """A row for each figure of the summary, also for those that are missing, with the reason."""
    summary = run.summary
    for path in [*latency_paths(), *(figure.path for figure in FIGURES if occurs(figure, [summary]))]:
        figure = figure_at(path)
        value = look_up(summary, path)
        low, high = interval_at(summary, path) or (None, None)
        n = look_up(summary, f"{path.rpartition('.')[0]}.n")
        yield {
            "run": name, "figure": path, "title": figure.title, "value": None if value is None else float(value),
            "unit": figure.unit, "low": low, "high": high, "n": n,
            "note": why_missing(summary, path) if value is None else "",
        }  # fmt: skip


def _requests(name: str, run: Run) -> pd.DataFrame:
    """A row for each request, with its latencies where it finished."""
    table = run.requests.sort_values("number", kind="stable")
    done = finished(table).index
    rows = pd.DataFrame({"run": name, "id": table["id"], "arrival_ms": table["arrival_ns"] / 1e6})
    for latency, values in latencies(table).in_ms().items():
        rows[latency] = pd.Series(values, index=done, dtype="float64")
    return rows.assign(**{column: table[column] for column in _OF_REQUESTS}).reset_index(drop=True)


def _timeline(name: str, run: Run) -> Iterable[dict[str, Any]]:
    """A row for each piece of the run's time."""
    line = timeline_of(run)
    if line is None:
        return
    for index in range(len(line.rows)):
        yield {
            "run": name, "start_s": float(line.edges_s[index]), "end_s": float(line.edges_s[index + 1]),
            "decode_rows": float(line.rows[index]), "padding_share": float(line.padding[index]),
            "waiting": int(line.waiting[index + 1]), "running": int(line.running[index + 1]),
        }  # fmt: skip


def _memory(inside: Inside) -> Iterable[dict[str, Any]]:
    memory = inside.chronicle.memory
    if memory is None:
        return
    edges_s = (memory.edges_ns - inside.origin_ns) / 1e9
    for index in range(len(memory.held)):
        yield {
            "run": inside.one.label, "start_s": float(edges_s[index]), "end_s": float(edges_s[index + 1]),
            "held_tokens": float(memory.held[index]), "reserved_tokens": float(memory.reserved[index]),
            "free_tokens": float(memory.free[index]), "unusable_tokens": float(memory.unusable[index]),
        }  # fmt: skip


def _stories(inside: Inside) -> Iterable[dict[str, Any]]:
    """A row for each request that the page shows: how long it was at what."""
    ids = inside.one.run.requests.set_index("number")["id"]
    for story in inside.stories:
        spent = {f"{state.replace(' ', '_')}_ms": ns / 1e6 for state, ns in zip(STATES, story.spent_ns, strict=True)}
        yield {"run": inside.one.label, "id": ids.loc[story.number], "decode_steps": story.steps, **spent}


def _changes(runs: Sequence[Run]) -> Iterable[dict[str, Any]]:
    """A row for each figure of each group of runs beside the first one."""
    groups = groups_of([run for run in runs if not run.simulated] or list(runs))
    for group in groups[1:]:
        for effect in effects(groups[0], group):
            yield {
                "baseline": groups[0].label, "run": group.label, "runs": len(group.runs), "figure": effect.figure.path,
                "baseline_value": effect.baseline, "value": effect.other, "unit": effect.figure.unit,
                "change": effect.change, "half_width": effect.half_width, "n": effect.n, "over": effect.over,
                "verdict": effect.verdict,
            }  # fmt: skip


def _agreement(agreement: Agreement) -> Iterable[dict[str, Any]]:
    for found in agreement.predictions:
        yield {
            "run": agreement.measured.label, "figure": found.path, "measured": found.measured,
            "simulated": found.simulated, "error": found.error,
        }  # fmt: skip
    for check in agreement.counters:
        yield {
            "run": agreement.measured.label, "figure": check.path, "measured": check.measured,
            "simulated": check.simulated, "error": 0.0 if check.equal else None,
        }  # fmt: skip
