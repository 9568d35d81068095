"""Gateways borrow portions of limits: one transaction for all limits that they use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, extract, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.limits.account import (
    Account,
    Portion,
    PortionRequest,
    SlotAccount,
    SlotGrant,
    SlotRequest,
)
from tessera.domain.limits.scopes import ScopedLimit
from tessera.gateway.store.schema import LIMIT_ACCOUNTS

# Of one transaction: statements have room for 32,000 parameters, and others wait for its limits.
MAX_LIMITS = 1000

# Twice the longest period of a limit: then an account is full again that owed as much as it may.
_IDLE_SECONDS = 2 * 86_400.0

_POSTGRESQL_CLOCK = extract("epoch", func.clock_timestamp())
_SQLITE_CLOCK = (func.julianday("now") - 2440587.5) * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowing:
    """What one gateway wants of several limits."""

    gateway: str
    """Unique over all gateways."""
    portions: tuple[PortionRequest, ...] = ()
    slots: tuple[SlotRequest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one gateway got of some of the limits."""

    gateway: str
    portions: tuple[Portion, ...] = ()
    slots: tuple[SlotGrant, ...] = ()


def batches(borrowings: Sequence[Borrowing]) -> Iterator[list[Borrowing]]:
    """Divide borrowings, and large ones into parts, for transactions of at most MAX_LIMITS."""
    batch: list[Borrowing] = []
    size = 0
    for part in (part for borrowing in borrowings for part in _parts(borrowing)):
        part_size = len(part.portions) + len(part.slots)
        if size + part_size > MAX_LIMITS:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part_size
    if batch:
        yield batch


def _parts(borrowing: Borrowing) -> Iterator[Borrowing]:
    for start in range(0, len(borrowing.portions), MAX_LIMITS):
        portions = borrowing.portions[start : start + MAX_LIMITS]
        yield Borrowing(gateway=borrowing.gateway, portions=portions)
    for start in range(0, len(borrowing.slots), MAX_LIMITS):
        slots = borrowing.slots[start : start + MAX_LIMITS]
        yield Borrowing(gateway=borrowing.gateway, slots=slots)


async def borrow(
    connection: AsyncConnection, borrowings: Sequence[Borrowing]
) -> tuple[Lease, ...] | None:
    """Serve all requests in the transaction of the connection; None while an account is missing.

    Transactions that share a limit wait for each other, in the order of the keys.
    """
    keys = sorted(limits_of(borrowings))
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
    leases = tuple(
        Lease(
            gateway=borrowing.gateway,
            portions=tuple(
                buckets[request.limit.key].borrow(request, now) for request in borrowing.portions
            ),
            slots=tuple(
                slots[request.limit.key].lease(borrowing.gateway, request, now)
                for request in borrowing.slots
            ),
        )
        for borrowing in borrowings
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
    return leases


async def open_accounts(connection: AsyncConnection, borrowings: Sequence[Borrowing]) -> None:
    """Add full accounts of the limits that have none."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = await clock(connection)
    await connection.execute(
        insert(LIMIT_ACCOUNTS).on_conflict_do_nothing(),
        [
            {"key": key, "level": float(limit.amount), "leases": {}, "updated_at": now}
            for key, limit in sorted(limits_of(borrowings).items())
        ],
    )


async def close_idle_accounts(connection: AsyncConnection) -> None:
    """Delete accounts that are full again, as new ones are."""
    idle_since = await clock(connection) - _IDLE_SECONDS
    await connection.execute(delete(LIMIT_ACCOUNTS).where(LIMIT_ACCOUNTS.c.updated_at < idle_since))


async def clock(connection: AsyncConnection) -> float:
    """Return Unix seconds of the database, by which all gateways agree."""
    is_sqlite = connection.dialect.name == "sqlite"
    expression = _SQLITE_CLOCK if is_sqlite else _POSTGRESQL_CLOCK
    return float((await connection.execute(select(expression))).scalar_one())


def limits_of(borrowings: Sequence[Borrowing]) -> dict[str, ScopedLimit]:
    """Return all limits of the requests by key."""
    portions = {r.limit.key: r.limit for borrowing in borrowings for r in borrowing.portions}
    return portions | {r.limit.key: r.limit for borrowing in borrowings for r in borrowing.slots}
