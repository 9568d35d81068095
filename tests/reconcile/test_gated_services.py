"""The objects of a version that is tried: its Deployment serves no user, and leaves no trace."""

from copy import deepcopy
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_pod
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, QUALITY_GATES
from tessera.domain.names import FIELD_MANAGER, MANAGED_BY, TESSERA
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.resources.api_resources import CONTROLLER_REVISIONS, DEPLOYMENTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL
from tests.memory_operator import MemoryOperator, add_pool_and_node, replica_of

FIRST = "chat-a100-1g-10gb"
ROLLOUT = {"strategy": "Gated", "gateRef": "answers"}


def deployments(operator: MemoryOperator) -> dict[str, dict[str, Any]]:
    return {
        key.name: body
        for key, body in operator.cluster.objects.items()
        if key.plural == DEPLOYMENTS.plural
    }


def edit(operator: MemoryOperator, **spec: Any) -> None:
    key = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "chat")
    body = operator.cluster.objects[key]
    spec = {"model": {"uri": SMALL}, "rollout": ROLLOUT, **spec}
    operator.cluster.put(INFERENCE_SERVICES, {**body, "spec": spec})


def phase_of(outcome: ReconcileOutcome) -> str:
    (service_plan,) = outcome.plan.service_plans.values()
    assert service_plan.gated is not None
    return service_plan.gated.state.phase


@pytest.fixture
async def operator() -> MemoryOperator:
    """Return an operator of a service that has its first version in force."""
    operator = MemoryOperator()
    add_pool_and_node(operator)
    key = operator.serve(rollout=ROLLOUT)
    suite = {"suite": {"configMap": {"name": "suite"}}}
    operator.cluster.put(
        QUALITY_GATES, {"metadata": {"name": "answers", "namespace": "team-a"}, "spec": suite}
    )
    await operator.reconcile()
    owner = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "name": "chat",
        "uid": operator.body(key)["metadata"]["uid"],
        "controller": True,
    }
    meta = {
        "name": "chat-1",
        "namespace": "team-a",
        "labels": {MANAGED_BY: TESSERA},
        "ownerReferences": [owner],
    }
    data = {"spec": {"model": {"uri": SMALL}, "rollout": ROLLOUT}}
    operator.cluster.put(
        CONTROLLER_REVISIONS,
        {"metadata": meta, "revision": 1, "data": data},
        FIELD_MANAGER,
    )
    outcome = await operator.reconcile()
    assert phase_of(outcome) == "Stable"
    return operator


async def test_a_version_that_is_tried_has_a_deployment_beside_the_one_in_force(
    operator: MemoryOperator,
) -> None:
    before = deepcopy(deployments(operator))
    assert set(before) == {FIRST}

    edit(operator, engine={"extraArgs": ["--seed=7"]}, scaling={"minReplicas": 3})
    assert phase_of(await operator.reconcile()) == "Candidate"

    assert deployments(operator)[FIRST]["spec"]["replicas"] == 3, (
        "the rest of the edit acts at once"
    )
    (name,) = set(deployments(operator)) - {FIRST}
    tried = deployments(operator)[name]
    assert tried["spec"]["replicas"] == 1
    assert tried["metadata"]["ownerReferences"][0]["name"] == "chat"
    assert tried["metadata"]["labels"]["tessera.dev/service"] == "chat"
    assert "--seed=7" in tried["spec"]["template"]["spec"]["containers"][0]["args"]
    template = deployments(operator)[FIRST]["spec"]["template"]
    assert template == before[FIRST]["spec"]["template"], "the version in force is not touched"


async def test_its_replica_is_closed_and_no_disruption_budget_counts_it(
    operator: MemoryOperator,
) -> None:
    edit(operator, engine={"extraArgs": ["--seed=7"]})
    await operator.reconcile()
    (name,) = set(deployments(operator)) - {FIRST}
    key = ObjectKey(DEPLOYMENTS.plural, "team-a", name)
    pod = replica_of(key, "tried-0")
    template = deployments(operator)[name]["spec"]["template"]
    pod["metadata"]["labels"] |= template["metadata"]["labels"]
    operator.cluster.put(PODS, pod)

    await operator.reconcile()

    body = operator.body(ObjectKey(PODS.plural, "team-a", "tried-0"))
    assert body["metadata"]["labels"]["tessera.dev/leaving"] == "tried", "no monitor counts it"
    parsed = parse_pod(body)
    assert parsed is not None
    assert parsed.tried, "gateways offer it to gates alone"
    (gate,) = body["status"]["conditions"]
    assert (gate["type"], gate["status"]) == ("tessera.dev/serving", "False")
    status = operator.body(ObjectKey(INFERENCE_SERVICES.plural, "team-a", "chat"))["status"]
    assert status["replicas"] == 0


async def test_the_way_back_ends_it_at_once(operator: MemoryOperator) -> None:
    before = deepcopy(deployments(operator))
    edit(operator, engine={"extraArgs": ["--seed=7"]})
    await operator.reconcile()
    assert len(deployments(operator)) == 2

    edit(operator)
    await operator.reconcile()
    await operator.reconcile()

    assert deployments(operator) == before


async def test_a_newer_edit_replaces_it(operator: MemoryOperator) -> None:
    edit(operator, engine={"extraArgs": ["--seed=7"]})
    await operator.reconcile()
    old = set(deployments(operator)) - {FIRST}

    edit(operator, engine={"extraArgs": ["--seed=8"]})
    await operator.reconcile()
    await operator.reconcile()

    (new,) = set(deployments(operator)) - {FIRST}
    assert {new} != old
