"""Limits go on for a minute while the store fails, at the rate of before, and nothing is free."""

import pytest

from tessera.domain.limits.account import (
    Account,
    BorrowRequest,
    Lease,
    Portion,
    PortionRequest,
    SlotGrant,
    SlotRequest,
)
from tessera.domain.limits.scopes import Meter, ScopedLimit, ScopeKind
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.lender import BRIDGE_SECONDS, Lender
from tessera.gateway.store.store import GatewayStore
from tests.gateway.store.postgresql import PostgresqlServer
from world.testing import eventually

LIMIT = ScopedLimit(
    key="Tenant/team-a/TotalTokens/60",
    scope=ScopeKind.TENANT,
    name="team-a",
    meter=Meter.TOTAL_TOKENS,
    amount=600,
    period_seconds=60,
)


class MemoryAccounts:
    """A store with one account and one limit of slots, unless it is down."""

    def __init__(self, clock: "Clock") -> None:
        self.account = Account(level=float(LIMIT.amount), updated_at=0.0)
        self.clock, self.is_down = clock, False

    async def check(self) -> None:
        if self.is_down:
            raise StoreError("connection refused")

    async def borrow(self, gateway: str, request: BorrowRequest) -> Lease:
        assert gateway
        await self.check()
        return Lease(
            portions=tuple(
                self.account.borrow(each, self.clock.seconds) for each in request.portions
            ),
            slots=tuple(SlotGrant(key=each.limit.key, slots=each.want) for each in request.slots),
        )


class Clock:
    """Monotonic seconds that a test sets."""

    seconds = 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryAccounts:
    return MemoryAccounts(clock)


@pytest.fixture
def lender(store: MemoryAccounts, clock: Clock) -> Lender:
    return Lender(store, monotonic=lambda: clock.seconds)


async def borrow(lender: Lender, amount: int, returned: int = 0) -> Portion:
    request = PortionRequest(limit=LIMIT, need=amount, want=amount, returned=returned)
    lease = await lender.borrow("gateway", BorrowRequest(portions=(request,)))
    return lease.portions[0]


async def lent(lender: Lender, clock: Clock, seconds: int, amount: int) -> int:
    """Return what a gateway gets that asks for an amount every second."""
    total = 0
    for _ in range(seconds):
        clock.seconds += 1
        total += (await borrow(lender, amount)).amount
    return total


async def test_a_failing_store_is_bridged_for_a_minute_at_the_rate_of_before(
    lender: Lender, store: MemoryAccounts, clock: Clock
) -> None:
    before = await lent(lender, clock, 59, amount=5)
    assert before == 59 * 5

    store.is_down = True
    assert await lent(lender, clock, BRIDGE_SECONDS, amount=5) == pytest.approx(before, rel=0.05)
    assert await lent(lender, clock, 60, amount=5) == 0


async def test_a_greedy_gateway_gets_at_most_twice_what_it_got_in_the_minute_before(
    lender: Lender, store: MemoryAccounts, clock: Clock
) -> None:
    before = await lent(lender, clock, 59, amount=5)

    store.is_down = True
    assert await lent(lender, clock, 600, amount=50) <= 2 * before


async def test_a_limit_that_was_never_lent_is_not_lent_without_the_store(
    lender: Lender, store: MemoryAccounts
) -> None:
    store.is_down = True

    assert (await borrow(lender, 1)).amount == 0


async def test_what_was_lent_without_the_store_is_booked_when_it_answers(
    lender: Lender, store: MemoryAccounts
) -> None:
    await borrow(lender, 400)
    store.is_down = True
    assert (await borrow(lender, 300)).amount == 300
    assert (await borrow(lender, 50, returned=100)).amount == 50

    async def is_booked() -> None:
        assert lender.failing_since is None
        assert store.account.level == 600 - 400 - (300 + 50 - 100)

    store.is_down = False
    await eventually(is_booked)


async def test_gateways_keep_the_slots_that_they_had_and_get_no_more(
    lender: Lender, store: MemoryAccounts, clock: Clock
) -> None:
    async def slots(in_use: int, want: int) -> int:
        request = SlotRequest(limit=LIMIT, in_use=in_use, want=want)
        lease = await lender.borrow("gateway", BorrowRequest(slots=(request,)))
        return lease.slots[0].slots

    assert await slots(in_use=0, want=4) == 4
    store.is_down = True

    assert [await slots(0, 3), await slots(2, 9), await slots(6, 9)] == [3, 4, 6]
    clock.seconds += BRIDGE_SECONDS
    assert [await slots(0, 3), await slots(2, 9)] == [0, 2]


async def test_a_database_that_refuses_connections_for_a_while(
    postgresql: PostgresqlServer,
) -> None:
    url = await postgresql.create_database()
    store = await GatewayStore.open(url)
    lender = Lender(store)

    async def works_again() -> None:
        assert lender.failing_since is None

    assert (await borrow(lender, 100)).amount == 100

    await postgresql.close_database(url)
    assert (await borrow(lender, 60)).amount == 60
    await postgresql.open_database(url)
    await eventually(works_again)

    assert (await borrow(lender, 0)).left == pytest.approx(600 - 160, abs=300)
    assert (await borrow(lender, 600)).amount == 0
    await store.close()
