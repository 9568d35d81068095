"""What clients without an accepted key send is read a little in each turn of the event loop."""

import asyncio
import json
import socket
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
import pytest

from tessera.gateway.http import turns
from tessera.gateway.http.connections import SMALL_BYTES, Connections
from tessera.gateway.http.turns import TURN_BYTES, ReadingTurns
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 30
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@dataclass(eq=False)
class Client:
    """What a client has sent that is not read."""

    turns: ReadingTurns
    size: int
    address: str = "many"
    is_read: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._other, self._socket = socket.socketpair()
        self._other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * self.size)
        self._other.sendall(b"x" * self.size)
        self.descriptor = self._socket.fileno()
        self.turns.wait(self)

    def read_in_turn(self) -> None:
        self.is_read = True

    def close(self) -> None:
        self.turns.remove(self)
        self._other.close()
        self._socket.close()


def count_read(clients: list[Client]) -> int:
    return sum(client.is_read for client in clients)


async def test_so_many_bytes_are_read_in_a_turn_and_addresses_take_turns() -> None:
    reading, size, counts = ReadingTurns(), TURN_BYTES // 4, [0]
    many = [Client(reading, size) for _ in range(20)]
    few, ended = (Client(reading, size, address) for address in ("few", "ended"))
    ended.close()
    async with asyncio.timeout(WAIT_SECONDS):
        while counts[-1] < len(many):
            await asyncio.sleep(0)
            counts.append(count_read(many))
            assert few.is_read or counts[-1] <= 4
    assert max(after - before for before, after in pairwise(counts)) == 4
    assert not ended.is_read
    reading.close()
    for client in (*many, few):
        client.close()


async def test_few_bytes_do_not_wait_behind_many_and_count_as_more() -> None:
    reading = ReadingTurns()
    large = [Client(reading, TURN_BYTES) for _ in range(3)]
    small = [Client(reading, 1) for _ in range(TURN_BYTES // SMALL_BYTES + 1)]
    counts = [0]
    async with asyncio.timeout(WAIT_SECONDS):
        while not counts[-1]:
            await asyncio.sleep(0)
            counts.append(count_read(large))
    assert (counts[-1], count_read(small)) == (1, len(small) - 1)
    reading.close()
    for client in (*large, *small):
        client.close()


async def _answer(call: EngineCall) -> None:
    await call.whole(COMPLETION)


async def test_who_has_an_accepted_key_does_not_wait_for_those_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        ScriptedEngine(_answer) as engine,
        asyncio.timeout(WAIT_SECONDS),
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
        with monkeypatch.context() as without_turns:
            async with client.post(url, json=CHAT) as response:
                assert response.status == 200
            without_turns.setattr(turns, "TURN_BYTES", 0)
            others = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(20)]
            for _, writer in others:
                writer.write(HEALTH)
            async with client.post(url, json={**CHAT, "user": "x" * 2**18}) as response:
                assert response.status == 200
            answers = [asyncio.create_task(reader.readline()) for reader, _ in others]
            done, _ = await asyncio.wait(answers, timeout=0.05)
            assert not done
        for answer, (_, writer) in zip(answers, others, strict=True):
            assert await answer == b"HTTP/1.1 200 OK\r\n"
            writer.close()


@pytest.mark.parametrize("length", [10, 2**17])
async def test_what_waits_for_its_turn_comes_whole(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[bytes] = []

    async def answer(call: EngineCall) -> None:
        bodies.append(call.body)
        await call.whole(COMPLETION)

    # One piece in each turn.
    monkeypatch.setattr(turns, "TURN_BYTES", 1)
    clients, users = Connections(), [f"{number}-" + "x" * length for number in range(2)]
    async with (
        ScriptedEngine(answer) as engine,
        asyncio.timeout(WAIT_SECONDS),
        a_gateway(a_directory(a_model(a_replica(engine.address))), clients=clients) as gateway,
    ):
        answers = await asyncio.gather(*[gateway.post({**CHAT, "user": user}) for user in users])
        assert {answer.status for answer in answers} == {200}
        assert sorted(json.loads(body)["user"] for body in bodies) == users
    assert clients.held_bytes == 0


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_several_connections_are_accepted_in_a_turn() -> None:
    clients, count, turn = Connections(), 64, 0
    async with a_gateway(a_directory(a_model()), clients=clients) as gateway:
        sockets = [
            socket.create_connection(("127.0.0.1", gateway.port), timeout=WAIT_SECONDS)
            for _ in range(count)
        ]
        while len(clients) < count:
            turn += 1
            await asyncio.sleep(0)
        assert turn <= count // 2
        for each in sockets:
            each.close()

        async def are_gone() -> None:
            assert len(clients) == 0

        await eventually(are_gone)
