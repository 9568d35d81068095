"""The schema: made by revisions that only add, by several gateways at once."""

import asyncio
import logging

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.usage.report import UsageQuery
from tessera.domain.usage.statement import ChargeQuery
from tessera.gateway.store.database import Database
from tessera.gateway.store.schema import METADATA
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.builders import a_record
from tests.gateway.store.postgresql import PostgresqlServer

_OF_CHARGES = (
    *("charge_nanos", "currency", "price_list", "charges", "owner", "service_class"),
    *("waste_nanos", "model_route", "target", "provider", "cost_nanos", "cost_currency"),
)
_TABLES_OF_CHARGES = tuple(name for name in METADATA.tables if name.startswith("charge_"))


async def test_the_revisions_make_the_tables_of_the_schema(store_url: str) -> None:
    database = Database(store_url)
    await database.migrate()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_records_of_a_former_version_count_one_request(store_url: str) -> None:
    store = await GatewayStore.open(store_url)
    await store.record([a_record(), a_record()])
    async with store.write() as connection:
        for column in ("requests", *_OF_CHARGES):
            await connection.execute(text(f"ALTER TABLE usage_records DROP COLUMN {column}"))
        for table in ("gateways", "secrets", *_TABLES_OF_CHARGES):
            await connection.execute(text(f"DROP TABLE {table}"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))

    await store.migrate()

    (row,) = (await store.usage(UsageQuery(by=(), since_ns=0, until_ns=2**63 - 1))).rows
    await store.close()
    assert row.requests == 2


async def test_what_was_stored_before_routes_has_none(store_url: str) -> None:
    store = await GatewayStore.open(store_url)
    routed = {"model_route": "team-a/assistant", "target": "small"}
    await store.record([a_record()])
    async with store.write() as connection:
        await connection.execute(text("ALTER TABLE usage_records DROP COLUMN cost_currency"))
        for table in ("usage_records", "charge_sums"):
            for column in (*routed, "provider", "cost_nanos"):
                await connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        await connection.execute(text("ALTER TABLE charge_batches DROP COLUMN tenant"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '0006'"))

    await store.migrate()
    await store.record([a_record(**routed)])

    used = UsageQuery(by=(RecordDimension.ROUTE,), since_ns=0, until_ns=2**63 - 1)
    charged = ChargeQuery(by=(RecordDimension.ROUTE,), since=0, until=2**40)
    for report in (await store.usage(used), await store.charges(charged)):
        assert sorted(row.group for row in report.rows) == [("",), ("team-a/assistant",)]
    await store.close()


async def test_gateways_that_start_together_migrate_once(postgresql: PostgresqlServer) -> None:
    url = await postgresql.create_database()
    stores = await asyncio.gather(*(GatewayStore.open(url) for _ in range(4)))
    for store in stores:
        await store.record([a_record()])
        await store.close()


async def test_a_gateway_goes_on_with_the_schema_of_a_newer_one(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(store_url)
    await database.migrate()
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE usage_records ADD COLUMN invented text"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()

    with caplog.at_level(logging.WARNING):
        store = await GatewayStore.open(store_url)
    await store.record([a_record()])
    await store.close()

    assert "newer schema 9999" in caplog.text


async def test_a_gateway_of_the_version_before_writes_and_reads_the_same_rows(
    store_url: str,
) -> None:
    # It knows the path of a request as `route`, and goes on beside this one and after a rollback.
    store = await GatewayStore.open(store_url)
    await store.record([a_record(path="/v1/messages")])
    async with store.write() as connection:
        read = await connection.execute(text("SELECT route FROM usage_records"))
        assert read.scalars().all() == ["/v1/messages"]
        await connection.execute(text("UPDATE usage_records SET route = '/score'"))

    query = UsageQuery(by=(RecordDimension.PATH,), since_ns=0, until_ns=2**63 - 1)
    (row,) = (await store.usage(query)).rows
    (record,) = await store.oldest(10)
    await store.close()
    assert (row.group, record.path) == (("/score",), "/score")
