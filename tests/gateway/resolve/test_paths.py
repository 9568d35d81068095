"""Every path: none reaches a model past admission, and the page that lists them is current."""

from pathlib import Path

import pytest

from paths_page import PAGE, page
from tessera.api.model_files import PoolingTask
from tessera.domain.model.paths import own_paths
from tessera.gateway.paths import PATHS
from tests.gateway.harness import (
    MODEL,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

pytestmark = pytest.mark.anyio
# What any of the paths requires.
BODY = {"model": MODEL, "query": "a", "documents": ["b"], "text_1": "a", "text_2": "b"}


def test_the_page_of_routes_is_current() -> None:
    text = (Path(__file__).parents[3] / PAGE).read_text(encoding="utf-8")
    assert text == page(), "run: make generate"


async def test_every_path_is_admitted_and_recorded_and_nothing_else_reaches_an_engine() -> None:
    async def script(call: EngineCall) -> None:
        await call.whole({"object": "x"})

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        for path in PATHS:
            stolen = await gateway.post({"model": MODEL}, path, authorization="Bearer no")
            assert (path, stolen.status) == (path, 401)
            foreign = await gateway.post({"model": "foreign"}, path)
            assert (path, foreign.status) == (path, 404)
            assert not engine.calls
            answer = await gateway.post(BODY, path)
            assert (path, answer.status) == (path, 200)
            assert engine.calls.pop().path == path
            assert gateway.records[-1].path == path
        for path in ("/metrics", "/invocations", "/v1/load_lora_adapter", "/sleep", "/v1", "/"):
            assert (path, (await gateway.post({"model": MODEL}, path)).status) == (path, 404)
        for path in ("/v1/../metrics", "/v1//chat/completions", "/V1/chat/completions"):
            assert (path, (await gateway.post({"model": MODEL}, path)).status) == (path, 404)
        assert not engine.calls


@pytest.mark.parametrize(
    ("task", "path", "other", "words"),
    [
        (None, "/v1/chat/completions", "/v1/embeddings", "generates text and does not answer on"),
        ("Embed", "/v1/embeddings", "/v1/chat/completions", "generates no text and does not"),
        ("Embed", "/rerank", "/classify", "/v1/embeddings, /rerank"),
        ("Score", "/rerank", "/v1/embeddings", "send the request to /rerank, "),
        ("Classify", "/classify", "/rerank", "send the request to /classify or /pooling"),
        ("Tokens", "/pooling", "/v1/completions", "send the request to /pooling."),
    ],
)
async def test_a_model_answers_on_its_own_paths_and_others_name_these(
    task: PoolingTask | None, path: str, other: str, words: str
) -> None:
    async def script(call: EngineCall) -> None:
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        await call.whole({"object": "list", "data": [], "usage": usage})

    async with ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address), paths=own_paths(task), generates=task is None)
        async with a_gateway(a_directory(model)) as gateway:
            refused = await gateway.post(BODY, other)
            assert (refused.status, refused.error["code"]) == (404, "path_not_served")
            assert words in refused.error["message"]
            assert not engine.calls
            for served in (path, "/tokenize", "/detokenize"):
                assert (served, (await gateway.post(BODY, served)).status) == (served, 200)
            refusal, answer = gateway.records[0], gateway.records[1]
            assert (refusal.reason, refusal.input_tokens) == ("PathNotServed", 0)
            assert (answer.phase, answer.input_tokens, answer.output_tokens) == ("Completed", 2, 0)


async def test_a_ranking_that_reports_its_total_alone_is_counted_as_input() -> None:
    async def script(call: EngineCall) -> None:
        await call.whole({"results": [], "usage": {"total_tokens": 2}})

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        await gateway.post(BODY, "/rerank")
        record = await gateway.record()
    assert (record.input_tokens, record.output_tokens) == (2, 0)


async def test_a_route_takes_its_own_method_only() -> None:
    async with a_gateway(a_directory(a_model())) as gateway:
        for path in PATHS:
            async with gateway.client.get(gateway.url + path) as response:
                assert (response.status, response.headers["allow"]) == (405, "POST")
        assert (await gateway.post({}, "/v1/models")).status == 405
