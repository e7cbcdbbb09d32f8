"""How well recorded costs say what steps take that were left out of the fit: the table of ``docs/costs.md``.

``python benchmarks/fits.py`` fits all profiles that come with the package; ``python benchmarks/fits.py RUN ...`` run
folders or profiles of your own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.costs import read_costs  # noqa: E402
from simulator.profiles import profile_names  # noqa: E402
from simulator.recorded import RecordedCosts  # noqa: E402
from simulator.step_cost import StepCost  # noqa: E402

HEADER = "| costs | of | steps | form | floor, ms | mean error | bias | left out |"


def main(specs: Sequence[str]) -> None:
    """Print the table for ``specs``."""
    print(HEADER, "|---" * (HEADER.count("|") - 1) + "|", sep="\n")
    seconds = []
    for spec in specs or profile_names():
        started_s = time.perf_counter()
        costs = read_costs(spec)
        seconds.append(f"{spec} {time.perf_counter() - started_s:.1f} s")
        if isinstance(costs, RecordedCosts):
            for what, fits in (
                ("device", costs.device), ("device, overlapped", costs.overlapped_device), ("host", costs.host),
            ):  # fmt: skip
                for (layout, kind), cost in fits.items():
                    print(_row(spec, f"{layout} {kind}, {what}", cost))
    print(f"\nread and fitted in: {', '.join(seconds)}", file=sys.stderr)


def _row(spec: str, of: str, cost: StepCost) -> str:
    quality = cost.quality
    held_out = quality.held_out is not None
    cells = (
        spec,
        of,
        f"{quality.steps:,}",
        cost.form,
        f"{cost.floor / 1e6:.2f}" if cost.floor else "",
        f"{100 * (quality.held_out or quality.error):.1f} %{'' if held_out else ' (of the fit)'}",
        "" if quality.bias is None else f"{100 * quality.bias:+.1f} %",
        f"{quality.interruptions} ({quality.interrupted_ns / 1e6:,.0f} ms)" if quality.interruptions else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
