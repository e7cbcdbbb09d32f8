"""The claims for people: Markdown (``claims.md``, ``docs/claims.md``) and a page, of one machine or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from reports.claims import Answer, Claim, Contrast, Judged, Results, Spread, contrast_lines, number
from reports.markup import chip, number_cell, page, row, section, table

#: what one machine gave, judged
Machine = tuple[Results, Sequence[Answer], Sequence[Contrast]]

TITLE = "The seed's claims, measured"
INTRO = (
    "Every claim of the README that this project began with, as an experiment: before and after are run on the "
    "engine, in rounds with different requests. A claim *holds* if all of its readings are true in every round, *does "
    "not hold* if none is in any, *holds in part* if some are, which are named, and is *not decided* if none is and "
    "rounds disagree. A reading that the README's words leave no choice of is *literal*; where they leave something "
    "open, there is one that is most *favourable* to the claim and a *realistic* one. Readings *beside* explain and do "
    "not count."
)
SPREAD = (
    "Figures are means over rounds, ± the 95 % interval of the mean (Student's t); n counts rounds. Before and after "
    "are compared within a round, which has the same requests for both."
)
EXPERIMENT = "Where grouping by length pays: {padded, paged} x {at each step, run to completion} x policies"
EXPERIMENT_LEAD = (
    "The experiment that the README does not make: the same requests under every combination. A policy pays if its "
    "throughput is above that of arrival order (fcfs) on the same layout and batching in every round, and costs if in "
    "none."
)
_CHIPS = {
    "holds": "good", "true": "good", "pays": "good",
    "holds in part": "note", "rounds disagree": "note", "not decided": "note",
    "does not hold": "bad", "false": "bad", "costs": "bad",
    "not measured": "plain", "–": "plain",
}  # fmt: skip
_READINGS = ("reading", "kind", "machine", "before", "after", "claimed", "measured", "n", "outcome")
_CONTRASTS = ("layout", "batching", "policy", "prefill waste", "decode waste", "rows a step", "tok/s", "over fcfs",
              "mean E2E over fcfs", "n", "throughput", "latency")  # fmt: skip


def claims_markdown(machines: Sequence[Machine], command: str) -> str:
    """All of it as GitHub-flavoured Markdown; the same for the same results."""
    names = [results.machine for results, _, _ in machines]
    lines = [f"# {TITLE}", "", INTRO, "", *_table(("claim", "as claimed", *names), _summary_rows(machines)), "", SPREAD]
    lines += ["", "## What was run", ""]
    lines += [f"- {_about(results)}" for results, _, _ in machines]
    for place, first in enumerate(machines[0][1]):
        claim = first.claim
        lines += ["", f"## {claim.title}", "", _lead(claim), ""]
        lines += _table(_READINGS, _reading_rows(machines, place))
        lines += ["", f"{claim.why}."]
    lines += ["", f"## {EXPERIMENT}", "", EXPERIMENT_LEAD]
    for results, _, contrasts in machines:
        if contrasts:
            lines += ["", f"**{results.machine}**", ""]
            lines += _table(_CONTRASTS, (_contrast_cells(one) for one in contrasts))
            lines += ["", *(f"- {line}" for line in contrast_lines(contrasts))]
    again = "The same command goes on where it was stopped, or where its time (`--budget-s`) did not do. This page:"
    lines += ["", "## Again", "", "```bash", *_commands(machines), "```", "", again, "", "```bash", command, "```"]
    return "\n".join(lines) + "\n"


def _about(results: Results) -> str:
    about = results.about
    rounds = max((len(one.rounds) for one in results.measured.values()), default=0)
    commit = about.get("git_commit")
    threads = about.get("threads")
    using = f", {threads} of them used" if threads else ""
    at = f" Commit {str(commit)[:12]}." if commit else ""
    return (
        f"**{results.machine}**: {about.get('hardware')}{using}, {about.get('dtype')}, up to {rounds} rounds, seed "
        f"{about.get('seed')}; {about.get('conditions')}.{at}"
    )


def _lead(claim: Claim) -> str:
    return f"Claimed: {claim.claimed}. Before: {claim.before}. After: {claim.after}."


def _commands(machines: Sequence[Machine]) -> list[str]:
    """The commands that the runs were made by, each once."""
    return list(dict.fromkeys(str(results.about.get("command")) for results, _, _ in machines))


def _summary_rows(machines: Sequence[Machine]) -> Iterable[tuple[str, ...]]:
    for place, first in enumerate(machines[0][1]):
        found = [answers[place] for _, answers, _ in machines]
        yield (
            first.claim.title,
            first.claim.claimed,
            *(f"**{one.verdict}**{_after(one.condition())}" for one in found),
        )


def _after(condition: str) -> str:
    return f" ({condition})" if condition else ""


def _reading_rows(machines: Sequence[Machine], place: int) -> Iterable[tuple[str, ...]]:
    for number_, one in enumerate(machines[0][1][place].judged):
        for results, answers, _ in machines:
            judged = answers[place].judged[number_]
            yield (one.reading.text, one.reading.kind, results.machine, *_cells(judged))


def _cells(judged: Judged) -> tuple[str, ...]:
    outcome = judged.outcome if not judged.reason else f"{judged.outcome}: {judged.reason}"
    return (judged.figure_text(judged.before), judged.figure_text(judged.after), judged.reading.claimed_text(),
            judged.spread_text(), judged.n_text(), outcome)  # fmt: skip


def _contrast_cells(one: Contrast) -> tuple[str, ...]:
    return (
        one.cell.layout, one.cell.batching, one.cell.policy, _percent(one.prefill_waste), _percent(one.decode_waste),
        number(one.decode_batch), _spread(one.tokens_per_s), f"x{_spread(one.ratio)}", f"x{_spread(one.e2e_ratio)}",
        str(one.n), one.word, one.latency_word,
    )  # fmt: skip


def _percent(share: float) -> str:
    return f"{number(100 * share)} %"


def _spread(spread: Spread) -> str:
    width = spread.half_width
    return number(spread.mean) if not width else f"{number(spread.mean)} ± {number(width)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [_row(cells) for cells in rows]
    return [_row(head), f"|{'---|' * len(head)}", *cells]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


# -- the page


def claims_html(machines: Sequence[Machine], command: str) -> str:
    """The same, as a self-contained page."""
    names = [results.machine for results, _, _ in machines]
    header = (
        f'<header><span class="mark">Lockstep</span><h1>{TITLE}</h1>\n'
        f'<p class="context">{escape(" · ".join(names))}</p></header>'
    )
    parts = [header, _verdict(machines), _overview(machines)]
    parts += [_claim(machines, place) for place in range(len(machines[0][1]))]
    content = ""
    for results, _, contrasts in machines:
        if contrasts:
            head = [(name, "first" if not place else "number" if 2 < place < 10 else "")
                    for place, name in enumerate(_CONTRASTS)]  # fmt: skip
            content += f"<h3>{escape(results.machine)}</h3>\n{table(head, [_contrast_row(one) for one in contrasts])}"
            content += "".join(f"\n<p>{escape(line)}</p>" for line in contrast_lines(contrasts))
    if content:
        parts.append(section(EXPERIMENT, EXPERIMENT_LEAD, content))
    runs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
                   for name, text in dict(machines[0][0].about.get("runs", {})).items())  # fmt: skip
    again = f"<pre>{escape(chr(10).join([*_commands(machines), command]))}</pre>"
    again += f"\n<details><summary>All runs</summary><dl>{runs}</dl></details>"
    parts.append(section("Again", "The same command goes on where it was stopped.", again))
    return page(TITLE, parts)


def _verdict(machines: Sequence[Machine]) -> str:
    lines = []
    for results, answers, _ in machines:
        counts = {verdict: sum(one.verdict == verdict for one in answers) for verdict in _CHIPS}
        said = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items() if count)
        lines.append(f'<p><span class="word">{escape(results.machine)}.</span> {len(answers)} claims. {said}.</p>')
    return f'<div class="verdict plain">{"".join(lines)}</div>'


def _overview(machines: Sequence[Machine]) -> str:
    rows = []
    for place, first in enumerate(machines[0][1]):
        cells = [f"<td>{escape(first.claim.claimed)}</td>"]
        for _, answers, _ in machines:
            one = answers[place]
            cells.append(f"<td>{chip(one.verdict, _CHIPS[one.verdict])} {escape(one.condition())}</td>")
        rows.append(row(f'<a href="#{first.claim.name}">{escape(first.claim.title)}</a>', cells, "words"))
    head = [("Claim", "first"), ("As claimed", ""), *((results.machine, "") for results, _, _ in machines)]
    return section("Verdicts", INTRO.replace("*", ""), table(head, rows))


def _claim(machines: Sequence[Machine], place: int) -> str:
    claim = machines[0][1][place].claim
    several = len(machines) > 1
    rows = []
    for text, kind, machine, *numbers, outcome in _reading_rows(machines, place):
        word, _, reason = outcome.partition(": ")
        cells = [f"<td>{escape(kind)}</td>", *([f"<td>{escape(machine)}</td>"] if several else [])]
        cells += [*map(number_cell, numbers), f"<td>{chip(word, _CHIPS[word])} {escape(reason)}</td>"]
        rows.append(row(escape(text), cells, "words"))
    head = [
        (name, "first" if not number_ else "number" if 2 < number_ < 8 else "")
        for number_, name in enumerate(_READINGS)
        if several or name != "machine"
    ]
    content = f"{table(head, rows)}\n<p>{escape(claim.why)}.</p>"
    return f'<div id="{claim.name}">{section(claim.title, _lead(claim), content)}</div>'


def _contrast_row(one: Contrast) -> str:
    layout, batching, policy, *numbers, word, latency = _contrast_cells(one)
    cells = [f"<td>{escape(batching)}</td>", f"<td>{escape(policy)}</td>", *map(number_cell, numbers)]
    cells += [f"<td>{chip(text, _CHIPS[text])}</td>" for text in (word, latency)]
    return row(escape(layout), cells)
