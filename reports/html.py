"""``report.html``: one self-contained page for one run or for many, for a browser without network or script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from reports.agreement import Agreement, CounterCheck, summary_line
from reports.charts import PANELS, SERIES_COLOURS, Series, cdf_chart, timeline_chart, timeline_of
from reports.cluster_page import cluster_section
from reports.comparison import Compared, Comparison, labels
from reports.figures import (
    FIGURES,
    LATENCIES,
    STATISTICS,
    Figure,
    change_text,
    figure_at,
    interval_at,
    interval_text,
    number,
    occurs,
    quantity,
    statistic_title,
    why_missing,
)
from reports.markup import chip as _chip
from reports.markup import number_cell as _number_cell
from reports.markup import page
from reports.markup import row as _row
from reports.markup import section as _section
from reports.markup import table as _table
from reports.run import Run, look_up
from reports.settings import readable
from reports.summary import verdict

#: errors of a prediction up to which it is called good, and up to which it is not called bad
GOOD_ERROR, FAIR_ERROR = 0.05, 0.15
#: latencies that get a chart, in this order
_CHARTED = ("ttft_ms", "e2e_ms", "tpot_ms")
#: figures that a bar shows better than a number alone
_BARRED = ("padding_waste.prefill", "padding_waste.decode")
#: figures of parts that only some runs have, for the table of policies
_RARE = ("steps.mixed", "swapped.tokens", "overlap.wasted_rows", "kv.prefix_hit")


def write_report(
    path: str | Path,
    runs: Sequence[Run],
    agreements: Sequence[Agreement] = (),
    title: str | None = None,
    command: str | None = None,
    comparison: Comparison | None = None,
) -> None:
    """Write the report of one or more runs; ``OSError`` is the caller's.

    ``agreements`` pair real runs with their simulations, which are added to ``runs`` where they are not among them.
    ``command`` is what made all of it (default: the first run's); ``comparison`` adds the table of run A and run B.
    """
    Path(path).write_text(render_report(runs, agreements, title, command, comparison), encoding="utf-8")


def render_report(
    runs: Sequence[Run],
    agreements: Sequence[Agreement] = (),
    title: str | None = None,
    command: str | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The page of :func:`write_report` as text, the same for the same arguments; ``ValueError`` without a run."""
    series = _series(runs, agreements)
    if not series:
        raise ValueError("a report needs at least one run")
    title = title or (series[0].label if len(series) == 1 else f"{len(series)} runs compared")
    sections = [
        _header(title, series),
        _verdict(series, agreements),
        _tiles(series, agreements),
        _compared_policies(series) if len(series) > 1 and comparison is None else "",
        _two_runs(comparison) if comparison is not None else "",
        _latency_charts(series),
        _over_time(series),
        cluster_section([(one.label, one.run) for one in series]),
        _agreements(agreements, series),
        _all_latencies(series),
        _all_figures(series),
        _settings(series),
        _reproduce(series, command),
        _footer(),
    ]
    return page(title, sections)


def _series(runs: Sequence[Run], agreements: Sequence[Agreement]) -> list[Series]:
    """Every run once, a simulated twin right after the run that it stands for and in the same colour."""
    twin_of = {id(agreement.measured): agreement.simulated for agreement in agreements}
    twins = {id(agreement.simulated) for agreement in agreements}
    leading = [run for run in runs if id(run) not in twins]
    leading += [a.measured for a in agreements if all(a.measured is not run for run in leading)]
    ordered: list[tuple[Run, int, bool]] = []
    for colour, run in enumerate(leading):
        ordered.append((run, colour, False))
        if id(run) in twin_of:
            ordered.append((twin_of[id(run)], colour, True))
    names = labels([run for run, _, _ in ordered])
    return [Series(run, name, colour, twin) for (run, colour, twin), name in zip(ordered, names, strict=True)]


# -- small pieces


def _class_of(one: Series) -> str:
    return f"series-{one.colour % SERIES_COLOURS + 1}"


def _dot(one: Series) -> str:
    return f'<span class="dot {_class_of(one)}"></span>'


def _yes_no(value: bool | None, yes: str, no: str, unknown: str) -> str:
    if value is None:
        return _chip(unknown, "plain")
    return _chip(yes, "good") if value else _chip(no, "bad")


def _bar(share: float | None, one: Series) -> str:
    width = 0 if share is None else 100 * min(1.0, max(0.0, share))
    return f'<span class="bar"><i class="{_class_of(one)}" style="width:{width:.1f}%"></i></span>'


def _legend(series: Sequence[Series]) -> str:
    """The colours of the runs, and what dashes mean where there are any; nothing for a single run."""
    if len(series) == 1:
        return ""
    twins = any(one.dashed for one in series)
    items = []
    for one in series:
        if not one.dashed:
            style = "dotted" if one.colour >= SERIES_COLOURS else ""
            items.append((f"{style} {_class_of(one)}", one.run.label if twins else one.label))
    if twins:
        items += [("", "real"), ("dashed", "simulated")]
    keys = "".join(f'<li><span class="key {kind}"></span>{escape(text)}</li>' for kind, text in items)
    return f'<ul class="legend">{keys}</ul>'


def _tail(series: Sequence[Series], key: str) -> str:
    """The highest percentile of a latency that every run has enough requests for, or else its maximum."""
    for statistic in ("p99", "p95", "p90"):
        if all(look_up(one.run.summary, f"{key}.{statistic}") is not None for one in series):
            return statistic
    return "max"


# -- what is said first


def _header(title: str, series: Sequence[Series]) -> str:
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


def _paragraph(word: str, text: str) -> str:
    return f'<p><span class="word">{escape(word)}</span> {escape(text)}</p>'


def _verdict(series: Sequence[Series], agreements: Sequence[Agreement]) -> str:
    """The run's own verdict; of several runs: agreement first, then every run that is not simply fine."""
    boxes: dict[str, list[str]] = {"bad": [], "note": [], "good": [], "plain": []}
    if agreements:
        kind = "good" if all(a.same_plans and a.counters_equal for a in agreements) else "note"
        boxes[kind].append(_paragraph("Simulation.", _agreement_verdict(agreements)))
    by_text: dict[str, list[str]] = {}
    for one in series:
        by_text.setdefault(verdict(one.run.summary), []).append(one.label)
    for text, names in by_text.items():
        summary = next(one.run.summary for one in series if one.label == names[0])
        kind, word = _verdict_kind(summary)
        who = "" if len(names) == len(series) else f"{', '.join(names)}: "
        boxes[kind].append(_paragraph(word, who + text))
    boxes["note"] += _projections(series)
    guesses: dict[str, list[str]] = {}
    for one in series:
        for text in one.run.summary.get("beyond_recorded") or ():
            guesses.setdefault(text, []).append(one.label)
    boxes["note"] += _beyond_recorded(guesses, len(series))
    parts = [f'<div class="verdict {kind}">{"".join(texts)}</div>' for kind, texts in boxes.items() if texts]
    return "\n".join(parts)


def _projections(series: Sequence[Series]) -> list[str]:
    """What runs are projections of, each with the runs that it is true of."""
    found: dict[str, list[str]] = {}
    for one in series:
        if one.run.projection:
            found.setdefault(one.run.projection, []).append(one.label)
    return [
        _paragraph("Projection.", f"{'' if len(names) == len(series) else ', '.join(names) + ': '}{text}.")
        for text, names in found.items()
    ]


def _beyond_recorded(guesses: Mapping[str, Sequence[str]], runs: int) -> list[str]:
    """Where costs were not recorded, each with the runs that it is true of; folded where there is much of it."""
    texts = [f"{'' if len(names) == runs else ', '.join(names) + ': '}{text}." for text, names in guesses.items()]
    if len(texts) <= 2:
        return [_paragraph("Beyond the recording.", text) for text in texts]
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
        f"by {_percent(prediction.error)} ({figure_at(prediction.path).title} of {agreement.measured.label})."
    )


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    detail: str

    def markup(self) -> str:
        amount, _, unit = self.value.partition(" ")
        return (
            f'<div class="tile"><div class="name">{escape(self.name)}</div>'
            f'<div class="value">{escape(amount)} <small>{escape(unit)}</small></div>'
            f'<div class="detail">{escape(self.detail)}</div></div>'
        )


def _tiles(series: Sequence[Series], agreements: Sequence[Agreement]) -> str:
    tiles = _tiles_of_one(series[0]) if len(series) == 1 else _tiles_of_many(series, agreements)
    return f'<div class="tiles">{"".join(tile.markup() for tile in tiles)}</div>'


def _tiles_of_one(one: Series) -> list[_Tile]:
    summary = one.run.summary

    def value(path: str) -> str:
        return quantity(look_up(summary, path), figure_at(path).unit)

    def latency(key: str, title: str) -> _Tile:
        tail = _tail([one], key)
        name = tail.upper() if tail != "max" else "max"
        return _Tile(f"{title} P50", value(f"{key}.p50"), f"{name} {value(f'{key}.{tail}')}")

    tiles = [
        _Tile("Output throughput", value("output_tokens_per_s"), f"{value('requests_per_s')} requests"),
        latency("ttft_ms", "TTFT"),
        latency("tpot_ms", "TPOT"),
        latency("e2e_ms", "E2E"),
        _Tile("Decode waste", value("padding_waste.decode"), f"prefill {value('padding_waste.prefill')}"),
        _Tile("Decode batch", value("mean_decode_batch"), f"{value('batch_occupancy')} occupied"),
    ]
    if look_up(summary, "slo_attainment.share") is not None:
        tiles.append(_Tile("Goodput", value("goodput_per_s"), f"{value('slo_attainment.share')} meet all objectives"))
    return tiles


def _tiles_of_many(series: Sequence[Series], agreements: Sequence[Agreement]) -> list[_Tile]:
    judged = _judged(series)
    tiles = []
    for path in ("output_tokens_per_s", "ttft_ms.p50", f"e2e_ms.{_tail(judged, 'e2e_ms')}", "padding_waste.decode"):
        figure = figure_at(path)
        best = _best(judged, figure)
        if best is not None:
            word = "Highest" if figure.better == "higher" else "Lowest"
            title = figure.title if figure.title.split()[0].isupper() else figure.title.lower()
            tiles.append(
                _Tile(f"{word} {title}", quantity(look_up(best.run.summary, path), figure.unit), best.run.label)
            )
    if agreements:
        same = sum(agreement.same_plans for agreement in agreements)
        tiles.append(_Tile("Plans the same", f"{same} of {len(agreements)}", "real beside simulated"))
        errors = [a.mean_error for a in agreements if a.mean_error is not None]
        if errors:
            mean = sum(errors) / len(errors)
            tiles.append(_Tile("Simulation error", quantity(mean, "share"), "mean size, over all times and rates"))
    return tiles


def _judged(series: Sequence[Series]) -> list[Series]:
    """Who may be best: the real runs, or all where none is real. Simulated and measured times are not mixed."""
    return [one for one in series if not one.run.simulated] or list(series)


def _best(series: Sequence[Series], figure: Figure) -> Series | None:
    """The run that is best in a figure; ``None`` where no single one is."""
    known = [(one, look_up(one.run.summary, figure.path)) for one in series]
    values = [value for _, value in known if value is not None]
    if figure.better is None or len(values) < 2:
        return None
    best = max(values) if figure.better == "higher" else min(values)
    return next(one for one, value in known if value == best) if values.count(best) == 1 else None


# -- sections


def _compared_policies(series: Sequence[Series]) -> str:
    tails = {key: _tail(series, key) for key in ("ttft_ms", "e2e_ms")}
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
    best = {figure.path: _best(_judged(series), figure) for figure in shown}

    def cell(one: Series, figure: Figure) -> str:
        value = look_up(one.run.summary, figure.path)
        mark = "best" if best[figure.path] is one else ""
        bar = _bar(value, one) if figure.path in _BARRED and value is not None else ""
        why = escape(why_missing(one.run.summary, figure.path)) if value is None else ""
        return f'<td class="number {mark}" title="{why}">{bar}{escape(quantity(value, figure.unit))}</td>'

    rows = [
        _row(
            _dot(one) + escape(_name_in_table(one, series)),
            [cell(one, figure) for figure in shown],
            "twin" if one.dashed else "",
        )
        for one in series
    ]
    head = [("Run", "first"), *((figure.title, "number") for figure in shown)]
    lead = "One workload, one scheduler. A star marks the best" + (
        " of the real runs; below each is its simulated twin." if any(one.dashed for one in series) else "."
    )
    return _section("Policies compared", lead, _table(head, rows))


def _two_runs(comparison: Comparison) -> str:
    a, b = labels([comparison.a, comparison.b])

    def cells(row: Compared) -> list[str]:
        def value(amount: float | None, interval: tuple[float, float] | None) -> str:
            return _number_cell(quantity(amount, row.figure.unit), interval_text(interval, row.figure.unit))

        difference = "–" if row.difference is None else _signed(row.difference, row.figure)
        ratio = "–" if row.ratio is None else f"× {row.ratio:.3f}"
        kind = {"better": "good", "worse": "bad"}.get(row.verdict, "plain")
        apart = {True: "apart", False: "overlap", None: ""}[row.distinct]
        chip = _chip(row.verdict, kind if row.distinct is not False else "plain") if row.verdict else ""
        return [
            value(row.a, row.a_interval),
            value(row.b, row.b_interval),
            _number_cell(difference),
            _number_cell(ratio),
            f"<td>{chip}</td>",
            f'<td class="formula">{apart}</td>',
            f'<td class="formula">{escape(row.figure.formula if row.figure.path in first else "")}</td>',
        ]

    # a latency's formula stands beside the first of its statistics
    first = {row.figure.path for row in comparison.rows if row.figure.unit != "ms"}
    first |= set({row.figure.formula: row.figure.path for row in reversed(comparison.rows)}.values())
    rows = [_row(escape(row.figure.title), cells(row)) for row in comparison.rows]
    head = [("Figure", "first"), (f"A: {a}", "number"), (f"B: {b}", "number"), ("B − A", "number")]
    head += [("B / A", "number"), ("B is", ""), ("Intervals", ""), ("Definition", "")]
    lead = (
        "A is the first run, B the second. Intervals (95 %) are those of the requests within each run: where they "
        "overlap, the difference may be chance, and where they are apart, another run may still differ."
    )
    return _section("Run A and run B", lead, _table(head, rows))


def _signed(value: float, figure: Figure) -> str:
    text = quantity(abs(value), figure.unit)
    return text if not value else f"{'+' if value > 0 else '−'}{text}"


def _latency_charts(series: Sequence[Series]) -> str:
    by_key = {latency.key: latency for latency in LATENCIES}
    cards = []
    for key in _CHARTED:
        latency = by_key[key]
        chart = cdf_chart(f"cdf-{key.removesuffix('_ms')}", latency.title, key, series)
        reasons = {why_missing(one.run.summary, key) for one in series}
        absent = f'<p class="absent">{escape("; ".join(sorted(reasons)))}</p>'
        cards.append(_chart_card(latency.title, latency.formula, chart or absent))
    lead = "Share of the finished requests (vertical) whose latency is at most that (horizontal)."
    return _section("Latency", lead, _legend(series) + f'<div class="charts">{"".join(cards)}</div>')


def _chart_card(title: str, formula: str, chart: str) -> str:
    below = f'<p class="formula">{escape(formula)}</p>' if formula else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{below}{chart}</div>'


def _over_time(series: Sequence[Series]) -> str:
    """One run: a card a panel. Several: a card a run, with its twin as dashes, all to one scale."""
    drawn = [(one, line) for one in series if (line := timeline_of(one.run)) is not None]
    scale = [line for _, line in drawn]
    leading = [one for one, _ in drawn if not one.dashed]
    if len(series) == 1:
        cards = [
            _chart_card(title, "", timeline_chart(f"time-{panel}", drawn, [panel], scale))
            for panel, title in PANELS.items()
            if drawn
        ]
    else:
        width = 3.2 if len(leading) % 4 == 0 else 4.3
        cards = []
        for one in leading:
            group = [(other, line) for other, line in drawn if other.colour == one.colour]
            chart = timeline_chart(f"time-{one.colour}", group, list(PANELS), scale, width)
            label = one.run.label if len(group) > 1 else one.label
            cards.append(f'<div class="card"><h3>{_dot(one)}{escape(label)}</h3>{chart}</div>')
    lead = (
        "Requests: those that run dark, those that wait light. Rows: mean over the steps that decode. Padding: share "
        "of a step's slots that are padding (prefill: linear, decode: attention), weighted by time."
    )
    if any(one.dashed for one in series):
        lead += " Dashes: simulated."
    kind = "charts four" if len(leading) % 4 == 0 else "charts"
    content = f'<div class="{kind}">{"".join(cards)}</div>' if cards else '<p class="absent">no step was run</p>'
    return _section("Batch and padding over time", lead, content)


def _error_cell(error: float | None, detail: str) -> str:
    if error is None:
        return _number_cell("–", kind="missing")
    size = abs(error)
    kind = "good" if size <= GOOD_ERROR else "note" if size <= FAIR_ERROR else "bad"
    return _chips(f'<span class="aside">{escape(detail)}</span>{_chip(_percent(error), kind)}')


def _percent(error: float) -> str:
    return f"{100 * error:+.1f} %".replace("-", "−")


def _agreements(agreements: Sequence[Agreement], series: Sequence[Series]) -> str:
    if not agreements:
        return ""
    one_of = {id(one.run): one for one in series}
    pairs = [one_of[id(agreement.measured)] for agreement in agreements]
    head = [("", "first"), *((one.run.label, "number") for one in pairs)]
    lead = (
        "Both worlds drive the same scheduler. Counters and plans must be equal; times are predicted, with error = "
        "(simulated − measured) / measured. Beside each error: measured → simulated."
    )
    rows = [
        _row("Plans", [_chips(_yes_no(a.same_plans, "same", "differ", "")) for a in agreements]),
        _row("Replay", [_chips(_yes_no(a.replayed, "same plans", "differs", "not replayed")) for a in agreements]),
        _row("Mean error", [_number_cell(quantity(a.mean_error, "share")) for a in agreements]),
        *_prediction_rows(agreements),
        f'<tr class="group"><th class="first" colspan="{len(agreements) + 1}">Counters</th></tr>',
        *_counter_rows(agreements),
    ]
    return _section("Real and simulated", lead, _table(head, rows))


def _chips(markup: str) -> str:
    return f'<td class="number">{markup}</td>'


def _prediction_rows(agreements: Sequence[Agreement]) -> list[str]:
    rows = []
    for path in _paths_of([[p.path for p in a.predictions] for a in agreements]):
        figure = figure_at(path)
        cells = []
        for agreement in agreements:
            found = agreement.prediction(path)
            if found is None:
                cells.append(_number_cell("–", kind="missing"))
                continue
            cells.append(_error_cell(found.error, change_text(found.measured, found.simulated, figure.unit)))
        rows.append(_row(escape(figure.title), cells))
    return rows


def _counter_rows(agreements: Sequence[Agreement]) -> list[str]:
    rows = []
    for path in _paths_of([[c.path for c in a.counters] for a in agreements]):
        cells = [_counter_cell(next((c for c in a.counters if c.path == path), None)) for a in agreements]
        rows.append(_row(escape(figure_at(path).title), cells))
    return rows


def _counter_cell(check: CounterCheck | None) -> str:
    if check is None:
        return _number_cell("–", kind="missing")
    unit = figure_at(check.path).unit
    equal = check.equal
    detail = quantity(check.measured, unit) if equal else change_text(check.measured, check.simulated, unit)
    return _chips(f'<span class="aside">{escape(detail)}</span>{_yes_no(equal, "equal", "differs", "")}')


def _paths_of(lists: Sequence[Sequence[str]]) -> list[str]:
    """All paths, each once, in the order of their first appearance."""
    return list(dict.fromkeys(path for paths in lists for path in paths))


def _all_latencies(series: Sequence[Series]) -> str:
    """A row for each latency of a single run; of several runs, a group for each latency with a row for each run."""
    head = [("Latency", "first"), *((statistic_title(s), "number") for s in STATISTICS), ("n", "number")]
    rows: list[str] = []
    for latency in LATENCIES:
        if len(series) > 1:
            title = f"{escape(latency.title)} <i>{escape(latency.formula)}</i>"
            rows.append(f'<tr class="group"><th class="first" colspan="{len(head)}">{title}</th></tr>')
        for one in series:
            cells = [_figure_cell(one, figure_at(f"{latency.key}.{statistic}")) for statistic in STATISTICS]
            cells.append(_number_cell(number(look_up(one.run.summary, f"{latency.key}.n"))))
            if len(series) == 1:
                name = f'{escape(latency.title)}<span class="interval">{escape(latency.formula)}</span>'
            else:
                name = _dot(one) + escape(_name_in_table(one, series))
            rows.append(_row(name, cells, "twin" if one.dashed else ""))
    lead = (
        "Percentiles are nearest ranks, with the 95 % interval of their order statistics below. A percentile that too "
        "few requests stand behind is not given."
    )
    return _section("All latencies", lead, _table(head, rows))


def _name_in_table(one: Series, series: Sequence[Series]) -> str:
    """A twin stands right below its run, so that its world is enough; and its run needs none."""
    if one.dashed:
        return one.run.world
    return one.run.label if _has_twin(one, series) else one.label


def _all_figures(series: Sequence[Series]) -> str:
    head = [("Figure", "first"), *((one.label, "number") for one in series), ("Definition", "")]
    rows = []
    for figure in _shown(series):
        cells = [_figure_cell(one, figure) for one in series]
        rows.append(_row(escape(figure.title), [*cells, f'<td class="formula">{escape(figure.formula)}</td>']))
    lead = "What could not be computed says so; 0 means zero."
    return _section("All other figures", lead, _table(head, rows) + _reasons(series))


def _shown(series: Sequence[Series]) -> list[Figure]:
    summaries = [one.run.summary for one in series]
    return [figure for figure in FIGURES if occurs(figure, summaries)]


def _figure_cell(one: Series, figure: Figure) -> str:
    summary = one.run.summary
    value = look_up(summary, figure.path)
    if value is not None:
        return _number_cell(quantity(value, figure.unit), interval_text(interval_at(summary, figure.path), figure.unit))
    why = why_missing(summary, figure.path)
    text = "n too small" if why.startswith("n too small") else "not available"
    return f'<td class="number missing" title="{escape(why)}">{text}</td>'


def _reasons(series: Sequence[Series]) -> str:
    """Why figures are missing: each reason with the figures and runs that it is about."""
    found: dict[str, dict[str, None]] = {}
    for one in series:
        paths = [*(f"{latency.key}.p99" for latency in LATENCIES), *(figure.path for figure in _shown(series))]
        for path in paths:
            if look_up(one.run.summary, path) is None:
                title = figure_at(path).title.removesuffix(" P99")
                found.setdefault(why_missing(one.run.summary, path), {})[title] = None
    if not found:
        return ""
    facts = "".join(f"<dt>{escape(', '.join(titles))}</dt><dd>{escape(why)}</dd>" for why, titles in found.items())
    facts = f'<dl class="facts">{facts}</dl>'
    return f'<div class="card"><details><summary>Why figures are missing</summary>{facts}</details></div>'


# -- how it was made


def _settings(series: Sequence[Series]) -> str:
    """The scheduler's settings as they were in force: a list for one run, a table for several."""
    lists = [(one, readable(one.run.summary.get("scheduler"))) for one in series if not one.dashed]
    lists = [(one, lines) for one, lines in lists if lines]
    if not lists:
        return ""
    lead = "What was asked for, and what the policy decided where nothing was."
    if len(series) == 1:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lists[0][1])
        return _section("Scheduler", lead, f'<div class="card"><dl class="facts">{rows}</dl></div>')
    of_run = [dict(lines) for _, lines in lists]
    names = dict.fromkeys(name for _, lines in lists for name, _ in lines)
    table_rows = []
    for name in names:
        values = [settings.get(name, "–") for settings in of_run]
        if len(set(values)) == 1:
            table_rows.append(_row(escape(name), [f'<td colspan="{len(lists)}">{escape(values[0])}</td>']))
        else:
            table_rows.append(_row(escape(name), [f"<td>{escape(value)}</td>" for value in values]))
    names_of_runs = [one.run.label if _has_twin(one, series) else one.label for one, _ in lists]
    head = [("Setting", "first"), *((label, "") for label in names_of_runs)]
    return _section("Scheduler", f"{lead} A value that stands alone is that of all runs.", _table(head, table_rows))


def _has_twin(one: Series, series: Sequence[Series]) -> bool:
    return any(other.dashed and other.colour == one.colour for other in series)


def _reproduce(series: Sequence[Series], command: str | None) -> str:
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
        summary = f"<summary>{_dot(one)}Everything in the manifest of {escape(one.label)}</summary>"
        parts.append(f'<div class="card"><details>{summary}{_fact_list(facts)}</details></div>')
    lead = "The same command on the same commit gives the same plans; simulated times to the nanosecond."
    return _section("How to reproduce", lead, "\n".join(parts))


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


def _footer() -> str:
    text = (
        "Latencies are those of finished requests. Intervals take requests as independent; requests that shared a "
        "queue are not quite, so they are the least that must be allowed for. A load is called more than the hardware "
        "can carry when waiting + running requests grow over the second half of the arrivals by more than a random "
        "walk without drift would (95 %), and by at least 1 % of the arrivals."
    )
    return f"<footer>{escape(text)}</footer>"
