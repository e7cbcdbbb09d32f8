"""Requests one by one: a lane for each, interactive where scripts run, a still chart of some of them elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from reports.chronicle import STATES, Story
from reports.markup import section
from reports.page.inside import Inside
from reports.page.interactive import json_in_page
from reports.page.stills import lanes_chart, lengths_chart

#: of a time in the page's data, at least: finer than a screen shows
_LEAST_UNIT_NS = 1000
_MOST_UNITS = 10**7

_LEAD = (
    "Each line is a request, from its arrival to its last token. Drag to move, zoom with the buttons, with Ctrl and "
    "the wheel, or by a double click; point at a request for its story."
)
_CLUSTERS_LEAD = (
    "A sequence grows by a token in each step that it is in, and is level while it waits. Lines that run "
    "together are a cluster of equal lengths, which needs no padding; a new request has to catch up before it can join "
    "one. Shown: requests that were admitted one after the other, in the middle of the run."
)


def lanes_section(insides: Sequence[Inside]) -> str:
    """The lanes of all runs; nothing where none served a request."""
    if not insides:
        return ""
    first = insides[0]
    data = json_in_page([_data(inside) for inside in insides])
    still = lanes_chart("lanes", first.one.label, first.stories, first.origin_ns)
    choices = "".join(f'<option value="{i}">{escape(inside.one.label)}</option>' for i, inside in enumerate(insides))
    run = f"<label>Run <select data-control=run>{choices}</select></label>" if len(insides) > 1 else ""
    controls = (
        f'<div class="controls scripted">{run}'
        "<label>Show <select data-control=view><option value=lanes>lanes</option>"
        "<option value=lengths>lengths</option></select></label>"
        "<label>Order <select data-control=order><option value=arrival>arrival</option>"
        "<option value=wait>longest wait</option><option value=e2e>longest E2E</option>"
        "<option value=input>longest input</option><option value=output>longest output</option></select></label>"
        "<label>Input tokens <input data-control=input-least type=number min=0 placeholder=least> – "
        "<input data-control=input-most type=number min=0 placeholder=most aria-label='most input tokens'></label>"
        "<label>Output tokens <input data-control=output-least type=number min=0 placeholder=least> – "
        "<input data-control=output-most type=number min=0 placeholder=most aria-label='most output tokens'></label>"
        "<label><input data-control=admitted type=checkbox> without the queue</label>"
        "<span class=buttons><button type=button data-zoom=in aria-label='zoom in'>+</button>"
        "<button type=button data-zoom=out aria-label='zoom out'>−</button>"
        "<button type=button data-zoom=reset>all</button></span></div>"
    )
    canvas = (
        '<div class="plot scripted"><canvas tabindex=0 role=application aria-describedby=lanes-story '
        'aria-label="Requests over time. Arrow up and down choose a request, left and right move, plus and minus zoom, '
        'Home shows all."></canvas><div class=tip hidden></div></div>'
        '<p class="story scripted" id=lanes-story aria-live=polite>'
        'Choose a request to keep its story here.</p><p class="shown scripted muted"></p>'
    )
    content = (
        f'<div class="card lanes" id="lanes">{_legend(insides)}{controls}{canvas}'
        f'<div class="still">{still}</div>'
        f'<script type="application/json">{data}</script></div>{_notes(insides)}'
    )
    return section("Requests one by one", _LEAD, content)


def clusters_section(insides: Sequence[Inside]) -> str:
    """Length clusters over time, a still chart for each run whose steps are known; simulated twins left out."""
    known = [inside for inside in insides if inside.chronicle.detailed and not inside.one.dashed][:6]
    if not known:
        return ""
    cards = []
    for index, inside in enumerate(known):
        chart = lengths_chart(
            f"lengths-{index}", inside.one.label, inside.stories, inside.origin_ns, wide=len(known) == 1
        )
        heading = f"<h3>{escape(inside.one.label)}</h3>" if len(known) > 1 else ""
        cards.append(f'<div class="card">{heading}{chart}</div>')
    keys = '<ul class="legend"><li><span class="key state-2"></span>grows</li>'
    keys += '<li><span class="key state-3"></span>waits</li></ul>'
    kind = "charts one" if len(known) == 1 else "charts two"
    return section("Length clusters over time", _CLUSTERS_LEAD, f'{keys}<div class="{kind}">{"".join(cards)}</div>')


def _legend(insides: Sequence[Inside]) -> str:
    present = {
        state for inside in insides for story in inside.stories for state, spent in enumerate(story.spent_ns) if spent
    }
    keys = "".join(
        f'<li><span class="block state-{state}"></span>{escape(STATES[state])}</li>' for state in sorted(present)
    )
    return f'<ul class="legend">{keys}</ul>'


def _notes(insides: Sequence[Inside]) -> str:
    """What is left out, and of which runs it is not known who was in which step."""
    notes: dict[str, list[str]] = {}
    for inside in insides:
        who = inside.one.label
        served = int((inside.one.run.requests["outcome"] != "rejected").sum())
        if len(inside.stories) < served:
            text = (
                f"{len(inside.stories):,} of {served:,} requests are shown: the slowest, those that waited longest or "
                "were preempted most, and others at even distances"
            )
            notes.setdefault(text, []).append(who)
        if inside.chronicle.note:
            known = "known in part" if inside.chronicle.detailed else "not known"
            text = f"who was in which step is {known}: {inside.chronicle.note}"
            notes.setdefault(text, []).append(who)
    texts = [
        f"{text[0].upper()}{text[1:]}." if len(names) == len(insides) else f"{', '.join(names)}: {text}."
        for text, names in notes.items()
    ]
    return "".join(f'<p class="muted note">{escape(text)}</p>' for text in texts)


def _data(inside: Inside) -> dict[str, Any]:
    """A run for the page's script: times in units from the first arrival on."""
    stories = inside.stories
    end_ns = max(story.end_ns for story in stories) - inside.origin_ns
    unit_ns = _LEAST_UNIT_NS
    while end_ns // unit_ns > _MOST_UNITS:
        unit_ns *= 10
    table = inside.one.run.requests.set_index("number")
    names = ("id", "prompt_tokens", "output_tokens", "preemptions", "recomputed_tokens", "outcome", "first_token_ns")
    columns = {name: table[name] for name in names}
    requests = []
    for story in stories:
        name, prompt, output, preemptions, recomputed, outcome, first = (
            columns[column].loc[story.number] for column in names
        )
        requests.append(
            [
                str(name), int(prompt), int(output), (story.start_ns - inside.origin_ns) // unit_ns, story.steps,
                int(preemptions), int(recomputed), "" if outcome == "finished" else str(outcome),
                -1 if first < 0 else (int(first) - story.start_ns) // unit_ns,
                [spent // unit_ns for spent in story.spent_ns], _pieces(story, unit_ns),
            ]
        )  # fmt: skip
    return {
        "label": inside.one.label,
        "unit_s": unit_ns / 1e9,
        "end": end_ns // unit_ns,
        "detailed": inside.chronicle.detailed,
        "requests": requests,
    }


def _pieces(story: Story, unit_ns: int) -> list[int]:
    """State, end since the start, and tokens since the piece before, one after the other."""
    flat: list[int] = []
    tokens = 0
    for piece in story.pieces:
        flat += (piece.state, (piece.end_ns - story.start_ns) // unit_ns, piece.tokens - tokens)
        tokens = piece.tokens
    return flat
