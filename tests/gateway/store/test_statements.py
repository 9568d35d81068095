"""Hourly sums of charges in SQLite and PostgreSQL: exact, once a record, and bounded."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import RecordDimension
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.usage.statement import (
    MAX_TAGS,
    ChargeCorrection,
    ChargeFlag,
    ChargeQuery,
    ChargeReport,
    closed_month,
    month_of,
    retained_since,
)
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.builders import SECOND, START_NS, a_record
from tests.gateway.store.test_charge_accounts import START as FIRST
from tests.gateway.store.test_charge_accounts import a_scope, an_ask

HOUR = 3600
START = START_NS // SECOND // HOUR * HOUR


def a_charged(nanos: int | None = 1000, **changes: Any) -> Any:
    priced = {"price_list": "standard@1", "currency": "USD", "owner": "platform"}
    fields = {"service_class": "Interactive", **(priced if nanos is not None else {})}
    return a_record(charge_nanos=nanos, **fields | changes)


async def charges(store: GatewayStore, *by: RecordDimension, **changes: Any) -> ChargeReport:
    return await store.charges(ChargeQuery(by=by, **{"since": 0, "until": 2**40} | changes))


async def totals(store: GatewayStore, *by: RecordDimension, **changes: Any) -> dict[Any, Any]:
    report = await charges(store, *by, **changes)
    return {row.group: (row.requests, row.charge_nanos) for row in report.rows}


async def test_statements_tell_apart_who_used_what_of_whom_at_which_price(
    store: GatewayStore,
) -> None:
    await store.record(
        [
            a_charged(5, team="search", user="ada", key=None, tags="case=1"),
            a_charged(
                7,
                service="team-b/chat",
                owner="team-b",
                price_list="large@2",
                model_route="team-a/assistant",
                target="large",
            ),
            a_charged(None, tenant="team-b", service_class="Evaluation"),
        ]
    )

    statement = {
        RecordDimension.TENANT: {("team-a",): (2, 12), ("team-b",): (1, 0)},
        RecordDimension.TEAM: {("search",): (1, 5), (None,): (2, 7)},
        RecordDimension.USER: {("ada",): (1, 5), (None,): (2, 7)},
        RecordDimension.KEY: {(None,): (1, 5), ("laptop",): (2, 7)},
        RecordDimension.SERVICE: {("team-a/chat",): (2, 5), ("team-b/chat",): (1, 7)},
        RecordDimension.ROUTE: {("team-a/assistant",): (1, 7), ("",): (2, 5)},
        RecordDimension.TARGET: {("large",): (1, 7), ("",): (2, 5)},
        RecordDimension.TAG: {("case=1",): (1, 5), (None,): (2, 7)},
        RecordDimension.SERVICE_CLASS: {("Interactive",): (2, 12), ("Evaluation",): (1, 0)},
        RecordDimension.OWNER: {("platform",): (1, 5), ("team-b",): (1, 7), (None,): (1, 0)},
        RecordDimension.PRICE_LIST: {
            ("standard@1",): (1, 5),
            ("large@2",): (1, 7),
            (None,): (1, 0),
        },
    }
    for dimension, expected in statement.items():
        groups: dict[Any, Any] = {}
        # A row without a price has no currency, and is a row of its own.
        for row in (await charges(store, dimension)).rows:
            requests, nanos = groups.get(row.group, (0, 0))
            groups[row.group] = (requests + row.requests, nanos + row.charge_nanos)
        assert groups == expected, dimension


async def test_currencies_are_never_added(store: GatewayStore) -> None:
    await store.record([a_charged(5), a_charged(6, currency="EUR"), a_charged(None)])

    rows = (await charges(store)).rows

    assert [(row.currency, row.charge_nanos) for row in rows] == [
        ("EUR", 6),
        ("USD", 5),
        (None, 0),
    ]


async def test_a_record_that_comes_again_is_charged_once(store: GatewayStore) -> None:
    records = [a_charged(5), a_charged(7)]
    await store.record([*records, records[0]])
    await store.record(records)
    assert await store.add_missing([records[1], a_charged(100)]) == 1

    assert await totals(store) == {(): (3, 112)}


async def test_a_spool_keeps_records_and_adds_up_nothing(store: GatewayStore) -> None:
    record = a_charged(5, charges=(("team-a/month", START, 5),))
    await store.keep([record])

    assert await totals(store) == {}
    assert await store.oldest(9) == [record]


async def test_hours_of_the_interval_count_and_other_tenants_do_not(store: GatewayStore) -> None:
    await store.record(
        [
            a_charged(1, started_at_ns=(START - 1) * SECOND),
            a_charged(10, started_at_ns=START * SECOND),
            a_charged(100, started_at_ns=START * SECOND, tenant="team-b"),
            a_charged(1000, started_at_ns=(START + HOUR) * SECOND),
        ]
    )

    hour = {"since": START, "until": START + HOUR}
    assert await totals(store, **hour) == {(): (2, 110)}
    assert await totals(store, **hour, tenant="team-a") == {(): (1, 10)}
    three = await charges(store, RecordDimension.TENANT, limit=1)
    assert (len(three.rows), three.is_truncated) == (1, True)


async def test_a_clock_ahead_makes_no_hour_of_the_future(store: GatewayStore) -> None:
    day = 86_400
    await store.record([a_charged(5, started_at_ns=time.time_ns() + 40 * day * SECOND)])

    assert await totals(store, until=int(time.time()) + HOUR) == {(): (1, 5)}


async def test_what_a_killed_gateway_knew_is_flagged(store: GatewayStore) -> None:
    await store.record([a_charged(5), a_charged(6, reason=RequestReason.GATEWAY_KILLED)])

    flags = await totals(store, RecordDimension.FLAG)

    assert flags == {(None,): (1, 5), (ChargeFlag.KILLED,): (1, 6)}


async def test_a_tenant_has_so_many_tags_a_month_and_then_other(store_url: str) -> None:
    stores = [await GatewayStore.open(store_url) for _ in range(2)]
    for number in range(2 * MAX_TAGS):
        await stores[number % 2].record([a_charged(1, tags=f"n={number}"), a_charged(1)])
    await stores[0].record([a_charged(1, tenant="team-b", tags=f"n={9 * MAX_TAGS}")])

    tags = await totals(stores[0], RecordDimension.TAG, tenant="team-a")

    assert len(tags) == MAX_TAGS + 2
    assert (tags[None,], tags["other",]) == ((2 * MAX_TAGS,) * 2, (MAX_TAGS,) * 2)
    assert ("n=576",) in await totals(stores[0], RecordDimension.TAG, tenant="team-b")
    for store in stores:
        await store.close()


async def test_gateways_that_add_to_the_same_rows_crosswise_lose_nothing(store_url: str) -> None:
    stores = [await GatewayStore.open(store_url) for _ in range(3)]
    keys = [f"key-{number}" for number in range(20)]

    async def write(number: int) -> None:
        for turn in range(8):
            order = keys if (turn + number) % 2 else keys[::-1]
            await stores[number].record(
                [
                    a_charged(
                        1,
                        record_id=f"g{number}-{turn}{key}",
                        key=key,
                        tags=key,
                        charges=((f"team-a/each/{key}", START, 1), ("team-a/month", START, 1)),
                    )
                    for key in order
                ]
            )

    await asyncio.gather(*map(write, range(3)))

    assert await totals(stores[0], RecordDimension.KEY) == {(key,): (24, 24) for key in keys}
    for store in stores:
        await store.close()


@pytest.mark.parametrize("text", ["\0", "\ud800", "x" * 600])
async def test_what_no_database_takes_is_cut_in_sums_too(store: GatewayStore, text: str) -> None:
    await store.record(
        [a_charged(2**80, tags=text, user=text, charges=((text, START, 2**80),)), a_charged(1)]
    )

    assert len((await charges(store, RecordDimension.USER)).rows) == 2


async def end_months_ago(store: GatewayStore) -> None:
    """Move all hours and accounts 90 days back."""
    async with store.write() as connection:
        for change in (
            "UPDATE charge_sums SET hour = hour - 90 * 86400",
            "UPDATE charge_accounts SET window_end = window_end - 90 * 86400",
        ):
            await connection.execute(text(change))


async def test_a_closed_month_never_changes_and_what_comes_late_is_of_the_open_one(
    store: GatewayStore,
) -> None:
    now = time.time_ns()
    last_month = (month_of(time.time()) - 40 * 24 * HOUR) * SECOND
    await store.record(
        [a_charged(5, started_at_ns=last_month + n * HOUR * SECOND) for n in range(50)]
    )
    await store.record([a_charged(7, started_at_ns=now)])
    before = await charges(store, RecordDimension.KEY)

    assert await store.close_month()
    assert not await store.close_month()

    after = await charges(store, RecordDimension.KEY)
    assert after.rows == before.rows
    assert after.closed_until <= month_of(time.time())
    await store.record([a_charged(100, started_at_ns=last_month)])
    closed = {"since": 0, "until": after.closed_until}
    assert await totals(store, **closed) == {(): (50, 250)}
    flags = await totals(store, RecordDimension.FLAG, since=after.closed_until)
    assert flags == {(None,): (1, 7), (ChargeFlag.LATE,): (1, 100)}
    async with store.read() as connection:
        rows = await connection.scalar(text("SELECT count(*) FROM charge_sums"))
    assert rows == 3, "of the month before, of this one, and what came late"


async def test_a_month_is_open_until_a_day_after_its_end_and_while_records_are_imported(
    store: GatewayStore,
) -> None:
    assert closed_month(month_of(START) + 24 * HOUR - 1) < month_of(START)
    assert closed_month(month_of(START) + 24 * HOUR) == month_of(START)
    assert not await store.close_month(), "there is none"
    await store.add_missing([a_charged(5, started_at_ns=0)])
    assert not await store.close_month(), "others may follow"
    async with store.write() as connection:
        await connection.execute(text("UPDATE charge_months SET closed_at = closed_at - 601"))
    assert await store.close_month()


async def test_sums_of_closed_months_are_deleted_after_13_months(store: GatewayStore) -> None:
    now = time.time()
    first = retained_since(now)
    assert 13 <= (now - first) / (365.25 / 12 * 86_400) < 14.5
    assert month_of(first) == first
    hours = (0, first - HOUR, first, month_of(now) - 3 * HOUR)
    await store.record(
        [a_charged(1, started_at_ns=hour * SECOND, key=f"{hour}", tags="a=1") for hour in hours]
    )
    assert await store.prune(before_ns=0) == 0, "no month is closed"
    assert await store.close_month()

    assert await store.prune(before_ns=0, limit=1) == 1
    assert await store.prune(before_ns=0) == 1
    assert await store.prune(before_ns=0) == 0

    assert await totals(store, RecordDimension.KEY) == {(f"{at}",): (1, 1) for at in hours[2:]}
    async with store.read() as connection:
        months = await connection.scalars(text("SELECT month FROM charge_tags ORDER BY month"))
        assert months.all() == [first, month_of(hours[3])]


async def test_gateways_that_close_a_month_and_record_at_once_agree(store_url: str) -> None:
    stores = [await GatewayStore.open(store_url) for _ in range(3)]
    await stores[0].record([a_charged(1, started_at_ns=0)])

    async def record(store: GatewayStore) -> None:
        for _ in range(10):
            records = [a_charged(1, started_at_ns=0)]
            while True:
                # What is not answered in time is stored again, as gateways do.
                with suppress(StoreError):
                    await store.record(records)
                    break

    closed, *_ = await asyncio.gather(stores[0].close_month(), record(stores[1]), record(stores[2]))

    assert closed
    flags = await totals(stores[0], RecordDimension.FLAG)
    assert sum(requests for requests, _ in flags.values()) == 21
    closed_until = (await charges(stores[0])).closed_until
    early = await totals(stores[0], RecordDimension.FLAG, until=closed_until)
    assert set(early) == {(None,)}
    for store in stores:
        await store.close()


async def test_what_a_lost_gateway_had_reserved_is_one_row_at_the_close(
    store: GatewayStore,
) -> None:
    each = [a_scope(f"team-a/each-key/Key/{name}") for name in "ab"]
    asks = [an_ask(0, scope, reserved=30) for scope in (a_scope(), *each)]
    await store.borrow("lost", BorrowRequest(charges=tuple(asks)))
    await store.record([a_charged(5)])
    await end_months_ago(store)

    assert await store.close_month()

    flags = await totals(store, RecordDimension.FLAG, RecordDimension.TENANT)
    # Of two limits the one of which the accounts have more: a request is in both.
    assert flags == {(None, "team-a"): (1, 5), (ChargeFlag.RESERVED, "team-a"): (0, 60)}
    assert await store.prune(before_ns=0) == 0


async def test_what_is_reserved_in_another_month_counts_there(store: GatewayStore) -> None:
    month = month_of(time.time())
    charges_of = (("team-a/day", month - 86_400, 30), ("team-a/day", month, 12))
    record = a_charged(
        42,
        started_at_ns=(month - 30) * SECOND,
        charges=(*charges_of, ("", month, 12)),
        tags="case=1",
        output_tokens=50,
    )
    await store.record([record])

    by = (RecordDimension.TAG,)
    assert await totals(store, *by, until=month) == {("case=1",): (1, 30)}
    assert await totals(store, *by, since=month) == {("case=1",): (0, 12)}
    (row,) = (await charges(store, since=month)).rows
    assert row.output_tokens == 0
    async with store.read() as connection:
        keys = await connection.scalars(text("SELECT DISTINCT key FROM charge_spends"))
        assert keys.all() == ["team-a/day"]
    less = ChargeCorrection(id=record.record_id, amount_nanos=-2, reason="wrong price")
    assert await store.correct(less, time.time_ns())
    assert await totals(store, since=month) == {(): (0, 10)}


async def test_waste_is_a_row_of_the_owner_and_of_no_limit(store: GatewayStore) -> None:
    wasted = {"owner": "team-o", "service": "team-o/chat", "user": "ada", "tags": "case=1"}
    now = time.time_ns()
    await store.record(
        [
            a_charged(5, waste_nanos=30, started_at_ns=now, **wasted),
            a_charged(0, waste_nanos=2**40, started_at_ns=now, **wasted),
            a_charged(7, waste_nanos=1, started_at_ns=0, **wasted),
        ]
    )
    before = await totals(store, RecordDimension.SERVICE_CLASS, tenant="team-o")

    assert before == {("Waste",): (0, 2**40 + 31)}
    by = (RecordDimension.SERVICE_CLASS, RecordDimension.USER, RecordDimension.TAG)
    assert (await totals(store, *by))["Waste", None, None] == (0, 2**40 + 31)
    assert await totals(store, RecordDimension.TENANT) == {("team-a",): (3, 12)}
    assert await store.close_month()
    assert await totals(store, RecordDimension.SERVICE_CLASS, tenant="team-o") == before
    limit = replace(a_scope().limit, budget="team-o")
    ask = an_ask(0, ChargeScope(key="team-o/month", limit=limit))
    (only,) = (await store.borrow("a", BorrowRequest(charges=(ask,)))).charges
    assert only.settled == 0


@pytest.mark.parametrize("has_ended", [False, True])
async def test_what_a_backup_does_not_have_is_one_row_at_the_close(
    store: GatewayStore, has_ended: bool
) -> None:
    async def says(gateway: str, scope: ChargeScope, **fields: int) -> None:
        await store.borrow(gateway, BorrowRequest(charges=(an_ask(0, scope, **fields),)))

    month, day = a_scope(), a_scope("team-a/day")
    # Of the gap one gateway knows its charges, and one only what it saw.
    await says("a", month, used=40, ceiling=40, seen=70)
    await says("a", day, used=40, ceiling=40)
    await store.record(
        [a_charged(5, record_id="a-1", charges=((month.key, FIRST, 5), (day.key, FIRST, 5)))]
    )
    if has_ended:
        await store.close_gateway("a")
    await end_months_ago(store)
    while await store.prune(before_ns=0):
        pass
    if not has_ended:
        await store.record([a_charged(2, record_id="a-2", charges=((month.key, FIRST, 2),))])

    assert await store.close_month()

    flags = await totals(store, RecordDimension.FLAG, RecordDimension.TENANT)
    assert flags[ChargeFlag.RESTORED, "team-a"] == (0, 65 if has_ended else 63)
    assert await store.prune(before_ns=0) == 0


async def test_a_correction_is_a_row_of_the_open_month_and_counts_once(
    store: GatewayStore,
) -> None:
    record = a_charged(5000, started_at_ns=0, user="ada", model_route="a/b", target="small")
    await store.record([record, a_charged(None, record_id="unpriced")])
    assert await store.close_month()
    less = ChargeCorrection(id=record.record_id, amount_nanos=-2000, reason="wrong price")
    now = time.time_ns()

    assert await store.correct(less, now)
    assert not await store.correct(less, now + 5)
    for unknown in ("unpriced", "nothing"):
        with pytest.raises(LookupError, match=unknown):
            await store.correct(less.model_copy(update={"id": unknown}), now)

    by = (RecordDimension.USER, RecordDimension.FLAG)
    closed_until = (await charges(store)).closed_until
    assert await totals(store, *by, since=closed_until, tenant="team-a") == {
        ("ada", ChargeFlag.CORRECTION): (0, -2000),
        (None, None): (1, 0),
    }
    assert (await totals(store, *by, until=closed_until)) == {("ada", None): (1, 5000)}
    assert (await totals(store, RecordDimension.TARGET))["small",] == (1, 3000)
