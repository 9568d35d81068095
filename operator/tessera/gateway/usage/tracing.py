"""OpenTelemetry spans of requests, made from their usage records: no request waits for them."""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tessera.domain.gateway.usage_record import FIELDS, Phase, UsageRecord

_SPAN = [(field.seen.span, field.name, field.seen.beside) for field in FIELDS if field.seen.span]
# Operations of the semantic conventions for generative AI, by path.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class RequestTracer:
    """Sends a span for each request, with its queue, prefill and decode below it."""

    def __init__(self, exporter: SpanExporter, pod: str) -> None:
        resource = Resource.create({"service.name": "tessera-gateway", "k8s.pod.name": pod})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # It drops spans that its collector does not take in time.
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tessera")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left; waits for the collector, so call it in a thread."""
        self._provider.shutdown()

    def trace(self, record: UsageRecord) -> None:
        """Make the spans of a request that ended."""
        operation = _OPERATIONS.get(record.path, record.path)
        begin_ns, end_ns = record.started_at_ns, record.started_at_ns + record.total_ns
        span = self._tracer.start_span(
            f"{operation} {record.model}",
            self._propagator.extract({"traceparent": record.trace_parent}),
            # A call that did not answer is part of a request, which has a span as well.
            SpanKind.SERVER if record.requests else SpanKind.INTERNAL,
            _attributes(operation, record),
            start_time=begin_ns,
        )
        if record.phase in (Phase.FAILED, Phase.REFUSED):
            span.set_attribute("error.type", record.reason)
            span.set_status(Status(StatusCode.ERROR, record.reason))
        sent_ns = begin_ns + record.queue_ns
        times = {"queue": (begin_ns, sent_ns)} if record.queue_ns else {}
        if record.ttft_ns is not None:
            first_token_ns = begin_ns + record.ttft_ns
            times |= {"prefill": (sent_ns, first_token_ns), "decode": (first_token_ns, end_ns)}
        context = set_span_in_context(span)
        for name, (phase_begin_ns, phase_end_ns) in times.items():
            phase = self._tracer.start_span(name, context, start_time=phase_begin_ns)
            phase.end(phase_end_ns)
        span.end(end_ns)


def request_tracer(endpoint: str, pod: str) -> RequestTracer:
    """Return a tracer that sends to the URL of a collector, such as `http://otel:4318/v1/traces`."""
    return RequestTracer(OTLPSpanExporter(endpoint), pod)


def _attributes(operation: str, record: UsageRecord) -> Mapping[str, str | int | bool]:
    attributes: dict[str, str | int | bool | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
    }
    for span, name, beside in _SPAN:
        if not beside or getattr(record, beside):
            attributes[span] = getattr(record, name)
    return {name: value for name, value in attributes.items() if value is not None}
