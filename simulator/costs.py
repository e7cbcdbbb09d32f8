"""What a step costs: the interface of every cost model. The models are in ``recorded`` and ``roofline``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scheduler.plan import Layout, StepColumns, StepFeatures
from simulator.bounds import Floors, StepFloor
from simulator.warmth import Warmth


class CostError(ValueError):
    """Costs that cannot be had; the message is one line for the user."""


#: one number for all steps, or one a step
PerStep = int | npt.NDArray[np.int64]


def whole_ns(total: Any) -> PerStep:
    """Nanoseconds of one step or of each of many, rounded to whole ones."""
    if isinstance(total, np.ndarray):
        ns: npt.NDArray[np.int64] = np.rint(total).astype(np.int64)
        return ns
    return round(float(total))


class CostModel(Protocol):
    """Predicts the time of each step of a stretch, in integer nanoseconds (each step rounded, then summed).

    ``name`` is what ``--costs`` was given. ``kv_tokens`` is the KV capacity of the hardware that the model stands
    for and ``context_tokens`` the longest sequence its model takes, or ``None`` where it does not know them.
    """

    @property
    def name(self) -> str: ...

    @property
    def kv_tokens(self) -> int | None: ...

    @property
    def context_tokens(self) -> int | None: ...

    def device_ns(self, columns: StepColumns) -> PerStep:
        """Time on the device: ``int64[columns.repeat]``, or an ``int`` that holds for each step."""

    def host_ns(self, columns: StepColumns) -> PerStep:
        """Time on the host around the device's, likewise."""


#: (``fixed``, ``column``, ``unit_ns``, ``host_ns``): a decode step that looks at n KV columns takes (``fixed`` + n x
#: ``column``) x ``unit_ns`` on the device, in this order and rounded to whole nanoseconds, and ``host_ns`` on the host
DecodeLine = tuple[float, float, float, int]


@runtime_checkable
class TellsOverlap(CostModel, Protocol):
    """A cost model that knows what steps take which are planned while another runs."""

    @property
    def warmth(self) -> Warmth | None:
        """What a rest of the card does to steps of prompts, where that is known."""

    def overlapped(self) -> TellsOverlap:
        """The costs of such steps."""

    def together_ns(self, columns: StepColumns, device: PerStep, host: PerStep) -> PerStep:
        """The larger of the two, where they vary the mean of it: ``host`` is what the host does before the steps of
        ``columns`` can begin, ``device`` what the device has to do meanwhile, of the step before each."""

    def launching_ns(self, columns: StepColumns) -> PerStep:
        """What the host goes on launching of a step that the device has begun already; a graph is launched at once, so
        that its launch is part of ``host_ns``."""


@runtime_checkable
class LinearDecode(Protocol):
    """A cost model whose decode steps, other things equal, lie on a line: a short stretch needs no arrays."""

    def decode_line(self, features: StepFeatures) -> DecodeLine | None:
        """The line of a decode step and of those that follow it, whose columns are more; exactly what ``device_ns`` and
        ``host_ns`` give. ``None`` where they lie on none."""


@dataclass(frozen=True)
class IntegerCosts:
    """A linear cost in whole nanoseconds: exact on every machine, for the padding-waste gate and for tests.

    A step costs ``step_ns``, ``token_ns`` for each prompt token, ``row_ns`` for each decode row, ``column_ns`` for each
    token whose KV is read, and ``swap_token_ns`` for each token whose KV is moved to or from host memory.
    """

    step_ns: int = 9_500_000
    row_ns: int = 40_000
    token_ns: int = 90_000
    column_ns: int = 330
    name: str = "integer"
    kv_tokens: int | None = None
    context_tokens: int | None = None
    swap_token_ns: int = 0

    def device_ns(self, columns: StepColumns) -> PerStep:
        tokens = columns.new_tokens_computed
        rows = {"prefill": 0, "mixed": columns.decode_rows, "decode": tokens}[columns.kind]
        kv = columns.kv_tokens_read if columns.layout == "paged" else columns.rows_computed * columns.longest_context
        step_ns = self.step_ns + self.swap_token_ns * columns.swapped_tokens
        return step_ns + self.token_ns * (tokens - rows) + self.row_ns * rows + self.column_ns * kv

    def host_ns(self, columns: StepColumns) -> PerStep:
        return 0

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`."""
        return {
            "prefill": (StepFloor(self.step_ns, self.token_ns, self.column_ns),),
            "decode": (StepFloor(self.step_ns, self.row_ns, self.column_ns),),
        }


#: the prompt whose prefill says what a prompt's token costs
TYPICAL_PROMPT = 512


def prefill_token_ns(costs: CostModel, layout: Layout) -> int:
    """Time to prefill a prompt of 512 tokens, a token's part of it: whole microseconds in nanoseconds, at least one.

    A constant of the run for policies that reckon with prefill times, coarse so that costs fitted again give the same.
    """
    tokens = TYPICAL_PROMPT
    pairs = tokens * (tokens + 1) // 2
    columns = StepColumns(
        layout=layout,
        kind="prefill",
        repeat=1,
        rows=1,
        rows_computed=1,
        new_tokens=tokens,
        new_tokens_computed=tokens,
        context_tokens=pairs,
        kv_columns_computed=tokens * tokens if layout == "padded" else pairs,
        kv_tokens_read=tokens,
        longest_context=tokens,
        sampled_rows=1,
    )
    step_ns = int(np.sum(costs.device_ns(columns))) + int(np.sum(costs.host_ns(columns)))
    return max(1, round(step_ns / tokens / 1000)) * 1000
