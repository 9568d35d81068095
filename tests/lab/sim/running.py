"""Simulated engines in this process, on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tessera.domain.vllm.facts import version_facts
from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.engine_config import VERSION
from tessera_lab.sim.main import serve
from world.slots import free_port
from world.testing import eventually

DEADLINE_SECONDS = 60
MODEL = "tiny"
# So small that a step takes little more than half a millisecond.
SHAPE = json.dumps(
    {
        "parameters": 1_000_000,
        "layers": 2,
        "attentionHeads": 4,
        "kvHeads": 2,
        "headDim": 32,
        "maxPositionEmbeddings": 4096,
    }
)
# A model whose long answers outlast every test.
SLOW = ("meta-llama/Llama-3.1-70B-Instruct", "-tp", "4", "--max-model-len", "8192")

_VERSION_FACTS = version_facts(VERSION)
assert _VERSION_FACTS is not None
# What is known of the simulated engine.
FACTS = _VERSION_FACTS

# Every key, by its path, in answers of a real server of the same version.
CAPTURED_KEYS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("captured_keys.json").read_text(encoding="utf-8")
)


@dataclass(kw_only=True)
class SimulatedEngine:
    """One engine and a client for it."""

    url: str
    http: httpx.AsyncClient
    process: "asyncio.Task[EngineExit | None]"
    """The task of the engine; its result is the exit of an engine that ended by itself."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def stream(self, path: str, **body: Any) -> list[Any]:
        """All events of a stream; the last one is the text `[DONE]`."""
        events: list[Any] = []
        async with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data:
                    events.append(data if data == "[DONE]" else json.loads(data))
        return events

    async def metrics(self) -> dict[str, float]:
        """Samples by name and value of the label that no other has."""
        answer = await self.http.get("/metrics")
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                own = [
                    sample.labels[key] for key in sample.labels.keys() - {"engine", "model_name"}
                ]
                samples[" ".join([sample.name.removeprefix("vllm:"), *own])] = sample.value
        return samples

    async def wait_for_metrics(self, **wanted: float) -> None:
        """Wait until these metrics have these values."""

        async def have_values() -> None:
            seen = await self.metrics()
            assert {name: seen[name] for name in wanted} == wanted

        await eventually(have_values, within=DEADLINE_SECONDS)

    async def wait_for_load(self, requests: int) -> None:
        """Wait until so many requests are under way."""

        async def are_under_way() -> None:
            assert (await self.http.get("/load")).json() == {"server_load": requests}

        await eventually(are_under_way, within=DEADLINE_SECONDS)


@asynccontextmanager
async def running(*argv: str, **env: str) -> AsyncIterator[SimulatedEngine]:
    """Run an engine from its open port to its end; by default a tiny and fast one."""
    stop, port = asyncio.Event(), free_port()
    arguments = [*(argv or (MODEL,)), "--port", str(port)]
    if argv and argv[0].startswith("-"):
        arguments.insert(0, MODEL)
    environment = {"TESSERA_SIM_SHAPE": SHAPE, "TESSERA_SIM_START_SECONDS": "0", **env}
    process = asyncio.create_task(_exit_of(arguments, environment, stop))
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_SECONDS) as http:
        engine = SimulatedEngine(url=url, http=http, process=process, stop=stop)
        try:
            await eventually(partial(_is_healthy, engine), within=DEADLINE_SECONDS)
            yield engine
        finally:
            stop.set()
            await http.aclose()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.gather(process, return_exceptions=True)


def keys(value: Any, place: str = "") -> Iterator[str]:
    """Paths of all keys in JSON, as in the captured file."""
    if isinstance(value, dict):
        for name, inner in value.items():
            path = f"{place}.{name}" if place else name
            yield path
            yield from keys(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{place}[]")


async def _exit_of(
    arguments: Sequence[str], env: Mapping[str, str], stop: asyncio.Event
) -> EngineExit | None:
    """Return the exit, which as an exception would end the event loop."""
    try:
        await serve(arguments, host="127.0.0.1", env=env, stop=stop)
    except EngineExit as end:
        return end
    return None


async def _is_healthy(engine: SimulatedEngine) -> None:
    if engine.process.done():
        raise RuntimeError(f"the engine ended: {engine.process.result()}")
    try:
        response = await engine.http.get("/health")
    except httpx.ConnectError as error:
        raise AssertionError("no open port") from error
    assert response.status_code == 200
