"""Step costs fitted to a recorded run: device and host time apart, from that run's ``steps.csv``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class LinearCost:
    """``constant + sum(weight x feature)`` nanoseconds, no term negative; ``error`` is the mean of |error| / mean."""

    constant: float
    weights: dict[str, float]
    steps: int
    error: float

    def ns(self, columns: StepColumns) -> PerStep:
        total: Any = self.constant
        for term, weight in self.weights.items():
            total = total + weight * getattr(columns, term)
        if isinstance(total, np.ndarray):
            ns: npt.NDArray[np.int64] = np.rint(total).astype(np.int64)
            return ns
        return round(float(total))

    def floor(self, kind: str) -> StepFloor:
        """What no step can be faster than; a decode step computes one token a row."""
        rows = self.weights.get("rows_computed", 0.0) if kind == "decode" else 0.0
        token_ns = self.weights.get("new_tokens_computed", 0.0) + rows
        return StepFloor(max(0.0, self.constant - ROUNDING_NS), token_ns, self.weights.get("kv_columns_computed", 0.0))


@dataclass(frozen=True)
class RecordedCosts:
    """Costs by (layout, kind of step), as they were recorded. KV capacity and context come from that run too."""

    name: str
    kv_tokens: int | None
    context_tokens: int | None
    sha256: str
    """of the recordings"""
    device: dict[Key, LinearCost]
    host: dict[Key, LinearCost]

    def device_ns(self, columns: StepColumns) -> PerStep:
        return self._fit(self.device, columns).ns(columns)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return self._fit(self.host, columns).ns(columns)

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`. :class:`CostError` if a kind of
        step was not recorded."""
        self.require(layout)
        floors: Floors = {}
        for kind in sorted(kind for recorded, kind in self.device if recorded == layout):
            device, host = (fits[layout, kind].floor(kind) for fits in (self.device, self.host))
            floors[kind] = (device, host) if overlap else (device.plus(host),)
        return floors

    def require(self, layout: Layout) -> None:
        """Raise :class:`CostError` unless both kinds of step were recorded on ``layout``."""
        for kind in ("prefill", "decode"):
            self._fit_of(self.device, layout, kind)

    def _fit(self, fits: dict[Key, LinearCost], columns: StepColumns) -> LinearCost:
        return self._fit_of(fits, columns.layout, columns.kind)

    def _fit_of(self, fits: dict[Key, LinearCost], layout: str, kind: str) -> LinearCost:
        try:
            return fits[layout, kind]
        except KeyError:
            recorded = ", ".join(f"{layout} {kind}" for layout, kind in fits)
            raise CostError(
                f"{self.name} has too few {layout} {kind} steps to cost one (recorded: {recorded}); "
                f"record a run with --layout {layout}, or a longer one"
            ) from None


def recorded_costs(*folders: Path) -> RecordedCosts:
    """Fit the runs in ``folders`` together. What cannot be read or fitted is a :class:`CostError`, in one line."""
    frames = [_read_steps(folder) for folder in folders]
    manifest = _read_manifest(folders[0])
    config = manifest.get("config", {})
    device: dict[Key, LinearCost] = {}
    host: dict[Key, LinearCost] = {}
    for key, steps in pd.concat(frames).groupby(["layout", "kind"]):
        if len(steps) >= FEWEST_STEPS:
            pair = (str(key[0]), str(key[1]))
            device[pair] = _fit(steps, "device_ns")
            host[pair] = _fit(steps, "host_ns")
    if not device:
        raise CostError(f"{folders[0]}: fewer than {FEWEST_STEPS} steps of any kind were recorded; record a longer run")
    name = "+".join(str(folder) for folder in folders)
    sha256 = hashlib.sha256(b"".join((folder / "steps.csv").read_bytes() for folder in folders)).hexdigest()
    return RecordedCosts(name, config.get("kv_tokens"), config.get("context_tokens"), sha256, device, host)


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
    for column in ("repeat", "device_ns", "host_ns", *TERMS):
        numbers = pd.to_numeric(steps[column], errors="coerce")
        wrong = steps.loc[numbers.isna() & steps[column].notna(), column]
        if len(wrong):
            raise CostError(f"{path}: {column} is {wrong.iloc[0]!r}; must be a number")
    if (steps["repeat"] > 1).any():
        raise CostError(f"{path} was simulated, not recorded: costs must come from a run of the engine")
    return steps.dropna(subset=["device_ns", "host_ns", *TERMS])


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
