"""An API server in memory with the controllers and the scheduler of Kubernetes, stepped by hand."""

import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from typing_extensions import override

from tessera.adapters import object_parsing as wire
from tessera.api.ref import Ref
from tessera.domain.names import SERVICE_LABEL, SERVING_GATE
from tessera.domain.observed.snapshot import Pod
from tessera.ports import ClusterObject, DisruptionBudgetError, NotFoundError, WatchEvent
from tessera.resources.api_resources import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NODE_LAYOUTS,
    NODES,
    PODS,
    SERVICES,
    ApiResource,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.builders import NOW
from tests.memory_cluster import MemoryCluster

Body = dict[str, Any]


class Kube(MemoryCluster):
    """Pods end by themselves after they are deleted, and conditions have several writers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.at: datetime = NOW
        self.lot = random.Random(seed)  # noqa: S311 - no secret
        self._made = self._addressed = 0
        self._read: dict[ObjectKey, tuple[str, Pod]] = {}

    # The API server

    @override
    async def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        del scope
        late = []
        for at, key, seen in reversed(self._changes):
            if at <= version:
                break
            if key.plural == kind.plural:
                late.append(
                    WatchEvent(
                        version=at,
                        cluster_object=seen or ClusterObject(key=key),
                        deleted=seen is None,
                    )
                )
        for change in reversed(late):
            yield change
        yield WatchEvent(version=self.version)

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        key = manifest.key
        if key.plural != PODS.plural or subresource is None:
            return await super().apply(manifest, subresource=subresource)
        if self._uid(key) != manifest.body["metadata"]["uid"]:
            raise NotFoundError(f"{key.describe()} not found")
        for condition in manifest.body["status"]["conditions"]:
            self.condition(key, **condition)
        self.condition(key, "Ready", _said(_ready(self.objects[key])))
        return self.seen(key)

    @override
    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        if kind.plural != PODS.plural:
            await super().delete(kind, key, uid=uid, grace_seconds=grace_seconds)
        elif key in self.objects and uid in (None, self._uid(key)):
            self.end(key)

    @override
    async def evict(self, pod: Ref, uid: str) -> None:
        key = ObjectKey(PODS.plural, pod.namespace, pod.name)
        if self._uid(key) != uid or self.pod(key).terminating:
            return
        found = self.pod(key)
        if found.takes_requests and not self._may_be_disrupted(found.service):
            raise DisruptionBudgetError(f"evict pod {pod}: the disruption budget allows none")
        self.end(key)

    def _may_be_disrupted(self, service: Ref) -> bool:
        budget = self.objects[ObjectKey(DISRUPTION_BUDGETS.plural, service.namespace, service.name)]
        expected = sum(
            body["spec"]["replicas"]
            for key, body in self.objects.items()
            if key.plural == DEPLOYMENTS.plural
            and body["metadata"]["labels"][SERVICE_LABEL] == service.name
        )
        healthy = sum(
            one.takes_requests for _, one in self.pods() if one.service.name == service.name
        )
        most = int(budget["spec"]["maxUnavailable"])
        return healthy + most > int(expected)

    def _uid(self, key: ObjectKey) -> str | None:
        uid: str | None = self.objects.get(key, {}).get("metadata", {}).get("uid")
        return uid

    @override
    def _must_be_ours(self, key: ObjectKey) -> None:
        """Nobody else owns the spec of a NodeLayout."""
        if key.plural != NODE_LAYOUTS.plural:
            super()._must_be_ours(key)

    # What its parts write

    def set(self, key: ObjectKey, *path: str, **values: object) -> None:
        """Fields of one part of an object, where they differ."""
        part = self.objects[key]
        for step in path:
            part = part[step]
        if any(part.get(name) != value for name, value in values.items()):
            part.update(values)
            self._changed(key)

    def end(self, key: ObjectKey) -> None:
        """It has been told to stop; its kubelet takes it away."""

        if not self.pod(key).terminating:
            self.set(key, "metadata", deletionTimestamp=self.moment)

    async def drop(self, key: ObjectKey) -> None:
        """It is gone."""
        await super().delete(PODS, key)

    @property
    def history(self) -> Sequence[tuple[int, ObjectKey, ClusterObject | None]]:
        """Every change since the beginning, with the object afterwards."""
        return self._changes

    @property
    def moment(self) -> str:
        return self.at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def condition(self, key: ObjectKey, type: str, status: str, **more: str) -> None:
        """Written where it differs; the time is that of the last change."""

        conditions = self.objects[key].setdefault("status", {}).setdefault("conditions", [])
        old: Body = next((one for one in conditions if one["type"] == type), {})
        since = self.moment if old.get("status") != status else old["lastTransitionTime"]
        new = {"type": type, "status": status, "lastTransitionTime": since, **more}
        if new != old:
            kept = [one for one in conditions if one is not old]
            self.set(key, "status", conditions=[*kept, new])

    def address(self, key: ObjectKey) -> None:
        """It gets one of its own."""
        self._addressed += 1
        text = f"10.1.{self._addressed // 250}.{self._addressed % 250}"
        self.set(key, "status", podIP=text)

    def ready(self, key: ObjectKey, *, up: bool) -> None:
        self.condition(key, "ContainersReady", _said(up))
        self.condition(key, "Ready", _said(_ready(self.objects[key])))

    def pods(self) -> Iterator[tuple[ObjectKey, Pod]]:
        for key in sorted(self.objects):
            if key.plural == PODS.plural:
                yield key, self.pod(key)

    def pod(self, key: ObjectKey) -> Pod:
        body = self.objects[key]
        version = body["metadata"]["resourceVersion"]
        if self._read.get(key, ("",))[0] != version:
            self._read[key] = version, wire.parse_pod(body)
        return self._read[key][1]

    # Controllers

    async def step(self) -> None:
        """All controllers and the scheduler, once."""
        self._addresses()
        self._deployments()
        for key, pod in list(self.pods()):
            if pod.terminating and pod.node is None:
                await self.drop(key)
        self._schedule()

    def _addresses(self) -> None:
        for key in [key for key in self.objects if key.plural == SERVICES.plural]:
            self.set(key, "spec", clusterIP="10.0.0.1")

    def _deployments(self) -> None:
        for key in sorted(key for key in self.objects if key.plural == DEPLOYMENTS.plural):
            body = self.objects[key]
            labels = body["spec"]["selector"]["matchLabels"]
            mine = [(at, pod) for at, pod in self.pods() if self._carries(at, labels)]
            alive = [(at, pod) for at, pod in mine if not pod.terminating]
            count = int(body["spec"]["replicas"])
            for _ in range(count - len(alive)):
                self._create(key, body)
            self.lot.shuffle(alive)
            alive.sort(key=lambda one: _worth(one[1]))
            for at, pod in alive:
                if pod.node is None and self._resources(at) != _resources(body):
                    self.end(at)
            for at, _ in alive[: max(0, len(alive) - count)]:
                self.end(at)
            self.set(key, status=_settled(body, count))
        self._orphans()

    def _orphans(self) -> None:
        owners = {
            tuple(sorted(body["spec"]["selector"]["matchLabels"].items()))
            for key, body in self.objects.items()
            if key.plural == DEPLOYMENTS.plural
        }
        for key, pod in list(self.pods()):
            if not pod.terminating and not any(self._carries(key, dict(one)) for one in owners):
                self.end(key)

    def _resources(self, pod: ObjectKey) -> Body:
        found: Body = self.objects[pod]["spec"]["containers"][0]["resources"]
        return found

    def _carries(self, key: ObjectKey, labels: Mapping[str, str]) -> bool:
        there: dict[str, str] = self.objects[key]["metadata"]["labels"]
        return labels.items() <= there.items()

    def _create(self, deployment: ObjectKey, body: Body) -> None:
        self._made += 1
        template = body["spec"]["template"]
        meta = {
            "name": f"{deployment.name}-{self._made}",
            "namespace": deployment.namespace,
            "creationTimestamp": self.moment,
            "labels": template["metadata"]["labels"] | {"pod-template-hash": "one"},
        }
        spec = {
            "nodeSelector": template["spec"]["nodeSelector"],
            "containers": [{"resources": _resources(body)}],
        }
        self.put(PODS, {"metadata": meta, "spec": spec}, "replicaset")

    # The scheduler

    def _schedule(self) -> None:
        waiting = [key for key, pod in self.pods() if pod.node is None and not pod.terminating]
        self.lot.shuffle(waiting)
        for key in waiting:
            fits = [node for node in self.nodes() if self._fits(key, node)]
            if not fits:
                told = {"reason": "Unschedulable", "message": "0 nodes are available"}
                self.condition(key, "PodScheduled", "False", **told)
                continue
            node = self.lot.choice(fits)
            self.set(key, "spec", nodeName=node)
            self.condition(key, "PodScheduled", "True")

    def nodes(self) -> list[str]:
        return sorted(key.name for key in self.objects if key.plural == NODES.plural)

    def _fits(self, key: ObjectKey, name: str) -> bool:
        node = wire.parse_node(self.objects[ObjectKey(NODES.plural, "", name)])
        selector = self.objects[key]["spec"]["nodeSelector"]
        held = [pod.devices for _, pod in self.pods() if pod.node == name]
        return (
            node.schedulable
            and not node.taints
            and selector.items() <= node.labels.items()
            and all(
                sum(one.get(resource, 0) for one in held) + count
                <= node.allocatable.get(resource, 0)
                for resource, count in self.pod(key).devices.items()
            )
        )


def _said(holds: bool) -> str:
    return "True" if holds else "False"


def _ready(body: Body) -> bool:
    holds = {one["type"]: one["status"] for one in body["status"]["conditions"]}
    return holds.get("ContainersReady") == holds.get(SERVING_GATE) == "True"


def _worth(pod: Pod) -> tuple[bool, bool, int]:
    """The order in which a ReplicaSet deletes."""
    return pod.node is not None, pod.takes_requests, pod.deletion_cost


def _resources(deployment: Body) -> Body:
    found: Body = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    return found


def _settled(body: Body, count: int) -> Body:
    seen = body["metadata"]["generation"]
    return {"observedGeneration": seen, "replicas": count, "updatedReplicas": count}
