"""What providers bill, in both databases: beside charges, exact, and in accounts of its own."""

import time
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.observed.charges import OUTSIDE
from tessera.domain.usage.report import UsageQuery
from tessera.domain.usage.statement import ChargeCorrection, ChargeFlag, ChargeQuery
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.builders import a_record
from tests.gateway.store.test_charge_accounts import START, a_scope, an_ask
from tests.gateway.store.test_statements import a_charged

_NAME = f"{OUTSIDE}Month"
OUTSIDE_MONTH = ChargeScope(
    key=f"team-a/{_NAME}", limit=replace(a_scope().limit, name=_NAME, amount=1000)
)


def a_call(cost: int, nanos: int | None = 3, **changes: Any) -> Any:
    """Return the record of a call of a provider."""
    fields = {"provider": "acme/big", "service": "", "owner": None, "cost_currency": "USD"}
    return a_charged(nanos, cost_nanos=cost, **{"started_at_ns": 0} | fields | changes)


async def amounts(store: GatewayStore, *by: RecordDimension) -> dict[Any, Any]:
    report = await store.charges(ChargeQuery(by=by, since=0, until=2**40))
    return {
        (*row.group, row.currency): (row.requests, row.charge_nanos, row.cost_nanos)
        for row in report.rows
    }


async def settled(store: GatewayStore, scope: ChargeScope) -> int:
    (answer,) = (await store.borrow("b", BorrowRequest(charges=(an_ask(0, scope),)))).charges
    return answer.settled


async def test_what_is_billed_stands_beside_the_charge_and_currencies_are_never_added(
    store: GatewayStore,
) -> None:
    await store.record(
        [
            a_call(5),
            a_call(7, None),
            a_call(11, cost_currency="EUR"),
            a_charged(100, started_at_ns=0),
        ]
    )

    by_provider = {
        ("acme/big", "USD"): (3, 6, 12),
        ("acme/big", "EUR"): (0, 0, 11),
        ("", "USD"): (1, 100, 0),
    }
    assert await amounts(store, RecordDimension.PROVIDER) == by_provider
    assert await amounts(store) == {("USD",): (4, 106, 12), ("EUR",): (0, 0, 11)}
    used = await store.usage(
        UsageQuery(by=(RecordDimension.PROVIDER,), since_ns=0, until_ns=2**63 - 1)
    )
    assert {row.group: row.requests for row in used.rows} == {("acme/big",): 3, ("",): 1}
    assert await store.close_month()
    assert await amounts(store, RecordDimension.PROVIDER) == by_provider


async def test_an_account_of_providers_begins_with_what_they_billed(store: GatewayStore) -> None:
    now = {"started_at_ns": time.time_ns()}
    paid = ((OUTSIDE_MONTH.key, START, 7),)
    await store.record([a_call(5, **now), a_call(2, cost_currency="EUR", **now)])
    await store.record([a_call(7, charges=paid, **now)])
    assert await settled(store, OUTSIDE_MONTH) == 12
    assert await settled(store, a_scope()) == 9


async def test_a_correction_of_a_charge_leaves_what_was_billed(store: GatewayStore) -> None:
    paid = ((OUTSIDE_MONTH.key, START, 5), (a_scope().key, START, 3))
    record = a_call(5, charges=paid, started_at_ns=time.time_ns())
    await store.record([record])
    correction = ChargeCorrection(id=record.record_id, amount_nanos=-2, reason="wrong price")
    assert await store.correct(correction, time.time_ns())
    assert await amounts(store, RecordDimension.PROVIDER) == {("acme/big", "USD"): (1, 1, 5)}
    async with store.read() as connection:
        rows = await connection.execute(
            text("SELECT key, spent FROM charge_spends WHERE gateway = 'correction'")
        )
        assert [tuple(row) for row in rows] == [(a_scope().key, -2)]


async def test_what_a_lost_gateway_had_reserved_at_providers_is_a_cost_at_the_close(
    store: GatewayStore,
) -> None:
    for scope, nanos in ((OUTSIDE_MONTH, 40), (a_scope(), 20)):
        ask = an_ask(0, scope, ceiling=nanos, reserved=nanos)
        await store.borrow("lost", BorrowRequest(charges=(ask,)))
    await store.record([a_record(started_at_ns=0)])
    async with store.write() as connection:
        await connection.execute(text("UPDATE charge_accounts SET window_end = 1"))

    assert await store.close_month()

    lost = await amounts(store, RecordDimension.FLAG, RecordDimension.TENANT)
    assert lost[ChargeFlag.RESERVED, "team-a", "USD"] == (0, 20, 40)
    by_provider = await amounts(store, RecordDimension.PROVIDER)
    assert by_provider["unknown", "USD"] == (0, 0, 40)


async def test_the_largest_bills_are_in_a_statement_that_leaves_rows_out(
    store: GatewayStore,
) -> None:
    """A tenant without prices is charged nothing, and could hide its bills behind many rows."""
    small = [a_charged(1, started_at_ns=0, service=f"team-a/{number}") for number in range(3)]
    await store.record([*small, a_call(1000, None)])
    by = (RecordDimension.SERVICE, RecordDimension.PROVIDER)
    report = await store.charges(ChargeQuery(by=by, since=0, until=2**40, limit=2))
    assert report.is_truncated
    assert sum(row.cost_nanos for row in report.rows) == 1000
