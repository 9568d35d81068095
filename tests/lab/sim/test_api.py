import json
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.lab.sim.running import CAPTURED_KEYS, MODEL, SHAPE, SimulatedEngine, keys, running

HI = [{"role": "user", "content": "hi"}]


def captured(name: str) -> set[str]:
    return set(CAPTURED_KEYS[name])


async def test_a_chat_answers_as_an_openai_client_expects() -> None:
    async with running() as engine, AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="x") as client:
        response = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=5
        )
    assert response.choices[0].finish_reason == "length"
    assert len((response.choices[0].message.content or "").split()) == 5
    assert response.usage is not None
    assert (
        response.usage.completion_tokens,
        response.usage.total_tokens - response.usage.prompt_tokens,
    ) == (5, 5)


async def test_a_streamed_chat_gives_the_same_text_and_its_usage() -> None:
    async with running() as engine, AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="x") as client:
        whole = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}]
        )
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == len(parts) - 1


async def test_a_completion_answers_as_an_openai_client_expects() -> None:
    async with running() as engine, AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="x") as client:
        response = await client.completions.create(model=MODEL, prompt="once upon a time")
        stream = await client.completions.create(
            model=MODEL, prompt="once upon a time", stream=True
        )
        parts = [chunk.choices[0].text async for chunk in stream]
    assert response.usage is not None
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (4, 16)
    assert "".join(parts) == response.choices[0].text


async def test_a_pooling_engine_embeds_and_generates_nothing() -> None:
    async with (
        running("--runner", "pooling") as engine,
        AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="x") as client,
    ):
        texts = await client.embeddings.create(model=MODEL, input=["a", "b c", "a"])
        short = await client.embeddings.create(
            model=MODEL, input="a", dimensions=8, encoding_format="float"
        )
        chat = await engine.post("/v1/chat/completions", messages=HI)
    first, second, third = (each.embedding for each in texts.data)
    assert first == third != second
    assert (len(first), len(short.data[0].embedding)) == (128, 8)
    assert sum(number**2 for number in first) == pytest.approx(1)
    assert (texts.usage.prompt_tokens, texts.usage.total_tokens) == (3, 3)
    assert chat.status_code == 404


ENCODER = json.dumps({**json.loads(SHAPE), "encoderOnly": True})


def pooling_shape(task: str) -> str:
    return json.dumps({**json.loads(ENCODER), "pooling": task})


async def test_a_reranker_ranks_by_the_words_in_common_and_scores_as_it_ranks() -> None:
    documents = ["the sky", "a blue sky today", "none"]
    async with running(TESSERA_SIM_SHAPE=pooling_shape("Score")) as engine:
        ranking = (await engine.post("/rerank", query="blue sky", documents=documents)).json()
        first = (await engine.post("/v1/rerank", query="a", documents=["b"], top_n=1)).json()
        scores = await engine.post("/score", text_1="blue sky", text_2=documents)
        unequal = await engine.post("/score", text_1=["a", "b"], text_2=documents)
        embedding = await engine.post("/v1/embeddings", input="a")
    assert [result["index"] for result in ranking["results"]] == [1, 0, 2]
    best = ranking["results"][0]
    assert (best["document"]["text"], best["relevance_score"]) == ("a blue sky today", 0.5)
    by_index = {each["index"]: each["relevance_score"] for each in ranking["results"]}
    assert [each["score"] for each in scores.json()["data"]] == [by_index[i] for i in range(3)]
    assert ranking["usage"]["prompt_tokens"] == ranking["usage"]["total_tokens"] > 0
    assert len(first["results"]) == 1
    assert (unequal.status_code, embedding.status_code) == (400, 404)


@pytest.mark.parametrize(
    ("task", "paths"),
    [
        ("Embed", {"/v1/embeddings", "/rerank", "/score", "/pooling"}),
        ("Score", {"/rerank", "/score", "/classify", "/pooling"}),
        ("Classify", {"/classify", "/pooling"}),
        ("Tokens", {"/pooling"}),
    ],
)
async def test_an_engine_has_the_routes_of_what_its_model_returns(
    task: str, paths: set[str]
) -> None:
    body = {"input": "a b", "query": "a", "documents": ["b"], "text_1": "a", "text_2": "b"}
    async with running(TESSERA_SIM_SHAPE=pooling_shape(task)) as engine:
        answers = {
            path: await engine.post(path, **body)
            for path in ("/v1/embeddings", "/rerank", "/score", "/classify", "/pooling")
        }
        chat = await engine.post("/v1/chat/completions", messages=HI)
    assert {path for path, answer in answers.items() if answer.status_code == 200} == paths
    assert {answer.status_code for answer in answers.values()} <= {200, 404}
    assert chat.status_code == 404
    assert all(
        answer.json()["usage"]["prompt_tokens"] for path, answer in answers.items() if path in paths
    )


async def test_the_json_has_exactly_the_keys_of_a_real_server() -> None:
    async with running("--enable-prompt-tokens-details") as engine:
        completion = await engine.post("/v1/completions", prompt="a", max_tokens=2)
        models = await engine.http.get("/v1/models")
        load = await engine.http.get("/load")
    async with running() as engine:
        chat = await engine.post("/v1/chat/completions", messages=HI, max_tokens=2)
    assert set(keys(completion.json())) == captured("completion")
    assert set(keys(chat.json())) == captured("chat")
    assert set(keys(models.json())) == captured("models")
    assert set(keys(load.json())) == captured("load")


async def test_the_chunks_have_exactly_the_keys_of_a_real_server() -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    async with running() as engine:
        chat = await engine.stream(
            "/v1/chat/completions", messages=HI, max_tokens=3, stream_options=usage
        )
        completion = await engine.stream(
            "/v1/completions", prompt="a", max_tokens=3, stream_options={"include_usage": True}
        )
    opening, token, _, last, used, done = chat
    assert set(keys(opening)) == captured("chat stream, opening")
    assert set(keys(token)) == captured("chat stream, token")
    assert set(keys(last)) == captured("chat stream, last token")
    assert set(keys(used)) == captured("chat stream, usage")
    token, _, last, used, done_too = completion
    assert set(keys(token)) == captured("completion stream, token")
    assert set(keys(last)) == captured("completion stream, last token")
    assert set(keys(used)) == captured("completion stream, usage")
    assert done == done_too == "[DONE]"


async def test_continuous_usage_counts_up_from_the_opening_chunk() -> None:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    async with running() as engine:
        chunks = await engine.stream(
            "/v1/chat/completions", messages=HI, max_tokens=3, stream_options=usage
        )
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:-1]] == [0, 1, 2, 3, 3]


async def test_a_stream_has_usage_only_on_request_or_when_the_server_is_forced() -> None:
    async with running() as engine:
        plain = await engine.stream("/v1/completions", prompt="a", max_tokens=3)
    async with running("--enable-force-include-usage") as engine:
        forced = await engine.stream("/v1/completions", prompt="a", max_tokens=3)
    assert [chunk.get("usage") for chunk in plain[:-1]] == [None] * 3
    assert forced[-2]["usage"]["completion_tokens"] == 3


async def _answer(engine: SimulatedEngine, **body: object) -> tuple[str, str, int]:
    """Text, finish reason and tokens."""
    response = (await engine.post("/v1/completions", prompt="hello", **body)).json()
    choice = response["choices"][0]
    return choice["text"], choice["finish_reason"], response["usage"]["completion_tokens"]


async def test_the_length_of_an_answer_follows_the_request() -> None:
    async with running() as engine:
        text, reason, own = await _answer(engine, max_tokens=None)
        assert reason == "stop"
        assert 64 <= own < 448
        assert await _answer(engine, max_tokens=None) == (text, "stop", own)
        assert (await _answer(engine, max_tokens=own - 1))[1:] == ("length", own - 1)
        assert (await _answer(engine, max_tokens=600))[1:] == ("stop", own)
        assert (await _answer(engine, max_tokens=600, ignore_eos=True))[1:] == ("length", 600)
        assert (await _answer(engine, max_tokens=600, min_tokens=500))[1:] == ("stop", 500)


async def test_a_stop_string_ends_the_answer_before_itself() -> None:
    async with running() as engine:
        text, _, _ = await _answer(engine, max_tokens=20)
        stop = " ".join(text.split()[9:11])
        response = (await engine.post("/v1/completions", prompt="hello", stop=[stop])).json()
        chunks = await engine.stream("/v1/completions", prompt="hello", stop=stop)
    choice = response["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == choice["text"]


async def test_a_request_id_becomes_the_id_of_the_answer() -> None:
    body = {"prompt": "a", "max_tokens": 1}
    named = {"X-Request-Id": "abc"}
    async with running("--enable-request-id-headers") as engine:
        response = await engine.http.post("/v1/completions", json=body, headers=named)
        other = await engine.post("/v1/completions", **body)
    assert (response.json()["id"], response.headers["X-Request-Id"]) == ("cmpl-abc", "abc")
    assert other.json()["id"] == f"cmpl-{other.headers['X-Request-Id']}"


async def test_every_served_name_is_listed_and_answers() -> None:
    async with running("--served-model-name", "base", "alias") as engine:
        models = (await engine.http.get("/v1/models")).json()["data"]
        response = await engine.post("/v1/completions", model="alias", prompt="a", max_tokens=1)
        unnamed = await engine.post("/v1/completions", prompt="a", max_tokens=1)
    assert [(model["id"], model["root"]) for model in models] == [("base", MODEL), ("alias", MODEL)]
    assert response.json()["model"] == unnamed.json()["model"] == "base"


async def test_token_numbers_and_message_parts_are_prompts_too() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    async with running() as engine:
        numbers = await engine.post("/v1/completions", prompt=[1, 2, 3], max_tokens=1)
        single = await engine.post("/v1/completions", prompt=["once upon a time"], max_tokens=1)
        whole = await engine.post("/v1/chat/completions", messages=HI, max_tokens=2)
        pieces = await engine.post("/v1/chat/completions", messages=parts, max_tokens=2)
    assert numbers.json()["usage"]["prompt_tokens"] == 3
    assert single.json()["usage"]["prompt_tokens"] == 4
    assert pieces.json()["choices"] == whole.json()["choices"]


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_health_is_an_empty_200(path: str) -> None:
    async with running() as engine:
        response = await engine.http.get(path)
    assert (response.status_code, response.content) == (200, b"")


async def test_the_version_is_the_one_that_was_captured() -> None:
    async with running() as engine:
        assert (await engine.http.get("/version")).json() == {"version": "0.32.0"}


async def test_adapters_are_listed_with_their_base_and_answer_by_their_names() -> None:
    lora = ("--enable-lora", "--lora-modules", "sql=acme/sql-lora", "tone=/adapters/tone")
    async with running(*lora) as engine:
        models = (await engine.http.get("/v1/models")).json()["data"]
        answered = await engine.post("/v1/completions", model="sql", prompt="hi", max_tokens=3)
        unknown = await engine.post("/v1/completions", model="other", prompt="hi")
    adapters = [(model["id"], model["root"], model["parent"]) for model in models[1:]]
    assert adapters == [("sql", "acme/sql-lora", MODEL), ("tone", "/adapters/tone", MODEL)]
    assert answered.json()["model"] == "sql"
    assert unknown.status_code == 404


async def test_a_message_answers_as_an_anthropic_client_expects() -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
    }
    async with (
        running() as engine,
        AsyncAnthropic(base_url=engine.url, api_key="x", max_retries=0) as client,
    ):
        whole = await client.messages.create(**ask)
        async with client.messages.stream(**ask) as stream:
            parts = [part async for part in stream.text_stream]
            streamed = await stream.get_final_message()
    assert (whole.stop_reason, whole.usage.output_tokens, len(parts)) == ("max_tokens", 5, 5)
    assert whole.usage.input_tokens > 0
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)
    assert [block.text for block in streamed.content if block.type == "text"] == ["".join(parts)]
    assert [block.text for block in whole.content if block.type == "text"] == ["".join(parts)]
