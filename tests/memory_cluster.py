"""An in-memory `Cluster`: objects, and the field managers that own their fields."""

import asyncio
import itertools
import pickle
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import PRICE_LISTS
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.observed.snapshot import PodEvent
from tessera.ports import (
    ClusterError,
    ClusterObject,
    DisruptionBudgetError,
    NotFoundError,
    ObjectList,
    ResourceExpiredError,
    WatchEvent,
)
from tessera.resources.api_resources import (
    AUTOSCALING,
    CONFIG_MAPS,
    DEPLOYMENTS,
    FOREIGN_AUTOSCALERS,
    KINDS,
    NODES,
    POD_MONITORS,
    PODS,
    PROVIDER_SECRETS,
    SERVICES,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tessera.resources.mig_objects import node_patch

Path = tuple[str, ...]
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

# Owns what the operator writes by another request than apply.
_OWN_UPDATE = f"{FIELD_MANAGER}//Update"
# No field manager owns the identity of an object.
_IDENTITY: tuple[Path, ...] = (
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "uid"),
)


class MemoryCluster:
    """Implements server-side apply as far as the operator depends on it; a list is one field,
    but for the conditions of pods."""

    def __init__(self, *, monitored: bool = False) -> None:
        further = (PRICE_LISTS, CONFIG_MAPS, PROVIDER_SECRETS, FOREIGN_AUTOSCALERS)
        self._kinds = {kind.plural: kind for kind in (*KINDS, *further, *AUTOSCALING)}
        self._unknown = set() if monitored else {POD_MONITORS.plural}
        self.objects: dict[ObjectKey, dict[str, Any]] = {}
        self._owners: dict[ObjectKey, dict[Path, str]] = {}
        self._serial = itertools.count(1)
        self._changes: list[tuple[int, ObjectKey, ClusterObject | None]] = []
        self._versions = itertools.count(1)
        self.version = 0
        self.forgotten = 0
        """Watches from before this version are refused, as after a compaction."""
        self.broken_watches = 0
        """So many watches of nodes lose their connection."""
        self.applied: list[ObjectKey] = []
        self.refusals: dict[ObjectKey, str] = {}
        self.pod_refusals: dict[str, str] = {}
        """The messages of events FailedCreate, by the UIDs of Jobs."""
        self.autoscaler_refusal: str | None = None
        """Why HorizontalPodAutoscalers cannot be listed."""
        self.pod_events_by_uid: dict[str, tuple[PodEvent, ...]] = {}
        self.event_queries: list[str] = []
        self.events: dict[str, dict[str, Any]] = {}
        """Recorded Events, by name."""

    def compact(self) -> None:
        """Forget what changed and was applied so far."""
        self.forgotten = self.version
        self._changes.clear()
        self.applied.clear()

    async def list(self, kind: ApiResource) -> ObjectList | None:
        if kind.plural in self._unknown:
            return None
        keys = (key for key in sorted(self.objects) if key.plural == kind.plural)
        seen = (self.seen(key) for key in keys if self._selected(kind, key))
        items = tuple(observed for observed in seen if not wire.is_unneeded(kind, observed))
        return ObjectList(items, self.version)

    def scopes(self, kind: ApiResource) -> tuple[None]:
        del kind
        return (None,)

    async def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield all changes since `version`, then end the stream."""
        del scope
        if kind is NODES and self.broken_watches:
            self.broken_watches -= 1
            raise ClusterError(f"watch {kind.plural}: connection lost")
        if version < self.forgotten:
            raise ResourceExpiredError(f"watch {kind.plural}: 410 too old resource version")
        seen_version = self.version
        for at, key, seen in tuple(self._changes):
            if at > version and key.plural == kind.plural:
                yield WatchEvent(
                    version=at, cluster_object=seen or ClusterObject(key=key), deleted=seen is None
                )
        await asyncio.sleep(0)
        # What changed meanwhile is for the next watch.
        yield WatchEvent(version=seen_version)

    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        key = manifest.key
        self.applied.append(key)
        if key in self.refusals:
            raise ClusterError(self.refusals[key])
        uid = manifest.body["metadata"].get("uid")
        live = self.objects.get(key, {"metadata": {}})["metadata"].get("uid")
        if (subresource is not None and live is None) or uid not in (None, live):
            raise NotFoundError(f"{key.describe()} not found")
        manager = FIELD_MANAGER if subresource is None else f"{FIELD_MANAGER}/{subresource}"
        creates = "create" in manifest.kind.verbs
        if key in self.objects and subresource is None and not uid and creates:
            self._require_ownership(key)
        _require_valid_names(manifest)
        self._set(key, manifest.body, manager)
        return self.seen(key)

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        del kind, grace_seconds
        if uid is not None and self.objects.get(key, {}).get("metadata", {}).get("uid") != uid:
            return
        self.discard(key)

    async def patch_node(
        self,
        node: str,
        labels: Mapping[str, str | None],
        taints: Mapping[str, bool],
        annotations: Mapping[str, str | None] | None = None,
    ) -> ClusterObject:
        key = ObjectKey(NODES.plural, "", node)
        if key not in self.objects:
            raise NotFoundError(f"node {node} not found")
        body = self.objects[key]
        change = node_patch(body, labels, taints, annotations or {})
        if change is not None:
            for kind in ("labels", "annotations"):
                live = body["metadata"].setdefault(kind, {})
                for name, value in change.get("metadata", {}).get(kind, {}).items():
                    if value is None:
                        live.pop(name, None)
                    else:
                        live[name] = value
            body.setdefault("spec", {}).update(change.get("spec", {}))
            self._changed(key)
        return self.seen(key)

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        key = ObjectKey(DEPLOYMENTS.plural, deployment.namespace, deployment.name)
        if key not in self.objects:
            raise NotFoundError(f"deployment {deployment} not found")
        spec = self.objects[key]["spec"]
        if spec.get("replicas") != replicas:
            spec["replicas"] = replicas
            self.objects[key]["metadata"]["generation"] += 1
            self._owners[key]["spec", "replicas"] = _OWN_UPDATE
            self._changed(key)
        return self.seen(key)

    async def read_uid(self, kind: ApiResource, ref: Ref) -> str | None:
        key = ObjectKey(kind.plural, ref.namespace, ref.name)
        if key in self.refusals:
            raise ClusterError(self.refusals[key])
        uid = self.objects.get(key, {}).get("metadata", {}).get("uid")
        return None if uid is None else str(uid)

    async def pod_refusal(self, job: Ref, uid: str) -> str | None:
        del job
        self.event_queries.append(uid)
        return self.pod_refusals.get(uid)

    async def pod_events(self, pod: Ref, uid: str) -> tuple[PodEvent, ...]:
        del pod
        self.event_queries.append(uid)
        return self.pod_events_by_uid.get(uid, ())

    async def list_autoscalers(self, namespace: str) -> Mapping[str, str]:
        if self.autoscaler_refusal is not None:
            raise ClusterError(self.autoscaler_refusal)
        plural = FOREIGN_AUTOSCALERS.plural
        names = sorted(
            key.name for key in self.objects if (key.plural, key.namespace) == (plural, namespace)
        )
        by_deployment: dict[str, str] = {}
        for name in names:
            body = self.objects[ObjectKey(plural, namespace, name)]
            if (deployment := wire.scaled_deployment(body)) is not None:
                by_deployment.setdefault(deployment, name)
        return by_deployment

    async def config_data(self, key: ObjectKey) -> Mapping[str, str]:
        if key in self.refusals:
            raise ClusterError(self.refusals[key])
        return dict(self.objects.get(key, {}).get("data", {}))

    async def record_event(self, event: ObjectManifest) -> None:
        self.events[event.name] = dict(event.body)

    async def evict(self, pod: Ref, uid: str) -> None:
        key = ObjectKey(PODS.plural, pod.namespace, pod.name)
        if self.objects.get(key, {}).get("metadata", {}).get("uid") != uid:
            return
        if key in self.refusals:
            raise DisruptionBudgetError(f"evict pod {pod}: {self.refusals[key]}")
        await self.delete(PODS, key)

    def forget_the_past(self) -> None:
        """Forget all past changes, so that no watch can resume from them."""
        self._changes.clear()
        self.applied.clear()
        self.forgotten = self.version

    def put(
        self, kind: ApiResource, body: Mapping[str, Any], manager: str = "somebody"
    ) -> ObjectKey:
        """Write as another client, which owns these fields afterwards."""
        meta = body["metadata"]
        key = ObjectKey(kind.plural, meta.get("namespace", ""), meta["name"])
        self._set(key, body, manager)
        return key

    def discard(self, key: ObjectKey) -> None:
        """Another client deletes an object."""
        self._owners.pop(key, None)
        if self.objects.pop(key, None) is not None:
            self._changed(key)

    def touch(self, key: ObjectKey) -> None:
        """Another client changed the object in place."""
        self._changed(key)

    def remove(self, key: ObjectKey, *path: str) -> None:
        """Another client removes a field."""
        parent = self.objects[key]
        for step in path[:-1]:
            parent = parent[step]
        del parent[path[-1]]
        owners = self._owners[key]
        for owned in [owned for owned in owners if owned[: len(path)] == path]:
            del owners[owned]
        self._changed(key)

    def seen(self, key: ObjectKey) -> ClusterObject:
        return wire.parse_object(self._kinds[key.plural], self.wire_body(key))

    def wire_body(self, key: ObjectKey) -> dict[str, Any]:
        """Return an object as the API server sends it, with the fields that each manager owns."""
        body, owners = self.objects[key], self._owners[key]
        if FIELD_MANAGER not in owners.values():
            return body
        trees: dict[str, dict[str, Any]] = {}
        for path, owner in sorted(owners.items()):
            tree = trees.setdefault(owner, {})
            for step in path:
                tree = tree.setdefault(f"f:{step}", {})
        entries = []
        for owner, tree in sorted(trees.items()):
            manager, subresource, operation = (*owner.split("/"), "", "")[:3]
            entry = {"manager": manager, "subresource": subresource, "fieldsV1": tree}
            default = "Apply" if manager == FIELD_MANAGER else "Update"
            entries.append({"operation": operation or default, **entry})
        return body | {"metadata": body["metadata"] | {"managedFields": entries}}

    def _set(self, key: ObjectKey, body: Mapping[str, Any], manager: str) -> None:
        new = key not in self.objects
        live = self.objects.setdefault(key, {"metadata": {}, "spec": {}})
        owners = self._owners.setdefault(key, {})
        if new:
            live["metadata"] |= {"uid": f"uid-{next(self._serial)}", "generation": 1}
        before, owners_before = _copy(live), dict(owners)
        leaves = dict(_leaves(body))
        for path in [path for path, owner in owners.items() if owner == manager]:
            if path not in leaves:
                _drop(live, path)
                del owners[path]
        for path, value in leaves.items():
            written = _copy(value) if isinstance(value, list | tuple | dict) else value
            if key.plural == PODS.plural and path == ("status", "conditions"):
                written = _merged_conditions(live, written)
            _put(live, path, written)
            if path not in _IDENTITY:
                owners[path] = manager
        if not new and live["spec"] != before["spec"]:
            live["metadata"]["generation"] += 1
        if (before, owners_before) != (live, owners):
            self._changed(key)

    def _changed(self, key: ObjectKey) -> None:
        self.version = next(self._versions)
        if key in self.objects:
            self.objects[key]["metadata"]["resourceVersion"] = str(self.version)
        seen = self.seen(key) if key in self.objects else None
        unneeded = seen is not None and wire.is_unneeded(self._kinds[key.plural], seen)
        self._changes.append((self.version, key, None if unneeded else seen))

    def _require_ownership(self, key: ObjectKey) -> None:
        managers = {owner.split("/")[0] for owner in self._owners[key].values()}
        if FIELD_MANAGER not in managers:
            raise ClusterError(
                f"{key.describe()} already exists and is managed by {', '.join(sorted(managers))}; "
                "rename it or the InferenceService"
            )

    def _selected(self, kind: ApiResource, key: ObjectKey) -> bool:
        if kind.selector is None:
            return True
        name, _, value = kind.selector.partition("=")
        return bool(self.objects[key]["metadata"].get("labels", {}).get(name) == value)


def _copy(value: Any) -> Any:
    """Return a deep copy, in a fifth of the time that `copy.deepcopy` takes."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - its own bytes


def _merged_conditions(pod: Mapping[str, Any], conditions: Any) -> Any:
    """Return all conditions of a pod after some were written: it is a list by type."""
    kinds = {condition["type"] for condition in conditions}
    others = pod.get("status", {}).get("conditions", ())
    return [condition for condition in others if condition["type"] not in kinds] + conditions


def _require_valid_names(manifest: ObjectManifest) -> None:
    """Refuse what the API server refuses as a Service's name or as the value of a label."""
    faults = [
        f'metadata.labels: Invalid value: "{value}"'
        for value in manifest.body["metadata"].get("labels", {}).values()
        if not _LABEL_VALUE.fullmatch(value)
    ]
    if manifest.kind == SERVICES and not _SERVICE_NAME.fullmatch(manifest.name):
        faults.append(f'metadata.name: Invalid value: "{manifest.name}"')
    if faults:
        raise ClusterError(f"apply {manifest.key.describe()}: 422 {', '.join(faults)}")


def _leaves(body: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in body.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _put(live: dict[str, Any], path: Path, value: Any) -> None:
    for step in path[:-1]:
        live = live.setdefault(step, {})
    live[path[-1]] = value


def _drop(live: dict[str, Any], path: Path) -> None:
    """Remove a field, and the parents that become empty."""
    first, rest = path[0], path[1:]
    if rest and isinstance(live.get(first), dict):
        _drop(live[first], rest)
        if live[first] or first in ("metadata", "spec"):
            return
    live.pop(first, None)
