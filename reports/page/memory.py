"""KV memory over the time of a run: what is reserved, what holds a token, what is lost to fragmentation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from reports.markup import section
from reports.page.inside import Inside
from reports.page.series import dot
from reports.page.stills import memory_chart

_MOST_CARDS = 6


def memory_section(insides: Sequence[Inside]) -> str:
    """A card for each run whose memory is known; simulated twins are left out, they hold the same."""
    cards = []
    for inside in [inside for inside in insides if not inside.one.dashed][:_MOST_CARDS]:
        memory = inside.chronicle.memory
        if memory is None:
            continue
        heading = f"<h3>{dot(inside.one)}{escape(inside.one.label)}</h3>" if len(insides) > 1 else ""
        chart = memory_chart(f"memory-{inside.one.colour}", inside.one, memory, inside.origin_ns, len(insides) == 1)
        cards.append(f'<div class="card">{heading}{chart}</div>')
    if not cards:
        return ""
    lead = (
        "Above: token slots reserved (light) and those that hold a token (dark), of all there are. Below: "
        "internal fragmentation, (reserved − held) / reserved, and dashed external fragmentation, free slots that "
        "cannot serve the waiting head / free slots. Means over time."
    )
    kind = "charts one" if len(cards) == 1 else "charts two"
    return section("KV memory over time", lead, f'<div class="{kind}">{"".join(cards)}</div>')
