"""Attacks on what is lent for providers: budgets, limits, clocks and statuses that change."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tessera.api.budget_reasons import WithinBudget
from tessera.api.key_record import KeyBudget
from tessera.api.tenant_budget import TenantBudgetStatus, WindowName
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.periods import period_at, zone_of
from tessera.domain.charge.account import window_at
from tessera.domain.charge.gateway_charges import ChargeReservation
from tessera.domain.charge.reports import merged_limits, reported_charges
from tessera.domain.charge.scopes import ChargeScope, is_outside
from tessera.domain.gateway.directory import Identity
from tessera.domain.gateway.outside import outside_limits
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.money import NANO, from_nanos
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.snapshot import Budget
from tessera.gateway.refusals import RequestError
from tests.builders import NO_MEMORY, NOW, a_budget, a_snapshot, at, plan_of
from tests.domain.budget.test_budgets import scaled
from tests.domain.budget.test_outside import (
    BEGUN,
    HOUR,
    WITH_PROVIDERS,
    a_provider,
    amounts,
    asked,
    planned,
    recorded,
    reported,
)
from tests.domain.charge.fleet import NOON, ChargeFleet
from tests.domain.charge.test_outside import lent
from tests.gateway.charging import a_cost_limit, an_outside_model
from tests.gateway.harness import TENANT, a_chosen_request
from tests.gateway.reserve.test_outside import outside

pytestmark = pytest.mark.anyio

DAY_AND_MONTH = [{"window": "Day", "amount": "10"}, {"window": "Month", "amount": "100"}]


def edited(budget: Budget, **fields: Any) -> Budget:
    """Return the budget with another spec, and the status that it has."""
    assert budget.spec is not None
    spec = a_budget(**fields).spec
    return replace(budget, spec=spec, generation=budget.generation + 1)


def used_up(budget: Budget) -> Budget:
    """Return the budget once gateways used all that they could get."""
    for _ in range(70):
        charges = reported(sum(amounts(budget).values()), need=0.001)
        budget = recorded(planned(budget, charges))
    return budget


def spent(view: BudgetView) -> list[float]:
    return [window.spent / NANO for window in view.state.current_windows]


def test_a_budget_that_is_made_again_lends_nothing_that_was_spent() -> None:
    """Its status is gone, and no copy of its spend is there either."""
    again = recorded(asked(a_budget()))
    assert amounts(again) == {"Hour": 0.2}
    view = planned(again, reported(9.9), NOW)
    assert amounts(recorded(view)) == {"Hour": 9.9}
    assert spent(view) == [9.9]
    [last] = used_up(a_budget()).status.outside
    [first] = asked(a_budget(), NOW + HOUR / 2).meter.loans.values()
    assert first.generation > last.generation, "or accounts would lend by the old budget"


def test_a_limit_that_is_removed_and_comes_back_lends_nothing_twice() -> None:
    budget = used_up(a_budget())
    assert amounts(budget) == {"Hour": 10}
    without = recorded(planned(edited(budget, limits=[{"window": "Day", "amount": "10"}])))
    assert "Hour" not in amounts(without)
    back = recorded(planned(edited(without), None, at(60)), at(60))
    view = planned(back, reported(10), at(60))
    assert (amounts(recorded(view)), spent(view)) == ({"Hour": 10}, [10])
    assert view.meter.loans["Hour"].generation > budget.status.outside[0].generation


def test_another_name_of_a_limit_changes_nothing_of_what_is_lent() -> None:
    budget = used_up(a_budget())
    named = edited(budget, limits=[{"name": "all", "window": "Hour", "amount": "10"}])
    assert planned(named, reported(10)).meter.loans == planned(budget, reported(10)).meter.loans
    assert named.spec is not None
    assert budget.spec is not None
    assert outside_limits(named, named.spec) == outside_limits(budget, budget.spec)


def test_a_lower_limit_takes_nothing_back_and_lends_and_grants_nothing_more() -> None:
    budget = used_up(a_budget())
    snapshot = replace(scaled(1), budgets=(edited(budget, amount="1"),), providers=(a_provider(),))
    plan = plan_of(replace(snapshot, charges=reported(9, need=0.5)), WITH_PROVIDERS)
    [view] = plan.budgets
    assert amounts(recorded(view)) == {"Hour": 10}
    [service] = plan.service_plans.values()
    assert service.desired_pods == 1, "what always runs"


def test_two_limits_lend_each_for_itself_and_the_smaller_one_ends_both() -> None:
    budget = a_budget(limits=DAY_AND_MONTH)
    names: tuple[WindowName, ...] = ("Day", "Month")
    starts = {name: period_at(name, NOW, ZoneInfo("UTC")).start for name in names}
    for _ in range(80):
        used = min([*amounts(budget).values(), 10.0]) if amounts(budget) else 0.0
        account = AccountCharge(round(used * NANO), need=1)
        charges = {
            LimitId("team-a", f"outside {name}"): LimitCharges(
                start=int(start.timestamp()), accounts=(account,)
            )
            for name, start in starts.items()
        }
        budget = recorded(planned(budget, charges))
    assert amounts(budget) == {"Day": 10, "Month": 12}


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati"])
def test_another_time_zone_lends_by_what_was_spent_since_its_window_began(zone: str) -> None:
    budget = used_up(a_budget())
    moved = edited(budget, timeZone=zone)
    assert moved.spec is not None
    [limit] = outside_limits(moved, moved.spec)
    start, _ = window_at(limit, NOW.timestamp())
    at_once = datetime.fromtimestamp(start, UTC) == BEGUN
    assert (limit.amount_at(NOW.timestamp()) == 0) is not at_once
    # The account of the new window opens with what was billed since it began.
    charges = {
        LimitId("team-a", "outside Hour"): LimitCharges(
            start=start, accounts=(AccountCharge(8 * NANO),)
        )
    }
    view = planned(recorded(planned(moved)), charges)
    assert view.meter.loans["Hour"].amount >= 8 * NANO
    assert view.meter.loans["Hour"].generation > 0


ZONES = ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Tehran")


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("window", ["Hour", "Day", "Week", "Month"])
def test_what_is_lent_holds_for_all_of_its_window_and_no_longer(
    zone: str, window: WindowName
) -> None:
    """Also where daylight saving time begins or ends, and at the end of each month."""
    budget = a_budget(timeZone=zone, limits=[{"window": window, "amount": "100"}])
    known = zone_of(zone)
    assert known is not None
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    while moment.year == 2026:
        period = period_at(window, moment, known)
        row = {
            "window": window,
            "start": period.start.isoformat(),
            "amount": "2",
            "used": "0",
            "generation": 1,
        }
        status = TenantBudgetStatus.model_validate({"outside": [row]})
        assert budget.spec is not None
        [limit] = outside_limits(replace(budget, status=status), budget.spec)
        start, end = window_at(limit, moment.timestamp())
        assert (start, end) == (period.start.timestamp(), period.end.timestamp())
        moments = (start - 1, start, moment.timestamp(), end - 1, end)
        assert [limit.amount_at(each) for each in moments] == [0, *[2 * NANO] * 3, 0]
        moment += timedelta(hours=37) if window == "Hour" else max(HOUR * 24, period.end - moment)


def test_an_operator_that_is_away_lends_nothing_in_the_hours_without_it() -> None:
    budget = used_up(a_budget())
    assert budget.spec is not None
    [limit] = outside_limits(budget, budget.spec)
    for minutes in (60, 90, 60 * 24):
        assert limit.amount_at((BEGUN + timedelta(minutes=minutes)).timestamp()) == 0
    late = NOW + 2 * HOUR
    view = planned(budget, reported(3, start=BEGUN), late)
    assert amounts(recorded(view, late)) == {}


@pytest.mark.parametrize("minutes", [-5, 5])
def test_an_operator_with_another_clock_lends_nothing_of_two_windows_at_once(minutes: int) -> None:
    """At the end of a window its clock is in the next one, or a gateway's."""
    border = BEGUN + HOUR
    moment = border - timedelta(minutes=1 if minutes > 0 else -1)
    budget = used_up(a_budget())
    known = moment + timedelta(minutes=minutes)
    after = recorded(planned(budget, at=known), known)
    assert after.spec is not None
    [limit] = outside_limits(after, after.spec)
    assert limit.amount_at(moment.timestamp()) == 0


def test_a_status_of_a_backup_lends_what_accounts_have_and_counts_it() -> None:
    """The operator starts again with it: gateways that know of more lent it meanwhile."""
    old = recorded(asked(a_budget()))
    newest = used_up(old)
    view = planned(old, reported(10))
    assert (amounts(recorded(view)), spent(view)) == ({"Hour": 10}, [10])
    # Accounts that saw a newer amount lend nothing by an older one.
    assert old.status.outside[0].generation < newest.status.outside[0].generation
    assert old.status.outside[0].generation < view.meter.loans["Hour"].generation


def test_a_status_of_a_backup_is_written_over_by_an_operator_that_runs() -> None:
    old = recorded(asked(a_budget()))
    view = planned(old, reported(0.1))
    snapshot = a_snapshot(budgets=(old,), charges=reported(0.1), providers=(a_provider(),))
    memory = replace(NO_MEMORY, meters={"team-a": view.meter})
    [again] = plan_of(snapshot, WITH_PROVIDERS, memory).budgets
    assert recorded(again).status.outside == recorded(view).status.outside


@pytest.mark.parametrize("providers", [(), (a_provider("team-b"),), (a_provider(currency="EUR"),)])
def test_a_provider_that_is_taken_away_frees_nothing_that_is_lent(providers: Sequence[Any]) -> None:
    budget = used_up(a_budget())
    view = planned(budget, reported(4, 1), providers=tuple(providers))
    assert (amounts(recorded(view)), spent(view)) == ({"Hour": 10}, [4])
    assert view.state.current_windows[0].allocated == 10 * NANO


@pytest.mark.parametrize("settled", [10**6, 10**20])
def test_what_a_gateway_makes_up_costs_its_tenant_alone(settled: int) -> None:
    others = a_budget("team-b")
    budgets, providers = (a_budget(), others), (a_provider("team-a", "team-b"),)
    snapshot = a_snapshot(budgets=budgets, providers=providers, charges=reported(settled))
    first, second = plan_of(snapshot, WITH_PROVIDERS).budgets
    assert first.within_budget.reason is WithinBudget.BUDGET_EXHAUSTED
    assert amounts(recorded(second)) == {}


def test_a_need_beyond_the_limit_lends_nothing_ahead_of_one_that_fits() -> None:
    budget = recorded(asked(a_budget()))
    for need in (10**20, 10.3, 10.01):
        budget = recorded(planned(budget, reported(0, need=need)))
        assert amounts(budget) == {"Hour": 0.2}


def test_a_status_of_a_newer_operator_is_read_and_one_of_an_older_one_lends_nothing() -> None:
    written = recorded(asked(a_budget())).status.model_dump(mode="json", by_alias=True)
    newer = {**written, "later": 1, "outside": [{**written["outside"][0], "later": 1}]}
    older = {name: value for name, value in written.items() if name != "outside"}
    for status, nanos in ((newer, NANO // 5), (older, 0)):
        budget = a_budget(status=TenantBudgetStatus.model_validate(status))
        assert budget.spec is not None
        [limit] = outside_limits(budget, budget.spec)
        assert limit.amount_at(NOW.timestamp()) == nanos


@pytest.mark.parametrize("providers", [True, False])
def test_a_budget_without_anything_of_providers_is_as_before(providers: bool) -> None:
    """Objects of the version before, and an installation that has no providers."""
    config = replace(WITH_PROVIDERS, providers=providers)
    [view] = plan_of(a_snapshot(budgets=(a_budget(),)), config).budgets
    status = recorded(view).status.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert not status["outside"]
    assert not any("outside" in each for each in (*status["spend"]["windows"], *status["limits"]))


def test_a_gateway_that_was_killed_with_its_volume_keeps_what_it_had_and_no_more() -> None:
    fleet, scope = ChargeFleet(), lent(300)
    dead, other = fleet.start(), fleet.start()
    fleet.spend(dead, (scope,), 100)
    fleet.admit(dead, (scope,), 50)
    fleet.crash(dead)
    fleet.admit(other, (scope,), 150)
    fleet.refuse(other, (scope,), 1)
    account = fleet.account(scope)
    assert account.settled + account.lent == 300
    # Its journal says what it had: the rest is free again, and nothing counts twice.
    fleet.recover(dead)
    assert account.settled + account.lent == 250
    fleet.renew(2)
    fleet.admit(other, (scope,), 50)


@pytest.mark.parametrize("seconds", [-300, 300])
def test_a_gateway_with_another_clock_spends_in_the_window_of_the_accounts(seconds: int) -> None:
    """It comes a minute before the end of an hour by the clock of the store."""
    fleet = ChargeFleet(clock_offset=NOON + 3540)
    scope = lent(300, window="Hour")
    member = fleet.start(clock_offset=fleet.clock_offset + seconds)
    # Its first ask may be of the next window, of which nothing is lent; the answer has the time.
    fleet.reserve(member, (scope,), 100)
    fleet.spend(member, (scope,), 100)
    assert all(key.start == NOON for key, nanos in fleet.charged.items() if nanos)
    fleet.now += 120
    assert fleet.refuse(member, (scope,), 1).left <= 0


def test_nodes_and_providers_are_what_a_window_spent_once_all_that_was_lent_is_used() -> None:
    """Two gateways call while the operator lends, until nothing more is lent: to the nano-unit."""
    pods = tuple(replace(pod, bound=BEGUN) for pod in scaled(1).pods)
    fleet = ChargeFleet(clock_offset=BEGUN.timestamp())
    members = fleet.start(), fleet.start()
    budget = recorded(asked(a_budget(amount="1"), BEGUN, pods=pods), BEGUN)
    view, now = planned(budget, at=BEGUN, pods=pods), BEGUN
    for _ in range(59):
        fleet.renew(60)
        now += timedelta(minutes=1)
        assert budget.spec is not None
        [limit] = outside_limits(budget, budget.spec)
        scope = ChargeScope(key=f"team-a/{limit.name}", limit=limit)
        for member in members:
            while isinstance(
                reserved := fleet.reserve(member, (scope,), 3_333_333, 1), ChargeReservation
            ):
                fleet.settle(member, reserved, reserved.nanos)
        charges = merged_limits(
            *(reported_charges(each.charges.answered(), each.charges.needs()) for each in members)
        )
        view = planned(budget, charges, now, pods=pods)
        budget = recorded(view, now)
    [window] = view.state.current_windows
    providers = sum(fleet.charged.values())
    nodes = view.meter.spent(window.period)
    assert (window.spent, window.outside) == (nodes + providers, providers)
    assert 0 < window.limit - window.allocated < window.limit * 2 // 100
    [row] = budget.status.outside
    assert row.amount == row.used
    [limit_status] = budget.status.limits
    assert limit_status.spent == from_nanos(nodes + providers), "nothing counts twice"


async def test_a_key_with_a_budget_of_its_own_lets_nothing_be_lent_beyond_it() -> None:
    """A call that may cost all of the tenant's limit is refused before anything asks for that."""
    budget = KeyBudget(amount=Decimal("0.000001"), window="Month")
    sender = Identity(tenant=TENANT, key="ci", budget=budget)
    async with outside(10**12, lent=(a_cost_limit(1),)) as gateway:
        shape = RequestShape(model="chat", input_tokens=1, max_output_tokens=100, stream=True)
        chosen = a_chosen_request(sender, an_outside_model(), shape)
        with pytest.raises(RequestError) as caught:
            await gateway.admission.reservations.reserve(chosen)
        assert caught.value.reason is RequestReason.BUDGET_EXCEEDED
        needs = gateway.admission.reservations.charges.lending.needs()
        assert not [key for key in needs if is_outside(key.scope)]
