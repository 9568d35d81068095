"""Accounts of charges in SQLite and PostgreSQL: no limit is overrun, and no money is stranded."""

import asyncio
import itertools
import json
import time
from typing import Any

import pytest
from sqlalchemy import text

from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk, LendingOutcome
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.usage.statement import month_of
from tessera.gateway.store.charges import MAX_ASKS, WRITTEN_SECONDS
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.builders import a_record
from tests.gateway.store.postgresql import PostgresqlServer


def _long_month() -> tuple[str, int]:
    """Return a time zone whose month does not end while tests run, and when its month began."""
    at = time.time()
    start = month_of(at)
    if month_of(at + 3 * 3600) == start:
        return "UTC", start
    return "Etc/GMT+12", start + 12 * 3600


ZONE, START = _long_month()
numbers = itertools.count(1)


def a_scope(key: str = "team-a/charge-month", amount: int = 100) -> ChargeScope:
    limit = ChargeLimit(
        budget="team-a",
        generation=1,
        name="charge-month",
        window="Month",
        amount=amount,
        currency="USD",
        time_zone=ZONE,
    )
    return ChargeScope(key=key, limit=limit)


def an_ask(need: int = 0, scope: ChargeScope | None = None, **fields: Any) -> ChargeAsk:
    return ChargeAsk(
        scope=scope or a_scope(),
        start=START,
        number=next(numbers),
        need=need,
        **{"want": need, "ceiling": 0, "used": 0, "reserved": 0} | fields,
    )


async def exchange(store: GatewayStore, gateway: str, *asks: ChargeAsk) -> tuple[ChargeAnswer, ...]:
    return (await store.borrow(gateway, BorrowRequest(charges=asks))).charges


async def answer(store: GatewayStore, gateway: str, ask: ChargeAsk) -> ChargeAnswer:
    (only,) = await exchange(store, gateway, ask)
    return only


def a_charge(
    gateway: str, nanos: int, number: int | None = None, key: str = "team-a/charge-month"
) -> Any:
    return a_record(
        record_id=f"{gateway}-{number or next(numbers)}",
        charge_nanos=nanos,
        currency="USD",
        charges=((key, START, nanos),),
    )


async def test_what_is_lent_to_one_gateway_is_not_lent_to_another(store: GatewayStore) -> None:
    first = await answer(store, "a", an_ask(70))
    second = await answer(store, "b", an_ask(70))
    third = await answer(store, "b", an_ask(30))

    assert (first.outcome, first.ceiling, first.limit) == (LendingOutcome.GRANTED, 70, 100)
    assert second.outcome in {LendingOutcome.WAIT, LendingOutcome.RESERVED}
    assert (third.outcome, third.ceiling, third.lent) == (LendingOutcome.GRANTED, 30, 100)
    assert first.at == pytest.approx(time.time(), abs=60)


async def test_an_ask_that_comes_again_changes_nothing(store: GatewayStore) -> None:
    ask = an_ask(70)
    first = await answer(store, "a", ask)
    again = await answer(store, "a", ask)

    assert (again.ceiling, again.lent) == (first.ceiling, first.lent) == (70, 70)


async def test_stored_records_are_settled_once_and_before_the_gateway_says_it(
    store: GatewayStore,
) -> None:
    await answer(store, "a", an_ask(70))
    records = [a_charge("a", 40), a_charge("a", 10)]
    await store.record(records)
    await store.record(records)

    other = await answer(store, "b", an_ask())

    assert (other.settled, other.lent) == (50, 20)


async def test_records_of_an_account_that_nobody_asked_for_count_when_it_is_asked_for(
    store: GatewayStore,
) -> None:
    # Such as those of another store, which were imported.
    await store.add_missing([a_charge("gone", 90)])

    refused = await answer(store, "a", an_ask(20))

    assert (refused.outcome, refused.settled) == (LendingOutcome.NOTHING, 90)


async def test_what_a_dead_gateway_did_not_use_is_lent_again_once_its_records_are_stored(
    store: GatewayStore,
) -> None:
    other = a_scope("team-a/charge-month/Key/ci")
    await exchange(store, "dead", an_ask(70), an_ask(30, other))
    assert (await answer(store, "b", an_ask(70))).outcome is not LendingOutcome.GRANTED

    await store.record([a_charge("dead", 25)])
    await store.close_gateway("dead")
    await store.close_gateway("dead")

    granted = await answer(store, "b", an_ask(70))
    assert (granted.outcome, granted.settled, granted.lent) == (LendingOutcome.GRANTED, 25, 70)
    assert (await answer(store, "b", an_ask(0, other))).lent == 0
    # A message that was under way, and a record.
    late = await answer(store, "dead", an_ask(5, used=25, ceiling=25))
    assert late.outcome is LendingOutcome.NOTHING
    await store.record([a_charge("dead", 3)])
    assert (await answer(store, "b", an_ask())).settled == 28


async def test_a_correction_is_spent_again(store: GatewayStore) -> None:
    await answer(store, "a", an_ask(100))
    await store.record([a_charge("a", 100)])
    assert (await answer(store, "b", an_ask(10))).outcome is LendingOutcome.NOTHING

    await store.record([a_charge("correction", -30)])

    granted = await answer(store, "b", an_ask(10))
    assert (granted.outcome, granted.settled, granted.limit) == (LendingOutcome.GRANTED, 100, 130)


async def test_very_many_accounts_are_asked_in_several_transactions(store: GatewayStore) -> None:
    asks = [an_ask(n % 3, a_scope(f"team-a/each/Key/{n}")) for n in range(MAX_ASKS + 2)]

    answers = await exchange(store, "a", *asks)

    assert [each.account.scope for each in answers] == [ask.scope.key for ask in asks]
    assert [each.ceiling for each in answers] == [ask.need for ask in asks]
    await store.close_gateway("a")
    assert (await answer(store, "b", an_ask(0, asks[2].scope))).lent == 0


async def test_accounts_outlive_the_gateways(store_url: str) -> None:
    for name, outcome in (("a", LendingOutcome.GRANTED), ("b", LendingOutcome.NOTHING)):
        store = await GatewayStore.open(store_url)
        assert (await answer(store, name, an_ask(60))).outcome is outcome
        await store.record([a_charge(name, 60 if name == "a" else 0)])
        await store.close()


async def test_gateways_that_ask_and_record_at_once_never_exceed_a_limit(store_url: str) -> None:
    is_sqlite = store_url.startswith("sqlite")
    opened = [await GatewayStore.open(store_url) for _ in range(1 if is_sqlite else 3)]
    scopes = [a_scope(f"team-a/each/Key/{name}", 1000) for name in range(5)]

    async def gateway(number: int) -> int:
        store, name, used = opened[number % len(opened)], f"g{number}", 0
        order = scopes[number:] + scopes[:number]
        for turn in range(12):
            asks = [an_ask(7, scope, ceiling=used, used=used) for scope in order]
            answers = await exchange(store, name, *asks)
            assert all(each.settled + each.lent <= each.limit for each in answers)
            if not all(each.outcome is LendingOutcome.GRANTED for each in answers):
                break
            used += 7
            charges = tuple((scope.key, START, 7) for scope in order)
            await store.record(
                [
                    a_record(record_id=f"{name}-{turn}", charge_nanos=7, charges=charges),
                    # Of many keys, so that rows of several gateways are locked crosswise.
                    *(a_record(record_id=f"{name}-{turn}x{n}", key=f"{n}") for n in range(9)),
                ]
            )
        return used

    used = await asyncio.gather(*map(gateway, range(3)))

    for each in await exchange(opened[0], "last", *(an_ask(0, scope) for scope in scopes)):
        assert each.settled == sum(used) == 3 * 12 * 7
    for store in opened:
        await store.close()


async def test_a_store_that_is_locked_refuses_in_time_and_lends_afterwards(
    postgresql: PostgresqlServer,
) -> None:
    store = await GatewayStore.open(await postgresql.create_database())
    await answer(store, "a", an_ask(10))
    async with store.write() as connection:
        await connection.execute(text("LOCK TABLE charge_accounts"))
        with pytest.raises(StoreError, match="no answer within 2 s"):
            await answer(store, "b", an_ask(10))
        # Records wait for no account.
        await store.record([a_charge("a", 10)])

    assert (await answer(store, "b", an_ask(10))).settled == 10
    await store.close()


async def test_accounts_of_windows_that_ended_are_deleted_but_not_what_a_lost_gateway_reserved(
    store: GatewayStore,
) -> None:
    lost = a_scope("team-a/lost-month")
    await exchange(store, "a", an_ask(5), an_ask(5, lost, reserved=5))
    await answer(store, "a", an_ask(0, ceiling=0))
    await store.record([a_charge("b", 5, key="team-a/old")])
    async with store.write() as connection:
        for change in (
            "UPDATE charge_accounts SET window_end = window_end - 90 * 86400",
            "UPDATE charge_spends SET window_start = window_start - 90 * 86400 WHERE gateway = 'b'",
        ):
            await connection.execute(text(change))

    await store.prune(before_ns=0)

    async with store.read() as connection:
        keys = (await connection.execute(text("SELECT key FROM charge_accounts"))).scalars().all()
        spends = await connection.execute(text("SELECT gateway FROM charge_spends"))
    assert keys == [lost.key]
    assert spends.scalars().all() == ["a"]


async def written(store: GatewayStore) -> Any:
    async with store.read() as connection:
        state = await connection.scalar(text("SELECT state FROM charge_accounts"))
    return json.loads(state) if isinstance(state, str) else state


async def test_a_renewal_from_which_nothing_follows_is_not_written_and_keeps_its_gateway_alive(
    store: GatewayStore,
) -> None:
    first = await answer(store, "a", an_ask(20, want=40))
    before = await written(store)
    renewed = await answer(store, "a", an_ask(0, want=5, ceiling=30, used=5, reserved=5))

    assert await written(store) == before
    assert (first.ceiling, renewed.ceiling, renewed.scarce) == (40, 30, False)
    # What others hear is what it was lent, until it says so where something is scarce.
    refused = await answer(store, "b", an_ask(70))
    assert (refused.outcome, refused.lent, refused.scarce) == (LendingOutcome.WAIT, 40, True)
    renewed = await answer(store, "a", an_ask(0, want=5, ceiling=20, used=10, reserved=10))
    assert (renewed.ceiling, renewed.scarce) == (20, True)
    assert (await answer(store, "b", an_ask(70))).outcome is LendingOutcome.GRANTED


async def test_what_a_gateway_says_is_written_after_a_while(store: GatewayStore) -> None:
    await answer(store, "a", an_ask(40))
    async with store.write() as connection:
        rows = await connection.execute(text("SELECT state FROM charge_accounts"))
        state = rows.scalar_one()
        state = json.loads(state) if isinstance(state, str) else state
        state["gateways"]["a"]["renewed_at"] -= WRITTEN_SECONDS
        await connection.execute(
            text("UPDATE charge_accounts SET state = :state"), {"state": json.dumps(state)}
        )

    await answer(store, "a", an_ask(0, ceiling=30, used=30))

    assert (await written(store))["gateways"]["a"]["used"] == 30
