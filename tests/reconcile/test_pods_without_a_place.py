"""Pods that a quota or a taint keeps away: what the status says, and that its advice ends it."""

import asyncio
from datetime import timedelta
from typing import Any

from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.resources.api_resources import NODES, PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.memory_operator import (
    CHAT,
    DEPLOYMENT,
    MemoryOperator,
    add_pool_and_node,
    replica_of,
)
from tests.reconcile.test_precision_files import jobs, report_of, run_job, shape_of_files

OWN = {"uri": "hf://acme/own-model"}
QUOTA = "failed quota: compute: must specify limits.cpu for: model-job"
SHAPE = shape_of_files().model_dump(mode="json", by_alias=True, exclude_none=True)


def condition(operator: MemoryOperator, kind: str) -> tuple[str, str]:
    conditions = operator.body(CHAT)["status"]["conditions"]
    return next((each["reason"], each["message"]) for each in conditions if each["type"] == kind)


async def a_refused_model() -> MemoryOperator:
    """A model whose Job a quota has refused a pod for half a minute."""
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(model=OWN)
    await operator.reconcile()
    (key,) = jobs(operator)
    job = operator.body(key)
    job["metadata"]["creationTimestamp"] = NOW.isoformat()
    operator.cluster.touch(key)
    operator.cluster.pod_refusals[job["metadata"]["uid"]] = QUOTA
    for _ in range(30):
        operator.at += timedelta(seconds=1)
        await operator.reconcile()
        await asyncio.sleep(0)
    return operator


async def test_a_quota_that_refuses_the_pod_of_a_models_job_is_named() -> None:
    operator = await a_refused_model()
    (key,) = jobs(operator)
    reason, message = condition(operator, "Accepted")
    assert reason == "FailedCreate"
    assert message.startswith(f"spec.model.shape: Job/{key.name} has no pod: {QUOTA}; a LimitRange")
    assert f"kubectl describe job -n team-a {key.name}. This ends when" in message
    assert operator.cluster.event_queries == [operator.body(key)["metadata"]["uid"]]


async def test_the_model_is_read_once_the_namespace_has_such_a_pod() -> None:
    operator = await a_refused_model()
    run_job(operator, report_of(shape_of_files()))
    await operator.reconcile()
    assert condition(operator, "Accepted")[0] == "Valid"
    assert operator.observations.answers.pod_refusals == {}


async def test_the_model_is_placed_once_its_shape_is_written() -> None:
    operator = await a_refused_model()
    operator.serve(model={**OWN, "shape": SHAPE})
    await operator.reconcile()
    assert condition(operator, "Placed")[0] == "Placed"


def a_replica_without_a_node(
    operator: MemoryOperator,
    message: str = "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
) -> None:
    """Put the replica as the API server has it that no node takes."""
    pod = replica_of(DEPLOYMENT, "chat-0")
    template = operator.body(DEPLOYMENT)["spec"]["template"]["spec"]
    pod["spec"] |= {name: template[name] for name in ("nodeSelector", "tolerations")}
    unplaced = {"type": "PodScheduled", "status": "False", "message": message}
    pod["status"] = {"phase": "Pending", "conditions": [unplaced]}
    operator.cluster.put(PODS, pod)


async def a_tainted_node(**taint: Any) -> MemoryOperator:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    node = ObjectKey(NODES.plural, "", "a100-0")
    # One that all engines tolerate, one that goes by itself, and one that asks for nothing.
    taints = [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"},
        {"key": "slow", "effect": "PreferNoSchedule"},
        taint,
    ]
    operator.body(node)["spec"] = {"taints": taints}
    operator.cluster.touch(node)
    operator.serve()
    await operator.reconcile()
    a_replica_without_a_node(operator)
    await operator.reconcile()
    return operator


async def test_an_untolerated_taint_is_named_with_the_pools_tolerations() -> None:
    operator = await a_tainted_node(key="sku", value="gpu", effect="NoSchedule")
    reason, message = condition(operator, "Placed")
    assert reason == "Unschedulable"
    assert (
        "unschedulable, no node for 1g.10gb in AcceleratorPool/a100 (1 node had untolerated taint "
        "sku=gpu:NoSchedule; add it to spec.tolerations of AcceleratorPool/a100, or remove it)"
    ) in message
    assert "Free or add" not in message
    assert "is free" not in message


async def test_a_taint_of_a_node_that_no_engine_asks_for_is_not_the_cause() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve()
    await operator.reconcile()
    a_replica_without_a_node(
        operator,
        "0/2 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb, "
        "1 node(s) had untolerated taint(s).",
    )
    await operator.reconcile()
    _, message = condition(operator, "Placed")
    assert "unschedulable, no free 1g.10gb in AcceleratorPool/a100" in message
    assert "Free or add such hardware" in message


async def test_engines_tolerate_the_taint_that_was_added_to_the_pool() -> None:
    operator = await a_tainted_node(key="sku", value="gpu", effect="NoSchedule")
    pool = operator.body(ObjectKey(ACCELERATOR_POOLS.plural, "", "a100"))
    added = {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}
    pool["spec"]["tolerations"] = [added]
    operator.cluster.touch(ObjectKey(ACCELERATOR_POOLS.plural, "", "a100"))
    await operator.reconcile()
    deployment = operator.newest_deployment()
    assert added in deployment["spec"]["template"]["spec"]["tolerations"]


async def test_a_taint_without_a_value_is_named_too() -> None:
    operator = await a_tainted_node(key="dedicated", effect="NoExecute")
    assert "untolerated taint dedicated:NoExecute; add it" in condition(operator, "Placed")[1]
