"""How much faster a GPU does matrix products that come after a rest: predicted / measured device time by what it did
just before.

    python benchmarks/clocks.py COSTS RUN ...

``COSTS`` as ``--costs`` takes them; ``RUN``: folders with ``steps.csv`` of runs on that GPU. For steps of prompts,
alone and beside rows, of 700 tokens and more: the share of the 200 ms before each that went to such steps, and what
the costs say of the steps of each share. A GPU whose clock follows its power has a ratio that falls from left to right.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.costs import read_costs  # noqa: E402
from simulator.recorded import RecordedCosts  # noqa: E402
from simulator.recorded_rows import read_recorded  # noqa: E402

WINDOW_NS = 200e6
#: tokens of a step whose products keep a GPU busy
LARGE = 700
#: edges of the shares that are told apart
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.01)
FEWEST = 20


def busy_shares(start_ns: npt.NDArray[Any], device_ns: npt.NDArray[Any], large: npt.NDArray[Any]) -> list[float]:
    """Of each step, the share of the window before it that large steps took."""
    shares, before, total = [], deque[tuple[float, float]](), 0.0
    for start, took, counts in zip(start_ns.tolist(), device_ns.tolist(), large.tolist(), strict=True):
        while before and before[0][0] < start - WINDOW_NS:
            total -= before.popleft()[1]
        shares.append(min(1.0, total / WINDOW_NS))
        if counts:
            before.append((start + took, took))
            total += took
    return shares


def main(spec: str, folders: list[str]) -> None:
    """Print a line for each kind of step of all ``folders`` together."""
    costs = read_costs(spec)
    if not isinstance(costs, RecordedCosts):
        raise SystemExit(f"{spec}: no recorded costs")
    costs = costs.overlapped()
    found: dict[str, list[tuple[float, float, float]]] = {"prefill": [], "mixed": []}
    for folder in folders:
        steps = read_recorded(Path(folder))
        large = steps["kind"].isin(("prefill", "mixed")) & (steps["new_tokens_computed"] >= LARGE)
        shares = np.array(busy_shares(
            steps["start_ns"].to_numpy(np.float64), steps["device_ns"].to_numpy(np.float64), large.to_numpy()
        ))  # fmt: skip
        for kind, told in found.items():
            chosen = (large & (steps["kind"] == kind) & (steps["overlap"] > 0) & (steps["graph_rows"] == 0)).to_numpy()
            cost = costs.device.get(("paged", kind))
            if cost is not None and chosen.any():
                part = steps[chosen]
                device_ns = part["device_ns"].to_numpy(np.float64)
                told += zip(shares[chosen].tolist(), cost.totals(part).tolist(), device_ns.tolist(), strict=True)
    print(f"$ python benchmarks/clocks.py {spec} ({len(folders)} runs)")
    for kind, told in found.items():
        if len(told) >= FEWEST:
            share, predicted, measured = np.array(told).T
            # what a compiler or another machine took is nobody's clock
            usual = measured < 2 * predicted
            place = np.digitize(share, SHARES)
            for number, (low, high) in enumerate(pairwise(SHARES), 1):
                of = usual & (place == number)
                if of.any():
                    ratio = predicted[of].sum() / measured[of].sum()
                    print(f"{kind}, {100 * low:.0f} to {100 * min(high, 1.0):.0f} %: {ratio:.3f} ({of.sum():,} steps)")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
