"""The seed's claims, read from ``claims.yaml``, and what they need."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from core.claims.runs import RUNS
from core.reproduce.alignment import first_aligned, lengths_by_step
from reports.claims import Claim, Measured, Reading

#: what needs no run
ALIGNMENT, ARITHMETIC = "alignment", "arithmetic"


def _read() -> dict[str, Claim]:
    text = files("core.claims").joinpath("claims.yaml").read_text(encoding="utf-8")
    claims = [_claim(**entry) for entry in yaml.safe_load(text)]
    return {claim.name: claim for claim in claims}


def _claim(readings: list[dict[str, Any]], **words: str) -> Claim:
    return Claim(readings=tuple(_reading(**reading) for reading in readings), **words)


def _reading(others: list[str] | None = None, **values: Any) -> Reading:
    return Reading(others=tuple(others or ()), **values)


CLAIMS: dict[str, Claim] = _read()


def reckoned() -> dict[str, Measured]:
    """What needs no run: the alignment under the scheduler's own SJF, and a division."""
    return {
        ALIGNMENT: Measured({0: {"aligned_at": float(first_aligned(lengths_by_step(), 4))}}),
        ARITHMETIC: Measured({0: {"rate_share": 60 / 209.21}}),
    }


def runs_of(claim: Claim) -> tuple[str, ...]:
    """The names of the runs that a claim needs, each once."""
    names = dict.fromkeys(name for reading in claim.readings for name in reading.runs)
    return tuple(name for name in names if name in RUNS)
