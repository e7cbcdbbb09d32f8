"""Where a run asked a cost model for more, or less, than was recorded, so that its times are guessed at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.waste import column
from simulator.costs import CostModel
from simulator.recorded import LIMITED, RecordedCosts

_TITLES = {
    "new_tokens_computed": "tokens",
    "rows_computed": "rows",
    "decode_rows": "decode rows",
    "longest_context": "tokens of context",
    "kv_tokens_read": "KV tokens in all",
}
#: features below whose smallest recorded value a cost is no less: it is taken for too much
_FLAT_BELOW = ("new_tokens_computed", "rows_computed")


def beyond_recorded(steps: pd.DataFrame, costs: CostModel | None, prefix_hit: float = 0.0) -> list[str]:
    """A sentence for each feature of ``steps.csv`` that goes beyond what ``costs`` were recorded on, if they were.

    ``prefix_hit``: the share of the prompt tokens that were looked up which the prefix cache had.
    """
    found: list[str] = []
    if not isinstance(costs, RecordedCosts):
        return found
    if prefix_hit and not costs.shares_prefixes:
        found.append(
            f"rows that share the beginnings of their prompts ({100 * prefix_hit:.2g} % of prompt tokens are from the "
            f"prefix cache; none was recorded), which a device may read faster than as many of their own"
        )
    for (layout, kind), group in steps.groupby(["layout", "kind"]):
        key = (str(layout), str(kind))
        repeat = column(group, "repeat")
        for name in LIMITED[str(kind)]:
            most, least = costs.most.get(key, {}).get(name), costs.least.get(key, {}).get(name)
            first, growth = column(group, name), _growth(group, name)
            last = first + growth * (repeat - 1)
            if most is not None and int(last.max()) > most:
                # of a stretch the last steps, each larger than the one before by what it grows
                grown = -(-(last - most) // np.maximum(growth, 1))
                past = np.where(growth > 0, grown.clip(0, repeat), repeat * (first > most))
                found.append(
                    f"{layout} {kind} steps of up to {int(last.max()):,} {_TITLES[name]} (recorded to {most:,}) in "
                    f"{_share(past, repeat)}"
                )
            if least is not None and name in _FLAT_BELOW and int(first.min()) < least:
                title = _TITLES[name].removesuffix("s" if first.min() == 1 else " ")
                found.append(
                    f"{layout} {kind} steps of only {int(first.min()):,} {title} (recorded from {least:,}) in "
                    f"{_share(repeat * (first < least), repeat)}"
                )
    return found


def _growth(group: pd.DataFrame, name: str) -> npt.NDArray[np.int64]:
    """What each step of a stretch has more of a feature than the one before."""
    rows = column(group, "rows")
    if name == "kv_tokens_read":
        return rows
    return np.full_like(rows, name == "longest_context")


def _share(past: npt.NDArray[np.int64], repeat: npt.NDArray[np.int64]) -> str:
    return f"{100 * int(past.sum()) / int(repeat.sum()):.2g} % of them"
