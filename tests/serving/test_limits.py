"""What a server does not take: too much at once, too large, too long, from strangers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from running_server import RunningServer

from serving.messages import EngineSettings
from serving.server import ServerSettings

KEY = {"Authorization": "Bearer right"}
#: for longer than any test lasts
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 8000, "ignore_eos": True}


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    """A slow engine for two requests, and one that waits."""
    settings = ServerSettings(
        EngineSettings(emulate="roofline:l4:qwen-7b", scheduler={"max_running": 2, "kv_tokens": 65536}),
        served_names=("slow",),
        max_queue=1,
        max_body_bytes=50_000,
        request_timeout_s=30,
        api_keys=("other", "right"),
        cors_origins=("https://here.example",),
    )
    with RunningServer(settings) as server:
        yield server


def test_keys_are_asked_for_but_by_probes(guarded: RunningServer) -> None:
    with guarded.client() as client:
        for path in ("/health", "/live", "/ready"):
            assert client.get(path).status_code == 200
        wrong = [None, "", "right", "Bearer", "Bearer wrong", "Bearer righ", "Basic right", "Bearer rightt", "Bearer ä"]
        for value in wrong:
            headers = {} if value is None else {"Authorization": value.encode()}
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401, value
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.post("/generate", json={"prompt": "a"}).status_code == 401
        for key in ("right", "other"):
            assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_other_origins_get_nothing_unless_they_are_named(guarded: RunningServer, emulated: RunningServer) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for server, origin, allowed in (
        (guarded, "https://here.example", "https://here.example"),
        (guarded, "https://there.example", None),
        (emulated, "https://here.example", None),
    ):
        with server.client(headers={"Origin": origin, **KEY}) as client:
            answers = [client.options("/v1/completions", headers=asked), client.get("/v1/models")]
        assert [answer.headers.get("Access-Control-Allow-Origin") for answer in answers] == [allowed, allowed]


@pytest.mark.parametrize("said", [True, False], ids=["length said", "in chunks"])
def test_a_body_that_is_too_large_is_not_read_to_its_end(guarded: RunningServer, said: bool) -> None:
    whole = json.dumps({"prompt": "a" * 100_000}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer right\r\n"
    head += "Content-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=30) as connection:
        if said:  # of which only some is sent
            connection.sendall(f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole[:100])
        else:
            chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (whole[:40_000], whole[40_000:60_000])]
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"".join(chunks))
        answer = b""
        while more := connection.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"the body is larger than 50000 bytes" in answer


def test_a_body_may_be_as_large_as_it_may(guarded: RunningServer) -> None:
    body = json.dumps({"prompt": "a", "model": "", "max_tokens": 1}).encode()
    with guarded.client(headers={**KEY, "Content-Type": "application/json"}) as client:
        assert client.post("/v1/completions", content=body.ljust(50_000)).status_code == 200
        assert client.post("/v1/completions", content=body.ljust(50_001)).status_code == 413


def test_what_the_queue_has_no_room_for_is_to_come_again(guarded: RunningServer) -> None:
    with guarded.client(headers=KEY) as client, ThreadPoolExecutor(3) as pool:
        running = [pool.submit(client.post, "/v1/completions", json={**LONG, "timeout": 5}) for _ in range(3)]
        _until(lambda: guarded.server.engine.in_flight == 3)
        refused = client.post("/v1/completions", json=LONG)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json()["error"]["code"] == "overloaded"
        assert "3 requests are in flight, of 3 at most" in refused.json()["error"]["message"]
        assert [future.result().status_code for future in running] == [504] * 3
    assert guarded.idle_snapshot().kv_tokens == 0


def _until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"X-Request-Timeout": "0.4"}, {}), ({}, {"timeout": 0.4}), ({"X-Request-Timeout": "9"}, {"timeout": 0.4})],
)
def test_a_request_ends_when_its_time_is_up(guarded: RunningServer, headers: Any, body: Any) -> None:
    with guarded.client(headers={**KEY, **headers}) as client:
        whole = client.post("/v1/completions", json={**LONG, **body})
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        assert whole.json()["error"]["message"] == "the request was not done within 0.4 s"
        stream = client.post("/v1/completions", json={**LONG, **body, "stream": True})
    *pieces, error, done = stream.text.strip().split("\n\n")
    assert (stream.status_code, done) == (200, "data: [DONE]")
    assert pieces
    assert json.loads(error.removeprefix("data: ")) == whole.json()
    assert guarded.idle_snapshot().kv_tokens == 0


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf"])
def test_a_time_that_is_none_is_refused(guarded: RunningServer, value: str) -> None:
    with guarded.client(headers={**KEY, "X-Request-Timeout": value}) as client:
        answer = client.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 400
    assert "must be a number of seconds > 0" in answer.json()["error"]["message"]


def test_errors_reach_openais_client_in_the_middle_of_a_stream(guarded: RunningServer) -> None:
    client = guarded.openai(default_headers=KEY)
    stream = client.completions.create(model="slow", prompt="a", max_tokens=500, stream=True,
                                       extra_body={"ignore_eos": True, "timeout": 0.4})  # fmt: skip
    with pytest.raises(Exception, match=r"not done within 0\.4 s"):
        list(stream)


def test_no_connection_is_kept_by_a_client_that_is_told_to_close(guarded: RunningServer) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        answer = client.post("/v1/completions", headers={**KEY, "Content-Length": "60000"}, content=b"a" * 60_000)
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
