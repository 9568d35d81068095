"""An API server in memory with the controllers and the scheduler of Kubernetes, stepped by hand."""

import hashlib
import json
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from typing_extensions import override

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.names import SERVING_GATE
from tessera.domain.observed.snapshot import Pod
from tessera.ports import ClusterObject, DisruptionBudgetError, NotFoundError, WatchEvent
from tessera.resources.api_resources import DEPLOYMENTS, DISRUPTION_BUDGETS, NODES, PODS, SERVICES
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.builders import NOW
from tests.memory_cluster import MemoryCluster

Body = dict[str, Any]


class Kube(MemoryCluster):
    """Pods end by themselves after they are deleted, and conditions have several writers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.at: datetime = NOW
        self.rng = random.Random(seed)  # noqa: S311 - no secret
        self.stalled = set[ObjectKey]()
        """Replicas whose engines hold requests and make no step."""
        self._pods_created = self._addresses_given = 0
        self._parsed: dict[ObjectKey, tuple[str, Pod]] = {}

    # The API server

    @override
    async def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        del scope
        events = []
        for at, key, seen in reversed(self._changes):
            if at <= version:
                break
            if key.plural == kind.plural:
                events.append(
                    WatchEvent(
                        version=at,
                        cluster_object=seen or ClusterObject(key=key),
                        deleted=seen is None,
                    )
                )
        for change in reversed(events):
            yield change
        yield WatchEvent(version=self.version)

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        key = manifest.key
        if key.plural != PODS.plural or subresource is None:
            is_new = key not in self.objects
            await super().apply(manifest, subresource=subresource)
            if is_new:
                self.set(key, "metadata", creationTimestamp=self.moment)
            return self.seen(key)
        if self._uid(key) != manifest.body["metadata"]["uid"]:
            raise NotFoundError(f"{key.describe()} not found")
        for condition in manifest.body["status"]["conditions"]:
            self.condition(key, **condition)
        self.condition(key, "Ready", _status_of(_ready(self.objects[key])))
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
            self.begin_deletion(key)

    @override
    async def evict(self, pod: Ref, uid: str) -> None:
        key = ObjectKey(PODS.plural, pod.namespace, pod.name)
        if self._uid(key) != uid or self.pod(key).terminating:
            return
        budgets = [name for name in self._budgets(pod.namespace) if self._protects(name, key)]
        if len(budgets) > 1:
            names = " and ".join(f"poddisruptionbudget/{name.name}" for name in sorted(budgets))
            raise DisruptionBudgetError(
                f"evict pod {pod}: {names} select it, and the API server evicts no pod with more "
                "than one"
            )
        if not all(self._allows_disruption(name, self.pod(key)) for name in budgets):
            raise DisruptionBudgetError(f"evict pod {pod}: the disruption budget allows none")
        self.begin_deletion(key)

    def _budgets(self, namespace: str) -> list[ObjectKey]:
        return [
            key
            for key in self.objects
            if key.plural == DISRUPTION_BUDGETS.plural and key.namespace == namespace
        ]

    def _protects(self, budget: ObjectKey, pod: ObjectKey) -> bool:
        selector = self.objects[budget]["spec"]["selector"]
        absent = [
            entry["key"]
            for entry in selector.get("matchExpressions", ())
            if entry["operator"] == "DoesNotExist"
        ]
        labels = self.objects[pod]["metadata"]["labels"]
        return self._carries(pod, selector.get("matchLabels", {})) and not any(
            name in labels for name in absent
        )

    def _allows_disruption(self, budget: ObjectKey, pod: Pod) -> bool:
        spec = self.objects[budget]["spec"]
        if not pod.takes_requests and spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
            return True
        selector = spec["selector"].get("matchLabels", {})
        expected = sum(
            int(body["spec"]["replicas"])
            for key, body in self.objects.items()
            if key.plural == DEPLOYMENTS.plural
            and selector.items() <= body["spec"]["template"]["metadata"]["labels"].items()
        )
        healthy = sum(pod.takes_requests for key, pod in self.pods() if self._protects(budget, key))
        limit = str(spec["maxUnavailable"])
        percent = int(limit.removesuffix("%")) if limit.endswith("%") else None
        max_unavailable = int(limit) if percent is None else -(-expected * percent // 100)
        spare = healthy + max_unavailable - expected
        return spare > 0 or (spare == 0 and not pod.takes_requests)

    def _uid(self, key: ObjectKey) -> str | None:
        uid: str | None = self.objects.get(key, {}).get("metadata", {}).get("uid")
        return uid

    # Writes of its parts

    def set(self, key: ObjectKey, *path: str, **values: object) -> None:
        """Set fields of one part of an object, where they differ."""
        part = self.objects[key]
        for step in path:
            part = part[step]
        if any(part.get(name) != value for name, value in values.items()):
            part.update(values)
            self._changed(key)

    def begin_deletion(self, key: ObjectKey) -> None:
        """Mark a pod as terminating; its kubelet removes it later."""

        if not self.pod(key).terminating:
            self.set(key, "metadata", deletionTimestamp=self.moment)

    async def drop(self, key: ObjectKey) -> None:
        """Remove a pod."""
        await super().delete(PODS, key)

    @property
    def history(self) -> Sequence[tuple[int, ObjectKey, ClusterObject | None]]:
        """Every change since the start, with the object after it."""
        return self._changes

    @property
    def moment(self) -> str:
        return self.at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def condition(self, key: ObjectKey, type: str, status: str, **more: str) -> None:
        """Set a condition where it differs, with the time of its last transition."""

        conditions = self.objects[key].setdefault("status", {}).setdefault("conditions", [])
        old: Body = next((condition for condition in conditions if condition["type"] == type), {})
        since = self.moment if old.get("status") != status else old["lastTransitionTime"]
        new = {"type": type, "status": status, "lastTransitionTime": since, **more}
        if new != old:
            others = [condition for condition in conditions if condition is not old]
            self.set(key, "status", conditions=[*others, new])

    def address(self, key: ObjectKey) -> None:
        """Give a pod its own address."""
        self._addresses_given += 1
        text = f"10.1.{self._addresses_given // 250}.{self._addresses_given % 250}"
        self.set(key, "status", podIP=text)

    def ready(self, key: ObjectKey, *, up: bool) -> None:
        self.condition(key, "ContainersReady", _status_of(up))
        self.condition(key, "Ready", _status_of(_ready(self.objects[key])))

    def pods(self) -> Iterator[tuple[ObjectKey, Pod]]:
        for key in sorted(self.objects):
            if key.plural == PODS.plural:
                yield key, self.pod(key)

    def pod(self, key: ObjectKey) -> Pod:
        body = self.objects[key]
        version = body["metadata"]["resourceVersion"]
        if self._parsed.get(key, ("",))[0] != version:
            parsed = wire.parse_pod(body)
            assert parsed is not None
            self._parsed[key] = version, parsed
        return self._parsed[key][1]

    # Controllers

    async def step(self) -> None:
        """Run all controllers and the scheduler once."""
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
            pods = [(at, pod) for at, pod in self.pods() if self._owner(at) == key]
            alive = [(at, pod) for at, pod in pods if not pod.terminating]
            self.rng.shuffle(alive)
            alive.sort(key=lambda key_and_pod: _deletion_order(key_and_pod[1]))
            newest = _template_hash(body)
            new = [at for at, pod in alive if pod.template == newest]
            old = [at for at, pod in alive if pod.template != newest]
            self._roll(key, body, new, old)
            status = {
                "observedGeneration": body["metadata"]["generation"],
                "replicas": len(new) + len(old),
                "updatedReplicas": len(new),
            }
            self.set(key, status=status)
        self._orphans()

    def _roll(
        self, key: ObjectKey, body: Body, new: Sequence[ObjectKey], old: Sequence[ObjectKey]
    ) -> None:
        """Create and delete pods as a rolling update does, and as its ReplicaSets scale.

        Both are sorted by the order in which they are deleted.
        """
        count, rolling = int(body["spec"]["replicas"]), body["spec"]["strategy"]["rollingUpdate"]
        surge = rolling["maxSurge"] if old else 0
        for _ in range(min(count - len(new), count + surge - len(new) - len(old))):
            self._create(key, body)
        for at in new[: max(0, len(new) - count)]:
            self.begin_deletion(at)
        if not old:
            return
        least = count - rolling["maxUnavailable"]
        available = {at for at in (*new, *old) if self.pod(at).takes_requests}
        unavailable_new = sum(at not in available for at in new)
        removable = max(0, len(new) + len(old) - least - unavailable_new)
        broken = [at for at in old if at not in available][:removable]
        serving = [at for at in old if at in available][: max(0, len(available) - least)]
        too_many = max(0, len(old) + min(len(new), count) - count - surge)
        for at in (*broken, *old[:too_many], *serving):
            self.end_for_rollout(at, in_place=surge == 0)

    def end_for_rollout(self, key: ObjectKey, *, in_place: bool) -> None:
        """Delete a pod of an older template, `in_place` before its successor is Ready."""
        del in_place
        self.begin_deletion(key)

    def _orphans(self) -> None:
        for key, pod in list(self.pods()):
            owner = self._owner(key)
            if owner is not None and owner not in self.objects and not pod.terminating:
                self.begin_deletion(key)

    def _owner(self, key: ObjectKey) -> ObjectKey | None:
        """Return the Deployment whose ReplicaSet made a pod; other selectors match it too."""
        meta = self.objects[key]["metadata"]
        for owner in meta.get("ownerReferences", ()):
            if owner["kind"] == "ReplicaSet" and owner.get("controller"):
                name = owner["name"].removesuffix(f"-{meta['labels'].get('pod-template-hash')}")
                return ObjectKey(DEPLOYMENTS.plural, key.namespace, name)
        return None

    def _carries(self, key: ObjectKey, labels: Mapping[str, str]) -> bool:
        pod_labels: dict[str, str] = self.objects[key]["metadata"]["labels"]
        return labels.items() <= pod_labels.items()

    def _create(self, deployment: ObjectKey, body: Body) -> None:
        self._pods_created += 1
        template = body["spec"]["template"]
        meta = {
            "name": f"{deployment.name}-{self._pods_created}",
            "namespace": deployment.namespace,
            "creationTimestamp": self.moment,
            "labels": template["metadata"]["labels"] | {"pod-template-hash": _template_hash(body)},
            "ownerReferences": [
                {
                    "kind": "ReplicaSet",
                    "name": f"{deployment.name}-{_template_hash(body)}",
                    "controller": True,
                }
            ],
        }
        spec = {
            "nodeSelector": template["spec"]["nodeSelector"],
            "containers": [{"resources": _resources(body)}],
        }
        self.put(PODS, {"metadata": meta, "spec": spec}, "replicaset")

    # The scheduler

    def _schedule(self) -> None:
        waiting = [key for key, pod in self.pods() if pod.node is None and not pod.terminating]
        self.rng.shuffle(waiting)
        for key in waiting:
            fits = [node for node in self.nodes() if self._fits(key, node)]
            if not fits:
                unschedulable = {"reason": "Unschedulable", "message": "0 nodes are available"}
                self.condition(key, "PodScheduled", "False", **unschedulable)
                continue
            node = self.rng.choice(fits)
            self.set(key, "spec", nodeName=node)
            self.condition(key, "PodScheduled", "True")

    def nodes(self) -> list[str]:
        return sorted(key.name for key in self.objects if key.plural == NODES.plural)

    def _fits(self, key: ObjectKey, name: str) -> bool:
        node = wire.parse_node(self.objects[ObjectKey(NODES.plural, "", name)])
        selector = self.objects[key]["spec"]["nodeSelector"]
        devices_in_use = [pod.devices for _, pod in self.pods() if pod.node == name]
        return (
            node.schedulable
            and not node.taints
            and selector.items() <= node.labels.items()
            and all(
                sum(devices.get(resource, 0) for devices in devices_in_use) + count
                <= node.allocatable.get(resource, 0)
                for resource, count in self.pod(key).devices.items()
            )
        )


def _status_of(holds: bool) -> str:
    return "True" if holds else "False"


def _ready(body: Body) -> bool:
    statuses = {
        condition["type"]: condition["status"] for condition in body["status"]["conditions"]
    }
    return statuses.get("ContainersReady") == statuses.get(SERVING_GATE) == "True"


def _deletion_order(pod: Pod) -> tuple[bool, bool, int]:
    """Return the sort key by which a ReplicaSet deletes pods."""
    return pod.node is not None, pod.takes_requests, pod.deletion_cost


def _resources(deployment: Body) -> Body:
    resources: Body = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    return resources


def _template_hash(deployment: Body) -> str:
    """Return what names the ReplicaSet of the newest template."""
    template = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(template.encode()).hexdigest()[:8]
