"""Requests that a model of a provider answers, and those that it does not."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tessera.api.ref import Ref
from tessera.domain.gateway.client_lengths import MIN_REQUESTS
from tessera.domain.gateway.requests import RunningPhase
from tessera.domain.money import NANO, Money
from tessera.gateway.http.responses import MAX_UNREAD_BYTES
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.charging import INPUT, OUTPUT, a_cost_limit
from tests.gateway.harness import EngineCall, an_api_key
from tests.gateway.http.test_slow_clients import a_client, post
from tests.gateway.outside.routing import OUTSIDE, OWN, ROUTE, a_body, answers, routed
from world.provider import (
    ProviderCall,
    answer,
    refuse,
    say_nothing,
)

SHORT = {"connect": "100ms", "firstByte": "100ms", "gap": "100ms"}
LONG_BODY = "word " * 200_000


async def test_a_provider_answers_and_says_so(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        got = await world.gateway.post(a_body(user="me", metadata={"a": "b"}))
        (record,) = await world.records(1)
        (call,) = world.provider.calls
    assert (got.status, json.loads(got.body)["model"]) == (200, "big-1")
    shown = {name: value for name, value in got.headers.items() if name.startswith("x-tessera-")}
    assert shown == {
        "x-tessera-route": "team-a/assistant",
        "x-tessera-target": "outside",
        "x-tessera-target-reason": "RuleMatched",
        "x-tessera-model": "big-1",
        "x-tessera-charge": "0.000084 USD",
    }
    assert call.body == {
        "model": "big-1",
        "messages": [{"role": "user", "content": "What is a tessera?"}],
        "max_tokens": 100,
    }
    assert (record.service, record.provider, record.target) == ("", "acme/big-1", "outside")
    assert (record.model, record.model_route, record.requests) == (ROUTE, "team-a/assistant", 1)
    assert record.ttft_ns is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_of_each_protocol_read_what_a_provider_answers(
    tmp_path: Path, stream: bool
) -> None:
    text = "".join(f"word{number} " for number in range(8))
    async with (
        routed(tmp_path) as world,
        AsyncOpenAI(base_url=f"{world.gateway.url}/v1", api_key="tsk-team-a") as openai,
        AsyncAnthropic(base_url=world.gateway.url, api_key="tsk-team-a") as anthropic,
    ):
        messages: Any = a_body()["messages"]
        chat: Any = await openai.chat.completions.create(
            model=ROUTE, messages=messages, stream=stream
        )
        response: Any = await openai.responses.create(model=ROUTE, input="Hello you", stream=stream)
        message: Any = await anthropic.messages.create(
            model=ROUTE, messages=messages, max_tokens=50, stream=stream
        )
        if stream:
            chunks = [each.choices[0].delta.content or "" async for each in chat]
            deltas = [getattr(each, "delta", "") async for each in response]
            blocks = [
                each.delta.text async for each in message if each.type == "content_block_delta"
            ]
            texts = "".join(chunks), "".join(deltas), "".join(blocks)
        else:
            texts = (
                chat.choices[0].message.content,
                response.output_text,
                message.content[0].text,
            )
        records = await world.records(3)
    assert texts == (text, text, text)
    assert [(each.output_tokens, each.estimated) for each in records] == [(8, False)] * 3
    assert [each.path for each in world.provider.calls] == [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
    ]


_EVENTS = (
    b'data: {"choices":[{"delta":{"content":"Own"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        ({"tools": False}, {"tools": [{"type": "function"}]}, "ToolsNotTaken"),
        ({}, {"messages": [{"role": "user", "content": LONG_BODY}]}, "ContextTooLong"),
        ({}, {"logit_bias": {"5": 1}}, "InvalidRequest"),
        (
            {},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iV"}}
                        ],
                    }
                ]
            },
            "MediaNotTaken",
        ),
    ],
)
async def test_a_provider_is_not_asked_for_what_its_model_cannot_take(
    tmp_path: Path, model: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    async with routed(tmp_path, model=model) as world:
        got = await world.gateway.post(a_body(**fields))
        (record,) = await world.records(1)
        assert not world.provider.calls
        assert world.gateway.held_bytes == 0
    assert got.headers["x-tessera-target"] == "own"
    assert record.skipped_targets == f"outside={reason}"


async def test_a_path_of_another_protocol_skips_a_provider(tmp_path: Path) -> None:
    async with routed(tmp_path, protocols=frozenset({"AnthropicMessages"})) as world:
        await world.gateway.post(a_body())
        counted = await world.gateway.post(a_body(), "/tokenize")
        assert len(world.engine.calls) == 2
        assert not world.provider.calls
    assert counted.headers["x-tessera-target"] == "own"


async def test_no_provider_counts_tokens(tmp_path: Path) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        got = await world.gateway.post(a_body(), "/v1/messages/count_tokens")
    assert (got.status, got.error["code"]) == (404, "no_target")
    assert "outside: PathNotServed" in got.error["message"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"region": "eu", "tenant": {"residency": frozenset({"us"})}}, "DataResidency"),
        ({"tenant": {"residency": frozenset({"us"})}}, "DataResidency"),
        ({"weights": {"team-b": 1.0}}, "TargetNotFound"),
        (
            {"keys": (an_api_key(services=frozenset({Ref("team-a", "chat")})),)},
            "TargetNotFound",
        ),
    ],
)
async def test_requests_that_may_not_leave_stay(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    async with routed(tmp_path, **options) as world:
        got = await world.gateway.post(a_body())
        (record,) = await world.records(1)
        assert not world.provider.calls
    assert got.headers["x-tessera-target"] == "own"
    assert record.skipped_targets == f"outside={reason}"


async def test_a_request_may_leave_to_a_region_that_its_tenant_allows(tmp_path: Path) -> None:
    tenant = {"residency": frozenset({"eu"})}
    async with routed(tmp_path, region="eu", tenant=tenant) as world:
        got = await world.gateway.post(a_body())
    assert got.headers["x-tessera-target"] == "outside"


async def test_a_refusal_of_all_targets_has_the_reason_of_each(tmp_path: Path) -> None:
    async with routed(tmp_path, OUTSIDE) as world:
        world.provider.script = refuse(500)
        failed = await world.gateway.post(a_body())
        world.provider.script = refuse(400)
        refused = await world.gateway.post(a_body())
    assert (failed.status, failed.error["code"]) == (502, "no_target")
    assert "outside: ProviderFailed" in failed.error["message"]
    assert (refused.status, refused.error["code"]) == (400, "provider_refused")


async def test_a_target_may_not_take_longer_than_its_time_outs(tmp_path: Path) -> None:
    slow = {**OUTSIDE, "timeouts": {"firstToken": "100ms"}}
    async with routed(tmp_path, slow, OWN) as world:
        world.provider.script = say_nothing
        got = await world.gateway.post(a_body())
        failed, _ = await world.records(2)
        await asyncio.wait_for(world.provider.calls[0].closed.wait(), 10)
    assert got.headers["x-tessera-target"] == "own"
    assert (failed.reason, failed.estimated) == ("TargetTimeout", True)


async def test_a_stream_at_a_provider_is_listed_and_holds_nothing(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def holds(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        await call.chunk(_EVENTS[0])
        await release.wait()
        await call.chunk(_EVENTS[1] + _EVENTS[2])
        await call.end()

    async with routed(tmp_path) as world:
        world.provider.script = holds
        body = a_body("Hello " * 2000, stream=True)
        asking = asyncio.create_task(world.gateway.post(body))
        await world.gateway.wait_for_tokens(1)
        await world.gateway.wait_for_held_bytes(0, 1000)
        ((running,), _) = world.gateway.app.running(1)
        (partial,) = world.gateway.app.partial_records()
        release.set()
        got = await asking
        (record,) = await world.records(1)
    assert (running.provider, running.service, running.replica) == ("acme/big-1", "", None)
    assert running.phase is RunningPhase.DECODE
    assert (partial.phase, partial.reason, partial.estimated) == ("Aborted", "GatewayKilled", True)
    assert b"usage" not in got.body
    assert (record.output_tokens, record.estimated) == (1, False)


async def test_a_head_that_heartbeats_sent_is_followed_by_who_answers(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def waits(call: ProviderCall) -> None:
        await release.wait()
        await answer()(call)

    async with routed(tmp_path) as world:
        world.gateway.app.stations.receiver.bounds = BodyBounds(heartbeat_seconds=0.01)
        world.provider.script = waits
        asking = asyncio.create_task(world.gateway.post(a_body(stream=True)))
        await world.provider.has_calls(1)
        await asyncio.sleep(0.05)
        release.set()
        got = await asking
    assert b": waiting\n\n" in got.body
    assert b": x-tessera-target: outside\n: x-tessera-target-reason: RuleMatched\n" in got.body
    assert b": x-tessera-model: big-1\n" in got.body


async def test_events_that_come_at_once_reach_the_client_one_by_one(tmp_path: Path) -> None:
    words = b"".join(
        b'data: {"choices":[{"delta":{"content":"w%d "}}],"usage":null}\n\n' % number
        for number in range(2000)
    )

    async def bursts(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        await call.chunk(words + _EVENTS[1] + _EVENTS[2])
        await call.end()

    async with routed(tmp_path) as world:
        world.provider.script = bursts
        got = await world.gateway.post(a_body(stream=True))
        assert world.gateway.held_bytes == 0
    assert got.body == words + _EVENTS[2]


async def test_a_client_that_does_not_read_holds_the_provider_back(tmp_path: Path) -> None:
    sent = 0

    async def goes_on(call: ProviderCall) -> None:
        nonlocal sent
        await call.head(200, "text/event-stream")
        while not call.closed.is_set():
            await call.chunk(_EVENTS[0] * 1000)
            sent += 1000 * len(_EVENTS[0])

    async with routed(tmp_path) as world, a_client(world.gateway) as client:
        world.provider.script = goes_on
        await asyncio.get_running_loop().sock_sendall(client, post(a_body(stream=True)))
        await world.gateway.wait_for_held_bytes(MAX_UNREAD_BYTES)
        before = sent
        await asyncio.sleep(0.1)
        assert world.gateway.held_bytes < 2 * MAX_UNREAD_BYTES
        # Buffers of sockets on both ends take the rest.
        assert sent - before < 12 * 2**20
        client.close()
        (record,) = await world.records(1)
        await asyncio.wait_for(world.provider.calls[0].closed.wait(), 10)
        await world.gateway.wait_for_held_bytes(0, 0)
    assert record.reason == "ClientGone"


async def test_a_provider_that_is_taken_away_is_not_asked_once_more(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        admission = world.gateway.admission

        async def leaves(call: ProviderCall) -> None:
            admission.update(replace(admission.senders.directory, outside={}))
            await refuse(429)(call)

        world.provider.script = leaves
        got = await world.gateway.post(a_body())
        assert len(world.provider.calls) == 1
    assert got.headers["x-tessera-target"] == "own"


async def test_a_provider_that_failed_often_is_asked_nothing_for_a_while(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        world.provider.script = refuse(500)
        for _ in range(4):
            await world.gateway.post(a_body())
        records = await world.records(7)
        assert len(world.provider.calls) == 3
        assert world.asked.client.states["acme"].ended == {"ProviderFailed": 3, "ProviderBusy": 1}
    assert records[-1].skipped_targets == "outside=ProviderBusy"


async def test_what_is_lent_for_providers_makes_no_names_be_looked_up_again(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path) as world:
        admission, url = world.gateway.admission, world.gateway.url
        async with world.gateway.client.get(f"{url}/v1/models") as got:
            assert got.status == 200
        directory = admission.senders.directory
        lent = replace(directory.tenants["team-a"], outside=(a_cost_limit(1),))
        admission.update(replace(directory, tenants={"team-a": lent}))
        assert admission.models.listings_of("team-a")
        weighty = replace(lent, charge_limits=())
        admission.update(replace(directory, tenants={"team-a": weighty}))
        assert not admission.models.listings_of("team-a")


async def test_a_request_that_a_provider_answered_is_explained(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        await world.gateway.post(a_body(), **{"x-request-id": "first"})
        (explained,) = world.gateway.app.explain("first").requests
    assert (explained.provider, explained.service) == ("acme/big-1", "")
    assert (explained.target, explained.attempts) == ("outside", ())


async def test_what_overflows_to_a_provider_counts_with_what_it_bills(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    service = {"ttft_seconds": 0.05, "token_cost": Money(NANO, "USD")}
    async with routed(tmp_path, OWN, OUTSIDE, own=holds, service=service) as world:
        gateway, body = world.gateway, a_body(max_tokens=9)
        release.set()
        for _ in range(MIN_REQUESTS):
            await gateway.post(body)
        release.clear()
        others = [asyncio.create_task(gateway.post(body)) for _ in range(5)]
        while not any(each.done() for each in others):
            gateway.admission.queues.pump()
            await asyncio.sleep(0.02)
        tokens = gateway.admission.arrivals.take()[Ref("team-a", "chat")].tokens
        release.set()
        await asyncio.gather(*others)
    # The service's answers have 7 tokens of prompt and 2 of answer; it bills twice the prices.
    assert tokens.overflowed > 0
    assert tokens.overflow_nanos == tokens.overflowed * 2 * (7 * INPUT + 2 * OUTPUT)
