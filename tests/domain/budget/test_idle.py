"""The meter of a tenant without replicas: how long it stands, and what that may not change."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tessera.domain.incremental import Incremental
from tessera.domain.money import from_nanos
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId
from tessera.domain.observed.snapshot import Budget, Pod, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.status.budget import budget_status
from tests.builders import NO_MEMORY, NOW, a_budget, a_pod, a_service, a_snapshot, a_spec, plan_of

SLICE = {"nvidia.com/mig-1g.10gb": 1}
MINUTE = timedelta(minutes=1)


def a_tenant_pod(**fields: Any) -> Pod:
    return a_pod(**{"node": "a100-0", "devices": SLICE, "bound": NOW, **fields})


def play(*snapshots: Snapshot) -> tuple[Sequence[Plan], PlanMemory]:
    """Plan cycle after cycle, with what the last one learned."""
    incremental, memory, plans = Incremental(), NO_MEMORY, list[Plan]()
    for snapshot in snapshots:
        plans.append(plan_of(snapshot, memory=memory, incremental=incremental))
        memory = memory.after(plans[-1])
    return plans, memory


def cycles(snapshot: Snapshot, minutes: int) -> list[Snapshot]:
    """Return the same fleet at each minute from its own time on."""
    return [replace(snapshot, at=snapshot.at + MINUTE * index) for index in range(minutes)]


def spent(decision: Plan, name: str) -> float:
    (view,) = [each for each in decision.budgets if each.budget.name == name]
    return float(from_nanos(view.state.current_windows[0].spent))


def test_a_namespace_that_another_budget_gets_is_charged_once() -> None:
    """The budget that it comes to had nothing to charge until then."""
    before = (
        a_budget("team-a", tenant={"namespaces": ["team-a", "team-z"]}),
        a_budget("team-b", tenant={"namespaces": ["team-b"]}),
    )
    after = (
        a_budget("team-a", tenant={"namespaces": ["team-z"]}),
        a_budget("team-b", tenant={"namespaces": ["team-b", "team-a"]}),
    )
    fleet = a_snapshot(budgets=before)
    running = replace(fleet, at=NOW + MINUTE, pods=(a_tenant_pod(bound=NOW + MINUTE),))
    moved = replace(running, at=NOW + 41 * MINUTE, budgets=after)
    plans, _ = play(fleet, *cycles(running, 40), moved)
    charged = sum(spent(plans[-1], name) for name in ("team-a", "team-b"))
    alone, _ = play(fleet, *cycles(running, 41))
    assert charged <= spent(alone[-1], "team-a") * 42 / 40


def test_a_budget_has_left_what_the_rest_of_its_window_costs() -> None:
    """A replica of minReplicas is not refused for time that has passed while nothing ran."""
    ended = a_tenant_pod(name="old-0", service="old", ended=NOW + 20 * MINUTE)
    running = replace(ended, ended=None)
    hourly = a_snapshot(budgets=(a_budget(amount="100"),), pods=(running,))
    plans, _ = play(*cycles(hourly, 2))
    price = from_nanos(plans[-1].budgets[0].hourly_cost)
    budget = a_budget(amount=f"{price:f}")
    fleet = a_snapshot(budgets=(budget,), pods=(running,))
    idle = replace(fleet, at=NOW + 20 * MINUTE, pods=())
    wanting = replace(idle, at=NOW + 45 * MINUTE, services=(a_service(spec=a_spec(replicas=1)),))
    plans, _ = play(*cycles(fleet, 20), *cycles(idle, 25), wanting)
    assert plans[-1].service_plans[wanting.services[0].ref].scale.replicas == 1
    assert plans[-1].budgets[0].state.shortage is None


def charged(budget: Budget, nanos: int) -> dict[LimitId, LimitCharges]:
    account = AccountCharge(nanos)
    return {
        LimitId(budget.name, "calls"): LimitCharges(start=int(NOW.timestamp()), accounts=(account,))
    }


def test_the_record_of_an_idle_budget_has_what_gateways_charged() -> None:
    budget = a_budget(
        limits=[{"window": "Hour", "amount": "10", "basis": "Charge", "name": "calls"}]
    )
    fleet = a_snapshot(budgets=(budget,), charges=charged(budget, 10**9))
    plans, memory = play(fleet)
    status = budget_status(plans[0].budgets[0], NOW)
    assert [float(each.spent) for each in status.limits] == [1.0]
    recorded = replace(
        fleet, budgets=(replace(budget, status=status),), charges=charged(budget, 2 * 10**9)
    )
    later = replace(recorded, at=NOW + 5 * MINUTE)
    decision = plan_of(later, memory=memory)
    status = budget_status(decision.budgets[0], later.at)
    assert [float(each.spent) for each in status.limits] == [2.0]


def test_an_idle_budget_is_not_recorded_again() -> None:
    budget = a_budget()
    plans, memory = play(a_snapshot(budgets=(budget,)))
    status = budget_status(plans[0].budgets[0], NOW)
    recorded = a_snapshot(budgets=(replace(budget, status=status),))
    for snapshot in cycles(replace(recorded, at=NOW + MINUTE), 50):
        decision = plan_of(snapshot, memory=memory)
        memory = memory.after(decision)
        assert budget_status(decision.budgets[0], snapshot.at) is status
