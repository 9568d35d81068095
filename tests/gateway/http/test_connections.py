"""Connections of clients have a bound, and those that wait make room for others."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.gateway.http.connections import (
    MAX_CONNECTION_BYTES,
    MAX_CONNECTIONS,
    PATIENCE_SECONDS,
    ConnectionEnd,
    Connections,
    ConnectionStage,
    raise_descriptor_limit,
)
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.main import listeners
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
WAIT_SECONDS = 30
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
    """The ends of connections that were too many, at a moment that stands."""

    ends: list[ConnectionEnd] = field(default_factory=list)

    now: float = 0.0

    def connections(self, limit: int, byte_limit: int = MAX_CONNECTION_BYTES) -> Connections:
        return Connections(limit, self.ends.append, byte_limit=byte_limit, clock=lambda: self.now)


def test_the_longest_waiting_connection_of_the_address_with_most_makes_room() -> None:
    ends = Ends()
    connections = ends.connections(6)
    few = [Peer.connect(connections, "few")]
    many = [Peer.connect(connections, "many") for _ in range(5)]
    connections.begin(many[0])
    connections.begin(many[1])
    connections.wait(many[1], ConnectionStage.SILENT)
    new = [Peer.connect(connections, "new") for _ in range(2)]
    assert [peer.ended for peer in (*few, *many, *new)] == [False] * 3 + [True, True] + [False] * 3
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
        connections.wait(peer, ConnectionStage.SILENT)
        connections.hold(peer, 10)
        connections.upload(peer, "team-a")
        connections.begin(peer)
        connections.remove(peer)
    assert (len(connections), connections.held_bytes) == (0, 0)
    assert not Peer.connect(connections, "a").ended


def test_what_has_said_least_gives_way_first_and_never_a_body_that_keeps_its_pace() -> None:
    ends = Ends()
    connections = ends.connections(8)
    peers = {}
    for name in ("handshake", "silent", "head", "slow body", "body", "running"):
        peers[name] = Peer.connect(connections, name)
    connections.wait(peers["handshake"], ConnectionStage.HANDSHAKE)
    connections.wait(peers["head"], ConnectionStage.WITHOUT_KEY)
    connections.wait(peers["slow body"], ConnectionStage.WITH_KEY)
    connections.upload(peers["body"], "team-a")
    connections.begin(peers["running"])
    ends.now += PATIENCE_SECONDS
    # Others do not notice how many come, for as long as these wait for their first byte.
    new = [Peer.connect(connections, f"new-{number}") for number in range(100)]
    ended = [name for name, peer in peers.items() if peer.ended]
    assert ended == ["handshake", "silent", "head"]
    for peer in new:
        connections.begin(peer)
    Peer.connect(connections, "last")
    assert [name for name, peer in peers.items() if not peer.ended] == ["body", "running"]
    assert set(ends.ends) == {ConnectionEnd.EVICTED}
    assert Peer.connect(connections, "running").ended


def test_a_new_connection_has_a_second_before_those_that_wait_longer_for_a_key() -> None:
    ends = Ends()
    connections = ends.connections(4)
    heads = [Peer.connect(connections, f"head-{number}") for number in range(3)]
    for peer in heads:
        connections.wait(peer, ConnectionStage.WITHOUT_KEY)
    new = [Peer.connect(connections, f"new-{number}") for number in range(3)]
    assert [peer.ended for peer in (*heads, *new)] == [True, True, False] + [False] * 3
    ends.now += PATIENCE_SECONDS
    Peer.connect(connections, "last")
    assert [peer.ended for peer in (*heads, *new)] == [True, True, False, True, False, False]


def test_bodies_of_few_tenants_leave_places_for_others() -> None:
    connections = Ends().connections(6)
    bodies = [Peer.connect(connections, f"body-{number}") for number in range(6)]
    for peer in bodies:
        connections.upload(peer, "team-a")
    for number in range(3):
        peer = Peer.connect(connections, f"new-{number}")
        connections.upload(peer, "team-b")
        bodies.append(peer)
    # Of six places one tenant may have three, and the next one half of the others.
    assert [peer.ended for peer in bodies] == [False] * 3 + [True] * 3 + [False] * 3
    last = Peer.connect(connections, "last")
    assert [peer.ended for peer in (*bodies[6:], last)] == [False, False, True, False]


def test_of_too_many_bytes_those_of_the_address_with_most_go_first_in_the_same_order() -> None:
    ends = Ends()
    connections = ends.connections(100, byte_limit=80)
    peers = [Peer.connect(connections, name) for name in ("a", "b", "b", "c", "silent")]
    for peer, size in zip(peers, (20, 15, 15, 30, 0), strict=True):
        connections.wait(peer, ConnectionStage.WITHOUT_KEY)
        connections.hold(peer, size)
    connections.begin(peers[3])
    assert (connections.held_bytes, ends.ends) == (80, [])
    # Requests that run hold most, and go last; who holds nothing stays.
    connections.hold(peers[0], 21)
    assert [peer.ended for peer in peers] == [False, True, False, False, False]
    assert connections.held_bytes == 66
    connections.hold(peers[3], 81)
    assert [peer.ended for peer in peers] == [True, True, True, True, False]
    assert connections.held_bytes == 0


def test_no_more_end_than_bytes_are_too_many_and_who_holds_longest_comes_first() -> None:
    ends = Ends()
    connections = ends.connections(100, byte_limit=80)
    peers = [Peer.connect(connections, "a") for _ in range(9)]
    for peer in peers:
        connections.wait(peer, ConnectionStage.WITHOUT_KEY)
    for peer in peers[:8]:
        connections.hold(peer, 9)
    # To hold more makes nobody younger.
    connections.hold(peers[0], 17)
    assert (connections.held_bytes, ends.ends) == (80, [])
    connections.hold(peers[8], 10)
    assert [peer.ended for peer in peers] == [True] + [False] * 8
    connections.hold(peers[8], 50)
    assert [peer.ended for peer in peers] == [True] * 5 + [False] * 4
    assert connections.held_bytes == 77


def test_of_addresses_with_as_many_connections_the_one_that_waits_longest_is_first() -> None:
    ends = Ends()
    connections = ends.connections(300)
    peers = [Peer.connect(connections, f"{number * 7 % 300}") for number in range(300)]
    # What an address had before counts no more.
    for peer in peers[::2]:
        connections.begin(peer)
        connections.wait(peer, ConnectionStage.WITHOUT_KEY)
    for number in range(100):
        Peer.connect(connections, f"new-{number}")
    assert [peer.ended for peer in peers] == [False, True] * 100 + [False] * 100


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
    release: asyncio.Event,
    ends: Ends,
    names: tuple[str, ...] = (MODEL,),
    clients: Connections | None = None,
) -> AsyncIterator[RunningGateway]:
    """Run a gateway for few connections, before an engine that answers after the release."""

    async def script(call: EngineCall) -> None:
        await release.wait()
        await call.whole(COMPLETION)

    async with ScriptedEngine(script) as engine, asyncio.timeout(WAIT_SECONDS):
        directory = a_directory(a_model(a_replica(engine.address), names=names))
        clients = ends.connections(LIMIT) if clients is None else clients
        async with a_gateway(directory, clients=clients) as gateway:
            yield gateway


async def connect(gateway: RunningGateway, data: bytes, address: str = "127.0.0.1") -> Client:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.port, local_addr=(address, 0)
    )
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
        # New ones are served, and the one with a request stays, as do bodies that keep their pace.
        new = await connect(gateway, HEAD + b"content-length: 2\r\n\r\n{}")
        assert (await new[0].readline()).startswith(b"HTTP/1.1 400 ")
        release.set()
        assert (await request).status == 200
        await until_closed(idle[LIMIT])
        for _, writer in (*idle, new):
            writer.close()
    assert set(ends.ends) == {ConnectionEnd.EVICTED}


UPLOADS = 4


async def test_new_connections_of_very_many_addresses_cut_no_upload() -> None:
    async def are_accepted() -> None:
        assert gateway.app.memory.size == UPLOADS * len(body) // 2

    async def are_evicted() -> None:
        assert len(ends.ends) >= 100

    release, ends = asyncio.Event(), Ends()
    release.set()
    body = json.dumps(CHAT).encode()
    async with serving(release, ends) as gateway:
        length = b"content-length: %d\r\n\r\n" % len(body)
        uploads = [
            await connect(gateway, HEAD + length + body[: len(body) // 2]) for _ in range(UPLOADS)
        ]
        await eventually(are_accepted)
        new = [await connect(gateway, b"GET /", f"127.0.{number}.2") for number in range(110)]
        await eventually(are_evicted)
        for reader, writer in uploads:
            writer.write(body[len(body) // 2 :])
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        for _, writer in (*uploads, *new):
            writer.close()


@pytest.mark.parametrize(
    ("pace_seconds", "end"), [(1e6, ConnectionEnd.REFUSED), (0.01, ConnectionEnd.EVICTED)]
)
async def test_a_body_gives_way_only_once_it_comes_too_slowly(
    pace_seconds: float, end: ConnectionEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_accepted() -> None:
        assert gateway.app.memory.size == 1

    async def is_answered() -> None:
        _, writer = await connect(gateway, b"")
        writer.close()
        assert end in ends.ends

    monkeypatch.setattr(GatewayProtocol, "pace_seconds", pace_seconds)
    release, ends = asyncio.Event(), Ends()
    async with serving(release, ends) as gateway:
        upload = await connect(gateway, HEAD + b"content-length: 1000\r\n\r\n{")
        await eventually(is_accepted)
        requests = [asyncio.create_task(gateway.post(CHAT)) for _ in range(LIMIT - 1)]
        await gateway.wait_for_in_flight(LIMIT - 1)
        await eventually(is_answered)
        release.set()
        assert {(await request).status for request in requests} == {200}
        upload[1].close()


BYTES, CLIENTS = 2**18, 24
_CHAT = json.dumps(CHAT).encode()
_REQUEST = HEAD + b"content-length: %d\r\n\r\n" % len(_CHAT) + _CHAT
_LARGE_HEAD = HEAD + b"".join(b"x-%d: %b\r\n" % (number, b"y" * 300) for number in range(100))
_BEHIND = _LARGE_HEAD + b"content-length: %d\r\n\r\n" % len(_CHAT) + _CHAT


@pytest.mark.parametrize(
    "data",
    [
        _LARGE_HEAD,
        _LARGE_HEAD + b"x: " + b"y" * 20_000,
        _LARGE_HEAD + b"content-length: 1000\r\n\r\n{",
        _REQUEST + 2 * _BEHIND,
    ],
    ids=["heads", "half a line", "bodies", "pipelined"],
)
async def test_what_connections_hold_has_a_bound(data: bytes) -> None:
    async def are_evicted() -> None:
        assert len(ends.ends) >= CLIENTS // 2
        assert BYTES // 2 < clients.held_bytes <= BYTES

    async def nothing_is_held() -> None:
        assert (clients.held_bytes, len(clients)) == (0, 1)

    release, ends = asyncio.Event(), Ends()
    clients = ends.connections(100, BYTES)
    async with serving(release, ends, clients=clients) as gateway:
        request = asyncio.create_task(gateway.post(CHAT))
        await gateway.wait_for_in_flight(1)
        many = [await connect(gateway, data) for _ in range(CLIENTS)]
        await eventually(are_evicted)
        new = await connect(
            gateway, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert (await new[0].readline()) == b"HTTP/1.1 200 OK\r\n"
        release.set()
        assert (await request).status == 200
        for _, writer in (*many, new):
            writer.close()
        await eventually(nothing_is_held)
    assert set(ends.ends) == {ConnectionEnd.EVICTED}


async def test_an_ordinary_request_holds_nothing_beside_its_tenant() -> None:
    release, ends = asyncio.Event(), Ends()
    clients = ends.connections(LIMIT, byte_limit=0)
    async with serving(release, ends, clients=clients) as gateway:
        release.set()
        assert (await gateway.post({**CHAT, "user": "x" * 2000})).status == 200
    assert ends.ends == []


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


async def test_the_ports_of_gates_and_batches_have_places_and_bytes_of_the_same_pod() -> None:
    ports = dict.fromkeys(("port", "gates_port", "batches_port"), 0)
    settings: Any = SimpleNamespace(**ports, announce_seconds=0.0, drain_seconds=1.0)
    async with a_gateway(a_directory()) as running:
        gateway: Any = running
        no_batches: Any = object()
        sockets = listeners(settings, "127.0.0.1", gateway, running.server, no_batches)
        clients, *inside = (server.server_state.clients for server in sockets)
        for each in sockets.values():
            each.close()
    assert [each is clients for each in inside] == [True, True]
