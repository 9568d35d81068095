"""A client that leaves pays what was computed for it, as far as the gateway can know."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.perf.step import StepTime
from tests.gateway.harness import (
    DONE,
    MODEL,
    ROLE,
    TENANT,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    event,
)
from tests.gateway.resumed import breaking, going_on, replicas

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
SLOW = StepTime(weights=3600.0, kv_token=0, token=0)
PROMPT = [{"role": "user", "content": "word " * 6000}]
CHAT = {"model": MODEL, "messages": PROMPT}
LIMITS = RateLimitsSpec(total_tokens=PeriodLimits(per_day=100_000))


@asynccontextmanager
async def serving(script: Script, **changes: Any) -> AsyncIterator[RunningGateway]:
    tenant = TenantLimits(name=TENANT, namespaces=(TENANT,), limits=LIMITS)
    idle_seconds = changes.pop("idle_seconds", 30)
    async with ScriptedEngine(script) as engine:
        replica = a_replica(engine.address, step_time=changes.pop("step_time", SLOW))
        model = a_model(replica, max_model_len=32_768, **changes)
        directory = a_directory(model, tenants={TENANT: tenant})
        async with a_gateway(directory, idle_seconds=idle_seconds) as gateway:
            yield gateway


async def leave(
    gateway: RunningGateway, body: Any, arrived: asyncio.Event, path: str = "/v1/chat/completions"
) -> UsageRecord:
    """Send a request, go away once it arrived, and return its record."""
    request = asyncio.create_task(gateway.post(body, path))
    async with asyncio.timeout(WAIT_SECONDS):
        await arrived.wait()
        request.cancel()
        await asyncio.wait((request,))
    return await gateway.take_record()


def sending(
    arrived: asyncio.Event, *events: bytes, wait: Callable[[], Awaitable[Any]] | None = None
) -> Script:
    """Send these events, and nothing more."""

    async def script(call: EngineCall) -> None:
        if events:
            await call.begin()
            await call.chunk(b"".join(events))
        if wait is not None:
            await wait()
        arrived.set()
        await call.gone.wait()

    return script


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_before_the_first_token_pays_the_prompt(stream: bool) -> None:
    arrived = asyncio.Event()
    async with serving(sending(arrived)) as gateway:
        record = await leave(gateway, {**CHAT, "stream": stream, "max_tokens": 4000}, arrived)
    assert (record.phase, record.estimated) == (Phase.ABORTED, True)
    assert record.input_tokens == pytest.approx(10_000, rel=0.02)
    assert record.output_tokens <= 1


async def test_a_limit_sees_the_prompts_of_those_who_left() -> None:
    arrived = asyncio.Event()
    body = {**CHAT, "stream": True, "max_tokens": 10}
    statuses = []
    async with serving(sending(arrived)) as gateway:
        for _ in range(11):
            arrived.clear()
            request = asyncio.create_task(gateway.post(body))
            waiting = asyncio.create_task(arrived.wait())
            done, _ = await asyncio.wait(
                (request, waiting), timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if request in done:
                statuses.append(request.result().status)
                waiting.cancel()
                continue
            gateway.recorded.clear()
            request.cancel()
            async with asyncio.timeout(WAIT_SECONDS):
                await gateway.recorded.wait()
    assert statuses
    assert set(statuses) == {429}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("x" * 2000, 2000),  # 4 events of 500 tokens.
        ("я" * 1000, 2000),
        ('\n"quoted" ' * 125, 1500),
        (" a", 4),
    ],
)
@pytest.mark.parametrize("field", ["content", "reasoning_content", "tool_calls"])
async def test_events_of_many_tokens_count_by_their_text(
    text: str, tokens: int, field: str
) -> None:
    delta: dict[str, Any] = {field: text}
    if field == "tool_calls":
        delta = {field: [{"index": 0, "function": {"arguments": text}}]}
    chunk = event({"choices": [{"index": 0, "delta": delta, "logprobs": None}]})
    raw = chunk.replace(b"\\u044f", "я".encode())
    arrived = asyncio.Event()
    async with serving(
        sending(arrived, ROLE, *[raw] * 4, wait=lambda: gateway.wait_for_tokens(4))
    ) as gateway:
        record = await leave(gateway, {**CHAT, "stream": True, "max_tokens": 4000}, arrived)
    assert record.output_tokens == pytest.approx(tokens, rel=0.35, abs=1)


async def test_log_probabilities_are_no_text() -> None:
    top = [{"token": f" t{number}", "logprob": -1.0, "bytes": [1, 2]} for number in range(20)]
    logprobs = {"content": [{"token": " a", "logprob": -0.1, "top_logprobs": top}]}
    arrived = asyncio.Event()
    chunks = [a_delta(" a", logprobs=logprobs)] * 50
    async with serving(
        sending(arrived, ROLE, *chunks, wait=lambda: gateway.wait_for_tokens(50))
    ) as gateway:
        record = await leave(gateway, {**CHAT, "stream": True, "logprobs": True}, arrived)
    assert record.output_tokens in (50, 51)


async def test_a_reported_beginning_is_not_the_whole_answer() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": " word"}}
    events = [
        b"event: %b\n%b" % (body["type"].encode(), event(body))  # type: ignore[attr-defined]
        for body in (start, *[text] * 40)
    ]
    arrived = asyncio.Event()
    async with serving(
        sending(arrived, *events, wait=lambda: gateway.wait_for_tokens(40))
    ) as gateway:
        record = await leave(
            gateway, {**CHAT, "stream": True, "max_tokens": 900}, arrived, "/v1/messages"
        )
    assert record.input_tokens == 5
    assert record.output_tokens == pytest.approx(45, abs=6)
    assert record.estimated


async def test_a_cut_answer_is_not_charged_as_if_it_had_been_whole() -> None:
    arrived = asyncio.Event()
    script = sending(arrived, ROLE, a_delta(), a_delta(), wait=lambda: gateway.wait_for_tokens(2))
    async with serving(script) as gateway:
        record = await leave(gateway, {**CHAT, "stream": True, "max_tokens": 20_000}, arrived)
    assert record.output_tokens == 3


async def test_the_engine_works_on_until_it_hears_of_it() -> None:
    arrived = asyncio.Event()
    pace = StepTime(weights=0.001, kv_token=0, token=0)

    async def pause() -> None:
        await asyncio.sleep(0.2)

    script = sending(arrived, ROLE, a_delta(), wait=pause)
    async with serving(script, step_time=pace) as gateway:
        record = await leave(gateway, {**CHAT, "stream": True, "n": 2}, arrived)
    # A step of this replica takes 1 ms and what its host adds.
    assert record.output_tokens >= 2 * 100


async def test_who_leaves_while_the_next_engine_thinks_pays_for_that_too() -> None:
    arrived, seconds = asyncio.Event(), 0.5

    async def second(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await going_on(DONE)(call)
            return
        await call.begin()
        await call.chunk(ROLE)
        await asyncio.sleep(seconds)
        arrived.set()
        await call.gone.wait()

    async with replicas(breaking(ROLE, a_delta()), second) as (gateway, _):
        (model,) = gateway.admission.senders.directory.models
        record = await leave(gateway, {**CHAT, "stream": True, "max_tokens": 4000}, arrived)
    assert record.output_tokens >= 1 + seconds / model.itl_seconds


@pytest.mark.parametrize("choices", [1, 64])
async def test_hidden_tokens_are_those_of_the_time_since_the_prompt_was_read(
    choices: int,
) -> None:
    pace = StepTime(weights=0.001, kv_token=0, token=0)
    arrived = asyncio.Event()

    async def pause() -> None:
        await asyncio.sleep(0.2)

    async with serving(sending(arrived, ROLE, wait=pause), step_time=pace) as gateway:
        body = {**CHAT, "stream": True, "n": choices, "max_tokens": 4000}
        record = await leave(gateway, {**body, "include_reasoning": False}, arrived)
    assert 100 * choices <= record.output_tokens <= 4000 * choices


async def test_prompts_cost_what_the_model_makes_of_their_bytes() -> None:
    body = {**CHAT, "max_tokens": 5}
    prompt_tokens = 6_020

    async def script(call: EngineCall) -> None:
        if call.json.get("stream"):
            arrived.set()
            await call.gone.wait()
        else:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
            await call.whole({"choices": [], "usage": usage})

    arrived = asyncio.Event()
    async with serving(script) as gateway:
        for _ in range(5):
            await gateway.post(body)
            await gateway.take_record()
        record = await leave(gateway, {**body, "stream": True}, arrived)
    assert prompt_tokens < record.input_tokens < 9_700
