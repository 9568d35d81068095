"""Whatever a provider does, the next target answers, and what that costs is known."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.charging import INPUT, OUTPUT
from tests.gateway.harness import Answer, EngineCall
from tests.gateway.outside.routing import OUTSIDE, Routed, a_body, routed
from world.provider import (
    KEY,
    ProviderCall,
    Script,
    answer,
    filtered,
    flood,
    hang_up,
    redirect,
    refuse,
    say_nothing,
    send_page,
    stall,
)

SHORT = {"connect": "5s", "firstByte": "100ms", "gap": "100ms"}
PRICE_OF_PROMPT, PRICE_OF_ANSWER = 4 * INPUT, 8 * OUTPUT


async def own(call: EngineCall) -> None:
    """Answer as an engine, on each path."""
    body, choice = call.json, {"index": 0, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    if body.get("stream"):
        chunk = {"choices": [choice | {"delta": {"content": "Own."}}]}
        events = chunk, {"choices": [], "usage": usage}
        await call.stream(
            *(b"data: %b\n\n" % json.dumps(event).encode() for event in events), b"data: [DONE]\n\n"
        )
        return
    message = {"role": "assistant", "content": "Own."}
    await call.whole({"model": body["model"], "choices": [choice | {"message": message}]})


def an_event(text: bytes) -> Script:
    """Begin a stream with an event."""

    async def script(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        await call.chunk(b"data: %b\n\n" % text)
        await call.end()

    return script


def a_body_of(text: bytes) -> Script:
    """Answer with what is no answer."""
    return lambda call: call.whole(text)


LOW_CREDIT = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low to access the Anthropic API. Buy credits.",
    },
}
LOW_BALANCE = {
    **{"id": "1", "object": "", "choices": None},
    "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"},
}
TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 8192 tokens. However, your messages "
        "resulted in 9000 tokens.",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
    }
}


def report(error: object, status: int = 200, *, as_stream: bool = True) -> Script:
    """Answer with an error: by a status, or as the first event of a stream."""

    async def script(call: ProviderCall) -> None:
        if status == 200 and call.streams and as_stream:
            await an_event(json.dumps(error).encode())(call)
        else:
            await call.whole(error, status)

    return script


# What a provider does before its first token, and the reason for which it is skipped.
FAILURES: dict[str, tuple[Script, str]] = {
    "429": (refuse(429, retry_after="30"), "ProviderBusy"),
    "429 twice": (refuse(429, retry_after="0"), "ProviderBusy"),
    "500": (refuse(500, KEY), "ProviderFailed"),
    "503": (refuse(503, retry_after="3"), "ProviderFailed"),
    "400": (refuse(400, KEY), "ProviderRefused"),
    "401": (refuse(401, KEY), "ProviderKeyRefused"),
    "404": (refuse(404, code="model_not_found"), "ProviderModelNotFound"),
    "filtered": (filtered, "ContentFiltered"),
    "redirect": (redirect, "ProviderFailed"),
    "page": (send_page, "ProviderFailed"),
    "hang up": (hang_up, "ProviderFailed"),
    "flood": (flood, "ProviderFailed"),
    "silence": (say_nothing, "ProviderTimeout"),
}
# Of answers that are no stream, and of streams.
WHOLE: dict[str, tuple[Script, str]] = {
    "no JSON": (a_body_of(b"<html>"), "ProviderFailed"),
    "no object": (a_body_of(b"[1, 2]"), "ProviderFailed"),
    "no UTF-8": (a_body_of(b'{"choices": "\xff"}'), "ProviderFailed"),
    "deep": (a_body_of(b"[" * 100_000), "ProviderFailed"),
    "an error for a choice": (report({"choices": [TOO_LONG]}), "ContextTooLong"),
}
STREAMS: dict[str, tuple[Script, str]] = {
    "stall": (stall, "ProviderTimeout"),
    "no events": (a_body_of(b"{}"), "ProviderFailed"),
    "an error": (an_event(b'{"error": {"message": "%b"}}' % KEY.encode()), "ProviderFailed"),
    "nothing": (an_event(b"[DONE]"), "ProviderFailed"),
    "no JSON": (an_event(b"<html>"), "ProviderFailed"),
    "a cut": (answer(cut_after=0), "ProviderFailed"),
}


REPORTED: dict[str, tuple[Script, str]] = {
    "no credit, 400": (report(LOW_CREDIT, 400), "ProviderKeyRefused"),
    "no credit": (report(LOW_CREDIT), "ProviderKeyRefused"),
    "no credit by a status in it": (report(LOW_BALANCE), "ProviderKeyRefused"),
    "too long, 400": (report(TOO_LONG, 400), "ContextTooLong"),
    "too long": (report(TOO_LONG), "ContextTooLong"),
    "too long in no stream": (report(TOO_LONG, as_stream=False), "ContextTooLong"),
    "a filter": (report({"error": {"code": "content_filter"}}), "ContentFiltered"),
    "overloaded": (report({"error": {"type": "overloaded_error"}}), "ProviderBusy"),
    "no model": (report({"error": {"code": "model_not_found"}}), "ProviderModelNotFound"),
    "refused": (report({"error": {"type": "invalid_request_error"}}), "ProviderRefused"),
    "failed": (report({"object": "error", "message": KEY}), "ProviderFailed"),
}


def cases(*tables: dict[str, tuple[Script, str]]) -> list[Any]:
    rows = [(name, *row) for table in tables for name, row in table.items()]
    return [pytest.param(script, reason, id=name) for name, script, reason in rows]


async def ask(world: Routed, body: dict[str, Any], path: str = "/v1/chat/completions") -> Answer:
    got = await world.gateway.post(body, path)
    assert KEY.encode() not in got.body
    assert KEY not in str(dict(got.headers))
    return got


def assert_own_answer(got: Answer, records: list[UsageRecord], reason: str) -> None:
    """Assert that the service answered, and that a call of the provider is recorded beside."""
    assert got.status == 200, got.body
    assert b"Own." in got.body
    assert got.headers["x-tessera-target"] == "own"
    assert got.headers["x-tessera-target-reason"] == "Fallback"
    outside, answered = records
    assert (outside.provider, outside.service, outside.target) == ("acme/big-1", "", "outside")
    assert (outside.requests, outside.reason) == (0, reason)
    assert (answered.provider, answered.target, answered.requests) == ("", "own", 1)
    assert answered.skipped_targets == f"outside={reason}"
    assert outside.request_id == answered.request_id
    assert KEY not in repr(records)
    # Of a failure the sender pays nothing, and of a time-out what was reserved.
    assert (outside.charge_nanos or 0) * 2 == (
        outside.cost_nanos if reason == "ProviderTimeout" else 0
    )
    # Where it is not known what the provider did, it may bill all that was reserved.
    assert (outside.cost_nanos > 0) == outside.estimated


@pytest.mark.parametrize(("script", "reason"), cases(FAILURES, REPORTED, WHOLE))
async def test_the_next_target_answers_whole(tmp_path: Path, script: Script, reason: str) -> None:
    async with routed(tmp_path, own=own, timeouts=SHORT) as world:
        world.provider.script = script
        got = await ask(world, a_body())
        assert_own_answer(got, await world.records(2), reason)


@pytest.mark.parametrize(("script", "reason"), cases(FAILURES, REPORTED, STREAMS))
async def test_the_next_target_answers_with_a_stream(
    tmp_path: Path, script: Script, reason: str
) -> None:
    async with routed(tmp_path, own=own, timeouts=SHORT) as world:
        world.provider.script = script
        got = await ask(world, a_body(stream=True))
        assert got.body.endswith(b"data: [DONE]\n\n")
        assert_own_answer(got, await world.records(2), reason)


async def test_a_refused_connection_is_tried_once_more(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own, base_url="https://localhost:1/v1") as world:
        got = await ask(world, a_body())
        assert got.headers["x-tessera-target"] == "own"
        assert world.asked.client.states["acme"].ended == {"ProviderUnreachable": 2}
        # Nothing was sent, so that there is no call to record.
        (record,) = await world.records(1)
        assert record.skipped_targets == "outside=ProviderUnreachable"
        assert record.cost_nanos == 0


async def test_an_address_that_is_not_allowed_gets_nothing(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own, allowed_ranges=()) as world:
        got = await ask(world, a_body())
        assert got.headers["x-tessera-target"] == "own"
        assert world.provider.connections == 0
        (record,) = await world.records(1)
        assert record.skipped_targets == "outside=ProviderUnreachable"


@pytest.mark.parametrize("status", [429, 503])
async def test_a_provider_that_is_busy_for_a_moment_is_asked_again(
    tmp_path: Path, status: int
) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.scripts.append(refuse(status, retry_after="0"))
        got = await ask(world, a_body())
        assert got.headers["x-tessera-target"] == "outside"
        assert len(world.provider.calls) == 2
        (record,) = await world.records(1)
        # The call that was refused costs nothing.
        assert record.charge_nanos == PRICE_OF_PROMPT + PRICE_OF_ANSWER
        assert record.cost_nanos == 2 * (PRICE_OF_PROMPT + PRICE_OF_ANSWER)


@pytest.mark.parametrize("script", [refuse(500), hang_up, say_nothing, stall])
async def test_nothing_is_sent_twice_that_may_have_been_worked_on(
    tmp_path: Path, script: Script
) -> None:
    async with routed(tmp_path, own=own, timeouts=SHORT) as world:
        world.provider.script = script
        await ask(world, a_body(stream=True))
        assert len(world.provider.calls) == 1


async def test_floods_end_no_request_that_another_target_can_answer(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = flood
        # Whole answers of the largest size would hold six times as much.
        memory = world.gateway.app.memory
        memory.limit = memory.tenant_limit = 2**24
        bodies = [a_body(stream=number > 3) for number in range(6)]
        answered = await asyncio.gather(*(ask(world, body) for body in bodies))
        assert [got.status for got in answered] == [200] * 6


async def test_a_time_out_costs_all_that_was_reserved(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own, timeouts=SHORT) as world:
        world.provider.script = say_nothing
        await ask(world, a_body(max_tokens=50))
        outside, _ = await world.records(2)
        assert outside.estimated
        assert outside.output_tokens == 50
        assert outside.cost_nanos == 2 * (outside.input_tokens * INPUT + 50 * OUTPUT)


async def test_a_provider_that_is_left_alone_costs_no_time_and_no_money(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = refuse(429, retry_after="30")
        await ask(world, a_body())
        await world.records(2)
        world.gateway.records.clear()
        got = await ask(world, a_body())
        assert got.headers["x-tessera-target"] == "own"
        assert len(world.provider.calls) == 1
        records = await world.records(1)
        assert records[-1].skipped_targets == "outside=ProviderBusy"
        assert sum(record.cost_nanos for record in records) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_without_a_word_beside_an_answer_is_none(
    tmp_path: Path, stream: bool
) -> None:
    choice = {"index": 0, "finish_reason": "stop"}
    part = "delta" if stream else "message"
    body = {"choices": [choice | {part: {"content": "Outside."}}], "error": ""}
    data = json.dumps(body).encode()
    async with routed(tmp_path, own=own) as world:
        script = an_event(data + b"\n\ndata: [DONE]") if stream else a_body_of(data)
        world.provider.script = script
        got = await ask(world, a_body(stream=stream))
    assert got.headers["x-tessera-target"] == "outside"
    assert b"Outside." in got.body


async def test_a_stream_that_breaks_off_ends_where_it_is(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = answer(cut_after=4)
        got = await ask(world, a_body(stream=True))
        assert got.headers["x-tessera-target"] == "outside"
        assert b"word0" in got.body
        assert b"Own." not in got.body
        assert b"it broke off its answer" in got.body
        assert world.engine.calls == []
        (record,) = await world.records(1)
        assert (record.reason, record.requests) == ("ProviderFailed", 1)
        assert 0 < (record.charge_nanos or 0) <= PRICE_OF_PROMPT + PRICE_OF_ANSWER


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lie_about_tokens_costs_no_more_than_was_reserved(
    tmp_path: Path, stream: bool
) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = answer(times=1e6)
        got = await ask(world, a_body(max_tokens=10, stream=stream))
        assert got.status == 200
        (record,) = await world.records(1)
        assert record.output_tokens <= 10
        assert record.input_tokens <= 1200
        price = record.input_tokens * INPUT + record.output_tokens * OUTPUT
        assert (record.charge_nanos, record.cost_nanos) == (price, 2 * price)


async def test_a_client_that_leaves_ends_the_call(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = say_nothing
        task = asyncio.create_task(world.gateway.post(a_body()))
        await world.provider.has_calls(1)
        task.cancel()
        await asyncio.wait((task,))
        async with asyncio.timeout(5):
            await world.provider.calls[0].closed.wait()
            (record,) = await world.records(1)
        assert (record.reason, record.provider) == ("ClientGone", "acme/big-1")
        # It may bill all of it.
        assert record.estimated
        assert world.engine.calls == []


async def test_the_refusal_of_a_route_names_the_reason_and_nothing_of_the_provider(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = refuse(500, KEY, KEY)
        got = await ask(world, a_body())
        assert got.status == 502
        assert got.error["code"] == "no_target"
        assert "outside: ProviderFailed" in got.error["message"]


def a_prompt(path: str, **fields: Any) -> dict[str, Any]:
    """Return a request of a path."""
    if path == "/v1/responses":
        return {"model": "assistant", "input": "What is a tessera?", **fields}
    return a_body(max_tokens=50, **fields)


@pytest.mark.parametrize("script", [report(TOO_LONG, 400), report(TOO_LONG)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_coding_clients_see_that_a_prompt_is_too_long(
    tmp_path: Path, path: str, stream: bool, script: Script
) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = script
        got = await ask(world, a_prompt(path, stream=stream), path)
        outside, _ = await world.records(2)
    assert (got.status, got.error["type"]) == (400, "invalid_request_error")
    assert got.error["code"] == "context_length_exceeded"
    assert got.error["message"].startswith("prompt is too long: 9000 tokens > 8192 maximum")
    assert (outside.reason, outside.cost_nanos) == ("ContextTooLong", 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_clients_read_in_a_stream_that_has_begun_that_a_prompt_is_too_long(
    tmp_path: Path, path: str
) -> None:
    released = asyncio.Event()

    async def waits(call: ProviderCall) -> None:
        await released.wait()
        await report(TOO_LONG)(call)

    async with routed(tmp_path, OUTSIDE) as world:
        world.gateway.app.stations.receiver.bounds = BodyBounds(heartbeat_seconds=0.01)
        world.provider.script = waits
        asked, url = a_prompt(path, stream=True), world.gateway.url + path
        async with world.gateway.client.post(url, json=asked) as response:
            await response.content.readuntil(b": waiting\n\n")
            released.set()
            body = await response.read()
    *_, event = body.removesuffix(b"\n\n").split(b"\n\n")
    data = json.loads(event.partition(b"data: ")[2])
    assert data["error"]["code"] == "context_length_exceeded"
    match path:
        case "/v1/responses":
            assert event.startswith(b"event: response.failed\n")
            assert data["type"] == "response.failed"
            assert data["response"]["error"]["code"] == "context_length_exceeded"
        case "/v1/messages":
            assert event.startswith(b"event: error\n")
            assert (data["type"], data["error"]["type"]) == ("error", "invalid_request_error")
        case _:
            assert event.startswith(b"data: ")


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        (report(TOO_LONG, 400), 400, "invalid_request_error"),
        (refuse(500), 502, "api_error"),
        (refuse(429), 503, "overloaded_error"),
    ],
)
async def test_clients_of_anthropic_read_its_types(
    tmp_path: Path, script: Script, status: int, kind: str
) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = script
        got = await ask(world, a_body(max_tokens=50), "/v1/messages")
    assert (got.status, json.loads(got.body)["type"]) == (status, "error")
    assert got.error["type"] == kind


async def test_a_prompt_that_no_target_takes_is_too_long_whatever_else_they_say(
    tmp_path: Path,
) -> None:
    missing = {"name": "missing", "service": "no-such-service"}
    async with routed(tmp_path, OUTSIDE, missing) as world:
        got = await ask(world, a_body("word " * 8192))
        assert not world.provider.calls
    assert (got.status, got.error["code"]) == (400, "context_length_exceeded")


async def test_a_larger_target_that_fails_makes_no_prompt_too_long(tmp_path: Path) -> None:
    async def fails(call: EngineCall) -> None:
        await call.whole({"error": {"message": "broken"}}, status=500)

    async with routed(tmp_path, own=fails, model={"max_context_tokens": 64}) as world:
        got = await ask(world, a_body("word " * 500))
        assert not world.provider.calls
    assert (got.status, got.error["code"]) == (502, "no_target")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_clients_of_anthropic_read_its_types_before_they_are_known(
    tmp_path: Path, path: str
) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        got = await world.gateway.post(a_body(max_tokens=50), path, authorization="Bearer tsk-none")
    body = json.loads(got.body)
    assert (got.status, body["type"], body["error"]["type"]) == (
        401,
        "error",
        "authentication_error",
    )


async def test_long_prompts_eject_no_provider(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.script = report(TOO_LONG)
        for number in range(8):
            got = await ask(world, a_body(stream=number % 2 == 0))
            assert got.headers["x-tessera-target"] == "own"
        assert len(world.provider.calls) == 8
        assert world.asked.client.ejected_seconds("acme") == 0


@pytest.mark.parametrize("script", [report(LOW_CREDIT, 400), report(LOW_CREDIT)])
async def test_an_account_without_credit_is_no_fault_of_the_request(
    tmp_path: Path, script: Script
) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = script
        answers = [await ask(world, a_body(stream=number > 1)) for number in range(8)]
        assert len(world.provider.calls) == 3
    assert answers[0].status == 502
    assert "outside: ProviderKeyRefused" in answers[0].error["message"]


@pytest.mark.parametrize(("name", "param"), [("top_p", "top_p"), ("max_tokens", None)])
async def test_a_client_reads_which_of_its_own_fields_is_refused(
    tmp_path: Path, name: str, param: str | None
) -> None:
    error = {"message": KEY, "code": "unsupported_parameter", "param": name}
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = report({"error": error}, 400)
        got = await ask(world, a_body(top_p=0.5))
    assert (got.status, got.error["code"]) == (400, "provider_refused")
    assert got.error["param"] == param
    assert (f"`{name}`" in got.error["message"]) == (param is not None)


async def test_a_provider_that_is_overloaded_in_its_stream_is_asked_again(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        world.provider.scripts.append(report({"error": {"type": "overloaded_error"}}))
        got = await ask(world, a_body(stream=True))
        assert got.headers["x-tessera-target"] == "outside"
        assert len(world.provider.calls) == 2
        (record,) = await world.records(1)
        assert record.charge_nanos == PRICE_OF_PROMPT + PRICE_OF_ANSWER


async def test_nothing_of_the_client_but_its_request_reaches_a_provider(tmp_path: Path) -> None:
    async with routed(tmp_path, own=own) as world:
        await world.gateway.post(
            a_body(user="mallory", cache_salt="s", priority=3, metadata={"a": "b"}),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            cookie="session=1",
            **{"x-request-id": "id-of-client", "x-tessera-tags": "tag"},
        )
        (call,) = world.provider.calls
    assert call.body == {
        "model": "big-1",
        "messages": [{"role": "user", "content": "What is a tessera?"}],
        "max_tokens": 100,
    }
    assert set(call.headers) == {
        *("host", "authorization", "content-type", "content-length"),
        *("accept", "accept-encoding", "user-agent"),
    }
