"""Attacks on money by calls of providers: lies about usage, limits that are no numbers, floods."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.budget.raises import AmountRaise
from tests.gateway.charging import INPUT, OUTPUT, a_cost_limit
from tests.gateway.harness import an_api_key
from tests.gateway.outside.routing import OUTSIDE, Routed, a_body, routed
from world.provider import ProviderCall, Script, answer, hang_up, refuse, say_nothing
from world.testing import eventually

SSE = "text/event-stream"
BODY = json.dumps(a_body()).encode()
MOST = 2 * ((1024 + len(BODY)) * INPUT + 100 * OUTPUT)
USUAL = 2 * (4 * INPUT + 8 * OUTPUT)
SHORT = {"connect": "5s", "firstByte": "100ms", "gap": "100ms"}
SCOPE = "team-a/outside Month"


def spent(world: Routed) -> int:
    """Return what the account of calls of providers has settled and lent."""
    charges = world.gateway.accounts.as_json().get(SCOPE, {"settled": 0, "lent": 0})
    return int(charges["settled"] + charges["lent"])


def whole(usage: Any) -> Script:
    choice = {"message": {"role": "assistant", "content": "One two three."}}
    return lambda call: call.whole({"choices": [choice], "usage": usage})


def stream(*events: Any, ending: bytes = b"data: [DONE]\n\n") -> Script:
    async def script(call: ProviderCall) -> None:
        await call.head(200, SSE)
        first = {"choices": [{"delta": {"content": "One two three."}}]}
        for each in (first, *events):
            await call.chunk(b"data: %b\n\n" % json.dumps(each).encode())
        await call.chunk(ending)
        await call.end()

    return script


LIES: dict[str, Any] = {
    "huge": {"prompt_tokens": 10**9, "completion_tokens": 10**9},
    "no number of tokens": {"prompt_tokens": 10**40, "completion_tokens": 10**40},
    "negative": {"prompt_tokens": -(10**9), "completion_tokens": -(10**9)},
    "fractions": {"prompt_tokens": 1.5, "completion_tokens": 1e300},
    "texts": {"prompt_tokens": "9", "completion_tokens": "9"},
    "truths": {"prompt_tokens": True, "completion_tokens": True},
    "none": {},
    "null": None,
    "a list": [1, 2],
    "zero": {"prompt_tokens": 0, "completion_tokens": 0},
    "more cached than read": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 10**9},
    },
    "more reasoned than made": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "completion_tokens_details": {"reasoning_tokens": 10**9},
    },
    "negative parts": {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": -5},
    },
    "caches of others": {
        "input_tokens": 10**9,
        "cache_read_input_tokens": 10**9,
        "cache_creation_input_tokens": 10**9,
        "output_tokens": 3,
    },
}


@pytest.mark.parametrize("name", LIES)
async def test_no_count_costs_more_than_was_reserved_or_nothing(tmp_path: Path, name: str) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(10**12),)}) as world:
        world.provider.script = whole(LIES[name])
        await world.gateway.post(BODY)
        counted = {"choices": [], "usage": LIES[name]}
        world.provider.script = stream(counted, counted)
        await world.gateway.post(a_body(stream=True))
        records = await world.records(2)
    for record in records:
        assert record.target == "outside"
        assert 2 * OUTPUT <= record.cost_nanos <= MOST + 2 * INPUT * 20
        assert 0 <= record.cached_tokens <= record.input_tokens <= 1100 + len(BODY)
        assert 0 <= record.reasoning_tokens <= record.output_tokens <= 100
        assert record.charge_nanos == record.cost_nanos // 2


@pytest.mark.parametrize(
    "ending",
    [
        b'data: [DONE]\n\ndata: {"choices":[],"usage":{"prompt_tokens":999,'
        b'"completion_tokens":99}}\n\n',
        b'data: [DONE]\n\ndata: {"choices":[{"delta":{"content":"more"}}]}\n\n' * 9,
        b'data: [DONE]\n\nevent: error\ndata: {"error":{"message":"late"}}\n\n',
    ],
)
async def test_what_comes_after_the_end_is_not_counted(tmp_path: Path, ending: bytes) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 8}
    async with routed(tmp_path) as world:
        world.provider.script = stream({"choices": [], "usage": usage}, ending=ending)
        got = await world.gateway.post(a_body(stream=True))
        (record,) = await world.records(1)
    assert (record.reason, record.cost_nanos) == ("", USUAL)
    assert b"more" not in got.body
    assert b"late" not in got.body


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_no_count_of_caches_or_reasoning_costs_more_than_was_reserved(
    tmp_path: Path, path: str
) -> None:
    usage = {
        "input_tokens": 10**9,
        "output_tokens": 10**9,
        "cache_read_input_tokens": 10**9,
        "cache_creation_input_tokens": 10**9,
        "input_tokens_details": {"cached_tokens": 10**9},
        "output_tokens_details": {"reasoning_tokens": 10**9},
        "total_tokens": 2 * 10**9,
    }
    text = [{"type": "text", "text": "One two three."}]
    message = {"type": "message", "content": [{"type": "output_text", "text": "One."}]}
    body = {**a_body(max_tokens=50), "input": "Hi"}
    del body["messages" if path == "/v1/responses" else "input"]
    if path == "/v1/responses":
        del body["max_tokens"]
    sent = json.dumps(body).encode()
    async with routed(tmp_path, OUTSIDE, tenant={"outside": (a_cost_limit(10**12),)}) as world:
        world.provider.script = lambda call: call.whole(
            {"content": text, "output": [message], "usage": usage}
        )
        assert (await world.gateway.post(sent, path)).status == 200
        (record,) = await world.records(1)
        assert spent(world) <= 10**12
    assert record.cost_nanos <= 2 * ((1024 + len(sent)) * INPUT + 100 * OUTPUT)
    assert record.cached_tokens <= record.input_tokens
    assert record.reasoning_tokens <= record.output_tokens <= 100


async def test_many_at_once_spend_no_more_than_is_lent(tmp_path: Path) -> None:
    """However they end: the last of them may find nothing left."""
    lent = 4 * MOST
    endings: tuple[Script, ...] = (answer(), hang_up, refuse(500), say_nothing, answer(times=99))
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(lent),)}, timeouts=SHORT) as world:
        for number in range(20):
            world.provider.scripts.append(endings[number % len(endings)])
        await asyncio.gather(
            *(
                world.gateway.post(a_body(stream=True) if number % 2 else BODY)
                for number in range(20)
            )
        )
        costs = sum(record.cost_nanos for record in world.gateway.records)
        assert costs <= lent
        assert spent(world) <= lent
    assert sum(record.requests for record in world.gateway.records) == 20


@pytest.mark.parametrize("lent", [0, 1, MOST - 1])
async def test_without_enough_money_not_even_a_connection_is_made(
    tmp_path: Path, lent: int
) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(lent),)}) as world:
        got = await world.gateway.post(BODY)
        assert not world.provider.connections
    assert got.headers["x-tessera-target"] == "own"


async def test_the_money_of_another_window_is_not_that_of_now(tmp_path: Path) -> None:
    """A status that no operator updates, as of a budget that was created again."""
    now = time.time()
    past = replace(
        a_cost_limit(0), raises=(AmountRaise(10**12, now - 1), AmountRaise(-(10**12), now - 9))
    )
    future = replace(
        a_cost_limit(0), raises=(AmountRaise(10**12, now + 99), AmountRaise(-(10**12), now + 50))
    )
    for number, limit in enumerate((past, future)):
        async with routed(tmp_path / str(number), tenant={"outside": (limit,)}) as world:
            await world.gateway.post(BODY)
            assert not world.provider.connections


async def test_the_smallest_window_holds(tmp_path: Path) -> None:
    limits = a_cost_limit(10**12), a_cost_limit(MOST - 1, window="Day")
    async with routed(tmp_path, tenant={"outside": limits}) as world:
        await world.gateway.post(BODY)
        assert not world.provider.connections
        # What the other one had reserved is free again.
        assert spent(world) <= 10**12
        assert world.gateway.accounts.as_json()[SCOPE]["settled"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        *({"max_tokens": value} for value in (-1, 0, 1.5, True, "9", 10**30, [9], {"a": 1})),
        {"max_tokens": 5, "max_completion_tokens": 10**9},
        {"max_tokens": 10**9, "max_completion_tokens": 5},
        {"max_output_tokens": 10**6},
        {"max_tokens": None, "max_completion_tokens": None},
        {"max_new_tokens": 10**6},
        {"Max_Tokens": 10**6},
        {"n": 128},
        {"n": 128, "max_tokens": 1},
        {"n": 0},
        {"n": -1},
        {"n": 2.0},
        {"best_of": 50},
        {"use_beam_search": True, "beam_width": 50},
        {"min_tokens": 10**6},
        {"ignore_eos": True},
        {"stream_options": {"include_usage": False}, "stream": True},
        {"prediction": {"type": "content", "content": "x" * 500}},
        {"service_tier": "priority"},
        {"web_search_options": {}},
        {"tools": [{"type": "web_search"}]},
        {"modalities": ["text", "audio"], "audio": {"voice": "alloy"}},
        {"reasoning_effort": "high"},
        {"extra_body": {"max_tokens": 10**6}},
        {"models": ["dear-1"], "route": "fallback"},
    ],
)
async def test_no_field_buys_more_than_is_reserved(tmp_path: Path, fields: dict[str, Any]) -> None:
    body = json.dumps(a_body(**fields)).encode()
    async with routed(tmp_path, OUTSIDE, tenant={"outside": (a_cost_limit(10**12),)}) as world:
        got = await world.gateway.post(body)
        if not world.provider.calls:
            assert got.status in (400, 404)
            return
        (call,) = world.provider.calls
        (record,) = await world.records(1)
    assert {*call.body} <= {"model", "messages", "max_tokens", "n", "stream", "stream_options"}
    assert type(call.body["max_tokens"]) is int
    assert 1 <= call.body["max_tokens"] <= 100
    if call.streams:
        assert call.body["stream_options"] == {"include_usage": True}
    most = 2 * ((1024 + len(body)) * INPUT + call.body.get("n", 1) * 100 * OUTPUT)
    assert record.cost_nanos <= most


@pytest.mark.parametrize("raw", ['"n": 1, "n": 50', '"n": 1, "\\u006e": 50', '"n": 50, "N": 1'])
async def test_no_name_twice_or_in_escapes_hides_choices(tmp_path: Path, raw: str) -> None:
    body = json.dumps(a_body()).encode()[:-1] + f", {raw}}}".encode()
    async with routed(tmp_path, OUTSIDE) as world:
        await world.gateway.post(body)
        assert not world.provider.calls


async def test_few_tokens_that_are_left_are_no_limit_of_none(tmp_path: Path) -> None:
    """Of fewer tokens than choices each would get a limit of 0, which is none at some providers."""
    limits = RateLimitsSpec.model_validate({"outputTokens": {"perMinute": 3}})
    async with routed(tmp_path, OUTSIDE, keys=(an_api_key(limits=limits),)) as world:
        assert (await world.gateway.post(a_body(n=8))).status == 400
        assert not world.provider.calls
        assert (await world.gateway.post(a_body(n=2))).status == 200
        assert world.provider.calls[0].body["max_tokens"] == 1


async def test_a_bill_in_another_currency_is_none_that_a_limit_holds(tmp_path: Path) -> None:
    limit = replace(a_cost_limit(10**12), currency="EUR")
    async with routed(tmp_path, tenant={"outside": (limit,)}) as world:
        got = await world.gateway.post(BODY)
        assert not world.provider.connections
    assert got.headers["x-tessera-target"] == "own"


async def test_prompts_that_a_provider_reads_and_never_answers_are_paid(tmp_path: Path) -> None:
    """By clients that leave, again and again."""
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(3 * MOST),)}) as world:
        world.provider.script = say_nothing
        for number in range(1, 6):
            asking = asyncio.create_task(world.gateway.post(BODY))
            if number <= 3:
                await world.provider.has_calls(number)
                asking.cancel()
                await asyncio.wait((asking,))
                await world.records(number)
            else:
                assert (await asking).headers["x-tessera-target"] == "own"
        assert len(world.provider.calls) == 3
        assert sum(record.cost_nanos for record in world.gateway.records) == 3 * MOST


async def test_a_stream_that_is_cut_again_and_again_pays_each_time(tmp_path: Path) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(10**12),)}) as world:
        world.provider.script = answer(cut_after=3)
        for _ in range(2):
            await world.gateway.post(a_body(stream=True))
        records = await world.records(2)
    for record in records:
        assert 2 * OUTPUT < record.cost_nanos <= MOST + 2 * INPUT * 20
        assert (record.charge_nanos or 0) > 0


async def test_a_lowered_limit_holds_for_the_next_call(tmp_path: Path) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(10**12),)}) as world:
        await world.gateway.post(BODY)
        admission = world.gateway.admission
        tenants = dict(admission.senders.directory.tenants)
        lowered = a_cost_limit(USUAL + MOST - 1, generation=2)
        tenants["team-a"] = replace(tenants["team-a"], outside=(lowered,))
        admission.update(replace(admission.senders.directory, tenants=tenants))

        async def is_refused() -> None:
            got = await world.gateway.post(BODY)
            assert got.headers["x-tessera-target"] == "own"

        await eventually(is_refused)
        assert spent(world) <= 10**12


async def test_images_by_url_are_reserved_as_what_they_may_cost(tmp_path: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://a.example/x.png", "detail": "high"}}
    message = {"role": "user", "content": [part]}
    model = {"media": True}
    for lent, is_asked in ((8000 * 2 * INPUT, False), (10**12, True)):
        async with routed(
            tmp_path / str(lent), tenant={"outside": (a_cost_limit(lent),)}, model=model
        ) as world:
            await world.gateway.post(a_body(messages=[message]))
            assert bool(world.provider.calls) is is_asked
