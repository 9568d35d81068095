"""What LiteLLM does through the gateway at URL; runs in its own environment."""

import asyncio
import os
from typing import Any

import litellm

CONNECTION = {
    "api_base": f"{os.environ['URL']}/v1",
    "api_key": os.environ["KEY"],
    "num_retries": 0,
    "max_retries": 0,
}
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {
    "model": "openai/chat",
    "messages": HELLO,
    "max_tokens": 6,
    "temperature": 0,
    **CONNECTION,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def chat() -> None:
    answer = litellm.completion(**CHAT)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 6
    chunks = list(litellm.completion(**CHAT, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


async def chat_asynchronously() -> None:
    answer = await litellm.acompletion(**CHAT)
    parts = [
        chunk.choices[0].delta.content or ""
        async for chunk in await litellm.acompletion(**CHAT, stream=True)
    ]
    assert "".join(parts) == answer.choices[0].message.content


def complete() -> None:
    completion = {"model": "text-completion-openai/chat", "prompt": "once", **CONNECTION}
    assert litellm.text_completion(**completion, max_tokens=4).usage.completion_tokens == 4


def call_tools() -> None:
    call = {"model": "openai/tools", "messages": HELLO, "tools": [TOOL], **CONNECTION}
    answer = litellm.completion(**call)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bern"}'
    chunks = list(litellm.completion(**call, stream=True))
    whole = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bern"}'


def embed() -> None:
    answer = litellm.embedding(model="openai/embeddings", input=["a", "b", "a"], **CONNECTION)
    first, second, third = (each["embedding"] for each in answer.data)
    assert first == third != second


def fail() -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"api_key": "tsk-unknown"}, litellm.AuthenticationError),
        ({"model": "openai/chap"}, litellm.NotFoundError),
        ({"top_p": 7}, litellm.BadRequestError),
        ({"api_key": os.environ["LIMITED_KEY"]}, litellm.RateLimitError),
    ]
    for changes, error in cases:
        try:
            # The limited key may send one request.
            for _ in range(2):
                litellm.completion(
                    **{"model": "openai/chat", "messages": HELLO, **CONNECTION, **changes}
                )
        except error:
            continue
        raise AssertionError(f"{changes}: {error.__name__} expected")


for scene in (chat, complete, call_tools, embed, fail):
    scene()
    print(scene.__name__)
asyncio.run(chat_asynchronously())
print(chat_asynchronously.__name__)
