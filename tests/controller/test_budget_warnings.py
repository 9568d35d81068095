"""Warnings for TenantBudgets say what the planner then does with the spend."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.tenant_budget import LimitKey
from tessera.controller.admission import review_budget
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.status.budget import budget_status
from tessera.ports import ClusterObject
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS
from tessera.resources.manifest import ObjectKey
from tessera.resources.spend_records import parse_spend_records, spend_records_manifest
from tests.builders import a_budget, a_node, a_pool, a_service, a_spec, plan_of
from tests.domain.variant_fleet import VariantFleet


def limits(window: str) -> list[Mapping[str, Any]]:
    return [{"window": window, "amount": "500"}]


def a_fleet(window: str) -> VariantFleet:
    """Return a fleet that spent some minutes of a replica."""
    fleet = VariantFleet(
        service=a_service("chat", a_spec(replicas=1, scaling={"minReplicas": 0})),
        pools=(a_pool("paid", "1.00"),),
        nodes=[a_node("paid", whole=8)],
        fields={"budgets": (a_budget(limits=limits(window)),)},
    )
    fleet.run(300)
    return fleet


def view_of(fleet: VariantFleet, memory: PlanMemory | None = None) -> BudgetView:
    (view,) = plan_of(fleet.snapshot(), fleet.config, memory or fleet.memory).budgets
    return view


def spent(view: BudgetView) -> Mapping[LimitKey, int]:
    return {window.period.key: window.spent for window in view.state.current_windows}


def recorded(fleet: VariantFleet) -> Budget:
    view = view_of(fleet)
    return replace(view.budget, status=budget_status(view, fleet.snapshot().at, must_record=True))


def body_of(budget: Budget) -> dict[str, Any]:
    assert budget.spec is not None
    return {
        "metadata": {"name": budget.name, "uid": "uid-budget"},
        "spec": budget.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": budget.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


@pytest.mark.parametrize(
    ("zone", "window", "is_warned"),
    [
        ("Europe/Berlin", "Month", True),
        ("Europe/Berlin", "Day", True),
        ("Europe/Berlin", "Hour", False),
        ("Asia/Kathmandu", "Hour", True),
        ("UTC", "Month", False),
        ("Etc/UTC", "Month", False),
    ],
)
def test_a_time_zone_is_warned_of_where_the_planner_begins_a_window_again(
    zone: str, window: str, is_warned: bool
) -> None:
    fleet = a_fleet(window)
    before = recorded(fleet)
    edited = replace(before, spec=a_budget(limits=limits(window), timeZone=zone).spec)
    refusals, warnings = review_budget(body_of(edited), Store(KINDS))
    assert refusals == []
    assert len(warnings) == is_warned
    spent_before = spent(view_of(fleet))[window]
    fleet.fields = {"budgets": (edited,)}
    for memory in (fleet.memory, PlanMemory()):
        assert (spent(view_of(fleet, memory))[window] < spent_before) is is_warned


def test_the_warning_of_a_time_zone_says_what_is_not_counted_and_from_when_on() -> None:
    before = recorded(a_fleet("Month"))
    edited = replace(before, spec=a_budget(limits=limits("Month"), timeZone="Europe/Berlin").spec)
    _, (warning,) = review_budget(body_of(edited), Store(KINDS))
    assert before.status.spend is not None
    amount = before.status.spend.windows[0].spent
    assert warning.startswith(
        "spec.timeZone: Europe/Berlin instead of UTC begins the window Month at 2026-10-31 23:00 "
        "UTC instead of 2026-11-01 00:00 UTC"
    )
    assert f"{amount.normalize():f} USD spent until now are not counted" in warning


def test_a_deleted_budget_that_is_made_again_goes_on_from_its_spend_as_the_warning_says() -> None:
    fleet = a_fleet("Month")
    budget = view_of(fleet).budget
    before = spent(view_of(fleet))["Month"]
    store = Store(KINDS)
    store.put(
        TENANT_BUDGETS,
        ClusterObject(key=ObjectKey("tenantbudgets", "", budget.name), plan_input=budget),
    )
    store.put(
        INFERENCE_SERVICES, ClusterObject(key=ObjectKey("inferenceservices", "team-a", "chat"))
    )
    _, (warning,) = review_budget(body_of(budget), store, deleted=True)
    assert "lose their limit" in warning
    assert "a budget of the same name goes on from what is spent" in warning

    fleet.fields = {"budgets": ()}
    fleet.run(60)
    record = fleet.memory.spend_records
    fleet.fields = {"budgets": (a_budget(limits=limits("Month")),)}
    fleet.now += timedelta(seconds=600)
    # Nothing runs any more, so what is spent is in the record alone.
    fleet.pods = {}
    written = spend_records_manifest("tessera", record, fleet.snapshot().at)
    memory = PlanMemory(spend_records=parse_spend_records(written.body["data"]))
    # All but the last cycle before the deletion, which was not recorded.
    assert spent(view_of(fleet, memory))["Month"] == pytest.approx(before, rel=0.05)
    assert before > 0
