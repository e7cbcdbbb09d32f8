"""Bodies that are wrong in every way, and what the API's schema allows: the server fails at none, and keeps nothing."""

from __future__ import annotations

import json
import os
import socket
from copy import deepcopy
from random import Random
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from running_server import RunningServer

BODIES = 400 * int(os.environ.get("LOCKSTEP_SOAK", "1"))
#: what answers may be: fine, the client's mistake, or come again
EXPECTED = {200, 400, 404, 413, 422, 503, 504}
PATIENCE = {"X-Request-Timeout": "0.5", "Content-Type": "application/json"}

VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": "emulated", "prompt": "Hello", "max_tokens": 3, "n": 2, "logprobs": 1, "stop": ["x"],
                         "logit_bias": {"5": 1}, "temperature": 0.5, "top_p": 0.5, "seed": 1, "echo": False}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 3, "stream": True,
                         "stream_options": {"include_usage": True}, "min_tokens": 1, "stop_token_ids": [7]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "你好 🚀"}], "max_completion_tokens": 3,
                              "stream": True, "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.5}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}],
                              "max_tokens": 3, "response_format": {"type": "text"}, "user": "somebody"}),
    ("/generate", {"prompt": "a", "max_tokens": 3, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}),
    ("/generate_stream", {"prompt": "a", "max_tokens": 3, "stream": True, "priority": 1, "timeout": 5}),
    ("/batch_generate", {"prompts": ["a", [4, 5]], "max_tokens": 3}),
    ("/v1/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/v1/detokenize", {"tokens": [1, 2, 3]}),
]  # fmt: skip
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 10**9, 10**20, -(10**30), 1e308, 5e-324, "", "a", "\x00", "你", "\ud83d",
    [], {}, [None], [[]], [""], {"": ""}, ["a", 1], [-1], [[1], "a"], "9" * 500, "é" * 3000, [1] * 9000,
    {"a": {"b": {}}},
]  # fmt: skip
#: whole bodies
NOTHING = [b"", b"null", b"[]", b'"a"', b"{}", b"[" * 50_000, b'{"a":' * 50_000, b"\xef\xbb\xbf{}"]


def malformed(random: Random) -> tuple[str, bytes]:
    """A path, and a body that was right until something happened to it."""
    path, body = random.choice(VALID)
    body = json.loads(json.dumps(body))
    for _ in range(random.randint(0, 3)):
        _spoil(body, random)
    content = json.dumps(body, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    kind = random.randrange(8)
    if kind == 0:
        content = content[: random.randrange(len(content))]
    elif kind == 1:
        place = random.randrange(len(content))
        content = content[:place] + random.randbytes(random.randint(1, 4)) + content[place + 1 :]
    elif kind == 2:
        content = content.replace(b"3", random.choice([b"1e999", b"NaN", b"-Infinity", b"9" * 5000, b"03", b"3.0"]))
    elif kind == 3:
        content = random.choice(
            [b"", b"null", b"[]", b'"a"', b"{}", b"[" * 50_000, b'{"a":' * 50_000, b"\xef\xbb\xbf{}"]
        )
    return path, content


def _spoil(body: Any, random: Random) -> None:
    """Put something strange somewhere."""
    names: list[Any] = list(body) if isinstance(body, dict) else list(range(len(body)))
    if not names:
        return
    name = random.choice(names)
    if isinstance(body[name], dict | list) and random.random() < 0.5:
        _spoil(body[name], random)
    elif random.random() < 0.1:
        del body[name]
    elif isinstance(body, dict) and random.random() < 0.2:
        body[random.choice(["x", "tools", "suffix", "best_of", "model", "ignore_eos", "n"])] = deepcopy(
            random.choice(STRANGE)
        )
    else:
        body[name] = deepcopy(random.choice(STRANGE))


def test_no_body_makes_the_server_fail_or_leaves_something_behind(emulated: RunningServer) -> None:
    random = Random(BODIES)
    seen: dict[int, int] = {}
    with emulated.client(headers=PATIENCE) as client:
        for _ in range(BODIES):
            path, content = malformed(random)
            answer = client.post(path, content=content)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code in EXPECTED, (path, content[:1000], answer.text)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert seen[200] > BODIES / 10
    assert seen[400] > BODIES / 10
    left = emulated.idle_snapshot()
    assert (left.kv_tokens, left.kv_reserved_tokens, left.errors) == (0, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\x02\x03" * 100,
        b"GET\r\n\r\n",
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(8),
)
def test_what_is_no_http_is_answered_or_hung_up_on(emulated: RunningServer, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", emulated.port), timeout=10) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    with emulated.client() as client:
        assert client.get("/health").status_code == 200


def test_what_the_schema_allows_is_answered(emulated: RunningServer) -> None:
    operations = [
        found.ok() for found in schemathesis.openapi.from_url(f"{emulated.url}/openapi.json").get_all_operations()
    ]
    assert {"/v1/completions", "/v1/chat/completions", "/generate", "/v1/tokenize"} <= {op.path for op in operations}
    for operation in operations:
        _check(operation)
    left = emulated.idle_snapshot()
    assert (left.kv_tokens, left.errors) == (0, 0)


def _check(operation: Any) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=operation.as_strategy())
    def answered(case: Any) -> None:
        answer = case.call(headers={"X-Request-Timeout": "0.3"})
        assert answer.status_code in EXPECTED, answer.text

    answered()
