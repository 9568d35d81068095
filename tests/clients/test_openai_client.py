"""openai's client through a gateway, before simulated and scripted engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tests.clients import openai_scenes as scenes
from tests.clients.openai_scenes import HELLO, Endpoint
from tests.clients.running import CHAT, EMBEDDINGS, offered, simulators
from tests.clients.tool_engine import ARGUMENTS, TOOL, scripted_tools
from tests.gateway.harness import KEY, ScriptedEngine, a_directory, a_model, a_replica, an_api_key
from tests.gateway.test_gateway_process import a_process

pytestmark = pytest.mark.anyio
# An answer of 900 tokens takes nine seconds.
PACED = replace(CHAT, env={"TESSERA_SIM_SPEED": json.dumps({"fixed": 0.01})})
ONCE, OFTEN = "tsk-once", "tsk-often"


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[Endpoint]:
    keys = (
        an_api_key(),
        an_api_key(ONCE, name="once", limits=RateLimitsSpec(requests=PeriodLimits(per_day=1))),
        an_api_key(OFTEN, name="often", limits=RateLimitsSpec(requests=PeriodLimits(per_second=1))),
    )
    async with simulators(tmp_path, PACED) as (engine,):
        directory = a_directory(offered(engine, "chat"), keys=keys)
        async with a_process(tmp_path, directory) as gateway:
            yield Endpoint(url=gateway.url, key=KEY, model="chat", engine=engine)


async def test_chats_and_completions(endpoint: Endpoint) -> None:
    await asyncio.to_thread(scenes.chat_synchronously, endpoint)
    await scenes.chat_whole_and_streamed(endpoint)
    await scenes.complete_several_prompts(endpoint)
    await scenes.send_a_request_id(endpoint)


async def test_requests_that_are_left_leave_the_engine(endpoint: Endpoint) -> None:
    await scenes.leave_a_stream(endpoint)
    await scenes.leave_whole_answers(endpoint)


async def test_mistakes_raise_the_errors_of_the_client(endpoint: Endpoint) -> None:
    await scenes.make_mistakes(endpoint)


async def test_a_limit_raises_an_error_which_a_client_with_retries_waits_out(
    endpoint: Endpoint,
) -> None:
    async with endpoint.client(api_key=ONCE) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="chat", messages=HELLO, max_tokens=2
        )
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(model="chat", messages=HELLO, max_tokens=2)
    assert raised.value.code == "rate_limit_exceeded"
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 24 * 3600

    async with endpoint.client(api_key=OFTEN, max_retries=20) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.with_raw_response.create(
                    model="chat", messages=HELLO, max_tokens=2
                )
                for _ in range(6)
            )
        )
    assert all(answer.parse().choices for answer in answers)
    assert any(answer.retries_taken for answer in answers)


async def test_embeddings(tmp_path: Path) -> None:
    async with (
        simulators(tmp_path, EMBEDDINGS) as (engine,),
        a_process(tmp_path, a_directory(offered(engine, "embeddings"))) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client,
    ):
        # The client asks for base64 unless it is told otherwise.
        packed = await client.embeddings.create(model="embeddings", input=["a", "b"])
        plain = await client.embeddings.create(
            model="embeddings", input=["a", "b"], encoding_format="float"
        )
    assert [each.embedding for each in packed.data] == [
        pytest.approx(each.embedding) for each in plain.data
    ]


class Weather(BaseModel):
    city: str


async def test_tools_and_schemas_reach_the_engine_and_their_calls_the_client(
    tmp_path: Path,
) -> None:
    async with (
        ScriptedEngine(scripted_tools) as engine,
        a_process(
            tmp_path, a_directory(a_model(a_replica(engine.address), names=("tools",)))
        ) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client,
    ):
        whole = await client.chat.completions.create(
            model="tools", messages=HELLO, tools=[TOOL], tool_choice="auto"
        )
        stream = await client.chat.completions.create(
            model="tools", messages=HELLO, tools=[TOOL], stream=True
        )
        calls = [
            call
            async for chunk in stream
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
        parsed = await client.chat.completions.parse(
            model="tools", messages=HELLO, response_format=Weather
        )
    sent, streamed, with_schema = (call.json for call in engine.calls)
    assert sent["tools"] == streamed["tools"] == [TOOL]
    assert with_schema["response_format"]["json_schema"]["name"] == "Weather"
    tool_calls = whole.choices[0].message.tool_calls
    assert tool_calls is not None
    (tool_call,) = tool_calls
    assert isinstance(tool_call, ChatCompletionMessageFunctionToolCall)
    assert (tool_call.function.name, tool_call.function.arguments) == ("get_weather", ARGUMENTS)
    assert [part.function and part.function.name for part in calls[:1]] == ["get_weather"]
    assert "".join(part.function.arguments or "" for part in calls if part.function) == ARGUMENTS
    assert parsed.choices[0].message.parsed == Weather(city="Bern")
