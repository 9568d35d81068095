"""Gateways borrow portions of limits: one transaction for all limits that they use."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, extract, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.limits.account import Account, BorrowRequest, Lease, SlotAccount
from tessera.domain.limits.scopes import ScopedLimit
from tessera.gateway.store.schema import LIMIT_ACCOUNTS

# Of one transaction: statements have room for 32,000 parameters, and others wait for its limits.
MAX_LIMITS = 1000

# Twice the longest period of a limit: then an account is full again that owed as much as it may.
_IDLE_SECONDS = 2 * 86_400.0

_POSTGRESQL_CLOCK = extract("epoch", func.clock_timestamp())
_SQLITE_CLOCK = (func.julianday("now") - 2440587.5) * 86_400.0


def parts(request: BorrowRequest) -> Iterator[BorrowRequest]:
    """Divide a request for transactions of at most MAX_LIMITS."""
    portions = len(request.portions)
    for start in range(0, portions + len(request.slots), MAX_LIMITS):
        end = start + MAX_LIMITS
        yield BorrowRequest(
            portions=request.portions[start:end],
            slots=request.slots[max(0, start - portions) : max(0, end - portions)],
        )


async def borrow(connection: AsyncConnection, gateway: str, request: BorrowRequest) -> Lease | None:
    """Lend to a gateway in the transaction of the connection; None while an account is missing.

    Transactions that share a limit wait for each other, in the order of the keys.
    """
    keys = sorted(limits_of(request))
    statement = select(LIMIT_ACCOUNTS).where(LIMIT_ACCOUNTS.c.key.in_(keys))
    rows = await connection.execute(statement.order_by(LIMIT_ACCOUNTS.c.key).with_for_update())
    accounts = {row.key: row for row in rows}
    if len(accounts) < len(keys):
        return None
    now = await clock(connection)
    buckets = {
        key: Account(level=row.level, updated_at=row.updated_at) for key, row in accounts.items()
    }
    slots = {
        key: SlotAccount(leases={gateway: (n, at) for gateway, (n, at) in row.leases.items()})
        for key, row in accounts.items()
    }
    lease = Lease(
        portions=tuple(buckets[each.limit.key].borrow(each, now) for each in request.portions),
        slots=tuple(slots[each.limit.key].lease(gateway, each, now) for each in request.slots),
    )
    await connection.execute(
        update(LIMIT_ACCOUNTS).where(LIMIT_ACCOUNTS.c.key == bindparam("of_key")),
        [
            {
                "of_key": key,
                "level": buckets[key].level,
                "leases": slots[key].leases,
                "updated_at": now if slots[key].leases else buckets[key].updated_at,
            }
            for key in keys
        ],
    )
    return lease


async def open_accounts(connection: AsyncConnection, request: BorrowRequest) -> None:
    """Add full accounts of the limits that have none."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = await clock(connection)
    await connection.execute(
        insert(LIMIT_ACCOUNTS).on_conflict_do_nothing(),
        [
            {"key": key, "level": float(limit.amount), "leases": {}, "updated_at": now}
            for key, limit in sorted(limits_of(request).items())
        ],
    )


async def close_idle_accounts(connection: AsyncConnection) -> None:
    """Delete accounts that are full again, as new ones are."""
    idle_since = await clock(connection) - _IDLE_SECONDS
    await connection.execute(delete(LIMIT_ACCOUNTS).where(LIMIT_ACCOUNTS.c.updated_at < idle_since))


async def clock(connection: AsyncConnection) -> float:
    """Return Unix seconds of the database, by which all gateways agree."""
    return float((await connection.execute(select(clock_column(connection)))).scalar_one())


def clock_column(connection: AsyncConnection) -> ColumnElement[Any]:
    """Return `clock` as a column of a statement."""
    return _SQLITE_CLOCK if connection.dialect.name == "sqlite" else _POSTGRESQL_CLOCK


def limits_of(request: BorrowRequest) -> dict[str, ScopedLimit]:
    """Return all limits of a request by key."""
    limits = [each.limit for each in request.portions] + [each.limit for each in request.slots]
    return {limit.key: limit for limit in limits}
