"""What others write on the Deployment of a service is taken back or stays, and is named."""

from typing import Any

import pytest

from tessera.api.reasons import Progressing
from tessera.resources.api_resources import DEPLOYMENTS
from tests.hostile.twin import Fleet
from tests.memory_operator import CHAT, DEPLOYMENT


async def a_running_fleet(budget: str | None = None, **spec: Any) -> Fleet:
    """Return a service whose two replicas are ready, on a GPU with seven slices."""
    fleet = Fleet()
    if budget is not None:
        fleet.add_budget("team-a", budget, "Hour")
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.serve(**spec)
    for _ in range(10):
        await fleet.cycle()
    assert progressing(fleet)["reason"] == Progressing.ROLLOUT_COMPLETE
    return fleet


def progressing(fleet: Fleet) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = fleet.body(CHAT)["status"]["conditions"]
    return next(condition for condition in conditions if condition["type"] == "Progressing")


def warnings(fleet: Fleet) -> list[str]:
    events = fleet.cluster.events.values()
    return [event["reason"] for event in events if event["type"] == "Warning"]


def write(fleet: Fleet, manager: str, **spec: Any) -> None:
    """Write fields of the Deployment's spec as somebody else."""
    meta = {"name": DEPLOYMENT.name, "namespace": DEPLOYMENT.namespace}
    fleet.cluster.put(DEPLOYMENTS, {"metadata": meta, "spec": spec}, manager)


async def test_a_field_that_somebody_adds_is_named_until_it_is_removed() -> None:
    fleet = await a_running_fleet()
    write(fleet, "kubectl-edit", minReadySeconds=5)
    for _ in range(5):
        await fleet.cycle()
    condition = progressing(fleet)
    assert condition["reason"] == Progressing.FIELD_MANAGER_CONFLICT
    assert "spec.minReadySeconds (set by kubectl-edit)" in condition["message"]
    assert fleet.body(DEPLOYMENT)["spec"]["minReadySeconds"] == 5
    assert warnings(fleet) == [Progressing.FIELD_MANAGER_CONFLICT]
    fleet.cluster.remove(DEPLOYMENT, "spec", "minReadySeconds")
    for _ in range(2):
        await fleet.cycle()
    assert progressing(fleet)["reason"] == Progressing.ROLLOUT_COMPLETE


async def run_autoscaler(fleet: Fleet, replicas: int, seconds: int) -> int:
    """Let a HorizontalPodAutoscaler look at the Deployment every 15 s; return its writes."""
    writes = 0
    for second in range(0, seconds, 5):
        if second % 15 == 0 and fleet.body(DEPLOYMENT)["spec"]["replicas"] != replicas:
            write(fleet, "kube-controller-manager/scale", replicas=replicas)
            writes += 1
        await fleet.cycle()
    return writes


async def test_an_autoscaler_on_the_deployment_is_named_once_and_answered_ever_later() -> None:
    fleet = await a_running_fleet(scaling={"minReplicas": 2, "maxReplicas": 6})
    # At 0, 15, 30 and 45 s, and 15 s after the first wait of a minute.
    assert await run_autoscaler(fleet, 4, 150) <= 5
    condition = progressing(fleet)
    assert condition["reason"] == Progressing.FIELD_MANAGER_CONFLICT
    assert "kube-controller-manager set spec.replicas to 4" in condition["message"]
    assert "spec.scaling.mode External" in condition["message"]
    assert warnings(fleet) == [Progressing.FIELD_MANAGER_CONFLICT]


async def test_fewer_than_the_floor_never_stand_however_often_they_are_written() -> None:
    fleet = await a_running_fleet(scaling={"minReplicas": 6, "maxReplicas": 7})
    for second in range(0, 1800, 5):
        if second % 15 == 0:
            write(fleet, "kube-controller-manager/scale", replicas=1)
        await fleet.cycle()
        assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 6
    assert progressing(fleet)["reason"] == Progressing.FIELD_MANAGER_CONFLICT
    assert "set spec.replicas to 1" in progressing(fleet)["message"]
    assert warnings(fleet) == [Progressing.FIELD_MANAGER_CONFLICT]


async def test_fewer_than_a_larger_load_needs_stand_no_more() -> None:
    """4 above the wanted 2 stands for a minute, until 6 are wanted meanwhile."""
    fleet = await a_running_fleet(replicas=2, scaling={"minReplicas": 2, "maxReplicas": 6})
    await run_autoscaler(fleet, 4, 60)
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 4
    fleet.serve(replicas=6, scaling={"minReplicas": 2, "maxReplicas": 6})
    await fleet.cycle()
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 6


async def test_a_number_of_somebody_else_ends_with_who_writes_it() -> None:
    fleet = await a_running_fleet(scaling={"minReplicas": 2, "maxReplicas": 6})
    await run_autoscaler(fleet, 4, 60)
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 4
    for _ in range(15):  # the number stands for a minute, then the replicas drain
        await fleet.cycle()
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 2
    for _ in range(36):
        await fleet.cycle()
    assert progressing(fleet)["reason"] == Progressing.ROLLOUT_COMPLETE


async def test_replicas_set_by_hand_are_set_back_at_once_and_named() -> None:
    fleet = await a_running_fleet()
    write(fleet, "kubectl/scale", replicas=5)
    await fleet.cycle()
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == 2
    assert "kubectl set spec.replicas to 5" in progressing(fleet)["message"]
    for _ in range(26):
        await fleet.cycle()
    assert progressing(fleet)["reason"] == Progressing.ROLLOUT_COMPLETE
    assert warnings(fleet) == [Progressing.FIELD_MANAGER_CONFLICT]


async def waits_of_autoscaler(fleet: Fleet, replicas: int, seconds: int) -> list[int]:
    """Return for how many whole minutes each number stands, written again after 15 s."""
    waits, since = list[int](), None
    for second in range(0, seconds, 5):
        current = fleet.body(DEPLOYMENT)["spec"]["replicas"]
        if second % 15 == 0 and current != replicas:
            write(fleet, "kube-controller-manager/scale", replicas=replicas)
            since = second
        await fleet.cycle()
        if since is not None and fleet.body(DEPLOYMENT)["spec"]["replicas"] != replicas:
            waits.append((second - since) // 60)
            since = None
    return waits


BOUNDS = {"minReplicas": 2, "maxReplicas": 3}


@pytest.mark.parametrize(("budget", "replicas"), [("100", 3), ("100", 5), (None, 5)])
async def test_more_than_wanted_are_answered_ever_later_with_a_budget_and_above_max_replicas(
    budget: str | None, replicas: int
) -> None:
    fleet = await a_running_fleet(budget=budget, scaling=BOUNDS)
    assert await waits_of_autoscaler(fleet, replicas, 1150) == [0, 0, 0, 1, 2, 4, 8]
    assert progressing(fleet)["reason"] == Progressing.FIELD_MANAGER_CONFLICT
    assert f"set spec.replicas to {replicas}" in progressing(fleet)["message"]
    assert warnings(fleet) == [Progressing.FIELD_MANAGER_CONFLICT]


@pytest.mark.parametrize("mode", ["Native", "External"])
async def test_a_budget_holds_whoever_writes_the_replicas(mode: str) -> None:
    """An autoscaler writes 6: on the service, as mode External intends, and on its Deployment."""
    fleet = await a_running_fleet(
        budget="0.60", replicas=2, scaling={"mode": mode, "minReplicas": 2, "maxReplicas": 6}
    )
    fleet.serve(replicas=6, scaling={"mode": mode, "minReplicas": 2, "maxReplicas": 6})
    for _ in range(12):
        await fleet.cycle()
    granted = fleet.body(DEPLOYMENT)["spec"]["replicas"]
    assert granted == 3
    for _ in range(3):
        write(fleet, "kube-controller-manager/scale", replicas=6)
        await fleet.cycle()
        assert fleet.body(DEPLOYMENT)["spec"]["replicas"] == granted
    scaling = fleet.body(CHAT)["status"]["scaling"]
    assert (scaling["desiredReplicas"], scaling["reason"]) == (granted, "BudgetExhausted")
    assert "TenantBudget/team-a" in scaling["message"]
    assert progressing(fleet)["reason"] == Progressing.FIELD_MANAGER_CONFLICT
    assert f"set it back to {granted}" in progressing(fleet)["message"]
    # The fourth one stands for a minute, and what it costs is granted no more afterwards.
    write(fleet, "kube-controller-manager/scale", replicas=6)
    for _ in range(30):
        await fleet.cycle()
    assert fleet.body(DEPLOYMENT)["spec"]["replicas"] in (2, granted)
    assert fleet.body(CHAT)["status"]["scaling"]["reason"] == "BudgetExhausted"
