"""The rules of streams, each against scripted engines on real sockets.

The numbers are those of the rules: 1 usage asked and dropped, 2 usage beside choices, 3 a client
that goes away, 4 no retry after the first byte, 5 an engine that dies, 6 slow clients, 7 what is
unknown here, 8 heartbeats, 9 refusals before the first byte.
"""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.perf.step import StepTime
from tessera.gateway import relay
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.http.sse import MAX_EVENT_BYTES
from tessera.gateway.receive.receiver import BodyBounds
from tessera.gateway.relay.engine_errors import EngineError
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
    event,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
MIB = 2**20


@asynccontextmanager
async def serving(
    *scripts: Script, **options: Any
) -> AsyncIterator[tuple[RunningGateway, Sequence[ScriptedEngine]]]:
    """Run a gateway before one engine for each script; the first engine is picked first."""
    engines = [ScriptedEngine(script) for script in scripts]
    for engine in engines:
        await engine.__aenter__()
    replicas = [
        a_replica(engine.address, f"chat-{number}")
        for number, engine in enumerate(engines, start=1)
    ]
    # The counter of turns begins with 1.
    replicas = replicas[-1:] + replicas[:-1]
    try:
        async with a_gateway(a_directory(a_model(*replicas)), **options) as gateway:
            yield gateway, engines
    finally:
        for engine in engines:
            await engine.__aexit__()


def streaming(*events: bytes) -> Script:
    async def script(call: EngineCall) -> None:
        await call.stream(*events)

    return script


async def test_a_whole_answer_passes_as_it_is() -> None:
    async with serving(lambda call: call.whole(COMPLETION)) as (gateway, _):
        answer = await gateway.post(CHAT)
        record = await gateway.record()
    assert json.loads(answer.body) == COMPLETION
    assert answer.headers["x-tessera-replica"] == "chat-1"
    assert answer.headers["x-tessera-service"] == "team-a/chat"
    assert (record.input_tokens, record.output_tokens, record.estimated) == (7, 3, False)
    assert (record.phase, record.status, record.reason) == (Phase.COMPLETED, 200, "OnlyReplica")


async def test_a_record_has_the_variant_and_the_prices_of_its_replica() -> None:
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        replica = a_replica(engine.address, variant="a100-1gpu", price_version="a100@1")
        async with a_gateway(a_directory(a_model(replica))) as gateway:
            await gateway.post(CHAT)
            record = await gateway.record()
    assert (record.variant, record.price_version) == ("a100-1gpu", "a100@1")


@pytest.mark.parametrize(("itl_seconds", "late"), [(0.0, 3), (3600.0, 0)])
async def test_tokens_after_the_first_are_counted_and_those_that_come_too_late(
    itl_seconds: float, late: int
) -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        # Two tokens at once, then two more, each once the client has what came before.
        for block, tokens in ((ROLE + a_delta() + a_delta(), 2), (a_delta(), 3), (a_delta(), 4)):
            await call.chunk(block)
            await gateway.wait_for_tokens(tokens)
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    async with ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address), itl_seconds=itl_seconds)
        async with a_gateway(a_directory(model)) as gateway:
            await gateway.post(STREAM)
            record = await gateway.record()
    assert record.latency is not None
    # Tokens that come together have no gap; the last event counts like a token.
    assert (record.latency.gaps, record.latency.late_gaps) == (4, late)
    assert record.latency.ttft_target_ns == 1_000_000_000


async def test_an_answer_that_is_no_stream_and_several_choices_have_no_gaps() -> None:
    async with serving(lambda call: call.whole(COMPLETION)) as (gateway, _):
        await gateway.post(CHAT)
        assert (await gateway.record()).latency is None
    async with serving(streaming(ROLE, a_delta(), a_delta(), END, USAGE, DONE)) as (gateway, _):
        await gateway.post({**STREAM, "n": 2})
        record = await gateway.record()
    assert record.latency is not None
    assert record.latency.gaps == 0


async def test_rule_1_usage_is_asked_for_and_dropped_where_the_client_did_not_ask() -> None:
    async with serving(streaming(ROLE, a_delta(), END, USAGE, DONE)) as (gateway, engines):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert answer.body == ROLE + a_delta() + END + DONE
    assert engines[0].calls[0].json["stream_options"] == {"include_usage": True}
    assert (record.input_tokens, record.output_tokens, record.estimated) == (7, 3, False)


async def test_rule_1_usage_is_kept_where_the_client_asked() -> None:
    body = {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with serving(streaming(ROLE, a_delta(), END, USAGE, DONE)) as (gateway, engines):
        answer = await gateway.post(body)
    assert answer.body == ROLE + a_delta() + END + USAGE + DONE
    assert engines[0].calls[0].body == json.dumps(body).encode()


async def test_rule_2_usage_may_come_beside_choices() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}
    last = event({"choices": [choice], "usage": usage})
    async with serving(streaming(ROLE, a_delta(), last, DONE)) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert answer.body == ROLE + a_delta() + last + DONE
    assert (record.input_tokens, record.output_tokens, record.estimated) == (9, 2, False)


async def test_rule_3_a_client_that_goes_away_ends_the_request_at_the_engine() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta() + a_delta())
        await call.gone.wait()

    async with ScriptedEngine(script) as engine:
        # It makes no second token until it hears of it, however long that takes.
        model = a_model(a_replica(engine.address), itl_seconds=3600.0)
        async with a_gateway(a_directory(model)) as gateway:
            async with gateway.client.post(
                f"{gateway.url}/v1/chat/completions", json=STREAM
            ) as response:
                await response.content.readuntil(b"\n\n")
                response.close()
            async with asyncio.timeout(WAIT_SECONDS):
                await engine.calls[0].gone.wait()
            record = await gateway.record()
    assert (record.phase, record.reason) == (Phase.ABORTED, RequestReason.CLIENT_GONE)
    # With the one that the engine made meanwhile.
    assert (record.output_tokens, record.estimated) == (3, True)
    assert record.input_tokens > 0


async def test_rule_3_a_client_that_goes_away_before_a_whole_answer_ends_it_too() -> None:
    async def script(call: EngineCall) -> None:
        arrived.set()
        await call.gone.wait()

    arrived = asyncio.Event()
    async with serving(script) as (gateway, engines):
        request = asyncio.create_task(gateway.post(CHAT))
        async with asyncio.timeout(WAIT_SECONDS):
            await arrived.wait()
            request.cancel()
            await engines[0].calls[0].gone.wait()
        record = await gateway.record()
    assert record.phase is Phase.ABORTED


@pytest.mark.parametrize(
    "refusal",
    [
        lambda call: call.whole({"error": {"message": "busy", "code": 503}}, status=503),
        lambda call: call.whole({"error": "overloaded"}, status=429),
        lambda call: call.whole(
            {"error": {"message": "cannot schedule new futures after shutdown"}}, status=500
        ),
        streaming(DONE),
        streaming(),
        streaming(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}), DONE),
        streaming(ROLE, event({"error": {"message": "EngineDeadError", "code": 500}}), DONE),
    ],
    ids=["busy", "overloaded", "after shutdown", "no event", "empty", "aborted", "engine dead"],
)
async def test_rule_4_another_replica_answers_where_the_first_gave_no_token(
    refusal: Script,
) -> None:
    async with serving(refusal, streaming(ROLE, a_delta(), END, USAGE, DONE)) as (
        gateway,
        engines,
    ):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert answer.body == ROLE + a_delta() + END + DONE
    assert [len(engine.calls) for engine in engines] == [1, 1]
    assert record.replica == answer.headers["x-tessera-replica"] == "chat-2"


async def test_rule_4_an_aborted_whole_answer_is_asked_of_another_replica() -> None:
    aborted = {**COMPLETION, "choices": [{"index": 0, "finish_reason": "abort"}]}
    async with serving(lambda call: call.whole(aborted), lambda call: call.whole(COMPLETION)) as (
        gateway,
        _,
    ):
        answer = await gateway.post(CHAT)
    assert json.loads(answer.body) == COMPLETION


async def test_a_whole_answer_costs_about_what_its_bytes_do() -> None:
    choices = b'{"choices":[' + b"{}," * 2**21
    answer = choices + b'{}],"x":"abort"}'
    async with serving(lambda call: call.whole(answer)) as (gateway, _):
        tracemalloc.start()
        try:
            assert (await gateway.post(CHAT)).body == answer
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # Its copies at the engine, the gateway and the client.
    assert peak < 10 * len(answer)


async def test_a_stream_whose_parts_take_long_rests_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay.engine, "SLOW_PART_SECONDS", 0.0)
    rests = list[float]()
    rest_seconds = EngineSession.rest_seconds

    def note(session: EngineSession, namespace: str, seconds: float) -> float:
        rests.append(rest_seconds(session, namespace, seconds))
        return rests[-1]

    monkeypatch.setattr(EngineSession, "rest_seconds", note)
    events = [ROLE, *[a_delta("x" * 50_000)] * 40, END]
    async with serving(streaming(*events, USAGE, DONE)) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert answer.body == b"".join(events) + DONE
    assert len(rests) >= 40


async def test_rule_4_a_request_that_kills_engines_kills_two_at_most() -> None:
    async def die(call: EngineCall) -> None:
        call.cut()

    async with serving(die, die, die) as (gateway, engines):
        answer = await gateway.post(CHAT)
    assert answer.status == 502
    assert answer.error["code"] == "stream_broken"
    assert sum(len(engine.calls) for engine in engines) == 2


async def test_rule_4_nothing_is_repeated_after_the_first_byte() -> None:
    async def die(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        call.cut()

    async with serving(die, streaming(ROLE, a_delta(), END, USAGE, DONE)) as (gateway, engines):
        # It has more than text, so that no other engine can go on with it.
        answer = await gateway.post({**STREAM, "logprobs": True})
    assert sum(len(engine.calls) for engine in engines) == 1
    assert b"stream_broken" in answer.body


async def send_large_event(call: EngineCall) -> None:
    await call.begin()
    await call.chunk(ROLE)
    with suppress(ConnectionError):
        await call.chunk(a_delta("x" * (MAX_EVENT_BYTES + MIB)))
    await call.gone.wait()


async def send_large_body(call: EngineCall) -> None:
    await call.begin("application/json")
    with suppress(ConnectionError):
        for _ in range(MAX_RESPONSE_BYTES // MIB + 1):
            await call.chunk(b" " * MIB)
    await call.gone.wait()


@pytest.mark.parametrize(
    ("body", "failure", "code"),
    [
        (STREAM, send_large_event, "response_too_large"),
        (CHAT, send_large_body, "response_too_large"),
        (CHAT, lambda call: call.whole({"error": {"message": "?"}}, status=500), "engine_failed"),
        (STREAM, lambda call: call.whole(b"?"), "invalid_response"),
    ],
    ids=["large event", "large body", "500", "no stream"],
)
async def test_no_tenant_ejects_replicas_of_others_by_his_requests(
    body: dict[str, object], failure: Script, code: str
) -> None:
    async def script(call: EngineCall) -> None:
        await (failure(call) if "user" in call.json else call.whole(COMPLETION))

    keys = (an_api_key(), an_api_key("tsk-b", name="b", tenant="team-b"))
    async with ScriptedEngine(script) as first, ScriptedEngine(script) as second:
        replicas = [a_replica(first.address, "chat-1"), a_replica(second.address, "chat-2")]
        directory = a_directory(a_model(*replicas, public=True), keys=keys)
        async with a_gateway(directory) as gateway:
            for _ in range(6):
                answer = await gateway.post({**body, "user": "poison"})
                assert (answer.status, answer.error["code"]) == (502, code)
            answers = [await gateway.post(CHAT, authorization="Bearer tsk-b") for _ in range(4)]
    names = {answer.headers["x-tessera-replica"] for answer in answers}
    assert names == {"chat-1", "chat-2"}


@pytest.mark.parametrize(
    ("reason", "counts", "may_be_of_request"),
    [
        (RequestReason.ENGINE_UNREACHABLE, True, False),
        (RequestReason.ENGINE_DRAINING, True, False),
        (RequestReason.ENGINE_FAILED, True, True),
        (RequestReason.ENGINE_TIMEOUT, True, True),
        (RequestReason.INVALID_RESPONSE, True, True),
        (RequestReason.STREAM_BROKEN, True, True),
        (RequestReason.ENGINE_BUSY, False, True),
        (RequestReason.ENGINE_REFUSED, False, True),
        (RequestReason.RESPONSE_TOO_LARGE, False, True),
    ],
)
def test_a_failure_counts_against_its_replica_or_does_not(
    reason: RequestReason, counts: bool, may_be_of_request: bool
) -> None:
    error = EngineError(reason, "chat-1", "?")
    assert (error.is_of_replica, error.may_be_of_request) == (counts, may_be_of_request)


@pytest.mark.parametrize("ending", ["cut", "end", "abort", "error", "rubbish"])
async def test_rule_5_a_broken_stream_ends_with_an_error_and_never_with_done(ending: str) -> None:
    error = event({"error": {"message": "EngineDeadError", "code": 500}})

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        if ending == "cut":
            call.cut()
            return
        if ending == "abort":
            await call.chunk(a_delta("", finish_reason="abort") + DONE)
        elif ending == "error":
            await call.chunk(error + DONE)
        elif ending == "rubbish":
            await call.send(b"zzz\r\nno chunk\r\n")
            return
        await call.finish()

    release, begun = asyncio.Event(), ROLE + a_delta()
    async with serving(script) as (gateway, _):
        async with gateway.client.post(
            f"{gateway.url}/v1/chat/completions", json=STREAM
        ) as response:
            assert await response.content.readexactly(len(begun)) == begun
            release.set()
            rest = await response.content.read()
        record = await gateway.record()
    last = json.loads(rest.removeprefix(b"data: "))
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert (record.phase, record.output_tokens, record.estimated) == (Phase.FAILED, 1, True)


async def test_rule_6_a_client_that_does_not_read_holds_the_engine_back() -> None:
    sent = 0

    async def script(call: EngineCall) -> None:
        nonlocal sent
        await call.begin()
        await call.chunk(ROLE)
        large = a_delta("x" * 50_000)
        while not call.gone.is_set():
            await call.chunk(large)
            sent += len(large)

    async with serving(script) as (gateway, engines):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=2**12)
        body = json.dumps(STREAM).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tsk-team-a\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        before = -1
        async with asyncio.timeout(WAIT_SECONDS):
            while sent != before or not sent:
                before = sent
                await asyncio.sleep(0.3)
            # What sockets of the kernel, the reader and the writer take.
            assert sent < 32 * 2**20
            writer.close()
            await engines[0].calls[0].gone.wait()


@pytest.mark.parametrize(("begin", "status"), [(b"", 502), (ROLE + a_delta(), 200)])
async def test_rule_5_an_engine_that_sends_blank_lines_without_end_ends_its_stream(
    begin: bytes, status: int
) -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(begin + b"\n\n" * 1000)
        while not call.gone.is_set():
            await call.chunk(b"\n\n" * 1000)

    async with serving(script) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert (answer.status, record.reason) == (status, RequestReason.INVALID_RESPONSE)
    assert json.loads(answer.body.rpartition(b"data: ")[2])["error"]["code"] == "invalid_response"


async def test_rule_7_unknown_fields_tools_and_reasoning_pass_untouched() -> None:
    tool = event(
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]},
                }
            ],
            "x_unknown": [1, None, {"y": 1.50}],
        }
    )
    reasoning = event({"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]})
    strange = b'data: {"choices": "of no known shape"}\n\n: a comment\n\nevent: x\ndata: y\n\n'
    events = ROLE + tool + reasoning + strange + END
    async with serving(streaming(events, USAGE, DONE)) as (gateway, engines):
        body = b'{"messages":[{"role":"user","content":"\\u00e9 \\" x"}],"model":"chat", \
            "tools":[{"type":"function"}],"x_new":1.50,"stream":true}'
        answer = await gateway.post(body)
    assert answer.body == events + DONE
    assert engines[0].calls[0].body.startswith(body[:-1] + b",")


async def test_rule_8_comments_keep_a_waiting_stream_alive() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await release.wait()
        await call.chunk(ROLE + a_delta() + END + USAGE + DONE)
        await call.finish()

    release = asyncio.Event()
    bounds = BodyBounds(heartbeat_seconds=0.02)
    async with (
        serving(script, bounds=bounds) as (gateway, _),
        gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as response,
    ):
        assert await response.content.readuntil(b"\n\n") == b": waiting\n\n"
        assert await response.content.readuntil(b"\n\n") == b": waiting\n\n"
        release.set()
        rest = await response.content.read()
    # The headers went with the first comment.
    resumable = b": x-tessera-resumable: true\n\n"
    assert rest.replace(b": waiting\n\n", b"") == resumable + ROLE + a_delta() + END + DONE


async def after_comments(
    script: Callable[[EngineCall, asyncio.Event], Awaitable[None]],
) -> tuple[bytes, UsageRecord]:
    """Return what a client gets once comments came and the engine is released, and the record."""
    release = asyncio.Event()
    bounds = BodyBounds(heartbeat_seconds=0.02)
    async with (
        serving(lambda call: script(call, release), bounds=bounds) as (gateway, _),
        gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as response,
    ):
        await response.content.readuntil(b"\n\n")
        release.set()
        rest = (await response.content.read()).replace(b": waiting\n\n", b"")
        return rest, await gateway.record()


async def test_rule_8_a_failure_after_comments_is_an_event() -> None:
    async def script(call: EngineCall, release: asyncio.Event) -> None:
        await call.begin()
        await release.wait()
        call.cut()

    rest, _ = await after_comments(script)
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "stream_broken"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"error": {"message": "too\nlong", "type": "BadRequestError"}}, "engine_refused"),
        (413, {"error": {"message": None}}, "engine_refused"),
        (404, {"detail": "Not Found"}, "engine_refused"),
        (401, {"error": {"message": "who?"}}, "engine_failed"),
        (200, COMPLETION, "invalid_response"),
    ],
)
async def test_rule_8_a_refusal_after_comments_is_an_event(
    status: int, body: object, code: str
) -> None:
    async def script(call: EngineCall, release: asyncio.Event) -> None:
        await release.wait()
        await call.whole(json.dumps(body, indent=1).encode(), status=status)

    rest, record = await after_comments(script)
    assert rest.endswith(b"\n\n")
    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, code)
    assert (record.phase, record.status, record.output_tokens) == (Phase.FAILED, 200, 0)


async def test_rule_9_a_full_engine_answers_503_with_retry_after() -> None:
    busy = {"error": {"message": "The engine is currently busy", "code": 503}}
    async with serving(lambda call: call.whole(busy, status=503)) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.error["code"] == "engine_busy"


async def test_an_engine_that_sends_nothing_is_given_up_and_not_repeated() -> None:
    async def script(call: EngineCall) -> None:
        await call.gone.wait()

    async with serving(script, script, idle_seconds=1) as (gateway, engines):
        answer = await gateway.post(CHAT)
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    assert sum(len(engine.calls) for engine in engines) == 1


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda call: call.whole(b"<html>"), "invalid_response"),
        (lambda call: call.whole(b'{"a":' * 5000), "invalid_response"),
        (lambda call: call.send(b"SMTP ready\r\n\r\n"), "invalid_response"),
        (streaming(b"data: <html>\n\n"), "invalid_response"),
        (lambda call: call.whole(b"", status=302), "engine_failed"),
        (lambda call: call.whole({"error": "Unauthorized"}, status=401), "engine_failed"),
        (lambda call: call.whole({"detail": "Not Found"}, status=404), "engine_refused"),
    ],
    ids=["html", "deep", "no http", "no json", "redirect", "unauthorized", "no path"],
)
async def test_rubbish_of_an_engine_becomes_an_error_in_the_known_shape(
    script: Script, code: str
) -> None:
    async with serving(script) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert answer.status in (502, 404)
    assert answer.error["code"] == code


@pytest.mark.parametrize("code", [401, 403, 407, 429, 431, 499, 600, -1, 10**30, True, "401", None])
async def test_an_engine_cannot_speak_for_the_gateway(code: object) -> None:
    error = event(
        {"error": {"message": "key refused", "type": "authentication_error", "code": code}}
    )
    async with serving(streaming(ROLE, error)) as (gateway, _):
        answer = await gateway.post(STREAM)
        record = await gateway.record()
    assert (answer.status, answer.error["code"]) == (502, "engine_failed")
    assert answer.error["type"] == "server_error"
    assert (record.phase, record.reason) == (Phase.FAILED, RequestReason.ENGINE_FAILED)


@pytest.mark.parametrize("code", [400, 500])
async def test_the_text_of_an_engines_error_is_cut(code: int) -> None:
    error = event({"error": {"message": "x" * 2**20, "code": code}})
    async with serving(streaming(ROLE, error)) as (gateway, _):
        answer = await gateway.post(STREAM)
    assert answer.error["code"] == ("engine_refused" if code == 400 else "engine_failed")
    assert len(answer.body) < 5000


@pytest.mark.parametrize("field", ["finish_reason", "content"])
async def test_a_whole_answer_that_is_no_utf_8_is_invalid(field: str) -> None:
    body = b'{"choices":[{"%b":"\xff"}],"other":"abort"}' % field.encode()
    async with serving(lambda call: call.whole(body)) as (gateway, _):
        answer = await gateway.post(CHAT)
        record = await gateway.record()
    assert (answer.status, answer.error["code"]) == (502, "invalid_response")
    assert (record.phase, record.status) == (Phase.FAILED, 502)


async def test_a_defect_of_the_gateway_is_recorded_as_a_failure() -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    async with serving(lambda call: call.whole(COMPLETION)) as (gateway, _):
        gateway.app.note_begun = fail
        answer = await gateway.post(CHAT)
        record = await gateway.record()
    assert answer.status == record.status == 500
    assert (record.phase, record.reason) == (Phase.FAILED, RequestReason.INTERNAL_ERROR)


async def test_the_engines_own_refusal_passes_as_it_is() -> None:
    refusal = {
        "error": {"message": "too long", "type": "BadRequestError", "param": "x", "code": 400}
    }
    async with serving(lambda call: call.whole(refusal, status=400)) as (gateway, _):
        answer = await gateway.post(CHAT)
        record = await gateway.record()
    assert (answer.status, json.loads(answer.body)) == (400, refusal)
    assert (record.phase, record.reason) == (Phase.FAILED, RequestReason.ENGINE_REFUSED)


async def test_a_client_that_closes_after_the_end_of_its_stream_got_all_of_it() -> None:
    left = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta() + END + USAGE + DONE)
        await left.wait()

    async with serving(script) as (gateway, _):
        async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as answer:
            await answer.content.readuntil(DONE)
            answer.close()
        record = await gateway.record()
        left.set()
    assert (record.phase, record.output_tokens) == (Phase.COMPLETED, 3)


# In a second each of the 4 choices may have some 1,400 tokens.
@pytest.mark.parametrize(("max_tokens", "most_tokens"), [(10, 40), (50, 200), (1000, 200)])
async def test_an_answer_that_nobody_waits_for_is_booked_as_far_as_it_may_have_come(
    max_tokens: int, most_tokens: int
) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(_: EngineCall) -> None:
        arrived.set()
        await left.wait()

    body = CHAT | {"n": 4, "max_tokens": max_tokens}
    async with ScriptedEngine(script) as engine:
        replica = a_replica(engine.address, step_time=StepTime(weights=0, kv_token=0, token=0.0001))
        limits = RateLimitsSpec(max_output_tokens=200)
        async with a_gateway(a_directory(a_model(replica, limits=limits))) as gateway:
            request = asyncio.create_task(gateway.post(body))
            async with asyncio.timeout(WAIT_SECONDS):
                await arrived.wait()
            await asyncio.wait((request,), timeout=1)
            request.cancel()
            record = await gateway.record()
            left.set()
    assert (record.phase, record.estimated) == (Phase.ABORTED, True)
    assert record.output_tokens == most_tokens
    assert record.input_tokens > 0


async def test_a_connection_that_ended_leaves_nothing_to_the_garbage_collector() -> None:
    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    def connections() -> int:
        return sum(isinstance(each, GatewayProtocol) for each in gc.get_objects())

    async def none_is_left() -> None:
        assert connections() == before

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        gc.collect()
        gc.disable()
        try:
            before = connections()
            for _ in range(3):
                answer = await gateway.post(STREAM, connection="close")
                assert answer.status == 200
            await eventually(none_is_left)
        finally:
            gc.enable()
