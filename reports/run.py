"""A run as reports see it: its manifest, its tables, its gaps and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.histogram import Histogram


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder, read.

    Of the manifest, reports read these keys where they are there, and show all others as they are: ``name``, ``label``,
    ``world`` (``real`` or ``sim``; else told from ``mode``), ``mode``, ``command``, ``started_at``, ``seed``,
    ``config`` (with ``policy`` and ``layout``), ``workload``, ``versions``, ``hardware``, ``git_commit``, ``sha256``,
    ``slo`` (milliseconds by objective), ``projection`` (of a simulation of hardware that nobody recorded: what it is a
    projection of). ``gaps`` is ``None`` where the folder has none. ``partial``: the run never
    closed its folder, so ``summary`` was made from what was written.
    """

    folder: Path | None
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    gaps: Histogram | None
    partial: bool
    problems: tuple[str, ...] = ()
    """what of the folder is missing or cannot be read, in words; see :mod:`reports.salvage`"""

    @property
    def name(self) -> str:
        """The run's name: the manifest's, or else the folder's."""
        name = self.manifest.get("name")
        return str(name) if name else self.folder.name if self.folder else "run"

    @property
    def label(self) -> str:
        """What a table calls it: the manifest's label, or else policy and layout, or else the name; a projection says
        that it is one."""
        policy, layout = self.setting("policy"), self.setting("layout")
        label = self.manifest.get("label") or (f"{policy} on {layout}" if policy and layout else self.name)
        return f"{label}, projected" if self.projection else str(label)

    @property
    def projection(self) -> str | None:
        """What it is a projection of, if its time is one of hardware that nobody recorded."""
        text = self.manifest.get("projection")
        return str(text) if text else None

    @property
    def simulated(self) -> bool:
        """Whether its time was simulated."""
        return self.manifest.get("world", self.manifest.get("mode")) in ("sim", "simulated")

    @property
    def world(self) -> str:
        """``simulated`` or ``real``."""
        return "simulated" if self.simulated else "real"

    def setting(self, name: str) -> str:
        """A setting from the manifest's ``config``; empty where it is not there."""
        config = self.manifest.get("config")
        value = config.get(name) if isinstance(config, Mapping) else None
        return "" if value is None else str(value)


def look_up(summary: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a summary; ``None`` where there is none."""
    value: Any = summary
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
