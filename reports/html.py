"""``report.html``: one self-contained page for one run or for many, for a browser without network.

The sections are in :mod:`reports.page`; without scripts a page still has all of its text, tables and still charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.agreement import Agreement
from reports.comparison import Comparison
from reports.markup import page
from reports.page.agreement import agreement_section
from reports.page.changes import Changes, changes_section
from reports.page.cluster import cluster_section
from reports.page.fairness import fairness_section
from reports.page.figures import figures_section
from reports.page.inside import insides_of
from reports.page.interactive import vega_runtime
from reports.page.lanes import clusters_section, lanes_section
from reports.page.latency import latencies_section, latency_section
from reports.page.memory import memory_section
from reports.page.opening import header, verdicts
from reports.page.origin import footer, reproduce_section, settings_section
from reports.page.over_time import over_time_section
from reports.page.policies import policies_section, two_runs_section
from reports.page.series import series_of
from reports.page.strips import strips_section
from reports.page.tiles import tiles
from reports.page.trade_off import trade_off_section
from reports.run import Run


def write_report(
    path: str | Path,
    runs: Sequence[Run],
    agreements: Sequence[Agreement] = (),
    title: str | None = None,
    command: str | None = None,
    comparison: Comparison | None = None,
) -> str:
    """Write the report of one or more runs and return it; ``OSError`` is the caller's.

    ``agreements`` pair real runs with their simulations, which are added to ``runs`` where they are not among them.
    ``command`` is what made all of it (default: the first run's); ``comparison`` adds the table of run A and run B.
    """
    text = render_report(runs, agreements, title, command, comparison)
    Path(path).write_text(text, encoding="utf-8")
    return text


def render_report(
    runs: Sequence[Run],
    agreements: Sequence[Agreement] = (),
    title: str | None = None,
    command: str | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The page of :func:`write_report` as text, the same for the same arguments; ``ValueError`` without a run."""
    series = series_of(runs, agreements)
    if not series:
        raise ValueError("a report needs at least one run")
    title = title or (series[0].label if len(series) == 1 else f"{len(series)} runs compared")
    insides = insides_of(series)
    changes = Changes(series) if len(series) > 1 else None
    sections = [
        header(title, series),
        verdicts(series, agreements, [] if changes is None else changes.sentences()),
        tiles(series, agreements),
        policies_section(series) if len(series) > 1 and comparison is None else "",
        two_runs_section(comparison) if comparison is not None else "",
        changes_section(changes) if changes is not None else "",
        latency_section(series),
        trade_off_section(series),
        over_time_section(series),
        strips_section(series),
        lanes_section(insides),
        clusters_section(insides),
        memory_section(insides),
        fairness_section(series),
        cluster_section([(one.label, one.run) for one in series]),
        agreement_section(agreements, series),
        latencies_section(series),
        figures_section(series),
        settings_section(series),
        reproduce_section(series, command),
        footer(),
    ]
    return page(title, [*sections, vega_runtime()], ["lanes", "charts"])
