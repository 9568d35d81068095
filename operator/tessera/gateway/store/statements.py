"""Hourly sums of charges, which statements are made of: written with the records themselves."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter, itemgetter
from uuid import uuid4

import msgspec
from sqlalchemy import ColumnElement, and_, delete, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.charge.scopes import OTHER_MONTH
from tessera.domain.gateway.usage_record import (
    BY_NAME,
    CHARGE_COLUMNS,
    COUNTS,
    HASHED,
    RecordDimension,
    UsageRecord,
    gateway_of,
)
from tessera.domain.usage.statement import (
    CLOSING_SECONDS,
    HOUR_SECONDS,
    MAX_TAGS,
    WASTE,
    ChargeQuery,
    ChargeReport,
    ChargeRow,
    closed_month,
    flag_of,
    hour_of,
    month_of,
    retained_since,
)
from tessera.domain.usage.sums import OTHER
from tessera.gateway.store import charges
from tessera.gateway.store.database import insert_rows
from tessera.gateway.store.exact_sums import exact_sum, rough_sum
from tessera.gateway.store.leases import clock, clock_column
from tessera.gateway.store.schema import CHARGE_MONTHS, CHARGE_SUMS, CHARGE_TAGS, MOST_NANOS

# Those who record share the first with each other, and not with who closes a month. Both are of
# PostgreSQL: of SQLite a transaction that writes is alone.
_MONTH_LOCK, _TAGS_LOCK = 0x7E55E7C, 0x7E55E7D
_GROUP = ("hour", "tag", "flag", *HASHED)
_FOLDED = tuple(name for name in HASHED if (said := BY_NAME[name].dimension) and said.folds)
_NS = 10**9
# A row with a number of so much gets nothing more, and is added to no other: what one transaction
# adds to the largest row that still grows, and the hours of a month below it, stay below 2^63.
_LARGE = 2**52
# Ids of rows of a whole month begin with it, and those of hours with a digit of a digest.
_MONTH_ID = "month-"
# Of calls without a record; names of providers in records have a slash.
_UNKNOWN_PROVIDER = "unknown"
_LONGEST_MONTH = 31 * 86_400
HOLD_SECONDS = 600.0

_HASHED_OF, _COUNTS_OF = attrgetter(*HASHED), attrgetter(*COUNTS)
_CHARGE, _COST = COUNTS.index("charge_nanos"), COUNTS.index("cost_nanos")
# Of a group, in the order of the table.
_COLUMNS_OF = itemgetter(
    *(_GROUP.index(each.name) for each in CHARGE_SUMS.c if each.name in _GROUP)
)

# In the order of _GROUP.
Group = tuple[int | str | None, ...]
# A moment in Unix seconds, a record, and what of its COUNTS counts then.
Part = tuple[int, UsageRecord, tuple[int, ...]]


class MonthTags:
    """The values of tags that this process knows to be told apart, by tenant and month."""

    def __init__(self) -> None:
        self._tags: dict[tuple[int, str], set[str]] = {}

    async def learn(
        self, connection: AsyncConnection, rows: Iterable[tuple[int, str, str]]
    ) -> None:
        """Take months, tenants and tags: the first MAX_TAGS of a tenant in a month stay."""
        unknown = sorted(
            (month, tenant, tag)
            for month, tenant, tag in rows
            if tag not in (tags := self._tags.get((month, tenant), ())) and len(tags) < MAX_TAGS
        )
        if not unknown:
            return
        if connection.dialect.name == "postgresql":
            await connection.execute(select(func.pg_advisory_xact_lock(_TAGS_LOCK)))
        for (month, tenant), tagged in groupby(unknown, itemgetter(0, 1)):
            columns = CHARGE_TAGS.c
            statement = select(columns.tag).where(columns.month == month, columns.tenant == tenant)
            tags = set(await connection.scalars(statement))
            wanted = sorted({tag for *_, tag in tagged} - tags)[: max(0, MAX_TAGS - len(tags))]
            if wanted:
                await connection.execute(
                    CHARGE_TAGS.insert(),
                    [{"month": month, "tenant": tenant, "tag": tag} for tag in wanted],
                )
            self._tags[month, tenant] = tags | set(wanted)
        newest = max(month for month, _ in self._tags)
        self._tags = {
            key: tags for key, tags in self._tags.items() if key[0] >= newest - 40 * 86_400
        }

    def folded(self, month: int, tenant: str, tag: str) -> str | None:
        """Return a tag as statements have it: None without one, and OTHER beyond MAX_TAGS."""
        if not tag:
            return None
        return tag if tag in self._tags.get((month, tenant), ()) else OTHER


async def add_hourly(
    connection: AsyncConnection, tags: MonthTags, records: Sequence[UsageRecord]
) -> None:
    """Add usage records to the sums of their hours.

    Until the end of the transaction no month is closed.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock_shared(_MONTH_LOCK)))
    closed = select(func.max(CHARGE_MONTHS.c.until)).scalar_subquery()
    ((now, closed_until),) = await connection.execute(select(clock_column(connection), closed))
    parts = [part for record in records for part in _by_month(record)]
    hours = [hour_of(at, float(now), closed_until or 0) for at, _, _ in parts]
    months = {hour: month_of(hour) for hour in {hour for hour, _ in hours}}
    tagged = {
        (months[hour], record.tenant, record.tags)
        for (hour, _), (_, record, _) in zip(hours, parts, strict=True)
        if record.tags
    }
    await tags.learn(connection, tagged)
    totals: dict[Group, tuple[int, ...]] = {}
    for (at, record, counts), (hour, is_late) in zip(parts, hours, strict=True):
        tag = tags.folded(months[hour], record.tenant, record.tags)
        flag = flag_of(gateway_of(record.record_id), record.reason, is_late=is_late)
        _count(totals, (hour, tag, flag, *_HASHED_OF(record)), counts)
        is_first = at == record.started_at_ns // _NS
        if is_first and record.waste_nanos and (owner := record.owner) is not None:
            waste = replace(
                record, tenant=owner, team=None, key=None, user=None, service_class=WASTE
            )
            group = (hour, None, flag, *_HASHED_OF(waste))
            _count(totals, group, _amounts(charge_nanos=record.waste_nanos))
    await add(connection, totals)


def _by_month(record: UsageRecord) -> Iterator[Part]:
    """Yield what of a record counts when it began, and what is charged in other months.

    What a provider bills in another currency than that of the charge is apart.
    """
    others = [(start, nanos) for key, start, nanos in record.charges if key == OTHER_MONTH]
    charge = (record.charge_nanos or 0) - sum(nanos for _, nanos in others)
    at, cost = record.started_at_ns // _NS, record.cost_nanos
    if cost and record.currency != record.cost_currency:
        costing = replace(record, currency=record.cost_currency, waste_nanos=0)
        if record.currency is None:
            record = costing
        else:
            yield at, costing, _amounts(cost_nanos=cost)
            cost = 0
    counts = [*_COUNTS_OF(record)]
    counts[_CHARGE], counts[_COST] = charge, cost
    yield at, record, tuple(counts)
    for start, nanos in others:
        yield start, record, _amounts(charge_nanos=nanos)


def _amounts(**amounts: int) -> tuple[int, ...]:
    """Return counts that have these amounts, no request and no token."""
    return tuple(amounts.get(name, 0) for name in COUNTS)


def _count(totals: dict[Group, tuple[int, ...]], group: Group, counts: tuple[int, ...]) -> None:
    total = totals.get(group)
    totals[group] = counts if total is None else (*map(operator.add, total, counts),)


async def add(connection: AsyncConnection, totals: Mapping[Group, Sequence[int]]) -> None:
    """Add to the sums of groups, in the order of their ids; a group with much has several rows."""
    rows = [
        (
            blake2b(msgspec.json.encode(group), digest_size=16).hexdigest(),
            *_COLUMNS_OF(group),
            *counts,
        )
        for group, counts in totals.items()
    ]
    columns = CHARGE_SUMS.c
    is_full = columns.id.in_([row[0] for row in rows]) & _is_large()
    await connection.execute(
        update(CHARGE_SUMS).where(is_full).values(id=columns.id + f"-{uuid4().hex}")
    )
    await insert_rows(connection, CHARGE_SUMS, sorted(rows), COUNTS)


def _is_large() -> ColumnElement[bool]:
    """Return whether a row has a number that others are not added to."""
    return or_(*(~CHARGE_SUMS.c[name].between(-_LARGE, _LARGE) for name in COUNTS))


async def closed_month_end(connection: AsyncConnection) -> int:
    """Return the end of the last month that is closed, in Unix seconds; 0 before the first."""
    return await connection.scalar(select(func.max(CHARGE_MONTHS.c.until))) or 0


async def hold_months(connection: AsyncConnection) -> None:
    """Close no month for HOLD_SECONDS: records of another store are on their way."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = await clock(connection)
    hold = insert(CHARGE_MONTHS).values(until=0, closed_at=now)
    await connection.execute(
        hold.on_conflict_do_update(index_elements=["until"], set_={"closed_at": now})
    )


async def close_month(connection: AsyncConnection) -> bool:
    """Close the months that ended CLOSING_SECONDS ago; False if there are none.

    What accounts know and no record has becomes rows of each tenant, and the hours of a month
    become one, at its start: its sums stay as they are from then on.
    """
    columns, now = CHARGE_SUMS.c, await clock(connection)
    until = closed_month(now)
    held_at = await connection.scalar(
        select(CHARGE_MONTHS.c.closed_at).where(CHARGE_MONTHS.c.until == 0)
    )
    is_held = held_at is not None and abs(now - held_at) < HOLD_SECONDS
    if is_held or await closed_month_end(connection) >= until:
        return False
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(_MONTH_LOCK)))
    former = await closed_month_end(connection)
    first = await connection.scalar(select(func.min(columns.hour)).where(columns.hour >= former))
    if former >= until or first is None or first >= until:
        return False
    unrecorded, keys = await charges.without_records(connection, now - CLOSING_SECONDS / 2)
    lost = {
        _lost(until - HOUR_SECONDS, each): _amounts(cost_nanos=min(nanos, MOST_NANOS))
        if each.is_cost
        else _amounts(charge_nanos=min(nanos, MOST_NANOS))
        for each, nanos in unrecorded.items()
    }
    if lost:
        await add(connection, lost)
        await charges.forget(connection, keys)
    while first < until:
        start = month_of(first)
        end = month_of(start + _LONGEST_MONTH)
        await _compact(connection, start, end)
        first = end
    await connection.execute(CHARGE_MONTHS.insert().values(until=until, closed_at=now))
    return True


async def prune(connection: AsyncConnection, limit: int) -> int:
    """Delete some sums of closed months of which the retention is over; return how many."""
    columns, now = CHARGE_SUMS.c, await clock(connection)
    since = min(retained_since(now), await closed_month_end(connection))
    some = select(columns.id).where(columns.hour < since).limit(limit)
    result = await connection.execute(delete(CHARGE_SUMS).where(columns.id.in_(some)))
    await connection.execute(delete(CHARGE_TAGS).where(CHARGE_TAGS.c.month < since))
    return result.rowcount


async def fold(connection: AsyncConnection, tenant: str, limit: int) -> int:
    """Add up some of a tenant's oldest sums of an hour, whatever was used; return how many less.

    What tells them apart and others may choose is OTHER then: the charges of each hour, price list
    and flag stay. Large ones stay as they are.
    """
    columns = CHARGE_SUMS.c
    some = (
        select(*columns)
        .where(columns.tenant == tenant, columns.service != OTHER, ~_is_large())
        .order_by(columns.hour)
        .limit(limit)
        .with_for_update()
    )
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock_shared(_MONTH_LOCK)))
    rows = (await connection.execute(some)).mappings().all()
    totals: dict[Group, tuple[int, ...]] = {}
    for row in rows:
        given = {name: OTHER for name in ("tag", *_FOLDED) if row[name] is not None}
        folded = {**row, **given}
        group = tuple(folded[name] for name in _GROUP)
        _count(totals, group, tuple(int(row[name]) for name in COUNTS))
    await connection.execute(delete(CHARGE_SUMS).where(columns.id.in_([row["id"] for row in rows])))
    before = await _row_count(connection, tenant)
    await add(connection, totals)
    return len(rows) - (await _row_count(connection, tenant) - before)


async def _row_count(connection: AsyncConnection, tenant: str) -> int:
    counted = select(func.count()).where(CHARGE_SUMS.c.tenant == tenant)
    return await connection.scalar(counted) or 0


def _lost(hour: int, unrecorded: charges.Unrecorded) -> Group:
    required = [name for name in HASHED if not BY_NAME[name].is_optional]
    fields: dict[str, int | str] = dict.fromkeys(required, "")
    fields |= {"hour": hour, "flag": unrecorded.flag}
    fields |= {"tenant": unrecorded.tenant, "currency": unrecorded.currency}
    if unrecorded.is_cost:
        fields["provider"] = _UNKNOWN_PROVIDER
    return tuple(fields.get(name) for name in _GROUP)


async def _compact(connection: AsyncConnection, start: int, end: int) -> None:
    """Add up the hours of a month by their groups; large ones stay rows of their own."""
    columns = CHARGE_SUMS.c
    is_hour = columns.id.not_like(f"{_MONTH_ID}%")
    is_of_month = and_(columns.hour >= start, columns.hour < end, is_hour)
    month_id = literal(_MONTH_ID) + columns.id
    large = update(CHARGE_SUMS).where(is_of_month, _is_large())
    await connection.execute(large.values(id=month_id, hour=start))
    groups = [columns[name] for name in _GROUP if name != "hour"]
    sums = [func.sum(columns[name]).label(name) for name in COUNTS]
    of_month = literal(_MONTH_ID) + func.min(columns.id)
    months = select(of_month, literal(start), *groups, *sums).where(is_of_month).group_by(*groups)
    names = ["id", "hour", *(name for name in _GROUP if name != "hour"), *COUNTS]
    await connection.execute(CHARGE_SUMS.insert().from_select(names, months))
    await connection.execute(delete(CHARGE_SUMS).where(is_of_month))


async def report(connection: AsyncConnection, query: ChargeQuery) -> ChargeReport:
    """Return the sums of the groups with the largest charges and bills of providers."""
    columns = CHARGE_SUMS.c
    groups = [columns[CHARGE_COLUMNS[name]].label(f"by_{name}") for name in query.by]
    groups.append(columns.currency.label("currency"))
    sums = [exact_sum(columns[name]).label(name) for name in COUNTS]
    statement = (
        select(*groups, *sums)
        .where(columns.hour >= query.since, columns.hour < query.until)
        .group_by(*groups)
        .order_by(rough_sum(columns.charge_nanos, columns.cost_nanos).desc(), *groups)
        .limit(query.limit + 1)
    )
    if query.tenant is not None:
        statement = statement.where(columns.tenant == query.tenant)
    if RecordDimension.SERVICE_CLASS not in query.by:
        statement = statement.where(columns.service_class != WASTE)
    totals = (await connection.execute(statement)).mappings().all()
    rows = [
        ChargeRow(
            group=tuple(row[f"by_{name}"] for name in query.by),
            currency=row["currency"],
            **{name: row[name] for name in COUNTS},
        )
        for row in totals
    ]
    closed_until = await closed_month_end(connection)
    return ChargeReport(tuple(rows[: query.limit]), len(rows) > query.limit, closed_until)
