"""Raises of limits: they hold until their time, and end by themselves."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tessera.api.tenant_budget import BudgetRaise, TenantBudgetSpec
from tessera.domain.budget.raises import amount_raises, current_raises, limit_at, raised
from tessera.domain.money import NANO
from tessera.domain.observed.snapshot import Budget
from tessera.domain.status.budget import budget_status
from tests.builders import NOW, a_budget, a_service, a_snapshot, plan_of

HOUR = timedelta(hours=1)


def a_raise(limit: str = "cost-month", by: str = "50", until: datetime = NOW + HOUR) -> BudgetRaise:
    fields = {"limit": limit, "by": by, "until": until, "reason": "INC-8"}
    return BudgetRaise.model_validate(fields)


def a_spec(**fields: object) -> TenantBudgetSpec:
    limits = [
        {"window": "Month", "amount": "100"},
        {"window": "Month", "amount": "20", "basis": "Charge", "for": {"key": "*"}},
    ]
    spec = {"owner": "ann", "tenant": {"namespaces": ["team-a"]}, "limits": limits}
    return TenantBudgetSpec.model_validate({**spec, **fields})


@pytest.mark.parametrize(("seconds", "units"), [(0, 180), (1799, 180), (1800, 150), (3600, 100)])
def test_raises_of_a_limit_add_up_and_each_ends_by_itself(seconds: int, units: int) -> None:
    spec = a_spec()
    raises = (a_raise(), a_raise(by="30", until=NOW + HOUR / 2), a_raise("charge-month-key"))
    at = NOW + timedelta(seconds=seconds)
    cost, each_key = spec.limits
    # The shorter one is that of 30.
    assert limit_at(spec, cost, raises, at) == units * NANO
    assert limit_at(spec, each_key, raises, at) == (70 if seconds < 3600 else 20) * NANO


def test_a_gateway_reads_a_raise_as_the_operator_does() -> None:
    spec, raises = a_spec(), (a_raise("charge-month-key", by="0.000000001"),)
    _, each_key = spec.limits
    amounts = amount_raises(spec, each_key, raises)
    for at in (NOW, NOW + HOUR - timedelta(microseconds=1), NOW + HOUR):
        expected = limit_at(spec, each_key, raises, at)
        assert raised(20 * NANO, amounts, at.timestamp()) == expected
    assert raised(20 * NANO, amounts, NOW.timestamp()) == 20 * NANO + 1


def test_raises_that_ended_or_name_no_limit_are_not_in_effect() -> None:
    lasting = a_raise()
    raises = (a_raise("cost-day"), a_raise(until=NOW), lasting)
    assert current_raises(a_spec(), raises, NOW) == (lasting,)


def test_a_raised_limit_pays_for_more_until_the_raise_ends() -> None:
    budget = replace(
        a_budget(amount="0.1"), raises=(a_raise("cost-hour", by="5", until=NOW + HOUR / 4),)
    )
    snapshot = a_snapshot(a_service(), budgets=(budget,))
    [view] = plan_of(snapshot).budgets
    [window] = view.state.current_windows
    assert window.limit == 51 * NANO // 10
    assert "cost-hour raised by 5 USD until 2026-11-20T12:15Z: INC-8" in view.within_budget.message
    # The next hour begins without it.
    [next_window] = view.state.next_windows
    assert next_window.limit == NANO // 10
    status = budget_status(view, NOW)
    assert status.raises == budget.raises

    [later] = plan_of(replace(snapshot, at=NOW + HOUR / 4)).budgets
    assert later.state.current_windows[0].limit == NANO // 10
    assert later.raises == ()
    written = replace(later, budget=replace(budget, status=status))
    assert budget_status(written, NOW + HOUR / 4).raises == ()


def test_a_raise_does_not_open_a_window_whose_spend_is_unknown() -> None:
    budget: Budget = replace(a_budget(), raises=(a_raise("cost-hour"),), record_lost=True)
    [view] = plan_of(a_snapshot(a_service(), budgets=(budget,))).budgets
    assert view.state.current_windows[0].limit == 0
