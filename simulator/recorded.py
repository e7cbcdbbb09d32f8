"""Step costs fitted to a recorded run: device and host time apart, from that run's ``steps.csv``.

A fit for each layout and kind of step, on the steps that moved no KV. What steps that did move some took longer than
their fit says is the time of the swap: so many nanoseconds a token on each layout.

A step that was planned while the one before ran is another kind of step. Its device time is less, since it was launched
before the device was free, and of its host time only what the device's did not hide can be seen. Where both were
recorded, steps that overlap are costed by the device time of such steps, and by the host time of the others: to that of
a graph the time of launching it comes, which ends before the device begins: see :meth:`RecordedCosts.overlapped`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from scheduler.graphs import NO_GRAPHS, Graphs
from scheduler.plan import Layout, StepColumns
from simulator.bounds import Floors
from simulator.costs import CostError, PerStep, whole_ns
from simulator.fits import CANDIDATES, FEWEST_STEPS, INTERRUPTION, LINEAR, STALL, Candidate, fit
from simulator.jitter import Variation
from simulator.recorded_rows import read_recorded
from simulator.step_cost import MixedCost, Quality, StepCost, axis
from simulator.warmth import Warmth
from simulator.warmth_fit import fitted

Key = tuple[str, str]

#: features that a fit goes on from where more is asked for than was recorded, by kind of step
LIMITED = {
    "prefill": ("new_tokens_computed", "longest_context"),
    "decode": ("rows_computed", "longest_context", "kv_tokens_read"),
    "mixed": ("new_tokens_computed", "decode_rows", "longest_context"),
}


#: steps that were planned and launched while others ran, from which the host's work is told
FEWEST_SEEN = 50
#: share of a step's device time for which its kernels were still being launched, from which it is the launch's
LAUNCHING = 0.9
#: a host that is seen to take more than this share of a step's device time may have let the device wait for the next
PUNCTUAL = 0.05
#: sequences that leave together, at most, in serving; a recording that goes on to fewer rows aborts many
FEW_LEAVE = 2


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
    device: dict[Key, StepCost]
    host: dict[Key, StepCost]
    overlapped_device: dict[Key, StepCost] = field(default_factory=dict)
    """of steps that were planned and launched while another ran, where there were enough"""
    overlapped_host: dict[Key, StepCost] = field(default_factory=dict)
    """what the host does for such a step, its launch too"""
    overlapped_launch: dict[Key, StepCost] = field(default_factory=dict)
    """the launch alone"""
    graph_host: dict[Key, StepCost] = field(default_factory=dict)
    """of :meth:`overlapped` costs: what the host does before a graph can begin"""
    launch: dict[Key, StepCost] = field(default_factory=dict)
    """of :meth:`overlapped` costs: launching kernels one by one, of which the device has begun the first"""
    overlapped_warmth: Warmth | None = None
    """what a rest of the card does to overlapped steps of prompts, where that was seen"""
    warmth: Warmth | None = None
    """of :meth:`overlapped` costs: likewise"""
    swap_token_ns: dict[str, float] = field(default_factory=dict)
    graphs: Graphs = NO_GRAPHS
    """that the recorded steps ran as"""
    tp: int = 1
    """GPUs that the model was divided over"""
    most: dict[Key, dict[str, int]] = field(default_factory=dict)
    """the largest of each feature in :data:`LIMITED` that was recorded"""
    least: dict[Key, dict[str, int]] = field(default_factory=dict)
    """the smallest, likewise"""
    shares_prefixes: bool = False
    """whether rows were recorded of which several read the same KV"""
    about: dict[str, Any] = field(default_factory=dict)
    """what was recorded: of a profile its header"""

    @property
    def layouts(self) -> list[str]:
        """Those that steps were recorded on."""
        return sorted({layout for layout, _ in self.device})

    def overlapped(self) -> RecordedCosts:
        """The costs of steps that are planned while another runs: these ones, where no such steps were recorded."""
        return replace(
            self, device={**self.device, **self.overlapped_device},
            graph_host={**self.graph_host, **self.overlapped_host}, launch={**self.launch, **self.overlapped_launch},
            overlapped_device={}, overlapped_host={}, overlapped_launch={},
            warmth=self.overlapped_warmth or self.warmth, overlapped_warmth=None,
        )  # fmt: skip

    def together_ns(self, columns: StepColumns, device: PerStep, host: PerStep) -> PerStep:
        """The larger of the two, see :class:`~simulator.costs.TellsOverlap`.

        Host time varies: where its mean is a little less than the device's, it is more in many a step. So this is the
        mean of the larger of the two, over the times that the host was seen to take.
        """
        return whole_ns(self._host_cost(columns).quality.larger(device, host))

    def launching_ns(self, columns: StepColumns) -> PerStep:
        """What the host goes on launching of a step that has begun; 0 where no overlapped steps were recorded."""
        cost = None if columns.graph_rows else self.launch.get((columns.layout, columns.kind))
        return 0 if cost is None else whole_ns(cost.total(columns))

    def standing_in(self, layout: Layout) -> RecordedCosts:
        """These costs, with those of another layout for ``layout``: what was recorded on neither is a guess."""
        (other, *_) = self.layouts

        def moved(fits: dict[Key, Any]) -> dict[Key, Any]:
            return {(layout if key[0] == other else key[0], key[1]): found for key, found in fits.items()}

        swaps = {layout if place == other else place: ns for place, ns in self.swap_token_ns.items()}
        return replace(
            self, device=moved(self.device), host=moved(self.host), most=moved(self.most), least=moved(self.least),
            overlapped_device=moved(self.overlapped_device), overlapped_host=moved(self.overlapped_host),
            overlapped_launch=moved(self.overlapped_launch), graph_host=moved(self.graph_host),
            launch=moved(self.launch), swap_token_ns=swaps,
        )  # fmt: skip

    @property
    def errors(self) -> dict[Key, float]:
        """What the predicted device time is off by, as a share of the mean, on steps that were left out of the fit; on
        those of the fit where there were too few to leave any out."""
        return {key: _known_error(cost.quality) for key, cost in self.device.items()}

    def device_ns(self, columns: StepColumns) -> PerStep:
        swap_ns = self.swap_token_ns.get(columns.layout, 0.0) * columns.swapped_tokens
        return whole_ns(self._cost(self.device, columns).total(columns) + swap_ns)

    def host_ns(self, columns: StepColumns) -> PerStep:
        return whole_ns(self._host_cost(columns).total(columns))

    def variation(self, columns: StepColumns) -> Variation:
        """How a step's times vary around what is predicted; see :class:`~simulator.step_cost.Quality`."""
        device, host = self._cost(self.device, columns).quality, self._host_cost(columns).quality
        return Variation(device.spread, host.spread, host.stalled, host.stalls)

    def fits(self) -> dict[str, dict[str, Any]]:
        """Which form each fit has, and how good it is, for the manifest: "device paged decode" and so on."""
        return {
            f"{what} {layout} {kind}": _told(cost)
            for what, fits in (
                ("device", self.device),
                ("host", self.host),
                ("overlapped device", self.overlapped_device),
                ("overlapped host", self.overlapped_host),
                ("overlapped launch", self.overlapped_launch),
            )
            for (layout, kind), cost in fits.items()
        }

    def floors(self, layout: Layout, overlap: bool = False) -> Floors:
        """What no step can be faster than; see :class:`~simulator.bounds.FlooredCosts`. :class:`CostError` if a kind of
        step was not recorded."""
        if overlap and self.overlapped_device:
            return self.overlapped().floors(layout, overlap)
        self.require(layout)
        floors: Floors = {}
        for kind in sorted(kind for recorded, kind in self.device if recorded == layout):
            device = self.device[layout, kind].floors()
            host = self.host[layout, kind].floors()[:1] if (layout, kind) in self.host and not overlap else ()
            if self.warmth is not None and kind != "decode":
                device = tuple(map(self.warmth.lowered, device))
            floors[kind] = tuple(d.plus(h) for d in device for h in host) or device
        return floors

    def require(self, layout: Layout) -> None:
        """Raise :class:`CostError` unless prefill and decode steps were recorded on ``layout``, with their host time.

        Mixed steps are costed without, see :class:`MixedCost`.
        """
        for kind in ("prefill", "decode"):
            for fits in (self.device, self.host):
                self._fit(fits, layout, kind)

    def _cost(self, fits: dict[Key, StepCost], columns: StepColumns) -> StepCost | MixedCost:
        layout, kind = columns.layout, columns.kind
        if kind != "mixed" or (layout, kind) in fits:
            return self._fit(fits, layout, kind)
        return MixedCost(self._fit(fits, layout, "prefill"), self._fit(fits, layout, "decode"))

    def _host_cost(self, columns: StepColumns) -> StepCost | MixedCost:
        at_once = self.graph_host.get((columns.layout, columns.kind)) if columns.graph_rows else None
        return at_once or self._cost(self.host, columns)

    def _fit(self, fits: dict[Key, StepCost], layout: str, kind: str) -> StepCost:
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
    frames = [read_recorded(folder) for folder in folders]
    manifests = [read_manifest(folder) for folder in folders]
    configs = [manifest.get("config", {}) for manifest in manifests]
    divided = sorted({int(manifest.get("tp", 1)) for manifest in manifests})
    if len(divided) > 1:
        numbers = " and ".join(map(str, divided))
        raise CostError(
            f"{', '.join(map(str, folders))} were recorded on {numbers} GPUs; give the costs of one of them"
        )
    about = {
        "kv_tokens": manifests[0].get("kv_capacity_tokens") or configs[0].get("kv_tokens"),
        "context_tokens": configs[0].get("context_tokens"),
        "tp": manifests[0].get("tp", 1),
        "model": manifests[0].get("model"),
        "dtype": manifests[0].get("dtype"),
        "block_tokens": configs[0].get("block_tokens"),
        **graphs_of(configs),
    }
    name = "+".join(str(folder) for folder in folders)
    return costs_of(name, about, pd.concat(frames), b"".join((folder / "steps.csv").read_bytes() for folder in folders))


def graphs_of(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The sizes of graphs that recorded steps ran as, from the settings of the runs: of the first that has any."""
    return {name: next((config[name] for config in configs if config.get(name)), []) for name in Graphs._fields}


def costs_of(name: str, about: Mapping[str, Any], steps: pd.DataFrame, data: bytes) -> RecordedCosts:
    """Fit ``steps``, as :func:`read_recorded` gives them.

    ``about`` has the hardware's ``kv_tokens``, its model's ``context_tokens`` and the graphs that steps ran as, by the
    names of :class:`~scheduler.graphs.Graphs`, and whatever else is to be told of them; ``data`` is what the steps were
    read from.
    """
    steps = steps.assign(late=_late(steps), unusual=_unusual(steps))
    still = steps[steps["swapped_tokens"] == 0]
    overlapped, alone = (dict(_groups(still[(still["overlap"] > 0) == yes])) for yes in (True, False))
    launching = _fits({key: _settled(group) for key, group in alone.items()}, "device_ns", CANDIDATES)
    launched, warmth = _launched(still[still["overlap"] > 0])
    host = _fits(dict(_groups(steps[steps["overlap"] == 0])), "host_ns", (LINEAR,))
    # where each step was planned while another ran, what the host did then is all that is known of it
    seen = {key: _seen_at_work(group) for key, group in overlapped.items() if key not in host}
    host |= _fits({key: group for key, group in seen.items() if len(group) >= FEWEST_SEEN}, "work_ns", (LINEAR,), STALL)
    at_work = _fits(
        {key: _at_work(group, overlapped[key]) for key, group in alone.items() if key in launching and key in launched},
        "work_ns", (LINEAR,), STALL,
    )  # fmt: skip
    launches = _fits({key: _seen_launching(overlapped[key], alone[key]) for key in at_work}, "launch_ns", (LINEAR,))
    device = {**launched, **launching}
    if not device:
        raise CostError(f"{name}: fewer than {FEWEST_STEPS} steps of any kind were recorded; record a longer run")
    return RecordedCosts(
        name=name,
        kv_tokens=about.get("kv_tokens"),
        context_tokens=about.get("context_tokens"),
        sha256=hashlib.sha256(data).hexdigest(),
        device=device,
        host=host,
        overlapped_device={key: cost for key, cost in launched.items() if key in launching},
        overlapped_host=at_work,
        overlapped_launch=launches,
        overlapped_warmth=warmth,
        swap_token_ns=_swaps(steps, device),
        graphs=Graphs(*(tuple(about.get(name) or ()) for name in Graphs._fields)),
        tp=about.get("tp") or 1,
        most=_extremes(steps, "max"),
        least=_extremes(steps, "min"),
        shares_prefixes=bool((steps["shared_kv_tokens"] > 0).any()),
        about=dict(about),
    )


def _launched(overlapped: pd.DataFrame) -> tuple[dict[Key, StepCost], Warmth | None]:
    """What steps that were launched while others ran take of the device, and what a rest of it does to prompts."""

    prompts = overlapped["kind"] != "decode"
    # launched kernel by kernel, in time
    told = prompts & (overlapped["graph_rows"] == 0) & ~overlapped["late"]

    def predict(steps: pd.DataFrame) -> npt.NDArray[np.float64]:
        predicted = np.full(len(steps), np.nan)
        for (layout, kind), cost in _device_fits(steps[prompts]).items():
            of_it = told & (steps["layout"] == layout) & (steps["kind"] == kind)
            predicted[of_it.to_numpy()] = cost.totals(steps[of_it])
        return predicted

    warmth, steps = fitted(overlapped, told.to_numpy(), predict) or (None, overlapped)
    return _device_fits(steps), warmth


def _device_fits(overlapped: pd.DataFrame) -> dict[Key, StepCost]:
    on_time = {key: _on_time(key[1], _settled(group)) for key, group in _groups(overlapped)}
    # a device that is kept busy takes as long for a prompt, whether its kernels are launched together or one by one
    return _fits(on_time, "device_ns", CANDIDATES, apart=("mixed",))


def _at_work(alone: pd.DataFrame, overlapped: pd.DataFrame) -> pd.DataFrame:
    """Steps whose ``work_ns`` is what the host has to do before a graph can begin while another step runs.

    Those that were seen to, where there are enough; else what steps that nothing ran beside show of it, which is more.
    """
    seen = _seen_at_work(overlapped)
    return seen if len(seen) >= FEWEST_SEEN else alone.assign(work_ns=alone["host_ns"] + alone["launch_ns"])


def _seen_at_work(overlapped: pd.DataFrame) -> pd.DataFrame:
    """The graphs among the steps for which the host's work was measured; the usual ones, if there are enough."""
    seen = overlapped[(overlapped["graph_rows"] > 0) & (overlapped["work_ns"] > 0)]
    usual = seen[~seen["unusual"]]
    return usual if len(usual) >= FEWEST_SEEN else seen


def _seen_launching(overlapped: pd.DataFrame, alone: pd.DataFrame) -> pd.DataFrame:
    """Steps whose launches are those of kernels that are launched one by one while nothing runs.

    Where no step was launched ahead, those that overlap are, and go with the device times of their minutes: a host is
    not the same from one to the next. Otherwise a launch may wait for the step that runs.
    """
    seen = overlapped[(overlapped["graph_rows"] == 0) & (overlapped["launch_ns"] > 0)]
    return seen if len(seen) >= FEWEST_SEEN and not (overlapped["work_ns"] > 0).any() else alone


def _settled(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps that nobody left before, if that is most of them: who is aborted in a recording makes room for the first
    chunk of the next prompt, and in the first steps of fewer rows much is new."""
    settled = steps["released"] == 0
    return steps[settled] if settled.sum() >= max(FEWEST_STEPS, len(steps) / 2) else steps


def _on_time(kind: str, overlapped: pd.DataFrame) -> pd.DataFrame:
    """Steps whose device time is their own, where there are enough; the others stand only for sizes that those lack."""
    late, sizes = overlapped["late"], np.asarray(axis(kind, overlapped))
    on_time = overlapped[~late]
    if late.mean() > 0.5 and len(on_time) < FEWEST_SEEN:
        return overlapped
    within = np.asarray(axis(kind, on_time))
    kept: pd.DataFrame = overlapped[~late | (sizes < within.min()) | (sizes > within.max())]
    return kept


def _late(steps: pd.DataFrame) -> pd.Series:
    """Of steps that were launched while others ran, those whose device time has some of the launch, which is the
    host's work: graphs that the device had to wait for, and steps whose kernels were launched one by one until the
    device was nearly done with them."""
    waited = keeps_waiting(steps["host_ns"], steps["device_ns"]).shift(1, fill_value=True)
    unhidden_ns = steps["launch_ns"] - steps["device_ns"].shift(1, fill_value=0)
    graphs = steps["graph_rows"] > 0
    late: pd.Series = (graphs & waited) | (~graphs & (unhidden_ns > LAUNCHING * steps["device_ns"]))
    return late


def keeps_waiting(host_ns: Any, device_ns: Any) -> Any:
    """Whether a step after which the host was seen for ``host_ns`` may have kept the device waiting for the next one:
    of one, or of each of several."""
    return host_ns > PUNCTUAL * device_ns


def _unusual(steps: pd.DataFrame) -> pd.Series:
    """Whether a host has more to do for a step than when graphs follow each other: many sequences left just before it
    or the one before (it was planned while that one ran), or that one was launched kernel by kernel."""
    crowd = steps["released"] > FEW_LEAVE
    return crowd | crowd.shift(1, fill_value=False) | (steps["graph_rows"].shift(1) == 0)


def _extremes(steps: pd.DataFrame, which: Literal["min", "max"]) -> dict[Key, dict[str, int]]:
    return {
        (str(layout), str(kind)): {name: int(group[name].agg(which)) for name in LIMITED[str(kind)]}
        for (layout, kind), group in steps.groupby(["layout", "kind"])
        if kind in LIMITED
    }


def _known_error(quality: Quality) -> float:
    return quality.error if quality.held_out is None else quality.held_out


def _told(cost: StepCost) -> dict[str, Any]:
    quality = cost.quality
    told: dict[str, Any] = {
        "form": cost.form,
        "steps": quality.steps,
        "error": round(_known_error(quality), 4),
        "held_out": quality.held_out is not None,
    }
    if quality.bias is not None:
        told["bias"] = round(quality.bias, 4)
    if cost.floor:
        told["floor_ms"] = round(cost.floor / 1e6, 3)
    if quality.interruptions:
        told["interruptions"] = {"steps": quality.interruptions, "ms": round(quality.interrupted_ns / 1e6, 1)}
    return told


def _groups(steps: pd.DataFrame) -> Iterator[tuple[Key, pd.DataFrame]]:
    """The steps of each layout and kind of which there are enough."""
    for (layout, kind), group in steps.groupby(["layout", "kind"]):
        if len(group) >= FEWEST_STEPS:
            yield (str(layout), str(kind)), group


def _fits(
    groups: Mapping[Key, pd.DataFrame],
    target: str,
    candidates: Sequence[Candidate],
    interruption: float = INTERRUPTION,
    apart: Sequence[str] = ("prefill", "mixed"),
) -> dict[Key, StepCost]:
    """``apart``: the kinds of step whose graphs may have fits of their own."""
    return {
        key: fit(key[1], group, group[target].to_numpy(np.float64), candidates, interruption, apart=key[1] in apart)
        for key, group in groups.items()
    }


def _swaps(steps: pd.DataFrame, fits: dict[Key, StepCost]) -> dict[str, float]:
    """Nanoseconds to move a token, by layout: least squares through 0 of what steps took beyond their fit, >= 0."""
    found: dict[str, float] = {}
    for layout, swapping in steps[steps["swapped_tokens"] > 0].groupby("layout"):
        tokens, beyond = [], []
        for kind, group in swapping.groupby("kind"):
            cost = fits.get((str(layout), str(kind)))
            if cost is not None:
                tokens.append(group["swapped_tokens"].to_numpy(float))
                beyond.append(group["device_ns"].to_numpy(float) - cost.totals(group))
        if tokens:
            moved, extra = np.concatenate(tokens), np.concatenate(beyond)
            found[str(layout)] = max(0.0, float(moved @ extra / (moved @ moved)))
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a recorded run; :class:`CostError` for what is none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CostError(f"{folder / 'manifest.json'} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config", {}), dict):
        raise CostError(f"{folder / 'manifest.json'} is no run's manifest: it has no settings of a scheduler")
    if manifest.get("world") == "sim":
        raise CostError(f"{folder} was simulated, not recorded: costs must come from a run of the engine")
    return manifest
