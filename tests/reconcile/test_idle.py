"""A service that sleeps, wakes and drains, over an in-memory cluster."""

from datetime import timedelta
from typing import Any

from tessera.api.ref import Ref
from tessera.domain.observed.demand import GatewayDemand, GatewayReport
from tessera.domain.observed.snapshot import PodReading, Readings
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.memory_operator import (
    CHAT,
    DEPLOYMENT,
    MemoryOperator,
    add_pool_and_node,
    replica_of,
)

SCALING = {"minReplicas": 0, "maxReplicas": 4, "idle": {"after": "1m"}}
SERVICE = Ref("team-a", "chat")
POD = Ref("team-a", "chat-a")


def report(operator: MemoryOperator, **fields: Any) -> None:
    demand = {SERVICE: GatewayDemand(**fields)} if fields else {}
    operator.observations.gateway_reports = {
        "gateway-0": GatewayReport(at=operator.at, demand=demand)
    }


def replicas(operator: MemoryOperator) -> int:
    count: int = operator.body(DEPLOYMENT)["spec"]["replicas"]
    return count


def reasons(operator: MemoryOperator) -> dict[str, str]:
    conditions = operator.body(CHAT)["status"]["conditions"]
    return {condition["type"]: condition["reason"] for condition in conditions}


async def quiet_minute(operator: MemoryOperator) -> None:
    for _ in range(14):
        operator.at += timedelta(seconds=5)
        reading = PodReading(waiting=0, running=0, activity=0)
        operator.observations.readings = Readings(
            at=operator.at, pods={POD: reading}, finished={SERVICE: 0.0}
        )
        report(operator)
        await operator.reconcile()


async def test_a_service_sleeps_and_a_request_at_the_gateway_wakes_it() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(scaling=SCALING)
    await operator.reconcile()
    assert replicas(operator) == 1

    operator.cluster.put(PODS, replica_of(DEPLOYMENT, POD.name))
    await quiet_minute(operator)
    assert reasons(operator)["Ready"] == "ScaledToZero"
    operator.cluster.objects.pop(ObjectKey("pods", "team-a", POD.name), None)
    await operator.reconcile()
    assert replicas(operator) == 0

    operator.at += timedelta(seconds=1)
    report(operator, queued=1)
    await operator.reconcile()
    assert replicas(operator) == 1
    assert operator.body(CHAT)["status"]["scaling"]["reason"] == "ScaledFromZero"

    # A report that is old says nothing: the replica starts on.
    operator.at += timedelta(seconds=30)
    await operator.reconcile()
    assert replicas(operator) == 1


async def test_a_new_leader_leaves_a_service_asleep_and_wakes_it_by_the_next_report() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(scaling=SCALING)
    await operator.reconcile()
    await quiet_minute(operator)
    assert replicas(operator) == 0
    operator.restart()
    await operator.reconcile()
    assert replicas(operator) == 0
    report(operator, queued=3)
    await operator.reconcile()
    assert replicas(operator) == 1
