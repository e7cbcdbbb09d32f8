"""Step costs fitted to a recorded run: device and host time apart, from that run's ``steps.csv``.

A fit for each layout and kind of step, on the steps that moved no KV. What steps that did move some took longer than
their fit says is the time of the swap: so many nanoseconds a token on each layout. A step that was planned while the
one before ran shows only the host time that the device's did not hide, and is left out of the fits of host time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import nnls

from scheduler.plan import Layout, StepColumns
from simulator.bounds import ROUNDING_NS, Floors, StepFloor
from simulator.costs import CostError, PerStep

#: what a step's time is made of, besides a constant: slots of the matrix products, and KV columns of attention
TERMS = ("new_tokens_computed", "kv_columns_computed", "rows_computed")

#: fewer recorded steps of a kind than this do not make a fit
FEWEST_STEPS = 3

Key = tuple[str, str]

#: columns that files from before there were mixed steps, swaps and overlap do not have: nothing of it happened
NEW_COLUMNS = ("decode_rows", "decode_context_tokens", "swapped_tokens", "overlap")


@dataclass(frozen=True)
class LinearCost:
    """``constant + sum(weight x feature)`` nanoseconds, no term negative; ``error`` is the mean of |error| / mean."""

    constant: float
    weights: dict[str, float]
    steps: int
    error: float

    def total(self, features: Any) -> Any:
        """Of anything that has the terms as its attributes or keys of numbers or arrays; not rounded."""
        total: Any = self.constant
        for term, weight in self.weights.items():
            total = total + weight * getattr(features, term)
        return total

    def floor(self, kind: str) -> StepFloor:
        """What no step can be faster than; a decode step computes one token a row."""
        rows = self.weights.get("rows_computed", 0.0) if kind == "decode" else 0.0
        token_ns = self.weights.get("new_tokens_computed", 0.0) + rows
        return StepFloor(max(0.0, self.constant - ROUNDING_NS), token_ns, self.weights.get("kv_columns_computed", 0.0))


class Part(NamedTuple):
    """The prompts or the decode rows of mixed steps, by the terms of a cost."""

    new_tokens_computed: Any
    kv_columns_computed: Any
    rows_computed: Any


@dataclass(frozen=True)
class MixedCost:
    """A mixed step put together from the costs of both kinds of step that it is made of, where none was recorded.

    The larger of both constants, once: both read the weights and are launched and sampled as one step. To that, what
    the prompts' slots cost in a prefill, and what the decode rows' slots cost in a decode step.
    """

    prefill: LinearCost
    decode: LinearCost

    def total(self, columns: Any) -> Any:
        """See :meth:`LinearCost.total`."""
        rows, context = columns.decode_rows, columns.decode_context_tokens
        prompts = Part(
            columns.new_tokens_computed - rows, columns.kv_columns_computed - context, columns.rows_computed - rows
        )
        constants = self.prefill.constant + self.decode.constant
        once = max(self.prefill.constant, self.decode.constant)
        return self.prefill.total(prompts) + self.decode.total(Part(rows, context, rows)) - constants + once


@dataclass(frozen=True)
class RecordedCosts:
    """Costs by (layout, kind of step), as they were recorded. KV capacity and context come from that run too.

    ``swap_token_ns``: by layout, what it takes to move a token's KV to or from host memory; where no swap was recorded
    there is none, and swaps cost nothing.
    """

    name: str
    kv_tokens: int | None
    context_tokens: int | None
    sha256: str
    """of the recordings"""
    device: dict[Key, LinearCost]
    host: dict[Key, LinearCost]
    swap_token_ns: dict[str, float] = field(default_factory=dict)
    graph_rows: tuple[int, ...] = ()
    """of the graphs that the recorded decode steps ran as"""

    def device_ns(self, columns: StepColumns) -> PerStep:
        swap_ns = self.swap_token_ns.get(columns.layout, 0.0) * columns.swapped_tokens
        return _rounded(self._cost(self.device, columns).total(columns) + swap_ns)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return _rounded(self._cost(self.host, columns).total(columns))

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`. :class:`CostError` if a kind of
        step was not recorded."""
        self.require(layout)
        floors: Floors = {}
        for kind in sorted(kind for recorded, kind in self.device if recorded == layout):
            device = self.device[layout, kind].floor(kind)
            host = self.host[layout, kind].floor(kind) if (layout, kind) in self.host else StepFloor(0.0, 0.0, 0.0)
            floors[kind] = (device, host) if overlap else (device.plus(host),)
        return floors

    def require(self, layout: Layout) -> None:
        """Raise :class:`CostError` unless prefill and decode steps were recorded on ``layout``, with their host time.

        Mixed steps are costed without, see :class:`MixedCost`.
        """
        for kind in ("prefill", "decode"):
            for fits in (self.device, self.host):
                self._fit(fits, layout, kind)

    def _cost(self, fits: dict[Key, LinearCost], columns: StepColumns) -> LinearCost | MixedCost:
        layout, kind = columns.layout, columns.kind
        if kind != "mixed" or (layout, kind) in fits:
            return self._fit(fits, layout, kind)
        return MixedCost(self._fit(fits, layout, "prefill"), self._fit(fits, layout, "decode"))

    def _fit(self, fits: dict[Key, LinearCost], layout: str, kind: str) -> LinearCost:
        if (layout, kind) in fits:
            return fits[layout, kind]
        recorded = ", ".join(f"{layout} {kind}" for layout, kind in self.device)
        if (layout, kind) in self.device:
            raise CostError(
                f"{self.name} hides the host time of {layout} {kind} steps under the device's: it was recorded with "
                f"--overlap; record a run without"
            )
        raise CostError(
            f"{self.name} has too few {layout} {kind} steps to cost one (recorded: {recorded}); "
            f"record a run with --layout {layout}, or a longer one"
        )


def recorded_costs(*folders: Path) -> RecordedCosts:
    """Fit the runs in ``folders`` together. What cannot be read or fitted is a :class:`CostError`, in one line."""
    frames = [_read_steps(folder) for folder in folders]
    manifest = _read_manifest(folders[0])
    config = manifest.get("config", {})
    steps = pd.concat(frames)
    device, host = _fits(steps, "device_ns", "swapped_tokens"), _fits(steps, "host_ns", "overlap")
    if not device:
        raise CostError(f"{folders[0]}: fewer than {FEWEST_STEPS} steps of any kind were recorded; record a longer run")
    name = "+".join(str(folder) for folder in folders)
    sha256 = hashlib.sha256(b"".join((folder / "steps.csv").read_bytes() for folder in folders)).hexdigest()
    return RecordedCosts(name, config.get("kv_tokens"), config.get("context_tokens"), sha256, device, host,
                         _swaps(steps, device), tuple(config.get("graph_rows") or ()))  # fmt: skip


def _fits(steps: pd.DataFrame, target: str, disturbed_by: str) -> dict[Key, LinearCost]:
    """A fit for each layout and kind of which there are steps enough, without those where ``disturbed_by`` is not 0."""
    return {
        (str(layout), str(kind)): _fit(group, target)
        for (layout, kind), group in steps[steps[disturbed_by] == 0].groupby(["layout", "kind"])
        if len(group) >= FEWEST_STEPS
    }


def _swaps(steps: pd.DataFrame, fits: dict[Key, LinearCost]) -> dict[str, float]:
    """Nanoseconds to move a token, by layout: least squares through 0 of what steps took beyond their fit, >= 0."""
    found: dict[str, float] = {}
    for layout, swapping in steps[steps["swapped_tokens"] > 0].groupby("layout"):
        tokens, beyond = [], []
        for kind, group in swapping.groupby("kind"):
            fit = fits.get((str(layout), str(kind)))
            if fit is not None:
                tokens.append(group["swapped_tokens"].to_numpy(float))
                beyond.append(group["device_ns"].to_numpy(float) - fit.total(group))
        if tokens:
            moved, extra = np.concatenate(tokens), np.concatenate(beyond)
            found[str(layout)] = max(0.0, float(moved @ extra / (moved @ moved)))
    return found


def _read_steps(folder: Path) -> pd.DataFrame:
    path = folder / "steps.csv"
    if not path.is_file():
        raise CostError(f"{folder} is no run folder: it has no steps.csv")
    try:
        steps = pd.read_csv(path, on_bad_lines="skip")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CostError(f"{path} cannot be read: {error}") from error
    missing = [c for c in ("layout", "kind", "repeat", "device_ns", "host_ns", *TERMS) if c not in steps.columns]
    if missing:
        raise CostError(f"{path} lacks the column {missing[0]} (found: {', '.join(steps.columns)})")
    for column in NEW_COLUMNS:
        if column not in steps.columns:
            steps[column] = 0
    for column in ("repeat", "device_ns", "host_ns", *TERMS, *NEW_COLUMNS):
        numbers = pd.to_numeric(steps[column], errors="coerce")
        wrong = steps.loc[numbers.isna() & steps[column].notna(), column]
        if len(wrong):
            raise CostError(f"{path}: {column} is {wrong.iloc[0]!r}; must be a number")
    if (steps["repeat"] > 1).any():
        raise CostError(f"{path} was simulated, not recorded: costs must come from a run of the engine")
    return steps.dropna(subset=["device_ns", "host_ns", *TERMS, *NEW_COLUMNS])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CostError(f"{folder / 'manifest.json'} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config", {}), dict):
        raise CostError(f"{folder / 'manifest.json'} is no run's manifest: it has no settings of a scheduler")
    if manifest.get("world") == "sim":
        raise CostError(f"{folder} was simulated, not recorded: costs must come from a run of the engine")
    return manifest


def _fit(steps: pd.DataFrame, target: str) -> LinearCost:
    """Non-negative least squares: a step can cost nothing less for doing more."""
    measured = steps[target].to_numpy(float)
    terms = np.column_stack([np.ones(len(steps)), *(steps[term].to_numpy(float) for term in TERMS)])
    scale = np.maximum(terms.max(axis=0), 1.0)
    weights, _ = nnls(terms / scale, measured)
    weights = weights / scale
    error = float(np.abs(terms @ weights - measured).mean() / max(measured.mean(), 1.0))
    return LinearCost(float(weights[0]), dict(zip(TERMS, map(float, weights[1:]), strict=True)), len(steps), error)


def _rounded(total: Any) -> PerStep:
    if isinstance(total, np.ndarray):
        ns: npt.NDArray[np.int64] = np.rint(total).astype(np.int64)
        return ns
    return round(float(total))
