"""What gateways share: usage records, and the accounts of limits that they borrow from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import JSON, RowMapping, Text, case, delete, func, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.gateway.usage_record import (
    STORED,
    USAGE_COLUMNS,
    NumberRange,
    Phase,
    RecordDimension,
    UsageRecord,
)
from tessera.domain.limits.account import BorrowRequest, Lease
from tessera.domain.picking.owners import GatewayPeers
from tessera.domain.usage.report import UsageQuery, UsageReport, UsageRow
from tessera.domain.usage.statement import CORRECTIONS, ChargeCorrection, corrected
from tessera.domain.usage.sums import UsageSums
from tessera.gateway.store import charges, leases, peers, statements
from tessera.gateway.store.charge_store import ChargeStore
from tessera.gateway.store.database import StoreError, insert_rows
from tessera.gateway.store.exact_sums import exact_sum, rough_sum
from tessera.gateway.store.schema import CHARGE_BATCHES, CHARGE_SUMS, USAGE_RECORDS, storable

# Engines choose some numbers: larger ones are cut, since one refused row would hold up all others.
# They are those of one request.
_MAX_INTEGER = 2**31 - 1
_FIELDS = tuple(USAGE_RECORDS.columns.keys())
_LABELED = {name: USAGE_RECORDS.columns[name].label(name) for name in _FIELDS}
_GROUPS = {
    each: USAGE_RECORDS.columns[name].label(f"by_{each}") for each, name in USAGE_COLUMNS.items()
}
_GROUPS[RecordDimension.STREAM] = case((USAGE_RECORDS.c.stream, "true"), else_="false").label(
    f"by_{RecordDimension.STREAM}"
)
_CHARGES = _FIELDS.index("charges")
_BEFORE_CHARGES = attrgetter(*_FIELDS[:_CHARGES])
_AFTER_CHARGES = attrgetter(*_FIELDS[_CHARGES + 1 :])
_TEXTS = tuple(column.key for column in USAGE_RECORDS.c if isinstance(column.type, Text))


def _bounded_by(*bounds: NumberRange) -> tuple[str, ...]:
    return tuple(field.name for field in STORED if field.bound in bounds)


_TOKENS = _bounded_by(NumberRange.TOKENS)
_NUMBERS, _TIMES = _bounded_by(NumberRange.COUNT, NumberRange.TOKENS), _bounded_by(NumberRange.TIME)
_AMOUNTS = _bounded_by(NumberRange.MONEY)
_TEXTS_OF, _NUMBERS_OF, _TIMES_OF = attrgetter(*_TEXTS), attrgetter(*_NUMBERS), attrgetter(*_TIMES)
_AMOUNTS_OF = attrgetter(*_AMOUNTS)
# No sums, which have no id of a request, and no corrections, which are known by their ids.
_IS_SINGLE = (USAGE_RECORDS.c.requests == 1) | (
    (USAGE_RECORDS.c.request_id != "") & USAGE_RECORDS.c.record_id.not_like(f"{CORRECTIONS}-%")
)
# The most of one record, so that a thousand of them are a sum of 64 bits: nine million units of a
# currency, or so many tokens.
_MOST_OF_RECORD = 2**53
_MAX_TIME = 2**63 - 1
_DAY_NS = 86_400 * 10**9
# Of a file, with indexes, the longest texts that clients and names of objects can have, and charges
# of four limits; 500 are usual.
ROW_BYTES = 2400
# Gateways make room one at a time.
_ROOM_LOCK = 0x7E55E7B


# What a tenant fills the store with.
_COUNTED = (USAGE_RECORDS, CHARGE_SUMS, CHARGE_BATCHES)


class FreedRows(NamedTuple):
    """What making room did."""

    rows: int
    are_lost: bool = False
    """They were deleted, and no sum counts their requests."""


def own_file(folder: Path) -> str:
    """Return the URL of the SQLite file of a gateway without a database, in its state folder."""
    return f"sqlite:///{folder}/store.db"


class GatewayStore(ChargeStore):
    """The store of all gateways; every method raises StoreError."""

    def __init__(self, url: str) -> None:
        """Take a URL as Database does."""
        super().__init__(url)
        self._tags = statements.MonthTags()

    @classmethod
    async def open(cls, url: str) -> "GatewayStore":
        """Open the store of a URL (see Database), and migrate it."""
        store = cls(url)
        try:
            await store.migrate()
        except BaseException:
            await store.close()
            raise
        return store

    async def check(self) -> None:
        """Raise StoreError while the database does not answer."""
        async with self.read(seconds=2.0) as connection:
            await connection.execute(select(1))

    async def record(self, records: Sequence[UsageRecord]) -> None:
        """Store records and what they were charged; those that are stored already stay as they are.

        Accounts of charges and sums of hours grow by them in the same transaction.
        """
        await self._add(records, 5.0)

    async def add_missing(self, records: Sequence[UsageRecord]) -> int:
        """Store records of another store as `record` does; return how many were not stored yet.

        No month is closed before all of them are stored.
        """
        if records:
            async with self.write() as connection:
                await statements.hold_months(connection)
        return await self._add(records, 60.0)

    async def keep(self, records: Sequence[UsageRecord]) -> None:
        """Store records alone, until another store takes them with their charges."""
        if records:
            async with self.write() as connection:
                rows = [_row(_storable(record)) for record in records]
                await insert_rows(connection, USAGE_RECORDS, rows, ())

    async def _add(self, records: Sequence[UsageRecord], seconds: float) -> int:
        new = {record.record_id: record for record in map(_storable, reversed(records))}
        are_known = False
        while True:
            try:
                return await self._add_new(list(reversed(new.values())), seconds, are_known)
            except StoreError as error:
                # This gateway stored some of them before, or another one in between.
                if not isinstance(error.__cause__, IntegrityError):
                    raise
                are_known = True

    async def _add_new(
        self, records: Sequence[UsageRecord], seconds: float, are_known: bool
    ) -> int:
        """Store those that are not stored yet, which is looked for where some `are_known`."""
        if not records:
            return 0
        async with self.write(seconds=seconds) as connection:
            if are_known:
                # One parameter takes all ids.
                ids = literal([record.record_id for record in records], JSON)
                names = func.json_each if self.is_sqlite else func.json_array_elements_text
                listed = select(names(ids).table_valued("value").c.value)
                record_id = USAGE_RECORDS.c.record_id
                statement = select(record_id).where(record_id.in_(listed))
                stored = set(await connection.scalars(statement))
                records = [record for record in records if record.record_id not in stored]
            if records:
                # One that is stored makes this fail: each adds to sums once.
                await _add_in(connection, records, self._tags)
        return len(records)

    async def record_in(self, connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
        """Store new records in a transaction that has more to do."""
        await _add_in(connection, [*map(_storable, records)], self._tags)

    async def borrow(self, gateway: str, request: BorrowRequest) -> Lease:
        """Lend portions of limits to a gateway; after a StoreError it is unknown whether it did.

        The name of the gateway is unique over all gateways and their restarts. Do not repeat a
        request after an error: what it returns would be returned twice. Asks of charges may be
        repeated.
        """
        lease = Lease()
        for part in leases.parts(request):
            while (lent := await self._borrow(gateway, part)) is None:
                async with self.write() as connection:
                    await leases.open_accounts(connection, part)
            lease = Lease(portions=lease.portions + lent.portions, slots=lease.slots + lent.slots)
        return replace(lease, charges=await self.exchange(gateway, request.charges))

    async def _borrow(self, gateway: str, request: BorrowRequest) -> Lease | None:
        async with self.write(seconds=2.0) as connection:
            return await leases.borrow(connection, gateway, request)

    async def meet(self, gateway: str) -> GatewayPeers:
        """Note that a gateway is there; return how many are, and the secret that they share.

        Its name is unique over all gateways and their restarts.
        """
        async with self.write(seconds=2.0) as connection:
            return await peers.meet(connection, gateway)

    async def usage(self, query: UsageQuery) -> UsageReport:
        """Return the sums of the groups with the most tokens."""
        columns = USAGE_RECORDS.c
        groups = [_GROUPS[dimension] for dimension in query.by]
        total = rough_sum(columns.input_tokens, columns.output_tokens)
        statement = (
            select(*groups, *_sums())
            .where(columns.started_at_ns >= query.since_ns, columns.started_at_ns < query.until_ns)
            .group_by(*groups)
            .order_by(total.desc(), *groups)
            .limit(query.limit + 1)
        )
        if query.tenant is not None:
            statement = statement.where(columns.tenant == query.tenant)
        async with self.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
            oldest_ns = await connection.scalar(select(func.min(columns.started_at_ns)))
        # Without records there are no sums, and of a call that did not answer its tokens alone.
        used = [row for row in rows if any(row[name] for name in ("requests", *_TOKENS))]
        usage_rows = [_usage_row(query.by, row) for row in used]
        is_truncated = len(usage_rows) > query.limit
        return UsageReport(tuple(usage_rows[: query.limit]), is_truncated, oldest_ns)

    async def correct(self, correction: ChargeCorrection, now_ns: int) -> bool:
        """Add a correction to the open month, once; False if it is stored already.

        Raises LookupError where no record has its id, or no charge.
        """
        columns = USAGE_RECORDS.c
        statement = select(*_LABELED.values()).where(columns.record_id == correction.id)
        async with self.read() as connection:
            row = (await connection.execute(statement)).mappings().first()
        if row is None or row["charge_nanos"] is None:
            raise LookupError(correction.id)
        return await self._add([corrected(_record(row), correction, now_ns)], 5.0) == 1

    async def count(self) -> int:
        """Return the number of records, each of one request or of several."""
        async with self.read() as connection:
            return await connection.scalar(select(func.count()).select_from(USAGE_RECORDS)) or 0

    async def oldest(self, limit: int) -> list[UsageRecord]:
        """Return the records that started first."""
        statement = select(*_LABELED.values()).order_by(USAGE_RECORDS.c.started_at_ns).limit(limit)
        async with self.read() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_record(row) for row in rows]

    async def forget(self, records: Sequence[UsageRecord]) -> None:
        """Delete records."""
        ids = [record.record_id for record in records]
        async with self.write() as connection:
            await connection.execute(
                delete(USAGE_RECORDS).where(USAGE_RECORDS.c.record_id.in_(ids))
            )

    async def prune(self, before_ns: int, limit: int = 1000) -> int:
        """Delete at most `limit` records that started earlier; return how many rows went.

        Accounts of limits that were not used for two days go too, those of charges whose windows
        ended, and sums of charges after 13 months.
        """
        columns = USAGE_RECORDS.c
        oldest = (
            select(columns.record_id)
            .where(columns.started_at_ns < before_ns)
            .order_by(columns.started_at_ns)
            .limit(limit)
        )
        async with self.write() as connection:
            await leases.close_idle_accounts(connection)
            accounts = await charges.prune(connection)
            sums = await statements.prune(connection, limit)
            result = await connection.execute(
                delete(USAGE_RECORDS).where(columns.record_id.in_(oldest))
            )
        return result.rowcount + accounts + sums

    async def rows_by_tenant(self) -> dict[str, int]:
        """Return how many rows each tenant has: records, sums of charges, and blocks of batches."""
        rows = Counter[str]()
        async with self.read() as connection:
            for table in _COUNTED:
                tenant = table.c.tenant
                counted = await connection.execute(select(tenant, func.count()).group_by(tenant))
                rows.update({row[0]: row[1] for row in counted})
        return rows

    async def make_room(self, tenant: str, limit: int = 1000) -> FreedRows:
        """Replace a tenant's oldest records by their sums of a day, at most `limit` of them.

        Where that would free less than half of them, its `limit` oldest rows are deleted instead.
        Of a tenant with more sums of charges, or blocks of batches, those give way before.
        """
        columns = USAGE_RECORDS.c
        oldest = select(*_LABELED.values()).where(columns.tenant == tenant)
        oldest = oldest.order_by(columns.started_at_ns).limit(limit)
        async with self.write() as connection:
            if not self.is_sqlite and not await connection.scalar(
                select(func.pg_try_advisory_xact_lock(_ROOM_LOCK))
            ):
                return FreedRows(0)
            if freed := await _fold_charges(connection, tenant, limit):
                return FreedRows(freed)
            single = (await connection.execute(oldest.where(_IS_SINGLE))).mappings()
            ids, sums = list[str](), UsageSums(_DAY_NS)
            for row in single:
                ids.append(row["record_id"])
                sums.add(_record(row))
            if are_lost := 2 * len(sums) >= len(ids):
                ids = list(await connection.scalars(oldest.with_only_columns(columns.record_id)))
            await connection.execute(delete(USAGE_RECORDS).where(columns.record_id.in_(ids)))
            if not are_lost:
                rows = [_row(_storable(total)) for total in sums]
                await insert_rows(connection, USAGE_RECORDS, rows, ())
        return FreedRows(len(ids) if are_lost else len(ids) - len(sums), are_lost)


async def _fold_charges(connection: AsyncConnection, tenant: str, limit: int) -> int:
    """Free rows of sums or of batches where a tenant has more of them than records."""
    rows = {}
    for table in _COUNTED:
        counted = select(func.count()).where(table.c.tenant == tenant)
        rows[table] = await connection.scalar(counted) or 0
    freed = 0
    if rows[CHARGE_BATCHES] > max(rows[USAGE_RECORDS], rows[CHARGE_SUMS]):
        freed = await charges.forget_batches(connection, tenant, limit)
    if not freed and rows[CHARGE_SUMS] > rows[USAGE_RECORDS]:
        freed = await statements.fold(connection, tenant, limit)
    return freed


def _record(row: RowMapping) -> UsageRecord:
    charges = tuple((key, start, nanos) for key, start, nanos in row["charges"])
    return UsageRecord(**{**row, "phase": Phase(row["phase"]), "charges": charges})


async def _add_in(
    connection: AsyncConnection, records: Sequence[UsageRecord], tags: statements.MonthTags
) -> None:
    await insert_rows(connection, USAGE_RECORDS, [*map(_row, records)])
    await charges.add_spent(connection, records)
    await statements.add_hourly(connection, tags, records)


def _row(record: UsageRecord) -> tuple[Any, ...]:
    """Return a row of the table, in the order of its columns."""
    charged = msgspec.json.encode(record.charges).decode()
    return (*_BEFORE_CHARGES(record), charged, *_AFTER_CHARGES(record))


def _storable(record: UsageRecord) -> UsageRecord:
    """Return a record as all databases take it: the same one, as nearly always.

    Clients choose some texts and engines some numbers.
    """
    charged = record.charges
    text = "".join(filter(None, (*_TEXTS_OF(record), *(key for key, *_ in charged))))
    numbers, times = _NUMBERS_OF(record), [each or 0 for each in _TIMES_OF(record)]
    nanos = [each or 0 for each in (*_AMOUNTS_OF(record), *(each for *_, each in charged))]
    is_storable = storable(text) is text and min(*numbers, *times) >= 0
    is_storable = is_storable and max(numbers) <= _MAX_INTEGER and max(times) <= _MAX_TIME
    if is_storable and -_MOST_OF_RECORD <= min(nanos) <= max(nanos) <= _MOST_OF_RECORD:
        return record
    tokens = min(_MOST_OF_RECORD, _MAX_INTEGER * max(1, record.requests))
    changes: dict[str, Any] = {}
    for name in (*_TEXTS, *_NUMBERS, *_TIMES, *_AMOUNTS):
        value = getattr(record, name)
        if value is None:
            continue
        if name in _TEXTS:
            changes[name] = storable(value)
        elif name in _AMOUNTS:
            changes[name] = _bounded(value)
        else:
            most = tokens if name in _TOKENS else _MAX_INTEGER
            changes[name] = max(0, min(value, _MAX_TIME if name in _TIMES else most))
    changes["charges"] = tuple(
        (storable(key), start, _bounded(each)) for key, start, each in charged
    )
    return replace(record, **changes)


def _bounded(nanos: int) -> int:
    return max(-_MOST_OF_RECORD, min(nanos, _MOST_OF_RECORD))


def _sums() -> list[Any]:
    columns = USAGE_RECORDS.c
    phases = {"failed": Phase.FAILED, "aborted": Phase.ABORTED}
    return [
        exact_sum(columns.requests).label("requests"),
        *(
            exact_sum(case((columns.phase == phase, columns.requests), else_=0)).label(name)
            for name, phase in phases.items()
        ),
        exact_sum(case((columns.estimated, columns.requests), else_=0)).label("estimated"),
        *(exact_sum(columns[name]).label(name) for name in _TOKENS),
    ]


def _usage_row(by: tuple[RecordDimension, ...], row: Any) -> UsageRow:
    group = tuple(row[f"by_{dimension}"] for dimension in by)
    sums = {name: value for name, value in row.items() if not name.startswith("by_")}
    return UsageRow(group=group, **sums)
