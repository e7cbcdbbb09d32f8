"""What an engine's host does for a step, beside what its device does: medians of recorded steps, by kind and size.

``python benchmarks/host_work.py RUN [RUN ...]``, where ``RUN`` is the folder of a run on a GPU with ``--overlap``, with
its ``steps.csv``, or a profile of such steps.

Of steps that were launched while others ran, as graphs: ``work`` is what the host did from one wait for the device to
the next, ``launch`` its part that hands the work over, ``device`` the time of the device. Where ``work`` is the larger,
the host decides. Of a run's folder also how often the host was away: decode steps that came behind another and took
more than a millisecond beyond their device time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

# this folder's simulator.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from simulator.profiles import read_profile  # noqa: E402
from simulator.recorded_rows import read_recorded  # noqa: E402
from simulator.step_cost import axis  # noqa: E402

#: rows of a decode step, tokens of a step with prompts
SIZES = {"decode": (0, 8, 16, 32, 64, 128, 256), "prefill": (0, 128, 512, 1024, 2048), "mixed": (0, 512, 1024, 2048)}


def steps_of(place: Path) -> pd.DataFrame:
    """The steps of a run's folder, or of a profile."""
    return read_recorded(place) if place.is_dir() else read_profile(place).steps


def host_work(steps: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds, a row for each kind and size of step."""
    seen = steps[(steps["overlap"] > 0) & (steps["graph_rows"] > 0) & (steps["work_ns"] > 0)]
    found = []
    for kind, sizes in SIZES.items():
        of_kind = seen[seen["kind"] == kind]
        for size, group in of_kind.groupby(pd.cut(axis(kind, of_kind), sizes), observed=True):
            median = group[["work_ns", "launch_ns", "device_ns"]].median() / 1e6
            row = {"kind": kind, "size": f"{size.left + 1} to {size.right}", "steps": len(group)}
            row |= {name.removesuffix("_ns"): value for name, value in median.items()}
            found.append(row | {"host longer": (group["work_ns"] > group["device_ns"]).mean()})
    return pd.DataFrame(found)


#: a host that is late by so much was taken away
AWAY_NS = 1e6


def away(folder: Path) -> str:
    """How often the host of a run was away, and for how much of the time of its decode steps."""
    steps = pd.read_csv(folder / "steps.csv")
    decodes = (steps["kind"] == "decode") & (steps["overlap"] > 0)
    took_ns = steps["end_ns"].diff()[decodes & decodes.shift(fill_value=False)]
    beyond_ns = took_ns - steps["device_ns"][took_ns.index]
    lost_ns = beyond_ns[beyond_ns > AWAY_NS]
    share = lost_ns.sum() / took_ns.sum()
    return f"host away: {len(lost_ns)} of {len(took_ns):,} decode steps, {share:.1%} of their time"


def main(places: list[str]) -> None:
    for place in places:
        print(f"{place}: rows of a decode step, tokens of prompts; milliseconds, median")
        table = host_work(steps_of(Path(place)))
        print(table.to_string(index=False, formatters={"host longer": "{:.0%}".format}, float_format="{:.2f}".format))
        if Path(place).is_dir():
            print(away(Path(place)))


if __name__ == "__main__":
    main(sys.argv[1:])
