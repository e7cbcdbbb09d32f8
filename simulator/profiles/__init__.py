"""Cost profiles: recordings of hardware that others have, in one small file each.

A profile is ``NAME.csv.xz``: a line of JSON behind ``#`` that says what was recorded (hardware, model, KV memory,
versions), and the recorded steps with the columns that fits need. Those in this folder go by their names.
"""

from __future__ import annotations

import io
import json
import lzma
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scheduler.graphs import Graphs
from simulator.costs import CostError
from simulator.recorded import RecordedCosts, costs_of, graphs_of, read_manifest
from simulator.recorded_rows import NEW_COLUMNS, checked_rows, read_recorded
from simulator.step_cost import COST_COLUMNS

SUFFIX = ".csv.xz"
SCHEMA = 1
FOLDER = Path(__file__).parent
COLUMNS = (
    "layout",
    "kind",
    *COST_COLUMNS,
    "graph_rows",
    "swapped_tokens",
    "overlap",
    "device_ns",
    "host_ns",
    "launch_ns",
    "work_ns",
)
#: of a recording's settings, those that costs are told with
_SETTINGS = ("context_tokens", "block_tokens", "max_running", "max_prefill_tokens")
#: what the steps of a profile have in common
_SAME = ("hardware", "model", "dtype", "tp")
#: times are kept to a tenth of a microsecond
_ROUND_NS = 100


class Profile(NamedTuple):
    """``about`` is the header; ``steps`` has :data:`COLUMNS`, a row a step in the order recorded."""

    about: dict[str, Any]
    steps: pd.DataFrame


def profile_names() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))


def profile_path(name: str) -> Path:
    """The file of the profile that comes with the package under ``name``."""
    return FOLDER / f"{name}{SUFFIX}"


def is_profile_file(path: Path) -> bool:
    """Whether ``path`` is named as a profile."""
    return path.name.endswith(SUFFIX)


def write_profile(path: Path, folders: Iterable[Path], beside: Profile | None = None) -> Profile:
    """Make the profile ``path`` of the runs in ``folders``, which were recorded on one machine with one model.

    ``beside``: a recording whose steps go in before theirs, if it is one of the same hardware and model; see
    :func:`joined`. :class:`CostError` for a path that does not end in :data:`SUFFIX` or cannot be written, and for runs
    that differ or are no recordings.
    """
    if not is_profile_file(path):
        raise CostError(f"a profile's name ends in {SUFFIX}; write {path.name + SUFFIX} for {path.name}")
    profile = profile_of(folders)
    about, steps = profile if beside is None else joined(beside, profile)
    costs_of(path.name, about, steps, b"")  # what cannot be fitted is no profile
    text = f"# {json.dumps(about, ensure_ascii=False)}\n{steps.to_csv(index=False, lineterminator=chr(10))}"
    try:
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    except OSError as error:
        raise CostError(f"cannot write {path}: {error.strerror or error}") from error
    return Profile(about, steps)


def profile_of(folders: Iterable[Path]) -> Profile:
    """The profile of the runs in ``folders``, which were recorded on one machine with one model.

    :class:`CostError` for runs that differ or are no recordings.
    """
    places = list(folders)
    manifests = [read_manifest(place) for place in places]
    first = manifests[0]
    for place, manifest in zip(places, manifests, strict=True):
        for what in _SAME:
            if manifest.get(what) != first.get(what):
                raise CostError(
                    f"{place} was recorded on another {what} ({manifest.get(what)}) than {places[0]} "
                    f"({first.get(what)}); a profile has one of each"
                )
    steps = pd.concat([read_recorded(place) for place in places])[list(COLUMNS)].reset_index(drop=True)
    for column in COLUMNS[2:]:
        steps[column] = steps[column].astype("int64")
    for column in ("device_ns", "host_ns", "launch_ns", "work_ns"):
        steps[column] = (steps[column] + _ROUND_NS // 2) // _ROUND_NS * _ROUND_NS
    return Profile(_about(manifests, steps), steps)


def joined(first: Profile, second: Profile) -> Profile:
    """The steps of both, described as the first is but for the second's day, command and commit, and for graphs that
    only the second has; the second alone if they are not of the same hardware and model."""
    if any(first.about.get(what) != second.about.get(what) for what in _SAME):
        return second
    steps = pd.concat([first.steps, second.steps], ignore_index=True)
    told = {name: second.about[name] for name in ("recorded", "command", "git_commit", "versions")}
    told["layouts"] = sorted({*first.about["layouts"], *second.about["layouts"]})
    told |= {name: first.about.get(name) or second.about.get(name) for name in Graphs._fields}
    return Profile({**first.about, **told, "steps": len(steps)}, steps)


def read_profile(path: Path) -> Profile:
    """Read a profile; :class:`CostError`, in one line, for what is none or is of another version."""
    try:
        header, _, table = lzma.decompress(path.read_bytes()).decode().partition("\n")
        about = json.loads(header.removeprefix("#"))
        steps = pd.read_csv(io.StringIO(table))
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise CostError(f"{path} is no cost profile: {str(error).splitlines()[0]}") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise CostError(f"{path} is no cost profile of schema {SCHEMA}")
    missing = [column for column in COLUMNS if column not in (*steps.columns, *NEW_COLUMNS)]
    if missing:
        raise CostError(f"{path} lacks the column {missing[0]}")
    for column in NEW_COLUMNS:
        if column not in steps.columns:
            steps[column] = 0
    steps = checked_rows(path, steps.assign(repeat=1))[list(COLUMNS)]
    return Profile(about, steps.astype(dict.fromkeys(COLUMNS[2:], "int64")))


def profile_costs(path: Path, name: str) -> RecordedCosts:
    """The costs of the profile at ``path``, under ``name``."""
    about, steps = read_profile(path)
    return costs_of(name, about, steps, path.read_bytes())


def title(about: dict[str, Any]) -> str:
    """A profile in a line."""
    return (
        f"{about['hardware']}; {about['model']} {about['dtype']}, {' and '.join(about['layouts'])}; "
        f"{about['steps']:,} steps, {about['recorded']}"
    )


def _about(manifests: list[dict[str, Any]], steps: pd.DataFrame) -> dict[str, Any]:
    first = manifests[0]
    configs = [manifest.get("config", {}) for manifest in manifests]
    capacities = [
        manifest.get("kv_capacity_tokens") or config.get("kv_tokens")
        for manifest, config in zip(manifests, configs, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "hardware": first.get("hardware"),
        "model": first.get("model"),
        "dtype": first.get("dtype"),
        "tp": first.get("tp", 1),
        "layouts": sorted(steps["layout"].unique().tolist()),
        "kv_tokens": max((tokens for tokens in capacities if tokens), default=None),
        **{name: configs[0].get(name) for name in _SETTINGS},
        **graphs_of(configs),
        "steps": len(steps),
        "recorded": str(first.get("started_at", ""))[:10],
        "command": shlex.join(without_flags(shlex.split(str(first.get("command", ""))), "--out", "--name")),
        "git_commit": first.get("git_commit"),
        "versions": first.get("versions"),
    }


def without_flags(words: Iterable[str], *flags: str) -> list[str]:
    """The words of a command without these ``flags`` and their values: where it wrote to is nobody else's."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word.partition("=")[0] not in flags:
            kept.append(word)
        skip = word in flags
    return kept
