"""A limit of charges has nothing left for a row: the batch holds, and no node waits for money."""

from dataclasses import replace
from typing import Any

from tessera.api.tenant_budget import BudgetRaise
from tessera.domain.batch.batches import situation_of
from tests.batch_builders import (
    a_batch_pod,
    a_report,
    later,
    looking_again,
    on_attempt,
    plan_and_carry_out,
    plan_batch,
)
from tests.builders import NOW, a_budget, a_snapshot

SHORTAGE = "TenantBudget/team-a limit month: 0.000000 USD of 100.000000 USD left"


def _ended(number: int, state: str = "budgetExceeded") -> Any:
    report = a_report(number, state, completed=400, message=SHORTAGE)
    return a_batch_pod(number, exit_code=1, ended=NOW, report=report)


def test_a_refused_batch_holds_without_a_node_for_as_long_as_it_takes() -> None:
    situation = plan_and_carry_out(on_attempt(pods=(_ended(1),)))
    status = situation.batch.status
    assert (status.state, status.reason, status.done) == (
        "in_progress",
        "BudgetExhausted",
        "400/1000",
    )
    assert SHORTAGE in status.message
    for number in range(2, 40):
        situation = looking_again(situation, number)
        assert situation.batch.status.reason == "BudgetExhausted"
        situation = plan_and_carry_out(later(situation, 5, pods=(_ended(number),)))
        assert situation.batch.status.reason == "BudgetExhausted"
    assert situation.batch.status.state == "in_progress"
    assert situation.at.hour >= NOW.hour + 3, "the limit for failures is 2 hours"


def test_once_there_is_money_the_batch_goes_on_at_once_and_without_a_failure() -> None:
    situation = looking_again(plan_and_carry_out(on_attempt(pods=(_ended(1),))), 2)
    plan = plan_batch(later(situation, 5, pods=(_ended(2, "rowsMissing"),)))
    assert plan.create is not None
    assert plan.create.choice is not None
    assert plan.attempt is not None
    assert (plan.attempt.number, plan.attempt.consecutive_failures) == (3, 0)
    assert (plan.attempt.budget_exceeded, plan.running.reason) == (False, "Starting")


def test_a_batch_asks_again_at_once_when_the_limits_of_its_budget_change() -> None:
    waiting = plan_and_carry_out(on_attempt(pods=(_ended(1),), budget="before"))
    for budget, starts in (("before", False), ("after", True)):
        plan = plan_batch(later(waiting, 1, budget=budget))
        assert (plan.create is not None) is starts
    assert plan.create is not None
    assert plan.create.choice is None, "no GPU before a limit has money for a row"


def test_raises_and_limits_tell_the_budgets_of_a_batch_apart() -> None:
    raised = {"limit": "cost-hour", "by": "90", "until": NOW, "reason": "demo"}
    budgets = (
        (),
        (a_budget(),),
        (a_budget(amount="20.00"),),
        (replace(a_budget(), raises=(BudgetRaise.model_validate(raised),)),),
    )
    batch = on_attempt().batch
    snapshots = [a_snapshot(batches=(batch,), budgets=each) for each in budgets]
    digests = {situation_of(each, batch.ref).budget for each in snapshots}
    assert len(digests) == len(budgets)
    again = a_snapshot(batches=(batch,), budgets=(replace(a_budget(), generation=9),))
    assert situation_of(again, batch.ref).budget in digests
