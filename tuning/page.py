"""The report of a tuning, in the manner of a run's: HTML that opens from disk, and Markdown for a repository."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from reports.charts import moves_chart, trade_off_chart
from reports.figures import number
from reports.markup import chip, number_cell, page, row, section, table
from tuning.setting import Setting

TITLE = "Tuned settings"
#: what tables show of a run: title, figure
SHOWN = (
    ("within SLO", "attainment"), ("goodput /s", "goodput_per_s"), ("TTFT P50 ms", "ttft_ms.p50"),
    ("TTFT P99 ms", "ttft_ms.p99"), ("TPOT P50 ms", "tpot_ms.p50"), ("TPOT P99 ms", "tpot_ms.p99"),
    ("E2E mean ms", "e2e_ms.mean"), ("output tok/s", "output_tokens_per_s"),
)  # fmt: skip


def percent(value: float | None) -> str:
    """A gain as people read it."""
    if value is None:
        return "not known"
    return f"{100 * value:+.1f} %"


def interval(gain: Mapping[str, Any]) -> str:
    """A gain with its interval."""
    if gain["low"] is None or gain["high"] is None:
        return percent(gain["mean"])
    return f"{percent(gain['mean'])} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f} %)"


def name_of(setting: Mapping[str, Any]) -> str:
    """A setting in a line."""
    return str(Setting.of(setting))


def verdict_of(result: Mapping[str, Any]) -> tuple[str, str, str]:
    """What the tuning says: good, note or bad; a word; a sentence."""
    best, objective = result["recommended"], result["objectives"][0]
    base = result["baselines"][0]
    value = f"{objective['title']} {number(best['values'][0])} {objective['unit']}"
    if best["is_baseline"]:
        return "note", "No gain.", (
            f"No setting was better than the baseline, {name_of(base['setting'])}, on what was held out ({value})."
        )  # fmt: skip
    gain = best["held_out_gain"]
    sure = f"with {100 * result['confidence']:g} % confidence"
    text = (
        f"{name_of(best['setting'])}: {value}, {percent(best['searched_gain'])} over {name_of(base['setting'])} where "
        f"it was searched, {interval(gain)} on {len(gain['parts'])} parts that the search had not seen."
    )
    if gain["verdict"] == "better":
        return "good", "Better,", f"{sure}: {text}"
    return "note", "Not sure.", f"{text} The interval has 0 in it: the parts do not agree {sure}."


def notes_of(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know."""
    notes = []
    if result["saturation"]:
        notes.append(f"{result['saturation'][0].upper()}{result['saturation'][1:]}.")
    seeds = result["recommended"]["over_seeds"]
    if seeds is None:
        notes.append("Nothing in these simulations is random, so that there is nothing to say over seeds.")
    else:
        notes.append(
            f"Over {result['seeds']} seeds the gain on all that was searched is from {percent(seeds['lowest'])} to "
            f"{percent(seeds['highest'])}."
        )
    for title, gain in result["recommended"]["against"].items():
        notes.append(f"Over {title}: {percent(gain['searched'])} searched, {interval(gain['held_out'])} held out.")
    beyond = result["beyond_recorded"]
    if beyond:
        notes.append(f"Beyond the recording, so that the figures are a guess there: {'; '.join(beyond)}.")
    idle = [one["knob"].replace("_", "-") for one in result["sensitivity"] if not one["matters"]]
    if idle:
        notes.append(f"Knobs that change the objective by less than 1 % here: {', '.join(idle)}.")
    return notes


def how_of(result: Mapping[str, Any]) -> str:
    """How it was found, in a sentence."""
    search, workload = result["search"], result["workload"]
    return (
        f"{search['settings']} settings on {workload['searched']:,} of {workload['requests']:,} requests of "
        f"{workload['name']}, {search['in_full']} of them in full; simulated: {search['requests']:,} requests, as many "
        f"as {search['full_runs']:.1f} full runs. Costs: {', '.join(result['costs'])}. SLO: {result['slo'] or 'none'}."
    )


def _rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Name, entry and gain held out of everything that tables show; the recommended setting first."""
    best = result["recommended"]
    rows = [] if best["is_baseline"] else [("recommended", best, interval(best["held_out_gain"]))]
    others = [one for one in result["finalists"] if one["setting"] != best["setting"]]
    rows += [("", one, interval(one["gains"][0]["held_out"])) for one in others]
    rows += [(one["title"], one, "") for one in result["baselines"] if not one["failed"]]
    return rows


def setting_rows(result: Mapping[str, Any]) -> list[tuple[str, str, list[str], str]]:
    """What tables of settings show: title, setting, the figures of :data:`SHOWN`, and the gain held out."""
    return [
        (title, name_of(entry["setting"]), [_cell(entry, figure) for _, figure in SHOWN], gain)
        for title, entry, gain in _rows(result)
    ]


def _cell(entry: Mapping[str, Any], figure: str) -> str:
    value = entry["figures"].get(figure)
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if figure == "attainment" else number(value)


# -- HTML


def render_page(result: Mapping[str, Any], validation: Mapping[str, Any] | None = None, trials: str = "") -> str:
    """The page as text."""
    parts = [_header(result), _verdict(result), _validated(validation), _settings(result), _commands(result)]
    parts += [_trade_off(result, trials), _sensitivity(result), _held_out(result), _space(result)]
    parts.append(section("How to reproduce", "With a number of settings for a budget, the same command gives the same "
                         "answer.", f"<pre>{escape(result['command'])}</pre>"))  # fmt: skip
    return page(TITLE, parts)


def _header(result: Mapping[str, Any]) -> str:
    context = f"{result['workload']['name']} · {', '.join(o['title'] for o in result['objectives'])} · simulated time"
    return (
        f'<header><span class="mark">Lockstep</span><h1>{TITLE}</h1>\n<p class="context">{escape(context)}</p></header>'
    )


def _verdict(result: Mapping[str, Any]) -> str:
    kind, word, text = verdict_of(result)
    notes = "".join(f"<p>{escape(note)}</p>" for note in notes_of(result))
    return (
        f'<div class="verdict {kind}"><p><span class="word">{escape(word)}</span> {escape(text)}</p></div>\n'
        f"<section>{notes}<p>{escape(how_of(result))}</p></section>"
    )


def _validated(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return ""
    head = [("", "first"), *((title, "number") for title in VALIDATION_COLUMNS), ("Setting", "")]
    rows = [
        row(f"no. {place}", [*(number_cell(cell) for cell in cells), f"<td>{escape(name)}</td>"])
        for place, (name, *cells) in enumerate(validation_rows(validation), 1)
    ]
    kind = "good" if validation["stands"] else "bad"
    word = "Stands." if validation["stands"] else "Does not stand."
    lead = f"{validation['requests']} requests on {validation['hardware']}, {validation['model']}."
    text = f'<div class="verdict {kind}"><p><span class="word">{word}</span> {escape(validation["text"])}</p></div>'
    return section("On the engine", lead, text + table(head, rows))


def _settings(result: Mapping[str, Any]) -> str:
    head = [("", "first"), *((title, "number") for title, _ in SHOWN), ("gain held out", "number"), ("Setting", "")]
    rows = [
        row(
            chip(title or f"no. {place}", "good" if title == "recommended" else "plain"),
            [*(number_cell(cell) for cell in (*cells, gain)), f"<td>{escape(setting)}</td>"],
        )
        for place, (title, setting, cells, gain) in enumerate(setting_rows(result), 1)
    ]
    lead = "On everything that was searched; the gain is over the first baseline, on parts that were held out."
    return section("Settings beside each other", lead, table(head, rows))


def _commands(result: Mapping[str, Any]) -> str:
    commands = result["commands"]
    text = "\n\n".join(commands[name] for name in ("serve", "run", "simulate"))
    lead = "As a server, on the engine, and simulated; bench.yaml and serve.yaml here say the same (--config)."
    return section("How to use it", lead, f"<pre>{escape(text)}</pre>")


def _trade_off(result: Mapping[str, Any], trials: str) -> str:
    if len(result["objectives"]) < 2:
        return ""
    first, second = result["objectives"][:2]
    front = [(point["values"][0], point["values"][1]) for point in result["front"]]
    others = [point for point in _points(trials, first["name"], second["name"]) if point not in front]
    base = result["baselines"][0]["values"]
    chart = trade_off_chart(
        "trade-off", f"{first['title']} and {second['title']}", others, front, [("baseline", base[0], base[1])],
        f"{first['title']}, {first['unit']}", f"{second['title']}, {second['unit']}",
    )  # fmt: skip
    head = [("Setting", "first"), *((f"{o['title']}, {o['unit']}", "number") for o in result["objectives"])]
    rows = [
        row(escape(name_of(point["setting"])), [number_cell(number(value)) for value in point["values"]])
        for point in result["front"]
    ]
    lead = "Settings that no other one beats in every objective; dots are the others that were simulated in full."
    return section("The trade-off", lead, f'<div class="card">{chart}</div>' + table(head, rows))


def _points(trials: str, x: str, y: str) -> list[tuple[float, float]]:
    """Of the candidates that were simulated on everything."""
    rows = list(csv.DictReader(io.StringIO(trials)))
    longest = max((int(one["lengths"]) for one in rows), default=0)
    whole = [one for one in rows if int(one["lengths"]) == longest and one.get(x) and one.get(y)]
    return [(float(one[x]), float(one[y])) for one in whole]


def _sensitivity(result: Mapping[str, Any]) -> str:
    found = result["sensitivity"]
    if not found:
        return ""
    moves = [(one["knob"].replace("_", "-"), [change for _, change in one["changes"]]) for one in found]
    title = result["objectives"][0]["title"]
    chart = moves_chart("sensitivity", "What each knob changes", moves, f"change of {title} (right is better)")
    head = [("Knob", "first"), ("recommended", ""), ("elsewhere", ""), ("", "")]
    rows = [
        row(
            escape(one["knob"].replace("_", "-")),
            [f"<td>{escape(_value(one['value']))}</td>", f"<td>{escape(_moved(one))}</td>",
             f"<td>{chip(*(('matters', 'good') if one['matters'] else ('does not matter', 'plain')))}</td>"],
        )
        for one in found
    ]  # fmt: skip
    lead = "Each knob moved alone from the recommended setting, on what was searched (3,000 requests at most)."
    return section("What each knob does", lead, f'<div class="card">{chart}</div>' + table(head, rows))


def _value(value: Any) -> str:
    return "default" if value is None else str(value)


def _moved(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{_value(value)}: {percent(change)}" for value, change in one["changes"])


def _held_out(result: Mapping[str, Any]) -> str:
    gain = result["recommended"]["held_out_gain"]
    rows = [
        row(f"requests {start + 1:,} to {stop:,}", [number_cell(percent(part))])
        for (start, stop), part in zip(result["workload"]["held_out"], gain["parts"], strict=False)
    ]
    lead = (
        f"Over {name_of(result['baselines'][0]['setting'])}, in {result['objectives'][0]['title']}: {interval(gain)}, "
        f"at {100 * result['confidence']:g} % confidence (Student's t over the parts)."
    )
    return section("On what was held out", lead, table([("Part", "first"), ("gain", "number")], rows))


def _space(result: Mapping[str, Any]) -> str:
    rows = [row(escape(name.replace("_", "-")), [f"<td>{escape(text)}</td>"]) for name, text in result["space"].items()]
    return section("What was searched", how_of(result), table([("Knob", "first"), ("values", "")], rows))


# -- validation, in both

VALIDATION_COLUMNS = ("predicted", "measured", "error", "predicted gain", "measured gain", "TTFT P99 error", "plans")


def validation_rows(validation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each setting that was run: name, and :data:`VALIDATION_COLUMNS`."""
    return [
        (
            f"{one['title']}: {name_of(one['setting'])}" if one["title"] else name_of(one["setting"]),
            number(one["predicted"]),
            number(one["measured"]) if len(one["rounds"]) < 2
            else f"{number(one['measured'])} ({number(min(one['rounds']))} to {number(max(one['rounds']))})",
            percent(one["error"]),
            percent(one["predicted_gain"]),
            percent(one["measured_gain"]),
            percent(one["ttft_error"]),
            "replayed" if one["replayed"] else "differ",
        )
        for one in validation["settings"]
    ]  # fmt: skip


# -- Markdown


def render_markdown(result: Mapping[str, Any], validation: Mapping[str, Any] | None = None) -> str:
    """The report as Markdown."""
    _, word, text = verdict_of(result)
    lines = [f"# {TITLE}: {result['workload']['name']}", "", f"**{word}** {text}", ""]
    lines += [f"- {note}" for note in notes_of(result)]
    lines += [f"- {how_of(result)}", ""]
    if validation is not None:
        word = "Stands." if validation["stands"] else "Does not stand."
        lines += ["## On the engine", "", f"**{word}** {validation['text']}", ""]
        lines += _markdown_table(["setting", *VALIDATION_COLUMNS], validation_rows(validation))
    lines += ["## Settings beside each other", ""]
    rows = [
        (f"{title}: {setting}" if title else setting, *cells, gain)
        for title, setting, cells, gain in setting_rows(result)
    ]
    lines += _markdown_table(["setting", *(title for title, _ in SHOWN), "gain held out"], rows)
    lines += ["## How to use it", "", "```bash", *(result["commands"][name] for name in ("serve", "run", "simulate"))]
    lines += ["```", ""]
    if result["front"]:
        lines += ["## The trade-off", ""]
        titles = ["setting", *(f"{o['title']}, {o['unit']}" for o in result["objectives"])]
        lines += _markdown_table(
            titles, [(name_of(p["setting"]), *(number(value) for value in p["values"])) for p in result["front"]]
        )
    if result["sensitivity"]:
        lines += ["## What each knob does", ""]
        moved = [
            (one["knob"].replace("_", "-"), _value(one["value"]), _moved(one), "yes" if one["matters"] else "no")
            for one in result["sensitivity"]
        ]
        lines += _markdown_table(["knob", "recommended", "elsewhere", "matters"], moved)
    lines += ["## How to reproduce", "", "```bash", result["command"], "```", ""]
    return "\n".join(lines)


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""]
