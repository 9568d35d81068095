"""Tools, thinking, usage and filters between a provider and the clients of OpenAI and Anthropic."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.gateway.harness import KEY, EngineCall, Script
from tests.gateway.outside.routing import ROUTE, Routed, answers, routed
from world.provider import ProviderCall, refuse
from world.provider import Script as ProviderScript

QUESTION: Any = [{"role": "user", "content": "What is a tessera"}]
WORDS = "".join(f"word{number} " for number in range(8))


@dataclass(frozen=True, slots=True)
class Clients:
    """A gateway with a route, and who asks there."""

    world: Routed
    chat: Any
    """`chat.completions` of the client of OpenAI."""
    messages: Any
    """`messages` of the client of Anthropic."""


@asynccontextmanager
async def clients(folder: Path, own: Script = answers) -> AsyncIterator[Clients]:
    model = {"reasoning": True, "max_output_tokens": 4000}
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(routed(folder, own=own, model=model))
        options: Any = {"api_key": KEY, "max_retries": 0}
        url = world.gateway.url
        openai = await stack.enter_async_context(AsyncOpenAI(base_url=f"{url}/v1", **options))
        anthropic = await stack.enter_async_context(AsyncAnthropic(base_url=url, **options))
        yield Clients(world, openai.chat.completions, anthropic.messages)


def says(whole: Mapping[str, Any], *events: Mapping[str, Any]) -> ProviderScript:
    """Answer with this, or with these events of a stream."""

    async def script(call: ProviderCall) -> None:
        call.usage = 7, 5
        if not call.streams:
            await call.whole(whole)
            return
        await call.head(200, "text/event-stream")
        for event in events:
            name = f"event: {event['type']}\n" if "type" in event else ""
            await call.chunk(f"{name}data: {json.dumps(event)}\n\n".encode())
        if not events[0].get("type"):
            await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    return script


@pytest.mark.parametrize("asked", [False, True])
async def test_a_client_gets_usage_in_a_stream_if_it_asks(tmp_path: Path, asked: bool) -> None:
    async with clients(tmp_path) as here:
        options = {"stream_options": {"include_usage": True}} if asked else {}
        stream = await here.chat.create(model=ROUTE, messages=QUESTION, stream=True, **options)
        usages = [chunk.usage async for chunk in stream if not chunk.choices]
        (record,) = await here.world.records(1)

        assert [(each.prompt_tokens, each.completion_tokens) for each in usages] == [(4, 8)] * asked
        assert (record.input_tokens, record.output_tokens) == (4, 8)
        assert here.world.provider.calls[0].body["stream_options"] == {"include_usage": True}


FUNCTION: Any = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}},
}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}


def a_chat(finish: str, *messages: Mapping[str, Any]) -> ProviderScript:
    """Answer a chat with a message, or with its pieces."""
    shared = {"id": "chatcmpl-1", "created": 1, "model": "large-1"}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    whole, *deltas = messages
    choice = {"index": 0, "message": whole, "finish_reason": finish}
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"choices": [], "usage": usage})
    return says(
        {**shared, "object": "chat.completion", "choices": [choice], "usage": usage},
        *({**shared, "object": "chat.completion.chunk", **chunk} for chunk in chunks),
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_of_tools_pass_both_ways(tmp_path: Path, stream: bool) -> None:
    async with clients(tmp_path) as here:
        pieces: list[Any] = [
            {"role": "assistant", "tool_calls": [{"index": 0, **CALL}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": " "}}]},
        ]
        here.world.provider.scripts.append(
            a_chat(
                "tool_calls", {"role": "assistant", "content": None, "tool_calls": [CALL]}, *pieces
            )
        )
        create = here.chat.create
        if stream:
            chunks = [
                chunk
                async for chunk in await create(
                    model=ROUTE, messages=QUESTION, tools=[FUNCTION], stream=True
                )
            ]
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
            [calls, *_] = [chunk.choices[0].delta.tool_calls for chunk in chunks]
        else:
            answer = await create(model=ROUTE, messages=QUESTION, tools=[FUNCTION])
            calls = answer.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].id == "call_1"
        turn: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "a small stone"}
        last = await create(model=ROUTE, messages=[*QUESTION, turn, result], tools=[FUNCTION])

        assert last.choices[0].message.content == WORDS
        assert here.world.provider.calls[0].body["tools"] == [FUNCTION]
        assert here.world.provider.calls[1].body["messages"] == [*QUESTION, turn, result]


THOUGHT: Any = {"type": "thinking", "thinking": "Hm", "signature": "EqQB"}
REDACTED: Any = {"type": "redacted_thinking", "data": "EmwK"}
USE: Any = {"type": "tool_use", "id": "toolu_1", "name": "sign", "input": {"signature": "mine"}}
TURN = [THOUGHT, REDACTED, USE]


def a_message(content: Sequence[Mapping[str, Any]], stop: str) -> ProviderScript:
    """Answer with a message of these blocks."""
    message = {
        **{"id": "msg_1", "type": "message", "role": "assistant", "model": "large-1"},
        **{"stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 5}},
    }
    starts = [
        {"type": "thinking", "thinking": "", "signature": ""},
        REDACTED,
        {**USE, "input": {}},
    ]
    deltas: Sequence[Sequence[Mapping[str, str]]] = [
        [
            {"type": "thinking_delta", "thinking": "Hm"},
            {"type": "signature_delta", "signature": "EqQB"},
        ],
        [],
        [{"type": "input_json_delta", "partial_json": json.dumps(USE["input"])}],
    ]
    blocks = [
        event
        for index, (start, changes) in enumerate(zip(starts, deltas, strict=True))
        for event in (
            {"type": "content_block_start", "index": index, "content_block": start},
            *({"type": "content_block_delta", "index": index, "delta": each} for each in changes),
            {"type": "content_block_stop", "index": index},
        )
    ]
    ending = {"stop_reason": stop, "stop_sequence": None}
    return says(
        {**message, "content": content, "stop_reason": stop},
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        *blocks,
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_goes_back_to_who_signed_it_and_to_no_engine(
    tmp_path: Path, stream: bool
) -> None:
    async def own(call: EngineCall) -> None:
        text = [{"type": "text", "text": "Yes"}]
        await call.whole({"id": "1", "type": "message", "role": "assistant", "content": text})

    async with clients(tmp_path, own) as here:
        here.world.provider.scripts.append(a_message(TURN, "tool_use"))
        asked: Any = {
            **{"model": ROUTE, "max_tokens": 2000, "messages": QUESTION},
            **{"tools": [{"name": "sign", "input_schema": {"type": "object"}}]},
        }
        if stream:
            async with here.messages.stream(**asked) as events:
                message = await events.get_final_message()
        else:
            message = await here.messages.create(**asked)
        assert [block.type for block in message.content] == [block["type"] for block in TURN]
        turn = {"role": "assistant", "content": [each.model_dump() for each in message.content]}
        result = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "done"}]
        asked["messages"] = [*QUESTION, turn, {"role": "user", "content": result}]
        await here.messages.create(**asked)
        here.world.provider.scripts.append(refuse(500))
        await here.messages.create(**asked)

        assert here.world.provider.calls[1].body["messages"][1]["content"] == TURN
        content = here.world.engine.calls[0].json["messages"][1]["content"]
        assert [block["type"] for block in content] == ["tool_use"]
        targets = [each.target for each in await here.world.records(4)]
        assert targets == ["outside", "outside", "outside", "own"]


@pytest.mark.parametrize("stream", [False, True])
async def test_another_target_answers_where_a_filter_refuses(tmp_path: Path, stream: bool) -> None:
    async def own(call: EngineCall) -> None:
        if stream:
            await call.stream(
                b'data: {"choices":[{"index":0,"delta":{"content":"Yes"}}]}\n\n',
                b"data: [DONE]\n\n",
            )
        else:
            await call.whole({"choices": [{"index": 0, "message": {"content": "Yes"}}]})

    async with clients(tmp_path, own) as here:
        here.world.provider.scripts.append(a_chat("content_filter", {"role": "assistant"}))
        answer = await here.chat.with_raw_response.create(
            model=ROUTE, messages=QUESTION, stream=stream
        )

        assert answer.headers["x-tessera-target"] == "own"
        filtered, _ = await here.world.records(2)
        # The provider bills them.
        assert (filtered.reason, filtered.input_tokens, filtered.output_tokens) == (
            "ContentFiltered",
            7,
            5,
        )
