"""Events of an operator over the in-memory cluster."""

from datetime import timedelta
from typing import Any

import pytest

from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.memory_operator import DEPLOYMENT, MemoryOperator, add_pool_and_node, replica_of

READY = [
    {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:59:30Z"}
    for kind in ("PodScheduled", "Ready", "ContainersReady", "tessera.dev/serving")
]


@pytest.fixture
def operator() -> MemoryOperator:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    return operator


def add_replica(operator: MemoryOperator, name: str, template: str = "one") -> None:
    body = replica_of(DEPLOYMENT, name)
    body["metadata"]["labels"]["pod-template-hash"] = template
    body["metadata"]["ownerReferences"][0]["name"] = f"{DEPLOYMENT.name}-{template}"
    body["spec"]["nodeName"] = "a100-0"
    operator.cluster.put(PODS, {**body, "status": {"podIP": "127.10.0.5", "conditions": READY}})


def set_budget(operator: MemoryOperator, amount: str) -> None:
    spec = {
        "owner": "anna@example.org",
        "tenant": {"namespaces": ["team-a"]},
        "limits": [{"window": "Hour", "amount": amount}],
    }
    operator.cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": spec})


def events(operator: MemoryOperator, name: str = "chat") -> list[dict[str, Any]]:
    """Return the Events of an object as kubectl lists them, in the order of their names."""
    bodies = [operator.cluster.events[event] for event in sorted(operator.cluster.events)]
    return [body for body in bodies if body["regarding"]["name"] == name]


async def test_a_service_shows_its_history_in_order(operator: MemoryOperator) -> None:
    """It is scaled, held by its budget and rolled."""
    set_budget(operator, "0.33")
    operator.serve(replicas=1)
    await operator.reconcile()
    add_replica(operator, "chat-0")
    operator.serve(replicas=2)
    await operator.reconcile()
    add_replica(operator, "chat-1")
    operator.serve(replicas=5)
    await operator.reconcile()
    operator.serve(replicas=5, podTemplate={"env": [{"name": "A", "value": "1"}]})
    add_replica(operator, "chat-2", "two")
    await operator.reconcile()
    assert [event["reason"] for event in events(operator)] == [
        "SetByUser",
        "BudgetExhausted",
        "RollingOut",
    ]


async def test_a_change_whose_status_came_late_keeps_its_reason(operator: MemoryOperator) -> None:
    """The bounds decide once; in the next cycle the autoscaler only says why the number stays."""
    operator.serve(scaling={"minReplicas": 1, "maxReplicas": 6})
    chat = ObjectKey("inferenceservices", "team-a", "chat")
    await operator.reconcile()
    operator.serve(scaling={"minReplicas": 2, "maxReplicas": 6})
    operator.cluster.refusals[chat] = "busy"
    await operator.reconcile()
    del operator.cluster.refusals[chat]
    operator.at = NOW + timedelta(seconds=5)
    await operator.reconcile()
    (scaled,) = [event for event in events(operator) if event["action"] == "Scaled"]
    assert (scaled["reason"], scaled["note"]) == (
        "BoundsChanged", "scaled from 1 to 2 replicas: spec.scaling.minReplicas is 2",
    )  # fmt: skip
    await operator.reconcile()
    status = operator.body(chat)["status"]["scaling"]
    assert (status["desiredReplicas"], status["reason"]) == (2, "FailedGetMetrics")
    assert len([event for event in events(operator) if event["action"] == "Scaled"]) == 1


async def test_a_steady_fleet_and_a_restart_have_no_events(operator: MemoryOperator) -> None:
    set_budget(operator, "0.33")
    operator.serve(replicas=1)
    await operator.reconcile()
    written = dict(operator.cluster.events)
    for minutes in range(1, 4):
        operator.at = NOW + timedelta(minutes=minutes)
        await operator.reconcile()
    operator.restart()
    await operator.reconcile()
    assert operator.cluster.events == written
