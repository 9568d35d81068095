"""Accounts of charges: what records add to them, and what gateways borrow from them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
from sqlalchemy import (
    bindparam,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.charge.account import ChargeAccount, GatewayBalance, window_at
from tessera.domain.charge.batch_account import BatchAccount
from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk, LendingOutcome
from tessera.domain.charge.scopes import OTHER_MONTH, ChargeScope, MemberKind, is_outside
from tessera.domain.gateway.usage_record import UsageRecord, gateway_of
from tessera.domain.usage.statement import (
    CLOSING_SECONDS,
    CORRECTIONS,
    HOUR_SECONDS,
    OTHER_WINDOWS,
    WASTE,
    ChargeFlag,
)
from tessera.gateway.store.database import insert_rows
from tessera.gateway.store.exact_sums import exact_sum
from tessera.gateway.store.leases import clock, clock_column
from tessera.gateway.store.schema import (
    CHARGE_ACCOUNTS,
    CHARGE_BATCHES,
    CHARGE_SPENDS,
    CHARGE_SUMS,
    GATEWAYS,
    MOST_NANOS,
    RESERVED_BLOCK,
    storable,
)

# Of one transaction: others wait for its accounts.
MAX_ASKS = 1000
# What a gateway says is written so often at least, also where nothing follows from it.
WRITTEN_SECONDS = 10.0
# Records come late, and gateways that were killed start again: so long after its end an account
# stays, and one of which no record has all until its month is closed.
_ENDED_SECONDS = CLOSING_SECONDS / 2
# Spends without an account are of records that another store had; no window is as long.
_LONGEST_SECONDS = 35 * 86_400
# Of a batch of which nothing was heard for so long, blocks may be deleted where room is short.
_SILENT_SECONDS = 86_400
# Attempt of a batch whose blocks were deleted: no runner has one as high.
FORGOTTEN_ATTEMPT = 2**31

_KEY = (CHARGE_ACCOUNTS.c.key, CHARGE_ACCOUNTS.c.window_start)
_SPENDS_KEY = (CHARGE_SPENDS.c.key, CHARGE_SPENDS.c.window_start)
_ACCOUNT_OF_SPENDS = (_KEY[0] == _SPENDS_KEY[0]) & (_KEY[1] == _SPENDS_KEY[1])
_AT_KEY = (_KEY[0] == bindparam("at_key")) & (_KEY[1] == bindparam("at_start"))

Key = tuple[str, int]


class Unrecorded(NamedTuple):
    """Charges, or costs of providers, that accounts know and no record has."""

    tenant: str
    currency: str
    is_cost: bool
    flag: ChargeFlag


async def add_spent(connection: AsyncConnection, records: Iterable[UsageRecord]) -> None:
    """Add what usage records were charged to the spends, in the order of their keys.

    An account reads them when it is asked: who records waits for no account.
    """
    spent = Counter[tuple[str, int, str]]()
    for record in records:
        for key, start, nanos in record.charges:
            if key != OTHER_MONTH:
                spent[key, start, gateway_of(record.record_id)] += nanos
    rows = [(*key, nanos) for key, nanos in sorted(spent.items())]
    await insert_rows(connection, CHARGE_SPENDS, rows, ("spent",))


async def exchange(
    connection: AsyncConnection, gateway: str, asks: Sequence[ChargeAsk]
) -> tuple[ChargeAnswer, ...] | None:
    """Answer a gateway in the transaction of the connection; None while an account is missing.

    Transactions that share an account wait for each other, in the order of the keys.
    """
    keys = {_key(ask) for ask in asks}
    await note_asking(connection, gateway)
    accounts = await locked(connection, keys)
    if len(accounts) < len(keys):
        return None
    corrections = await read_spends(connection, accounts)
    now, written_at = await meet(connection, gateway, accounts)
    entered = [key for key, account in accounts.items() if gateway not in account.gateways]
    changed: dict[Key, ChargeAccount] = {}
    answers = []
    for ask in asks:
        account = accounts[_key(ask)]
        limit = ask.scope.limit
        # What people took off a charge may be spent again.
        limit = replace(limit, amount=limit.amount - corrections[_key(ask)])
        corrected = replace(ask, scope=replace(ask.scope, limit=limit))
        renewed = _renewed(account, gateway, corrected, now)
        if renewed is None:
            renewed = account.exchange(gateway, corrected, now)
            changed[_key(ask)] = account
        answers.append(renewed)
    for balance, renewed_at in written_at:
        balance.renewed_at = renewed_at
    await write(connection, changed)
    await enter(connection, gateway, [k for k in entered if gateway in accounts[k].gateways])
    return tuple(answers)


def _renewed(
    account: ChargeAccount, gateway: str, ask: ChargeAsk, now: float
) -> ChargeAnswer | None:
    """Answer an ask that changes nothing that others must know; None for any other.

    The account goes on to count what it lent before, which is no less, until something is scarce.
    """
    balance = account.gateways.get(gateway)
    # Who holds nothing any more may not ask again.
    is_enough = not ask.need and ask.ceiling > ask.used
    is_enough = is_enough and ask.ceiling - ask.used - ask.reserved >= ask.want
    limit = ask.scope.limit
    is_known = (limit.amount_at(now), limit.generation) == (account.limit, account.generation)
    if balance is None or not is_enough or not is_known or ask.seen > account.settled:
        return None
    if balance.ceiling < ask.ceiling or now - balance.renewed_at >= WRITTEN_SECONDS:
        return None
    # It changes nothing of an account but this gateway's balance.
    trial = replace(account, gateways={**account.gateways, gateway: replace(balance)})
    answer = trial.exchange(gateway, replace(ask, want=0), now)
    return None if answer.scarce or answer.outcome is not LendingOutcome.GRANTED else answer


async def open_accounts(connection: AsyncConnection, asks: Sequence[ChargeAsk]) -> None:
    """Add accounts where there are none, with what their windows were charged before.

    So money that is spent stays spent under a limit of another name, window or member.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    scopes = {_key(ask): ask.scope for ask in asks}
    present = select(*_KEY).where(tuple_(*_KEY).in_(list(scopes)))
    for key, start in await connection.execute(present):
        del scopes[key, start]
    by_limit = defaultdict[tuple[str, str, int], dict[Key, ChargeScope]](dict)
    for key, scope in scopes.items():
        by_limit[scope.limit.budget, scope.limit.name, key[1]][key] = scope
    charged = Counter[Key]()
    for limited in by_limit.values():
        charged += await _charged_before(connection, limited)
    if scopes:
        await connection.execute(
            insert(CHARGE_ACCOUNTS).on_conflict_do_nothing(),
            [
                {
                    "key": key,
                    "window_start": start,
                    "window_end": window_at(scope.limit, start)[1],
                    "currency": scope.limit.currency,
                    "reserved": 0,
                    "state": ChargeAccount(closed=charged[key, start]).to_json(),
                }
                for (key, start), scope in sorted(scopes.items(), key=lambda each: each[0])
            ],
        )


async def _charged_before(
    connection: AsyncConnection, scopes: Mapping[Key, ChargeScope]
) -> Counter[Key]:
    """Return what one window of a limit was charged by records that its accounts do not count.

    Of what is lent for calls of providers that is what these bill. Sums of users that are folded
    are no user's. Where a window begins within an hour of UTC, the rest of that hour does not
    count.
    """
    (key, start), scope = next(iter(scopes.items()))
    limit, end = scope.limit, window_at(scope.limit, start)[1]
    sums, spends = CHARGE_SUMS.c, CHARGE_SPENDS.c
    total_nanos = exact_sum(sums.cost_nanos if is_outside(key) else sums.charge_nanos)
    keys = {storable(name): key for key, each in scopes.items() for name in each.members or ("",)}
    charged = select(literal(1), total_nanos, literal("")).where(
        sums.tenant == storable(limit.budget),
        sums.currency == limit.currency,
        sums.service_class != WASTE,
        sums.hour >= -(-start // HOUR_SECONDS) * HOUR_SECONDS,
        sums.hour < end,
        or_(sums.flag.is_(None), sums.flag.not_in(OTHER_WINDOWS)),
    )
    if limit.kind is not None:
        name = sums[limit.kind.lower()]
        member = func.lower(name) if limit.kind is MemberKind.MODEL else name
        charged = charged.with_only_columns(literal(1), total_nanos, member)
        charged = charged.where(member.in_(list(keys))).group_by(member)
        if limit.kind is MemberKind.USER:
            charged = charged.where(sums.key.is_(None))
    recorded = (
        select(literal(-1), exact_sum(spends.spent), spends.key)
        .where(tuple_(*_SPENDS_KEY).in_(list(scopes)), spends.gateway != CORRECTIONS)
        .group_by(spends.key)
    )
    total = Counter[Key]()
    # By one statement, so that no record is stored in between.
    for sign, nanos, name in await connection.execute(union_all(charged, recorded)):
        total[keys[name] if sign > 0 else (name, start)] += sign * nanos
    return total


async def heard_at(connection: AsyncConnection, gateway: str) -> tuple[float, float]:
    """Return when a gateway last asked, 0 if that is long ago, and the database's clock."""
    statement = select(GATEWAYS.c.seen_at).where(GATEWAYS.c.name == gateway)
    return float(await connection.scalar(statement) or 0.0), await clock(connection)


async def close(connection: AsyncConnection, gateway: str, limit: int = MAX_ASKS) -> int:
    """End a gateway of which all records are stored, in some accounts; return in how many.

    It is ended where this returns less than `limit`.
    """
    spends = CHARGE_SPENDS.c
    keys = select(*_SPENDS_KEY).where(spends.gateway == gateway, exists().where(_ACCOUNT_OF_SPENDS))
    rows = (await connection.execute(keys.order_by(*_SPENDS_KEY).limit(limit))).all()
    accounts = await locked(connection, {(key, start) for key, start in rows})
    await read_spends(connection, accounts)
    for account in accounts.values():
        account.close(gateway)
    await write(connection, accounts)
    await _forget_spends(connection, gateway, accounts)
    return len(rows)


async def leave(
    connection: AsyncConnection, batch: str, accounts: Mapping[Key, ChargeAccount]
) -> None:
    """Have accounts forget a batch that has nothing reserved, before they are written.

    Each gateway that asks reads all borrowers of an account, and batches end by the thousand.
    """
    for account in accounts.values():
        account.leave(batch)
    await _forget_spends(connection, batch, accounts)


async def _forget_spends(
    connection: AsyncConnection, gateway: str, accounts: Mapping[Key, ChargeAccount]
) -> None:
    is_of_accounts = tuple_(*_SPENDS_KEY).in_(list(accounts))
    await connection.execute(
        delete(CHARGE_SPENDS).where(CHARGE_SPENDS.c.gateway == gateway, is_of_accounts)
    )


async def prune(connection: AsyncConnection, limit: int = MAX_ASKS) -> int:
    """Delete some accounts of windows that ended, and spends of which no account will know."""
    now = await clock(connection)
    is_over = (CHARGE_ACCOUNTS.c.window_end < now - _ENDED_SECONDS) & (
        CHARGE_ACCOUNTS.c.reserved == 0
    )
    keys = (await connection.execute(select(*_KEY).where(is_over).limit(limit))).all()
    accounts = await locked(connection, {(key, start) for key, start in keys})
    await read_spends(connection, accounts)
    lasting = {key: account for key, account in accounts.items() if account.restored}
    await write(connection, lasting, is_over=True)
    await forget(connection, [key for key in accounts if key not in lasting])
    is_old = CHARGE_SPENDS.c.window_start < now - _LONGEST_SECONDS
    await connection.execute(
        delete(CHARGE_SPENDS).where(is_old, ~exists().where(_ACCOUNT_OF_SPENDS))
    )
    await connection.execute(
        delete(CHARGE_BATCHES).where(CHARGE_BATCHES.c.changed_at < now - _LONGEST_SECONDS)
    )
    return len(keys)


async def forget_batches(connection: AsyncConnection, tenant: str, limit: int) -> int:
    """Delete the blocks of some of a tenant's batches that are silent for a day; return how many.

    Which of their rows are paid is not known then: no attempt of them is taken any more.
    """
    columns, now = CHARGE_BATCHES.c, await clock(connection)
    blocks = CHARGE_BATCHES.alias()
    is_silent = (columns.tenant == tenant) & (columns.changed_at < now - _SILENT_SECONDS)
    of_batch = (blocks.c.batch == columns.batch) & (blocks.c.block != RESERVED_BLOCK)
    silent = (
        select(columns.batch)
        .where(is_silent, columns.block == RESERVED_BLOCK, exists().where(of_batch))
        .order_by(columns.changed_at)
        .limit(limit)
    )
    batches = list(await connection.scalars(silent))
    is_block = columns.block == RESERVED_BLOCK
    await connection.execute(
        update(CHARGE_BATCHES)
        .where(columns.batch.in_(batches), is_block)
        .values(state=BatchAccount(attempt=FORGOTTEN_ATTEMPT).to_json(), changed_at=now)
    )
    result = await connection.execute(
        delete(CHARGE_BATCHES).where(columns.batch.in_(batches), ~is_block)
    )
    return result.rowcount


async def forget(connection: AsyncConnection, keys: Sequence[Key]) -> None:
    """Delete accounts."""
    await connection.execute(delete(CHARGE_ACCOUNTS).where(tuple_(*_KEY).in_(keys)))
    await connection.execute(delete(CHARGE_SPENDS).where(tuple_(*_SPENDS_KEY).in_(keys)))


async def without_records(
    connection: AsyncConnection, until: float
) -> tuple[dict[Unrecorded, int], list[Key]]:
    """Return what accounts have charged or lent and no record has.

    Windows that ended before `until` count, whose keys come second. A request is in several
    accounts: of a tenant's limits the one with the most counts.
    """
    columns = CHARGE_ACCOUNTS.c
    is_over = (columns.window_end <= until) & (columns.reserved > 0)
    rows = (await connection.execute(select(*_KEY, columns.currency).where(is_over))).all()
    currencies = {(key, start): currency for key, start, currency in rows}
    accounts: dict[Key, ChargeAccount] = {}
    for at in range(0, len(currencies), MAX_ASKS):
        part = await locked(connection, list(currencies)[at : at + MAX_ASKS])
        await read_spends(connection, part)
        accounts |= part
    by_limit = Counter[tuple[Unrecorded, str]]()
    for key, account in accounts.items():
        tenant, limit, *_ = key[0].split("/")
        group = tenant, currencies[key], is_outside(key[0])
        by_limit[Unrecorded(*group, ChargeFlag.RESERVED), limit] += account.reserved
        by_limit[Unrecorded(*group, ChargeFlag.RESTORED), limit] += account.restored
    most: dict[Unrecorded, int] = {}
    for (unrecorded, _), nanos in by_limit.items():
        if nanos > most.get(unrecorded, 0):
            most[unrecorded] = nanos
    return most, list(accounts)


def _key(ask: ChargeAsk) -> Key:
    return storable(ask.scope.key), ask.start


async def locked(connection: AsyncConnection, keys: Iterable[Key]) -> dict[Key, ChargeAccount]:
    statement = select(*_KEY, CHARGE_ACCOUNTS.c.state).where(tuple_(*_KEY).in_(sorted(keys)))
    rows = await connection.execute(statement.order_by(*_KEY).with_for_update())
    return {(key, start): ChargeAccount.from_json(state) for key, start, state in rows}


async def read_spends(
    connection: AsyncConnection, accounts: Mapping[Key, ChargeAccount]
) -> Counter[Key]:
    """Give accounts what records were charged; return what people corrected."""
    corrections = Counter[Key]()
    statement = select(*_SPENDS_KEY, CHARGE_SPENDS.c.gateway, CHARGE_SPENDS.c.spent)
    rows = await connection.execute(statement.where(tuple_(*_SPENDS_KEY).in_(list(accounts))))
    for key, start, gateway, spent in rows:
        if gateway == CORRECTIONS:
            corrections[key, start] = int(spent)
        else:
            accounts[key, start].take_spent(gateway, int(spent))
    return corrections


async def note_asking(connection: AsyncConnection, gateway: str) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    seen = insert(GATEWAYS).values(name=gateway, seen_at=clock_column(connection))
    await connection.execute(
        seen.on_conflict_do_update(index_elements=["name"], set_={"seen_at": seen.excluded.seen_at})
    )


async def meet(
    connection: AsyncConnection, gateway: str, accounts: Mapping[Key, ChargeAccount]
) -> tuple[float, list[tuple[GatewayBalance, float]]]:
    """Tell accounts which other gateways asked since they were written.

    Returns the database's clock, and when what they have of each was written.
    """
    statement = select(GATEWAYS.c.name, GATEWAYS.c.seen_at, clock_column(connection))
    rows = (await connection.execute(statement)).all()
    seen_at = {name: at for name, at, _ in rows if name != gateway}
    written_at = []
    for account in accounts.values():
        for name, balance in account.gateways.items():
            if (at := seen_at.get(name, 0.0)) > balance.renewed_at:
                written_at.append((balance, balance.renewed_at))
                balance.renewed_at = at
    return float(rows[0][2]), written_at


async def enter(connection: AsyncConnection, gateway: str, keys: Iterable[Key]) -> None:
    """Note in which accounts a gateway is: by this `close` finds them."""
    rows = [(*key, gateway, 0) for key in sorted(keys)]
    await insert_rows(connection, CHARGE_SPENDS, rows, ())


async def write(
    connection: AsyncConnection, accounts: Mapping[Key, ChargeAccount], *, is_over: bool = False
) -> None:
    if accounts:
        await connection.execute(
            update(CHARGE_ACCOUNTS).where(_AT_KEY),
            [
                {
                    "at_key": key,
                    "at_start": start,
                    "state": msgspec.to_builtins(account),
                    "reserved": min(MOST_NANOS, _reserved(account, is_over=is_over)),
                }
                for (key, start), account in accounts.items()
            ],
        )


def _reserved(account: ChargeAccount, *, is_over: bool) -> int:
    """Return what no record may ever have; until its window is over records are on their way."""
    unrecorded = account.restored if is_over else account.missing + account.unrecorded
    return account.reserved + unrecorded
