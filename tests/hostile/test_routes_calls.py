"""Attacks on the calls of routes: clients that leave, time-outs, memory, bodies that fool rules."""

import asyncio
import json
import time
from typing import Any

import pytest

from tessera.api.model_route import ModelRouteSpec, RouteScore
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Identity
from tessera.domain.routes.rules import score
from tessera.gateway.bodies.turns import LARGE_BYTES, Turns
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.harness import (
    ROLE,
    EngineCall,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
)
from tests.gateway.route.test_routes import (
    AUTH,
    EVENTS,
    LARGE,
    SMALL,
    a_body,
    a_route,
    a_routed_gateway,
    a_target,
    answers,
    fails,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
ANY = {**SMALL, "when": {"maxScore": 5}}
SLOW = {**SMALL, "timeouts": {"firstToken": "100ms"}}


async def silent(call: EngineCall) -> None:
    await call.gone.wait()


async def streams(call: EngineCall) -> None:
    await call.stream(*EVENTS)


async def test_a_stream_whose_head_heartbeats_took_says_who_answers() -> None:
    async def waits(call: EngineCall) -> None:
        await asyncio.sleep(0.3)
        await fails(call)

    async with ScriptedEngine(waits) as small, ScriptedEngine(streams) as large:
        directory = a_directory(
            a_target("small", small.address),
            a_target("large", large.address),
            a_route(SMALL, LARGE),
        )
        async with a_gateway(directory, BodyBounds(heartbeat_seconds=0.1)) as gateway:
            answer = await gateway.post(a_body(stream=True), **AUTH)

            assert "x-tessera-target" not in answer.headers
            assert answer.body.startswith(b": waiting\n\n")
            assert b": x-tessera-target: large\n" in answer.body
            assert b"x-tessera-target: small" not in answer.body


async def test_a_stream_that_breaks_before_its_first_token_leaves_nothing_to_its_client() -> None:
    async def breaks(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        await asyncio.sleep(0.05)
        call.cut()

    text = "word " * 10_000
    async with a_routed_gateway(breaks, streams, ANY, LARGE) as (gateway, small, large):
        answer = await gateway.post(a_body(text, stream=True), **AUTH)

        assert answer.headers["x-tessera-target"] == "large"
        assert b"assistant" not in answer.body
        assert large.calls[0].json["messages"][0]["content"] == text
        assert small.calls


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_during_a_time_out_leaves_nothing(stream: bool) -> None:
    async with a_routed_gateway(silent, silent, SLOW, LARGE) as (gateway, small, large):
        for pause in (0.0, 0.05, 0.09, 0.1, 0.101, 0.105, 0.12):
            request = asyncio.create_task(gateway.post(a_body(stream=stream), **AUTH))
            await asyncio.sleep(pause)
            request.cancel()
            await asyncio.wait((request,))

        async def is_empty() -> None:
            assert gateway.app.running(10) == ([], 0)
            assert not gateway.admission.demand
            assert gateway.held_bytes == 0
            assert all(call.gone.is_set() for call in (*small.calls, *large.calls))

        await eventually(is_empty)
        by_request: dict[str, int] = {}
        for record in gateway.records:
            by_request.setdefault(record.request_id, 0)
            by_request[record.request_id] += record.requests
        assert set(by_request.values()) == {1}


async def test_a_request_that_goes_from_target_to_target_can_be_listed() -> None:
    release = asyncio.Event()

    async def holds(call: EngineCall) -> None:
        await release.wait()
        await answers(call)

    async with a_routed_gateway(fails, holds) as (gateway, _, large):
        request = asyncio.create_task(gateway.post(a_body(), **AUTH))
        while not large.calls:
            for each in gateway.app.running(10)[0]:
                assert each.model in ("", "assistant")
            await asyncio.sleep(0)
        (listed,), _ = gateway.app.running(10)
        assert listed.service == "team-a/large"
        release.set()
        assert (await request).status == 200


async def test_no_more_of_a_body_is_kept_for_several_targets_than_is_held() -> None:
    small = {**ANY, "set": {"maxOutputTokens": 5}}
    text = "word " * 200_000
    async with a_routed_gateway(silent, answers, small, LARGE) as (gateway, engine, _):
        request = asyncio.create_task(gateway.post(a_body(text), **AUTH))

        async def is_sent() -> None:
            assert engine.calls

        await eventually(is_sent)
        (course,) = gateway.app._courses
        sent: Any = course.at
        received = sent.placed.reserved.chosen.received
        bodies = {id(body): len(body) for body in _bodies(sent, received)}
        assert sum(bodies.values()) <= 1.05 * gateway.held_bytes
        request.cancel()
        await asyncio.wait((request,))
        await gateway.wait_for_held_bytes(0, 0)


def _bodies(sent: Any, received: Any) -> list[bytes]:
    return [sent.body, received.body, received.origin.body]


async def test_nothing_is_held_after_several_targets_failed() -> None:
    small = {**ANY, "set": {"maxOutputTokens": 5}}
    text = "word " * 200_000
    for script in (fails, silent):
        async with a_routed_gateway(script, fails, {**SLOW, **small}, LARGE) as (gateway, *_):
            for _ in range(3):
                assert (await gateway.post(a_body(text), **AUTH)).error["code"] == "no_target"
            await gateway.wait_for_held_bytes(0, 0)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_a_setting_that_a_path_cannot_say_skips_the_target(path: str) -> None:
    settings = {"responseSchema": {"type": "object"}, "reasoningEffort": "Low"}
    small = {"service": "small", "when": {"maxScore": 5}, "set": settings}
    body: dict[str, Any] = {**a_body(max_tokens=5), "prompt": "Hi"}
    if path == "/v1/completions":
        del body["messages"]
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, engine, _):
        answer = await gateway.post(body, path, **AUTH)

        assert answer.headers["x-tessera-target"] == "large"
        assert not engine.calls


async def refuses(call: EngineCall) -> None:
    await call.whole({"error": {"message": "no", "code": 400}}, status=400)


async def cuts(call: EngineCall) -> None:
    call.cut()


@pytest.mark.parametrize(
    ("script", "status"), [(refuses, 400), (fails, 502), (cuts, 502), (silent, 504)]
)
async def test_of_eight_targets_that_fail_three_are_asked_and_nothing_is_held(
    script: Script, status: int
) -> None:
    timeouts = {"timeouts": {"firstToken": "100ms"}}
    targets = [{"name": f"t{number}", "service": "small", **timeouts} for number in range(7)]
    async with a_routed_gateway(script, script, *targets, {**LARGE, **timeouts}) as (
        gateway,
        small,
        large,
    ):
        answer = await gateway.post(a_body(), **AUTH)

        assert answer.status == status
        assert len(small.calls) + len(large.calls) == 3
        await gateway.wait_for_held_bytes(0, 0)
        assert not gateway.admission.demand
        assert gateway.app.running(10) == ([], 0)
        assert sum(record.requests for record in gateway.records) == 1


async def test_a_slow_target_keeps_no_place_once_it_is_given_up() -> None:
    async with a_routed_gateway(silent, answers, SLOW, LARGE) as (gateway, small, _):
        await asyncio.gather(*(gateway.post(a_body(), **AUTH) for _ in range(20)))

        states = gateway.admission.replicas.states(
            gateway.admission.models.find(Identity(tenant="team-a"), "small")
        )
        assert [state.requests for state in states] == [0]
        assert all(call.gone.is_set() for call in small.calls)
        # Tenants choose how long they wait: that is no fault of the engine of others.
        assert states[0].is_open(time.monotonic())


def test_words_of_a_route_and_a_text_that_fits_them_keep_no_gateway_busy() -> None:
    words = tuple("a" * (31 + number % 32) + "b" + "a" * (number // 32) for number in range(64))
    terms = RouteScore(words=words)
    for length in (20_000, 29_999, 100_000):
        began = time.process_time()
        score("a" * length, terms)
        assert time.process_time() - began < 0.1


@pytest.mark.parametrize(("length", "turns"), [(1_000, 0), (90_000, 1)])
async def test_words_of_a_route_that_take_long_take_a_turn(
    length: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    words = ["a" * 30 + f"b{number}" for number in range(64)]
    small = {"service": "small", "when": {"maxScore": 5}}
    spec = ModelRouteSpec.model_validate({"targets": [small, LARGE], "score": {"words": words}})
    async with a_routed_gateway(answers, answers, route=spec) as (gateway, _, _):
        before = Turns.take

        async def take(self: Turns, size: int, step: Any) -> Any:
            taken.append(size > LARGE_BYTES)
            return await before(self, size, step)

        monkeypatch.setattr(Turns, "take", take)
        assert (await gateway.post(a_body("a" * length), **AUTH)).status == 200
    assert sum(taken) == turns


@pytest.mark.parametrize("padding", [0, 20_000])
async def test_a_maximum_that_comes_twice_passes_no_engine_whichever_it_reads(padding: int) -> None:
    small = {"service": "small", "when": {"maxScore": 5}, "set": {"maxOutputTokens": 5}}
    base = json.dumps(a_body("Hi" + " " * padding))[:-1]
    twice = (
        '"max_tokens": 9, "max_tokens": 900000',
        '"max_tokens": 9, "max\\u005ftokens": 900000',
        '"max_completion_tokens": 3, "max_completion_tokens": 900000',
    )
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, engine, _):
        for fields in twice:
            answer = await gateway.post(f"{base}, {fields}}}".encode(), **AUTH)
            if answer.status == 400:
                continue
            pairs: list[tuple[str, Any]] = json.loads(engine.calls[-1].body, object_pairs_hook=list)
            maxima = [value for name, value in pairs if name.startswith("max_")]
            assert max(maxima) == 5


async def test_a_schema_of_a_route_that_is_dear_reaches_no_shared_engine() -> None:
    """A route of a tenant's own is no way around what its requests may not ask."""
    schema = {"properties": {str(most): {"maxLength": most} for most in (200, 201)}}
    small = {"service": "small", "when": {"maxScore": 5}, "set": {"responseSchema": schema}}
    for shared, calls in ((True, 0), (False, 1)):
        target = {"tenants": frozenset({"team-b"})} if shared else {}
        async with a_routed_gateway(answers, answers, small, small=target) as (gateway, engine, _):
            answer = await gateway.post(a_body(max_tokens=5), **AUTH)

            assert (answer.status, len(engine.calls)) == (200 if calls else 400, calls)


@pytest.mark.parametrize("padding", [0, 20_000])
async def test_what_a_target_sets_holds_whatever_the_body_says(padding: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    settings = {
        "maxOutputTokens": 5,
        "thinking": False,
        "reasoningEffort": "Low",
        "responseSchema": schema,
    }
    other = {
        "type": "json_schema",
        "json_schema": {
            "name": "x",
            "strict": True,
            "schema": {"type": "object", "required": ["b"], "properties": {"b": {}}},
        },
    }
    kwargs = {"enable_thinking": True, "thinking": True, "other": 1}
    body = a_body(
        "What is it?" + " " * padding,
        max_tokens=9000,
        max_completion_tokens=9000,
        reasoning_effort="high",
        response_format=other,
        chat_template_kwargs=kwargs,
    )
    small = {**SMALL, "when": {"maxScore": 5}, "set": settings}
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, engine, _):
        assert (await gateway.post(body, **AUTH)).status == 200
        got = engine.calls[0].json

    assert {got.get("max_tokens", 5), got.get("max_completion_tokens", 5)} == {5}
    assert got["reasoning_effort"] == "low"
    assert got["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False, "other": 1}
    assert got["response_format"]["json_schema"]["schema"] == schema


async def test_a_lower_maximum_of_a_request_holds_for_each_of_its_choices() -> None:
    small = {**SMALL, "set": {"maxOutputTokens": 64}}
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, engine, _):
        cases: list[tuple[Any, int]] = [({"max_tokens": 3, "n": 2}, 3), ({"n": 2}, 64), ({}, 64)]
        for fields, most in cases:
            await gateway.post(a_body(**fields), **AUTH)
            got = engine.calls[-1].json
            assert got.get("max_completion_tokens", got.get("max_tokens")) == most


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("indent", [None, 1])
async def test_white_space_makes_no_long_prompt_simple(path: str, indent: int | None) -> None:
    small = {"service": "small", "when": {"maxCharacters": 100}}
    text = "word " * 10_000
    body: dict[str, Any] = {"model": "assistant"}
    if path == "/v1/completions":
        body["prompt"] = [text]
    else:
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    async with a_routed_gateway(answers, answers, small, LARGE) as (gateway, *_):
        data = json.dumps(body, indent=indent).encode()
        answer = await gateway.post(data, path, **AUTH)

        assert answer.headers["x-tessera-target"] == "large"


@pytest.mark.parametrize("value", ["False", "FALSE", "0", "", "false, true", "no"])
async def test_a_downgrade_is_not_allowed_by_a_value_that_is_none(value: str) -> None:
    async with a_routed_gateway(answers, answers) as (gateway, small, large):
        answer = await gateway.post(a_body(), **AUTH, **{"x-tessera-allow-downgrade": value})

        assert answer.status == 400
        assert not small.calls
        assert not large.calls


async def test_hostile_headers_of_sessions_and_tags_fail_nothing() -> None:
    tags = "=,=,,a==b," + ",".join(f"t{number}={number}" for number in range(500))
    async with a_routed_gateway(answers, answers, spec={"select": "Weights"}) as (gateway, *_):
        for headers in (
            {"x-session-id": "\xff" * 4000},
            {"x-session-affinity": ""},
            {"x-tessera-tags": tags[:4000]},
        ):
            answer = await gateway.post(a_body(), **AUTH, **headers)
            assert answer.status in (200, 400)


async def test_a_sleeping_target_that_is_skipped_for_long_sleeps_again() -> None:
    asleep = {"replicas": (), "may_sleep": True, "is_asleep": True}
    async with a_routed_gateway(answers, answers, small=asleep) as (gateway, *_):
        await gateway.post(a_body(), **AUTH)
        places, service = gateway.admission.places, Ref("team-a", "small")
        assert service in places.queued()
        places._skipped[service] -= 31

        assert service not in places.queued()


async def test_a_sleeping_target_that_answers_is_no_target_that_was_skipped() -> None:
    """What the metrics and the record say of it: it waited, and answered."""
    stopped = {"replicas": (), "stopped": True}
    async with ScriptedEngine(answers) as engine:
        asleep = {"replicas": (), "may_sleep": True, "is_asleep": True}
        small, large = a_target("small", None, **asleep), a_target("large", None, **stopped)
        route = a_route(SMALL, LARGE)
        async with a_gateway(a_directory(small, large, route)) as gateway:
            request = asyncio.create_task(gateway.post(a_body(), **AUTH))
            await gateway.wait_for_queue(1)
            awake = a_target("small", engine.address)
            gateway.admission.update(a_directory(awake, large, route))
            answer = await request

            assert answer.headers["x-tessera-target"] == "small"
            record = await gateway.record()
            assert record.skipped_targets == "large=ServiceStopped"
