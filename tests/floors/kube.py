"""An API server in memory with the controllers of Kubernetes that floors depend on.

Deployments have a ReplicaSet for each template, quotas refuse pods, autoscalers write replicas,
pods start and end in their own time, and what is owned goes with its owner. See `replica_sets.py`.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from typing_extensions import override

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import ENGINE
from tessera.domain.observed.snapshot import Node, Pod
from tessera.ports import ClusterError, ClusterObject, WatchEvent
from tessera.resources.api_resources import DEPLOYMENTS, DISRUPTION_BUDGETS, NODES, PODS
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.floors.gate_jobs import run_gate_jobs
from tests.floors.nodes import NodeLifecycle
from tests.floors.replica_sets import ReplicaSet, RollingUpdate, annotate, sync_sizes
from tests.repartition.kube import Body, Kube

BAD_IMAGE = "example.invalid/vllm:typo"
_AUTOSCALER_PERIOD = timedelta(seconds=15)
_FIRST_RETRY, _LAST_RETRY = timedelta(seconds=5), timedelta(seconds=1000)
# Controllers that write so often in one step never agree.
_MAX_ROUNDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """A ResourceQuota of a namespace on one kind of devices."""

    name: str
    resource: str
    hard: int


@dataclass(slots=True, kw_only=True)
class Autoscaler:
    """A HorizontalPodAutoscaler that wants the same number whatever is there.

    One that is not listed stands for any other client that writes the number again and again.
    """

    replicas: int
    next_at: datetime
    period: timedelta = _AUTOSCALER_PERIOD
    is_listed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTimes:
    """How long engines start and pods end, in seconds; each pod draws its own."""

    start: tuple[float, float] = (10, 60)
    end: tuple[float, float] = (5, 25)


class FloorKube(Kube):
    """Kubernetes as far as replicas of services depend on it; `times` are drawn by the seed."""

    def __init__(self, seed: int = 0, times: PodTimes | None = None) -> None:
        super().__init__(seed)
        self.times = times or PodTimes()
        self.quotas: dict[str, Quota] = {}
        """By namespace."""
        self.autoscalers: dict[ObjectKey, Autoscaler] = {}
        """By Deployment."""
        self.lost_images = set[str]()
        """Images that no new pod can pull."""
        self.foreign_losses: Callable[[ObjectKey], None] = lambda _: None
        """Called with each Deployment whose replicas somebody else lowered."""
        self.after_round: Callable[[], None] = lambda: None
        """Called whenever the controllers have taken one step each."""
        self.node_losses: Callable[[str], None] = lambda _: None
        """Called with each node whose pods are about to be NotReady."""
        self.pod_losses: Callable[[ObjectKey], None] = lambda _: None
        """Called with each pod that is about to fail."""
        self.clock_offset = timedelta()
        """How far the clock of the cluster was stepped; time passes by `steady` alone."""
        self.node_lifecycle = NodeLifecycle(self)
        self.takers: set[str] = set()
        """Labels of the pools of which somebody else takes each device as soon as it is free."""
        self.refused_statuses = 0.0
        """Share of the operator's writes of a status that fail."""
        self.watch_lag = timedelta()
        """How late the operator learns of changes."""
        self.due_reports: dict[ObjectKey, datetime] = {}
        """When the pod of each Job of a gate reports."""
        self.gate_verdict: dict[str, object] = {}
        """What the Jobs of gates report of changed versions, where that is not that they pass."""
        self.gate_problem: dict[str, object] = {}
        """What all Jobs of gates report in place of answers."""
        self._replica_sets: dict[str, list[ReplicaSet]] = {}
        """By the UID of their Deployment."""
        self._templates: dict[str, tuple[int, str, str]] = {}
        """Generation, hash and template as JSON of Deployments, by UID."""
        self._starts: dict[ObjectKey, datetime] = {}
        self._ends: dict[ObjectKey, datetime] = {}
        self._nodes: dict[str, tuple[str, Node]] = {}
        self._counter = 0
        self._moments: list[tuple[datetime, int]] = []
        """The last version of each moment."""

    # The API server

    @property
    def steady(self) -> datetime:
        """The time that no step of the clock changes."""
        return self.at - self.clock_offset

    def step_clock(self, step: timedelta) -> None:
        """Step the clock of every machine of the cluster."""
        self.at += step
        self.clock_offset += step

    def version_at(self, moment: datetime) -> int:
        """Return the last version that there was at a moment of `steady`."""
        index = bisect_right(self._moments, moment, key=lambda each: each[0])
        return self._moments[index - 1][1] if index else 0

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        if subresource == "status" and self.rng.random() < self.refused_statuses:
            raise ClusterError(f"apply {manifest.key.describe()} status: request timed out")
        return await super().apply(manifest, subresource=subresource)

    @override
    async def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield what changed since a version, as far as news of it has arrived."""
        horizon = self.version
        if self.watch_lag:
            horizon = max(version, self.version_at(self.steady - self.watch_lag))
        async for event in super().watch(kind, version, scope):
            if event.version <= horizon:
                yield event
        yield WatchEvent(version=horizon)

    # Controllers

    @override
    async def step(self, rounds: int | None = None) -> None:
        """Let every controller work for so many rounds, or until none has anything to do."""
        self._addresses()
        for _ in range(rounds or _MAX_ROUNDS):
            version = self.version
            self._autoscale()
            self._collect_garbage()
            run_gate_jobs(self)
            self._deployments()
            self._drop_unbound()
            self._take_free_devices()
            self._schedule()
            self._disruption_budgets()
            self.after_round()
            if version == self.version:
                return
        if rounds is None:
            raise AssertionError(f"controllers did not agree after {_MAX_ROUNDS} rounds")

    def deployments(self) -> list[ObjectKey]:
        return sorted(key for key in self.objects if key.plural == DEPLOYMENTS.plural)

    def template_hash(self, deployment: ObjectKey) -> str:
        """Return the hash of the newest template of a Deployment."""
        return self._template(deployment)[0]

    def strategy(self, deployment: ObjectKey) -> RollingUpdate:
        spec = self.objects[deployment]["spec"]
        rolling = spec["strategy"]["rollingUpdate"]
        return RollingUpdate(
            replicas=int(spec["replicas"]),
            surge=int(rolling["maxSurge"]),
            unavailable=int(rolling["maxUnavailable"]),
        )

    def template_of(self, pod: ObjectKey) -> Body:
        """Return the template of the ReplicaSet that created a pod."""
        uid = self.owner_uid(pod)
        sets = (each for own in self._replica_sets.values() for each in own)
        template: Body = json.loads(next(each.template for each in sets if each.uid == uid))
        return template

    def owner_uid(self, pod: ObjectKey) -> str:
        """Return the UID of the ReplicaSet that created a pod."""
        return _owner_uid(self.objects[pod])

    def replica_sets(self, deployment: ObjectKey) -> Sequence[ReplicaSet]:
        return self._replica_sets.get(self._uid(deployment) or "", ())

    def _template(self, deployment: ObjectKey) -> tuple[str, str]:
        meta = self.objects[deployment]["metadata"]
        known = self._templates.get(meta["uid"])
        if known is None or known[0] != meta["generation"]:
            text = json.dumps(self.objects[deployment]["spec"]["template"], sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            known = self._templates[meta["uid"]] = meta["generation"], digest, text
        return known[1], known[2]

    def _pods_by_owner(self) -> Mapping[str, list[tuple[ObjectKey, Pod]]]:
        """Return the pods that are not about to end, by the UID of their ReplicaSet."""
        pods: dict[str, list[tuple[ObjectKey, Pod]]] = defaultdict(list)
        for key, pod in self.pods():
            if not pod.terminating:
                pods[_owner_uid(self.objects[key])].append((key, pod))
        return pods

    @override
    def _deployments(self) -> None:
        pods = self._pods_by_owner()
        for key in self.deployments():
            replica_sets = self._replica_sets.setdefault(self.objects[key]["metadata"]["uid"], [])
            newest = self._newest(key, replica_sets)
            for each in replica_sets:
                each.available = sum(pod.takes_requests for _, pod in pods[each.uid])
            sync_sizes(
                self.strategy(key), newest, [each for each in replica_sets if each is not newest]
            )
            for each in replica_sets:
                self._size(key, each, replica_sets, pods)
            self._write_status(key, newest, replica_sets)

    def _newest(self, deployment: ObjectKey, replica_sets: list[ReplicaSet]) -> ReplicaSet:
        """Return the ReplicaSet of the newest template, which may have been there before."""
        digest, template = self._template(deployment)
        for each in replica_sets:
            if each.template_hash == digest:
                return each
        self._counter += 1
        newest = ReplicaSet(
            uid=f"{self._uid(deployment)}-{digest}",
            template_hash=digest,
            template=template,
            created=self._counter,
        )
        annotate(self.strategy(deployment), newest)
        replica_sets.append(newest)
        return newest

    def _size(
        self,
        deployment: ObjectKey,
        replica_set: ReplicaSet,
        siblings: Sequence[ReplicaSet],
        pods: Mapping[str, list[tuple[ObjectKey, Pod]]],
    ) -> None:
        """Create or delete pods of a ReplicaSet until it has its size."""
        own = pods[replica_set.uid]
        missing = replica_set.replicas - len(own)
        if missing > 0 and (replica_set.retry_at is None or self.steady >= replica_set.retry_at):
            self._create_pods(deployment, replica_set, missing)
        elif missing <= 0:
            replica_set.refusal, replica_set.failing_since, replica_set.retry_at = "", None, None
        if missing < 0:
            crowd = Counter(pod.node for each in siblings for _, pod in pods[each.uid])
            in_order = sorted(own, key=lambda item: self._deletion_order(item, crowd))
            for key, _ in in_order[:-missing]:
                self.begin_deletion(key)

    def _deletion_order(
        self, item: tuple[ObjectKey, Pod], crowd: Mapping[str | None, int]
    ) -> tuple[object, ...]:
        """Return the sort key by which a ReplicaSet deletes pods."""
        key, pod = item
        return (
            pod.node is not None,
            pod.takes_requests,
            pod.deletion_cost,
            -crowd[pod.node],
            self._age_class(pod.ready_since),
            self._age_class(pod.created),
            key,
        )

    def _age_class(self, since: datetime | None) -> int:
        """Return the logarithm of an age, in which ReplicaSets compare pods."""
        if since is None:
            return -1
        # A clock that stepped back leaves ages below 0.
        return int(math.log2(1 + max(0.0, (self.at - since).total_seconds())))

    def _create_pods(self, deployment: ObjectKey, replica_set: ReplicaSet, missing: int) -> None:
        for _ in range(missing):
            replica_set.refusal = self._quota_refusal(deployment, replica_set)
            if replica_set.refusal:
                since = replica_set.failing_since or self.steady
                wait = min(max(self.steady - since, _FIRST_RETRY), _LAST_RETRY)
                replica_set.failing_since, replica_set.retry_at = since, self.steady + wait
                return
            self._create_pod(deployment, replica_set)
        replica_set.failing_since = replica_set.retry_at = None

    def _quota_refusal(self, deployment: ObjectKey, replica_set: ReplicaSet) -> str:
        """Return why the quota of the namespace refuses one more pod; nothing if it does not."""
        quota = self.quotas.get(deployment.namespace)
        if quota is None:
            return ""
        requested = _devices(json.loads(replica_set.template)).get(quota.resource, 0)
        used = self.devices_in_use(deployment.namespace, quota.resource)
        if not requested or used + requested <= quota.hard:
            return ""
        name, resource = f"{deployment.name}-{replica_set.template_hash}", quota.resource
        return (
            f'pods "{name}-x" is forbidden: exceeded quota: {quota.name}, requested: '
            f"requests.{resource}={requested}, used: requests.{resource}={used}, limited: "
            f"requests.{resource}={quota.hard}"
        )

    def devices_in_use(self, namespace: str, resource: str) -> int:
        """Return the devices that a quota counts: pods that ended have none."""
        return sum(
            pod.devices.get(resource, 0)
            for key, pod in self.pods()
            if key.namespace == namespace and not self.has_ended(key)
        )

    def _create_pod(self, deployment: ObjectKey, replica_set: ReplicaSet) -> None:
        template = json.loads(replica_set.template)
        self._counter += 1
        meta = {
            "name": f"{deployment.name}-{self._counter}",
            "namespace": deployment.namespace,
            "creationTimestamp": self.moment,
            "labels": {
                **template["metadata"]["labels"],
                "pod-template-hash": replica_set.template_hash,
            },
            "ownerReferences": [
                {
                    "kind": "ReplicaSet",
                    "name": f"{deployment.name}-{replica_set.template_hash}",
                    "uid": replica_set.uid,
                    "controller": True,
                }
            ],
        }
        container = template["spec"]["containers"][0]
        spec = {
            "nodeSelector": template["spec"].get("nodeSelector", {}),
            "containers": [
                {name: container[name] for name in ("name", "image", "args", "resources")}
            ],
        }
        self.put(PODS, {"metadata": meta, "spec": spec}, "replicaset")

    def _write_status(
        self, key: ObjectKey, newest: ReplicaSet, replica_sets: Sequence[ReplicaSet]
    ) -> None:
        pods = self._pods_by_owner()
        counts = {each.uid: len(pods[each.uid]) for each in replica_sets}
        ready = sum(pod.takes_requests for each in replica_sets for _, pod in pods[each.uid])
        status: Body = {
            "observedGeneration": self.objects[key]["metadata"]["generation"],
            "replicas": sum(counts.values()),
            "updatedReplicas": counts[newest.uid],
            "readyReplicas": ready,
            "availableReplicas": ready,
        }
        refusals = [each.refusal for each in replica_sets if each.refusal]
        if refusals:
            status["conditions"] = [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": refusals[-1],
                }
            ]
        self.set(key, status=status)

    def _autoscale(self) -> None:
        for key, autoscaler in sorted(self.autoscalers.items()):
            if self.steady < autoscaler.next_at or key not in self.objects:
                continue
            autoscaler.next_at = self.steady + autoscaler.period
            # A Deployment of no replicas is one whose autoscaling somebody turned off.
            if self.objects[key]["spec"]["replicas"]:
                self.scale_as(key, autoscaler.replicas, "kube-controller-manager")

    @override
    async def list_autoscalers(self, namespace: str) -> Mapping[str, str]:
        if self.autoscaler_refusal is not None:
            raise ClusterError(self.autoscaler_refusal)
        keys = (key for key in sorted(self.autoscalers) if key.namespace == namespace)
        return {key.name: f"{key.name}-hpa" for key in keys if self.autoscalers[key].is_listed}

    def scale_as(self, deployment: ObjectKey, replicas: int, manager: str) -> None:
        """Write the replicas of a Deployment by its scale subresource, as somebody else."""
        before = int(self.objects[deployment]["spec"]["replicas"])
        if before == replicas:
            return
        meta = {"name": deployment.name, "namespace": deployment.namespace}
        body = {"metadata": meta, "spec": {"replicas": replicas}}
        self.put(DEPLOYMENTS, body, f"{manager}/scale")
        if replicas < before:
            self.foreign_losses(deployment)

    def _collect_garbage(self) -> None:
        """Delete what belongs to objects that are gone."""
        services = {
            body["metadata"]["uid"]
            for key, body in self.objects.items()
            if key.plural == INFERENCE_SERVICES.plural
        }
        for key, body in list(self.objects.items()):
            owners = body["metadata"].get("ownerReferences", ())
            owner = next((each for each in owners if each["kind"] == INFERENCE_SERVICES.kind), None)
            if owner is not None and owner["uid"] not in services:
                self.discard(key)
        deployments = {self._uid(key) for key in self.deployments()}
        for uid in [uid for uid in self._replica_sets if uid not in deployments]:
            del self._replica_sets[uid]
        owned = {each.uid for sets in self._replica_sets.values() for each in sets}
        for key, pod in list(self.pods()):
            is_orphan = _owner_uid(self.objects[key]) not in owned
            if pod.service.name and is_orphan:
                self.collect(key)

    def collect(self, pod: ObjectKey) -> None:
        """Delete a pod whose owner is gone."""
        if self.has_ended(pod):
            self.forget(pod)
        else:
            self.begin_deletion(pod)

    def _drop_unbound(self) -> None:
        for key, pod in list(self.pods()):
            if pod.node is None and "deletionTimestamp" in self.objects[key]["metadata"]:
                self.discard(key)

    @override
    def _schedule(self) -> None:
        """Bind each waiting pod to any node that has room, by priority and in a drawn order."""
        waiting = [key for key, pod in self.pods() if pod.node is None and not pod.terminating]
        self.rng.shuffle(waiting)
        waiting.sort(key=lambda key: -int(self.objects[key]["spec"].get("priority", 0)))
        for key in waiting:
            nodes = [name for name in self.nodes() if self._fits(key, name)]
            if not nodes:
                message = "0 nodes are available: Insufficient devices."
                self.condition(
                    key, "PodScheduled", "False", reason="Unschedulable", message=message
                )
                continue
            self.set(key, "spec", nodeName=self.rng.choice(nodes))
            self.condition(key, "PodScheduled", "True")

    @override
    def _fits(self, key: ObjectKey, name: str) -> bool:
        node = self.node(name)
        selector = self.objects[key]["spec"]["nodeSelector"]
        if not node.schedulable or not selector.items() <= node.labels.items():
            return False
        # Whatever tolerations pods have, they are none of what a person puts on a node.
        if node.barring_taints:
            return False
        free = self.free_devices(name)
        return all(free.get(each, 0) >= count for each, count in self.pod(key).devices.items())

    def node(self, name: str) -> Node:
        body = self.objects[ObjectKey(NODES.plural, "", name)]
        version = body["metadata"]["resourceVersion"]
        if self._nodes.get(name, ("",))[0] != version:
            self._nodes[name] = version, wire.parse_node(body)
        return self._nodes[name][1]

    def free_devices(self, name: str) -> Counter[str]:
        """Return the devices of a node that no pod holds."""
        free = Counter(self.node(name).allocatable)
        for key, pod in self.pods():
            if pod.node == name and not self.has_ended(key):
                free.subtract(pod.devices)
        return free

    def has_ended(self, pod: ObjectKey) -> bool:
        """Return whether the containers of a pod ended for good."""
        return self.objects[pod].get("status", {}).get("phase") in ("Failed", "Succeeded")

    def _take_free_devices(self) -> None:
        """Let somebody else's pods wait wherever a device is free, ahead of all others."""
        for name in self.nodes() if self.takers else ():
            node = self.node(name)
            label = node.labels["pool"]
            if label not in self.takers or not node.schedulable or node.barring_taints:
                continue
            for resource, count in self.free_devices(name).items():
                for _ in range(count):
                    self.add_foreign_pod(label, resource, priority=100)

    def add_foreign_pod(self, label: str, resource: str, priority: int = 0) -> None:
        """Create a pod of somebody else that wants a device of a pool, and waits for it."""
        self._counter += 1
        meta = {
            "name": f"notebook-{self._counter}",
            "namespace": "people",
            "labels": {},
            "creationTimestamp": self.moment,
        }
        container = {"name": "notebook", "resources": {"limits": {resource: "1"}}}
        spec = {"nodeSelector": {"pool": label}, "containers": [container], "priority": priority}
        self.put(PODS, {"metadata": meta, "spec": spec}, "kubectl")

    def _disruption_budgets(self) -> None:
        for key in [key for key in self.objects if key.plural == DISRUPTION_BUDGETS.plural]:
            pods = [pod for at, pod in self.pods() if self._protects(key, at)]
            healthy = sum(pod.takes_requests for pod in pods)
            status = {"expectedPods": len(pods), "currentHealthy": healthy}
            if self.objects[key].get("status") != status:
                self.objects[key]["status"] = status
                self.touch(key)

    # Kubelets

    def run_kubelets(self) -> None:
        """Start and end the pods whose time has come; a node that is away does nothing."""
        self._moments.append((self.steady, self.version))
        self.node_lifecycle.run()
        for key, pod in list(self.pods()):
            if pod.node is None or pod.node in self.node_lifecycle.away or self.has_ended(key):
                continue
            # Of somebody else's pod the product does not read it.
            if "deletionTimestamp" in self.objects[key]["metadata"]:
                self._end(key)
            elif pod.service.name:
                self._start(key, pod)

    def _end(self, key: ObjectKey) -> None:
        due = self._ends.setdefault(key, self.steady + self._drawn(self.times.end))
        if self.steady >= due:
            self.forget(key)

    def fail(self, key: ObjectKey) -> None:
        """End the containers of a pod for good, as a kubelet that evicts it."""
        self.pod_losses(key)
        ended = {"exitCode": 137, "reason": "Evicted", "finishedAt": self.moment}
        states = [{"name": ENGINE, "ready": False, "state": {"terminated": ended}}]
        self.set(key, "status", phase="Failed", reason="Evicted", containerStatuses=states)
        self.condition(key, "Ready", "False")
        self.condition(key, "ContainersReady", "False")

    def crash(self, key: ObjectKey) -> None:
        """Let an engine exit; its kubelet starts it again."""
        self.pod_losses(key)
        self._starts[key] = self.steady + self._drawn(self.times.start)
        last = {"exitCode": 1, "finishedAt": self.moment, "message": "CUDA error"}
        self._container(
            key,
            ready=False,
            restartCount=1,
            state={"running": {"startedAt": self.moment}},
            lastState={"terminated": last},
        )
        self.ready(key, up=False)

    def forget(self, key: ObjectKey) -> None:
        """Remove a pod at once."""
        self._starts.pop(key, None)
        self._ends.pop(key, None)
        self.discard(key)

    def _start(self, key: ObjectKey, pod: Pod) -> None:
        container = self.objects[key]["spec"]["containers"][0]
        image = container["image"]
        if image == BAD_IMAGE or (image in self.lost_images and key not in self._starts):
            waiting = {"reason": "ImagePullBackOff", "message": f'pull image "{image}"'}
            self._container(key, state={"waiting": waiting}, ready=False)
            return
        if key not in self._starts:
            self._starts[key] = self.steady + self._drawn(self.times.start)
            self.address(key)
            self._container(key, state={"running": {"startedAt": self.moment}}, ready=False)
        up = self.steady >= self._starts[key]
        if up != pod.containers_ready:
            self.ready(key, up=up)

    @property
    def is_waiting(self) -> bool:
        """Return whether a pod starts or ends within its own time."""
        return bool(self._ends) or any(at > self.steady for at in self._starts.values())

    def _container(self, key: ObjectKey, **fields: object) -> None:
        self.set(key, "status", containerStatuses=[{"name": ENGINE, **fields}])

    def _drawn(self, seconds: tuple[float, float]) -> timedelta:
        return timedelta(seconds=self.rng.uniform(*seconds))

    def lose_node(self, name: str) -> None:
        """Delete a node with all of its pods, as a cloud that takes it back."""
        for key, pod in list(self.pods()):
            if pod.node == name:
                self.forget(key)
        self.discard(ObjectKey(NODES.plural, "", name))

    def service_pods(self, namespace: str, service: str) -> Iterator[tuple[ObjectKey, Pod]]:
        for key, pod in self.pods():
            if (pod.service.namespace, pod.service.name) == (namespace, service):
                yield key, pod


def _owner_uid(pod: Body) -> str:
    owners = pod["metadata"].get("ownerReferences", ())
    return next((owner.get("uid", "") for owner in owners if owner.get("controller")), "")


def _devices(template: Body) -> Counter[str]:
    limits = template["spec"]["containers"][0]["resources"].get("limits", {})
    return Counter({name: int(count) for name, count in limits.items() if "/" in name})
