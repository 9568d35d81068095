"""Which engines are polled, when, and what of their pages is read."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica, OfferedModel, model_changes
from tessera.domain.picking.engine_page import MAX_PAGE_BYTES
from tessera.gateway.fleet.polling import EnginePoller, read_page
from tessera.gateway.http.engine_connection import MAX_READ_BYTES, EngineSession
from tests.builders import NOW
from tests.gateway.harness import EngineCall, ScriptedEngine

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PAGE = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n"


class Engines:
    """Engines that answer once they are let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.seconds = 100.0
        self.poller = EnginePoller(self.read, lambda: self.seconds)
        self.models: Sequence[OfferedModel] = ()

    def update(self, *models: OfferedModel) -> None:
        self.poller.update(model_changes(self.models, models))
        self.models = models

    async def read(self, address: str) -> bytes | None:
        self.asked.append(address)
        await self.open.wait()
        return PAGE if "silent" not in address else None

    async def poll(self) -> list[str]:
        self.asked.clear()
        self.poller.poll()
        for _ in range(3):
            await asyncio.sleep(0)
        return sorted(self.asked)


def a_model(
    namespace: str, replicas: int, name: str = "chat", *, ready: bool = True
) -> OfferedModel:
    return OfferedModel(
        service=Ref(namespace, name),
        uid=f"{namespace}-{name}",
        names=(name,),
        tenant=namespace,
        replicas=tuple(
            EngineReplica(
                pod=Ref(namespace, f"{name}-{number}"),
                uid=f"{namespace}-{name}-{number}",
                address=f"{namespace}-{name}-{number}",
                ready_since=NOW if ready else None,
            )
            for number in range(replicas)
        ),
    )


async def test_engines_are_polled_for_a_minute_after_the_last_request() -> None:
    engines = Engines()
    engines.update(a_model("a", 2), a_model("b", 1))
    assert await engines.poll() == []
    engines.poller.saw_traffic([Ref("a", "chat")])
    assert await engines.poll() == ["a-chat-0", "a-chat-1"]
    loads = engines.poller.take()
    assert {uid: (load.running, load.waiting) for uid, load in loads.items()} == {
        "a-chat-0": (1, 2),
        "a-chat-1": (1, 2),
    }
    assert loads["a-chat-0"].observed_at == 100.0
    assert engines.poller.take() == {}
    engines.seconds = 160
    assert await engines.poll() == ["a-chat-0", "a-chat-1"]
    engines.seconds = 161
    assert await engines.poll() == []


async def test_a_directory_changes_the_replicas_that_it_changes() -> None:
    engines = Engines()
    first, second = a_model("a", 2), a_model("b", 1)
    engines.update(first, second)
    engines.poller.saw_traffic([first.service, second.service])
    assert await engines.poll() == ["a-chat-0", "a-chat-1", "b-chat-0"]
    moved, lost = first.replicas
    moved = replace(moved, address="moved")
    engines.update(replace(first, replicas=(moved, replace(lost, ready_since=None))), second)
    assert await engines.poll() == ["b-chat-0", "moved"]
    engines.update(second)
    assert await engines.poll() == ["b-chat-0"]


async def test_an_engine_that_hangs_is_asked_once() -> None:
    engines = Engines()
    engines.update(a_model("a", 1))
    engines.poller.saw_traffic([Ref("a", "chat")])
    engines.open.clear()
    assert await engines.poll() == ["a-chat-0"]
    assert await engines.poll() == []
    engines.open.set()
    await asyncio.sleep(0)
    assert await engines.poll() == ["a-chat-0"]


async def test_hanging_engines_of_one_namespace_do_not_stop_the_polls_of_others() -> None:
    engines = Engines()
    evil = [a_model("evil", 300, f"s{number}") for number in range(3)]
    engines.update(*evil, a_model("good", 1))
    engines.poller.saw_traffic([*(model.service for model in evil), Ref("good", "chat")])
    engines.open.clear()
    asked = await engines.poll()
    assert (len(asked), "good-chat-0" in asked) == (33, True)
    engines.open.set()
    await asyncio.sleep(0)
    assert "good-chat-0" in await engines.poll()


async def test_starting_and_silent_engines_have_no_load() -> None:
    engines = Engines()
    models = (a_model("a", 1, ready=False), a_model("silent", 1))
    engines.update(*models)
    engines.poller.saw_traffic([model.service for model in models])
    assert await engines.poll() == ["silent-chat-0"]
    assert engines.poller.take() == {}


@asynccontextmanager
async def an_engine(parts: Iterable[bytes]) -> AsyncIterator[tuple[EngineSession, ScriptedEngine]]:
    """Run an engine that answers with these bytes, and then says nothing more."""

    async def script(call: EngineCall) -> None:
        for part in parts:
            await call.send(part)
        await call.gone.wait()

    session = EngineSession(idle_seconds=60)
    async with ScriptedEngine(script, "GET") as engine:
        try:
            yield session, engine
        finally:
            await session.close()


async def test_a_page_is_read_on_the_connection_of_the_last_one() -> None:
    session = EngineSession(idle_seconds=60)
    async with ScriptedEngine(lambda call: call.whole(PAGE), "GET") as engine:
        assert [await read_page(session, engine.address) for _ in range(3)] == [PAGE] * 3
        assert [call.path for call in engine.calls] == ["/metrics"] * 3
        assert len({id(call.writer) for call in engine.calls}) == 1
        await session.close()


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([CHUNKED, *itertools.repeat(b"1\r\n\n\r\n" * 10_000, 200)], id="small chunks"),
        pytest.param(
            [CHUNKED, *itertools.repeat(b"a000\r\n" + b"\n" * 0xA000 + b"\r\n", 200)], id="lines"
        ),
        pytest.param([CHUNKED + b"1;", *itertools.repeat(b"a" * 50_000, 200)], id="extensions"),
        pytest.param([HEAD, *itertools.repeat(b"a: b\r\n" * 10_000, 200)], id="headers"),
        pytest.param(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 200), id="100"),
    ],
)
async def test_a_page_without_end_is_left_after_its_bound(parts: Iterable[bytes]) -> None:
    async with an_engine(parts) as (session, engine), asyncio.timeout(60):
        page = await read_page(session, engine.address, seconds=30)
        (call,) = engine.calls
        await call.gone.wait()
    assert len(page or b"") < MAX_PAGE_BYTES + MAX_READ_BYTES


async def test_a_page_of_small_chunks_costs_little() -> None:
    chunks = [CHUNKED, *itertools.repeat(b"1\r\n\n\r\n" * 1000, 300)]
    async with an_engine(chunks) as (session, engine):
        start = time.process_time()
        page = await read_page(session, engine.address)
        assert time.process_time() - start < 0.2
    # Each of its bytes was sent as six.
    assert page is not None
    assert 6 * len(page) < MAX_PAGE_BYTES + MAX_READ_BYTES


async def test_a_page_that_does_not_come_in_time_is_none() -> None:
    async with an_engine([CHUNKED, b"5\r\nvllm:"]) as (session, engine), asyncio.timeout(60):
        assert await read_page(session, engine.address, seconds=0.1) is None
        await engine.calls[0].gone.wait()


@pytest.mark.parametrize("head", [b"HTTP/1.1 404 X\r\n", b"SMTP\r\n"])
async def test_what_is_no_page_is_none(head: bytes) -> None:
    async with an_engine([head + b"Content-Length: 1\r\n\r\n1"]) as (session, engine):
        address = engine.address
        assert await read_page(session, address) is None
    assert await read_page(session, address) is None
