"""An engine that got a request is paid, also where its answer reaches nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tessera.domain.gateway.usage_record import Phase
from tessera.domain.perf.step import StepTime
from tests.gateway.charging import INPUT, OUTPUT, paying
from tests.gateway.harness import (
    DONE,
    END,
    ROLE,
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
    event,
)
from tests.gateway.settle.test_left_early import CHAT, serving

pytestmark = pytest.mark.anyio
MIB = 2**20
PACE = StepTime(weights=0.001, kv_token=0, token=0)
# Of its body, which is about 30,000 bytes.
PROMPT_TOKENS = pytest.approx(10_000, rel=0.02)
EMBEDDINGS = {"model": "chat", "input": ["word " * 15] * 400}


@asynccontextmanager
async def two_engines(*scripts: Script) -> AsyncIterator[RunningGateway]:
    """Run a gateway before two engines, which do what these scripts say in their order."""
    left = iter(scripts)

    async def script(call: EngineCall) -> None:
        await next(left)(call)

    async with ScriptedEngine(script) as first, ScriptedEngine(script) as second:
        replicas = [
            a_replica(engine.address, f"chat-{number}", engine="same")
            for number, engine in enumerate((first, second), 1)
        ]
        model = a_model(*replicas, max_model_len=32_768)
        async with a_gateway(a_directory(model, **paying())) as gateway:
            yield gateway


async def too_much(call: EngineCall) -> None:
    await call.whole(b" " * (32 * MIB + 1))


async def nothing(call: EngineCall) -> None:
    await call.gone.wait()


async def dying(call: EngineCall) -> None:
    """Die after the head of the answer, and before its first token."""
    await call.begin()
    await call.chunk(ROLE)
    call.cut()


async def test_a_whole_answer_above_the_bound_is_paid_by_its_time() -> None:
    async def script(call: EngineCall) -> None:
        await asyncio.sleep(0.3)
        await too_much(call)

    async with serving(script, step_time=PACE) as gateway:
        answer = await gateway.post({**CHAT, "n": 4, "max_tokens": 4000})
        record = await gateway.record()
    assert (answer.status, record.reason) == (502, "ResponseTooLarge")
    assert record.input_tokens == PROMPT_TOKENS
    assert 4 * 100 <= record.output_tokens <= 4 * 4000
    assert record.estimated


async def test_an_engine_is_paid_for_embeddings_that_are_too_large() -> None:
    async with serving(too_much, generates=False) as gateway:
        answer = await gateway.post(EMBEDDINGS, "/v1/embeddings")
        record = await gateway.record()
    assert answer.status == 502
    # A token of each text beside.
    assert record.input_tokens == pytest.approx(10_543, rel=0.01)
    assert record.output_tokens == 0


async def test_an_event_above_the_bound_is_paid_with_what_was_made_behind_it() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await asyncio.sleep(0.3)
        await call.chunk(a_delta("x" * 5 * MIB))

    async with serving(script, step_time=PACE) as gateway:
        await gateway.post({**CHAT, "stream": True, "max_tokens": 4000})
        record = await gateway.record()
    assert record.reason == "ResponseTooLarge"
    assert 100 <= record.output_tokens <= 4000


@pytest.mark.parametrize("stream", [True, False])
async def test_what_an_engine_made_until_the_idle_time_is_paid(stream: bool) -> None:
    async def script(call: EngineCall) -> None:
        if stream:
            # The tokens of its reasoning are hidden.
            await call.begin()
            await call.chunk(ROLE)
        await nothing(call)

    async with serving(script, step_time=PACE, idle_seconds=0.3) as gateway:
        answer = await gateway.post({**CHAT, "stream": stream, "max_tokens": 4000})
        record = await gateway.record()
    assert b"engine_timeout" in answer.body
    assert record.phase is Phase.FAILED
    assert record.input_tokens == PROMPT_TOKENS
    assert 100 <= record.output_tokens <= 4000


@pytest.mark.parametrize("status", [400, 422, 500, 503])
async def test_who_is_refused_pays_nothing(status: int) -> None:
    async def script(call: EngineCall) -> None:
        await call.whole({"error": {"message": "no"}}, status)

    async with serving(script) as gateway:
        assert (await gateway.post(CHAT)).status >= 400
        record = await gateway.record()
    assert (record.input_tokens, record.output_tokens) == (0, 0)


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("status", [400, 500])
async def test_a_refusal_within_a_stream_costs_what_was_read(status: int, is_read: bool) -> None:
    error = event({"error": {"message": "no", "code": status}})

    async def script(call: EngineCall) -> None:
        await call.stream(*[ROLE] * is_read, error)

    async with serving(script) as gateway:
        await gateway.post({**CHAT, "stream": True})
        record = await gateway.record()
    # The engine failed, or began with the prompt.
    is_paid = status == 500 or is_read
    assert record.input_tokens == (PROMPT_TOKENS if is_paid else 0)


async def test_a_terminating_engine_that_gives_it_up_is_not_paid() -> None:
    async def script(call: EngineCall) -> None:
        await call.stream()

    async with serving(script) as gateway:
        await gateway.post({**CHAT, "stream": True})
        record = await gateway.record()
    assert (record.reason, record.input_tokens) == ("EngineDraining", 0)


async def test_an_engine_that_is_lost_before_its_head_is_not_paid() -> None:
    async def script(call: EngineCall) -> None:
        call.cut()

    async with serving(script) as gateway:
        assert (await gateway.post(CHAT)).status == 502
        record = await gateway.record()
    assert (record.input_tokens, record.output_tokens) == (0, 0)


@pytest.mark.parametrize("tokens", [0, 3])
async def test_a_broken_engine_is_paid_what_was_delivered(tokens: int) -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta() * tokens)
        await asyncio.sleep(0.2)
        call.cut()

    async with serving(script, step_time=PACE) as gateway:
        await gateway.post({**CHAT, "stream": True, "max_tokens": 4000})
        record = await gateway.record()
    assert record.phase is Phase.FAILED
    assert record.input_tokens == PROMPT_TOKENS
    assert record.output_tokens == tokens


async def test_a_request_that_two_engines_got_is_paid_once() -> None:
    async def answering(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    async with two_engines(dying, answering) as gateway:
        answer = await gateway.post({**CHAT, "stream": True})
        record = await gateway.record()
    assert answer.status == 200
    assert (record.input_tokens, record.output_tokens) == (7, 3)
    assert record.recomputed_tokens == 7
    assert record.charge_nanos == 7 * INPUT + 3 * OUTPUT
    assert record.waste_nanos == 7 * INPUT


async def test_a_refusal_of_the_next_engine_frees_nothing_of_the_first() -> None:
    async def refusing(call: EngineCall) -> None:
        await call.whole({"error": {"message": "no"}}, 503)

    async with two_engines(dying, refusing) as gateway:
        await gateway.post({**CHAT, "stream": True})
        record = await gateway.record()
    assert record.input_tokens == PROMPT_TOKENS
    assert (record.output_tokens, record.recomputed_tokens) == (0, 0)
    assert (record.charge_nanos, record.waste_nanos) == (0, record.input_tokens * INPUT)


async def test_what_a_failed_engine_is_paid_is_no_waste_and_the_rest_is() -> None:
    async def failing(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta() * 3)
        call.cut()

    async def refusing(call: EngineCall) -> None:
        await call.whole({"error": {"message": "no"}}, 503)

    async with two_engines(failing, *[refusing] * 9) as gateway:
        await gateway.post({**CHAT, "stream": True})
        record = await gateway.record()
    assert record.phase is Phase.FAILED
    assert record.charge_nanos == record.input_tokens * INPUT + 3 * OUTPUT
    assert record.waste_nanos == 0


async def test_what_computes_nothing_costs_nothing() -> None:
    async with serving(nothing, idle_seconds=0.2) as gateway:
        await gateway.post(CHAT, "/tokenize")
        record = await gateway.record()
    assert (record.reason, record.input_tokens) == ("EngineTimeout", 0)
