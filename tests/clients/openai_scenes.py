"""What openai's client does through the gateway, before simulated and real engines alike."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.conformance.engines import EngineProcess
from world.testing import eventually

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]
# So that a random model, too, generates as many tokens as are asked for, and always the same ones.
FIXED: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
LONG = 900
# vLLM does not count a request whose client left, whatever the reason.
_FINISHED = re.compile(r"^vllm:request_success_total\{[^}]*\} (\S+)$", re.MULTILINE)
_RUNNING = re.compile(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", re.MULTILINE)
_SECONDS = 120
# The gateway refuses some of them, and the engine the others.
_ABSURD: tuple[tuple[str, Any], ...] = (
    ("max_tokens", -1),
    ("max_tokens", 10**12),
    ("max_tokens", 10**6),
    ("max_completion_tokens", 0),
    ("n", 0),
    ("n", 10**6),
    ("top_logprobs", 10**6),
    ("temperature", -1),
    ("top_p", 7),
    ("stream_options", []),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The gateway, and one engine behind it."""

    url: str
    key: str
    model: str
    engine: EngineProcess

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._options(options))

    def sync_client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._options(options))

    async def metric(self, sample: re.Pattern[str]) -> float:
        """Return the sum of samples of the engine's metrics; 0 if none is there yet."""
        text = (await self.engine.http.get("/metrics")).text
        return sum(float(value) for value in sample.findall(text))

    async def wait_for_metric(self, sample: re.Pattern[str], value: float) -> None:
        async def has_value() -> None:
            assert await self.metric(sample) == value

        await eventually(has_value, within=_SECONDS)

    def _options(self, changes: dict[str, Any]) -> dict[str, Any]:
        defaults = {"api_key": self.key, "max_retries": 0, "timeout": _SECONDS}
        return {"base_url": f"{self.url}/v1", **defaults, **changes}


def chat_synchronously(endpoint: Endpoint) -> None:
    with endpoint.sync_client() as client:
        assert endpoint.model in [model.id for model in client.models.list()]
        assert client.models.retrieve(endpoint.model).id == endpoint.model
        whole = client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=8, **FIXED
        )
        stream = client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=8, stream=True, **FIXED
        )
        assert _text(list(stream)) == whole.choices[0].message.content


async def chat_whole_and_streamed(endpoint: Endpoint) -> None:
    """The stream has the same text, and its usage if it was asked for."""
    async with endpoint.client() as client:
        whole = await client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=8, **FIXED
        )
        stream = await client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=8, stream=True, **FIXED
        )
        chunks = [chunk async for chunk in stream]
        stream = await client.chat.completions.create(
            model=endpoint.model,
            messages=HELLO,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
            **FIXED,
        )
        counted = [chunk async for chunk in stream]
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert _text(chunks) == _text(counted) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert counted[-1].choices == []
    assert counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == 8
    assert counted[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def complete_several_prompts(endpoint: Endpoint) -> None:
    async with endpoint.client() as client:
        answer = await client.completions.create(
            model=endpoint.model, prompt=["once", "twice"], max_tokens=4, **FIXED
        )
        stream = await client.completions.create(
            model=endpoint.model, prompt="once", max_tokens=4, stream=True, **FIXED
        )
        parts = [chunk.choices[0].text async for chunk in stream]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert "".join(parts) == answer.choices[0].text


async def send_a_request_id(endpoint: Endpoint) -> None:
    """The id of a client is in the answer's header, and at the engine, which answers with it."""
    async with endpoint.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=endpoint.model,
            messages=HELLO,
            max_tokens=2,
            extra_headers={"x-request-id": "scene-1"},
        )
        assert raw.headers["x-request-id"] == "scene-1"
        assert raw.headers["x-tessera-replica"]
        assert raw.parse().id == "chatcmpl-scene-1"
        assert raw.parse()._request_id == "scene-1"
        async with client.chat.completions.with_streaming_response.create(
            model=endpoint.model, messages=HELLO, max_tokens=2, stream=True
        ) as response:
            lines = [line async for line in response.iter_lines()]
            assert len(response.headers["x-request-id"]) == 32
    assert [line for line in lines if line][-1] == "data: [DONE]"


async def leave_a_stream(endpoint: Endpoint) -> None:
    """A closed stream ends its request at the engine."""
    finished = await endpoint.metric(_FINISHED)
    async with endpoint.client() as client:
        stream = await client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=LONG, stream=True, **FIXED
        )
        await anext(aiter(stream))
        await endpoint.wait_for_metric(_RUNNING, 1)
        await stream.close()
        await endpoint.wait_for_metric(_RUNNING, 0)
    assert await endpoint.metric(_FINISHED) == finished


async def leave_whole_answers(endpoint: Endpoint) -> None:
    """So does a client that goes away, or does not wait any longer, before its answer is there."""
    finished = await endpoint.metric(_FINISHED)
    async with endpoint.client() as client:
        request = client.chat.completions.create(
            model=endpoint.model, messages=HELLO, max_tokens=LONG, **FIXED
        )
        task = asyncio.ensure_future(request)
        await endpoint.wait_for_metric(_RUNNING, 1)
        task.cancel()
        await asyncio.wait((task,))
        await endpoint.wait_for_metric(_RUNNING, 0)
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(
                model=endpoint.model, messages=HELLO, max_tokens=LONG, timeout=0.5, **FIXED
            )
        await endpoint.wait_for_metric(_RUNNING, 0)
    assert await endpoint.metric(_FINISHED) == finished


async def make_mistakes(endpoint: Endpoint) -> None:
    """Each mistake raises the client's own error, with the field and the code."""
    too_long = "word " * 3000

    async def error_of(client: openai.AsyncOpenAI, **changes: Any) -> openai.APIStatusError:
        arguments = {"model": endpoint.model, "messages": HELLO, "max_tokens": 2, **changes}
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(**arguments)
        return raised.value

    async with endpoint.client(api_key="tsk-unknown") as client:
        error = await error_of(client)
        assert isinstance(error, openai.AuthenticationError)
        assert error.code == "invalid_api_key"
    async with endpoint.client() as client:
        error = await error_of(client, model=f"{endpoint.model}x")
        assert isinstance(error, openai.NotFoundError)
        assert (error.code, error.param) == ("model_not_found", "model")
        assert f"did you mean `{endpoint.model}`" in error.message
        for field, value in _ABSURD:
            error = await error_of(client, **{field: value})
            assert isinstance(error, openai.BadRequestError)
            assert error.param == field
        error = await error_of(client, messages=[{"role": "user", "content": too_long}])
        assert isinstance(error, openai.BadRequestError)
        assert "maximum context length" in error.message
        with pytest.raises(openai.NotFoundError, match="Unknown request URL"):
            await client.files.list()


def _text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
