"""The costs that ``--costs`` names, and what is said of them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from core.folders import experiment_folders
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from simulator.calibration import project
from simulator.costs import CostError, CostModel
from simulator.profiles import (
    Profile,
    is_profile_file,
    profile_costs,
    profile_names,
    profile_of,
    profile_path,
    read_profile,
)
from simulator.profiles import title as profile_title
from simulator.projection import ProjectedCosts
from simulator.recorded import RecordedCosts, recorded_costs
from simulator.roofline import RooflineCosts, roofline


def read_costs(spec: str) -> CostModel:
    """The cost model that ``--costs`` names."""
    if spec.startswith("roofline:"):
        parts = spec.split(":")
        if len(parts) != 3:
            raise CostError(f"costs {spec!r}: a roofline is roofline:GPU:MODEL, such as roofline:a100-40gb:qwen-7b")
        return roofline(parts[1], parts[2])
    if spec.startswith("project:"):
        return _projected(spec)
    place = Path(spec)
    if is_profile_file(place):
        return profile_costs(place, spec)
    if place.exists():
        return recorded_costs(*experiment_folders(place))
    if spec in profile_names():
        return profile_costs(profile_path(spec), spec)
    raise CostError(
        f"costs {spec!r}: neither a run folder nor roofline:GPU:MODEL nor project:PROFILE:GPU, and {_no_profile(spec)}"
    )


def _projected(spec: str) -> ProjectedCosts:
    """The costs ``project:PROFILE:GPU`` or ``project:PROFILE:GPU:MODEL``."""
    parts = spec.split(":")[1:]
    if len(parts) not in (2, 3) or not all(parts):
        raise CostError(
            f"costs {spec!r}: a projection is project:PROFILE:GPU or project:PROFILE:GPU:MODEL, such as "
            f"project:h100-qwen-7b:a100-80gb"
        )
    origin, gpu = parts[:2]
    profile, data = _profile(origin)
    try:
        return project(spec, profile, gpu, parts[2] if len(parts) == 3 else None, data)
    except CostError as error:
        raise CostError(f"costs {spec!r}: {error}") from None


def _profile(name: str) -> tuple[Profile, bytes]:
    """The recording that a projection starts from, a profile or a run folder, and the bytes that it was read from."""
    place = Path(name)
    if place.is_dir():
        folders = experiment_folders(place)
        return profile_of(folders), b"".join((folder / "steps.csv").read_bytes() for folder in folders)
    if name in profile_names():
        place = profile_path(name)
    elif not is_profile_file(place):
        raise CostError(f"costs: {name!r} is no run folder, and {_no_profile(name)}")
    return read_profile(place), place.read_bytes()


def _no_profile(name: str) -> str:
    names = profile_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"no profile (profiles: {', '.join(names) or 'none'}){f'; did you mean {near[0]}?' if near else ''}"


def cost_notes(costs: CostModel, config: SchedulerConfig) -> dict[str, Any]:
    """Where costs are from and how good they are, for the manifest, and what of ``config`` nobody has recorded."""
    if isinstance(costs, RooflineCosts):
        return {"projection": f"{costs.gpu.title}, {costs.gpu.measured}; not measured on that GPU"}
    if isinstance(costs, ProjectedCosts):
        return costs.notes()
    if isinstance(costs, RecordedCosts):
        notes: dict[str, Any] = {
            "tp": costs.tp,
            "fit_error": {f"{layout} {kind}": round(error, 4) for (layout, kind), error in costs.errors.items()},
            "sha256": {"costs": costs.sha256},
        }
        if "hardware" in costs.about:
            notes["costs_of"] = profile_title(costs.about)
        composed = compose(config)
        if composed.phase == "mixed" and (config.layout, "mixed") not in costs.device:
            notes["mixed_steps"] = "costed from prefill and decode steps: too few mixed ones were recorded"
        if composed.swaps:
            swap_ns = costs.swap_token_ns.get(config.layout)
            notes["swaps"] = (
                "taken to cost nothing: none was recorded" if swap_ns is None else f"{swap_ns:.0f} ns a token, recorded"
            )
        return notes
    return {}


def own_costs(folder: Path) -> CostModel | None:
    """Costs fitted to the run itself: for its padding waste in time."""
    try:
        return recorded_costs(folder)
    except CostError:
        return None
