"""Asserts what follows from a dimension `region`; runs in a copy of the product that has it."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from tessera.cli.cost.arguments import COST, COST_FIELDS
from tessera.cli.usage.arguments import USAGE
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.usage.report import UsageQuery
from tessera.domain.usage.statement import ChargeCorrection, ChargeQuery, corrected
from tessera.domain.usage.sums import UsageSums
from tessera.gateway.store.schema import METADATA
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.journal import _frame, _read
from tessera.gateway.usage.logs import access_line
from tessera.gateway.usage.tracing import _attributes
from tests.gateway.store.builders import a_record

REGION = RecordDimension("region")
BY: dict[str, Any] = {"region": "eu", "charge_nanos": 5, "currency": "USD"}
RECORDS = [a_record(**BY), a_record(**BY), a_record(**BY | {"region": "us"})]


def check_process(folder: Path) -> None:
    line = json.loads(access_line(RECORDS[0]))
    assert line["region"] == "eu"
    assert _attributes("chat", RECORDS[0])["tessera.region"] == "eu"
    sums = UsageSums(10**18)
    for record in RECORDS:
        sums.add(record)
    assert sorted((total.requests, region_of(total)) for total in sums) == [(1, "us"), (2, "eu")]
    correction = ChargeCorrection(id="x", amount_nanos=-5, reason="mistake")
    assert region_of(corrected(RECORDS[0], correction, 0)) == "eu"
    path = folder / "journal"
    path.write_bytes(_frame(RECORDS[0]))
    assert [region_of(record) for record in _read(path)] == ["eu"]
    assert "region" in COST_FIELDS
    for command in (COST, USAGE):
        (by,) = (each for each in command.params if each.name == "by")
        assert "region" in str(getattr(by, "help", ""))


async def check_store(folder: Path) -> None:
    url = f"sqlite:///{folder}/store.db"
    store = await GatewayStore.open(url)
    await store.record(RECORDS)
    used = await store.usage(UsageQuery(by=(REGION,), since_ns=0, until_ns=2**63 - 1))
    assert {row.group: row.requests for row in used.rows} == {("eu",): 2, ("us",): 1}
    paid = await store.charges(ChargeQuery(by=(REGION,), since=0, until=2**40))
    assert {row.group: row.charge_nanos for row in paid.rows} == {("eu",): 10, ("us",): 5}
    assert sorted(map(region_of, await store.oldest(3))) == ["eu", "eu", "us"]
    await store.close()
    with create_engine(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def region_of(record: Any) -> str:
    """Return the field that only the copy has."""
    region: str = record.region
    return region


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        check_process(Path(name))
        asyncio.run(check_store(Path(name)))
