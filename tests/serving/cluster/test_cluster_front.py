"""The front: what it makes of replicas that answer, are lost before or after a word, or say that their engine is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.cluster.calls import Head, HttpCall
from serving.cluster.metrics import merged

pytest.importorskip("ray")

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request

from serving.cluster import front
from serving.cluster.front import RETRIES, Front

JSON = Head(200, [(b"content-type", b"application/json"), (b"x-kept", b"1")], lost=False)
STREAM = Head(200, [(b"content-type", b"text/event-stream")], lost=False)
ENGINE_GONE = Head(503, [(b"content-type", b"application/json")], lost=True)
DIED = RayActorError()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "PAUSE_S", 0)


class Replicas:
    """A handle of Ray Serve: each call has the next of ``answers``, whose errors are raised at their place."""

    def __init__(self, *answers: Sequence[Head | bytes | Exception]) -> None:
        self._answers = iter(answers)
        self.calls: list[HttpCall] = []

    def options(self, **options: Any) -> Replicas:
        assert options == {"stream": True, "method_name": "http"}
        return self

    def remote(self, call: HttpCall) -> AsyncIterator[Head | bytes]:
        self.calls.append(call)
        return self._play(next(self._answers))

    async def _play(self, parts: Sequence[Head | bytes | Exception]) -> AsyncIterator[Head | bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    def broadcast(self, method: str, call: HttpCall) -> Replicas:
        assert (method, call.path, call.headers) == ("metrics", "/metrics", [])
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        assert timeout_s > 0
        return list(next(self._answers))


def ask(replicas: Replicas, path: str = "/v1/completions", body: Sequence[bytes] = (b"{}",)) -> tuple[int, Any, bytes]:
    """Status, headers and body of the answer."""
    sent: list[dict[str, Any]] = []
    pieces = iter(body)

    async def receive() -> dict[str, Any]:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"q=1", "headers": [(b"X-Mark", b"7")],
        }  # fmt: skip
        response = await Front(replicas, most_bytes=8)(Request(scope, receive))
        await response(scope, receive, send)

    asyncio.run(run())
    start, *rest = sent
    assert not rest[-1].get("more_body")
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest)


def test_an_answer_gets_through_with_its_headers() -> None:
    replicas = Replicas([JSON, b'{"a":', b"1}"])
    assert ask(replicas) == (200, {b"content-type": b"application/json", b"x-kept": b"1"}, b'{"a":1}')
    assert replicas.calls == [HttpCall("POST", "/v1/completions", b"q=1", [(b"x-mark", b"7")], b"{}")]


@pytest.mark.parametrize(
    "lost",
    [[DIED], [JSON, DIED], [JSON, b'{"a"', DIED], [STREAM, DIED], [ENGINE_GONE, b"{}"]],
    ids=["at once", "after its head", "in the middle of what nobody has heard", "before its first event", "its engine"],
)
def test_a_call_is_tried_again_while_its_client_has_heard_nothing(lost: Sequence[Head | bytes | Exception]) -> None:
    replicas = Replicas(*[lost] * RETRIES, [JSON, b"{}"])
    assert ask(replicas)[::2] == (200, b"{}")
    assert len(replicas.calls) == 1 + RETRIES
    status, headers, body = ask(Replicas(*[lost] * (1 + RETRIES)))
    assert (status, json.loads(body)["error"]["code"], headers[b"retry-after"]) == (503, "replica_lost", b"1")


def test_a_stream_that_breaks_off_says_so_and_ends() -> None:
    replicas = Replicas([STREAM, b"data: 1\n\n", b"data: 2\n\n", DIED])
    status, headers, body = ask(replicas)
    first, second, error, done, end = body.split(b"\n\n")
    assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
    assert (first, second, done, end) == (b"data: 1", b"data: 2", b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert len(replicas.calls) == 1


def test_a_stream_that_ends_is_left_as_it_is() -> None:
    assert ask(Replicas([STREAM, b"data: 1\n\n", b"data: [DONE]\n\n"]))[2] == b"data: 1\n\ndata: [DONE]\n\n"
    assert ask(Replicas([STREAM]))[2] == b""


def test_who_waits_with_too_many_is_told_to_come_again() -> None:
    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    status, headers, body = ask(Replicas([full]))
    assert (status, headers[b"retry-after"], json.loads(body)["error"]["code"]) == (503, b"1", "overloaded")


def test_of_a_body_that_is_too_long_a_replica_gets_enough_to_refuse_it() -> None:
    replicas = Replicas([JSON])
    ask(replicas, body=[b"1234", b"5678", b"9", b"never read"])
    assert replicas.calls[0].body == b"123456789"


def test_metrics_are_those_of_all_replicas_that_answer() -> None:
    counter = '# HELP a Counted.\n# TYPE a counter\na_total{{engine="0"}} {}\n'
    status, headers, body = ask(
        Replicas([("x", counter.format(3)), TimeoutError(), ("y", counter.format(4)), ("z", "")]), "/metrics"
    )
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/plain")
    (family,) = text_string_to_metric_families(body.decode())
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"engine": "0", "replica": "x"}, 3),
        ({"engine": "0", "replica": "y"}, 4),
    ]


def test_a_histogram_of_several_replicas_is_one_family() -> None:
    text = '# TYPE h histogram\nh_bucket{le="1.0"} 1\nh_bucket{le="+Inf"} 2\nh_count 2\nh_sum 3\n'
    both = merged({"x": text, "y": text}).decode()
    assert both.count("# TYPE h histogram") == 1
    assert both.count('le="+Inf"') == 2
