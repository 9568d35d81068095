"""Every route: none reaches a model past admission, and the page that lists them is current."""

from pathlib import Path

import pytest

from routes_page import PAGE, page
from tessera.gateway.requests.routes import ROUTES
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
# What any of the routes requires.
BODY = {"model": MODEL, "query": "a", "documents": ["b"], "text_1": "a", "text_2": "b"}


def test_the_page_of_routes_is_current() -> None:
    text = (Path(__file__).parents[3] / PAGE).read_text(encoding="utf-8")
    assert text == page(), "run: make generate"


async def test_every_route_is_admitted_and_recorded_and_nothing_else_reaches_an_engine() -> None:
    async def script(call: EngineCall) -> None:
        await call.whole({"object": "x"})

    async with (
        ScriptedEngine(script) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        for path in ROUTES:
            stolen = await gateway.post({"model": MODEL}, path, authorization="Bearer no")
            assert (path, stolen.status) == (path, 401)
            foreign = await gateway.post({"model": "foreign"}, path)
            assert (path, foreign.status) == (path, 404)
            assert not engine.calls
            answer = await gateway.post(BODY, path)
            assert (path, answer.status) == (path, 200)
            assert engine.calls.pop().path == path
            assert gateway.records[-1].route == path
        for path in ("/metrics", "/invocations", "/v1/load_lora_adapter", "/sleep", "/v1", "/"):
            assert (path, (await gateway.post({"model": MODEL}, path)).status) == (path, 404)
        for path in ("/v1/../metrics", "/v1//chat/completions", "/V1/chat/completions"):
            assert (path, (await gateway.post({"model": MODEL}, path)).status) == (path, 404)
        assert not engine.calls


async def test_a_route_takes_its_own_method_only() -> None:
    async with a_gateway(a_directory(a_model())) as gateway:
        for path in ROUTES:
            async with gateway.client.get(gateway.url + path) as response:
                assert (response.status, response.headers["allow"]) == (405, "POST")
        assert (await gateway.post({}, "/v1/models")).status == 405
