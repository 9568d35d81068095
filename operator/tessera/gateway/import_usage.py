"""`python -m tessera.gateway.import_usage FILE`: adds the usage records of another SQLite store.

The file is only read, so it may be on a read-only volume; what a killed process left beside it is
added too. Records go to the database of `TESSERA_DATABASE_URL`, or to the gateway's own file.
"""

import argparse
import asyncio
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from tessera.api.text import counted
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.gateway.main import read_settings
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.schema import USAGE_RECORDS, StoredRecord, usage_record
from tessera.gateway.store.store import GatewayStore, own_file
from tessera.gateway.usage.journal import JOURNALS, abandoned_journals

BATCH_RECORDS = 500


@dataclass(frozen=True, slots=True)
class Imported:
    """How many records a file has that the store did not have before, and that it had."""

    new: int
    known: int


def main() -> None:
    """Import a file, and print how many records were new."""
    parser = argparse.ArgumentParser(prog="tessera.gateway.import_usage", description=__doc__)
    parser.add_argument("file", type=Path, help="store.db of another gateway, or a copy of it")
    path: Path = parser.parse_args().file
    settings = read_settings()
    url = settings.database_url
    target = url.get_secret_value() if url is not None else own_file(settings.state_directory)
    try:
        imported = asyncio.run(import_usage(path, target))
    except (StoreError, OSError) as error:
        sys.exit(f"usage import: {error}")
    sys.stdout.write(
        f"{counted(imported.new + imported.known, 'usage record')} in {path}: "
        f"{imported.new} new, {imported.known} known\n"
    )


async def import_usage(path: Path, url: str) -> Imported:
    """Add the records of a file to the store of a URL; each is stored once, also when repeated.

    StoreError names a file that is none, and what was added until then stays.
    """
    new = total = 0
    store = await GatewayStore.open(url)
    try:
        for records in read_records(path):
            new += await store.add_missing(records)
            total += len(records)
    finally:
        await store.close()
    return Imported(new, total - new)


def read_records(path: Path) -> Iterator[Sequence[UsageRecord]]:
    """Yield the records of a SQLite file and of the journals beside it; raises StoreError."""
    # Where no write-ahead log is left, no process has the file open. Only as `immutable` it can be
    # read then from a folder that takes no new files.
    left = path.with_name(f"{path.name}-wal").exists()
    uri = f"file:{quote(str(path))}?mode=ro{'' if left else '&immutable=1'}"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            # A file of an earlier version has fewer columns.
            rows = connection.execute(f"SELECT * FROM {USAGE_RECORDS.name}")  # noqa: S608 - our name
            while batch := rows.fetchmany(BATCH_RECORDS):
                yield [_record(row) for row in batch]
    except (sqlite3.Error, msgspec.ValidationError) as error:
        raise StoreError(f"{path} has no usage records that can be read: {error}") from error
    for journal in abandoned_journals(path.parent / JOURNALS):
        yield journal.records


def _record(row: sqlite3.Row) -> UsageRecord:
    # SQLite has neither truth values nor columns of one type.
    # A file of an earlier version has no charges.
    fields = dict(row)
    fields["charges"] = msgspec.json.decode(fields.get("charges") or "[]")
    return usage_record(msgspec.convert(fields, StoredRecord, strict=False))


if __name__ == "__main__":
    main()
