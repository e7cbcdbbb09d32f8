"""The compiled core is the same scheduler in the same simulator: it agrees with the slow reference as plain Python."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or find_spec("mypyc") is None or find_spec("setuptools") is None,
    reason="needs a C compiler, mypy and setuptools",
)


def run(folder: Path, *command: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_compiled_core_agrees_with_the_slow_reference(tmp_path: Path) -> None:
    for name in ("scheduler", "simulator", "workloads", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", tmp_path)
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace", LOCKSTEP_COMPILE="1", LOCKSTEP_COMPILE_LEVEL="0")

    for module in ("scheduler.scheduler", "simulator.replica"):
        place = run(tmp_path, "-c", f"import {module}; print({module}.__file__)")
        assert not place.strip().endswith(".py")

    run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/scheduler/test_slow_reference.py",
        "-k", "agree and (fcfs or bucket or srpt or mlfq or vtc)")  # fmt: skip
    run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/simulator/test_replica.py",
        "tests/scheduler/test_fast_forward.py", "-k", "not azure and (replica or fcfs or bucket)")  # fmt: skip
