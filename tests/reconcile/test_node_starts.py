"""Nodes that pods wait for, over whole cycles: what is asked, written and recorded."""

import asyncio
from datetime import timedelta
from typing import Any

from tessera.api.template_version import Platform
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.observed.snapshot import PodEvent
from tessera.resources.api_resources import DEPLOYMENTS, NODES, PODS, REPLICA_SETS
from tessera.resources.manifest import ObjectKey
from tests.builders import A100
from tests.memory_operator import MemoryOperator, replica_of

POOL = ObjectKey("acceleratorpools", "", "burst")
DEPLOYMENT = ObjectKey(DEPLOYMENTS.plural, "team-a", "chat-burst-1gpu")
PLACEHOLDER = ObjectKey(REPLICA_SETS.plural, "tessera-system-prepull", "tessera-placeholder-burst")
WORDS = "Node scale up associated with this pod failed: GCE quota exceeded."


def add_pool_and_pod(operator: MemoryOperator) -> ObjectKey:
    """Add a pool whose nodes never come, and a replica that waits for one."""
    pool = {
        "nodeSelector": {"pool": "burst"},
        "prices": [{"from": "2026-01-01", "perGPUHour": "2"}],
        "nodeTemplate": {"product": A100, "gpus": 8, "maxNodes": 2, "expectedStart": "120s"},
    }
    meta = {"name": "burst", "uid": "uid-burst"}
    operator.cluster.put(ACCELERATOR_POOLS, {"metadata": meta, "spec": pool})
    operator.serve(scaling={"minReplicas": 1})
    body = replica_of(DEPLOYMENT, "chat-0")
    body["metadata"]["creationTimestamp"] = operator.at.isoformat()
    body["spec"]["containers"][0]["resources"]["limits"] = {"nvidia.com/gpu": "1"}
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    return operator.cluster.put(PODS, {**body, "status": {"conditions": [condition]}})


def condition_of(operator: MemoryOperator) -> dict[str, Any]:
    conditions = operator.body(POOL)["status"]["conditions"]
    return next(each for each in conditions if each["type"] == "NodesProvisioned")


async def test_a_start_that_fails_is_explained_written_once_and_over_when_the_pod_goes() -> None:
    operator = MemoryOperator()
    pod = add_pool_and_pod(operator)
    uid = operator.body(pod)["metadata"]["uid"]
    operator.cluster.pod_events_by_uid[uid] = (PodEvent("FailedScaleUp", WORDS),)
    await operator.reconcile()
    assert condition_of(operator)["reason"] in ("NodesAvailable", "NodesStarting")
    for _ in range(95):
        operator.at += timedelta(seconds=1)
        await operator.reconcile()
        await asyncio.sleep(0)
    condition = condition_of(operator)
    assert (condition["status"], condition["reason"]) == ("False", "QuotaExceeded")
    assert condition["message"].startswith(WORDS)
    assert operator.cluster.event_queries == [uid] * 3
    for _ in range(30):
        operator.at += timedelta(seconds=1)
        await operator.reconcile()
        await asyncio.sleep(0)
    provisioning = operator.body(POOL)["status"]["provisioning"]
    assert (provisioning["failures"], provisioning["reason"]) == (1, "QuotaExceeded")
    assert provisioning["message"] == WORDS
    events = [
        each for each in operator.cluster.events.values() if each["reason"] == "QuotaExceeded"
    ]
    assert [each["regarding"]["name"] for each in events] == ["burst"]
    assert (await operator.reconcile()).writes == 0
    del operator.cluster.objects[pod]
    await operator.reconcile()
    assert operator.observations.answers.pod_events == {}
    assert condition_of(operator)["reason"] == "QuotaExceeded"


async def test_a_placeholder_brings_a_node_that_is_left_alone_for_twice_its_start() -> None:
    operator = MemoryOperator()
    operator.platform = Platform(priority_classes=True)
    operator.restart()
    add_pool_and_pod(operator)
    pool = operator.body(POOL)["spec"]
    pool["mig"] = {"mode": "Auto", "backend": "Agent"}
    operator.cluster.touch(POOL)
    for key in [key for key in operator.cluster.objects if key.plural == PODS.plural]:
        operator.cluster.discard(key)
    chat = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "chat")
    operator.body(chat)["spec"]["placement"] = {"mig": "Auto"}
    operator.cluster.touch(chat)
    for _ in range(3):
        await operator.reconcile()
    placeholder = operator.body(PLACEHOLDER)
    pod = placeholder["spec"]["template"]["spec"]
    assert placeholder["metadata"]["ownerReferences"][0]["name"] == "burst"
    assert pod["nodeSelector"] == {"pool": "burst"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["priorityClassName"] == "tessera-placeholder"
    operator.at += timedelta(seconds=60)
    node = {
        "metadata": {
            "name": "burst-0",
            "labels": {"pool": "burst", "nvidia.com/gpu.product": A100},
            "creationTimestamp": operator.at.isoformat(),
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    key = operator.cluster.put(NODES, node)
    await operator.reconcile()
    assert PLACEHOLDER not in operator.cluster.objects
    guard = {"karpenter.sh/do-not-disrupt": "true", "tessera.dev/do-not-disrupt": "true"}
    assert operator.body(key)["metadata"]["annotations"] == guard
    operator.at += timedelta(seconds=239)
    await operator.reconcile()
    assert operator.body(key)["metadata"]["annotations"] == guard
    operator.at += timedelta(seconds=1)
    await operator.reconcile()
    assert operator.body(key)["metadata"]["annotations"] == {}


async def test_an_annotation_of_somebody_else_stays() -> None:
    operator = MemoryOperator()
    add_pool_and_pod(operator)
    annotations = {"karpenter.sh/do-not-disrupt": "true"}
    meta = {"name": "burst-0", "labels": {"pool": "burst"}, "annotations": annotations}
    key = operator.cluster.put(NODES, {"metadata": meta, "status": {}})
    await operator.reconcile()
    assert operator.body(key)["metadata"]["annotations"] == annotations
