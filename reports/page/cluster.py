"""What a report says of runs on several replicas: a table of the replicas, and how many there were over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reports.charts import curves_chart
from reports.markup import number_cell, row, section, table
from reports.run import Run

_HEAD = (
    ("", ""), ("Role", ""), ("Costs", ""), ("Requests", "number"), ("Finished", "number"), ("Lost", "number"),
    ("Starts", "number"), ("Held, s", "number"), ("Utilisation", "number"),
)  # fmt: skip
_LEAD = (
    "Requests: those that were sent to a replica; lost: of them those under which it died. Held: from the decision to "
    "start it until it was stopped or lost. Utilisation: the time in steps, of that held."
)


def cluster_section(runs: Sequence[tuple[str, Run]]) -> str:
    """A section on the runs (label, run) that ran on several replicas; nothing where none did."""
    parts = []
    for index, (label, run) in enumerate(runs):
        cluster = run.summary.get("cluster")
        if cluster is None:
            continue
        heading = f"<h3>{escape(label)}</h3>" if len(runs) > 1 else ""
        parts.append(f'{heading}<p class="lead">{escape(cluster_line(cluster))}</p>{_replicas(cluster)}')
        chart = _sizes(cluster, f"replicas-{index}")
        if chart:
            card = f'<div class="card"><h3>Replicas over time</h3>{chart}</div>'
            parts.append(f'<div class="charts" style="grid-template-columns:1fr">{card}</div>')
    return section("Replicas", _LEAD, "\n".join(parts)) if parts else ""


def cluster_line(cluster: Mapping[str, Any]) -> str:
    """A cluster in a line: its router, what it held, what was lost, what went over links."""
    parts = [
        f"{cluster['router']}, at most {cluster['peak_replicas']} replicas at a time",
        f"{cluster['replica_seconds']:,.1f} replica seconds ({cluster['gpu_seconds']:,.1f} GPU seconds)",
    ]
    if cluster["cost"] is not None:
        parts.append(f"cost {cluster['cost']:,.4g}")
    if cluster["retries"]:
        parts.append(
            f"{cluster['retries']:,} retries of {cluster['retried_requests']:,} requests, "
            f"{cluster['lost_tokens']:,} KV tokens lost"
        )
    transfers = cluster["transfers"]
    if transfers is not None and transfers["count"]:
        parts.append(
            f"{transfers['count']:,} KV transfers of {transfers['bytes'] / 1e9:,.2f} GB in all, "
            f"{transfers['mean_ms']:,.2f} ms each after {transfers['mean_wait_ms']:,.2f} ms of waiting"
        )
    return "; ".join(parts) + "."


def _replicas(cluster: Mapping[str, Any]) -> str:
    rows = []
    for replica in cluster["replicas"]:
        share = replica["utilisation"]
        cells = [f"<td>{escape(replica['role'])}</td>", f"<td>{escape(replica['costs'])}</td>"]
        cells += [number_cell(f"{replica[name]:,}") for name in ("requests", "finished", "lost", "starts")]
        cells.append(number_cell(f"{replica['held_s']:,.1f}"))
        cells.append(number_cell("-" if share is None else f"{100 * share:.1f} %"))
        rows.append(row(f"Replica {replica['replica']}", cells))
    return table(_HEAD, rows)


def _sizes(cluster: Mapping[str, Any], name: str) -> str:
    """Replicas that take requests, and with them those that start; nothing where that never changed."""
    sizes = [*cluster["sizes"], [cluster["end_s"], *cluster["sizes"][-1][1:]]]
    if len(sizes) < 3:
        return ""
    times = [time_s for time_s, _, _ in sizes]
    curves = [("running", times, [up for _, up, _ in sizes], True)]
    if any(coming for _, _, coming in sizes):
        curves.insert(0, ("with those that start", times, [up + coming for _, up, coming in sizes], True))
    return curves_chart(name, "Replicas over time", curves, "seconds", "replicas", counts=True)
