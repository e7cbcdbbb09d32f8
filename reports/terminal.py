"""What a run says on the terminal when it is over: the verdict and a table, plain where nobody can see colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.agreement import Agreement, summary_line
from reports.claims import Answer
from reports.comparison import Compared, Comparison, labels
from reports.figures import figure_at, interval_text, occurs, quantity, why_missing
from reports.gate import GateResult
from reports.page.cluster import cluster_line
from reports.reproduction import Findings
from reports.run import Run, look_up
from reports.settings import asked
from reports.summary import verdict
from simulator.costs import CostModel
from simulator.profiles import title
from simulator.projection import ProjectedCosts
from simulator.recorded import RecordedCosts
from simulator.step_cost import StepCost

#: width of what goes into a file or a pipe
_PLAIN_WIDTH = 120

_RUN_FIGURES = (
    "output_tokens_per_s",
    "requests_per_s",
    "makespan_s",
    "mean_decode_batch",
    "steps.mixed",
    "padding_waste.prefill",
    "padding_waste.decode",
    "padding_waste.time",
    "preemptions",
    "swapped.tokens",
    "overlap.wasted_rows",
    "kv.utilisation",
    "kv.time_weighted.utilisation",
    "kv.prefix_hit",
    "goodput_per_s",
    "slo_attainment.share",
    "starvation.longest_gap_s",
    "bounds.e2e_share",
    "bounds.throughput_share",
    "scheduler_us_per_step",
)
_RUN_LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "queue_ms")
_LATENCY_COLUMNS = ("mean", "p50", "p90", "p99", "max")
#: with short headers, so that a row fits a line
_POLICY_FIGURES = {
    "output_tokens_per_s": "tok/s",
    "ttft_ms.p50": "TTFT P50",
    "tpot_ms.p50": "TPOT P50",
    "e2e_ms.p50": "E2E P50",
    "e2e_ms.max": "E2E max",
    "mean_decode_batch": "batch",
    "padding_waste.prefill": "prefill waste",
    "padding_waste.decode": "decode waste",
}


def terminal(quiet: bool = False, console: Console | None = None) -> Console:
    """Where the tables go: ``console`` or standard output; nowhere if ``quiet``."""
    if quiet:
        return Console(quiet=True)
    if console is not None:
        return console
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def print_run(run: Run, *, quiet: bool = False, console: Console | None = None) -> None:
    """The key figures of a run, then its verdict and where its folder is."""
    out = terminal(quiet, console)
    latencies = plain_table(out, f"{run.label} ({run.world})", ["Latency", *_LATENCY_COLUMNS, "n"])
    for key in _RUN_LATENCIES:
        paths = [f"{key}.{statistic}" for statistic in _LATENCY_COLUMNS]
        cells = [_value(run, path) for path in paths]
        latencies.add_row(
            figure_at(paths[0]).title.removesuffix(" mean"), *cells, f"{look_up(run.summary, key)['n']:,}"
        )
    out.print(latencies)
    figures = plain_table(out, None, ["Figure", "value", "95 % interval"])
    for path in _RUN_FIGURES:
        figure = figure_at(path)
        if look_up(run.summary, path) is not None and occurs(figure, [run.summary]):
            interval = look_up(run.summary, "slo_attainment.ci") if path == "slo_attainment.share" else None
            text = interval_text(tuple(interval), figure.unit) if interval else ""
            figures.add_row(figure.title, _value(run, path), text)
    out.print(figures)
    _print_projections(out, [run])
    if run.summary.get("cluster") is not None:
        out.print(f"Replicas: {cluster_line(run.summary['cluster'])}")
    settings = asked(run.summary.get("scheduler"))
    if settings:
        out.print(f"Scheduler: {', '.join(settings)}")
    out.print(_verdict(run))
    if run.folder is not None:
        out.print(f"Run folder: {run.folder}", soft_wrap=True)


def print_beyond(runs: Sequence[Run], *, quiet: bool = False, console: Console | None = None) -> None:
    """Where simulations guessed at costs: of one run all of it, of several a line each.

    On standard error if ``quiet``: it is a warning.
    """
    out = Console(stderr=True, highlight=False, soft_wrap=True) if quiet else terminal(False, console)
    warned = [(run, run.summary.get("beyond_recorded") or ()) for run in runs if run.simulated]
    for run, warnings in warned:
        lines = list(warnings)
        if lines and len(warned) > 1:
            more = f", and {len(lines) - 1} more (see the report)" if len(lines) > 1 else ""
            lines = [f"{run.label}: {lines[0]}{more}"]
        for line in lines:
            out.print(f"Beyond the recording: {line}", style="yellow", soft_wrap=True)


def print_costs(costs: CostModel, *, quiet: bool = False, console: Console | None = None) -> None:
    """What costs are of, and what they are off by: recorded ones on steps that were left out of the fits, projected
    ones on those that they were calibrated on."""
    if isinstance(costs, ProjectedCosts):
        errors = ", ".join(f"{layout} {kind} {100 * error:.1f} %" for (layout, kind), error in costs.errors.items())
        text = f"Projection {costs.name}: {costs.projection}. Mean error on the recording itself: {errors}"
        terminal(quiet, console).print(text, soft_wrap=True)
        return
    if not isinstance(costs, RecordedCosts):
        return
    errors = ", ".join(
        f"{layout} {kind} {100 * error:.1f} % ({_fit_text(costs.device[layout, kind])})"
        for (layout, kind), error in costs.errors.items()
    )
    of = f"{title(costs.about)}; " if "hardware" in costs.about else ""
    terminal(quiet, console).print(f"Costs {costs.name}: {of}mean error on steps left out: {errors}", soft_wrap=True)


def print_runs(runs: Sequence[Run], *, quiet: bool = False, console: Console | None = None) -> None:
    """Several runs beside each other, a row each, then the verdicts that differ."""
    out = terminal(quiet, console)
    table = plain_table(out, "Policies compared", ["Run", *_POLICY_FIGURES.values()])
    for label, run in zip(labels(list(runs)), runs, strict=True):
        cells = [_value(run, path).removesuffix(" tok/s") for path in _POLICY_FIGURES]
        table.add_row(label.replace("(simulated)", "(sim)"), *cells)
    out.print(table)
    _print_projections(out, runs)
    for text in dict.fromkeys(str(_verdict(run)) for run in runs):
        out.print(text)


def _print_projections(out: Console, runs: Sequence[Run]) -> None:
    """What runs are projections of, each once."""
    for text in dict.fromkeys(run.projection for run in runs if run.projection):
        out.print(f"Projection: {text}", style="yellow", soft_wrap=True)


def print_agreements(agreements: Sequence[Agreement], *, quiet: bool = False, console: Console | None = None) -> None:
    """How far each simulation agrees with its real run, a line each."""
    out = terminal(quiet, console)
    for agreement in agreements:
        good = agreement.same_plans and agreement.counters_equal and agreement.replayed is not False
        mark = Text("agrees ", style="bold green") if good else Text("differs", style="bold red")
        out.print(Text.assemble(mark, f" {agreement.measured.label}: {summary_line(agreement)}"))


def print_comparison(comparison: Comparison, *, quiet: bool = False, console: Console | None = None) -> None:
    """Every figure of run A and run B, with difference, ratio, and whether the intervals are apart."""
    out = terminal(quiet, console)
    a, b = labels([comparison.a, comparison.b])
    table = plain_table(out, None, ["Figure", f"A: {a}", f"B: {b}", "B / A", "B is", "95 % intervals"])
    for row in comparison.rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
        apart = {True: "apart", False: "overlap", None: ""}[row.distinct]
        cells = (quantity(value, row.figure.unit) for value in (row.a, row.b))
        table.add_row(row.figure.title, *cells, ratio, _judgement(row), apart)
    out.print(table)
    _print_projections(out, (comparison.a, comparison.b))
    for name, run in (("A", comparison.a), ("B", comparison.b)):
        out.print(Text.assemble((f"{name}: ", "bold"), _verdict(run)))


def print_gate(
    result: GateResult,
    baseline: Path,
    *,
    took_s: float,
    update: bool = False,
    quiet: bool = False,
    console: Console | None = None,
) -> None:
    """What the padding-waste gate found: every difference, why a comparison could not be made, broken ceilings.

    ``update``: what it found is the baseline from now on, unless a ceiling is broken.
    """
    out = terminal(quiet, console)
    if result.differences:
        title = "What has changed" if update else "Counters that are not the baseline's"
        table = plain_table(out, title, ["Case", "counter", "before", "now", "change", "%"])
        for row in result.differences:
            change = row.now - row.baseline
            share = f"{100 * change / row.baseline:+.2f}" if row.baseline else "–"
            table.add_row(row.case, row.counter, f"{row.baseline:,}", f"{row.now:,}", f"{change:+,}", share)
        out.print(table)
    for style, kind, lines in (
        ("yellow", "policy", result.changed),
        ("yellow", "until now" if update else "stale", result.stale),
        ("bold red", "ceiling broken", result.broken),
    ):
        for line in lines:
            out.print(Text(f"{kind}: {line}", style=style), soft_wrap=True)
    out.print(_gate_verdict(result, baseline, update, took_s), soft_wrap=True)


def _gate_verdict(result: GateResult, baseline: Path, update: bool, took_s: float) -> Text:
    cases, took = _counted(len(result.cases), "case"), f"({took_s:.1f} s)"
    found = {"counter": len(result.differences), "broken ceiling": len(result.broken), "stale": len(result.stale)}
    said = ", ".join(_counted(count, what) for what, count in found.items() if count)
    if update and result.broken:
        return Text(f"{baseline} is NOT updated: no baseline can allow what breaks a ceiling {took}", style="bold red")
    if update:
        changed = _counted(len(result.differences), "counter")
        return Text(f"{cases} recorded in {baseline}, {changed} changed {took}", style="bold green")
    if result.passed:
        kept = f", {_counted(len(result.ceilings), 'ceiling')} kept" if result.ceilings else ""
        return Text(f"padding-waste gate passed: {cases} equal to {baseline}{kept} {took}", style="bold green")
    advice = "no baseline allows that" if result.broken else "if it is meant, add --update-baseline and commit the file"
    if result.failed:
        return Text(f"padding-waste gate FAILED ({said}); {advice} {took}", style="bold red")
    return Text(f"padding-waste gate CANNOT COMPARE ({said}); {advice} {took}", style="bold yellow")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 or what == 'stale' else 's'}"


def print_reproduction(findings: Sequence[Findings], *, quiet: bool = False, console: Console | None = None) -> None:
    """Every experiment: its setup, its rows, the explanation of those that differ, and what a reader must know."""
    out = terminal(quiet, console)
    for found in findings:
        out.print(Text.assemble((found.title, "bold"), f" ({found.source})"))
        out.print(found.setup)
        if found.not_run:
            out.print(Text(f"not run: {found.not_run}\n", style="yellow"))
            continue
        table = plain_table(out, None, ["Quantity", "published", "ours", "difference", "allowed", "verdict"])
        for row in found.rows:
            style = "green" if row.passed else "yellow" if row.explanation else "bold red"
            table.add_row(row.quantity, row.published_text(), row.ours_text(), row.difference_text(), row.allowed,
                          Text("within" if row.passed else "differs", style=style))  # fmt: skip
        out.print(table)
        if found.extra:
            more = plain_table(out, None, found.extra[0])
            for cells in found.extra[1:]:
                more.add_row(*cells)
            out.print(more)
        for explanation, quantities in found.explanations().items():
            out.print(f"{'; '.join(quantities)}: {explanation or 'not explained'}.")
        for note in found.notes:
            out.print(note)
        out.print(f"{found.verdict()}, {found.seconds:.1f} s\n")


def print_claims(answers: Sequence[Answer], *, quiet: bool = False, console: Console | None = None) -> None:
    """Every claim with its verdict."""
    out = terminal(quiet, console)
    styles = {
        "holds": "green",
        "holds in part": "yellow",
        "does not hold": "bold red",
        "not decided": "yellow",
        "not measured": "dim",
    }
    for found in answers:
        claim = found.claim
        out.print(Text.assemble((f"{found.verdict:13}", styles[found.verdict]), f"  {claim.title}: {claim.claimed}"))
        if found.condition():
            out.print(Text(f"{'':15}{found.condition()}", style="dim"))


def plain_table(out: Console, title: str | None, columns: Sequence[str]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    shape = box.SIMPLE_HEAD if out.is_terminal else box.ASCII2
    table = Table(title=title, title_justify="left", title_style="bold", box=shape, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def _value(run: Run, path: str) -> str:
    value = look_up(run.summary, path)
    if value is not None:
        return quantity(value, figure_at(path).unit)
    return "n too small" if why_missing(run.summary, path).startswith("n too small") else "n/a"


def _fit_text(cost: StepCost) -> str:
    """A fit in a few words: its form, what it is off by in sum, and what was left out of it."""
    quality = cost.quality
    bias = "" if quality.bias is None else f", bias {100 * quality.bias:+.1f} %"
    cut = f", {quality.interruptions} steps interrupted" if quality.interruptions else ""
    return f"{cost.form}{bias}{cut}"


def _judgement(row: Compared) -> Text:
    """Coloured only where the intervals do not speak against it."""
    style = {"better": "green", "worse": "red"}.get(row.verdict, "") if row.distinct is not False else ""
    return Text(row.verdict, style=style)


def _verdict(run: Run) -> Text:
    saturated = look_up(run.summary, "load.saturated")
    return Text(verdict(run.summary), style="bold red" if saturated else "bold" if run.partial else "")
