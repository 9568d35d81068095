"""Spans of requests: their times, their names, and whose children they are."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tessera.domain.gateway.requests import Phase, UsageRecord
from tessera.gateway.tracing import RequestTracer
from tests.gateway.store.builders import START_NS, a_record

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def spans(record: UsageRecord) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, "gateway-0")
    tracer.trace([record])
    tracer.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time - START_NS, span.end_time - START_NS


def test_a_request_has_the_spans_of_its_phases() -> None:
    record = a_record(queue_ns=10, ttft_ns=30, total_ns=100, trace_parent=PARENT)

    by_name = spans(record)

    assert {name: times(span) for name, span in by_name.items()} == {
        "queue": (0, 10),
        "prefill": (10, 30),
        "decode": (30, 100),
        "chat llama": (0, 100),
    }
    root = by_name.pop("chat llama")
    assert root.parent is not None
    assert root.context is not None
    assert f"{root.parent.trace_id:032x}" == PARENT.split("-")[1]
    assert {span.parent.span_id for span in by_name.values() if span.parent} == {
        root.context.span_id
    }


def test_the_attributes_have_the_names_of_the_conventions_and_no_content() -> None:
    (root,) = [span for name, span in spans(a_record()).items() if name == "chat llama"]

    assert root.attributes is not None
    assert root.attributes["gen_ai.operation.name"] == "chat"
    assert root.attributes["gen_ai.usage.output_tokens"] == 20
    assert root.attributes["tessera.tenant"] == "team-a"
    assert "tessera.team" not in root.attributes
    assert not [name for name in root.attributes if "message" in name or "prompt" in name]


def test_a_refused_request_is_an_error_without_phases() -> None:
    record = a_record(
        phase=Phase.REFUSED, reason="TooManyTokens", queue_ns=0, ttft_ns=None, trace_parent="x"
    )

    (root,) = spans(record).values()

    assert root.parent is None
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes is not None
    assert root.attributes["error.type"] == "TooManyTokens"
