"""Attacks on money: streams that are cut where it ends, as clients of each path read them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI

from tessera.gateway.http.cut_streams import passed_events
from tessera.gateway.http.sse import event_data, split_events
from tessera.gateway.paths import PATHS
from tests.gateway.charging import INPUT, OUTPUT, paying
from tests.gateway.harness import (
    CHAT,
    KEY,
    ROLE,
    STREAM,
    EngineCall,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    event,
)

pytestmark = pytest.mark.anyio
BUDGET_EXCEEDED = "BudgetExceeded"
# What is read of an engine at once, at most.
PART_BYTES = 2**16
MESSAGES: Any = CHAT["messages"]

# --- streams that are cut, as their clients read them


def named(kind: str, **fields: Any) -> bytes:
    return b"event: %b\n" % kind.encode() + event({"type": kind, **fields})


def block(kind: str, index: int, **fields: Any) -> bytes:
    return named(f"content_block_{kind}", index=index, **fields)


def text_of(word: str, index: int) -> bytes:
    return block("delta", index, delta={"type": "text_delta", "text": word})


MESSAGE = {"id": "msg-0", "type": "message", "role": "assistant", "content": [], "model": "chat"}
STARTED = named(
    "message_start", message={**MESSAGE, "usage": {"input_tokens": 7, "output_tokens": 0}}
)
THOUGHT = b"".join(
    (
        block("start", 0, content_block={"type": "thinking", "thinking": ""}),
        block("delta", 0, delta={"type": "thinking_delta", "thinking": "word"}),
        block("stop", 0),
    )
)
TEXT = block("start", 1, content_block={"type": "text", "text": ""})
PING = named("ping")
SHAPES = {
    "in a block": (STARTED + THOUGHT + TEXT, text_of("word", 1)),
    "before a ping": (STARTED + THOUGHT + TEXT, text_of("word", 1) + PING),
    "between two blocks": (STARTED, THOUGHT),
}


def well_ended(events: Sequence[Any]) -> list[int]:
    """Return the blocks that are open at the end of a message, of which each is stopped once."""
    opened_blocks: list[int] = []
    for each in events:
        if each["type"] == "content_block_start":
            opened_blocks.append(each["index"])
        if each["type"] == "content_block_stop":
            opened_blocks.remove(each["index"])
    assert [each["type"] for each in events[-2:]] == ["message_delta", "message_stop"]
    return opened_blocks


@pytest.mark.parametrize(("first", "last"), SHAPES.values(), ids=SHAPES)
def test_a_message_that_is_cut_stops_what_is_open_and_nothing_else(
    first: bytes, last: bytes
) -> None:
    stream_format = PATHS["/v1/messages"].stream
    assert stream_format is not None
    passed = passed_events(stream_format, choices=1)
    for events in (first, last):
        passed.add(events)
    cut = passed.cut(BUDGET_EXCEEDED, usage=None)
    datas = filter(None, map(event_data, split_events(first + last + cut)))
    assert well_ended([json.loads(data) for data in datas]) == []


ITEM = {"id": "msg-0", "type": "message", "role": "assistant", "status": "in_progress"}
PART = {"type": "output_text", "text": "", "annotations": []}
PLACE = {"output_index": 0, "item_id": "msg-0"}
RESPONSE = {
    **{"id": "resp-0", "object": "response", "created_at": 1, "model": "chat", "output": []},
    **{"status": "in_progress", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
}
BEGUN = b"".join(
    (
        named("response.created", sequence_number=0, response=RESPONSE),
        named("response.in_progress", sequence_number=1, response=RESPONSE),
        named(
            "response.output_item.added",
            sequence_number=2,
            output_index=0,
            item={**ITEM, "content": []},
        ),
        named(
            "response.content_part.added", sequence_number=3, content_index=0, part=PART, **PLACE
        ),
    )
)
SAID = named(
    "response.output_text.delta",
    **{"sequence_number": 4, "content_index": 0, "delta": "word", "logprobs": []},
    **PLACE,
)


def a_chunk(**delta: str) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1, "model": "chat"}
    return event({**head, "choices": [choice]})


BODIES: Mapping[str, Any] = {
    "/v1/chat/completions": {"messages": CHAT["messages"], "n": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 4000},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 4000},
}
WORDS = {
    "/v1/chat/completions": (a_chunk(role="assistant"), a_chunk(content="word")),
    "/v1/completions": (
        b"",
        event({"id": "c", "model": "chat", "choices": [{"index": 0, "text": "word"}]}),
    ),
    "/v1/responses": (BEGUN, SAID),
    "/v1/messages": (STARTED + THOUGHT + TEXT, text_of("word", 1)),
}


@asynccontextmanager
async def a_cutting_gateway(path: str, tokens: int) -> AsyncIterator[tuple[Any, Any]]:
    """Run a gateway with money for so many tokens of an answer that does not end by itself."""
    begin, word = WORDS[path]

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(begin + word)
        while not call.gone.is_set():
            await call.chunk(word * 20)
            await asyncio.sleep(0)

    async with ScriptedEngine(stream) as engine:
        model = a_model(a_replica(engine.address), max_model_len=8192)
        limit = (200 + 1024) * INPUT + tokens * OUTPUT
        async with a_gateway(a_directory(model, **paying(limit))) as gateway:
            yield gateway, engine


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_is_cut_ends_in_the_words_of_its_path(path: str) -> None:
    async with a_cutting_gateway(path, 2600) as (gateway, engine):
        body = {"model": "chat", "stream": True, **BODIES[path]}
        answer = await gateway.post(body, path)
        record = await gateway.record()
        async with asyncio.timeout(5):
            await engine.calls[0].gone.wait()
        [account] = gateway.accounts.charges.values()
    events = [data for data in map(event_data, answer.events) if data]
    last = [json.loads(data) for data in events if data != b"[DONE]"]
    assert (record.phase, record.reason) == ("Aborted", BUDGET_EXCEEDED)
    assert record.charge_nanos is not None
    assert answer.body.count(b'"word"') * OUTPUT <= record.charge_nanos <= account.limit
    assert account.settled + account.lent <= account.limit
    assert last[-1]["x_tessera_reason"] == BUDGET_EXCEEDED
    assert (events[-1] == b"[DONE]") is path.endswith("completions")
    if path == "/v1/messages":
        assert well_ended(last) == []
        assert last[-2]["delta"]["stop_reason"] == "max_tokens"
    if path == "/v1/responses":
        assert last[-1]["response"]["status"] == "incomplete"
        assert last[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    if path.endswith("completions"):
        ends = [c.get("finish_reason") for each in last for c in each["choices"]]
        assert [end for end in ends if end] == ["length"] * BODIES[path].get("n", 1)


async def test_clients_of_openai_read_a_cut_response_to_its_end() -> None:
    async with a_cutting_gateway("/v1/responses", 1300) as (gateway, _):
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)
        async with client, client.responses.stream(model="chat", input="hi") as stream:
            events = [each async for each in stream]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.usage is not None
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text.startswith("wordword")
    assert last.response.output_text == text


async def test_a_choice_that_ended_before_the_cut_keeps_its_end() -> None:
    body = {**STREAM, "n": 2}
    stopped = a_delta("", finish_reason="stop")

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta("word") + stopped)
        while not call.gone.is_set():
            await call.chunk(a_delta("word", index=1) * 20)
            await asyncio.sleep(0)

    async with ScriptedEngine(stream) as engine:
        model = a_model(a_replica(engine.address), max_model_len=8192)
        limit = (200 + 1024) * INPUT + 2600 * OUTPUT
        async with a_gateway(a_directory(model, **paying(limit))) as gateway:
            answer = await gateway.post(body)
    ends = [
        (choice["index"], choice["finish_reason"])
        for data in map(event_data, answer.events)
        if data and data != b"[DONE]"
        for choice in json.loads(data)["choices"]
        if choice.get("finish_reason")
    ]
    assert ends == [(0, "stop"), (1, "length")]


async def test_clients_of_openai_read_a_cut_chat_to_its_end() -> None:
    async with a_cutting_gateway("/v1/chat/completions", 1300) as (gateway, _):
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)
        options: Any = {"include_usage": True}
        async with client:
            stream = await client.chat.completions.create(
                model="chat", messages=MESSAGES, stream=True, stream_options=options
            )
            chunks = [each async for each in stream]
    assert [choice.finish_reason for choice in chunks[-2].choices] == ["length"]
    assert chunks[-1].usage is not None
    delivered = sum(
        (choice.delta.content or "").count("word") for each in chunks for choice in each.choices
    )
    assert chunks[-1].usage.completion_tokens == delivered
    # A part that money does not cover is dropped whole, and holds what one read brings.
    largest_part = PART_BYTES // len(a_chunk(content="word"))
    assert 1300 - largest_part <= delivered <= 1300 + 200 * INPUT // OUTPUT
