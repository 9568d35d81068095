"""A limit of one tier, and the quota of GPUs."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import ScalingReason
from tessera.domain.money import from_nanos
from tessera.domain.observed.snapshot import Budget
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.status.budget import budget_status
from tests.builders import (
    a_budget,
    a_node,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    plan_of,
)
from tests.domain.variant_fleet import VariantFleet

RESERVED = a_pool("reserved", "1.00")
BURST = a_pool("burst", "3.00", tier="OnDemand")


def limited(**fields: Any) -> Budget:
    return a_budget(limits=[{"window": "Month", "amount": "100000"}], **fields)


def burst_limit(amount: str) -> Budget:
    return a_budget(
        limits=[
            {"window": "Month", "amount": "100000"},
            {"window": "Month", "amount": amount, "tier": "OnDemand"},
        ]
    )


def fleet(replicas: int, budget: Budget) -> VariantFleet:
    return VariantFleet(
        service=a_service(spec=a_spec(replicas=replicas)),
        pools=(RESERVED, BURST),
        nodes=[a_node("reserved", whole=2), a_node("burst", whole=4)],
        fields={"budgets": (budget,)},
    )


def test_a_limit_of_the_on_demand_tier_keeps_bursts_out_and_reserved_nodes_open() -> None:
    cluster = fleet(4, burst_limit("0"))
    service_plan = cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 0}
    assert service_plan.scale.reason is ScalingReason.BUDGET_EXHAUSTED
    assert "month limit of tier OnDemand 0.00 USD" in service_plan.scale.message


def test_only_what_runs_in_the_tier_is_spent_of_its_limit() -> None:
    cluster = fleet(4, burst_limit("5000"))
    cluster.run(1800)
    assert cluster.counts() == {"reserved": 2, "burst": 2}
    decision = plan_of(cluster.snapshot(), cluster.config, cluster.memory)
    (view,) = decision.budgets
    spent = {window.period.key: from_nanos(window.spent) for window in view.state.current_windows}
    hours = timedelta(seconds=1800) / timedelta(hours=1)
    assert float(spent["Month/OnDemand"]) == pytest.approx(2 * 3 * hours, rel=0.05)
    assert float(spent["Month"]) == pytest.approx((2 * 3 + 2) * hours, rel=0.05)
    status = budget_status(view, cluster.snapshot().at)
    assert status.spend is not None
    assert {replica.tier for replica in status.spend.running} == {"Reserved", "OnDemand"}
    restored = _after_a_restart(cluster, replace(view.budget, status=status))
    again = {
        window.period.key: window.spent for window in restored.budgets[0].state.current_windows
    }
    assert again == {window.period.key: window.spent for window in view.state.current_windows}


def _after_a_restart(cluster: VariantFleet, budget: Budget) -> Plan:
    """Plan with the record in the status alone, and without the pool of the burst."""
    snapshot = replace(cluster.snapshot(), budgets=(budget,), pools=(RESERVED,))
    return plan_of(snapshot, cluster.config, PlanMemory())


def test_nothing_is_added_beyond_the_quota_of_gpus() -> None:
    cluster = fleet(5, limited(gpus="3"))
    service_plan = cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 1}
    assert service_plan.scale.reason is ScalingReason.GPU_QUOTA_EXCEEDED
    assert "spec.gpus is 3" in service_plan.scale.message
    (view,) = plan_of(cluster.snapshot(), cluster.config, cluster.memory).budgets
    assert view.within_budget.reason is WithinBudget.GPU_QUOTA_EXCEEDED


def test_services_for_which_people_wait_come_first_within_the_quota() -> None:
    offline = a_service("archive", a_spec(replicas=2, **{"class": "Batch"}))
    online = a_service("zebra", a_spec(replicas=2))
    snapshot = a_snapshot(
        offline,
        online,
        pools=(RESERVED,),
        nodes=(a_node("reserved", whole=4),),
        budgets=(limited(gpus="3"),),
    )
    plans = plan_of(snapshot).service_plans
    counts = {ref.name: plan.scale.replicas for ref, plan in plans.items()}
    assert counts == {"archive": 1, "zebra": 2}


def test_what_runs_within_min_replicas_stays_above_a_lowered_quota() -> None:
    spec = a_spec(scaling={"minReplicas": 2, "maxReplicas": 2})
    cluster = fleet(2, limited())
    cluster.service = replace(cluster.service, spec=spec)
    cluster.run(120)
    cluster.fields = {"budgets": (limited(gpus="1"),)}
    service_plan = cluster.run(120)
    assert cluster.counts() == {"reserved": 2, "burst": 0}
    assert service_plan.scale.replicas == 2
