"""What Karpenter and the cluster autoscaler say of what they do, where the real ones say it.

Karpenter 1.14 says on the pod that a NodeClaim was made for it or that no node pool suits it; what
the cloud refuses, it says on the NodeClaim, which it then deletes. The cluster autoscaler says on
the pod what it does and what it does not; refusals are on its ConfigMap, and on GKE on the pod.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from world import clock
from world.api import CONFIG_MAPS, EVENTS, Api, ApiError, Json, Resource
from world.autoscaling.fit import requests
from world.autoscaling.groups import GroupState, Launch
from world.fleet import Cloud, NodeGroup
from world.labels import ZONES, labels, provider_id

Refusal = Literal["QuotaExceeded", "NoCapacity"]
NODE_CLAIMS = Resource("karpenter.sh/v1", "nodeclaims")
STATUS_MAP = ("kube-system", "cluster-autoscaler-status")
# The same about the same object is not repeated sooner.
SILENT_SECONDS = 30.0

_REFUSALS: dict[tuple[Cloud, Refusal], str] = {
    ("aws", "QuotaExceeded"): (
        "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of "
        "0 allows for the instance bucket that the specified instance type belongs to."
    ),
    ("aws", "NoCapacity"): (
        "UnfulfillableCapacity: Unable to fulfill capacity due to your request configuration. "
        "Please adjust your request and try again."
    ),
    ("gcp", "QuotaExceeded"): "GCE quota exceeded",
    ("gcp", "NoCapacity"): "GCE out of resources",
    ("azure", "QuotaExceeded"): (
        "QuotaExceeded: Operation could not be completed as it results in exceeding approved "
        "Total Regional Cores quota. Additional details - Deployment Model: Resource Manager, "
        "Location: eastus, Current Limit: 10, Current Usage: 8, Additional Required: 96."
    ),
    ("azure", "NoCapacity"): (
        "ZonalAllocationFailed: Allocation failed. We do not have sufficient capacity for the "
        "requested VM size in this zone."
    ),
    ("onPrem", "QuotaExceeded"): "the quota of machines is used up",
    ("onPrem", "NoCapacity"): "no machine is free",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a group makes no node for a pod."""

    kind: Literal["Selection", "Resources", "Full", "BackOff"]
    text: str
    """What of the pod does not suit, or the name of the group."""


def refusal_text(state: GroupState) -> str:
    """Return the words of the cloud."""
    quota = state.arrival == "QuotaExceeded"
    refusal: Refusal = "QuotaExceeded" if quota else "NoCapacity"
    return state.message or _REFUSALS[state.group.template.cloud, refusal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What an autoscaler does to nodes, and what keeps it from that."""

    disrupted_taint: str
    """On nodes that it removes, with the effect `NoSchedule`."""
    node_keeper: tuple[str, str]
    """The annotation of a node that it does not remove."""
    pod_keeper: tuple[str, str]
    """The annotation of a pod whose node it does not remove."""
    ignores_below: int | None
    """The priority below which it does not see pods."""


KARPENTER = Habits(
    disrupted_taint="karpenter.sh/disrupted",
    node_keeper=("karpenter.sh/do-not-disrupt", "true"),
    pod_keeper=("karpenter.sh/do-not-disrupt", "true"),
    ignores_below=None,
)
CLUSTER_AUTOSCALER = Habits(
    disrupted_taint="ToBeDeletedByClusterAutoscaler",
    node_keeper=("cluster-autoscaler.kubernetes.io/scale-down-disabled", "true"),
    pod_keeper=("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ignores_below=-10,
)


class Reports(Protocol):
    """What an autoscaler writes beside nodes."""

    habits: Habits

    async def launched(self, launch: Launch, pods: Sequence[Json]) -> None:
        """A machine was asked for, for these pods."""

    async def refused(self, state: GroupState, text: str, pods: Sequence[Json]) -> None:
        """The cloud refused a machine for these pods."""

    async def gave_up(self, launch: Launch) -> None:
        """A machine has not registered in time."""

    async def registered(self, launch: Launch, missing: str | None) -> None:
        """A node has registered, and lacks a resource that was asked for."""

    async def removed(self, name: str) -> None:
        """A node is gone."""

    async def helpless(self, pod: Json, obstacles: Sequence[Obstacle]) -> None:
        """No group helps a pod; an obstacle for each."""

    async def blocked(self, node: Json, reason: str) -> None:
        """A node was not removed."""


@dataclass(slots=True)
class Events:
    """Writes events, each at most once in a while."""

    api: Api
    component: str
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _written: dict[tuple[str, str, str], float] = field(default_factory=dict)

    async def write(self, about: Json, reason: str, message: str, *, warning: bool = False) -> None:
        meta, now = about["metadata"], clock.now().timestamp()
        key = meta.get("uid", meta["name"]), reason, message
        self._written = {
            known: at for known, at in self._written.items() if now - at < SILENT_SECONDS
        }
        if key in self._written:
            return
        self._written[key] = now
        namespace = meta.get("namespace", "default")
        involved = {"apiVersion": about["apiVersion"], "kind": about["kind"]}
        involved |= {k: meta[k] for k in ("name", "namespace", "uid") if k in meta}
        await self.api.create(
            EVENTS.path(namespace),
            {
                "metadata": {"name": f"{meta['name']}.{self.component}.{next(self._numbers)}"},
                "involvedObject": involved,
                "reason": reason,
                "message": message[:1000],
                "type": "Warning" if warning else "Normal",
                "source": {"component": self.component},
                "firstTimestamp": clock.stamp(),
                "lastTimestamp": clock.stamp(),
                "count": 1,
            },
        )


class KarpenterReports:
    """NodeClaims with their conditions, and events on them and on pods."""

    habits: Habits = KARPENTER

    def __init__(self, api: Api) -> None:
        self._api = api
        self._events = Events(api, "karpenter")

    async def launched(self, launch: Launch, pods: Sequence[Json]) -> None:
        await self._create_claim(launch.group, launch.node.name, pods)
        await self._write_conditions(launch, registered=False, missing=None)

    async def refused(self, state: GroupState, text: str, pods: Sequence[Json]) -> None:
        state.asked += 1
        claim = await self._create_claim(state.group, f"{state.group.name}-{state.asked}", pods)
        name = claim["metadata"]["name"]
        fleet = "with fleet error(s), " if state.group.template.cloud == "aws" else ""
        words = f"creating nodeclaim, creating instance, insufficient capacity, {fleet}{text}"
        message = f"NodeClaim {name} event: {words[:300]}"
        await self._events.write(claim, "InsufficientCapacityError", message, warning=True)
        await self.removed(name)

    async def gave_up(self, launch: Launch) -> None:
        await self.removed(launch.node.name)

    async def registered(self, launch: Launch, missing: str | None) -> None:
        await self._write_conditions(launch, registered=True, missing=missing)

    async def removed(self, name: str) -> None:
        try:
            await self._api.delete(NODE_CLAIMS.path(name=name))
        except ApiError as error:
            if error.status != 404:
                raise

    async def helpless(self, pod: Json, obstacles: Sequence[Obstacle]) -> None:
        texts = "; ".join(map(_karpenter_text, obstacles))
        message = f"Failed to schedule pod, {texts}"
        await self._events.write(pod, "FailedScheduling", message, warning=True)

    async def blocked(self, node: Json, reason: str) -> None:
        await self._events.write(node, "DisruptionBlocked", reason[0].upper() + reason[1:])

    async def _create_claim(self, group: NodeGroup, name: str, pods: Sequence[Json]) -> Json:
        template = group.template
        asked = {
            resource: str(sum(requests(pod).get(resource, 0) for pod in pods))
            for resource in sorted({resource for pod in pods for resource in requests(pod)})
        }
        requirements = [
            {"key": key, "operator": "In", "values": [value]}
            for key, value in sorted(labels(template, discovered=False).items())
            if not key.startswith(("nvidia.com/", "kubernetes.io/hostname"))
        ]
        claim = await self._api.create(
            NODE_CLAIMS.path(),
            {
                "apiVersion": NODE_CLAIMS.version,
                "kind": "NodeClaim",
                "metadata": {"name": name, "labels": {"karpenter.sh/nodepool": group.name}},
                "spec": {
                    "nodeClassRef": {"group": "world", "kind": "NodeClass", "name": "world"},
                    "requirements": requirements,
                    "resources": {"requests": asked},
                    "taints": [taint.model_dump() for taint in template.taints],
                },
            },
        )
        for pod in pods:
            message = f"Pod should schedule on: nodeclaim/{name}"
            await self._events.write(pod, "Nominated", message)
        return claim

    async def _write_conditions(
        self, launch: Launch, *, registered: bool, missing: str | None
    ) -> None:
        conditions = [_condition("Launched", "True", "Launched", "")]
        if registered:
            conditions.append(_condition("Registered", "True", "Registered", ""))
        else:
            text = "Node not registered with cluster"
            conditions.append(_condition("Registered", "Unknown", "NodeNotFound", text))
        ready = registered and missing is None
        if ready:
            conditions.append(_condition("Initialized", "True", "Initialized", ""))
        elif registered:
            text = f'Resource "{missing}" was requested but not registered'
            conditions.append(_condition("Initialized", "Unknown", "ResourceNotRegistered", text))
        else:
            text = "Node not registered with cluster"
            conditions.append(_condition("Initialized", "Unknown", "NodeNotFound", text))
        reason = "Ready" if ready else "ReconcilingDependents"
        conditions.append(_condition("Ready", "True" if ready else "Unknown", reason, ""))
        status: Json = {"conditions": conditions, "providerID": provider_id(launch.node)}
        if registered:
            status["nodeName"] = launch.node.name
        path = NODE_CLAIMS.path(name=launch.node.name, sub="status")
        await self._api.patch(path, {"status": status})


class ClusterAutoscalerReports:
    """Events on pods and on the ConfigMap of its status."""

    habits: Habits = CLUSTER_AUTOSCALER

    def __init__(self, api: Api) -> None:
        self._api = api
        self._events = Events(api, "cluster-autoscaler")

    async def launched(self, launch: Launch, pods: Sequence[Json]) -> None:
        await self._triggered(launch.group, launch.size, pods)

    async def refused(self, state: GroupState, text: str, pods: Sequence[Json]) -> None:
        group = state.group
        if group.template.cloud == "gcp":
            zone = group.template.zone or ZONES["gcp"][1]
            await self._triggered(group, state.size, pods)
            message = (
                f"Node scale up in zones {zone} associated with this pod failed: {text}. "
                "Pod is at risk of not being scheduled."
            )
            for pod in pods:
                await self._events.write(pod, "FailedScaleUp", message, warning=True)
        message = f"Scale-up failed for group {group.name}: {text}"
        status_map = await self._status_map()
        await self._events.write(status_map, "FailedToScaleUpGroup", message, warning=True)

    async def gave_up(self, launch: Launch) -> None:
        minutes, seconds = divmod(int(launch.give_up_seconds), 60)
        span = f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
        message = f"Nodes added to group {launch.group.name} failed to register within {span}"
        status_map = await self._status_map()
        await self._events.write(status_map, "ScaleUpTimedOut", message, warning=True)

    async def helpless(self, pod: Json, obstacles: Sequence[Obstacle]) -> None:
        counts = Counter(map(_cluster_autoscaler_text, obstacles))
        text = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        message = f"pod didn't trigger scale-up: {text}"
        await self._events.write(pod, "NotTriggerScaleUp", message)

    async def registered(self, launch: Launch, missing: str | None) -> None:
        """It says nothing."""

    async def removed(self, name: str) -> None:
        """It says nothing."""

    async def blocked(self, node: Json, reason: str) -> None:
        """It says nothing where others could see it."""

    async def _triggered(self, group: NodeGroup, size: int, pods: Sequence[Json]) -> None:
        name, most = group.name, group.max_nodes
        message = f"pod triggered scale-up: [{{{name} {size}->{size + 1} (max: {most})}}]"
        for pod in pods:
            await self._events.write(pod, "TriggeredScaleUp", message)

    async def _status_map(self) -> Json:
        namespace, name = STATUS_MAP
        body: Json = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": namespace, "name": name},
        }
        path = CONFIG_MAPS.path(namespace, name)
        return await self._api.apply(path, body, "cluster-autoscaler")


def _karpenter_text(obstacle: Obstacle) -> str:
    match obstacle.kind:
        case "Full":
            limit = "all available instance types exceed limits for nodepool"
            return f"{limit} (NodePool={obstacle.text})"
        case "BackOff":
            return "no instance type has the required offering"
        case "Resources":
            return f"no instance type has enough resources, {obstacle.text}"
        case _:
            return f"incompatible requirements, {obstacle.text}"


def _cluster_autoscaler_text(obstacle: Obstacle) -> str:
    match obstacle.kind:
        case "Full":
            return "max node group size reached"
        case "BackOff":
            return "in backoff after failed scale-up"
        case _:
            return obstacle.text


def _condition(kind: str, status: str, reason: str, message: str) -> Json:
    moment = clock.stamp()
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
    }
