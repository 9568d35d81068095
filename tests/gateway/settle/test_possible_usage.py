"""What an engine claims to have computed counts as far as the request could be that."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import TenantLimits
from tests.gateway.harness import (
    CHAT,
    DONE,
    END,
    ROLE,
    STREAM,
    TENANT,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    event,
)
from tests.gateway_builders import STEP

pytestmark = pytest.mark.anyio
DAY = 10_000
FORGED = {"prompt_tokens": 10**9, "completion_tokens": 10**9, "total_tokens": 2 * 10**9}


@asynccontextmanager
async def reporting(usage: Any, **changes: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway before an engine that reports this usage of every request."""
    whole = {"choices": [{"index": 0, "message": {"content": "x"}}], "usage": usage}

    async def script(call: Any) -> None:
        if call.json.get("stream"):
            await call.stream(ROLE, a_delta(), END, event({"choices": [], "usage": usage}), DONE)
        else:
            await call.whole(whole)

    limits = RateLimitsSpec(total_tokens=PeriodLimits(per_day=DAY))
    tenant = TenantLimits(name=TENANT, namespaces=(TENANT,), limits=limits)
    async with ScriptedEngine(script) as engine:
        replica = a_replica(engine.address, **changes.pop("replica", {}))
        model = a_model(replica, **{"max_model_len": 4096, **changes})
        directory = a_directory(model, tenants={TENANT: tenant})
        async with a_gateway(directory) as gateway:
            yield gateway


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_forged_count_is_cut_to_what_the_request_could_be(body: dict[str, Any]) -> None:
    async with reporting(FORGED) as gateway:
        assert (await gateway.post({**body, "max_tokens": 5, "n": 2})).status == 200
        record = await gateway.record()
    assert record.output_tokens == 10
    assert 1024 < record.input_tokens < 1300
    assert record.estimated


@pytest.mark.parametrize(
    ("fields", "context", "most"),
    [
        ({}, 500, (500, 457)),
        ({"max_tokens": 7}, None, (1153, 7)),
        ({}, None, (1136, 2**20)),
        ({"messages": [{"content": [{"image_url": "data:a"}]}]}, 3000, (3000, 1)),
    ],
)
async def test_the_bounds_are_the_body_and_the_context(
    fields: dict[str, Any], context: int | None, most: tuple[int, int]
) -> None:
    async with reporting(FORGED, max_model_len=context) as gateway:
        await gateway.post({**CHAT, **fields})
        record = await gateway.record()
    assert (record.input_tokens, record.output_tokens) == pytest.approx(most, rel=0.1)


async def test_a_forged_count_closes_no_other_model_of_the_tenant() -> None:
    async with reporting(FORGED) as gateway:
        for _ in range(6):
            assert (await gateway.post({**CHAT, "max_tokens": 1})).status == 200


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 50, "prompt_tokens_details": {"cached_tokens": cached}}
        for cached in (10**12, -5, 1.5, "many", [1], True)
    ]
    + [{"prompt_tokens": -3}, {"completion_tokens": 1.5}, [], "x", 7],
    ids=repr,
)
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_an_answer_is_passed_on_whatever_its_counts_are(
    body: dict[str, Any], usage: Any
) -> None:
    async with reporting(usage) as gateway:
        answer = await gateway.post(body)
        record = await gateway.record()
    assert (answer.status, record.cached_tokens, record.estimated) == (200, 0, True)
    assert b'"error"' not in answer.body


async def test_honest_counts_stay_as_they_are() -> None:
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    async with reporting(usage) as gateway:
        await gateway.post({**CHAT, "max_tokens": 9})
        record = await gateway.record()
    counts = (record.input_tokens, record.cached_tokens, record.output_tokens)
    assert (*counts, record.reasoning_tokens, record.estimated) == (40, 16, 9, 4, False)


async def test_the_next_request_of_a_client_is_expected_to_be_as_those_that_ended() -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 9}
    async with reporting(usage) as gateway:
        for number in range(22):
            await gateway.post({**CHAT, "max_tokens": 9 if number < 21 else 4})
            await gateway.take_record()
            (arrived,) = gateway.admission.arrivals.take().values()
            assert arrived.requests == 1
            assert arrived.tokens.requests == (number >= 20)
    assert arrived.tokens[:4] == (1, 11, 4, 121)
    assert not arrived.tokens.late_alone


@pytest.mark.parametrize(("objective", "late"), [(1e-9, 1), (60.0, 0)])
async def test_a_prompt_that_the_engine_reads_for_too_long_is_counted(
    objective: float, late: int
) -> None:
    usage, speed = {"prompt_tokens": 11, "completion_tokens": 9}, {"step_time": STEP}
    async with reporting(usage, ttft_seconds=objective, replica=speed) as gateway:
        for _ in range(21):
            await gateway.post({**CHAT, "max_tokens": 9})
            await gateway.take_record()
            (arrived,) = gateway.admission.arrivals.take().values()
    assert (arrived.tokens.requests, arrived.tokens.late_alone) == (1, late)


async def test_parts_are_no_larger_than_the_whole() -> None:
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 10**9},
        "completion_tokens_details": {"reasoning_tokens": 10**9},
    }
    async with reporting(usage) as gateway:
        await gateway.post({**CHAT, "max_tokens": 9})
        record = await gateway.record()
    assert (record.cached_tokens, record.reasoning_tokens, record.estimated) == (40, 9, True)


async def test_an_embedding_has_no_output() -> None:
    async with reporting(FORGED) as gateway:
        await gateway.post({"model": "chat", "input": ["a", "b"]}, "/v1/embeddings")
        record = await gateway.record()
    assert (record.input_tokens, record.output_tokens) == (2 * 1024 + 38, 0)
