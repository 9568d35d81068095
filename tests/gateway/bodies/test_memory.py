"""What requests hold in the gateway has a bound, and who holds most gives way to others."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.gateway.directory import Identity, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.bodies.memory import Holding, Memory
from tessera.gateway.http.protocol import GatewayProtocol
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    TENANT,
    USAGE,
    Answer,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60
MIB = 2**20
OTHER_KEY = "tsk-team-b"
OTHER = {"authorization": f"Bearer {OTHER_KEY}"}


class Requests:
    """Requests that hold bytes, and those that had to give way."""

    def __init__(self, limit: int) -> None:
        self.memory = Memory(limit)
        self.ended: list[str] = []

    def open(self, name: str, tenant: str, key: str = "ci", weight: float = 1.0) -> Holding:
        identity = Identity(tenant=tenant, key=key)
        return self.memory.open(identity, weight, lambda: self.ended.append(name))


def test_the_tenant_that_holds_most_by_its_weight_gives_way() -> None:
    requests = Requests(100)
    heavy, light = requests.open("heavy", "a", weight=4.0), requests.open("light", "b")
    assert heavy.take(50)
    assert light.take(40)
    assert requests.open("new", "c").take(11)
    assert requests.ended == ["light"]
    assert requests.memory.size == 61


def test_what_protects_streams_gives_way_before_any_request() -> None:
    requests, dropped = Requests(100), list[str]()
    holdings = {name: requests.open(name, tenant) for name, tenant in (("a1", "a"), ("b1", "b"))}
    for name, holding in holdings.items():
        holding.on_drop = partial(dropped.append, name)
        assert holding.take(20)
        holding.spare_held(10)
        assert holding.take_spare(15)
    # For what can be dropped nobody gives way.
    assert not holdings["a1"].take_spare(40)
    assert (dropped, requests.ended, requests.memory.size) == ([], [], 70)
    # It is that of the tenant that holds most, or else of another one.
    assert holdings["b1"].take(14)
    assert requests.open("c1", "c").take(20)
    assert (dropped, requests.ended, requests.memory.size) == (["b1"], [], 79)
    assert requests.open("d1", "d").take(36)
    assert (dropped, requests.ended, requests.memory.size) == (["b1", "a1"], [], 90)
    assert (holdings["a1"].spare, holdings["a1"].size) == (0, 10)
    holdings["a1"].free_spare(5)
    holdings["a1"].close()
    assert requests.memory.size == 80


def test_of_a_tenant_the_largest_request_of_its_largest_key_gives_way() -> None:
    requests = Requests(100)
    for name, key, size in (("x1", "x", 20), ("y1", "y", 8), ("y2", "y", 15), ("y3", "y", 7)):
        assert requests.open(name, "a", key).take(size)
    assert requests.open("x2", "a", "x").take(4)
    # Nobody else holds anything, but a tenant has half of all at most.
    assert requests.ended == ["y2"]
    assert requests.memory.size == 39


def test_the_largest_request_is_refused_itself_and_holds_nothing_more() -> None:
    requests = Requests(100)
    small, large = requests.open("small", "a"), requests.open("large", "a")
    assert small.take(20)
    assert large.take(30)
    assert not large.take(1)
    assert not large.take(1)
    large.free(30)
    assert (requests.ended, requests.memory.size) == ([], 20)
    for holding in (large, small):
        holding.close()
    assert requests.memory.size == 0


def test_thousands_of_requests_give_way_without_a_look_at_each_for_each() -> None:
    requests, calls = Requests(2 * 5000 * 100), 0
    for tenant in ("a", "b"):
        for number in range(5000):
            assert requests.open(f"{tenant}{number}", tenant).take(100)

    def count(*called: object) -> None:
        nonlocal calls
        calls += called[1] in ("call", "c_call")

    new = requests.open("new", "c")
    sys.setprofile(count)
    try:
        for _ in range(100):
            assert new.take(1000)
    finally:
        sys.setprofile(None)
    assert len(requests.ended) == 1000
    assert calls < 100 * 1000
    assert requests.memory.size == requests.memory.limit


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 40)), max_size=60))
def test_what_is_held_is_the_sum_of_all_and_fits(changes: list[tuple[int, int]]) -> None:
    requests = Requests(200)
    holdings = [requests.open(str(n), "ab"[n % 2], "xy"[n // 4]) for n in range(6)]
    for number, size in changes:
        holding = holdings[number]
        if size < 0:
            holding.free(min(-size, holding.size))
        else:
            assert holding.take(size) is not holding.exceeded
        assert requests.memory.size == sum(each.size for each in holdings) <= 200
    for holding in holdings:
        holding.close()
    assert requests.memory.size == 0


@asynccontextmanager
async def serving(script: Script, limit: int, **options: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway for two tenants, with so much memory."""
    async with ScriptedEngine(script) as engine, asyncio.timeout(WAIT_SECONDS):
        replica = a_replica(engine.address, max_num_seqs=options.pop("max_num_seqs", 64))
        keys = (an_api_key(), an_api_key(OTHER_KEY, name="server", tenant="team-b"))
        tenants = {name: TenantLimits(name=name, namespaces=(name,)) for name in (TENANT, "team-b")}
        directory = a_directory(a_model(replica, public=True), keys=keys, tenants=tenants)
        async with a_gateway(directory, memory=Memory(limit), **options) as gateway:
            yield gateway
            await gateway.wait_for_held_bytes(0, 0)


async def answer_at_once(call: EngineCall) -> None:
    await call.whole(COMPLETION)


async def begin(gateway: RunningGateway, body: bytes, length: int | None = None) -> socket.socket:
    """Send a request of team-a, of which perhaps more should follow, and read nothing.

    The sockets of client and gateway keep few bytes of an answer.
    """
    gateway.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**12)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", gateway.port))
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tsk-team-a\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n"
        % (len(body) if length is None else length)
    )
    await loop.sock_sendall(client, head + body)
    return client


async def status_of(client: socket.socket) -> int:
    with client:
        return int((await asyncio.get_running_loop().sock_recv(client, 2**12)).split()[1])


def large(size: int) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": "x" * size}]}


async def test_unfinished_bodies_of_one_tenant_leave_room_for_others() -> None:
    async with serving(answer_at_once, 4 * MIB) as gateway:
        clients = [await begin(gateway, b"x" * MIB, 3 * MIB) for _ in range(9)]
        statuses = [asyncio.create_task(status_of(client)) for client in clients]
        refused = asyncio.as_completed(statuses)
        assert [await next(refused) for _ in range(7)] == [429] * 7
        await gateway.wait_for_held_bytes(2 * MIB, 2 * MIB)
        answer = await gateway.post(large(MIB), **OTHER)
        assert answer.status == 200
        for status in statuses:
            status.cancel()
    reasons = {(record.tenant, record.reason) for record in gateway.records}
    assert (TENANT, RequestReason.HELD_BYTES_EXCEEDED) in reasons


async def test_a_refusal_says_what_is_too_much() -> None:
    async with serving(answer_at_once, 2 * MIB) as gateway:
        answer = await gateway.post(large(MIB))
    assert (answer.status, answer.error["code"]) == (429, "held_bytes_exceeded")
    assert answer.error["type"] == "rate_limit_error"
    assert answer.headers["retry-after"] == "1"
    assert "limit 2097152 bytes, 1048576 of one tenant" in answer.error["message"]


async def test_waiting_bodies_give_way_to_those_of_others() -> None:
    part = 50_000
    turn, arrived = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        arrived.set()
        await turn.wait()
        await call.whole(COMPLETION)

    def send(size: int, **headers: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(gateway.post(large(size), **headers))

    async with serving(script, 10 * part, max_num_seqs=1) as gateway:
        first = send(0)
        await arrived.wait()
        sizes = (2 * part, part, part)
        waiting = [send(size) for size in sizes]
        await gateway.wait_for_held_bytes(sum(sizes) + 1)
        # The largest of all gives way to another one of its tenant, and none to another tenant.
        others = [send(part), send(4 * part, **OTHER)]
        assert (await waiting[0]).status == 429
        turn.set()
        answers = [await task for task in (first, *waiting[1:], *others)]
    assert [answer.status for answer in answers] == [200] * 5


async def test_answers_that_nobody_reads_are_held_and_give_way() -> None:
    whole = {**COMPLETION, "padding": "x" * (12 * MIB)}

    async def script(call: EngineCall) -> None:
        await call.whole(whole if call.json["user"] == "silent" else COMPLETION)

    async with serving(script, 40 * MIB) as gateway:
        body = json.dumps({**CHAT, "user": "silent"}).encode()
        clients = [await begin(gateway, body)]
        await gateway.wait_for_held_bytes(12 * MIB + 1)
        clients.append(await begin(gateway, body))
        record = await gateway.record()
        assert (await gateway.post({**CHAT, "user": "other"}, **OTHER)).status == 200
        for client in clients:
            client.close()
    assert (record.reason, record.phase) == (RequestReason.HELD_BYTES_EXCEEDED, Phase.ABORTED)
    # What the engine did is paid.
    assert record.output_tokens == 3


async def test_an_answer_without_room_is_refused_and_its_prompt_is_paid() -> None:
    async def script(call: EngineCall) -> None:
        await call.whole({**COMPLETION, "padding": "x" * MIB})

    async with serving(script, MIB) as gateway:
        answer = await gateway.post(CHAT)
        record = await gateway.record()
    assert (answer.status, record.phase) == (429, Phase.ABORTED)
    assert record.input_tokens > 0


async def test_a_stream_holds_its_body_until_it_begins_and_what_is_not_read() -> None:
    more, begun = asyncio.Event(), asyncio.Event()

    async def script(call: EngineCall) -> None:
        await begun.wait()
        await call.begin()
        await call.chunk(ROLE + a_delta())
        # An event whose end is missing.
        event = a_delta("x" * MIB)
        await call.chunk(event[:-2])
        await more.wait()
        await call.chunk(event[-2:] + END + DONE)
        await call.finish()

    async with serving(script, 8 * MIB) as gateway:
        request = asyncio.create_task(gateway.post({**STREAM, **large(MIB)}))
        await gateway.wait_for_held_bytes(MIB + 1)
        begun.set()
        await gateway.wait_for_held_bytes(MIB + 1, MIB + 1999)
        more.set()
        answer = await request
    assert (answer.status, len(answer.events)) == (200, 5)


async def test_a_body_that_its_engine_does_not_read_is_held() -> None:
    loop, accepted = asyncio.get_running_loop(), list[socket.socket]()

    async def send_a_token_at_once() -> None:
        engine, _ = await loop.sock_accept(listener)
        accepted.append(engine)
        await loop.sock_recv(engine, 100)
        token = ROLE + a_delta()
        head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
        await loop.sock_sendall(engine, b"%b\r\n\r\n%x\r\n%b\r\n" % (head, len(token), token))

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        directory = a_directory(a_model(a_replica(f"127.0.0.1:{listener.getsockname()[1]}")))
        async with a_gateway(directory, memory=Memory(64 * MIB)) as gateway:
            engine = asyncio.create_task(send_a_token_at_once())
            client = await begin(gateway, json.dumps({**STREAM, **large(16 * MIB)}).encode())
            assert b"200 OK" in await loop.sock_recv(client, 2**12)
            await engine
            assert gateway.held_bytes > 16 * MIB
            # All of it is held until its last part is in the buffers of sockets.
            read = 0
            while read < 16 * MIB:
                assert gateway.held_bytes > 16 * MIB or read > 8 * MIB
                read += len(await loop.sock_recv(accepted[0], 2**20))
            await gateway.wait_for_held_bytes(0, 0)
            client.close()
            await gateway.record()
        accepted[0].close()


async def read_all(client: socket.socket) -> bytes:
    loop, parts = asyncio.get_running_loop(), []
    with client:
        while part := await loop.sock_recv(client, 2**16):
            parts.append(part)
    return b"".join(parts)


UNREAD = 10 * (a_delta("x" * 50_000),)


async def test_an_engine_is_free_once_it_answered_whoever_reads_it() -> None:
    def answers(user: str) -> tuple[bytes, ...]:
        return UNREAD if user == "silent" else (a_delta(),)

    async def script(call: EngineCall) -> None:
        if call.json.get("stream"):
            await call.stream(ROLE, *answers(call.json["user"]), END, USAGE, DONE)
        else:
            await call.whole({**COMPLETION, "padding": "x" * MIB})

    async with serving(script, 16 * MIB, max_num_seqs=1) as gateway:
        silent = json.dumps({**STREAM, "user": "silent"}).encode()
        clients = [await begin(gateway, body) for body in 2 * (silent, json.dumps(CHAT).encode())]
        await gateway.wait_for_held_bytes(5 * MIB // 2 + 1)
        await gateway.wait_for_in_flight(0)
        async with asyncio.timeout(30):
            answer = await gateway.post({**STREAM, "user": "other"}, **OTHER)
        assert answer.events[-1] == DONE
        # Nothing is lost for those who read late.
        streams = [await read_all(client) for client in clients[::2]]
        for client in clients[1::2]:
            client.close()
    assert [stream.count(b"x" * 50_000) for stream in streams] == [len(UNREAD)] * 2
    assert all(stream.endswith(DONE + b"\r\n0\r\n\r\n") for stream in streams)
    ends = sorted((record.reason, record.output_tokens) for record in gateway.records)
    assert ends == [("ClientGone", 3)] * 2 + [("OnlyReplica", 3)] * 3


@pytest.mark.parametrize(("reads", "ended"), [(True, False), (False, True)])
async def test_a_client_is_cut_if_it_reads_nothing_and_not_if_it_reads_slowly(
    monkeypatch: pytest.MonkeyPatch, reads: bool, ended: bool
) -> None:
    monkeypatch.setattr(GatewayProtocol, "stalled_client_seconds", 0.3)
    monkeypatch.setattr(GatewayProtocol, "stalled_client_bytes", 1000)

    async def script(call: EngineCall) -> None:
        await call.whole({**COMPLETION, "padding": "x" * MIB})

    async with serving(script, 16 * MIB) as gateway:
        client = await begin(gateway, json.dumps(CHAT).encode())
        loop, size = asyncio.get_running_loop(), 0
        began = loop.time()
        while reads and (part := await loop.sock_recv(client, 2**16)):
            size += len(part)
            await asyncio.sleep(0.005)
        record = await gateway.record()
        client.close()
    assert (record.phase is Phase.ABORTED) is ended
    assert not reads or (size > MIB and loop.time() - began > 0.6)


async def test_a_full_queue_refuses_the_newest_of_who_has_most_waiting() -> None:
    turn = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await turn.wait()
        await call.whole(COMPLETION)

    async with serving(
        script, 8 * MIB, max_num_seqs=1, queue_bounds=QueueBounds(requests=2)
    ) as gateway:
        waiting = []
        for running in (1, 2):
            waiting.append(asyncio.create_task(gateway.post(CHAT)))
            await gateway.wait_for_in_flight(running)
        for count in (1, 2):
            waiting.append(asyncio.create_task(gateway.post(CHAT)))
            await gateway.wait_for_queue(count)
        other = asyncio.create_task(gateway.post(CHAT, **OTHER))
        refused = await waiting.pop()
        assert (refused.status, refused.error["code"]) == (503, "queue_full")
        turn.set()
        assert [(await task).status for task in (*waiting, other)] == [200] * 4


@pytest.mark.parametrize("take", [Holding.take, Holding.take_spare])
def test_a_request_that_ended_holds_nothing_more(take: Callable[[Holding, int], bool]) -> None:
    """An engine may answer late that was to go on with its stream."""
    memory = Memory(1000)
    holding = memory.open(Identity(tenant=TENANT), 1.0, lambda: None)
    assert take(holding, 10)
    holding.close()
    assert not take(holding, 100)
    holding.free_spare(100)
    assert memory.size == 0
