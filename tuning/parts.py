"""The parts of a workload: what is searched, at growing lengths, and what is held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuning.errors import TuningError
from tuning.objectives import Objective
from tuning.world import Part
from workloads.workload import Row, Workload

#: of the workload, at its end
HELD_OUT = 1 / 3
#: each length is this many times the one before
GROWTH = 3
#: fewer requests say nothing
LEAST = 60
#: lengths at most, the whole searched part included
LENGTHS = 4
#: requests of a part that is held out, at least: as many as a 99th percentile needs
LEAST_HELD_OUT = 100


@dataclass(frozen=True)
class Parts:
    """``rungs``: the parts that a candidate is simulated on, one after the other, the last of them all that is
    searched. ``held_out``: what no search has seen, judged in pieces."""

    rungs: tuple[Part, ...]
    held_out: Part
    total: int

    @property
    def searched(self) -> Part:
        return self.rungs[-1]


def held_out_needed(confidence: float) -> int:
    """Parts that must all agree, before chance alone is less likely than ``1 - confidence`` to make them do so."""
    return max(2, math.ceil(math.log2(1 / (1 - confidence)) - 1e-9))


def parts_of(workload: Workload, confidence: float, objectives: Sequence[Objective] = ()) -> Parts:
    """Cut a workload: two thirds to search, one third held out in as many parts as ``confidence`` needs.

    Raises :class:`TuningError` for a workload that is too short to be that confident.
    """
    total = len(workload)
    count = held_out_needed(confidence)
    held = int(total * HELD_OUT)
    least = max([LEAST_HELD_OUT, *(objective.samples_needed for objective in objectives)])
    if held // count < least:
        needed = math.ceil(count * least / HELD_OUT)
        most = next((share for share in (0.99, 0.95, 0.9, 0.75) if held // held_out_needed(share) >= least), None)
        hint = f", or --confidence {most:g}" if most is not None and most < confidence else ""
        raise TuningError(
            f"workload {workload.name} has {total} requests, too few for a confidence of {confidence:g}: that takes "
            f"{count} parts of {least} requests that the search does not see, and twice as many that it does, "
            f"{needed} in all; give a longer trace{hint}"
        )
    searched = total - held
    held_out = Part(searched, total, whole=True, pieces=count)
    lengths = [searched]
    # of a short part only the second half counts
    shortest = max([LEAST, *(2 * objective.samples_needed for objective in objectives)])
    while len(lengths) < LENGTHS and lengths[0] // GROWTH >= shortest:
        lengths.insert(0, lengths[0] // GROWTH)
    rungs = [_busiest(workload.rows[:searched], length) for length in lengths[:-1]]
    return Parts((*rungs, Part(0, searched, whole=True)), held_out, total)


def _busiest(rows: Sequence[Row], length: int) -> Part:
    """The stretch of ``length`` requests that brings the most tokens a second: where settings differ most."""
    times = np.array([row.arrival_ns for row in rows], np.float64)
    tokens = np.cumsum([0, *(row.prompt_tokens + row.output_tokens for row in rows)])
    starts = np.arange(len(rows) - length + 1)
    spans = times[starts + length - 1] - times[starts]
    brought = tokens[starts + length] - tokens[starts]
    start = int(np.argmax(brought / np.maximum(spans, 1))) if spans.max() > 0 else 0
    return Part(start, start + length)
