"""Limits are lent to many gateways at once, and never above what an account holds."""

import asyncio

import pytest
from sqlalchemy import text

from tessera.domain.limits.account import BorrowRequest, Portion, PortionRequest, SlotRequest
from tessera.domain.limits.scopes import Meter, ScopedLimit, ScopeKind
from tessera.gateway.store.database import Database
from tessera.gateway.store.leases import MAX_LIMITS
from tessera.gateway.store.store import GatewayStore

DAY = 86_400


def a_limit(amount: int, name: str = "team-a", meter: Meter = Meter.TOTAL_TOKENS) -> ScopedLimit:
    """Return a limit that refills so slowly that no test sees it."""
    period = 0 if meter is Meter.CONCURRENT_REQUESTS else DAY
    return ScopedLimit(
        key=f"Tenant/{name}/{meter}/{period}",
        scope=ScopeKind.TENANT,
        name=name,
        meter=meter,
        amount=amount,
        period_seconds=period,
    )


def a_portion(limit: ScopedLimit, need: int, returned: int = 0) -> PortionRequest:
    return PortionRequest(limit=limit, need=need, want=need, returned=returned)


async def open_stores(url: str) -> list[GatewayStore]:
    """Open the store of three gateways; with SQLite they are one."""
    if url.startswith("sqlite"):
        return [await GatewayStore.open(url)] * 3
    return [await GatewayStore.open(url) for _ in range(3)]


async def lent(store: GatewayStore, *portions: PortionRequest) -> tuple[Portion, ...]:
    return (await store.borrow("gateway", BorrowRequest(portions=portions))).portions


async def amount(store: GatewayStore, request: PortionRequest) -> int:
    (portion,) = await lent(store, request)
    return portion.amount


async def test_what_is_borrowed_is_gone_until_it_is_returned(store: GatewayStore) -> None:
    limit = a_limit(100)

    assert await amount(store, a_portion(limit, 80)) == 80
    assert await amount(store, a_portion(limit, 80)) == 0
    assert await amount(store, a_portion(limit, 80, returned=60)) == 80


async def test_several_gateways_never_get_more_than_the_limit(store_url: str) -> None:
    limits = [a_limit(100, name) for name in ("team-a", "team-b", "team-c")]
    stores = await open_stores(store_url)

    async def gateway(number: int) -> int:
        # In every order of the limits, so that transactions meet crosswise.
        order = [*limits[number:], *limits[:number]]
        total = 0
        for _ in range(10):
            portions = await lent(stores[number], *(a_portion(limit, 7) for limit in order))
            total += sum(portion.amount for portion in portions)
        return total

    totals = await asyncio.gather(*map(gateway, range(3)))

    # 14 portions of 7 for each limit; 2 tokens are left.
    assert sum(totals) == 3 * 98
    for store in stores:
        await store.close()


async def test_slots_of_all_gateways_together_stay_within_the_limit(store_url: str) -> None:
    limit = a_limit(10, meter=Meter.CONCURRENT_REQUESTS)
    stores = await open_stores(store_url)

    async def gateway(number: int) -> int:
        request = SlotRequest(limit=limit, in_use=0, want=6)
        lease = await stores[number].borrow(f"gateway-{number}", BorrowRequest(slots=(request,)))
        return lease.slots[0].slots

    assert sorted(await asyncio.gather(*map(gateway, range(3)))) == [0, 4, 6]
    # Asked again by one that holds slots, they are renewed and not added.
    renewed = [await gateway(number) for number in range(3)]
    assert sorted(renewed) == [0, 4, 6]
    for store in stores:
        await store.close()


async def test_portions_of_one_moment_are_lent_in_one_transaction(
    store: GatewayStore,
) -> None:
    limit = a_limit(10)

    first, second = await lent(store, a_portion(limit, 6), a_portion(limit, 6))

    assert (first.amount, second.amount) == (6, 0)
    assert second.left == pytest.approx(4, abs=0.1)


async def test_very_many_limits_are_lent_in_several_transactions(store: GatewayStore) -> None:
    portions = tuple(a_portion(a_limit(5, f"team-{n}"), n % 3) for n in range(MAX_LIMITS + 2))
    slots = (SlotRequest(limit=a_limit(3, meter=Meter.CONCURRENT_REQUESTS), in_use=0, want=2),)

    lease = await store.borrow("gateway", BorrowRequest(portions=portions, slots=slots))

    assert [portion.key for portion in lease.portions] == [each.limit.key for each in portions]
    assert [portion.amount for portion in lease.portions] == [each.need for each in portions]
    assert [grant.slots for grant in lease.slots] == [2]


async def test_accounts_outlive_the_gateway(store_url: str) -> None:
    limit = a_limit(100)
    for expected in (60, 0):
        store = await GatewayStore.open(store_url)
        assert await amount(store, a_portion(limit, 60)) == expected
        await store.close()


async def test_an_account_that_nobody_used_for_two_days_is_forgotten(
    store: GatewayStore, store_url: str
) -> None:
    await lent(store, a_portion(a_limit(1, "idle"), 1), a_portion(a_limit(1, "busy"), 1))
    database = Database(store_url)
    async with database.write() as connection:
        await connection.execute(
            text(
                "UPDATE limit_accounts SET updated_at = updated_at - 200000 WHERE key LIKE '%idle%'"
            )
        )

    await store.prune(before_ns=0)

    async with database.read() as connection:
        keys = (await connection.execute(text("SELECT key FROM limit_accounts"))).scalars().all()
    assert keys == ["Tenant/busy/TotalTokens/86400"]
    await database.close()
