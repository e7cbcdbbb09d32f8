"""Nothing that the server writes can be written: requests are answered all the same, and it ends as it should."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from server_process import EMULATED, ROOT, Stream

from serving.logs import StandardError, TextLines, lost_lines

PATIENCE_S = 60


@contextmanager
def server_on_a_full_disk() -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A server whose standard error says that no space is left, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "api_server.py"), *EMULATED, "--port", str(port)]
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(command, cwd=ROOT, stderr=full) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        try:
            while not _ready(client):
                assert process.poll() is None
                time.sleep(0.05)
            yield process, client
        finally:
            process.kill()


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.ConnectError:
        return False


def _lost(client: httpx.Client) -> float:
    families = {family.name: family for family in parse(client.get("/metrics").text)}
    (sample,) = families["lockstep:log_lines_lost"].samples
    return float(sample.value)


def test_requests_are_answered_lines_are_counted_and_the_end_is_as_ever() -> None:
    with server_on_a_full_disk() as (process, client):
        lost = _lost(client)
        assert lost >= 2  # the engine is ready, and where it is served
        for _ in range(3):
            answer = client.post("/generate", json={"prompt": "a", "max_tokens": 5, "ignore_eos": True})
            assert answer.json()["output_tokens"] == 5
        assert client.post("/generate", json={"prompt": "a", "max_token": 5}).status_code == 400
        streams = [Stream(str(client.base_url), 500) for _ in range(4)]
        for stream in streams:
            assert stream.begun.wait(PATIENCE_S)
        assert _lost(client) == lost + 4
        process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.join()
            assert '"output_tokens":500' in stream.text
        assert process.wait(PATIENCE_S) == 0


def test_a_mistake_is_exit_code_2() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, str(ROOT / "api_server.py"), "--polcy", "fcfs"]
        assert subprocess.run(command, cwd=ROOT, stderr=full, check=False).returncode == 2


class Disk(io.StringIO):
    """A log file on a disk that may be full."""

    full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Where log lines go."""
    disk, root = Disk(), logging.getLogger()
    handler = StandardError(disk)
    handler.setFormatter(TextLines())
    root.addHandler(handler)
    yield disk
    root.removeHandler(handler)


def test_when_there_is_room_again_one_line_says_what_is_missing(disk: Disk) -> None:
    log, before = logging.getLogger("disk"), lost_lines()
    log.warning("first")
    disk.full = True
    for _ in range(3):
        log.warning("never seen")
    assert lost_lines() == before + 3
    disk.full = False
    log.warning("second")
    log.warning("third")
    lines = [line.split(" ", 2)[2] for line in disk.getvalue().splitlines()]
    lost = "3 lines of this log could not be written: No space left on device"
    assert lines == ["first", "second", lost, "third"]


def test_a_line_that_cannot_be_made_is_no_lost_one(capsys: pytest.CaptureFixture[str]) -> None:
    handler = StandardError(Disk())
    handler.emit(logging.LogRecord("name", logging.INFO, "file", 1, "%d", ("not a number",), None))
    assert handler.lost == 0
    assert "TypeError" in capsys.readouterr().err
