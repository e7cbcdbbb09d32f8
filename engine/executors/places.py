"""What the fused executor's host keeps of the sequences that hold KV: each has a *place*, and arrays are over those."""

from __future__ import annotations

import numpy as np

from engine.draws import seed_key
from engine.steps import SequenceState


class Places:
    """``count`` places, for sequences of up to ``width`` blocks.

    ``blocks`` ``int64[count, width]`` are those that the device's table names, of each place the first ``named``.
    ``temperatures`` and ``seed_keys`` say how a sequence's tokens are drawn, and that is all where it is ``plain``.
    """

    def __init__(self, count: int, width: int) -> None:
        #: the place of each sequence, by number
        self.of: dict[int, int] = {}
        self._free = list(range(count - 1, -1, -1))
        self.blocks = np.zeros((count, width), dtype=np.int64)
        self.named = np.zeros(count, dtype=np.int64)
        self.temperatures = np.zeros(count, dtype=np.float32)
        self.seed_keys = np.zeros(count, dtype=np.int64)
        self.plain = np.ones(count, dtype=bool)

    def __len__(self) -> int:
        """Those that are taken."""
        return len(self.of)

    def take(self, number: int, state: SequenceState) -> int:
        """The place of the sequence, a new one if it has none."""
        place = self.of.get(number)
        if place is None:
            place = self.of[number] = self._free.pop()
            self.named[place] = 0
            self.temperatures[place] = state.sampling.temperature
            self.seed_keys[place] = seed_key(state.seed)
            self.plain[place] = state.plain
        return place

    def leave(self, number: int) -> None:
        """The sequence holds no KV any more; one that has no place is ignored."""
        place = self.of.pop(number, None)
        if place is not None:
            self._free.append(place)
