"""Accounts of charges: what records add to them, and what gateways borrow from them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.gateway.requests import gateway_of
from tessera.gateway.store.schema import CHARGE_SPENDS


async def add_spent(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add what rows of usage records were charged to the accounts, in the order of their keys."""
    spent = Counter[tuple[str, int, str]]()
    for row in rows:
        for key, start, nanos in row["charges"]:
            spent[key, start, gateway_of(row["record_id"])] += nanos
    if not spent:
        return
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(CHARGE_SPENDS)
    total = CHARGE_SPENDS.c.spent + statement.excluded.spent
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["key", "window_start", "gateway"], set_={"spent": total}
        ),
        [
            {"key": key, "window_start": start, "gateway": gateway, "spent": nanos}
            for (key, start, gateway), nanos in sorted(spent.items())
        ],
    )
