"""The controllers in memory do what those of Kubernetes 1.36 do."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.names import FIELD_MANAGER
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.floors.kube import FloorKube, PodTimes, Quota
from tests.floors.replica_sets import ReplicaSet, RollingUpdate, sync_sizes
from tests.memory_cluster import MemoryCluster

DEPLOYMENT = ObjectKey(DEPLOYMENTS.plural, "team-a", "chat-a100-1gpu")
GPU = "nvidia.com/gpu"


def _deployment(replicas: int = 2, image: str = "vllm:1") -> ObjectManifest:
    labels = {"tessera.dev/service": "chat", "tessera.dev/variant": "a100-1gpu"}
    container = {
        "name": "engine",
        "image": image,
        "args": [],
        "resources": {"limits": {GPU: "1"}},
    }
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [container], "nodeSelector": {"pool": "a100"}},
        },
    }
    meta = {"name": DEPLOYMENT.name, "namespace": DEPLOYMENT.namespace}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    return _manifest(body)


def _manifest(body: Mapping[str, Any]) -> ObjectManifest:
    return ObjectManifest(
        kind=DEPLOYMENTS, namespace=DEPLOYMENT.namespace, name=DEPLOYMENT.name, body=body
    )


def _replica_sets(*sizes: tuple[int, int], desired: int, surge: int = 0) -> list[ReplicaSet]:
    """Return ReplicaSets of these sizes with so many available pods, the oldest first."""
    return [
        ReplicaSet(
            uid=str(index),
            template_hash=str(index),
            template="{}",
            created=index,
            replicas=size,
            available=available,
            desired=desired,
            maximum=desired + surge,
        )
        for index, (size, available) in enumerate(sizes)
    ]


# The figures of TestScale in pkg/controller/deployment/sync_test.go of Kubernetes.
@pytest.mark.parametrize(
    ("sizes", "replicas", "surge", "expected"),
    [
        ((10,), (10, 12), (0, 0), [12]),
        ((10,), (10, 5), (0, 0), [5]),
        ((3, 2), (5, 10), (0, 0), [6, 4]),
        ((3, 2), (5, 3), (0, 0), [2, 1]),
        ((1, 8), (9, 4), (0, 0), [0, 4]),
        ((2, 3, 2), (7, 10), (0, 0), [3, 4, 3]),
        ((3, 8, 2), (13, 8), (0, 0), [2, 5, 1]),
        ((1, 1, 1), (3, 4), (0, 0), [1, 1, 2]),
        ((1, 1, 1), (3, 2), (0, 0), [0, 1, 1]),
        ((1, 2, 3), (6, 0), (0, 0), [0, 0, 0]),
        ((6, 6), (10, 20), (2, 2), [11, 11]),
        ((8, 5), (10, 50), (3, 6), [34, 22]),
    ],
)
def test_a_change_of_replicas_is_shared_out_in_proportion(
    sizes: tuple[int, ...], replicas: tuple[int, int], surge: tuple[int, int], expected: list[int]
) -> None:
    before = [(size, size) for size in sizes]
    replica_sets = _replica_sets(*before, desired=replicas[0], surge=surge[0])
    *older, newest = replica_sets
    wanted = RollingUpdate(replicas=replicas[1], surge=surge[1], unavailable=1)
    sync_sizes(wanted, newest, older)
    assert [each.replicas for each in replica_sets] == expected


def test_a_rollout_in_place_first_removes_what_does_not_serve() -> None:
    replica_sets = _replica_sets((1, 1), (2, 1), (0, 0), desired=3)
    *older, newest = replica_sets
    sync_sizes(RollingUpdate(replicas=3, surge=0, unavailable=1), newest, older)
    assert [each.replicas for each in replica_sets] == [1, 1, 0]


def test_a_rollout_with_surge_creates_before_it_removes() -> None:
    old, newest = _replica_sets((2, 2), (0, 0), desired=2, surge=1)
    wanted = RollingUpdate(replicas=2, surge=1, unavailable=0)
    sync_sizes(wanted, newest, [old])
    sync_sizes(wanted, newest, [old])
    assert (old.replicas, newest.replicas) == (2, 1)
    newest.available = 1
    sync_sizes(wanted, newest, [old])
    assert (old.replicas, newest.replicas) == (1, 1)


async def test_a_quota_refuses_pods_until_the_terminating_ones_are_gone() -> None:
    kube = FloorKube(times=PodTimes(end=(10, 10)))
    kube.quotas["team-a"] = Quota(name="gpus", resource=GPU, hard=2)
    await kube.apply(_deployment())
    await kube.step()
    for key, _ in kube.pods():
        kube.set(key, "spec", nodeName="a100-0")
    (first, _), _ = kube.pods()
    kube.begin_deletion(first)
    kube.run_kubelets()
    await kube.step()
    (condition,) = kube.objects[DEPLOYMENT]["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("ReplicaFailure", "True")
    assert f"exceeded quota: gpus, requested: requests.{GPU}=1" in condition["message"]
    assert len(list(kube.pods())) == 2
    kube.at += timedelta(seconds=10)
    kube.run_kubelets()
    await kube.step()
    assert "conditions" not in kube.objects[DEPLOYMENT]["status"]
    assert len(list(kube.pods())) == 2


async def test_a_template_that_comes_back_has_its_replica_set_again() -> None:
    kube = FloorKube()
    await kube.apply(_deployment())
    await kube.step()
    await kube.apply(_deployment(image="vllm:2"))
    await kube.step()
    await kube.apply(_deployment())
    await kube.step()
    first, second = kube.replica_sets(DEPLOYMENT)
    assert kube.template_hash(DEPLOYMENT) == first.template_hash != second.template_hash


async def test_pods_go_with_their_deployment() -> None:
    kube = FloorKube()
    await kube.apply(_deployment())
    await kube.step()
    kube.discard(DEPLOYMENT)
    await kube.step()
    assert not list(kube.pods())


async def test_a_number_that_an_autoscaler_writes_is_its_own() -> None:
    kube = FloorKube()
    await kube.apply(_deployment())
    kube.scale_as(DEPLOYMENT, 1, "kube-controller-manager")
    assert kube.objects[DEPLOYMENT]["spec"]["replicas"] == 1
    assert _owner_of_replicas(kube) == ("kube-controller-manager", "Update", "scale")


async def test_scaling_takes_the_number_from_what_was_applied() -> None:
    cluster = MemoryCluster()
    await cluster.apply(_deployment())
    assert _owner_of_replicas(cluster) == (FIELD_MANAGER, "Apply", "")
    await cluster.scale(Ref("team-a", DEPLOYMENT.name), 2)
    assert _owner_of_replicas(cluster) == (FIELD_MANAGER, "Apply", "")
    await cluster.scale(Ref("team-a", DEPLOYMENT.name), 1)
    assert _owner_of_replicas(cluster) == (FIELD_MANAGER, "Update", "")
    body = _deployment().body
    spec = {name: value for name, value in body["spec"].items() if name != "replicas"}
    await cluster.apply(_manifest({**body, "spec": spec}))
    assert cluster.objects[DEPLOYMENT]["spec"]["replicas"] == 1


def _owner_of_replicas(cluster: MemoryCluster) -> tuple[str, str, str]:
    entries = cluster.wire_body(DEPLOYMENT)["metadata"]["managedFields"]
    (entry,) = [each for each in entries if "f:replicas" in each["fieldsV1"].get("f:spec", {})]
    return entry["manager"], entry["operation"], entry["subresource"]
