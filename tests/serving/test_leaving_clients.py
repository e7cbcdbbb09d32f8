"""Clients that leave, and what they leave behind: nothing."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from running_server import RunningServer

LONG: dict[str, Any] = {"prompt": "a b c", "max_tokens": 8000, "ignore_eos": True}


def _asked(server: RunningServer, path: str, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


def _running(server: RunningServer, requests: int) -> None:
    end = time.monotonic() + 30
    while server.snapshot().running < requests:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"stream": True}),
        ("/v1/completions", {}),
        ("/v1/completions", {"n": 4, "stream": True}),
        ("/generate", {}),
        ("/generate_stream", {}),
    ],
)
def test_a_client_that_leaves_frees_its_memory(emulated: RunningServer, path: str, body: dict[str, Any]) -> None:
    before = emulated.idle_snapshot().counters
    connection = _asked(emulated, path, {**LONG, **body})
    _running(emulated, body.get("n", 1))
    connection.close()
    after = emulated.idle_snapshot()
    assert after.kv_tokens == after.kv_reserved_tokens == 0
    assert after.counters["aborted"] - before["aborted"] == body.get("n", 1)
    assert after.counters["finished"] == before["finished"]


def test_others_go_on_when_many_leave(emulated: RunningServer) -> None:
    before = emulated.idle_snapshot().counters
    leaving = [_asked(emulated, "/v1/completions", {**LONG, "stream": True}) for _ in range(20)]
    body = {**LONG, "max_tokens": 2000}
    with emulated.client() as client, client.stream("POST", "/generate_stream", json=body) as stays:
        lines = stays.iter_lines()
        next(lines)
        for connection in leaving:
            connection.close()
        text = "\n".join(lines)
    assert '"output_tokens":2000' in text
    after = emulated.idle_snapshot()
    assert (after.kv_tokens, after.counters["aborted"] - before["aborted"]) == (0, 20)


def test_half_a_request_asks_for_nothing(emulated: RunningServer) -> None:
    before = emulated.idle_snapshot().counters
    with socket.create_connection(("127.0.0.1", emulated.port), timeout=30) as connection:
        connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{"prompt"')
    with emulated.client() as client:
        assert client.get("/health").status_code == 200
    assert emulated.idle_snapshot().counters["submitted"] == before["submitted"]
