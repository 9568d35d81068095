"""Batches that are charged: what each has reserved, and one row for each block with settled rows.

A message of a runner is one transaction, whichever gateway gets it: no gateway has money of it.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.charge.account import window_at
from tessera.domain.charge.batch_account import (
    SILENT_SECONDS,
    BatchAccount,
    BatchBlock,
    BatchLoan,
    Key,
    SettledRows,
)
from tessera.domain.charge.batch_rows import BatchAnswer, BatchMessage, BatchOutcome
from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.money import Money
from tessera.gateway.store import charges
from tessera.gateway.store.charges import FORGOTTEN_ATTEMPT
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.leases import clock
from tessera.gateway.store.schema import CHARGE_BATCHES, RESERVED_BLOCK, storable
from tessera.gateway.store.store import GatewayStore

log = logging.getLogger("tessera.gateway")

BATCH_CLASS = "Batch"
# Between two looks for batches that are silent, and how many of them one frees.
_FREE_SECONDS, _FREED_BATCHES = 60.0, 100
# Blocks that are read in one turn: some milliseconds.
_BLOCKS_AT_ONCE = 500
_COLUMNS = CHARGE_BATCHES.c
_FENCED = BatchAnswer(
    outcome=BatchOutcome.FENCED, message="another attempt of the batch is current"
)
_FOREIGN = BatchAnswer(
    outcome=BatchOutcome.EXCEEDED,
    message="the currency of the TenantBudget is another one than when this attempt began: the "
    "next attempt pays in it",
)
_FORGOTTEN = BatchAnswer(
    outcome=BatchOutcome.EXCEEDED,
    message="the store of the gateways was full, and what is known no more of this batch is which "
    "of its rows are paid: create another BatchInference with the rows that have no answer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTerms:
    """What a batch pays by, and the limits that hold for it."""

    namespace: str
    tenant: str
    price: RequestPrice
    scopes: tuple[ChargeScope, ...]


class BatchStore:
    """Settles rows of batches and lends to them; every method raises StoreError."""

    def __init__(self, store: GatewayStore, gateway: str) -> None:
        """Take the name of the gateway that asks."""
        self._store, self._gateway = store, gateway
        self._answered: dict[Key, tuple[ChargeScope, ChargeAnswer]] = {}

    def answered(self) -> Iterable[tuple[ChargeScope, ChargeAnswer]]:
        """Return what accounts answered last, of the windows of now."""
        return self._answered.values()

    async def exchange(self, terms: BatchTerms, message: BatchMessage) -> BatchAnswer:
        """Settle what a runner says, and reserve what it needs; may be repeated after an error."""
        batch = f"{terms.namespace}/{message.uid}"
        async with self._store.write() as connection:
            now = await clock(connection)
            account = await _begin(connection, batch, terms, message, now)
            await _open_accounts(connection, terms.scopes, now)
        if account.attempt == FORGOTTEN_ATTEMPT:
            return _FORGOTTEN
        if account.attempt > message.attempt:
            return _FENCED
        if account.former:
            # Nothing of it is settled from now on, so what it did not use is free.
            await self._store.close_gateway(account.former)
        async with self._store.write() as connection:
            answer = await self._exchange(connection, batch, terms, message)
        settled = await self._settled_rows(batch) if message.opens else ()
        return answer.model_copy(update={"settled": settled})

    async def free_silent(self) -> None:
        """Free what is reserved for runners of which nothing was heard for SILENT_SECONDS.

        Each batch has a transaction, since accounts are locked in the order of their keys.
        """
        freed = 0
        while freed < _FREED_BATCHES and await self._free_oldest():
            freed += 1

    async def _free_oldest(self) -> bool:
        """Free what is reserved for the runner that is silent longest; False if none is."""
        async with self._store.write() as connection:
            now = await clock(connection)
            silent = (
                select(_COLUMNS.batch, _COLUMNS.state)
                .where(_COLUMNS.block == RESERVED_BLOCK)
                .where(_COLUMNS.changed_at < now - SILENT_SECONDS)
                .where(_COLUMNS.state["parts"].as_string() != "[]")
                .order_by(_COLUMNS.changed_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = (await connection.execute(silent)).first()
            if row is None:
                return False
            batch, state = row
            account = BatchAccount.from_json(state)
            accounts = await charges.locked(connection, account.keys)
            await charges.read_spends(connection, accounts)
            borrower = _borrower(batch, account.attempt)
            BatchLoan(borrower=borrower, accounts=accounts, scopes={}, now=now).free(account)
            await charges.leave(connection, borrower, accounts)
            await charges.write(connection, accounts)
            await _write(connection, batch, RESERVED_BLOCK, account.to_json(), now)
        return True

    async def run(self) -> None:
        """Free what silent runners have reserved, until it is cancelled."""
        while True:
            try:
                await self.free_silent()
            except StoreError as error:
                log.error("the store keeps what silent batches have reserved: %s", error)
            await asyncio.sleep(_FREE_SECONDS)

    async def _exchange(
        self, connection: AsyncConnection, batch: str, terms: BatchTerms, message: BatchMessage
    ) -> BatchAnswer:
        account = await _locked(connection, batch)
        if account.attempt != message.attempt or account.price is None:
            return _FENCED
        if account.price.currency != terms.price.currency:
            return _FOREIGN
        account.former, now = "", await clock(connection)
        total = await _settle(connection, terms, message, account.price, now)
        if total.nanos > account.reserved:
            # Rows went on while nothing was heard of their runner, and what they had was freed.
            await self._lend(connection, account, terms, _needing(message, total.nanos), now)
        if total.nanos or total.rows or total.output:
            paid = account.pay(total.nanos)
            record = _record(terms, message, account, total, paid, now)
            await self._store.record_in(connection, [record])
            account.records += 1
        answer = await self._lend(connection, account, terms, message, now)
        await _write(connection, batch, RESERVED_BLOCK, account.to_json(), now)
        return answer

    async def _settled_rows(self, batch: str) -> tuple[tuple[int, int], ...]:
        """Return the blocks of a batch, and how many of their rows are settled.

        They are read some at a time: others have their turn, and no writer waits.
        """
        settled, last = list[tuple[int, int]](), RESERVED_BLOCK
        while True:
            of_batch = (_COLUMNS.batch == batch) & (_COLUMNS.block > last)
            statement = select(_COLUMNS.block, _COLUMNS.state).where(of_batch)
            statement = statement.order_by(_COLUMNS.block).limit(_BLOCKS_AT_ONCE)
            async with self._store.read() as connection:
                rows = (await connection.execute(statement)).all()
            settled += [
                (number, BatchBlock.from_json(state).done.bit_count()) for number, state in rows
            ]
            if len(rows) < _BLOCKS_AT_ONCE:
                return tuple(settled)
            last = settled[-1][0]

    async def _lend(
        self,
        connection: AsyncConnection,
        batch: BatchAccount,
        terms: BatchTerms,
        message: BatchMessage,
        now: float,
    ) -> BatchAnswer:
        price = batch.price
        assert price is not None  # noqa: S101 - of an attempt that began
        answer = BatchAnswer(
            outcome=BatchOutcome.GRANTED,
            reserved=max(message.need, message.want),
            input=price.input,
            output=price.output,
            per_row=price.per_batch_row,
        )
        if not terms.scopes:
            return answer
        borrower = _borrower(f"{terms.namespace}/{message.uid}", message.attempt)
        current = _current(terms.scopes, now)
        await charges.note_asking(connection, self._gateway)
        accounts = await charges.locked(connection, {*current, *batch.keys})
        corrections = await charges.read_spends(connection, accounts)
        now, _ = await charges.meet(connection, borrower, accounts)
        entered = [key for key, each in accounts.items() if borrower not in each.gateways]
        loan = BatchLoan(
            borrower=borrower,
            accounts=accounts,
            scopes={key: _corrected(scope, corrections[key]) for key, scope in current.items()},
            now=now,
        )
        outcome = loan.lend(batch, message.need, message.want)
        open_ = {key: each for key, each in self._answered.items() if each[1].end > now}
        self._answered = open_ | {key: (current[key], loan.answers[key]) for key in current}
        if not batch.reserved:
            await charges.leave(connection, borrower, accounts)
            entered = []
        await charges.write(connection, accounts)
        await charges.enter(connection, borrower, entered)
        text = (
            "" if outcome is BatchOutcome.GRANTED else _shortage(loan, batch, terms, message.need)
        )
        return answer.model_copy(
            update={"outcome": outcome, "reserved": batch.reserved, "message": text}
        )


def _needing(message: BatchMessage, nanos: int) -> BatchMessage:
    """Return a message that needs so much, and no more, to pay for its rows."""
    return message.model_copy(update={"need": nanos, "want": nanos})


def _borrower(batch: str, attempt: int) -> str:
    """Return the name by which accounts and records know an attempt."""
    return f"batch/{batch}/{attempt}"


async def _begin(
    connection: AsyncConnection, batch: str, terms: BatchTerms, message: BatchMessage, now: float
) -> BatchAccount:
    """Return the account of a batch, in which this attempt is the current one if none is newer."""
    await _insert(connection, terms, (batch, RESERVED_BLOCK), BatchAccount().to_json(), now)
    account = await _locked(connection, batch)
    if account.attempt < message.attempt:
        former = _borrower(batch, account.attempt) if account.attempt else ""
        account = BatchAccount(attempt=message.attempt, former=former, price=terms.price)
        await _write(connection, batch, RESERVED_BLOCK, account.to_json(), now)
    return account


async def _open_accounts(
    connection: AsyncConnection, scopes: Iterable[ChargeScope], now: float
) -> None:
    asks = [
        ChargeAsk(scope=scope, start=start, number=0, ceiling=0, used=0, reserved=0)
        for (_, start), scope in _current(scopes, now).items()
    ]
    if asks:
        await charges.open_accounts(connection, asks)


async def _locked(connection: AsyncConnection, batch: str) -> BatchAccount:
    of_batch = (_COLUMNS.batch == batch) & (_COLUMNS.block == RESERVED_BLOCK)
    statement = select(_COLUMNS.state).where(of_batch).with_for_update()
    return BatchAccount.from_json((await connection.execute(statement)).scalar_one())


async def _settle(
    connection: AsyncConnection,
    terms: BatchTerms,
    message: BatchMessage,
    price: RequestPrice,
    now: float,
) -> SettledRows:
    """Settle the blocks of a message, and return what is new."""
    batch, total = f"{terms.namespace}/{message.uid}", SettledRows()
    numbers = [use.number for use in message.blocks]
    of_blocks = (_COLUMNS.batch == batch) & _COLUMNS.block.in_(numbers)
    rows = await connection.execute(select(_COLUMNS.block, _COLUMNS.state).where(of_blocks))
    blocks = {number: BatchBlock.from_json(state) for number, state in rows}
    for use in message.blocks:
        is_new = use.number not in blocks
        block = blocks.setdefault(use.number, BatchBlock())
        before = block.to_json()
        total = total.plus(block.settle(use, message.attempt, price))
        if is_new:
            await _insert(connection, terms, (batch, use.number), block.to_json(), now)
        elif block.to_json() != before:
            await _write(connection, batch, use.number, block.to_json(), now)
    return total


async def _insert(
    connection: AsyncConnection, terms: BatchTerms, block: tuple[str, int], state: Any, now: float
) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    new = {"batch": block[0], "block": block[1]}
    await connection.execute(
        insert(CHARGE_BATCHES).on_conflict_do_nothing(),
        [{**new, "changed_at": now, "state": state, "tenant": storable(terms.tenant)}],
    )


async def _write(
    connection: AsyncConnection, batch: str, number: int, state: Any, now: float
) -> None:
    of_block = (_COLUMNS.batch == batch) & (_COLUMNS.block == number)
    await connection.execute(
        CHARGE_BATCHES.update().where(of_block).values(state=state, changed_at=now)
    )


def _record(
    terms: BatchTerms,
    message: BatchMessage,
    account: BatchAccount,
    total: SettledRows,
    paid: tuple[tuple[str, int, int], ...],
    now: float,
) -> UsageRecord:
    """Return the record of the rows that one message settles."""
    nanos = max((nanos for *_, nanos in paid), default=0) if terms.scopes else total.nanos
    assert account.price is not None  # noqa: S101 - of an attempt that began
    return UsageRecord(
        record_id=f"{_borrower(f'{terms.namespace}/{message.uid}', message.attempt)}"
        f"-{account.records}",
        request_id=message.uid,
        started_at_ns=int(now * 1e9),
        tenant=terms.tenant,
        service=f"{terms.namespace}/batch/{message.batch}",
        model=message.model,
        path="/v1/batches",
        phase=Phase.COMPLETED,
        status=200,
        reason="",
        input_tokens=total.input,
        output_tokens=total.output,
        # More than was reserved is not paid: a runner says more than its rows can have.
        estimated=nanos < total.nanos,
        total_ns=0,
        requests=total.rows,
        charge_nanos=nanos,
        currency=account.price.currency,
        price_list=account.price.price_list,
        charges=paid,
        owner=terms.tenant,
        service_class=BATCH_CLASS,
    )


def _current(scopes: Iterable[ChargeScope], now: float) -> dict[Key, ChargeScope]:
    """Return the scopes by the accounts of their windows of now."""
    return {(storable(scope.key), window_at(scope.limit, now)[0]): scope for scope in scopes}


def _corrected(scope: ChargeScope, correction: int) -> ChargeScope:
    limit = replace(scope.limit, amount=scope.limit.amount - correction)
    return replace(scope, limit=limit)


def _shortage(loan: BatchLoan, batch: BatchAccount, terms: BatchTerms, need: int) -> str:
    """Return which limit has the least left, and what to do."""
    by_left: dict[Key, int] = {
        key: account.limit - account.settled - account.lent + batch.reserved_in(key)
        for key, account in loan.accounts.items()
        if key in loan.scopes
    }
    key = min(by_left, key=lambda each: (by_left[each], each))
    limit = loan.scopes[key].limit
    left, amount, needed = (
        Money(nanos, limit.currency).formatted(6)
        for nanos in (max(0, by_left[key]), loan.accounts[key].limit, need)
    )
    return (
        f"TenantBudget/{terms.tenant} limit {limit.name}: {left} of {amount} left, and a row needs "
        f"{needed}. Rows that are done are retained: wait for the next {limit.window.lower()}, or "
        f"raise it: kubectl tessera budget raise {limit.budget} {limit.name}"
    )
