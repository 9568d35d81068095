"""What a budget does by the spent share of its limits, and what takes it back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from tessera.api.batch_reasons import BatchRunning
from tessera.api.budget_reasons import Enforcing, LimitAction, WithinBudget
from tessera.api.reasons import ScalingReason
from tessera.api.tenant_budget import BudgetAction, BudgetRaise, TenantBudgetStatus
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.money import NANO
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.snapshot import Budget
from tessera.domain.status.budget import budget_status
from tessera.domain.status.events import event_notes
from tests.batch_builders import NIGHT
from tests.builders import NO_MEMORY, NOW, a_budget, a_service, a_snapshot, plan_of
from tests.domain.batch.test_batches import a_fleet, checked_batch
from tests.domain.budget.test_budgets import CHAT, scaled

MONTH = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
CHARGE = {"window": "Month", "amount": "100", "basis": "Charge"}
EACH_KEY = {**CHARGE, "amount": "10", "for": {"key": "*"}}
ALL = [
    {"at": 80, "action": "BatchesOnSpot"},
    {"at": 90, "action": "HoldBatches"},
    {"at": 50, "action": "Notify"},
    {"at": 90, "action": "CapScaleUp"},
    {"at": 95, "action": "NoNewServices"},
]


def charged(*settled: float, name: str = "charge-month", need: float = 0, **members: float) -> Any:
    """Return what gateways report of one limit, in units."""
    accounts = [AccountCharge(round(each * NANO), need=round(need * NANO)) for each in settled]
    accounts += [AccountCharge(round(each * NANO), 0, key) for key, each in members.items()]
    charges = LimitCharges(start=MONTH, members=len(members), accounts=tuple(accounts))
    return {LimitId("team-a", name): charges}


def judged(budget: Budget, charges: Any, at: datetime = NOW, **fields: Any) -> BudgetView:
    snapshot = a_snapshot(a_service(), at=at, budgets=(budget,), charges=charges, **fields)
    [view] = plan_of(snapshot).budgets
    return view


def recorded(view: BudgetView, at: datetime = NOW) -> Budget:
    """Return the budget with the status that is written."""
    return replace(view.budget, status=budget_status(view, at))


def reasons(old: Budget, new: Budget) -> list[str]:
    notes = event_notes(old.status, new.status)
    return [note.reason for note in notes if note.action == "Limit"]


@pytest.mark.parametrize(
    ("settled", "reached", "actions"),
    [
        (0, 0, []),
        (49.999999999, 0, []),
        (50, 50, []),
        (80, 80, []),
        (90, 90, ["HoldBatches"]),
        (99.999999999, 95, ["HoldBatches"]),
        (100, 95, ["HoldBatches", "Refuse"]),
        (130, 95, ["HoldBatches", "Refuse"]),
    ],
)
def test_a_limit_of_charges_holds_batches_and_then_refuses(
    settled: float, reached: int, actions: list[str]
) -> None:
    [limit] = judged(a_budget(limits=[CHARGE], actions=ALL), charged(settled)).limits
    assert (limit.reached, list(limit.actions)) == (reached, actions)


@pytest.mark.parametrize(
    ("amount", "actions"),
    [
        ("100", []),
        ("0.32", ["BatchesOnSpot"]),
        ("0.29", ["BatchesOnSpot", "HoldBatches", "CapScaleUp"]),
        ("0.26", ["BatchesOnSpot", "HoldBatches", "CapScaleUp", "NoNewServices"]),
    ],
)
def test_a_limit_of_cost_does_them_in_the_order_of_their_thresholds(
    amount: str, actions: list[str]
) -> None:
    """A replica of a slice costs 0.268 in the hour before."""
    before = NOW - timedelta(hours=1)
    limits = [{"window": "Day", "amount": amount}]
    snapshot = replace(scaled(1), budgets=(a_budget(limits=limits, actions=ALL),))
    pods = tuple(replace(pod, bound=before) for pod in snapshot.pods)
    [view] = plan_of(replace(snapshot, pods=pods)).budgets
    assert list(view.limits[0].actions) == actions


@pytest.mark.parametrize("fields", [{}, {"for": {"key": "ci"}}])
def test_limits_of_all_requests_leave_routes_their_cheapest_target(fields: dict[str, Any]) -> None:
    actions = [{"at": 70, "action": "CheaperTargets"}]
    budget = a_budget(limits=[{**CHARGE, **fields}], actions=actions)
    assert budget.spec is not None
    name = budget.spec.name_of(budget.spec.limits[0])
    [below] = judged(budget, charged(69.9, name=name)).limits
    view = judged(budget, charged(70, name=name))
    expected = [] if fields else ["CheaperTargets"]
    assert (list(below.actions), list(view.limits[0].actions)) == ([], expected)
    # It is the gateways' alone: services and batches go on.
    assert not view.state.actions


def test_a_limit_of_cost_leaves_routes_their_cheapest_target() -> None:
    actions = [{"at": 1, "action": "CheaperTargets"}]
    limits = [{"window": "Day", "amount": "0"}]
    view = judged(a_budget(limits=limits, actions=actions), None)
    assert list(view.limits[0].actions) == ["CheaperTargets"]


def test_without_actions_a_budget_notifies_alone() -> None:
    before = a_budget(limits=[CHARGE])
    expected = [(30, []), (50, ["Notify"]), (79, []), (80, ["Notify"]), (100, ["Refuse"])]
    for settled, events in expected:
        after = recorded(judged(before, charged(settled)))
        assert reasons(before, after) == events
        assert not set(after.status.limits[0].actions) - {"Refuse"}
        before = after


def test_an_action_has_one_event_when_it_begins_and_one_when_it_ends() -> None:
    start = a_budget(limits=[CHARGE], actions=ALL)
    acting = recorded(judged(start, charged(92)))
    assert reasons(start, acting) == ["HoldBatches"]
    assert reasons(acting, recorded(judged(acting, charged(93)))) == []
    # A correction takes it back.
    corrected = recorded(judged(acting, charged(70)))
    assert reasons(acting, corrected) == ["Resume"]
    [note] = [each for each in event_notes(start.status, acting.status) if each.action == "Limit"]
    assert note.message == (
        "charge-month: 90 % reached, 92 of 100 spent until 2026-12-01T00:00Z: batches are held"
    )
    assert note.is_warning


def test_a_raise_and_the_next_window_take_an_action_back() -> None:
    acting = recorded(judged(a_budget(limits=[CHARGE], actions=ALL), charged(92)))
    fields = {"limit": "charge-month", "by": "50", "until": NOW + timedelta(1), "reason": "x"}
    raised = replace(acting, raises=(BudgetRaise.model_validate(fields),))
    # Also while no gateway reports.
    for charges in (charged(92), None):
        view = judged(raised, charges)
        assert (view.limits[0].actions, view.limits[0].limit) == ((), 150 * NANO)
    december = datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC)
    # What gateways still tell of the last window does not count.
    for charges in (charged(92), None):
        assert judged(acting, charges, december).limits[0].spent == 0


def test_without_a_report_the_last_figure_stands_and_the_condition_says_so() -> None:
    budget = a_budget(limits=[CHARGE, {"window": "Month", "amount": "5"}], actions=ALL)
    view = judged(budget, charged(92))
    assert view.enforcing.reason is Enforcing.CURRENT_SPEC
    acting = recorded(view)
    unknown: tuple[Any, Any] = (None, {})
    for charges in unknown:
        view = judged(acting, charges)
        [charge, _] = view.limits
        assert (charge.spent, charge.actions) == (92 * NANO, ("HoldBatches",))
    assert judged(acting, None).enforcing.reason is Enforcing.NO_GATEWAY
    assert not judged(acting, None).enforcing.reason.is_true
    assert judged(acting, {}).enforcing.reason is Enforcing.CURRENT_SPEC
    # A budget without such a limit needs no gateway.
    assert judged(a_budget(), None).enforcing.reason is Enforcing.CURRENT_SPEC


@pytest.mark.parametrize("has_replicas", [False, True])
@pytest.mark.parametrize("silent", [None, {}])
def test_the_status_has_what_was_charged_within_two_minutes_after_traffic_ended(
    silent: Any, has_replicas: bool
) -> None:
    """Whole cycles, each a second, of which the last report comes within a minute of a record."""
    fleet = scaled(1 if has_replicas else 0)
    budget, memory = a_budget(limits=[CHARGE, EACH_KEY]), NO_MEMORY
    for second in range(150):
        at = NOW + timedelta(seconds=second)
        spent = min(second, 20) / 10
        reports = {**charged(spent), **charged(name="charge-month-key", ci=spent)}
        charges = reports if second < 25 else silent
        snapshot = replace(fleet, at=at, budgets=(budget,), charges=charges)
        decision = plan_of(snapshot, memory=memory)
        memory = memory.after(decision)
        [view] = decision.budgets
        budget = recorded(view, at)
    [whole, each] = budget.status.limits
    assert (str(whole.spent), str(each.spent), each.nearest[0].member) == ("2", "2", "ci")
    assert budget.status.summary.startswith("2.00 of 10.00 USD")


def test_of_a_limit_for_each_key_the_nearest_are_named_and_only_events_follow() -> None:
    budget = a_budget(limits=[EACH_KEY], actions=ALL)
    view = judged(budget, charged(name="charge-month-key", ci=9.5, dev=2))
    [limit] = view.limits
    assert (limit.members, limit.spent, limit.reached) == (2, 95 * NANO // 10, 95)
    assert limit.actions == ()
    first = recorded(view)
    [status] = first.status.limits
    assert [(each.member, str(each.spent)) for each in status.nearest] == [
        ("ci", "9.5"),
        ("dev", "2"),
    ]
    [note] = [each for each in event_notes(budget.status, first.status) if each.action == "Limit"]
    assert "charge-month-key of ci: 95 % reached" in note.message
    # A key that gateways forgot stays until its window ends.
    [limit] = judged(first, charged(name="charge-month-key", other=3)).limits
    assert [each.member for each in limit.accounts] == ["ci", "other", "dev"]


def test_a_spent_limit_of_charges_exhausts_the_budget() -> None:
    budget = a_budget(limits=[CHARGE])
    for settled, reason in (
        (79, WithinBudget.WITHIN_LIMITS),
        (80, WithinBudget.NEAR_LIMIT),
        (100, WithinBudget.BUDGET_EXHAUSTED),
    ):
        view = judged(budget, charged(settled))
        assert view.within_budget.reason is reason
    assert view.within_budget.message == (
        "charge-month: 100.00 of 100.00 USD (100%) spent until 2026-12-01T00:00Z"
    )
    assert recorded(view).status.summary == "100.00 of 100.00 USD charge-month (100%)"


def test_a_limit_that_has_less_left_than_any_request_needs_is_exhausted() -> None:
    """Until a raise is enough for a request; also where the status alone is known."""
    budget = a_budget(limits=[CHARGE, {**CHARGE, "window": "Day", "amount": "1000"}])
    for need, reason in (
        (0, WithinBudget.NEAR_LIMIT),
        (0.5, WithinBudget.NEAR_LIMIT),
        (0.500000001, WithinBudget.BUDGET_EXHAUSTED),
    ):
        view = judged(budget, charged(99.5, need=need))
        assert view.within_budget.reason is reason
        assert ("Refuse" in view.limits[0].actions) is (reason is WithinBudget.BUDGET_EXHAUSTED)
    assert view.within_budget.message == (
        "charge-month: 99.50 of 100.00 USD (100%) spent until 2026-12-01T00:00Z, and no request "
        "needs less than 0.500000001 USD"
    )
    exhausted = recorded(view)
    assert judged(exhausted, None).within_budget.reason is WithinBudget.BUDGET_EXHAUSTED
    raised = {"limit": "charge-month", "by": "1", "until": NOW + timedelta(1), "reason": "x"}
    raised_budget = replace(exhausted, raises=(BudgetRaise.model_validate(raised),))
    assert judged(raised_budget, None).within_budget.reason is WithinBudget.NEAR_LIMIT
    # Rows of batches may need less.
    assert batch_plan(budget, charged(99.5, need=1)).attempt is not None


def test_a_limit_lowered_below_what_is_spent_shows_both() -> None:
    lowered = a_budget(limits=[{**CHARGE, "amount": "60"}])
    [limit] = recorded(judged(lowered, charged(92))).status.limits
    assert (str(limit.limit), str(limit.spent), list(limit.actions)) == ("60", "92", ["Refuse"])


def with_spent(spent: str, **fields: Any) -> Budget:
    """Build a budget whose record has so much of a Month limit of 100."""
    window = {
        "window": "Month",
        "start": "2026-11-01T00:00:00Z",
        "end": "2026-12-01T00:00:00Z",
        **dict.fromkeys(("committed", "forecast", "maxOverspend"), "0"),
        "limit": "100",
        "spent": spent,
    }
    spend = {"asOf": NOW, "windows": [window]}
    status = TenantBudgetStatus.model_validate({"spend": spend})
    limits = [{"window": "Month", "amount": "100"}]
    return a_budget(limits=limits, status=status, **fields)


def test_a_capped_service_keeps_what_runs() -> None:
    snapshot = scaled(2, minReplicas=0)
    budget = with_spent("91", actions=[{"at": 90, "action": "CapScaleUp"}])
    scale = plan_of(replace(snapshot, budgets=(budget,))).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (2, ScalingReason.BUDGET_EXHAUSTED)
    assert scale.message == (
        "TenantBudget/team-a: 90 % of cost-month are spent, so no replica beyond minReplicas is "
        "added. Wait for the next month, or raise it: kubectl tessera budget raise team-a "
        "cost-month."
    )
    free = replace(snapshot, budgets=(with_spent("91"),))
    assert plan_of(free).service_plans[CHAT].scale.replicas == 6


def test_a_capped_service_gets_its_minimum() -> None:
    actions = [{"at": 90, "action": "CapScaleUp"}]
    limits = [{"window": "Month", "amount": "1000"}]
    budget = with_spent("950", actions=actions)
    assert budget.spec is not None
    spec = type(budget.spec).model_validate({**budget.spec.model_dump(), "limits": limits})
    snapshot = replace(scaled(1, minReplicas=0), budgets=(replace(budget, spec=spec),))
    assert plan_of(snapshot).service_plans[CHAT].scale.replicas == 1


def batch_plan(budget: Budget, charges: Any = None, policy: str = "Preferred") -> Any:
    """Return the plan of a batch that is behind schedule, with spot and on-demand pools."""
    late = replace(checked_batch(), created=NOW - timedelta(hours=23, minutes=59))
    assert late.spec is not None
    spot = late.spec.spot.model_copy(update={"policy": policy})
    batch = replace(late, spec=late.spec.model_copy(update={"spot": spot}))
    return plan_of(a_fleet(batches=(batch,), budgets=(budget,), charges=charges)).batches[NIGHT]


def test_a_budget_of_charges_holds_the_batches_of_its_tenant() -> None:
    budget = a_budget(limits=[CHARGE], actions=ALL)
    assert batch_plan(budget, charged(89)).attempt is not None
    acting = batch_plan(budget, charged(90))
    assert (acting.attempt, acting.running.reason) == (None, BatchRunning.BUDGET_EXHAUSTED)
    assert "90 % of charge-month are spent, so batches are held" in acting.running.message


def test_batches_go_to_spot_alone_also_when_they_are_late() -> None:
    actions = [{"at": 80, "action": "BatchesOnSpot"}]
    late = batch_plan(with_spent("79", actions=actions))
    assert late.attempt.tier == "OnDemand"
    on_spot = batch_plan(with_spent("80", actions=actions))
    assert on_spot.attempt.tier == "Spot"
    never = batch_plan(with_spent("80", actions=actions), policy="Never")
    assert never.attempt is None
    assert "batches run on spot capacity alone" in never.running.message


def test_the_words_of_the_spec_are_reasons() -> None:
    assert {LimitAction(word) for word in get_args(BudgetAction.model_fields["action"].annotation)}


def test_a_limit_of_charges_that_is_used_up_holds_batches_and_one_of_a_part_does_not() -> None:
    whole, part = a_budget(limits=[CHARGE]), a_budget(limits=[{**CHARGE, "for": {"key": "ci"}}])
    refused = batch_plan(whole, charged(100))
    assert (refused.attempt, refused.running.reason) == (None, BatchRunning.BUDGET_EXHAUSTED)
    name = part.spec.name_of(part.spec.limits[0]) if part.spec is not None else ""
    assert batch_plan(part, charged(100, name=name)).attempt is not None


def test_attempts_pay_for_rows_where_their_tenant_has_limits_of_charges() -> None:
    assert batch_plan(a_budget(limits=[CHARGE])).create.charged
    assert not batch_plan(a_budget()).create.charged
