"""Money limits: what is counted, what is granted, and what is said."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from tessera.api.budget_reasons import BudgetAccepted, Enforcing, WithinBudget
from tessera.api.reasons import Ready, ScalingReason
from tessera.api.tenant_budget import TenantBudgetSpec, TenantBudgetStatus
from tessera.domain.budget.periods import next_period, period_at
from tessera.domain.config import Config
from tessera.domain.explain.budget import explain_budget
from tessera.domain.money import from_nanos
from tessera.domain.observed.snapshot import Budget, Pod, ProbeResult, Ref, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.status.budget import budget_status
from tessera.domain.status.service import service_status
from tests.builders import (
    H100,
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)

SLICE = {"nvidia.com/mig-1g.10gb": 1}
CHAT = Ref("team-a", "chat")
# A 1g.10gb of an A100 at 2.00 an hour costs 0.2679 an hour.
WEIGHT = (Decimal(1) / 7 + Decimal(1) / 8) / 2


def running(count: int, since: datetime = NOW, service: str = "chat") -> tuple[Pod, ...]:
    return tuple(
        a_pod(f"{service}-{index}", service, node="a100-0", devices=SLICE, bound=since)
        for index in range(count)
    )


def scaled(replicas: int, when: datetime = NOW, **scaling: int) -> Snapshot:
    """Build a service with `minReplicas` 1, so many replicas, and a queue that needs six."""
    spec = a_spec(
        scaling={
            "policy": "QueueAndActivity",
            "minReplicas": 1,
            "maxReplicas": 6,
            "scaleUp": {"stabilizationWindow": "0s", "pods": 9},
        }
        | scaling
    )
    pods = running(replicas)
    return a_snapshot(
        a_service(spec=spec),
        at=when,
        pods=pods,
        workloads=(a_workload(replicas=replicas),),
        readings=readings_of(pods, at=when, waiting=300 / max(1, replicas), activity=0.9),
    )


def budget_in(decision: Plan, name: str = "team-a") -> Budget:
    """The budget with the status that this plan gives it."""
    view = next(view for view in decision.budgets if view.budget.name == name)
    return replace(view.budget, status=budget_status(view, NOW))


def reason_and_message(budget: Budget) -> tuple[str, str]:
    condition = {condition.type: condition for condition in budget.status.conditions}[
        "WithinBudget"
    ]
    return condition.reason, condition.message


def spent(budget: Budget) -> Decimal:
    assert budget.status.spend is not None
    return budget.status.spend.windows[0].spent


def test_a_tenant_without_a_budget_is_shown_as_such() -> None:
    decision = plan_of(scaled(1))
    assert decision.budgets_by_namespace == {}
    assert decision.service_plans[CHAT].scale.replicas == 6


def test_a_budget_with_room_changes_nothing() -> None:
    decision = plan_of(replace(scaled(1), budgets=(a_budget(amount="10"),)))
    assert decision.service_plans[CHAT].scale.replicas == 6
    assert reason_and_message(budget_in(decision))[0] == "WithinLimits"


def test_an_exhausted_budget_caps_the_service_and_says_so() -> None:
    """`minReplicas` takes 0.268 of the hour; ten minutes of one more replica take 0.045."""
    decision = plan_of(replace(scaled(1), budgets=(a_budget(amount="0.37"),)))
    scale = decision.service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (3, ScalingReason.BUDGET_EXHAUSTED)
    for fact in ("hour limit 0.3700 USD until 2026-11-20T13:00Z", "raise spec.limits[0].amount"):
        assert fact in scale.message
    reason, message = reason_and_message(budget_in(decision))
    assert reason == "BudgetExhausted"
    assert message.startswith(scale.message)


def test_a_bigger_budget_lifts_the_cap_in_the_next_cycle() -> None:
    snapshot = replace(scaled(1), budgets=(a_budget(amount="0.37"),))
    decision = plan_of(snapshot)
    later = replace(snapshot, at=at(1), budgets=(a_budget(amount="0.42"),))
    memory = PlanMemory(scaling_history=decision.scaling_history)
    assert plan_of(later, memory=memory).service_plans[CHAT].scale.replicas == 4


def test_a_new_window_lifts_the_cap() -> None:
    budget = a_budget(amount="0.37")
    late = plan_of(replace(scaled(3, at(3500)), budgets=(budget,)))
    assert late.service_plans[CHAT].scale.replicas == 1
    rolled = plan_of(
        replace(scaled(1, at(3601)), budgets=(budget,)), memory=PlanMemory(meters=late.meters)
    )
    assert rolled.service_plans[CHAT].scale.replicas == 3


def test_what_runs_goes_on_before_anything_new_starts() -> None:
    """`busy` comes first by name; `chat` already has its second replica."""
    spec = a_spec(
        scaling={
            "policy": "QueueAndActivity",
            "minReplicas": 1,
            "maxReplicas": 2,
            "scaleUp": {"stabilizationWindow": "0s"},
        }
    )
    pods = (*running(1, service="busy"), *running(2))
    snapshot = a_snapshot(
        a_service("busy", spec),
        a_service("chat", spec),
        pods=pods,
        workloads=(a_workload(1, "busy"), a_workload(2)),
        readings=readings_of(pods, waiting=90.0, activity=0.9),
        budgets=(a_budget(amount="0.60"),),
    )
    decision = plan_of(snapshot)
    assert decision.service_plans[CHAT].scale.replicas == 2
    assert (
        decision.service_plans[Ref("team-a", "busy")].scale.reason == ScalingReason.BUDGET_EXHAUSTED
    )


def test_a_replica_that_cannot_be_paid_any_more_leaves_by_a_drain() -> None:
    """One hour at 3 slices is 0.80; with 0.45 the third cannot stay, and `minReplicas` stays."""
    snapshot = replace(scaled(3, at(1800)), budgets=(a_budget(amount="0.45"),))
    service_plan = plan_of(snapshot).service_plans[CHAT]
    assert (service_plan.scale.replicas, service_plan.scale.reason) == (
        1,
        ScalingReason.BUDGET_EXHAUSTED,
    )
    assert service_plan.drain.replicas == 3
    assert len(service_plan.drain.draining) == 2


def test_a_number_set_by_the_user_is_capped_too() -> None:
    snapshot = a_snapshot(
        a_service(spec=a_spec(replicas=5)),
        pods=running(1),
        workloads=(a_workload(1),),
        budgets=(a_budget(amount="0.37"),),
    )
    scale = plan_of(snapshot).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (3, ScalingReason.BUDGET_EXHAUSTED)


def test_min_replicas_above_the_limit_are_reported_at_once_and_not_reduced() -> None:
    snapshot = scaled(2, minReplicas=2, maxReplicas=2)
    decision = plan_of(replace(snapshot, budgets=(a_budget(amount="0.30"),)))
    assert decision.service_plans[CHAT].scale.replicas == 2
    budget = budget_in(decision)
    reason, message = reason_and_message(budget)
    assert reason == "MinReplicasExceedBudget"
    assert "spec.limits[0].amount" in message
    assert "0.5357 USD" in message
    assert "0.3000 USD" in message
    assert budget.status.spend is not None
    assert budget.status.spend.windows[0].max_overspend == Decimal("0.235714286")


def test_a_new_service_that_may_not_be_paid_says_so_and_is_not_scaled_to_zero() -> None:
    snapshot = a_snapshot(a_service(), budgets=(a_budget(amount="0"),))
    decision = plan_of(snapshot)
    view = decision.budgets_by_namespace["team-a"]
    status = service_status(snapshot, decision.service_plans[CHAT], view, None)
    reasons = {condition.type: condition.reason for condition in status.conditions}
    assert reasons["Ready"] == Ready.BUDGET_EXHAUSTED
    assert status.scaling is not None
    assert status.scaling.reason == ScalingReason.BUDGET_EXHAUSTED


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [(None, ScalingReason.BUDGET_EXHAUSTED), ("0.1", ScalingReason.GPU_QUOTA_EXCEEDED)],
)
def test_a_service_is_ready_while_replicas_of_a_former_pool_stay_and_answer(
    gpus: str | None, reason: ScalingReason
) -> None:
    limits = {"amount": "100"} if gpus else {"amount": "0"}
    budget = a_budget(**limits, **({"gpus": gpus} if gpus else {}))
    old = "renamed-1g-10gb"
    snapshot = a_snapshot(
        a_service(spec=a_spec(scaling={"minReplicas": 2})),
        pods=tuple(replace(pod, variant=old) for pod in running(2)),
        workloads=(a_workload(2, variant=old),),
        budgets=(budget,),
        probe_results={CHAT: ProbeResult(at=NOW)},
    )
    decision = plan_of(snapshot)
    view = decision.budgets_by_namespace["team-a"]
    status = service_status(snapshot, decision.service_plans[CHAT], view, None)
    assert status.scaling is not None
    assert (status.scaling.reason, status.ready_replicas) == (reason, 2)
    reasons = {condition.type: condition.reason for condition in status.conditions}
    assert reasons["Ready"] == Ready.COMPLETION_SUCCEEDED


def test_all_limits_hold_at_once() -> None:
    limits = [{"window": "Hour", "amount": "10"}, {"window": "Month", "amount": "70"}]
    decision = plan_of(replace(scaled(1), budgets=(a_budget(limits=limits),)))
    reason, message = reason_and_message(budget_in(decision))
    assert reason == "MinReplicasExceedBudget"
    assert "spec.limits[1].amount" in message


def test_limits_of_charges_do_not_limit_what_runs() -> None:
    charge = {"window": "Hour", "amount": "0", "basis": "Charge"}
    # `minReplicas` takes 16.0714 of the week, which ends on Sunday.
    capped = {"window": "Week", "amount": "16.20"}
    decision = plan_of(replace(scaled(1), budgets=(a_budget(limits=[charge, capped]),)))
    scale = decision.service_plans[CHAT].scale
    assert scale.replicas == 3
    assert "week limit 16.20 USD until 2026-11-23T00:00Z" in scale.message
    assert "raise spec.limits[1].amount" in scale.message
    spend = budget_in(decision).status.spend
    assert spend is not None
    assert [window.window for window in spend.windows] == ["Week"]


def test_a_budget_with_limits_of_charges_alone_grants_everything() -> None:
    limits = [{"window": "Hour", "amount": "0"}]
    budget = a_budget(limits=limits, basis="Charge")
    decision = plan_of(replace(scaled(1), budgets=(budget,)))
    assert decision.service_plans[CHAT].scale.replicas == 6
    reason, message = reason_and_message(budget_in(decision))
    assert reason == "BudgetExhausted"
    spent = "charge-hour: 0.00 of 0.00 USD (100%) spent until 2026-11-20T13:00Z. This ends when"
    assert message.startswith(spent)
    assert budget_in(decision).status.summary == "0.00 of 0.00 USD charge-hour (100%)"
    explained = explain_budget(scaled(1), decision, decision.service_plans[CHAT])
    assert "the limits already cover 1 more replica for 10 minutes" in explained.would_change


def test_spend_counts_from_the_bind_within_the_window_at_the_billing_weight() -> None:
    early = replace(running(1, at(-4000))[0], uid="early")
    snapshot = replace(
        a_snapshot(a_service(), at=at(1800)),
        pods=(early, *running(1, at(900))),
        budgets=(a_budget(),),
    )
    hours = Decimal("0.5") + Decimal("0.25")
    assert abs(spent(budget_in(plan_of(snapshot))) - 2 * WEIGHT * hours) < Decimal("1e-8")


def test_each_day_has_its_price() -> None:
    prices = [
        {"from": "2026-01-01", "perGPUHour": "2"},
        {"from": "2026-11-21", "perGPUHour": "4"},
    ]
    snapshot = a_snapshot(
        a_service(),
        at=datetime(2026, 11, 21, 1, tzinfo=UTC),
        pools=(a_pool(prices=prices),),
        pods=running(1, datetime(2026, 11, 20, 23, tzinfo=UTC)),
        budgets=(a_budget(window="Month", amount="1000"),),
    )
    assert abs(spent(budget_in(plan_of(snapshot))) - WEIGHT * 6) < Decimal("1e-8")


def test_a_restarted_operator_adds_the_gap_from_the_pods_times() -> None:
    """Ten minutes away: one goes on, one ended, one vanished, one is new. Exact to a second."""
    before = replace(scaled(3), at=at(60), budgets=(a_budget(),))
    recorded = budget_in(plan_of(before))
    pods = running(3)
    ended = replace(pods[1], ended=at(300), terminating=True)
    new = a_pod("chat-9", node="a100-0", devices=SLICE, bound=at(320))
    after = replace(
        before,
        at=at(660),
        budgets=(recorded,),
        pods=(pods[0], ended, new),
    )
    view = plan_of(after, memory=PlanMemory(last_seen={"team-a/chat-2": at(310)})).budgets[0]
    seconds = 660 + 300 + 310 + (660 - 320)
    true = 2 * WEIGHT * seconds / 3600
    assert view.state is not None
    assert abs(from_nanos(view.state.current_windows[0].spent) - true) < Decimal("1e-8")


def test_a_record_is_written_each_minute_before_grants_and_with_new_reasons() -> None:
    snapshot = replace(scaled(1, maxReplicas=1), budgets=(a_budget(),))
    decision = plan_of(snapshot)
    recorded = budget_in(decision)
    memory = PlanMemory(meters=decision.meters)
    quiet = replace(snapshot, at=at(30), budgets=(recorded,))
    assert budget_status(plan_of(quiet, memory=memory).budgets[0], at(30)) is recorded.status
    minute = replace(quiet, at=at(60))
    assert (
        budget_status(plan_of(minute, memory=memory).budgets[0], at(60)).spend
        != recorded.status.spend
    )
    grant = replace(scaled(1), at=at(30), budgets=(recorded,))
    written = budget_status(plan_of(grant, memory=memory).budgets[0], at(30)).spend
    assert written is not None
    assert written.as_of == at(30)


def test_a_lost_record_stops_grants_until_the_next_window_or_up_to_what_is_allowed() -> None:
    decision = plan_of(replace(scaled(1), budgets=(a_budget(),)))
    budget = budget_in(decision)
    without_spend = replace(budget, status=budget.status.model_copy(update={"spend": None}))
    unknown_spend = plan_of(replace(scaled(1), budgets=(without_spend,)))
    assert unknown_spend.service_plans[CHAT].scale.replicas == 1
    reason, message = reason_and_message(budget_in(unknown_spend))
    assert reason == "SpendUnknown"
    assert "spec.onSpendUnknown" in message
    allowing = replace(without_spend, spec=a_budget(onSpendUnknown={"allowUpTo": "0.37"}).spec)
    assert plan_of(replace(scaled(1), budgets=(allowing,))).service_plans[CHAT].scale.replicas == 3


UNUSABLE = {
    BudgetAccepted.INVALID_TIME_ZONE: a_budget(timeZone="Europe/Berln", amount="9").spec,
    BudgetAccepted.INVALID_SPEC: None,
    BudgetAccepted.OVERLAPPING: a_budget(
        amount="9", tenant={"namespaces": ["team-a", "team-b"]}
    ).spec,
    BudgetAccepted.CURRENCY_IMMUTABLE: a_budget(amount="9", currency="EUR").spec,
}


def edited(budget: Budget, spec: TenantBudgetSpec | None) -> Budget:
    return replace(budget, spec=spec, problem="spec.foo: Extra inputs are not permitted")


@pytest.mark.parametrize("reason", UNUSABLE, ids=str)
def test_the_last_accepted_spec_stays_in_force_while_a_new_one_cannot_be_used(
    reason: BudgetAccepted,
) -> None:
    other = a_budget("zone", tenant={"namespaces": ["team-b"]})
    snapshot = replace(scaled(1), budgets=(a_budget(amount="0.37"), other))
    first = plan_of(snapshot)
    assert first.service_plans[CHAT].scale.replicas == 3
    budget = edited(budget_in(first), UNUSABLE[reason])
    later = plan_of(
        replace(snapshot, budgets=(budget, budget_in(first, "zone"))),
        memory=PlanMemory(meters=first.meters),
    )
    view = later.budgets[0]
    assert later.service_plans[CHAT].scale.replicas == 3
    assert (view.accepted.reason, view.enforcing.reason) == (reason, Enforcing.LAST_ACCEPTED_SPEC)
    status = budget_in(later).status
    assert status.accepted_spec == snapshot.budgets[0].spec
    assert {condition.type: condition.status for condition in status.conditions} == {
        "Accepted": "False",
        "Enforcing": "True",
        "WithinBudget": "False",
    }


@pytest.mark.parametrize(
    ("budget", "reason", "says"),
    [
        (a_budget(timeZone="Mars/Olympus"), BudgetAccepted.INVALID_TIME_ZONE, "spec.timeZone"),
        (
            Budget(
                ref=Ref("", "team-a"),
                generation=1,
                spec=None,
                named_namespaces=("team-a",),
                problem="spec.owner: Field required",
            ),
            BudgetAccepted.INVALID_SPEC,
            "spec.owner",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, BudgetAccepted) else "",
)
def test_nothing_is_added_while_no_spec_was_ever_accepted(
    budget: Budget, reason: BudgetAccepted, says: str
) -> None:
    """What runs stays, crashed replicas come back, and reductions go on."""
    decision = plan_of(replace(scaled(2), budgets=(budget,)))
    view = decision.budgets[0]
    assert (view.accepted.reason, view.enforcing.reason, view.within_budget.reason) == (
        reason,
        Enforcing.NOT_ACCEPTED,
        WithinBudget.NOT_ACCEPTED,
    )
    assert says in view.accepted.message
    scale = decision.service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (2, ScalingReason.BUDGET_EXHAUSTED)
    crashed = replace(scaled(2), budgets=(budget,), pods=running(1))
    assert plan_of(crashed).service_plans[CHAT].scale.replicas == 2
    fewer = a_service(spec=a_spec(replicas=1))
    reduced = replace(scaled(2), services=(fewer,), budgets=(budget,))
    assert plan_of(reduced).service_plans[CHAT].scale.replicas == 1


def test_a_namespace_that_only_an_unusable_edit_names_gets_nothing_new() -> None:
    zone = a_budget("zone", tenant={"namespaces": ["team-b"]})
    accepted = budget_in(plan_of(replace(scaled(1), budgets=(zone,))), "zone")
    spec = a_budget("zone", timeZone="No/Where", tenant={"namespaces": ["team-a"]}).spec
    decision = plan_of(replace(scaled(1), budgets=(edited(accepted, spec),)))
    assert decision.budgets[0].namespaces == ("team-b",)
    assert decision.service_plans[CHAT].scale.replicas == 1
    assert decision.budgets_by_namespace["team-a"].within_budget.reason == WithinBudget.NOT_ACCEPTED


def test_a_namespace_without_a_budget_gets_nothing_new_where_one_is_required() -> None:
    snapshot = replace(scaled(1), budgets=(a_budget("team-b"),))
    decision = plan_of(snapshot, Config(require_budget=True))
    scale = decision.service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (1, ScalingReason.BUDGET_EXHAUSTED)
    view = decision.budgets_by_namespace["team-a"]
    status = service_status(snapshot, decision.service_plans[CHAT], view, None)
    assert status.tenant is not None
    assert (status.tenant.budget, status.tenant.reason) == (None, WithinBudget.BUDGET_REQUIRED)
    assert [budget.budget.name for budget in decision.budgets] == ["team-b"]
    assert plan_of(snapshot).service_plans[CHAT].scale.replicas == 6


def test_an_established_budget_keeps_its_namespace_from_a_newcomer_with_an_earlier_name() -> None:
    first = plan_of(replace(scaled(1), budgets=(replace(a_budget(amount="0.37"), created=NOW),)))
    newcomer = replace(
        a_budget("a", amount="90", tenant={"namespaces": ["team-a"]}), created=at(60)
    )
    for known in (budget_in(first), replace(budget_in(first), status=TenantBudgetStatus())):
        decision = plan_of(replace(scaled(1), budgets=(newcomer, known)))
        accepted = {view.budget.name: view.accepted.reason for view in decision.budgets}
        assert accepted == {"a": BudgetAccepted.OVERLAPPING, "team-a": BudgetAccepted.VALID}
        assert decision.service_plans[CHAT].scale.replicas == 3


def test_an_older_budget_cannot_take_over_a_namespace_by_an_edit() -> None:
    old = replace(a_budget("old", amount="90"), created=at(-3600))
    budgets = (old, replace(a_budget(amount="0.37"), created=NOW))
    first = plan_of(replace(scaled(1), budgets=budgets))
    spec = a_budget("old", amount="90", tenant={"namespaces": ["old", "team-a"]}).spec
    grasping = replace(budget_in(first, "old"), spec=spec)
    decision = plan_of(replace(scaled(1), budgets=(grasping, budget_in(first))))
    assert decision.budgets[0].accepted.reason == BudgetAccepted.OVERLAPPING
    assert decision.budgets_by_namespace["team-a"].budget.name == "team-a"
    assert decision.service_plans[CHAT].scale.replicas == 3


def test_the_currency_may_change_as_long_as_nothing_was_spent() -> None:
    quiet = a_snapshot(budgets=(a_budget(),))
    budget = replace(budget_in(plan_of(quiet)), spec=a_budget(currency="EUR").spec)
    assert plan_of(replace(quiet, budgets=(budget,))).budgets[0].accepted.reason.is_true


def test_nothing_is_added_in_a_currency_that_the_budget_does_not_have() -> None:
    decision = plan_of(replace(scaled(2), budgets=(a_budget(currency="EUR"),)))
    scale = decision.service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (2, ScalingReason.BUDGET_EXHAUSTED)
    assert "spec.currency is EUR" in scale.message
    assert "team-a/chat is priced in USD" in scale.message
    reason, message = reason_and_message(budget_in(decision))
    assert reason == "CurrencyMismatch"
    assert "EUR, but the tenant runs in a100 (USD)" in message


def test_a_new_service_in_pools_of_another_currency_is_a_reason_and_not_a_zero() -> None:
    snapshot = a_snapshot(a_service(), budgets=(a_budget(currency="EUR"),))
    decision = plan_of(snapshot)
    assert decision.service_plans[CHAT].scale.replicas == 0
    assert decision.budgets[0].within_budget.reason == WithinBudget.CURRENCY_MISMATCH


def test_a_service_on_a_foreign_pool_leaves_the_budget_in_force_for_the_others() -> None:
    prices = [{"from": "2026-01-01", "perGPUHour": "2", "currency": "EUR"}]
    snapshot = scaled(1)
    spec = snapshot.services[0].spec
    assert spec is not None
    other = a_service("off", a_spec(replicas=0, placement={"pools": ["h100"]}))
    priced_in_usd = a_service(spec=a_spec(scaling=spec.scaling, placement={"pools": ["a100"]}))
    decision = plan_of(
        replace(
            snapshot,
            services=(priced_in_usd, other),
            pools=(a_pool(), a_pool("h100", prices=prices)),
            nodes=(*snapshot.nodes, a_node("h100", whole=2, product=H100)),
            budgets=(a_budget(amount="0.37"),),
        )
    )
    assert decision.service_plans[CHAT].scale.replicas == 3


def test_a_pod_that_ended_is_charged_once_whenever_its_object_goes() -> None:
    done = replace(running(1)[0], ended=at(120), terminating=True)
    first = plan_of(replace(scaled(0, at(180)), pods=(done,), budgets=(a_budget(),)))
    memory = PlanMemory(meters=first.meters)
    after_deletion = replace(scaled(0, at(900)), budgets=(a_budget(),))
    later = plan_of(after_deletion, memory=memory)
    again = plan_of(replace(after_deletion, pods=(done,)), memory=memory)
    costs = [spent(budget_in(decision)) for decision in (first, later, again)]
    assert costs == [pytest.approx(Decimal(2 * WEIGHT * 120 / 3600), abs=Decimal("1e-8"))] * 3


@pytest.mark.parametrize("ahead", [0, 300, 2400, 7200])
def test_a_node_whose_clock_is_ahead_costs_nothing_after_the_end_of_its_pod(ahead: int) -> None:
    """The pod ends 300 s after its bind, and its object stays for the hour."""
    pod, memory = running(1)[0], PlanMemory()
    for seconds in range(60, 3600, 60):
        ended = at(300 + ahead) if seconds >= 300 else None
        snapshot = replace(
            scaled(0, at(seconds)), pods=(replace(pod, ended=ended),), budgets=(a_budget(),)
        )
        decision = plan_of(snapshot, memory=memory)
        memory = PlanMemory(meters=decision.meters)
    expected = pytest.approx(Decimal(2 * WEIGHT * 300 / 3600), abs=Decimal("1e-8"))
    assert spent(budget_in(decision)) == expected


def test_a_pod_that_ended_by_a_clock_ahead_and_went_unseen_is_not_charged_again() -> None:
    ended = replace(running(1)[0], ended=at(900), terminating=True)
    before = plan_of(replace(scaled(0, at(300)), pods=(ended,), budgets=(a_budget(),)))
    memory = PlanMemory(meters=before.meters)
    after = plan_of(replace(scaled(0, at(1800)), budgets=(a_budget(),)), memory=memory)
    assert spent(budget_in(after)) == spent(budget_in(before))


def test_a_namespace_that_moves_between_budgets_is_charged_from_then_on() -> None:
    zone_budget = a_budget("zone", tenant={"namespaces": ["team-b"]})
    before = plan_of(replace(scaled(1, at(600)), budgets=(zone_budget,)))
    moved = replace(zone_budget, spec=a_budget("zone", tenant={"namespaces": ["team-a"]}).spec)
    after = plan_of(
        replace(scaled(1, at(660)), budgets=(moved,)), memory=PlanMemory(meters=before.meters)
    )
    seconds = spent(budget_in(after, "zone")) * 3600 / (2 * WEIGHT)
    assert round(seconds) == 60


def test_a_budget_that_was_refused_once_has_lost_nothing() -> None:
    wrong = budget_in(plan_of(replace(scaled(1), budgets=(a_budget(timeZone="Mars/Olympus"),))))
    fixed = replace(wrong, spec=a_budget().spec)
    assert (
        reason_and_message(budget_in(plan_of(replace(scaled(1), budgets=(fixed,)))))[0]
        == "WithinLimits"
    )


def test_a_budget_that_is_not_accepted_counts_on() -> None:
    first = plan_of(replace(scaled(3), budgets=(a_budget(),)))
    typo = edited(budget_in(first), a_budget(timeZone="Mars/Olympus").spec)
    refused = plan_of(
        replace(scaled(1, at(60)), budgets=(typo,)), memory=PlanMemory(meters=first.meters)
    )
    day = plan_of(
        replace(scaled(1, at(3000)), budgets=(a_budget(),)),
        memory=PlanMemory(meters=refused.meters),
    )
    seconds = spent(budget_in(day)) * 3600 / (2 * WEIGHT)
    assert round(seconds) == 2 * 60 + 3000


def test_raising_min_replicas_is_a_scale_up_like_any_other() -> None:
    decision = plan_of(replace(scaled(1, minReplicas=6), budgets=(a_budget(amount="0.60"),)))
    scale = decision.service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (2, ScalingReason.BUDGET_EXHAUSTED)
    reason, message = reason_and_message(budget_in(decision))
    assert reason == "MinReplicasExceedBudget"
    assert "1 more replica of minReplicas needs 0.2679 USD" in message


def test_pods_of_a_previous_variant_are_paid_while_they_run() -> None:
    old = tuple(replace(pod, variant="a100-3g-40gb") for pod in running(2))
    snapshot = replace(scaled(1), pods=(*running(1, service="chat"), *old[1:]))
    state = plan_of(replace(snapshot, budgets=(a_budget(),))).budgets[0].state
    assert state is not None
    alone = plan_of(replace(scaled(1), budgets=(a_budget(),))).budgets[0].state
    assert alone is not None
    assert state.current_windows[0].granted > alone.current_windows[0].granted


@pytest.mark.parametrize("moves", [False, True])
def test_the_second_pod_of_a_move_is_granted_before_replicas_that_others_start(
    moves: bool,
) -> None:
    """The budget has room for one replica of each and for two that start, which chat wants."""
    snapshot = replace(scaled(1), budgets=(a_budget(amount="0.64"),))
    variant = "a100-3g-40gb" if moves else "a100-1g-10gb"
    old = a_pod("mail-0", "mail", variant, node="a100-0", devices=SLICE, bound=NOW)
    mail = a_service("mail", spec=a_spec())
    workload = a_workload(1, "mail", variant)
    both = replace(
        snapshot,
        services=(*snapshot.services, mail),
        pods=(*snapshot.pods, old),
        workloads=(*snapshot.workloads, workload),
    )
    scales = {ref.name: plan.scale for ref, plan in plan_of(both).service_plans.items()}
    assert scales["mail"].replicas == 1
    assert scales["chat"].replicas == (1 if moves else 3)


def test_of_two_new_budgets_for_a_namespace_the_later_name_gives_way() -> None:
    other = a_budget("zone", tenant={"namespaces": ["team-b", "team-a"]})
    decision = plan_of(replace(scaled(1), budgets=(other, a_budget(amount="0.37"))))
    accepted = {view.budget.name: view.accepted for view in decision.budgets}
    assert accepted["zone"].reason == BudgetAccepted.OVERLAPPING
    assert "team-a belongs to TenantBudget/team-a" in accepted["zone"].message
    assert decision.service_plans[CHAT].scale.replicas == 3


def test_a_warning_comes_at_80_percent_and_with_a_forecast_above() -> None:
    near = replace(scaled(3, at(3000), maxReplicas=3), budgets=(a_budget(amount="0.81"),))
    assert reason_and_message(budget_in(plan_of(near)))[0] == "NearLimit"
    above = replace(scaled(2, at(60), maxReplicas=2), budgets=(a_budget(amount="0.50"),))
    assert reason_and_message(budget_in(plan_of(above)))[0] == "ForecastAboveLimit"


def test_the_service_says_how_its_tenant_stands() -> None:
    for budgets, state in (((), "NoBudget"), ((a_budget(amount="0.37"),), "BudgetExhausted")):
        snapshot = replace(scaled(1), budgets=budgets)
        decision = plan_of(snapshot)
        tenant = decision.budgets_by_namespace.get("team-a")
        status = service_status(snapshot, decision.service_plans[CHAT], tenant, None)
        assert status.tenant is not None
        assert status.tenant.reason == state


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("name", "moment", "start", "hours"),
    [
        ("Hour", "2026-11-20T12:34:56Z", "2026-11-20T12:00Z", 1),
        ("Day", "2026-11-20T22:59:59Z", "2026-11-19T23:00Z", 24),
        ("Day", "2026-03-29T12:00:00Z", "2026-03-28T23:00Z", 23),
        ("Day", "2026-10-25T12:00:00Z", "2026-10-24T22:00Z", 25),
        ("Week", "2026-11-22T22:59:59Z", "2026-11-15T23:00Z", 7 * 24),
        ("Week", "2026-11-22T23:00:00Z", "2026-11-22T23:00Z", 7 * 24),
        ("Week", "2026-10-25T12:00:00Z", "2026-10-18T22:00Z", 7 * 24 + 1),
        ("Month", "2026-10-31T23:30:00Z", "2026-10-31T23:00Z", 30 * 24),
        ("Month", "2026-02-10T00:00:00Z", "2026-01-31T23:00Z", 28 * 24),
    ],
)
def test_windows_follow_the_clock_of_the_zone(
    name: str, moment: str, start: str, hours: int
) -> None:
    window = period_at(name, datetime.fromisoformat(moment), BERLIN)  # type: ignore[arg-type]  # a word of the table
    assert window.start == datetime.fromisoformat(start)
    assert window.end - window.start == timedelta(hours=hours)
    assert next_period(window, BERLIN).start == window.end


def test_hours_follow_each_other_through_a_change_of_half_an_hour() -> None:
    lord_howe = ZoneInfo("Australia/Lord_Howe")
    moment = datetime(2026, 10, 3, tzinfo=UTC)
    window = period_at("Hour", moment, lord_howe)
    for _ in range(48):
        for minute in (0, 29, 59):
            moment = window.start + timedelta(minutes=minute)
            assert period_at("Hour", moment, lord_howe) == window
        assert next_period(window, lord_howe).start == window.end
        window = next_period(window, lord_howe)


def late_and_full() -> Snapshot:
    """Five minutes before the hour ends, 10 minutes of a replica reach into the next one."""
    snapshot = scaled(1, at(3300))
    budget = a_budget(amount="0.28")
    return replace(snapshot, pods=running(1, since=at(3240)), budgets=(budget,))


def test_a_refusal_names_the_next_window_when_that_one_is_full() -> None:
    scale = plan_of(late_and_full()).service_plans[CHAT].scale
    assert (scale.replicas, scale.reason) == (1, ScalingReason.BUDGET_EXHAUSTED)
    assert scale.message == (
        "TenantBudget/team-a: hour limit 0.2800 USD from 2026-11-20T13:00Z until "
        "2026-11-20T14:00Z, spent 0.00 USD, committed to minReplicas 0.2679 USD, reserved 0.00 "
        "USD (the largest part for team-a/chat), available 0.0121 USD. 1 more replica for 600 s "
        "needs 0.0223 USD: raise spec.limits[0].amount to 0.3002 USD; this hour it fits."
    )


def test_the_amount_that_a_refusal_names_pays_the_replica() -> None:
    raised = replace(late_and_full(), budgets=(a_budget(amount="0.3002"),))
    assert plan_of(raised).service_plans[CHAT].scale.replicas == 2


def test_the_next_window_is_explained_when_only_that_one_is_full() -> None:
    snapshot = late_and_full()
    plan = plan_of(snapshot)
    decision = explain_budget(snapshot, plan, plan.service_plans[CHAT])
    assert decision.would_change == (
        "spec.limits[0].amount of 0.3002 USD would cover 1 more replica for 10 minutes from "
        "2026-11-20 13:00 UTC on too; until then the limits cover it",
    )
