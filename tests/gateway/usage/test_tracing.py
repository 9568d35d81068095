"""Spans of requests: their times, their names, and whose children they are."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from typing_extensions import override

from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.gateway.usage.tracing import RequestTracer, request_tracer
from tests.gateway.harness import (
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.store.builders import START_NS, a_record

WAIT_SECONDS = 120
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def spans(record: UsageRecord) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter, "gateway-0")
    tracer.trace(record)
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


def test_a_call_that_did_not_answer_is_no_request_of_the_server() -> None:
    routed = {"model_route": "team-a/assistant", "target": "small", "target_reason": "RuleMatched"}
    call, root = (spans(a_record(**routed, requests=requests))["chat llama"] for requests in (0, 1))
    assert (call.kind, root.kind) == (SpanKind.INTERNAL, SpanKind.SERVER)
    assert call.attributes is not None
    assert call.attributes["tessera.route"] == "team-a/assistant"
    assert call.attributes["tessera.target"] == "small"


def test_a_refused_request_is_an_error_without_phases() -> None:
    record = a_record(
        phase=Phase.REFUSED, reason="TooManyTokens", queue_ns=0, ttft_ns=None, trace_parent="x"
    )

    (root,) = spans(record).values()

    assert root.parent is None
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes is not None
    assert root.attributes["error.type"] == "TooManyTokens"


@contextlib.contextmanager
def a_collector() -> Iterator[tuple[str, list[bytes]]]:
    """Take spans as a collector does, by OTLP over HTTP; yield its URL and what it gets."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        finally:
            server.shutdown()
            thread.join()


async def test_a_collector_gets_a_streamed_request_below_the_span_of_its_client() -> None:
    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta("secret answer"), END, USAGE, DONE)

    body = {**STREAM, "messages": [{"role": "user", "content": "secret prompt"}]}
    with a_collector() as (url, bodies):
        tracer = request_tracer(url, "gateway-0")
        async with (
            asyncio.timeout(WAIT_SECONDS),
            ScriptedEngine(script) as engine,
            a_gateway(a_directory(a_model(may_sleep=True))) as gateway,
        ):
            request = asyncio.create_task(gateway.post(body, traceparent=PARENT))
            await gateway.woken.wait()
            awake = a_model(a_replica(engine.address), may_sleep=True)
            gateway.admission.update(a_directory(awake))
            assert (await request).body.endswith(DONE)
            tracer.trace(await gateway.record())
        await asyncio.to_thread(tracer.close)

    resources = [
        each
        for each_body in bodies
        for each in ExportTraceServiceRequest.FromString(each_body).resource_spans
    ]
    spans = {
        span.name: span
        for resource in resources
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert set(spans) == {"chat chat", "queue", "prefill", "decode"}
    _, trace_id, parent_id, _ = PARENT.split("-")
    root = spans.pop("chat chat")
    assert (root.kind, root.parent_span_id.hex()) == (Span.SPAN_KIND_SERVER, parent_id)
    assert {span.parent_span_id for span in spans.values()} == {root.span_id}
    assert {span.trace_id.hex() for span in (root, *spans.values())} == {trace_id}
    moments = [
        root.start_time_unix_nano,
        *(spans[name].end_time_unix_nano for name in ("queue", "prefill", "decode")),
    ]
    assert moments == sorted(moments)
    assert moments[-1] == root.end_time_unix_nano
    attributes = {
        each.key: each.value.string_value or each.value.int_value for each in root.attributes
    }
    conventions = {name for name in vars(gen_ai_attributes).values() if isinstance(name, str)}
    gen_ai = {name: value for name, value in attributes.items() if name.startswith("gen_ai.")}
    assert gen_ai.keys() <= conventions
    assert gen_ai == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "chat",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert (attributes["tessera.tenant"], attributes["tessera.key"]) == ("team-a", "ci")
    (resource,) = resources
    labels = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (labels["service.name"], labels["k8s.pod.name"]) == ("tessera-gateway", "gateway-0")
    assert not [each for each in bodies if b"secret" in each]
