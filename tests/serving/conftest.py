"""Servers that tests share: starting an engine takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running_server import RunningServer

from serving.messages import EngineSettings
from serving.server import ServerSettings


@pytest.fixture(scope="session")
def emulated() -> Iterator[RunningServer]:
    """Words that mean nothing, at the pace of a GPU."""
    engine = EngineSettings(
        emulate="roofline:h100:qwen2.5-0.5b",
        scheduler={"policy": "fcfs", "max_running": 32, "kv_tokens": 65536, "context_tokens": 8192},
    )
    with RunningServer(ServerSettings(engine, served_names=("emulated", "second/name"), max_queue=256)) as server:
        yield server


@pytest.fixture(scope="session")
def model() -> Iterator[RunningServer]:
    """The embedded model, on one core: with two it waits for whoever else has one of them."""
    settings = ServerSettings(EngineSettings(scheduler={"policy": "fcfs", "overlap": True}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        server = RunningServer(settings)
    with server:
        yield server
