"""Where a run asked a cost model for more than was recorded, so that its times are guessed at."""

from __future__ import annotations

import pandas as pd

from reports.waste import column
from simulator.costs import CostModel
from simulator.recorded import LIMITED, RecordedCosts

_TITLES = {
    "new_tokens_computed": "tokens",
    "rows_computed": "rows",
    "decode_rows": "decode rows",
    "longest_context": "a context",
}


def beyond_recorded(steps: pd.DataFrame, costs: CostModel | None) -> list[str]:
    """A sentence for each feature of ``steps.csv`` that goes beyond what ``costs`` were recorded on, if they were."""
    found: list[str] = []
    if not isinstance(costs, RecordedCosts):
        return found
    for (layout, kind), group in steps.groupby(["layout", "kind"]):
        recorded = costs.most.get((str(layout), str(kind)), {})
        repeat = column(group, "repeat")
        for name in LIMITED[str(kind)]:
            # the contexts of a stretch grow with each of its steps
            grown = repeat - 1 if name == "longest_context" else 0
            largest = column(group, name) + grown
            limit = recorded.get(name)
            if limit is None or int(largest.max()) <= limit:
                continue
            past = largest > limit
            steps_past = (
                int((largest - limit)[past].clip(max=repeat[past]).sum())
                if name == "longest_context"
                else (int(repeat[past].sum()))
            )
            found.append(
                f"{layout} {kind} steps of up to {int(largest.max()):,} {_TITLES[name]} (recorded to {limit:,}) in "
                f"{100 * steps_past / int(repeat.sum()):.2g} % of them".replace("a context", "tokens of context")
            )
    return found
