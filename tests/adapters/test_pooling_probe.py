"""A probe of a pooling model is a real request to its own path."""

import json

import pytest

from tessera.adapters.engine_client import HttpEngines
from tessera.api.model_files import PoolingTask
from tests.lab.sim.running import MODEL, SHAPE, running

TASKS: tuple[PoolingTask, ...] = ("Embed", "Score", "Classify", "Tokens")


@pytest.mark.parametrize("task", TASKS)
async def test_a_model_is_asked_for_what_it_returns(task: PoolingTask) -> None:
    engines = HttpEngines()
    shape = json.dumps({**json.loads(SHAPE), "pooling": task, "encoderOnly": True})
    flags = ("--runner=pooling", "--scheduling-policy=priority")
    async with running(*flags, TESSERA_SIM_SHAPE=shape) as engine:
        assert await engines.probe(engine.url, MODEL, task) is None
        completion = await engines.probe(engine.url, MODEL)
        unknown = await engines.probe(engine.url, "another", task)
    await engines.close()
    assert "/v1/completions: 404" in str(completion)
    assert "404" in str(unknown)


async def test_an_engine_that_generates_is_no_embedder() -> None:
    engines = HttpEngines()
    async with running() as engine:
        assert await engines.probe(engine.url, MODEL) is None
        assert "/v1/embeddings: 404" in str(await engines.probe(engine.url, MODEL, "Embed"))
    await engines.close()
