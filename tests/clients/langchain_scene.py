"""What LangChain does through the gateway at URL; runs in its own environment."""

import asyncio
import os
from typing import Any

import openai
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

CONNECTION = {"base_url": f"{os.environ['URL']}/v1", "api_key": os.environ["KEY"]}
SAME_ANSWERS = {"max_tokens": 6, "temperature": 0, "max_retries": 0}


class GetWeather(BaseModel):
    """Say how the weather is."""

    city: str


def chat() -> None:
    model = ChatOpenAI(model="chat", stream_usage=True, **SAME_ANSWERS, **CONNECTION)
    answer = model.invoke("hello")
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 6
    chunks = list(model.stream("hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == answer.content
    # LangChain adds the usage of all chunks, so that a second one would count twice.
    assert whole.usage_metadata == answer.usage_metadata
    assert [each.content for each in model.batch(["hello", "hello"])] == [answer.content] * 2


async def chat_asynchronously() -> None:
    model = ChatOpenAI(model="chat", **SAME_ANSWERS, **CONNECTION)
    answer = await model.ainvoke([("system", "Be brief."), ("user", "hello")])
    parts = [chunk async for chunk in model.astream([("system", "Be brief."), ("user", "hello")])]
    assert "".join(part.content for part in parts) == answer.content


def call_tools() -> None:
    model = ChatOpenAI(model="tools", max_retries=0, **CONNECTION)
    question = "How is the weather in Bern?"
    answer = model.bind_tools([GetWeather]).invoke(question)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Bern"})
    whole = None
    for chunk in model.bind_tools([GetWeather]).stream(question):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [each["args"] for each in whole.tool_calls] == [{"city": "Bern"}]
    model.invoke([("user", question), answer, ToolMessage("sunny", tool_call_id=call["id"])])
    for method in ("json_schema", "json_mode"):
        structured = model.with_structured_output(GetWeather, method=method)
        assert structured.invoke(question) == GetWeather(city="Bern")


def embed() -> None:
    # Without this it sends numbers of a tokenizer that it would download.
    embeddings = OpenAIEmbeddings(
        model="embeddings", check_embedding_ctx_length=False, max_retries=0, **CONNECTION
    )
    first, second, third = embeddings.embed_documents(["a", "b", "a"])
    assert first == third != second
    assert embeddings.embed_query("a") == first


def fail() -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"model": "chat", "api_key": "tsk-unknown"}, openai.AuthenticationError),
        ({"model": "chap"}, openai.NotFoundError),
        ({"model": "chat", "temperature": -1}, openai.BadRequestError),
        ({"model": "chat", "api_key": os.environ["LIMITED_KEY"]}, openai.RateLimitError),
    ]
    for changes, error in cases:
        try:
            model = ChatOpenAI(**{**CONNECTION, "max_retries": 0, **changes})
            # The limited key may send one request.
            model.batch(["hello", "hello"], {"max_concurrency": 1})
        except error:
            continue
        raise AssertionError(f"{changes}: {error.__name__} expected")


for scene in (chat, call_tools, embed, fail):
    scene()
    print(scene.__name__)
asyncio.run(chat_asynchronously())
print(chat_asynchronously.__name__)
