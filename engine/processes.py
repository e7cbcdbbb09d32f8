"""Processes that run a module of ours, with one end of a socket in their hands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping


def search_path() -> str:
    """For ``PYTHONPATH``: where this process finds modules, so that another finds the same ones."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def start_module(module: str, end: int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """``python -m MODULE END``, which inherits the file descriptor ``end``.

    ``environment``: what it has besides ours, where ours does not say otherwise.

    It is in a process group of its own: Ctrl-C in the terminal is for the process that has started it, whose it is to
    end it then.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, str(end)],
        env={**(environment or {}), **os.environ, "PYTHONPATH": search_path()},
        pass_fds=[end],
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
