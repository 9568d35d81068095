"""The contract of `Cluster`: for the in-memory one of the cycle tests, and the real API server."""

import contextlib
import itertools
from typing import Any, Protocol

import pytest

from tessera.adapters.kube.client import KubeCluster
from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import FIELD_MANAGER, GUARD_ANNOTATION, SERVING_GATE
from tessera.domain.observed.snapshot import Node, Pod
from tessera.ports import Cluster, ClusterError, ClusterObject, DisruptionBudgetError, NotFoundError
from tessera.resources.api_resources import (
    DISRUPTION_BUDGETS,
    FOREIGN_AUTOSCALERS,
    KINDS,
    NODES,
    POD_MONITORS,
    PODS,
    SERVICES,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tessera.resources.pod_patches import serving_gate
from tests.builders import NOW, SMALL, a_pod
from tests.memory_cluster import MemoryCluster

_numbers = itertools.count(1)
# The kinds that other clients write here.
WRITTEN = (INFERENCE_SERVICES, SERVICES, FOREIGN_AUTOSCALERS)


class ClusterHarness(Protocol):
    """A cluster, and the actions of other clients on it."""

    cluster: Cluster

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None: ...

    async def read(self, key: ObjectKey) -> dict[str, Any]: ...

    async def own_write(self, key: ObjectKey) -> object:
        """Return what writes of Tessera change in a node, and those of its controller do not."""

    async def node(self) -> ObjectKey:
        """Create a node with a taint of another client."""

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        """Create a running pod; a `guarded` one has a budget that allows no disruption."""


class MemoryHarness:
    def __init__(self) -> None:
        self._memory = MemoryCluster()
        self.cluster: Cluster = self._memory

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None:
        del key
        kind = next(kind for kind in WRITTEN if kind.kind == body["kind"])
        self._memory.put(kind, body, manager)

    async def read(self, key: ObjectKey) -> dict[str, Any]:
        return self._memory.objects[key]

    async def own_write(self, key: ObjectKey) -> object:
        return self._memory.objects[key]["metadata"]["resourceVersion"]

    async def node(self) -> ObjectKey:
        return self._memory.put(NODES, _node(f"contract-{next(_numbers)}"))

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        key = self._memory.put(PODS, _pod(f"contract-{next(_numbers)}"))
        if guarded:
            self._memory.refusals[key] = "The disruption budget contract allows 0"
        return Ref("default", key.name), self._memory.objects[key]["metadata"]["uid"]


class RealHarness:
    def __init__(self, cluster: KubeCluster) -> None:
        self._real = cluster
        self.cluster: Cluster = cluster

    async def write(self, key: ObjectKey, body: dict[str, Any], manager: str) -> None:
        """Write as `kubectl apply --server-side --force-conflicts` of another manager does."""
        kind = next(kind for kind in WRITTEN if kind.plural == key.plural)
        path = kind.path(key.namespace, key.name)
        query = {"fieldManager": manager, "force": "true"}
        status, answer = await self._real.request(
            "PATCH", path, query, body, "application/apply-patch+yaml"
        )
        assert status < 300, answer

    async def read(self, key: ObjectKey) -> dict[str, Any]:
        kind = next(kind for kind in KINDS if kind.plural == key.plural)
        return await self._request("GET", kind.path(key.namespace or None, key.name))

    async def own_write(self, key: ObjectKey) -> object:
        node = await self.read(key)
        metadata = node["metadata"]
        writes = [write for write in metadata["managedFields"] if write["manager"] == FIELD_MANAGER]
        # The node controller writes nodes too, whenever it comes to them. The list of taints has
        # one owner, who wrote it last: what Tessera has of the spec besides is nothing.
        for write in writes:
            assert write["fieldsV1"].pop("f:spec", {}).keys() <= {"f:taints"}
        taints = [
            taint
            for taint in node["spec"]["taints"]
            if not taint["key"].startswith("node.kubernetes.io/")
        ]
        return writes, metadata["labels"], taints

    async def node(self) -> ObjectKey:
        name = f"contract-{next(_numbers)}"
        await self._request("POST", NODES.path(None), _node(name))
        return ObjectKey(NODES.plural, "", name)

    async def pod(self, *, guarded: bool) -> tuple[Ref, str]:
        """Bind the pod to a node without a kubelet, so that its status stays as it is written."""
        name = f"contract-{next(_numbers)}"
        body = _pod(name, nodeName=(await self.node()).name)
        pod = await self._request("POST", PODS.path("default"), body)
        budget = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": name},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"pod": name}}},
        }
        if guarded:
            await self._request("POST", DISRUPTION_BUDGETS.path("default"), budget)
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        path = f"{PODS.path('default', name)}/status"
        await self._request("PATCH", path, {"status": ready}, "application/merge-patch+json")
        return Ref("default", name), pod["metadata"]["uid"]

    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        status, answer = await self._real.request(method, path, None, body, content_type)
        assert status < 300, answer
        response: dict[str, Any] = answer
        return response


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
def harness(request: pytest.FixtureRequest) -> ClusterHarness:
    if request.param == "memory":
        return MemoryHarness()
    return RealHarness(request.getfixturevalue("cluster"))


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


async def owned_digest(harness: ClusterHarness, key: ObjectKey) -> str | None:
    return (await list_objects(harness))[key].owned_fields_digest


async def list_objects(
    harness: ClusterHarness, kind: ApiResource = SERVICES
) -> dict[ObjectKey, ClusterObject]:
    object_list = await harness.cluster.list(kind)
    assert object_list is not None
    return {seen.key: seen for seen in object_list.items}


async def test_what_is_applied_is_listed_with_the_same_digest(harness: ClusterHarness) -> None:
    manifest = a_service()
    applied = await harness.cluster.apply(manifest)
    assert applied.key == manifest.key
    assert applied.owned_fields_digest is not None
    assert await owned_digest(harness, manifest.key) == applied.owned_fields_digest


async def test_applying_again_changes_nothing(harness: ClusterHarness) -> None:
    manifest = a_service()
    first = await harness.cluster.apply(manifest)
    before = await harness.read(manifest.key)
    second = await harness.cluster.apply(manifest)
    assert second == first
    assert (await harness.read(manifest.key))["metadata"].get("resourceVersion") == before[
        "metadata"
    ].get("resourceVersion")


async def test_a_field_that_somebody_takes_changes_the_digest_and_is_taken_back(
    harness: ClusterHarness,
) -> None:
    manifest = a_service()
    applied = await harness.cluster.apply(manifest)
    edit = {**manifest.body, "metadata": {"name": manifest.name, "namespace": "default"}}
    edit["spec"] = {"selector": {"app": "two"}}
    await harness.write(manifest.key, edit, "kubectl-edit")
    assert await owned_digest(harness, manifest.key) != applied.owned_fields_digest
    assert (
        await harness.cluster.apply(manifest)
    ).owned_fields_digest == applied.owned_fields_digest
    assert (await harness.read(manifest.key))["spec"]["selector"] == {"app": "one"}


async def test_fields_of_others_stay(harness: ClusterHarness) -> None:
    manifest = a_service()
    applied = await harness.cluster.apply(manifest)
    extra = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": manifest.name, "namespace": "default", "annotations": {"team": "own"}},
    }
    await harness.write(manifest.key, extra, "kubectl-annotate")
    assert await owned_digest(harness, manifest.key) == applied.owned_fields_digest
    await harness.cluster.apply(manifest)
    assert (await harness.read(manifest.key))["metadata"]["annotations"] == {"team": "own"}


async def test_an_object_of_somebody_else_is_refused_with_its_owner(
    harness: ClusterHarness,
) -> None:
    foreign = a_service()
    await harness.write(foreign.key, dict(foreign.body), "helm")
    with pytest.raises(ClusterError, match=r"already exists and is managed by helm; rename"):
        await harness.cluster.apply(a_service(foreign.name, selector={"app": "ours"}))
    assert (await harness.read(foreign.key))["spec"]["selector"] == {"app": "one"}


async def test_the_first_apply_of_an_invalid_object_is_refused_with_the_field(
    harness: ClusterHarness,
) -> None:
    for name in ("a.b.c", "a" * 64):
        with pytest.raises(ClusterError, match=r"422 .*metadata\.name: Invalid value") as refusal:
            await harness.cluster.apply(a_service(name))
        assert not isinstance(refusal.value, NotFoundError)
        assert ObjectKey(SERVICES.plural, "default", name) not in await list_objects(harness)


async def test_deleting_twice_is_no_error(harness: ClusterHarness) -> None:
    manifest = a_service()
    await harness.cluster.apply(manifest)
    for _ in range(2):
        await harness.cluster.delete(SERVICES, manifest.key)
    assert manifest.key not in await list_objects(harness)


async def test_only_the_object_that_is_meant_is_deleted_and_no_namesake(
    harness: ClusterHarness,
) -> None:
    manifest = a_service()
    await harness.cluster.apply(manifest)
    uid = (await harness.read(manifest.key))["metadata"]["uid"]
    await harness.cluster.delete(SERVICES, manifest.key, uid="another")
    assert manifest.key in await list_objects(harness)
    await harness.cluster.delete(SERVICES, manifest.key, uid=uid, grace_seconds=0)
    assert manifest.key not in await list_objects(harness)


async def test_a_copy_by_another_client_is_nobodys_child(harness: ClusterHarness) -> None:
    manifest = a_service()
    await harness.cluster.apply(manifest)
    copy = a_service()
    await harness.write(copy.key, dict(copy.body), "kubectl")
    objects = await list_objects(harness)
    assert (objects[manifest.key].service, objects[copy.key].service) == (
        Ref("default", "chat"),
        None,
    )
    assert objects[copy.key].plan_input is None
    assert objects[copy.key].uid == (await harness.read(copy.key))["metadata"]["uid"]


async def test_only_what_the_selector_takes_is_listed(harness: ClusterHarness) -> None:
    foreign = a_service()
    plain = {**foreign.body, "metadata": {"name": foreign.name, "namespace": "default"}}
    await harness.write(foreign.key, plain, "helm")
    assert foreign.key not in await list_objects(harness)


async def test_autoscalers_of_a_namespace_are_listed_by_the_deployments_that_they_scale(
    harness: ClusterHarness,
) -> None:
    number = next(_numbers)
    for suffix, kind in (("a", "Deployment"), ("b", "Deployment"), ("c", "StatefulSet")):
        name = f"contract-{number}-{suffix}"
        target = f"contract-{number}" + ("-set" if kind == "StatefulSet" else "")
        body = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": target},
                "maxReplicas": 2,
            },
        }
        key = ObjectKey(FOREIGN_AUTOSCALERS.plural, "default", name)
        await harness.write(key, body, "kubectl")
    listed = await harness.cluster.list_autoscalers("default")
    assert listed[f"contract-{number}"] == f"contract-{number}-a"
    assert f"contract-{number}-set" not in listed
    assert await harness.cluster.list_autoscalers("kube-public") == {}


async def test_a_kind_that_does_not_exist_is_distinguished_from_an_empty_one(
    harness: ClusterHarness,
) -> None:
    assert await harness.cluster.list(POD_MONITORS) is None


async def test_a_status_is_applied_beside_the_spec(harness: ClusterHarness) -> None:
    key = await _a_model(harness)
    body = _status(key, {"replicas": 3})
    manifest = ObjectManifest(
        kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
    )
    await harness.cluster.apply(manifest, subresource="status")
    body = await harness.read(key)
    assert (body["status"]["replicas"], body["spec"]["model"]["uri"]) == (3, SMALL)


async def test_a_part_of_a_status_that_is_not_applied_again_is_removed_as_a_whole(
    harness: ClusterHarness,
) -> None:
    key = await _a_model(harness)
    for status in ({"replicas": 3, "tenant": {"reason": "NoBudget"}}, {"replicas": 3}):
        body = _status(key, status)
        manifest = ObjectManifest(
            kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
        )
        await harness.cluster.apply(manifest, subresource="status")
    assert "tenant" not in (await harness.read(key))["status"]


async def test_applying_the_status_of_a_deleted_object_creates_nothing(
    harness: ClusterHarness,
) -> None:
    key = ObjectKey(INFERENCE_SERVICES.plural, "default", f"contract-{next(_numbers)}")
    body = _status(key, {"replicas": 3})
    manifest = ObjectManifest(
        kind=INFERENCE_SERVICES, namespace=key.namespace, name=key.name, body=body
    )
    with pytest.raises(NotFoundError):
        await harness.cluster.apply(manifest, subresource="status")
    assert key not in await list_objects(harness, INFERENCE_SERVICES)


async def _a_model(harness: ClusterHarness) -> ObjectKey:
    name = f"contract-{next(_numbers)}"
    key = ObjectKey(INFERENCE_SERVICES.plural, "default", name)
    body = {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"model": {"uri": SMALL}},
    }
    await harness.write(key, body, "kubectl")
    return key


def _status(key: ObjectKey, status: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "status": status,
    }


async def test_a_watch_reports_changes_since_a_version(harness: ClusterHarness) -> None:
    before = await harness.cluster.list(SERVICES)
    assert before is not None
    manifest = a_service()
    await harness.write(manifest.key, dict(manifest.body), "kubectl")
    await harness.cluster.delete(SERVICES, manifest.key)
    events = []
    async with contextlib.aclosing(harness.cluster.watch(SERVICES, before.version)) as changes:
        async for change in changes:
            if change.cluster_object is not None and change.cluster_object.key == manifest.key:
                events.append((change.deleted, change.version > before.version))
            if len(events) == 2:
                break
    assert events == [(False, True), (True, True)]


TAINT = "tessera.dev/repartition"


async def test_a_node_is_patched_in_one_write_and_fields_of_others_stay(
    harness: ClusterHarness,
) -> None:
    key = await harness.node()
    before = await harness.read(key)
    patched = await harness.cluster.patch_node(
        key.name, {"mig": "one", "zone": None}, {TAINT: True}
    )
    node = await harness.read(key)
    assert node["metadata"]["labels"].get("mig") == "one"
    assert "zone" not in node["metadata"]["labels"]
    assert {TAINT, "team"} <= {taint["key"] for taint in node["spec"]["taints"]}
    assert isinstance(patched.plan_input, Node)
    assert (patched.plan_input.labels["mig"], TAINT in patched.plan_input.taints) == ("one", True)
    assert before["metadata"]["uid"] == node["metadata"]["uid"]


async def test_patching_again_writes_nothing(harness: ClusterHarness) -> None:
    key = await harness.node()
    await harness.cluster.patch_node(key.name, {"mig": "one"}, {TAINT: True})
    before = await harness.own_write(key)
    await harness.cluster.patch_node(
        key.name, {"mig": "one", "never": None}, {TAINT: True, "other": False}
    )
    assert await harness.own_write(key) == before


async def test_annotations_of_a_node_are_set_and_removed(harness: ClusterHarness) -> None:
    key = await harness.node()
    annotations = {GUARD_ANNOTATION: "true", "example.org/note": "kept"}
    patched = await harness.cluster.patch_node(key.name, {}, {}, annotations)
    assert isinstance(patched.plan_input, Node)
    assert patched.plan_input.guarded
    patched = await harness.cluster.patch_node(key.name, {}, {}, {GUARD_ANNOTATION: None})
    assert isinstance(patched.plan_input, Node)
    assert not patched.plan_input.guarded
    assert (await harness.read(key))["metadata"]["annotations"]["example.org/note"] == "kept"


async def test_only_the_named_taint_is_removed(harness: ClusterHarness) -> None:
    key = await harness.node()
    await harness.cluster.patch_node(key.name, {}, {TAINT: True})
    await harness.cluster.patch_node(key.name, {}, {TAINT: False})
    left = {taint["key"] for taint in (await harness.read(key))["spec"]["taints"]}
    assert TAINT not in left
    assert "team" in left


async def test_a_deleted_node_is_not_patched(harness: ClusterHarness) -> None:
    with pytest.raises(NotFoundError):
        await harness.cluster.patch_node("nowhere", {"mig": "one"}, {})


async def test_a_gate_is_set_beside_the_other_conditions_of_its_pod(
    harness: ClusterHarness,
) -> None:
    ref, uid = await harness.pod(guarded=False)
    pod = a_pod(ref=ref, uid=uid)
    key = serving_gate(pod, NOW, serving=True).key
    before = _conditions(await harness.read(key))
    for serving in (True, False):
        manifest = serving_gate(pod, NOW, serving=serving)
        await harness.cluster.apply(manifest, subresource="status")
        conditions = _conditions(await harness.read(key))
        assert conditions == before | {SERVING_GATE: str(serving)}


def _conditions(pod: dict[str, Any]) -> dict[str, str]:
    conditions = pod.get("status", {}).get("conditions", ())
    return {condition["type"]: condition["status"] for condition in conditions}


async def test_neither_a_namesake_nor_a_deleted_pod_gets_a_gate(harness: ClusterHarness) -> None:
    ref, _ = await harness.pod(guarded=False)
    for name in (ref, Ref("default", "gone")):
        pod = a_pod(ref=name, uid="uid-of-another")
        manifest = serving_gate(pod, NOW, serving=True)
        with pytest.raises(NotFoundError):
            await harness.cluster.apply(manifest, subresource="status")


async def test_a_budget_protects_a_pod_and_the_error_names_it(harness: ClusterHarness) -> None:
    pod, uid = await harness.pod(guarded=True)
    with pytest.raises(DisruptionBudgetError, match="disruption budget"):
        await harness.cluster.evict(pod, uid)


async def test_neither_a_namesake_nor_a_deleted_pod_is_evicted(harness: ClusterHarness) -> None:
    pod, _ = await harness.pod(guarded=False)
    await harness.cluster.evict(pod, "another")
    await harness.cluster.evict(Ref("default", "nobody"), "another")
    assert (await harness.read(ObjectKey(PODS.plural, *pod)))["metadata"]["name"] == pod.name


async def test_a_pod_is_evicted_where_no_budget_keeps_it(harness: ClusterHarness) -> None:
    pod, uid = await harness.pod(guarded=False)
    await harness.cluster.evict(pod, uid)
    current = (await list_objects(harness, PODS)).get(ObjectKey(PODS.plural, *pod))
    assert current is None or (
        isinstance(current.plan_input, Pod) and current.plan_input.terminating
    )
