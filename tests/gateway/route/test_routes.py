"""What clients get of a route: the target that can answer, and why not another."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from anthropic import APIStatusError, AsyncAnthropic

from tessera.api.model_route import ModelRouteSpec
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.client_lengths import MIN_REQUESTS
from tessera.domain.gateway.directory import OfferedModel, TenantLimits
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.money import NANO, Money
from tessera.gateway.relay.sent import Sent
from tests.gateway.harness import (
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)

EASY = "What is the capital of France?"
HARD = "Analyze and compare the two."
AUTH = {"authorization": "Bearer tsk-team-a"}


async def answers(call: EngineCall) -> None:
    """Answer as the model that was asked for."""
    await call.whole(
        {
            "model": call.json["model"],
            "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }
    )


async def fails(call: EngineCall) -> None:
    await call.whole({"error": {"message": "out of memory", "code": 500}}, status=500)


def a_route(*targets: dict[str, Any], **changes: Any) -> OfferedModel:
    spec: dict[str, Any] = {"targets": targets, **changes.pop("spec", {})}
    values = {
        "service": Ref("team-a", "assistant"),
        "uid": "uid-assistant",
        "names": ("assistant",),
        "tenant": "team-a",
        "route": ModelRouteSpec.model_validate(spec),
    }
    return OfferedModel(**{**values, **changes})


def a_target(name: str, address: str | None, **changes: Any) -> OfferedModel:
    replicas = [] if address is None else [a_replica(address, f"{name}-1")]
    values = {"service": Ref("team-a", name), "uid": f"uid-{name}", "names": (name,)}
    return a_model(*replicas, **{**values, **changes})


SMALL = {"service": "small", "when": {"maxScore": 2}}
LARGE = {"service": "large"}


@asynccontextmanager
async def a_routed_gateway(
    small_script: Script, large_script: Script, *targets: dict[str, Any], **changes: Any
) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, ScriptedEngine]]:
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(ScriptedEngine(script))
            for script in (small_script, large_script)
        ]
        directory = a_directory(
            a_target("small", engines[0].address, **changes.pop("small", {})),
            a_target("large", engines[1].address, **changes.pop("large", {})),
            a_route(*(targets or (SMALL, LARGE)), **changes),
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        yield gateway, engines[0], engines[1]


def a_body(text: str = EASY, **fields: Any) -> dict[str, Any]:
    return {"model": "assistant", "messages": [{"role": "user", "content": text}], **fields}


async def test_the_first_target_whose_rule_holds_answers_and_says_so() -> None:
    async with a_routed_gateway(answers, answers) as (gateway, small, large):
        easy = await gateway.post(a_body(), **AUTH)
        hard = await gateway.post(a_body(HARD), **AUTH)

        assert [easy.headers["x-tessera-target"], hard.headers["x-tessera-target"]] == [
            "small",
            "large",
        ]
        assert json.loads(easy.body)["model"] == easy.headers["x-tessera-model"] == "small"
        assert easy.headers["x-tessera-route"] == "team-a/assistant"
        assert [small.calls[0].json["model"], large.calls[0].json["model"]] == ["small", "large"]
        first, second = gateway.records
        assert (first.model, first.model_route, first.target, first.service) == (
            "assistant",
            "team-a/assistant",
            "small",
            "team-a/small",
        )
        assert (second.target, second.requests) == ("large", 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_target_answers_where_one_fails_before_its_first_token(
    stream: bool,
) -> None:
    async def streams(call: EngineCall) -> None:
        if stream:
            await call.stream(*EVENTS)
        else:
            await answers(call)

    async with a_routed_gateway(fails, streams) as (gateway, small, large):
        answer = await gateway.post(a_body(stream=stream), **AUTH)

        assert (answer.status, answer.headers["x-tessera-target"]) == (200, "large")
        assert answer.headers["x-tessera-target-reason"] == "Fallback"
        assert len(small.calls) == len(large.calls) == 1
        failed, answered = gateway.records
        assert failed.request_id == answered.request_id
        assert failed.record_id != answered.record_id
        assert [(each.target, each.requests, each.phase) for each in gateway.records] == [
            ("small", 0, "Failed"),
            ("large", 1, "Completed"),
        ]


EVENTS = (
    b'data: {"choices":[{"delta":{"content":"Yes"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
)


async def test_no_other_target_answers_once_a_token_came() -> None:
    async def breaks(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(EVENTS[0])
        call.cut()

    async with a_routed_gateway(breaks, answers) as (gateway, _, large):
        answer = await gateway.post(a_body(stream=True), **AUTH)

        assert b"Yes" in answer.body
        assert b"stream_broken" in answer.body
        assert not large.calls
        assert [each.target for each in gateway.records] == ["small"]


async def test_a_target_without_a_replica_is_skipped_and_woken() -> None:
    asleep = {"replicas": (), "may_sleep": True, "is_asleep": True}
    async with a_routed_gateway(answers, answers, small=asleep) as (gateway, _, large):
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.headers["x-tessera-target"] == "large"
        assert len(large.calls) == 1
        assert gateway.woken.is_set()
        assert gateway.admission.places.queued() == {Ref("team-a", "small"): (1, 0.0)}


async def test_a_refusal_has_the_reason_of_each_target() -> None:
    stopped = {"replicas": (), "stopped": True}
    async with a_routed_gateway(answers, fails, small=stopped) as (gateway, *_):
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.status == 503
        assert answer.error["code"] == "no_target"
        assert "small: ServiceStopped, large: EngineFailed" in answer.error["message"]
        # One that failed, and the request itself.
        assert [(each.target, each.requests) for each in gateway.records] == [("large", 0), ("", 1)]
        assert gateway.records[1].model_route == "team-a/assistant"
        # Refused ones are not stored, and what a target used that failed would be of no request.
        assert [each.phase for each in gateway.records] == [Phase.FAILED, Phase.FAILED]


async def test_what_an_engine_refuses_has_its_own_words() -> None:
    async def refuses(call: EngineCall) -> None:
        await call.whole({"error": {"message": "no tools here", "code": 400}}, status=400)

    async with a_routed_gateway(refuses, refuses) as (gateway, small, large):
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["message"]) == (400, "no tools here")
        assert len(small.calls) == len(large.calls) == 1


async def test_a_target_that_is_too_slow_gives_way() -> None:
    async def waits(call: EngineCall) -> None:
        await call.gone.wait()

    slow = {**SMALL, "timeouts": {"firstToken": "100ms"}}
    async with a_routed_gateway(waits, answers, slow, LARGE) as (gateway, small, _):
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.headers["x-tessera-target"] == "large"
        await asyncio.wait_for(small.calls[0].gone.wait(), 10)
        assert gateway.records[0].reason == "TargetTimeout"


async def test_a_kind_of_failure_that_is_not_listed_ends_the_request() -> None:
    spec = {"fallback": ["Timeout"]}
    async with a_routed_gateway(fails, answers, spec=spec) as (gateway, _, large):
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["code"]) == (502, "engine_failed")
        assert not large.calls


async def test_a_full_queue_sends_requests_to_the_next_target_in_time() -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    async with AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(ScriptedEngine(script)) for script in (holds, answers)
        ]
        replica = a_replica(small.address, "small-1", max_num_seqs=1)
        directory = a_directory(
            a_target("small", None, replicas=(replica,), ttft_seconds=0.2),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        first = asyncio.create_task(gateway.post(a_body(), **AUTH))
        await gateway.wait_for_in_flight(1)

        others = [asyncio.create_task(gateway.post(a_body(), **AUTH)) for _ in range(4)]
        while not any(each.done() for each in others):
            # As with each poll of the engines.
            gateway.admission.queues.pump()
            await asyncio.sleep(0.05)
        done = [each for each in others if each.done()]
        assert {(await each).headers["x-tessera-target"] for each in done} == {"large"}
        release.set()

        assert (await first).headers["x-tessera-target"] == "small"
        await asyncio.gather(*others)


@pytest.mark.parametrize(("currency", "counted"), [("USD", True), ("EUR", False)])
async def test_what_overflows_is_counted_with_what_it_costs_at_its_target(
    currency: str, counted: bool
) -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    async with AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(ScriptedEngine(script)) for script in (holds, answers)
        ]
        replica = a_replica(small.address, "small-1", max_num_seqs=1)
        own, other = Money(NANO, "USD"), Money(8 * NANO, currency)
        directory = a_directory(
            a_target("small", None, replicas=(replica,), ttft_seconds=0.05, token_cost=own),
            a_target("large", large.address, token_cost=other),
            a_route(SMALL, LARGE),
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        release.set()
        for _ in range(MIN_REQUESTS):
            await gateway.post(a_body(max_tokens=9), **AUTH)
        release.clear()
        # The engine has some of them in its own queue.
        others = [asyncio.create_task(gateway.post(a_body(max_tokens=9), **AUTH)) for _ in range(5)]
        while not any(each.done() for each in others):
            gateway.admission.queues.pump()
            await asyncio.sleep(0.02)
        came = gateway.admission.arrivals.take()[Ref("team-a", "small")]
        tokens = came.tokens
        assert tokens.routed == came.requests == MIN_REQUESTS + 5
        assert bool(tokens.overflowed) == counted
        # The answers of its client have 2 tokens, and a million costs 8 USD there.
        assert tokens.overflow_nanos == tokens.overflowed * 2 * 8000
        assert not tokens.waited

        # What has no other target waits at any price.
        last = asyncio.create_task(gateway.post({**a_body(), "model": "small"}, **AUTH))
        waited = 0
        while not waited:
            await asyncio.sleep(0.02)
            for each in gateway.admission.arrivals.take().values():
                waited += each.tokens.waited
                assert not each.tokens.routed
        release.set()
        await asyncio.gather(*others, last)


async def test_where_no_target_is_free_a_request_waits_for_the_chosen_one() -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    stopped = {"replicas": (), "stopped": True}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(holds))
        replica = a_replica(engine.address, "small-1", max_num_seqs=1)
        directory = a_directory(
            a_target("small", None, replicas=(replica,), ttft_seconds=0.05),
            a_target("large", None, **stopped),
            a_route(SMALL, LARGE),
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        tasks = [asyncio.create_task(gateway.post(a_body(), **AUTH)) for _ in range(6)]
        for _ in range(10):
            gateway.admission.queues.pump()
            await asyncio.sleep(0.05)
        release.set()

        for task in tasks:
            assert (await task).headers["x-tessera-target"] == "small"


@pytest.mark.parametrize(
    ("sender", "target"),
    [
        ({}, "large"),
        ({"services": frozenset({Ref("team-a", "large")})}, "large"),
        ({"models": ("assistant",)}, "large"),
    ],
)
async def test_a_target_that_the_sender_may_not_use_is_skipped(
    sender: dict[str, Any], target: str
) -> None:
    foreign = {"tenant": "team-b", "service": Ref("team-b", "small")}
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(answers)) for _ in range(2)]
        directory = a_directory(
            a_target("small", engines[0].address, **foreign),
            a_target("large", engines[1].address),
            a_route({**SMALL, "service": "team-b/small"}, LARGE),
            keys=[an_api_key(**sender)],
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.headers["x-tessera-target"] == target
        assert not engines[0].calls


async def test_a_key_of_other_services_does_not_see_a_route() -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(answers))
        directory = a_directory(
            a_target("small", engine.address),
            a_target("other", engine.address),
            a_route({"service": "small"}),
            keys=[an_api_key(services=frozenset({Ref("team-a", "other")}))],
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        answer = await gateway.post(a_body(), **AUTH)

        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        async with gateway.client.get(gateway.url + "/v1/models", headers=AUTH) as response:
            assert [each["id"] for each in (await response.json())["data"]] == ["other"]


async def test_settings_of_a_target_change_what_its_engine_gets() -> None:
    settings = {"maxOutputTokens": 64, "thinking": False, "reasoningEffort": "Low"}
    small = {**SMALL, "set": settings}
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, engine, _):
        await gateway.post(a_body(max_tokens=500, chat_template_kwargs={"a": 1}), **AUTH)

        body = engine.calls[0].json
        assert body["max_tokens"] == 64
        assert body["reasoning_effort"] == "low"
        assert body["chat_template_kwargs"] == {
            "a": 1,
            "enable_thinking": False,
            "thinking": False,
        }


async def test_without_downgrades_the_last_target_answers() -> None:
    async with a_routed_gateway(answers, answers) as (gateway, *_):
        answer = await gateway.post(a_body(), **AUTH, **{"x-tessera-allow-downgrade": "false"})
        assert answer.headers["x-tessera-target"] == "large"
        assert answer.headers["x-tessera-target-reason"] == "NoDowngrade"


async def test_of_a_tenant_that_spent_so_much_the_cheapest_target_answers_and_no_other() -> None:
    tenant = TenantLimits(name="team-a", namespaces=("team-a",), cheaper_targets=True)

    async def refuses_tools_and_fails_once(call: EngineCall) -> None:
        if "tools" in call.json:
            await call.whole({"error": {"message": "no tools", "code": 400}}, status=400)
        else:
            await (fails if len(small.calls) == 2 else answers)(call)

    async with AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(ScriptedEngine(script))
            for script in (refuses_tools_and_fails_once, answers)
        ]
        directory = a_directory(
            a_target("small", small.address),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
            tenants={"team-a": tenant},
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        bodies = a_body(HARD), a_body(), a_body(tools=[{"type": "function", "function": {}}])
        hard, failed, with_tools = [await gateway.post(body, **AUTH) for body in bodies]
        last = await gateway.post(a_body(), **AUTH, **{"x-tessera-allow-downgrade": "false"})

        assert (failed.status, failed.error["code"]) == (502, "engine_failed")
        assert [
            (each.headers["x-tessera-target"], each.headers["x-tessera-target-reason"])
            for each in (hard, with_tools, last)
        ] == [("small", "CheaperTargets"), ("large", "Fallback"), ("large", "NoDowngrade")]
        assert (gateway.records[0].target, gateway.records[0].target_reason) == (
            "small",
            "CheaperTargets",
        )


async def test_a_request_that_asks_two_targets_counts_once_in_the_limits_of_its_sender() -> None:
    limits = RateLimitsSpec.model_validate({"requests": {"perMinute": 3}})
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(ScriptedEngine(script)) for script in (fails, answers)
        ]
        directory = a_directory(
            a_target("small", engines[0].address),
            a_target("large", engines[1].address),
            a_route(SMALL, LARGE),
            keys=[an_api_key(limits=limits)],
        )
        gateway = await stack.enter_async_context(a_gateway(directory))
        statuses = [(await gateway.post(a_body(), **AUTH)).status for _ in range(4)]

        assert statuses == [200, 200, 200, 429]


async def test_nothing_is_held_of_a_routed_stream_that_began() -> None:
    release = asyncio.Event()

    async def streams(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(EVENTS[0])
        await release.wait()
        await call.chunk(EVENTS[1] + EVENTS[2])
        await call.finish()

    async with a_routed_gateway(streams, answers) as (gateway, *_):
        text = EASY + " " * 200_000
        task = asyncio.create_task(gateway.post(a_body(text, stream=True, n=2), **AUTH))
        await gateway.wait_for_tokens(1)
        await gateway.wait_for_held_bytes(0, 10_000)
        (course,) = gateway.app._courses
        assert isinstance(course.at, Sent)
        origin = course.at.placed.reserved.chosen.received.origin
        assert origin is not None
        assert not origin.body
        release.set()
        assert (await task).status == 200


async def test_a_client_of_messages_hears_that_its_stream_is_broken() -> None:
    async def breaks(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(b'event: content_block_delta\ndata: {"delta":{"text":"Yes"}}\n\n')
        call.cut()

    async with (
        a_routed_gateway(breaks, answers) as (gateway, *_),
        AsyncAnthropic(base_url=gateway.url, api_key="tsk-team-a", max_retries=0) as client,
    ):
        stream = await client.messages.create(
            model="assistant",
            messages=[{"role": "user", "content": EASY}],
            max_tokens=5,
            stream=True,
        )
        with pytest.raises(APIStatusError, match="broke off"):
            async for _ in stream:
                pass
