"""Spans of requests, kept in memory."""

from __future__ import annotations

import logging
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.loop import RequestMetrics
from scheduler.request import Request, SamplingParams
from serving.exchanges import EndedRequest, Exchange
from serving.tracing import RequestTraces, traces_from

MS = 1_000_000
UNIX_NS = 1_800_000_000_000_000_000
TRACE = "0af7651916cd43dd8448eb211c80319c"
METRICS = RequestMetrics(1000 * MS, 1010 * MS, 1050 * MS, 1250 * MS, 1, 16, 0)


def spans(reason: str, metrics: RequestMetrics | None, *, detail: str = "") -> dict[str, ReadableSpan]:
    """By name, of a request that was handed in 251 ms before it ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers = [(b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())]
    exchange = Exchange("job-17", "POST", "/v1/chat/completions", headers, 0)
    request = Request("chat-1", 0, 30, 99, sampling=SamplingParams(0.7, top_p=0.9, seed=3))
    RequestTraces(provider, "shown")(
        EndedRequest(request, exchange, 21, reason, detail, 500 * MS, 551 * MS, 751 * MS, UNIX_NS, metrics)
    )
    return {span.name: span for span in exporter.get_finished_spans()}


def times(span: ReadableSpan) -> tuple[float, float]:
    """Start and end, in ms before the request's end."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (UNIX_NS - span.start_time) / MS, (UNIX_NS - span.end_time) / MS


def test_a_request_is_a_span_with_its_phases_in_it() -> None:
    found = spans("length", METRICS)
    assert set(found) == {"chat shown", "queue", "prefill", "decode"}
    whole = found["chat shown"]
    assert times(whole) == (251, 0)
    assert (times(found["queue"]), times(found["prefill"]), times(found["decode"])) == (
        (250, 240),
        (240, 200),
        (200, 0),
    )
    assert whole.kind == SpanKind.SERVER
    assert whole.parent is not None
    assert f"{whole.parent.trace_id:032x}" == TRACE
    for name in ("queue", "prefill", "decode"):
        parent = found[name].parent
        assert parent is not None
        assert whole.context is not None
        assert parent.span_id == whole.context.span_id
    assert dict(whole.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lockstep",
        "gen_ai.request.model": "shown",
        "gen_ai.response.model": "shown",
        "gen_ai.response.id": "chat-1",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.request.max_tokens": 99,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 21,
        "lockstep.request_id": "job-17",
        "lockstep.preemptions": 1,
        "lockstep.prefix_hit_tokens": 16,
    }
    assert whole.status.status_code == StatusCode.UNSET


def test_phases_end_where_the_request_did() -> None:
    waited = spans("aborted", METRICS._replace(first_scheduled_ns=None, first_token_ns=None))
    assert set(waited) == {"chat shown", "queue"}
    assert times(waited["queue"]) == (250, 0)
    prefilled = spans("aborted", METRICS._replace(first_token_ns=None))
    assert set(prefilled) == {"chat shown", "queue", "prefill"}
    assert times(prefilled["prefill"]) == (240, 0)


def test_an_error_says_what_it_was() -> None:
    (span,) = spans("error", None, detail="killed by signal 9").values()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "killed by signal 9")
    assert (span.attributes or {})["error.type"] == "error"


def test_there_are_traces_only_where_an_endpoint_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert traces_from({}, "m") is None
    assert traces_from({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, "m") is None
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    traces = traces_from(environment, "m")
    assert traces is not None
    traces.close()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        assert traces_from(environment, "m") is None
    assert "pip install 'lockstep[tracing]'" in caplog.text
