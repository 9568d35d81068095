"""The usage records of an old SQLite file in a new database, of each kind."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tessera.domain.gateway.usage_record import Phase, RecordDimension
from tessera.domain.usage.report import UsageQuery
from tessera.gateway import import_usage as module
from tessera.gateway.import_usage import BATCH_RECORDS, Imported, import_usage, read_records
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore, own_file
from tessera.gateway.usage.journal import JOURNALS, UsageJournal
from tests.gateway.store.builders import a_record

QUERY = UsageQuery(by=(RecordDimension.PHASE,), since_ns=0, until_ns=2**63 - 1)
RECORDS = [
    *(a_record() for _ in range(2 * BATCH_RECORDS)),
    a_record(phase=Phase.ABORTED, estimated=True, stream=False, ttft_ns=None, key=None),
]


@pytest.fixture
async def old_file(tmp_path: Path) -> AsyncIterator[Path]:
    """A file that its gateway closed; who reads it writes nothing beside it."""
    folder = tmp_path / "old"
    folder.mkdir()
    old = await GatewayStore.open(own_file(folder))
    await old.record(RECORDS)
    await old.close()
    yield folder / "store.db"
    assert [path.name for path in folder.iterdir()] == ["store.db"]


async def test_a_file_is_imported_once_beside_what_was_recorded_since(
    old_file: Path, store_url: str
) -> None:
    store = await GatewayStore.open(store_url)
    await store.record([a_record(), RECORDS[0]])

    assert await import_usage(old_file, store_url) == Imported(len(RECORDS) - 1, 1)
    assert await import_usage(old_file, store_url) == Imported(0, len(RECORDS))

    report = await store.usage(QUERY)
    await store.close()
    assert [(row.group, row.requests, row.estimated) for row in report.rows] == [
        (("Completed",), 2 * BATCH_RECORDS + 1, 0),
        (("Aborted",), 1, 1),
    ]


async def test_a_file_is_read_in_batches_and_completely(old_file: Path) -> None:
    batches = list(read_records(old_file))

    assert [len(batch) for batch in batches] == [BATCH_RECORDS, BATCH_RECORDS, 1]
    assert [record for batch in batches for record in batch] == RECORDS


async def test_a_file_from_before_sums_is_read(old_file: Path) -> None:
    with sqlite3.connect(old_file) as connection:
        connection.execute("ALTER TABLE usage_records DROP COLUMN requests")
    connection.close()

    assert [record for batch in read_records(old_file) for record in batch] == RECORDS


async def test_what_was_not_merged_and_what_a_killed_gateway_left_is_imported(
    tmp_path: Path,
) -> None:
    # Its gateway was killed: the file has a log beside it, and a journal that nobody locks.
    killed = await GatewayStore.open(own_file(tmp_path))
    await killed.record([a_record()])
    journal = UsageJournal(tmp_path / JOURNALS)
    journal.add([a_record()], 1)
    assert [len(batch) for batch in read_records(tmp_path / "store.db")] == [1]
    journal._file.close()  # as the end of its process does

    assert [len(batch) for batch in read_records(tmp_path / "store.db")] == [1, 1]
    await killed.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "unable to open database file"),
        (b"no database" * 100, "file is not a database"),
        (b"", "no such table: usage_records"),
    ],
)
async def test_a_file_without_records_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "other.db"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StoreError, match=f"other.db has no usage records .*: {message}"):
        await import_usage(path, own_file(tmp_path))


async def test_a_row_of_other_types_is_named_and_the_batches_before_stay(tmp_path: Path) -> None:
    path, target = tmp_path / "old.db", own_file(tmp_path)
    old = await GatewayStore.open(f"sqlite:///{path}")
    await old.record(RECORDS)
    await old.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE usage_records SET input_tokens = 'many' WHERE phase = ?", (Phase.ABORTED,)
        )
    connection.close()

    with pytest.raises(StoreError, match=r"Expected `int`.*\$\.input_tokens"):
        await import_usage(path, target)

    store = await GatewayStore.open(target)
    assert await store.count() == 2 * BATCH_RECORDS
    await store.close()


async def test_the_program_says_what_was_new(
    old_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TESSERA_STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["import_usage", str(old_file)])

    await asyncio.to_thread(module.main)

    assert capsys.readouterr().out == f"1001 usage records in {old_file}: 1001 new, 0 known\n"
