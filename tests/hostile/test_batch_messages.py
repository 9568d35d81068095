"""Messages at the port of batches from whoever has a runner's token: what they may change."""

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from yarl import URL

from tessera.domain.gateway.directory import Directory
from tessera.domain.observed.batches import Batch
from tessera.domain.usage.statement import ChargeQuery
from tessera.gateway.batch_api import MAX_MESSAGE_BYTES, MAX_MESSAGES, BatchApi, KnownBatches
from tessera.gateway.http.connections import Connections
from tessera.gateway.identify.token_reviews import IssuedTokens
from tessera.gateway.store.batches import BatchStore
from tessera.gateway.store.store import GatewayStore
from tessera.ports import ClusterError
from tests.gateway.charging import INPUT, OUTPUT, a_charged_batch, paying
from tests.gateway.harness import served
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio

ISSUER = "https://kubernetes.default.svc"
RUNNER = "system:serviceaccount:team-a:tessera-batch"
# What the batch of the tests has, one answer for each row.
ROWS: dict[str, Any] = {"rows": 1500, "answers": 1500}


def a_token(issuer: str) -> str:
    return jwt.encode({"iss": issuer, "sub": RUNNER}, "x" * 32, algorithm="HS256")


@dataclass
class Port:
    """The port of a gateway in whose cluster team-a/night runs."""

    url: str
    store: GatewayStore
    session: aiohttp.ClientSession
    batch: Batch | None = field(default_factory=lambda: a_charged_batch(**ROWS))
    asked: list[str] = field(default_factory=list)
    """Names of batches that the API server was asked for."""
    reviewed: list[str] = field(default_factory=list)
    now: float = 1000.0
    away: bool = False
    clients: Connections = field(default_factory=lambda: Connections(64))

    async def read(self, namespace: str, name: str) -> Batch | None:
        self.asked.append(name)
        if self.away:
            raise ClusterError("away")
        return self.batch if (namespace, name) == ("team-a", "night") else None

    async def review(self, token: str) -> str | None:
        self.reviewed.append(token)
        return RUNNER

    async def tell(self, issuer: str = ISSUER, **changes: Any) -> int:
        """Send a message, and return the status of its answer."""
        message = {"batch": "night", "uid": "uid-1", "attempt": 1, "model": "tiny"} | changes
        headers = {"Authorization": f"Bearer {a_token(issuer)}"}
        async with self.session.post(self.url, json=message, headers=headers) as answer:
            return answer.status

    async def rows(self) -> int:
        return sum((await self.store.rows_by_tenant()).values())


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    directory = Directory(**paying(name="team-a"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        opened = Port("", store, session)

        async def own_token() -> str:
            return a_token(ISSUER)

        api = BatchApi(
            BatchStore(store, "gateway"),
            IssuedTokens(opened.review, own_token).user,
            lambda: directory,
            KnownBatches(opened.read, lambda: opened.now),
        )
        async with served(api, clients=opened.clients) as url:
            opened.url = f"{url}/batches/charges"
            yield opened
    await store.close()


def a_block(number: int = 0, *rows: tuple[int, int, int], **cut: int) -> dict[str, Any]:
    return {"blocks": [{"number": number, "rows": rows, **cut}]}


# What no message of a runner of the batch says, and the status that it gets.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], int]] = {
    "another batch": ({"batch": "day"}, 404),
    "a batch elsewhere": ({"batch": "../../secrets/keys"}, 400),
    "another uid": ({"uid": "uid-2"}, 404),
    "another model": ({"model": "cheap"}, 400),
    "a later attempt": ({"attempt": 2}, 400),
    "a block that is none": (a_block(2, (0, 1, 1)), 400),
    "a row that is none": (a_block(1, (500, 1, 1)), 400),
    "a block without rows": (a_block(2**31 - 1, cutInput=1), 400),
    "a prompt that does not fit": (a_block(0, (0, 2**31, 1)), 400),
    "a prompt longer than the context": (a_block(0, (0, 8193, 1)), 400),
    "an answer longer than the context": (a_block(0, (0, 1, 8193)), 400),
    "an answer that does not fit": (a_block(0, (0, 1, 2**31)), 400),
    "prompts of cut answers": (a_block(0, cutInput=2**31), 400),
    "cut answers": (a_block(0, cutOutput=2**31), 400),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
async def test_what_is_not_of_the_batch_changes_nothing(port: Port, what: str) -> None:
    message, expected = IMPOSSIBLE[what]
    status = await port.tell(**message)
    rows = await port.rows()
    SCORE.add(int(status != expected) + int(rows != 0))
    assert (status, rows) == (expected, 0)
    # The batch itself goes on.
    assert await port.tell(**a_block(1, (499, 7, 11))) == 200
    (row,) = (await port.store.charges(ChargeQuery(by=(), since=0, until=2**40))).rows
    assert (row.requests, row.charge_nanos) == (1, 7 * INPUT + 11 * OUTPUT)


async def test_a_batch_has_so_many_messages_a_minute_and_what_is_no_batch_none(
    port: Port,
) -> None:
    answers = [await port.tell(**a_block(0, (row, 1, 1))) for row in range(2 * MAX_MESSAGES)]
    assert answers.count(200) == MAX_MESSAGES
    assert set(answers[MAX_MESSAGES:]) == {429}
    SCORE.add(int(await port.rows() > 2 * MAX_MESSAGES))
    # The runner sends it again, and waits no longer than until the next second.
    port.now += 1
    assert [await port.tell() for _ in range(2)] == [200, 429]
    assert await port.tell(batch="day") == 404


def connect(port: Port, count: int, sent: str) -> list[socket.socket]:
    """Open connections to the port that have sent so much."""
    url = URL(port.url)
    assert url.host is not None
    assert url.port is not None
    clients = [socket.create_connection((url.host, url.port)) for _ in range(count)]
    for client in clients:
        client.sendall(sent.encode())
        client.setblocking(False)
    return clients


async def send_what_is_read(clients: Sequence[socket.socket], size: int) -> None:
    """Send so many bytes by each connection, as far as the other end reads them."""
    left, idle_turns = dict.fromkeys(clients, size), 0
    while idle_turns < 100:
        idle_turns += 1
        for client in [each for each in clients if left[each]]:
            with suppress(BlockingIOError):
                left[client] -= client.send(bytes(min(left[client], 2**16)))
                idle_turns = 0
        await asyncio.sleep(0)


async def test_bodies_without_an_end_are_read_a_few_at_a_time(port: Port) -> None:
    bearer = f"Authorization: Bearer {a_token(ISSUER)}"
    length = f"Content-Length: {MAX_MESSAGE_BYTES}"
    head = f"POST /batches/charges HTTP/1.1\r\nHost: x\r\n{bearer}\r\n{length}\r\n\r\n"
    clients = connect(port, 48, head)
    tracemalloc.start()
    await send_what_is_read(clients, MAX_MESSAGE_BYTES - 1)
    traced, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for client in clients:
        client.close()
    SCORE.add(int(traced > 16 * 2**20))
    assert traced < 16 * 2**20
    assert await port.tell() == 200


async def test_connections_that_say_nothing_keep_no_runner_out(port: Port) -> None:
    for begun in ("", "POST /batches/charges HTTP/1.1\r\nHost: x\r\n"):
        clients = connect(port, 100, begun)
        assert await port.tell() == 200
        SCORE.add(int(len(port.clients) > 64))
        assert 0 < len(port.clients) <= 64
        for client in clients:
            client.close()


async def test_what_the_cluster_did_not_issue_is_reviewed_by_nobody(port: Port) -> None:
    answers = {await port.tell(issuer="https://junk.example") for _ in range(60)}
    SCORE.add(len(port.reviewed))
    assert (answers, port.reviewed, port.asked) == ({401}, [], [])


async def test_a_batch_is_read_once_in_a_while_and_pays_its_last_rows(port: Port) -> None:
    for _ in range(5):
        assert await port.tell() == 200
    assert port.asked == ["night"]

    # It was deleted, and its runner has ten minutes for what it has not told.
    port.batch, port.now = None, port.now + 60
    assert await port.tell(**a_block(0, (0, 1, 1))) == 200
    port.now += 600
    assert await port.tell(**a_block(0, (1, 1, 1))) == 404


async def test_while_batches_cannot_be_read_known_ones_go_on(port: Port) -> None:
    assert await port.tell() == 200
    port.away, port.now = True, port.now + 60
    assert [await port.tell(), await port.tell(uid="uid-2")] == [200, 503]


async def test_the_next_attempt_is_read_when_it_speaks(port: Port) -> None:
    assert await port.tell() == 200
    port.batch = a_charged_batch(attempt=2, **ROWS)
    assert [await port.tell(attempt=2), await port.tell(attempt=3)] == [200, 400]
