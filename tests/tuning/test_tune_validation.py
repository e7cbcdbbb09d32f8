"""The best settings on the engine, on a random model: run, gone on with, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench

pytestmark = pytest.mark.usefixtures("small_model")


def tuned(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    return found


def test_the_best_and_the_baselines_are_run_and_judged(given: list[str], space: Path, tmp_path: Path) -> None:
    argv = [*given, "--space", str(space), "--out", str(tmp_path / "out"), "--validate-top", "1", "--rounds", "1",
            "--validate-requests", "10", "--validate-rounds", "1", "--force"]  # fmt: skip
    code = bench.main(argv)
    found = tuned(tmp_path / "out")["validation"]
    print(json.dumps(found, indent=1))
    assert code == (0 if found["stands"] else 1)
