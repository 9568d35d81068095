"""What every `Cluster` must do: the in-memory one of the turn tests, and the real API server."""

import contextlib
import itertools
from typing import Any, Protocol

import pytest

from tessera.adapters.kube import KubeCluster
from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Node, Pod
from tessera.ports import Cluster, ClusterError, ClusterObject, DisruptionBudgetError, NotFoundError
from tessera.resources.api_resources import (
    DISRUPTION_BUDGETS,
    INFERENCE_SERVICES,
    KINDS,
    NODES,
    POD_MONITORS,
    PODS,
    SERVICES,
    ApiResource,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.builders import SMALL
from tests.memory_cluster import MemoryCluster

_numbers = itertools.count(1)


class Side(Protocol):
    """A cluster, and what somebody else does to it."""

    cluster: Cluster

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None: ...

    async def read(self, key: ObjectKey) -> dict[str, Any]: ...

    async def node(self) -> ObjectKey:
        """A new node with a taint of somebody else."""

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        """A new one that runs, with its uid; its budget lets none go, or it has none."""


class MemorySide:
    def __init__(self) -> None:
        self._memory = MemoryCluster()
        self.cluster: Cluster = self._memory

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None:
        del key
        kind = INFERENCE_SERVICES if body["kind"] == "InferenceService" else SERVICES
        self._memory.put(kind, body, manager)

    async def read(self, key: ObjectKey) -> dict[str, Any]:
        return self._memory.objects[key]

    async def node(self) -> ObjectKey:
        return self._memory.put(NODES, _node(f"contract-{next(_numbers)}"))

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        key = self._memory.put(PODS, _pod(f"contract-{next(_numbers)}"))
        if guarded:
            self._memory.refusals[key] = "The disruption budget contract allows 0"
        return Ref("default", key.name), self._memory.objects[key]["metadata"]["uid"]


class RealSide:
    def __init__(self, cluster: KubeCluster) -> None:
        self._real = cluster
        self.cluster: Cluster = cluster

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None:
        """As `kubectl apply --server-side --force-conflicts` of another manager."""
        kind = INFERENCE_SERVICES if key.plural == INFERENCE_SERVICES.plural else SERVICES
        path = kind.path(key.namespace, key.name)
        query = {"fieldManager": manager, "force": "true"}
        status, answer = await self._real.request(
            "PATCH", path, query, body, "application/apply-patch+yaml"
        )
        assert status < 300, answer

    async def read(self, key: ObjectKey) -> dict[str, Any]:
        kind = next(kind for kind in KINDS if kind.plural == key.plural)
        return await self._asked("GET", kind.path(key.namespace or None, key.name))

    async def node(self) -> ObjectKey:
        name = f"contract-{next(_numbers)}"
        await self._asked("POST", NODES.path(None), _node(name))
        return ObjectKey(NODES.plural, "", name)

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        """Bound to a node without a kubelet, so that it stays as it is said to be."""
        name = f"contract-{next(_numbers)}"
        body = _pod(name, nodeName=(await self.node()).name)
        made = await self._asked("POST", PODS.path("default"), body)
        budget = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"pod": name}}},
        }
        if guarded:
            await self._asked("POST", DISRUPTION_BUDGETS.path("default"), budget)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        path = f"{PODS.path('default', name)}/status"
        await self._asked("PATCH", path, {"status": ready}, "application/merge-patch+json")
        return Ref("default", name), made["metadata"]["uid"]

    async def _asked(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        status, answer = await self._real.request(method, path, None, body, content_type)
        assert status < 300, answer
        found: dict[str, Any] = answer
        return found


def _node(name: str) -> dict[str, Any]:
    taint = {"key": "team", "value": "llm", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"zone": "a"}},
        "spec": {"taints": [taint]},
    }


def _pod(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"pod": name},
            "creationTimestamp": None,
        },
        "spec": {"containers": [{"name": "one", "image": "none"}], **spec},
    }


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.world)])
def side(request: pytest.FixtureRequest) -> Side:
    if request.param == "memory":
        return MemorySide()
    return RealSide(request.getfixturevalue("cluster"))


def a_service(name: str | None = None, **spec: Any) -> ObjectManifest:
    name = name or f"contract-{next(_numbers)}"
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"app.kubernetes.io/managed-by": "tessera", "tessera.dev/service": "chat"},
        },
        "spec": {
            "selector": {"app": "one"},
            "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
            **spec,
        },
    }
    return ObjectManifest(kind=SERVICES, namespace="default", name=name, body=body)


async def owned(side: Side, key: ObjectKey) -> str | None:
    return (await listed(side))[key].owned_fields_digest


async def listed(side: Side, kind: ApiResource = SERVICES) -> dict[ObjectKey, ClusterObject]:
    found = await side.cluster.list(kind)
    assert found is not None
    return {seen.key: seen for seen in found.items}


async def test_what_is_applied_is_listed_with_the_same_digest(side: Side) -> None:
    wanted = a_service()
    made = await side.cluster.apply(wanted)
    assert made.key == wanted.key
    assert made.owned_fields_digest is not None
    assert await owned(side, wanted.key) == made.owned_fields_digest


async def test_applying_again_changes_nothing(side: Side) -> None:
    wanted = a_service()
    first = await side.cluster.apply(wanted)
    before = await side.read(wanted.key)
    again = await side.cluster.apply(wanted)
    assert again == first
    assert (await side.read(wanted.key))["metadata"].get("resourceVersion") == before[
        "metadata"
    ].get("resourceVersion")


async def test_a_field_that_somebody_takes_changes_the_digest_and_is_taken_back(
    side: Side,
) -> None:
    wanted = a_service()
    made = await side.cluster.apply(wanted)
    edit = {**wanted.body, "metadata": {"name": wanted.name, "namespace": "default"}}
    edit["spec"] = {"selector": {"app": "two"}}
    await side.write(wanted.key, edit, "kubectl-edit")
    assert await owned(side, wanted.key) != made.owned_fields_digest
    assert (await side.cluster.apply(wanted)).owned_fields_digest == made.owned_fields_digest
    assert (await side.read(wanted.key))["spec"]["selector"] == {"app": "one"}


async def test_fields_of_others_stay(side: Side) -> None:
    wanted = a_service()
    made = await side.cluster.apply(wanted)
    extra = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": wanted.name, "namespace": "default", "annotations": {"team": "own"}},
    }
    await side.write(wanted.key, extra, "kubectl-annotate")
    assert await owned(side, wanted.key) == made.owned_fields_digest
    await side.cluster.apply(wanted)
    assert (await side.read(wanted.key))["metadata"]["annotations"] == {"team": "own"}


async def test_an_object_of_somebody_else_is_refused_with_its_owner(side: Side) -> None:
    theirs = a_service()
    await side.write(theirs.key, dict(theirs.body), "helm")
    with pytest.raises(ClusterError, match=r"already exists and is managed by helm; rename"):
        await side.cluster.apply(a_service(theirs.name, selector={"app": "ours"}))
    assert (await side.read(theirs.key))["spec"]["selector"] == {"app": "one"}


async def test_deleting_twice_is_no_error(side: Side) -> None:
    wanted = a_service()
    await side.cluster.apply(wanted)
    for _ in range(2):
        await side.cluster.delete(SERVICES, wanted.key)
    assert wanted.key not in await listed(side)


async def test_only_the_object_that_is_meant_is_deleted_and_no_namesake(side: Side) -> None:
    wanted = a_service()
    await side.cluster.apply(wanted)
    uid = (await side.read(wanted.key))["metadata"]["uid"]
    await side.cluster.delete(SERVICES, wanted.key, uid="another")
    assert wanted.key in await listed(side)
    await side.cluster.delete(SERVICES, wanted.key, uid=uid, grace_seconds=0)
    assert wanted.key not in await listed(side)


async def test_only_what_the_selector_takes_is_listed(side: Side) -> None:
    theirs = a_service()
    plain = {**theirs.body, "metadata": {"name": theirs.name, "namespace": "default"}}
    await side.write(theirs.key, plain, "helm")
    assert theirs.key not in await listed(side)


async def test_a_kind_that_does_not_exist_is_told_from_an_empty_one(side: Side) -> None:
    assert await side.cluster.list(POD_MONITORS) is None


async def test_a_status_is_applied_beside_the_spec(side: Side) -> None:
    key = await _a_model(side)
    body = _status(key, {"replicas": 3})
    applied = ObjectManifest(
        kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
    )
    await side.cluster.apply(applied, subresource="status")
    got = await side.read(key)
    assert (got["status"]["replicas"], got["spec"]["model"]["uri"]) == (3, SMALL)


async def test_a_part_of_a_status_that_is_not_told_again_is_gone_as_a_whole(side: Side) -> None:
    key = await _a_model(side)
    for told in ({"replicas": 3, "tenant": {"reason": "NoBudget"}}, {"replicas": 3}):
        body = _status(key, told)
        applied = ObjectManifest(
            kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
        )
        await side.cluster.apply(applied, subresource="status")
    assert "tenant" not in (await side.read(key))["status"]


async def test_the_status_of_what_is_gone_makes_nothing_anew(side: Side) -> None:
    key = ObjectKey(INFERENCE_SERVICES.plural, "default", f"contract-{next(_numbers)}")
    body = _status(key, {"replicas": 3})
    gone = ObjectManifest(
        kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
    )
    with pytest.raises(NotFoundError):
        await side.cluster.apply(gone, subresource="status")
    assert key not in await listed(side, INFERENCE_SERVICES)


async def _a_model(side: Side) -> ObjectKey:
    name = f"contract-{next(_numbers)}"
    key = ObjectKey(INFERENCE_SERVICES.plural, "default", name)
    body = {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"uri": SMALL}},
    }
    await side.write(key, body, "kubectl")
    return key


def _status(key: ObjectKey, status: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "status": status,
    }


async def test_a_watch_tells_what_came_and_went_since_a_version(side: Side) -> None:
    begun = await side.cluster.list(SERVICES)
    assert begun is not None
    wanted = a_service()
    await side.write(wanted.key, dict(wanted.body), "kubectl")
    await side.cluster.delete(SERVICES, wanted.key)
    told = []
    async with contextlib.aclosing(side.cluster.watch(SERVICES, begun.version)) as changes:
        async for change in changes:
            if change.cluster_object is not None and change.cluster_object.key == wanted.key:
                told.append((change.deleted, change.version > begun.version))
            if len(told) == 2:
                break
    assert told == [(False, True), (True, True)]


TAINT = "tessera.dev/repartition"


async def test_a_node_is_marked_in_one_write_and_what_others_said_of_it_stays(side: Side) -> None:
    key = await side.node()
    before = await side.read(key)
    seen = await side.cluster.patch_node(key.name, {"mig": "one", "zone": None}, {TAINT: True})
    got = await side.read(key)
    assert got["metadata"]["labels"].get("mig") == "one"
    assert "zone" not in got["metadata"]["labels"]
    assert {TAINT, "team"} <= {taint["key"] for taint in got["spec"]["taints"]}
    assert isinstance(seen.value, Node)
    assert (seen.value.labels["mig"], TAINT in seen.value.taints) == ("one", True)
    assert before["metadata"]["uid"] == got["metadata"]["uid"]


async def test_marking_again_writes_nothing(side: Side) -> None:
    key = await side.node()
    await side.cluster.patch_node(key.name, {"mig": "one"}, {TAINT: True})
    before = (await side.read(key))["metadata"].get("resourceVersion")
    await side.cluster.patch_node(
        key.name, {"mig": "one", "never": None}, {TAINT: True, "other": False}
    )
    assert (await side.read(key))["metadata"].get("resourceVersion") == before


async def test_a_taint_goes_alone(side: Side) -> None:
    key = await side.node()
    await side.cluster.patch_node(key.name, {}, {TAINT: True})
    await side.cluster.patch_node(key.name, {}, {TAINT: False})
    left = {taint["key"] for taint in (await side.read(key))["spec"]["taints"]}
    assert TAINT not in left
    assert "team" in left


async def test_a_node_that_is_gone_is_not_marked(side: Side) -> None:
    with pytest.raises(NotFoundError):
        await side.cluster.patch_node("nowhere", {"mig": "one"}, {})


async def test_a_budget_keeps_a_pod_and_says_so(side: Side) -> None:
    pod, uid = await side.pod(guarded=True)
    with pytest.raises(DisruptionBudgetError, match="disruption budget"):
        await side.cluster.evict(pod, uid)


async def test_neither_a_namesake_nor_what_is_gone_is_evicted(side: Side) -> None:
    pod, _ = await side.pod(guarded=False)
    await side.cluster.evict(pod, "another")
    await side.cluster.evict(Ref("default", "nobody"), "another")
    assert (await side.read(ObjectKey(PODS.plural, *pod)))["metadata"]["name"] == pod.name


async def test_a_pod_is_evicted_where_no_budget_keeps_it(side: Side) -> None:
    pod, uid = await side.pod(guarded=False)
    await side.cluster.evict(pod, uid)
    found = (await listed(side, PODS)).get(ObjectKey(PODS.plural, *pod))
    assert found is None or (isinstance(found.value, Pod) and found.value.terminating)
