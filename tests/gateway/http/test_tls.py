"""Clients by TLS: counted before their handshake, and bounded until it is finished."""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from bench_gateway import memory_bytes
from gateway_process import running, write_certificate
from tessera.gateway.http.connections import PATIENCE_SECONDS, ConnectionEnd, Connections
from tessera.gateway.http.protocol import GatewayProtocol
from tessera.gateway.http.tls import (
    MAX_ADDRESS_HANDSHAKES,
    MAX_HELLO_BYTES,
    ClientHello,
    Handshakes,
    TlsConnection,
)
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    KEY,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
ADDRESS = "127.0.0.1"
MIB = 2**20
RECORD_BYTES, SMALL_RECORDS = 2**14, 5000


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "keys" / "ca.crt"))


async def _answer(call: EngineCall) -> None:
    body = json.loads(call.body)
    if body.get("stream"):
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)
    else:
        await call.whole({**COMPLETION, "user": body["user"]})


@asynccontextmanager
async def serving(folder: Path, clients: Connections) -> AsyncIterator[RunningGateway]:
    async with (
        ScriptedEngine(_answer) as engine,
        asyncio.timeout(WAIT_SECONDS),
        a_gateway(
            a_directory(a_model(a_replica(engine.address))),
            clients=clients,
            tls_directory=write_certificate(folder),
        ) as gateway,
    ):
        yield gateway


async def test_requests_bodies_and_answers_of_any_size_come_whole(tmp_path: Path) -> None:
    text = "0123456789abcdef" * (5 * MIB // 16)
    async with serving(tmp_path, Connections()) as gateway:
        url = f"https://{ADDRESS}:{gateway.port}/v1/chat/completions"
        connector = aiohttp.TCPConnector(ssl=trusting(tmp_path), limit=1)
        headers = {"authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as client:
            for size in (0, 1, 4095, 4096, 2**14, len(text)):
                body = io.BytesIO(json.dumps({**CHAT, "user": text[:size]}).encode())
                async with client.post(url, data=body) as response:
                    assert await response.json() == {**COMPLETION, "user": text[:size]}
            async with client.post(url, json=STREAM) as response:
                assert (await response.read()).endswith(END + DONE)
            # All on one connection.
            assert len(gateway.server.server_state.connections) == 1
    assert {record.client_address for record in gateway.records} == {ADDRESS}


async def test_the_client_hears_that_a_connection_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, Connections()) as gateway:
        reader, writer = await asyncio.open_connection(
            ADDRESS, gateway.port, ssl=trusting(tmp_path)
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b'{"status":"ok"}')
        tls = writer.get_extra_info("ssl_object")
        assert (tls.selected_alpn_protocol(), tls.version()) == (None, "TLSv1.3")
        writer.close()


async def test_a_connection_counts_before_it_says_anything(tmp_path: Path) -> None:
    async def counts() -> None:
        assert len(clients) == 1

    async def is_gone() -> None:
        assert (len(clients), len(gateway.server.handshakes), clients.held_bytes) == (0, 0, 0)

    clients = Connections()
    async with serving(tmp_path, clients) as gateway:
        _, writer = await asyncio.open_connection(ADDRESS, gateway.port)
        await eventually(counts)
        writer.close()
        await eventually(is_gone)


async def test_a_client_of_ipv6_counts_for_its_network() -> None:
    clients = Connections()
    connection = TlsConnection(Handshakes(clients))
    peer = SimpleNamespace(getpeername=lambda: ("2001:db8:0:1::7", 443, 0, 0))
    connection.connection_made(asyncio.Transport({"socket": peer}))
    assert (connection.address, len(clients)) == ("2001:db8:0:1::/64", 1)
    connection.connection_lost(None)
    assert len(clients) == 0


async def shaken_hands(
    gateway: RunningGateway, folder: Path
) -> tuple[ssl.SSLObject, ssl.MemoryBIO, asyncio.StreamWriter]:
    """Return a connection of which each record is made by the test."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting(folder).wrap_bio(incoming, outgoing, server_hostname=ADDRESS)
    reader, writer = await asyncio.open_connection(ADDRESS, gateway.port)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(2**16))
        else:
            return tls, outgoing, writer


async def test_many_small_records_leave_turns_to_others(tmp_path: Path) -> None:
    async with serving(tmp_path, Connections()) as gateway:
        tls, outgoing, writer = await shaken_hands(gateway, tmp_path)
        tls.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n" % (KEY.encode(), SMALL_RECORDS + 1)
        )
        for _ in range(SMALL_RECORDS):
            tls.write(b" ")
        writer.write(outgoing.read())
        counts = [0]
        while counts[-1] < SMALL_RECORDS:
            await asyncio.sleep(0)
            connections = gateway.server.server_state.connections
            protocols = [each for each in connections if isinstance(each, GatewayProtocol)]
            counts.append(sum(protocol._body_bytes for protocol in protocols))
        # What came is read at once, and what waited in its turn.
        assert max(after - before for before, after in pairwise(counts)) <= 2 * 64
        writer.close()


async def test_half_a_record_is_held(tmp_path: Path) -> None:
    async def is_held() -> None:
        assert clients.held_bytes >= RECORD_BYTES

    async def is_passed_on() -> None:
        assert clients.held_bytes == 0

    clients = Connections()
    async with serving(tmp_path, clients) as gateway:
        tls, outgoing, writer = await shaken_hands(gateway, tmp_path)
        for _ in range(2):
            tls.write(b"\r\n" * (RECORD_BYTES // 2))
        data = outgoing.read()
        end = len(data) // 2 + 3
        writer.write(data[:end])
        await eventually(is_held)
        writer.write(data[end:])
        await eventually(is_passed_on)
        writer.close()


class Sealer:
    """Makes records of TLS 1.3 that no library sends, with the secret of a client."""

    def __init__(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0

    def record(self, content: bytes, kind: int) -> bytes:
        """Return a record with this content."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2)
        nonce = int.from_bytes(self._expanded(b"iv", 12)) ^ self._number
        self._number += 1
        key = AESGCM(self._expanded(b"key", 32))
        return head + key.encrypt(nonce.to_bytes(12), inner, head)

    def update(self) -> bytes:
        """Return a record that renews the keys of the client, and asks for others of the server."""
        record = self.record(b"\x18\0\0\x01\x01", 22)
        self._secret, self._number = self._expanded(b"traffic upd", 48), 0
        return record

    def _expanded(self, label: bytes, size: int) -> bytes:
        info = size.to_bytes(2) + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self._secret)


@asynccontextmanager
async def sealed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Sealer, asyncio.StreamWriter, TlsConnection, Connections]]:
    """Serve one connection, whose client makes its records itself."""
    secrets, clients = folder / "secrets", Connections()
    monkeypatch.setenv("SSLKEYLOGFILE", str(secrets))
    async with serving(folder, clients) as gateway:
        _, outgoing, writer = await shaken_hands(gateway, folder)
        writer.write(outgoing.read())
        connections = gateway.server.server_state.connections
        await holds(lambda: bool(connections))
        (protocol,) = connections
        connection = protocol.transport
        assert isinstance(connection, TlsConnection)
        words = secrets.read_text(encoding="ascii").split()
        secret = words[words.index("CLIENT_TRAFFIC_SECRET_0") + 2]
        yield Sealer(bytes.fromhex(secret)), writer, connection, clients
        await holds(lambda: not connections and not len(clients) and not clients.held_bytes)
        writer.transport.abort()


async def test_empty_records_without_end_end_their_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sealed(tmp_path, monkeypatch) as (sealer, writer, *_):
        writer.write(b"".join(sealer.record(b"", 23) for _ in range(1000)))


async def test_who_renews_keys_and_reads_nothing_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sealed(tmp_path, monkeypatch) as (sealer, writer, connection, clients):
        for _ in range(10):
            writer.write(sealer.update())
        writer.write(sealer.record(b"\r\n", 23))
        await writer.drain()
        assert len(clients) == 1
        connection.pause_writing()
        writer.write(sealer.update())


def in_records(message: bytes, size: int) -> bytes:
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)


HALF_HELLO = in_records(b"\x01\0\x3e\x7c" + b"x" * 15_996, 16_000)[:8000]


def a_hello() -> bytes:
    """Return the message with which a client begins."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), outgoing, server_hostname="x"
        ).do_handshake()
    return outgoing.read()[5:]


@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
def test_a_hello_is_whole_with_its_last_byte(size: int) -> None:
    data, hello = in_records(a_hello(), size), ClientHello()
    assert [hello.add(bytes([byte])) for byte in data] == [False] * (len(data) - 1) + [True]
    assert (bytes(hello.data), hello.size) == (data, len(data))
    assert ClientHello().add(data + b"more")


@pytest.mark.parametrize(
    "data", [b"GET", b"\x80", b"\x16\x03\x01\0\0", b"\x16\x03\x01\0\x04\x02\0\xff\xff",
             b"\x16\x03\x01\0\x01\x01\x15\x03\x01\0\x02"]
)  # fmt: skip
def test_what_is_no_hello_is_for_openssl_to_refuse(data: bytes) -> None:
    assert ClientHello().add(data)


async def test_half_a_hello_takes_no_place_of_a_handshake(tmp_path: Path) -> None:
    async def are_held() -> None:
        assert clients.held_bytes == len(writers) * len(HALF_HELLO)

    clients = Connections()
    async with serving(tmp_path, clients) as gateway:
        writers = [
            (await asyncio.open_connection(ADDRESS, gateway.port))[1]
            for _ in range(MAX_ADDRESS_HANDSHAKES)
        ]
        for writer in writers:
            writer.write(HALF_HELLO)
        await eventually(are_held)
        handshakes = gateway.server.handshakes
        assert (len(handshakes), handshakes.waiting) == (0, 0)
        for writer in writers:
            writer.close()


async def test_a_hello_in_pieces_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, Connections()) as gateway:
        reader, writer = await asyncio.open_connection(ADDRESS, gateway.port)
        for byte in in_records(a_hello(), 100):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        # Its own hello, in a record of a handshake.
        assert (await reader.readexactly(6))[::5] == b"\x16\x02"
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + b"x" * MAX_HELLO_BYTES,
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["silent", "half", "endless", "http"],
)
async def test_a_handshake_that_does_not_end_is_given_up(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_gone() -> None:
        assert (len(clients), len(gateway.server.handshakes), clients.held_bytes) == (0, 0, 0)

    monkeypatch.setattr(TlsConnection, "handshake_seconds", 0.2)
    clients = Connections()
    async with serving(tmp_path, clients) as gateway:
        reader, writer = await asyncio.open_connection(ADDRESS, gateway.port)
        writer.write(data)
        with suppress(ConnectionError):
            await reader.read()
        await eventually(is_gone)
        writer.close()


@dataclass(eq=False)
class Peer:
    """A connection in name only."""

    address: str
    begun: bool = False
    ended: bool = False

    def begin(self) -> None:
        self.begun = True

    def abort(self) -> None:
        self.ended = True


@dataclass
class Door:
    """Handshakes of peers, at a moment that stands."""

    now: float = 0.0
    ends: list[ConnectionEnd] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = Connections(1000, self.ends.append, clock=lambda: self.now)
        self.handshakes = Handshakes(self.clients, 6, 3, lambda: self.now)

    def come(self, address: str, count: int) -> list[Peer]:
        peers = [Peer(address) for _ in range(count)]
        for peer in peers:
            self.clients.add(peer, address)
            self.handshakes.line_up(peer)  # type: ignore[arg-type] # all that is asked of it
        return peers

    def finish(self, peer: Peer) -> None:
        self.handshakes.end(peer)  # type: ignore[arg-type] # all that is asked of it
        self.clients.remove(peer)


def begun(peers: list[Peer]) -> list[bool]:
    return [peer.begun and not peer.ended for peer in peers]


async def holds(check: Callable[[], bool]) -> None:
    async def does() -> None:
        assert check()

    await eventually(does, within=WAIT_SECONDS)


async def test_of_an_address_few_handshakes_go_on_while_others_of_it_wait() -> None:
    door = Door()
    many = door.come("many", 5)
    other = door.come("other", 1)
    await holds(lambda: begun([*many, *other]) == [True] * 3 + [False] * 2 + [True])
    assert (len(door.handshakes), door.handshakes.waiting) == (4, 2)
    # Whoever waits comes next as soon as one is finished.
    door.finish(many[0])
    await holds(lambda: begun(many)[3])
    # One that takes too long ends for it, and none else.
    door.now += PATIENCE_SECONDS
    await holds(lambda: begun(many) == [True, False, True, True, True])
    assert (door.ends, door.handshakes.waiting) == ([ConnectionEnd.EVICTED], 0)


async def test_all_handshakes_have_a_bound_and_addresses_take_turns() -> None:
    door = Door()
    first = [*door.come("a", 3), *door.come("b", 3)]
    await holds(lambda: all(begun(first)))
    many, few = door.come("c", 3), door.come("d", 1)
    door.now += PATIENCE_SECONDS / 2
    assert not any(begun([*many, *few]))
    door.finish(first[0])
    door.finish(first[1])
    await holds(lambda: begun([*many, *few]) == [True, False, False, True])
    door.now += PATIENCE_SECONDS / 2
    await holds(lambda: all(begun(many)))
    assert [peer.ended for peer in first] == [False, False, False, True, True, False]
    for peer in (*first, *many, *few):
        door.finish(peer)
    assert (len(door.handshakes), door.handshakes.waiting, len(door.clients)) == (0, 0, 0)


STALLED, GROWTH_MIB = 1200, 100


@pytest.mark.long
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize(
    ("addresses", "descriptors", "handshakes"), [(1, 1024, 100), (40, 4096, 300)]
)
async def test_handshakes_of_a_proxy_succeed_beside_many_that_do_not_end(
    addresses: int, descriptors: int, handshakes: int, tmp_path: Path
) -> None:
    """Its own come at once and of one address, the hostile ones of one or many."""
    writers, hello = [], in_records(a_hello(), 2**14)
    async with ScriptedEngine(_answer) as engine, asyncio.timeout(2 * WAIT_SECONDS):
        directory = a_directory(a_model(a_replica(engine.address)))
        async with running(tmp_path, directory, descriptors=descriptors, tls=True) as (
            address,
            pid,
        ):
            trusted = trusting(tmp_path)
            port, before = int(address.rpartition(":")[2]), memory_bytes(pid, "VmRSS")
            for number in range(STALLED):
                _, writer = await asyncio.open_connection(
                    ADDRESS, port, local_addr=(f"127.0.{1 + number % addresses}.1", 0)
                )
                # All of a hello and nothing more, or half of one.
                writer.write(hello if number % 2 else HALF_HELLO)
                writers.append(writer)

            async def ask() -> int:
                reader, writer = await asyncio.open_connection(ADDRESS, port, ssl=trusted)
                writers.append(writer)
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                return int((await reader.readline()).split()[1])

            try:
                answers = await asyncio.gather(*[ask() for _ in range(handshakes)])
                assert answers == [200] * handshakes
                assert memory_bytes(pid, "VmHWM") - before < GROWTH_MIB * MIB
            finally:
                for writer in writers:
                    writer.transport.abort()
