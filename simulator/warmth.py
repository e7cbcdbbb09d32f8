"""What a GPU's clock follows: how long it has done matrix products, or rested from them.

A card that computes at its full power is clocked down within tens of milliseconds, and up again when it reads memory
or waits. On H100s steps of some hundred prompt tokens took a tenth less after a rest than right behind others like
them; decode steps, which wait for memory, are not affected. How much is told by the recording that costs are fitted to,
see :mod:`simulator.warmth_fit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from scheduler.plan import StepColumns
from simulator.bounds import ROUNDING_NS, StepFloor

#: how fast a card warms and cools: it is 63 % of the way after so long
TIME_NS = 60e6
#: tokens of a step whose products ask a card for its power
LARGE = 256


class Warmth(NamedTuple):
    """A step of ``large`` new tokens or more takes ``cool`` times what costs say on a card that has rested, and
    ``warm`` times on one that has not."""

    cool: float
    warm: float
    large: int = LARGE
    time_ns: float = TIME_NS

    def warms(self, columns: StepColumns) -> bool:
        """Whether a step is large; decode steps are not."""
        return columns.kind != "decode" and columns.new_tokens_computed >= self.large

    def factor(self, heat: float) -> float:
        """Of a step during which the card is at ``heat``, 0 to 1."""
        return self.cool + (self.warm - self.cool) * heat

    def lowered(self, floor: StepFloor) -> StepFloor:
        """What no large step takes less than, whose costs have this floor; it is rounded once more."""
        least = min(1.0, self.cool, self.warm)
        step_ns, *others = (least * part for part in floor)
        return StepFloor(max(0.0, step_ns - ROUNDING_NS), *others)


@dataclass
class Heat:
    """How warm a card is, 0 to 1: it nears 1 while large steps run, and 0 while none does."""

    time_ns: float = TIME_NS
    level: float = 0.0
    since_ns: float = 0.0

    def during(self, start_ns: float, took_ns: float) -> float:
        """The mean over a large step that would start then and take so long."""
        share = took_ns / self.time_ns
        away = 1.0 - self._at(start_ns)
        return 1.0 - away * (1.0 - math.exp(-share)) / share if share > 0 else 1.0 - away

    def run(self, start_ns: float, took_ns: float) -> None:
        """A large step runs from ``start_ns`` on."""
        self.level = 1.0 - (1.0 - self._at(start_ns)) * math.exp(-took_ns / self.time_ns)
        self.since_ns = start_ns + took_ns

    def _at(self, time_ns: float) -> float:
        return self.level * math.exp(-max(0.0, time_ns - self.since_ns) / self.time_ns)
