"""What others write on the Deployment of a service is taken back or stays, and is named."""

from typing import Any

from tessera.api.reasons import Progressing
from tessera.resources.api_resources import DEPLOYMENTS
from tests.hostile.twin import Fleet
from tests.memory_operator import CHAT, DEPLOYMENT


async def a_running_fleet(**spec: Any) -> Fleet:
    """Return a service whose two replicas are ready, on a GPU with seven slices."""
    fleet = Fleet()
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
    events = [event for event in fleet.cluster.events.values() if event["type"] == "Warning"]
    assert [event["reason"] for event in events] == [Progressing.FIELD_MANAGER_CONFLICT]
    fleet.cluster.remove(DEPLOYMENT, "spec", "minReadySeconds")
    for _ in range(2):
        await fleet.cycle()
    assert progressing(fleet)["reason"] == Progressing.ROLLOUT_COMPLETE
