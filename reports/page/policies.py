"""Runs beside each other: a row for each of several, or all figures of two."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.charts import Series
from reports.comparison import Compared, Comparison, labels
from reports.figures import Figure, figure_at, interval_text, quantity, why_missing
from reports.markup import chip, number_cell, row, section, table
from reports.page.cells import bar, signed
from reports.page.series import best_of, dot, judged, name_in_table, tail_of
from reports.run import look_up

#: figures that a bar shows better than a number alone
_BARRED = ("padding_waste.prefill", "padding_waste.decode")
#: figures of parts that only some runs have, for the table of policies
_RARE = ("steps.mixed", "swapped.tokens", "overlap.wasted_rows", "kv.prefix_hit")


def policies_section(series: Sequence[Series]) -> str:
    tails = {key: tail_of(series, key) for key in ("ttft_ms", "e2e_ms")}
    paths = (
        "output_tokens_per_s",
        "ttft_ms.p50",
        f"ttft_ms.{tails['ttft_ms']}",
        "tpot_ms.p50",
        "e2e_ms.p50",
        f"e2e_ms.{tails['e2e_ms']}",
        "mean_decode_batch",
        *_BARRED,
    )
    shown = [figure_at(p) for p in paths if any(look_up(one.run.summary, p) is not None for one in series)]
    now_and_then = ("preemptions", *_RARE)
    shown += [figure_at(p) for p in now_and_then if any(look_up(one.run.summary, p) for one in series)]
    best = {figure.path: best_of(judged(series), figure) for figure in shown}

    def cell(one: Series, figure: Figure) -> str:
        value = look_up(one.run.summary, figure.path)
        mark = "best" if best[figure.path] is one else ""
        shown_bar = bar(value, one) if figure.path in _BARRED and value is not None else ""
        why = escape(why_missing(one.run.summary, figure.path)) if value is None else ""
        return f'<td class="number {mark}" title="{why}">{shown_bar}{escape(quantity(value, figure.unit))}</td>'

    rows = [
        row(
            dot(one) + escape(name_in_table(one, series)),
            [cell(one, figure) for figure in shown],
            "twin" if one.dashed else "",
        )
        for one in series
    ]
    head = [("Run", "first"), *((figure.title, "number") for figure in shown)]
    workloads = {str(one.run.manifest.get("workload")) for one in series}
    lead = (
        ("One workload, one scheduler." if len(workloads) == 1 else "Workloads differ.")
        + " A star marks the best"
        + (" of the real runs; below each is its simulated twin." if any(one.dashed for one in series) else ".")
    )
    return section("Policies compared", lead, table(head, rows))


def two_runs_section(comparison: Comparison) -> str:
    a, b = labels([comparison.a, comparison.b])

    def cells(one: Compared) -> list[str]:
        def value(amount: float | None, interval: tuple[float, float] | None) -> str:
            return number_cell(quantity(amount, one.figure.unit), interval_text(interval, one.figure.unit))

        difference = "–" if one.difference is None else signed(one.difference, one.figure)
        ratio = "–" if one.ratio is None else f"× {one.ratio:.3f}"
        kind = {"better": "good", "worse": "bad"}.get(one.verdict, "plain")
        apart = {True: "apart", False: "overlap", None: ""}[one.distinct]
        mark = chip(one.verdict, kind if one.distinct is not False else "plain") if one.verdict else ""
        return [
            value(one.a, one.a_interval),
            value(one.b, one.b_interval),
            number_cell(difference),
            number_cell(ratio),
            f"<td>{mark}</td>",
            f'<td class="formula">{apart}</td>',
            f'<td class="formula">{escape(one.figure.formula if one.figure.path in first else "")}</td>',
        ]

    # a latency's formula stands beside the first of its statistics
    first = {row.figure.path for row in comparison.rows if row.figure.unit != "ms"}
    first |= set({row.figure.formula: row.figure.path for row in reversed(comparison.rows)}.values())
    rows = [row(escape(one.figure.title), cells(one)) for one in comparison.rows]
    head = [("Figure", "first"), (f"A: {a}", "number"), (f"B: {b}", "number"), ("B − A", "number")]
    head += [("B / A", "number"), ("B is", ""), ("Intervals", ""), ("Definition", "")]
    lead = (
        "A is the first run, B the second. Intervals (95 %) are those of the requests within each run: where they "
        "overlap, the difference may be chance, and where they are apart, another run may still differ."
    )
    return section("Run A and run B", lead, table(head, rows))
