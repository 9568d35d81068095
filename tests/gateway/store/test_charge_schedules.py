"""What random schedules of charges promise holds with the accounts of both databases."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import delete, insert, literal, select
from typing_extensions import override

from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, ChargeAsk
from tessera.gateway.store import charges as stored
from tessera.gateway.store.schema import CHARGE_ACCOUNTS, CHARGE_SPENDS, GATEWAYS, USAGE_RECORDS
from tessera.gateway.store.store import GatewayStore
from tests.domain.charge.fleet import Accounts, Charges
from tests.domain.charge.machine import ChargeMachine, run
from tests.gateway.store.builders import a_record

# What a backup of a database has, and an empty one lacks.
TABLES = (CHARGE_ACCOUNTS, CHARGE_SPENDS, GATEWAYS, USAGE_RECORDS)


class StoredAccounts:
    """Accounts in a database, of which the clock can be set."""

    def __init__(self, store: GatewayStore, runner: asyncio.Runner) -> None:
        self._store, self._run = store, runner.run
        self.now = 0.0
        self.restore([[] for _ in TABLES])

    def exchange(self, gateway: str, ask: ChargeAsk, now: float) -> ChargeAnswer:
        self.now = now
        (answer,) = self._run(self._store.exchange(gateway, (ask,)))
        self._known = self._run(self._read())
        return answer

    def record(self, record_id: str, gateway: str, charges: Charges) -> None:
        record = a_record(
            record_id=f"{gateway}-{record_id.rpartition('-')[2]}",
            charge_nanos=max((nanos for _, _, nanos in charges), default=0),
            currency="USD",
            charges=charges,
        )
        self._run(self._store.record([record]))
        self._known = self._run(self._read())

    def close(self, gateway: str) -> None:
        self._run(self._store.close_gateway(gateway))
        self._known = self._run(self._read())

    def all(self) -> dict[AccountKey, ChargeAccount]:
        return self._known

    def backup(self) -> object:
        return self._run(self._rows())

    def restore(self, backup: Any) -> None:
        self._run(self._replace(backup))
        self._known = self._run(self._read())

    async def _read(self) -> dict[AccountKey, ChargeAccount]:
        async with self._store.read() as connection:
            rows = await connection.execute(
                select(
                    CHARGE_ACCOUNTS.c.key, CHARGE_ACCOUNTS.c.window_start, CHARGE_ACCOUNTS.c.state
                )
            )
            accounts = {(key, start): ChargeAccount.from_json(state) for key, start, state in rows}
            await stored.read_spends(connection, accounts)
        return {AccountKey(*key): account for key, account in accounts.items()}

    async def _rows(self) -> list[list[dict[str, Any]]]:
        async with self._store.read() as connection:
            return [
                [
                    {column.key: row[column] for column in table.columns}
                    for row in (await connection.execute(select(table))).mappings()
                ]
                for table in TABLES
            ]

    async def _replace(self, tables: list[list[dict[str, Any]]]) -> None:
        async with self._store.write() as connection:
            for table, rows in zip(TABLES, tables, strict=True):
                await connection.execute(delete(table))
                if rows:
                    await connection.execute(insert(table), rows)


@contextmanager
def schedules_of(url: str) -> Iterator[type[ChargeMachine]]:
    """Return a machine that has its accounts in a database, whose clock goes by the machine's."""
    with asyncio.Runner() as runner:
        store = runner.run(GatewayStore.open(url))
        last: list[StoredAccounts] = []

        class StoreMachine(ChargeMachine):
            @override
            def empty_accounts(self) -> Accounts:
                last[:] = [StoredAccounts(store, runner)]
                return last[0]

        # No database lets its clock be set.
        with patch.object(stored, "clock_column", lambda _: literal(last[0].now)):
            yield StoreMachine
        runner.run(store.close())


SIZES = pytest.mark.parametrize(
    ("steps", "examples"), [(30, 6), pytest.param(100, 1000, marks=pytest.mark.full)]
)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path_factory.mktemp('charges')}/store.db"
    server = request.getfixturevalue("postgresql")
    return lambda: asyncio.run(server.create_database())


@SIZES
def test_no_schedule_charges_more_than_the_limit_by_a_store(
    empty_database: Callable[[], str], steps: int, examples: int
) -> None:
    with schedules_of(empty_database()) as machine:
        run(machine, steps, examples)
