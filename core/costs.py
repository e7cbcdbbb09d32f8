"""The costs that ``--costs`` names, and what is said of them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.arguments import DEFAULT_BLOCK_TOKENS, UsageError
from core.folders import experiment_folders
from scheduler.composition import compose, most_mixed_tokens
from scheduler.config import SchedulerConfig
from scheduler.graphs import NO_GRAPHS, Graphs, resized
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

#: a KV memory that is off by no more than this share is the same one: what is left on a GPU moves a little
KV_TOLERANCE = 0.05
_TITLES = {"model": "the model", "dtype": "the dtype", "tp": "a number of GPUs of"}


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


def recording_of(spec: str) -> Profile | None:
    """The recording that ``--costs`` names, a run folder or a profile; ``None`` where it names a projection."""
    return None if spec.startswith(("roofline:", "project:")) else _profile(spec)[0]


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


def check_cost_flags(args: argparse.Namespace, costs: CostModel) -> None:
    """:class:`UsageError` for flags that only mean something for recorded costs, beside others."""
    if isinstance(costs, RecordedCosts):
        return
    if args.jitter:
        raise UsageError(f"--jitter draws from how recorded steps vary, and {args.costs} has none; leave it out")
    if args.force:
        raise UsageError(f"--force takes costs recorded otherwise, and {args.costs} was not recorded; leave it out")


def settle_block_tokens(args: argparse.Namespace, costs: CostModel | None) -> None:
    """KV blocks of the size that ``costs`` were recorded with, where the command does not say another."""
    if args.block_tokens is None:
        recorded = costs.about.get("block_tokens") if isinstance(costs, RecordedCosts) else None
        args.block_tokens = recorded or DEFAULT_BLOCK_TOKENS


def differences(
    costs: CostModel, config: SchedulerConfig, *, kv_asked: bool, engine: Mapping[str, Any] | None = None
) -> list[str]:
    """In what ``costs`` were recorded otherwise than they are to be used: a clause each, none for a projection.

    ``kv_asked``: the command says how much KV memory there is. Less than was recorded is then another hardware; else it
    is what the engine needs for so few sequences. ``engine`` has the ``model``, ``dtype`` and ``tp`` of the runs that
    are simulated, where there is one.
    """
    if not isinstance(costs, RecordedCosts):
        return []
    found: list[str] = []
    if config.layout not in costs.layouts:
        found.append(f"the {' and the '.join(costs.layouts)} layout (simulated: {config.layout})")
    if costs.kv_tokens is not None:
        share = config.kv_tokens / costs.kv_tokens - 1
        if share > KV_TOLERANCE or (kv_asked and share < -KV_TOLERANCE):
            found.append(f"a KV memory of {costs.kv_tokens:,} tokens (simulated: {config.kv_tokens:,})")
    block_tokens = costs.about.get("block_tokens")
    if block_tokens is not None and config.pool == "paged" and block_tokens != config.block_tokens:
        found.append(f"KV blocks of {block_tokens} tokens (simulated: {config.block_tokens})")
    for name, value in (engine or {}).items():
        recorded = costs.about.get(name)
        if recorded is not None and recorded != value:
            found.append(f"{_TITLES[name]} {recorded} (simulated: {value})")
    return found


def refuse(costs: CostModel, differing: Sequence[str]) -> None:
    """:class:`CostError` if there is any difference."""
    if differing:
        raise CostError(
            f"costs {costs.name} were recorded with {', '.join(differing)}; "
            f"change that, record others, or take them all the same with --force"
        )


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
            "fits": costs.fits(),
            "sha256": {"costs": costs.sha256},
        }
        if config.overlap and costs.overlapped_warmth is not None:
            cool, warm = costs.overlapped_warmth[:2]
            notes["warmth"] = {"cool": round(cool, 4), "warm": round(warm, 4)}
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


def graphs_of_costs(costs: CostModel | None, config: SchedulerConfig) -> Graphs:
    """The graphs that the engine of ``costs`` would have under ``config``'s limits."""
    if not isinstance(costs, RecordedCosts | ProjectedCosts):
        return NO_GRAPHS
    rows, tokens, mixed = costs.graphs
    most = most_mixed_tokens(config)
    return Graphs(
        resized(rows, min(config.max_running, config.rows)),
        tuple(size for size in tokens if size <= config.max_prefill_tokens),
        tuple(size for size in mixed if size <= most),
    )


def own_costs(folder: Path) -> CostModel | None:
    """Costs fitted to the run itself: for its padding waste in time."""
    try:
        return recorded_costs(folder)
    except CostError:
        return None
