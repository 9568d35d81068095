"""No schedule of asks, answers and raises spends more at providers than the operator lent."""

from collections import Counter
from dataclasses import replace
from itertools import count

from hypothesis import strategies as st
from hypothesis.stateful import rule
from typing_extensions import override

from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge.account import ChargeAccount, window_at
from tessera.domain.charge.exchange import AccountKey, ChargeAsk, LendingOutcome
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.observed.charges import OUTSIDE, AccountCharge, LimitId
from tests.domain.charge.fleet import NOON, ChargeFleet, a_scope
from tests.domain.charge.machine import ChargeMachine, run

MONTH = LimitId("team-a", f"{OUTSIDE}Month")


def lent(
    nanos: int, generation: int = 1, at: float = NOON, window: WindowName = "Month"
) -> ChargeScope:
    """Return what gateways see of what the operator lent in the window of a moment."""
    scope = a_scope(0, f"{OUTSIDE}{window}", window, generation)
    start, end = window_at(scope.limit, at)
    raises = AmountRaise(nanos, end), AmountRaise(-nanos, start)
    return replace(scope, limit=replace(scope.limit, raises=raises))


class OutsideMachine(ChargeMachine):
    """The operator raises what it lends, step by step in each window, whatever gateways know."""

    first_scopes = lent(1000, window="Hour"), lent(1000, window="Day"), lent(1000)

    def __init__(self) -> None:
        keys = (AccountKey(each.key, window_at(each.limit, NOON)[0]) for each in self.first_scopes)
        self.lent = Counter(dict.fromkeys(keys, 1000))
        super().__init__()

    @override
    @rule(place=st.integers(0, 2), amount=st.sampled_from([0, 20, 300, 1000]))
    def set_limit(self, place: int, amount: int) -> None:
        scope, at = self.scopes[place], self.fleet.now + self.fleet.clock_offset
        key = AccountKey(scope.key, window_at(scope.limit, at)[0])
        self.lent[key] += amount
        generation, window = scope.limit.generation + 1, scope.limit.window
        self.scopes[place] = lent(self.lent[key], generation, at, window)

    @override
    def most(self, key: AccountKey) -> int:
        return self.lent[key]


def test_no_schedule_spends_more_than_the_operator_lent() -> None:
    run(OutsideMachine, steps=50, examples=40)


def test_a_gateway_that_knows_of_an_older_raise_lowers_and_raises_nothing() -> None:
    account, numbers = ChargeAccount(), count(1)

    def ask(gateway: str, scope: ChargeScope) -> LendingOutcome:
        start, _ = window_at(scope.limit, NOON)
        asked = ChargeAsk(
            scope=scope,
            start=start,
            number=next(numbers),
            ceiling=0,
            used=0,
            reserved=0,
            need=50,
            want=50,
        )
        return account.exchange(gateway, asked, NOON).outcome

    assert ask("early", lent(300, generation=2)) is LendingOutcome.GRANTED
    for nanos in (200, 1000):
        # What the newer directory has is on its way.
        assert ask("late", lent(nanos, generation=1)) is LendingOutcome.OLD_GENERATION
        assert (account.limit, account.lent) == (300, 50)
    assert ask("late", lent(400, generation=3)) is LendingOutcome.GRANTED
    assert ask("early", lent(300, generation=2)) is LendingOutcome.OLD_GENERATION
    assert account.limit == 400


def test_what_was_lent_in_one_window_is_not_in_the_next() -> None:
    fleet = ChargeFleet()
    member = fleet.start()
    fleet.spend(member, (lent(300),), 300)
    fleet.clock_offset += 31 * 86_400
    refusal = fleet.refuse(member, (lent(300),), 1)
    assert refusal.left == 0


def test_a_request_that_needs_more_than_is_lent_says_so_until_it_gets_it() -> None:
    fleet = ChargeFleet()
    member = fleet.start()
    fleet.spend(member, (lent(300),), 100)
    fleet.refuse(member, (lent(300),), 250)

    def reported() -> AccountCharge:
        charges = reported_charges(member.charges.answered(), member.charges.needs())
        return charges[MONTH].accounts[0]

    assert (reported().settled, reported().need) == (100, 250)
    fleet.admit(member, (lent(400, generation=2),), 250)
    assert reported().need == 0
