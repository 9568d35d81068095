"""Records of requests: counted, logged, stored, and deleted when they are old."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase, RecordDimension, UsageRecord
from tessera.domain.usage.report import UsageQuery, UsageRow
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import ROW_BYTES, GatewayStore, own_file
from tessera.gateway.usage.journal import JOURNALS, UsageJournal, abandoned_journals
from tessera.gateway.usage.logs import access_line
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import (
    MAX_FILE_ROWS,
    Recording,
    file_rows,
)
from tessera.gateway.usage.summing import MAX_TENANT_ROWS, MAX_TENANT_SUMS, SUM_SECONDS
from tests.gateway.store.builders import SECOND, START_NS, a_record
from tests.gateway.usage.test_journal import kill

RETENTION = timedelta(days=90)
PAIR = {"tenant": "team-a", "service": "team-a/chat"}
AWAY = "postgresql://gateway:secret@127.0.0.1:1/usage"


@asynccontextmanager
async def recording(folder: Path, url: str | None = None) -> AsyncIterator[Recording]:
    opened = await Recording.open(url, folder, GatewayMetrics(), retention=RETENTION)
    running = asyncio.create_task(opened.run())
    try:
        yield opened
    finally:
        running.cancel()
        await asyncio.wait([running])
        await opened.close()


async def test_a_refused_request_is_counted_and_logged_but_not_stored(tmp_path: Path) -> None:
    metrics, access_log = GatewayMetrics(), io.BytesIO()
    opened = await Recording.open(
        None,
        tmp_path,
        metrics,
        retention=RETENTION,
        observers=[lambda record: access_log.write(access_line(record))],
    )
    await opened.store.migrate()
    refused = a_record(phase=Phase.REFUSED, status=429, reason="TooManyTokens", ttft_ns=None)

    for record in (a_record(), refused):
        opened.add(record)
    await opened.writer.flush()

    lines = [json.loads(line) for line in access_log.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [200, 429]
    labels = PAIR | {"code": "429", "reason": "TooManyTokens"}
    assert metrics.registry.get_sample_value("tessera_gateway_requests_total", labels) == 1
    assert await opened.store.count() == 1
    await opened.close()


async def test_a_gateway_starts_while_its_database_is_away_and_loses_nothing(
    tmp_path: Path,
) -> None:
    async with recording(tmp_path, AWAY) as away:
        away.add(a_record())
        away.add(a_record())

    async with recording(tmp_path, AWAY) as restarted:
        assert restarted.writer.waiting == 2


async def test_a_url_of_something_else_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="store URL"):
        await Recording.open(
            "mysql://host/usage",
            tmp_path,
            GatewayMetrics(),
            retention=RETENTION,
        )


async def test_records_older_than_the_retention_are_deleted(tmp_path: Path) -> None:
    day_ns = 86_400 * SECOND
    async with recording(tmp_path) as opened:
        await opened.store.migrate()
        await opened.store.record(
            [a_record(started_at_ns=START_NS), a_record(started_at_ns=START_NS + 2 * day_ns)]
        )

        await opened.prune(START_NS + 91 * day_ns)

        assert await opened.store.count() == 1


async def bounded(folder: Path, max_rows: int) -> Recording:
    store = await GatewayStore.open(own_file(folder))
    return Recording(store, None, GatewayMetrics(), retention=RETENTION, max_rows=max_rows)


async def test_the_tenant_who_holds_most_makes_room_and_is_counted_exactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = await bounded(tmp_path, 3000)
    minute_ns = 60 * SECOND
    flood = [
        a_record(tenant="flood", started_at_ns=START_NS + n * minute_ns) for n in range(10_000)
    ]
    await opened.store.record([a_record(started_at_ns=START_NS - n) for n in range(50)] + flood)

    await opened.prune(START_NS)

    rows = await opened.store.rows_by_tenant()
    assert rows["team-a"] == 50 + 1
    assert 1000 < rows["flood"] <= 2950
    tenants = await usage_by_tenant(opened.store)
    assert (tenants["flood"].requests, tenants["flood"].output_tokens) == (10_000, 200_000)
    assert caplog.text == ""
    await opened.close()


async def test_oldest_rows_that_no_sum_makes_fewer_are_deleted_with_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = await bounded(tmp_path, 1000)
    await opened.store.record([a_record()])
    await opened.store.record(
        [a_record(tenant="flood", key=str(n), started_at_ns=START_NS + n) for n in range(2500)]
    )

    await opened.prune(START_NS)

    assert await opened.store.rows_by_tenant() == {"team-a": 1 + 1, "flood": 500 + 1}
    left = (await opened.store.oldest(2))[1]
    assert left.key == "2000"
    assert "the oldest 1000 usage records of tenant flood were deleted" in caplog.text
    await opened.close()


def test_a_file_leaves_a_quarter_of_its_volume_free() -> None:
    assert file_rows(2**30) == MAX_FILE_ROWS
    assert file_rows(100 * 2**20) * ROW_BYTES == pytest.approx(75 * 2**20, rel=1e-3)


async def test_what_a_killed_gateway_left_is_stored_once(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path / JOURNALS)
    stored, lost, cut = a_record(), a_record(), a_record(reason="GatewayKilled")
    for number, record in enumerate((stored, lost), 1):
        journal.add([record], number)
    journal.note_running([cut], 1)
    opened = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    await opened.store.migrate()
    opened.add(stored)
    await opened.recover()
    await opened.writer.flush()
    assert await opened.store.count() == 1, "the other gateway lives"
    journal._file.close()
    for _ in range(2):
        await opened.recover()
        await opened.writer.flush()
    assert await opened.store.count() == 3
    await opened.close()
    assert list((tmp_path / JOURNALS).iterdir()) == []


async def test_what_the_store_does_not_take_stays_in_the_journal(tmp_path: Path) -> None:
    away, metrics = GatewayStore(AWAY), GatewayMetrics()
    opened = Recording(away, None, metrics, retention=RETENTION, journals=tmp_path)
    opened.add(a_record(record_id="a"))
    await opened.close()
    assert opened._journal is not None
    opened._journal._file.close()
    (left,) = abandoned_journals(tmp_path)
    assert [record.record_id for record in left.records] == ["a"]


async def usage_by_tenant(store: GatewayStore) -> dict[str | None, UsageRow]:
    query = UsageQuery(by=(RecordDimension.TENANT,), since_ns=0, until_ns=2**63 - 1)
    return {row.group[0]: row for row in (await store.usage(query)).rows}


def a_flood(count: int) -> list[UsageRecord]:
    """Return records of one tenant that differ in all that a client chooses, but users and tags."""
    start_ns = START_NS // (SUM_SECONDS * SECOND) * SUM_SECONDS * SECOND
    return [
        a_record(tenant="flood", request_id=f"{n}", replica=f"{n}", started_at_ns=start_ns + n)
        for n in range(count)
    ]


async def end_period(recording: Recording) -> None:
    """End a minute, and let its sums become rows."""
    recording.end_period()
    while recording.store_sums():
        await recording.writer.flush()


async def test_a_tenant_with_very_many_requests_takes_few_rows_and_is_counted_exactly(
    tmp_path: Path,
) -> None:
    metrics = GatewayMetrics()
    opened = await Recording.open(None, tmp_path, metrics, retention=RETENTION)
    for record in a_flood(10 * MAX_TENANT_ROWS):
        opened.add(record)
    opened.add(a_record(request_id="mine"))
    await end_period(opened)
    await opened.writer.flush()

    assert await opened.store.count() == MAX_TENANT_ROWS + 2
    tenants = await usage_by_tenant(opened.store)
    flood, other = tenants["flood"], tenants["team-a"]
    assert (flood.requests, flood.input_tokens) == (10 * MAX_TENANT_ROWS, 1000 * MAX_TENANT_ROWS)
    assert other.requests == 1
    labels = {"outcome": "Summed"}
    summed = metrics.registry.get_sample_value("tessera_gateway_usage_records_total", labels)
    assert summed == 9 * MAX_TENANT_ROWS
    # Rows of their own again.
    opened.add(a_flood(1)[0])
    await opened.close()


@pytest.mark.parametrize("noted", ["before", "between", "after", "stored", "never"])
async def test_a_killed_gateway_loses_and_repeats_nothing_of_a_sum(
    tmp_path: Path, noted: str
) -> None:
    killed = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    records = a_flood(MAX_TENANT_ROWS + 100)
    for record in records[:MAX_TENANT_ROWS]:
        killed.add(record)
    await killed.writer.flush()
    running = [
        a_record(record_id=record.record_id, tenant="flood", reason="GatewayKilled")
        for record in records[MAX_TENANT_ROWS:]
    ]
    for record in running:
        killed.note_begun(record)
    if noted == "before":
        killed.note_running(running)
    for record in records[MAX_TENANT_ROWS:-30]:
        killed.add(record)
    if noted == "between":
        killed.note_running(running[-30:])
    for record in records[-30:-1]:
        killed.add(record)
    if noted == "after":
        killed.note_running(running[-1:])
    if noted == "stored":
        await end_period(killed)
        await killed.writer.flush()
    assert killed._journal is not None
    kill(killed._journal)
    await killed.store.close()

    restarted = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    await restarted.recover()
    await restarted.writer.flush()
    row = (await usage_by_tenant(restarted.store))["flood"]
    assert (row.requests, row.input_tokens) == (len(records), 100 * len(records))
    assert await restarted.store.count() == MAX_TENANT_ROWS + 2, "a sum, and the one that ran"
    await restarted.close()


def an_engine_flood(count: int) -> Iterator[UsageRecord]:
    """Yield refusals by an engine that chooses their statuses, of a client that chooses the rest.

    All that is theirs differs: 94 statuses, tags, users, ids and replicas.
    """
    start_ns = START_NS // (SUM_SECONDS * SECOND) * SUM_SECONDS * SECOND
    for n in range(count):
        yield a_record(
            tenant="flood",
            phase=Phase.COMPLETED,
            status=400 + n % 94,
            reason=RequestReason.ENGINE_REFUSED,
            tags=f"n={n}",
            user=f"{n}",
            request_id=f"{n}",
            replica=f"{n % 7}",
            started_at_ns=start_ns + n,
        )


class Writes:
    """A journal that counts the sums that are written each second."""

    def __init__(self, journal: UsageJournal) -> None:
        self.sums = list[int]()
        self._note = journal.note_sums

    def note_sums(self, sums: Sequence[UsageRecord]) -> None:
        self.sums.append(len(sums))
        self._note(sums)


async def test_refusals_of_an_engine_without_end_lose_nothing_and_stop_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    assert opened._journal is not None
    writes = Writes(opened._journal)
    monkeypatch.setattr(opened._journal, "note_sums", writes.note_sums)
    for number, record in enumerate(an_engine_flood(6000)):
        opened.check_room("flood")
        opened.add(record)
        if number % 100 == 0:
            opened.note_running([])
            await opened.writer.flush()
    opened.note_running([])
    opened.note_running([])
    # Of 4,800 records one sum grows in a second, once tags are too many; before each is another.
    assert sum(writes.sums) <= MAX_TENANT_SUMS + 60
    assert writes.sums[-1] == 0
    opened.end_period()
    has_more = True
    while has_more:
        has_more = opened.store_sums()
        assert opened.writer.waiting <= 100, "in one turn"
        opened.check_room("team-a")
        await opened.writer.flush()
    assert await opened.store.count() == MAX_TENANT_ROWS + MAX_TENANT_SUMS + 1
    flood = (await usage_by_tenant(opened.store))["flood"]
    assert (flood.requests, flood.input_tokens) == (6000, 600_000)
    await opened.close()


async def test_sums_that_are_not_stored_are_not_lost_with_their_gateway(tmp_path: Path) -> None:
    killed = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    for record in an_engine_flood(MAX_TENANT_ROWS + MAX_TENANT_SUMS):
        killed.add(record)
    killed.note_running([])
    await killed.writer.flush()
    killed.end_period()
    assert killed.store_sums()
    await killed.writer.flush()
    assert killed._journal is not None
    kill(killed._journal)
    await killed.store.close()
    restarted = await Recording.open(None, tmp_path, GatewayMetrics(), retention=RETENTION)
    await restarted.recover()
    await restarted.writer.flush()
    flood = (await usage_by_tenant(restarted.store))["flood"]
    assert flood.requests == MAX_TENANT_ROWS + MAX_TENANT_SUMS
    await restarted.close()
