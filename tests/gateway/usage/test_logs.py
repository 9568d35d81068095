"""Lines of the access log and of the audit log."""

import asyncio
import io
import json
import os
from dataclasses import fields
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.ref import Ref
from tessera.domain.gateway.audit import KeyChange, KeyEvent
from tessera.domain.gateway.directory import ApiKey
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.gateway.usage.logs import BackgroundStream, KeyAudit, access_line, audit_lines
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.store.builders import a_record

MOMENT = datetime(2026, 11, 22, 6, tzinfo=UTC)


def test_a_request_is_one_line_of_json() -> None:
    record = a_record(
        record_id="w1-7",
        started_at_ns=1_795_327_200_500_000_000,
        phase=Phase.ABORTED,
        status=499,
        client_address="10.0.0.9",
    )

    (line,) = access_line(record).splitlines()

    assert json.loads(line) == {
        "log": "access",
        "time": "2026-11-22T06:00:00.500000Z",
        "requestId": "request",
        "recordId": "w1-7",
        "tenant": "team-a",
        "team": None,
        "user": None,
        "key": "laptop",
        "service": "team-a/chat",
        "model": "llama",
        "replica": "chat-0",
        "clientAddress": "10.0.0.9",
        "path": "/v1/chat/completions",
        "phase": "Aborted",
        "status": 499,
        "reason": "LeastLoaded",
        "stream": True,
        "inputTokens": 100,
        "cachedTokens": 40,
        "predictedCachedTokens": 0,
        "uncachedPrefixTokens": 0,
        "outputTokens": 20,
        "reasoningTokens": 5,
        "estimated": False,
        "resumed": 0,
        "queueMs": 1,
        "ttftMs": 200,
        "totalMs": 900,
    }


def test_a_call_of_a_route_says_its_target_and_that_it_counts_no_request() -> None:
    routed = {"model_route": "team-a/assistant", "target": "large", "target_reason": "Fallback"}
    record = a_record(**routed, skipped_targets="small=QueueFull", requests=0)
    line = json.loads(access_line(record))
    fields = ("modelRoute", "target", "targetReason", "skippedTargets", "requests")
    assert [line[name] for name in fields] == [
        *("team-a/assistant", "large", "Fallback", "small=QueueFull", 0)
    ]


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_of_a_client_breaks_the_log_or_fills_it(text: str) -> None:
    (line,) = access_line(a_record(model=text * 50, request_id=text)).splitlines()

    assert len(json.loads(line)["model"]) <= 256


def test_a_key_event_is_one_line_without_the_digest() -> None:
    key = ApiKey(
        name="laptop",
        digest="0123456789abcdef" * 4,
        tenant="team-a",
        expires=MOMENT + timedelta(days=1),
    )

    (line,) = audit_lines([KeyEvent(KeyChange.REVOKED, key)], MOMENT).splitlines()

    assert json.loads(line) == {
        "log": "audit",
        "time": "2026-11-22T06:00:00Z",
        "event": "KeyRevoked",
        "tenant": "team-a",
        "key": "laptop",
        "digestPrefix": "0123456789ab",
        "expires": "2026-11-23T06:00:00Z",
    }


def test_nothing_of_a_record_could_be_a_prompt_or_an_answer() -> None:
    names = {field.name for field in fields(a_record())}
    assert not names & {"prompt", "messages", "content", "answer", "response", "body"}


def test_the_audit_begins_with_what_is_there_and_says_what_changes() -> None:
    stream = io.BytesIO()
    audit = KeyAudit(stream.write, MOMENT)
    key = ApiKey(
        name="laptop", digest="ab" * 32, tenant="team-a", expires=MOMENT + timedelta(seconds=5)
    )

    for seconds in (1, 2, 6, 7):
        audit.check({key.digest: key}, MOMENT + timedelta(seconds=seconds))
    audit.check({}, MOMENT + timedelta(seconds=8))

    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["KeyExpired", "KeyRevoked"]


def test_a_record_that_is_no_key_is_one_line_with_its_field() -> None:
    stream = io.BytesIO()
    secret = TenantKeys(
        secret=Ref("tessera-system", "keys"),
        tenant="team-a",
        malformed={"app": "unknown field model"},
    )

    KeyAudit(stream.write, MOMENT).report_unreadable(secret, MOMENT)

    assert json.loads(stream.getvalue()) == {
        "log": "audit",
        "time": "2026-11-22T06:00:00Z",
        "event": "KeyUnreadable",
        "tenant": "team-a",
        "key": "app",
        "secret": "tessera-system/keys",
        "fault": "unknown field model",
    }


async def test_who_does_not_read_the_log_holds_up_nothing() -> None:
    reader, writer = os.pipe()
    line = b"x" * (2**20 - 1) + b"\n"
    with os.fdopen(reader, "rb") as source:
        with os.fdopen(writer, "wb") as pipe:
            metrics = GatewayMetrics()
            lines = BackgroundStream(pipe, metrics.log_lines_lost.inc)
            task = asyncio.create_task(lines.run())
            for _ in range(20):
                lines.write(line)
                await asyncio.sleep(0)
            # What there was room for comes when somebody reads again.
            reading = asyncio.create_task(asyncio.to_thread(source.read))
            await asyncio.to_thread(lines.flush)
            task.cancel()
            await asyncio.wait((task,))
        content = await reading
    assert 8 * len(line) <= len(content) <= 11 * len(line)
    lost = metrics.registry.get_sample_value("tessera_gateway_log_lines_lost_total")
    assert lost == 20 - len(content) / len(line)
