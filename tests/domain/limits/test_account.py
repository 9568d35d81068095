"""What an account lends, and how clocks and lost gateways change it."""

import pytest

from tessera.domain.limits.account import Account, PortionRequest, SlotAccount, SlotRequest
from tessera.domain.limits.scopes import Meter
from tests.domain.limits.accounts import a_limit, slots_limit

LIMIT = a_limit(Meter.REQUESTS, 60)


def borrowed(account: Account, now: float, **wanted: int) -> tuple[float, float]:
    portion = account.borrow(PortionRequest(limit=LIMIT, **wanted), now)
    return portion.amount, portion.left


def test_a_portion_is_the_need_and_an_eighth_of_the_rest_at_most() -> None:
    account = Account(level=60, updated_at=0)
    assert borrowed(account, 0, need=4, want=50) == (4 + 7, 49)
    assert borrowed(account, 0, need=4, want=6) == (6, 43)
    assert borrowed(account, 0, need=40, want=40) == (40, 3)
    assert borrowed(account, 0, need=4, want=50) == (0, 3)


def test_an_account_refills_evenly_up_to_its_amount() -> None:
    account = Account(level=0, updated_at=0)
    assert borrowed(account, 10, need=10) == (10, 0)
    assert borrowed(account, 1000, need=0) == (0, 60)


def test_what_is_returned_fits_into_the_amount() -> None:
    account = Account(level=55, updated_at=0)
    assert borrowed(account, 0, returned=20) == (0, 60)


def test_debts_are_paid_by_the_refill() -> None:
    account = Account(level=0, updated_at=0)
    assert borrowed(account, 0, returned=-30) == (0, -30)
    assert borrowed(account, 20, need=1) == (0, -10)
    assert borrowed(account, 31, need=1) == (1, 0)


def test_a_debt_is_one_period_at_most() -> None:
    account = Account(level=60, updated_at=0)
    assert borrowed(account, 0, returned=-(10**9)) == (0, -60)
    assert borrowed(account, 60, returned=-1) == (0, -1)
    assert borrowed(account, 62, need=1) == (1, 0)


@pytest.mark.parametrize(
    ("clocks", "level"),
    [
        ((-2, 0), 0),  # Two gateways whose clocks differ refill no more than one.
        ((-2, 1, -2, 1, -2, 1), 1),
        ((-3600, -3590), 10),  # A clock that was set back goes on from there.
        ((3600,), 60),
        ((3600, 0), 60),
    ],
)
def test_clocks_that_differ_or_are_set_never_fill_an_account_twice(
    clocks: tuple[float, ...], level: float
) -> None:
    account = Account(level=0, updated_at=0)
    for clock in clocks:
        borrowed(account, clock)
    assert account.level == level


def test_a_lower_limit_applies_at_once() -> None:
    account = Account(level=60, updated_at=0)
    lower = PortionRequest(limit=a_limit(Meter.REQUESTS, 10), need=11)
    assert account.borrow(lower, 0).amount == 0
    assert account.level == 10


def leased(account: SlotAccount, gateway: str, in_use: int, want: int, now: float = 0.0) -> int:
    return account.lease(
        gateway, SlotRequest(limit=slots_limit(8), in_use=in_use, want=want), now
    ).slots


def test_slots_of_all_gateways_stay_within_the_limit() -> None:
    account = SlotAccount()
    assert leased(account, "a", 0, 5) == 5
    assert leased(account, "b", 0, 5) == 3
    assert leased(account, "a", 2, 2) == 2
    assert leased(account, "b", 3, 5) == 5


def test_slots_of_a_dead_gateway_are_free_after_three_seconds() -> None:
    account = SlotAccount()
    leased(account, "a", 0, 8)
    assert leased(account, "b", 0, 8, now=2.9) == 0
    assert leased(account, "b", 0, 8, now=3.0) == 8
    # It was late, not dead: its requests go on beyond the limit.
    assert leased(account, "a", 6, 8, now=3.1) == 6


def test_leases_of_a_clock_that_was_set_back_lapse() -> None:
    account = SlotAccount()
    leased(account, "a", 0, 8, now=3600)
    assert leased(account, "b", 0, 8, now=0) == 8
