"""What a run was made with: the machine, the versions of packages, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("lockstep", "torch", "transformers", "simpy", "numpy", "pandas")


def versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def hardware(gpus: Iterable[int] = (0,)) -> str:
    """This machine, in words, with those ``gpus`` that it has."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    text = f"{cpu}, {os.cpu_count()} cores"
    try:
        import torch
    except ImportError:
        return text
    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(gpu) for gpu in gpus if gpu < torch.cuda.device_count())
        found = " + ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
        text = f"{found}, {text}"
    return text


def git_commit() -> str | None:
    """The commit that the code was at, with ``-dirty`` where it was changed since."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
