"""Connections of clients have a bound, and those that wait make room for others."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from tessera.gateway.http.connections import (
    MAX_CONNECTIONS,
    ConnectionEnd,
    Connections,
    raise_descriptor_limit,
)
from tessera.gateway.http.protocol import GatewayProtocol
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    MODEL,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
LIMIT = 8
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tsk-team-a\r\n"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(eq=False)
class Peer:
    """A connection in name only."""

    connections: Connections
    address: str
    ended: bool = False

    def abort(self) -> None:
        self.ended = True

    @classmethod
    def connect(cls, connections: Connections, address: str) -> "Peer":
        peer = cls(connections, address)
        connections.add(peer, address)
        return peer


@dataclass
class Ends:
    """The ends of connections that were too many."""

    ends: list[ConnectionEnd] = field(default_factory=list)

    def connections(self, limit: int) -> Connections:
        return Connections(limit, self.ends.append)


def test_the_longest_waiting_connection_of_the_address_with_most_makes_room() -> None:
    ends = Ends()
    connections = ends.connections(6)
    few = [Peer.connect(connections, "few") for _ in range(2)]
    many = [Peer.connect(connections, "many") for _ in range(4)]
    connections.begin(many[0])
    connections.begin(many[1])
    connections.wait(many[1])
    new = [Peer.connect(connections, "new") for _ in range(2)]
    assert [peer.ended for peer in (*few, *many, *new)] == [False] * 3 + [False, True, True] + [
        False
    ] * 2
    assert (len(connections), ends.ends) == (6, [ConnectionEnd.EVICTED] * 2)


def test_a_host_of_many_ipv6_addresses_counts_once() -> None:
    ends = Ends()
    connections = ends.connections(6)
    honest = [Peer.connect(connections, "2001:db8:0:1::7") for _ in range(2)]
    many = [Peer.connect(connections, f"2001:db8:0:2::{n}") for n in range(6)]
    assert [peer.ended for peer in (*honest, *many)] == [False] * 2 + [True] * 2 + [False] * 4
    assert not Peer.connect(connections, "fe80::1%eth0").ended


@pytest.mark.parametrize("prefix", ["::ffff:", "64:ff9b::"])
def test_an_ipv4_address_within_ipv6_counts_as_itself(prefix: str) -> None:
    connections = Ends().connections(6)
    honest = [Peer.connect(connections, address) for address in (f"{prefix}10.0.0.1", "10.0.0.1")]
    many = [Peer.connect(connections, f"{prefix}10.0.0.2") for _ in range(6)]
    assert [peer.ended for peer in (*honest, *many)] == [False] * 2 + [True] * 2 + [False] * 4


def test_who_has_most_connections_and_none_that_waits_gets_no_more() -> None:
    ends = Ends()
    connections = ends.connections(4)
    idle = Peer.connect(connections, "idle")
    for _ in range(3):
        connections.begin(Peer.connect(connections, "busy"))
    new = Peer.connect(connections, "busy")
    assert (new.ended, idle.ended) == (True, False)
    connections.begin(idle)
    other = Peer.connect(connections, "other")
    assert other.ended
    assert (len(connections), ends.ends) == (4, [ConnectionEnd.REFUSED] * 2)


def test_a_connection_that_ended_counts_no_more() -> None:
    connections = Ends().connections(2)
    for _ in range(5):
        peer = Peer.connect(connections, "a")
        connections.begin(peer)
        connections.remove(peer)
        # Its response may end after it.
        connections.wait(peer)
        connections.begin(peer)
        connections.remove(peer)
    assert len(connections) == 0
    assert not Peer.connect(connections, "a").ended


def test_the_limit_of_descriptors_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        clients = raise_descriptor_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert (soft, hard) == (min(65_536, before[1]), before[1])
        assert clients == min(MAX_CONNECTIONS, (soft - 256) // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def serving(
    release: asyncio.Event, ends: Ends, names: tuple[str, ...] = (MODEL,)
) -> AsyncIterator[RunningGateway]:
    """Run a gateway for few connections, before an engine that answers after the release."""

    async def script(call: EngineCall) -> None:
        await release.wait()
        await call.whole(COMPLETION)

    async with ScriptedEngine(script) as engine, asyncio.timeout(WAIT_SECONDS):
        directory = a_directory(a_model(a_replica(engine.address), names=names))
        async with a_gateway(directory, clients=ends.connections(LIMIT)) as gateway:
            yield gateway


async def connect(gateway: RunningGateway, data: bytes) -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    return reader, writer


async def until_closed(client: Client) -> None:
    with suppress(ConnectionError):
        await client[0].read()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /v1/chat",
        HEAD + b"content-length: 1000\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["silent", "head", "body", "kept"],
)
async def test_connections_without_a_request_keep_nobody_out(data: bytes) -> None:
    async def are_evicted() -> None:
        assert ends.ends == [ConnectionEnd.EVICTED] * (2 * LIMIT + 1)

    release, ends = asyncio.Event(), Ends()
    async with serving(release, ends) as gateway:
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.wait_for_in_flight(1)
        idle = [await connect(gateway, data) for _ in range(3 * LIMIT)]
        await eventually(are_evicted)
        # New ones are served, and the one with a request stays.
        new = await connect(gateway, HEAD + b"content-length: 2\r\n\r\n{}")
        assert (await new[0].readline()).startswith(b"HTTP/1.1 400 ")
        release.set()
        assert (await request).status == 200
        await until_closed(idle[0])
        for _, writer in (*idle, new):
            writer.close()
    assert set(ends.ends) == {ConnectionEnd.EVICTED}


@pytest.mark.parametrize(
    ("models", "end"), [(600, ConnectionEnd.EVICTED), (3000, ConnectionEnd.REFUSED)]
)
async def test_who_asks_for_more_than_he_reads_keeps_nobody_out(
    models: int, end: ConnectionEnd
) -> None:
    """Who is slow to read one large response keeps his place."""

    async def all_read_slowly() -> None:
        connections = gateway.server.server_state.connections
        slow = [isinstance(each, GatewayProtocol) and each.reads_slowly for each in connections]
        assert slow.count(True) == LIMIT, slow

    ends = Ends()
    names = tuple(f"model-{number}" for number in range(models))
    async with serving(asyncio.Event(), ends, names) as gateway:
        gateway.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
        loop, silent = asyncio.get_running_loop(), []
        asked = HEAD.replace(b"POST /v1/chat/completions", b"GET /v1/models") + b"\r\n"
        for _ in range(LIMIT):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(client, asked * 4)
            silent.append(client)
        await eventually(all_read_slowly)
        new = await connect(gateway, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        with suppress(ConnectionError):
            response = await new[0].readline()
            assert response == (b"HTTP/1.1 200 OK\r\n" if end is ConnectionEnd.EVICTED else b"")
        assert ends.ends == [end]
        new[1].close()
        for client in silent:
            client.close()
