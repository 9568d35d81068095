"""Usage records are written in batches, kept while the store fails, and lost only loudly."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.store import writer
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.store.writer import (
    BATCH_RECORDS,
    MAX_BUFFERED,
    RecordOutcome,
    UsageWriter,
)
from tests.gateway.store.builders import a_record
from tests.gateway.store.postgresql import PostgresqlServer


class MemoryStore:
    """Takes records unless it is down."""

    def __init__(self) -> None:
        self.batches: list[list[UsageRecord]] = []
        self.is_down = False
        self.took = asyncio.Event()

    async def record(self, records: Sequence[UsageRecord]) -> None:
        if self.is_down:
            raise StoreError("connection refused")
        self.batches.append(list(records))
        self.took.set()


class WriterHarness:
    """A writer with a clock that only moves when told to."""

    def __init__(self, spool: GatewayStore | None = None) -> None:
        self.store, self.spool = MemoryStore(), spool
        self.outcomes = Counter[RecordOutcome]()
        self.seconds = 0.0
        self.writer = self.a_writer()

    def a_writer(self, spooled: int = 0) -> UsageWriter:
        return UsageWriter(
            self.store,
            self.spool,
            spooled=spooled,
            count=lambda outcome, records: self.outcomes.update({outcome: records}),
            monotonic=lambda: self.seconds,
        )


@pytest.fixture
def harness() -> WriterHarness:
    return WriterHarness()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[GatewayStore]:
    opened = await GatewayStore.open(f"sqlite:///{tmp_path}/spool.db")
    yield opened
    await opened.close()


async def test_records_are_written_together_shortly_after_the_first(harness: WriterHarness) -> None:
    running = asyncio.create_task(harness.writer.run())
    records = [a_record() for _ in range(3)]
    for record in records:
        harness.writer.add([record])

    async with asyncio.timeout(60):
        await harness.store.took.wait()

    assert harness.store.batches == [records]
    running.cancel()


async def test_a_batch_is_bounded(harness: WriterHarness) -> None:
    harness.writer.add([a_record() for _ in range(BATCH_RECORDS + 1)])

    await harness.writer.flush()

    assert [len(batch) for batch in harness.store.batches] == [BATCH_RECORDS, 1]
    assert harness.outcomes == {RecordOutcome.STORED: BATCH_RECORDS + 1}


async def test_the_sender_hears_when_its_records_are_written(harness: WriterHarness) -> None:
    written: list[str] = []
    harness.writer.add([], lambda: written.append("none"))
    harness.writer.add([a_record()] * BATCH_RECORDS, lambda: written.append("first"))
    harness.writer.add([a_record()], lambda: written.append("second"))
    assert written == ["none"]

    await harness.writer.write()
    assert written == ["none", "first"]

    await harness.writer.write()
    assert written == ["none", "first", "second"]


async def test_records_wait_in_memory_and_are_written_once_when_the_store_answers(
    harness: WriterHarness, caplog: pytest.LogCaptureFixture
) -> None:
    records = [a_record() for _ in range(2)]
    harness.store.is_down = True
    harness.writer.add(records)
    assert not await harness.writer.write()
    assert harness.writer.failing_since == 0.0

    harness.store.is_down = False
    harness.seconds = 1.0
    assert not await harness.writer.write(), "it asks a failing store not so soon"
    harness.seconds = 5.0
    assert await harness.writer.write()

    assert harness.store.batches == [records]
    assert harness.writer.failing_since is None
    assert "2 usage records not in the store: connection refused" in caplog.text


async def test_records_without_room_are_lost_loudly(
    harness: WriterHarness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        harness.writer.add([a_record()] * (MAX_BUFFERED + 1))

    assert harness.outcomes == {RecordOutcome.LOST: 1}
    assert "usage records are lost" in caplog.text


async def test_records_survive_a_restart_in_the_spool_and_count_once(spool: GatewayStore) -> None:
    harness = WriterHarness(spool)
    spooled = [a_record() for _ in range(3)]
    harness.store.is_down = True
    harness.writer.add(spooled)
    await harness.writer.flush()
    assert harness.writer.waiting == 3
    assert harness.outcomes == {RecordOutcome.SPOOLED: 3}

    harness.store.is_down = False
    restarted = harness.a_writer(spooled=await spool.count())
    assert await restarted.write()

    assert (restarted.waiting, await spool.count()) == (0, 0)
    assert harness.store.batches == [spooled]


async def test_a_full_spool_leaves_records_in_memory(
    spool: GatewayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_SPOOLED", 2)
    harness = WriterHarness(spool)
    harness.store.is_down = True
    for _ in range(2):
        harness.writer.add([a_record(), a_record()])
        await harness.writer.flush()

    assert await spool.count() == 2
    assert harness.writer.waiting == 4


async def test_a_move_from_the_spool_that_is_repeated_counts_no_record_twice(
    store_url: str, spool: GatewayStore
) -> None:
    store = await GatewayStore.open(store_url)
    records = [a_record() for _ in range(30)]
    # It stored some of the spool's records, and the connection ended before it said so.
    await store.record(records[:10])
    await spool.record(records[5:20])
    usage_writer = UsageWriter(store, spool, spooled=await spool.count())

    usage_writer.add(records[20:])
    await usage_writer.flush()

    assert (usage_writer.waiting, await spool.count()) == (0, 0)
    assert await store.count() == len(records)
    await store.close()


async def test_a_database_that_refuses_connections_for_a_while_gets_every_record(
    postgresql: PostgresqlServer, spool: GatewayStore
) -> None:
    url = await postgresql.create_database()
    store = await GatewayStore.open(url)
    usage_writer = UsageWriter(store, spool)

    await postgresql.close_database(url)
    usage_writer.add([a_record(), a_record()])
    await usage_writer.flush()
    assert await spool.count() == 2

    await postgresql.open_database(url)
    usage_writer.add([a_record()])
    await usage_writer.flush()

    assert (usage_writer.waiting, await spool.count()) == (0, 0)
    assert await store.count() == 3
    await store.close()
