"""A trace of each request for OpenTelemetry: the time it waited, was prefilled and decoded. Needs ``[tracing]``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serving.exchanges import EndedRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class RequestTraces:
    """Makes the spans of a request when it has ended, at the times that they had.

    A span of the whole request, beneath the caller's where the HTTP request has a ``traceparent``, and in it ``queue``,
    ``prefill`` and ``decode`` as far as the request got. Attributes are named as in OpenTelemetry's conventions for
    generative AI, ours begin with ``lockstep.``; neither has prompts or outputs.
    """

    def __init__(self, provider: TracerProvider, model: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lockstep")
        self._model = model

    def __call__(self, ended: EndedRequest) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        exchange = ended.exchange
        headers = (
            {} if exchange is None else {name.decode("latin-1"): v.decode("latin-1") for name, v in exchange.headers}
        )
        chat = exchange is not None and "chat" in exchange.path
        attributes = self._attributes(ended, "chat" if chat else "text_completion")
        end_ns = ended.ended_unix_ns
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {self._model}",
            context=extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=end_ns - (ended.ended_ns - ended.submitted_ns),
        )
        if ended.finish_reason in ("error", "rejected"):
            span.set_status(StatusCode.ERROR, ended.detail)
            span.set_attribute("error.type", ended.finish_reason)
        inside = set_span_in_context(span)
        for name, start_ns, stop_ns in self._phases(ended):
            self._tracer.start_span(name, context=inside, start_time=start_ns).end(stop_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()

    def _attributes(self, ended: EndedRequest, operation: str) -> dict[str, Any]:
        request, sampling, metrics = ended.request, ended.request.sampling, ended.metrics
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "lockstep",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": request.id,
            "gen_ai.response.finish_reasons": [ended.finish_reason],
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "gen_ai.usage.output_tokens": ended.output_tokens,
        }
        if sampling.top_k > 0:
            attributes["gen_ai.request.top_k"] = sampling.top_k
        if sampling.seed is not None:
            attributes["gen_ai.request.seed"] = sampling.seed
        if ended.exchange is not None:
            attributes["lockstep.request_id"] = ended.exchange.id
        if metrics is not None:
            attributes["lockstep.preemptions"] = metrics.preemptions
            attributes["lockstep.prefix_hit_tokens"] = metrics.prefix_hit_tokens
        return attributes

    def _phases(self, ended: EndedRequest) -> list[tuple[str, int, int]]:
        """Name, start and end of each phase that there was, as Unix nanoseconds."""
        metrics = ended.metrics
        if metrics is None:
            return []
        # the engine's clock is another process's: its last time and the front's are the same moment
        unix_ns = ended.ended_unix_ns - metrics.finish_ns
        times = [metrics.arrival_ns, metrics.first_scheduled_ns, metrics.first_token_ns, metrics.finish_ns]
        phases: list[tuple[str, int, int]] = []
        for name, start_ns, stop_ns in zip(("queue", "prefill", "decode"), times, times[1:], strict=False):
            if start_ns is None:
                break
            phases.append((name, unix_ns + start_ns, unix_ns + (metrics.finish_ns if stop_ns is None else stop_ns)))
        return phases


def traces_from(environment: Mapping[str, str], model: str) -> RequestTraces | None:
    """Traces that go where OpenTelemetry's variables say, over HTTP; ``None`` where they name no endpoint.

    The variables are the SDK's own: endpoint, headers, service name, sampler. Without the SDK a warning is logged.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logging.getLogger("lockstep.server").warning(
            "no traces: %s is not installed; pip install 'lockstep[tracing]'", error.name
        )
        return None
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "lockstep"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return RequestTraces(provider, model)
