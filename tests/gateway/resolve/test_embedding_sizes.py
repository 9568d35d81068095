"""Embeddings whose answer would pass the bound are refused before an engine makes them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from struct import pack, unpack
from typing import Any

import pytest

from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tests.gateway.harness import (
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

pytestmark = pytest.mark.anyio
EMBEDDED = {"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}


@asynccontextmanager
async def embedding(width: int | None) -> AsyncIterator[RunningGateway]:
    async def script(call: EngineCall) -> None:
        await call.whole(EMBEDDED)

    async with ScriptedEngine(script) as engine:
        replica = a_replica(engine.address)
        model = a_model(replica, generates=False, embedding_width=width, max_model_len=512)
        async with a_gateway(a_directory(model)) as gateway:
            yield gateway


def texts(count: int, **fields: Any) -> dict[str, Any]:
    return {"model": "chat", "input": ["word"] * count, **fields}


@pytest.mark.parametrize(
    ("width", "fields", "most"),
    [
        (4096, {}, 372),
        (4096, {"encoding_format": "float"}, 372),
        (4096, {"encoding_format": "base64"}, 1536),
        (4096, {"dimensions": 2048}, 744),
        (None, {"dimensions": 2048}, 744),
        (None, {"dimensions": 4096, "encoding_format": "base64"}, 1536),
    ],
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
async def test_too_many_texts_are_refused_with_the_number_that_fits(
    path: str, width: int | None, fields: dict[str, Any], most: int
) -> None:
    async with embedding(width) as gateway:
        answer = await gateway.post(texts(2048, **fields), path)
        record = await gateway.take_record()
        assert (answer.status, answer.error["param"]) == (400, "input")
        assert answer.error["code"] == "response_too_large"
        assert f"at most {most} texts" in answer.error["message"]
        assert (record.phase, record.input_tokens) == ("Refused", 0)
        assert (await gateway.post(texts(most, **fields), path)).status == 200


@pytest.mark.parametrize(
    ("width", "fields"),
    [
        (4096, {"encoding_format": "base64", "embed_dtype": "float16"}),
        (768, {}),
        (1024, {"encoding_format": "base64"}),
        (None, {}),
        (1024, {"use_activation": False}),
        (4096, {"encoding_format": "bytes"}),
        (4096, {"embed_dtype": "fp8_e4m3"}),
        (None, {"dimensions": None}),
        (None, {"dimensions": "many"}),
        (None, {"dimensions": -5}),
        (256, {"dimensions": 10**9}),
    ],
)
async def test_what_may_fit_or_is_not_known_reaches_the_engine(
    width: int | None, fields: dict[str, Any]
) -> None:
    async with embedding(width) as gateway:
        assert (await gateway.post(texts(2048, **fields), "/v1/embeddings")).status == 200


@pytest.mark.parametrize("path", ["/classify", "/v1/rerank"])
async def test_scores_and_classes_are_few_numbers(path: str) -> None:
    body = {**texts(2048), "query": "word", "documents": ["word"] * 2048}
    async with embedding(4096) as gateway:
        assert (await gateway.post(body, path)).status == 200


def test_the_number_that_fits_does_as_engines_write_numbers() -> None:
    random, width = Random(1), 4096  # noqa: S311 - a seeded choice
    values = unpack(
        f"{width}f", pack(f"{width}f", *(random.gauss(0, width**-0.5) for _ in range(width)))
    )
    size = len(json.dumps(values, separators=(",", ":")))
    assert 372 * size <= MAX_RESPONSE_BYTES < 372 * 1.2 * size
