"""Judges the healthy replicas of every service after each step of the controllers.

It reads objects and conditions alone, as anybody with `kubectl` can.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Pod
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.floors.kube import FloorKube
from tests.repartition.kube import Body

# How long after somebody else's act the replicas that it takes may go: controllers are late.
_EXCUSE = timedelta(minutes=2)
# A rollout goes on without a replica that found no device for so long.
_LASTING = timedelta(minutes=10)


@dataclass(slots=True)
class Judge:
    """Floors of services, what they once had of them, and what is tolerated below that.

    Tolerated are the user's own acts, the end of a node, and one replica a service while a rollout
    in place is under way or while a successor needs the devices of a pool.
    """

    kube: FloorKube
    ticks_below_floor: int = 0
    findings: list[str] = field(default_factory=list)
    lowest: dict[Ref, int] = field(default_factory=dict)
    """The fewest healthy replicas of each service since its floor was reached first."""
    counts_written_numbers: bool = True
    """Whether a number that an autoscaler of somebody else wrote is below a floor by itself."""
    forgives_lasting: bool = False
    """Whether what was missing for ten minutes, by the clock of the cluster, is excused."""
    last_change: datetime | None = None
    """When a Deployment or a pod was created, changed or deleted."""
    _reached: Counter[Ref] = field(default_factory=Counter)
    _lost: Counter[Ref] = field(default_factory=Counter)
    _excused_until: dict[Ref, datetime] = field(default_factory=dict)
    """Until when a service with its floor may still lose what was excused."""
    _short: dict[Ref, tuple[int, datetime]] = field(default_factory=dict)
    """How many replicas a service below its floor has, and since when."""
    _below: dict[Ref, str] = field(default_factory=dict)
    """What is wrong now, by service."""
    _was_below: dict[Ref, str] = field(default_factory=dict)
    """What was wrong at any time of this tick, by service."""
    _rolling: dict[str, bool] = field(default_factory=dict)
    """Whether a rollout of a Deployment, by UID, was in place at any time; absent without one."""
    _replacing: set[Ref] = field(default_factory=set)
    """Services of which one replica may be missing until their floor is there again."""
    _seen: int = 0
    _changes_seen: int = 0

    def healthy(self) -> Counter[Ref]:
        """Return the replicas that take requests and do not go by themselves."""
        nodes = {name for name in self.kube.nodes() if self.kube.node(name).kubelet_ready}
        return Counter(
            pod.service
            for _, pod in self.kube.pods()
            if pod.service.name
            and pod.takes_requests
            and pod.draining_since is None
            and pod.node in nodes
        )

    def floors(self) -> dict[Ref, int]:
        """Return `spec.scaling.minReplicas` of each service, or its fixed number."""
        floors = {}
        for key, body in self.kube.objects.items():
            if key.plural == INFERENCE_SERVICES.plural:
                spec = body["spec"]
                floor = spec.get("replicas", spec.get("scaling", {}).get("minReplicas", 0))
                floors[Ref(key.namespace, key.name)] = int(floor)
        return floors

    def excuse_node(self, name: str) -> None:
        """The replicas of a node that is about to go may be missing until others are there."""
        for _, pod in self.kube.pods():
            if pod.node == name and pod.takes_requests:
                self._excuse(pod.service)

    def forget(self, service: Ref) -> None:
        """Forget what a service had, since its user deleted it."""
        del self._reached[service], self._lost[service]
        self._replacing.discard(service)
        self._below.pop(service, None)

    def excuse_pod(self, key: ObjectKey) -> None:
        """A replica that is about to fail by itself may be missing until its floor is there."""
        if (pod := self.kube.pod(key)).takes_requests:
            self._excuse(pod.service)

    def _excuse(self, service: Ref, replicas: int = 1) -> None:
        self._lost[service] += replicas
        self._excused_until[service] = self.kube.steady + _EXCUSE

    def excuse_foreign_write(self, deployment: ObjectKey) -> None:
        """What somebody else's number takes may be missing until others are there."""
        healthy = [
            pod
            for key, pod in self.kube.pods()
            if _deployment_of(self.kube.objects[key]) == deployment.name and pod.takes_requests
        ]
        excess = len(healthy) - int(self.kube.objects[deployment]["spec"]["replicas"])
        if excess > 0:
            self._excuse(healthy[0].service, excess)

    def look(self) -> None:
        """Compare every service with its floor."""
        if self._seen == self.kube.version:
            return
        self._seen = self.kube.version
        healthy, floors = self.healthy(), self.floors()
        needed = self._rolling_in_place() | self._changing_template()
        needed |= self._moving_on_same_devices()
        whole = {service for service, floor in floors.items() if healthy[service] >= floor}
        self._replacing = (self._replacing - whole) | needed
        self._below.clear()
        for service, floor in floors.items():
            count = healthy[service]
            reached = min(floor, max(self._reached[service], count))
            self._reached[service] = reached
            if count < floor:
                self._excused_until.pop(service, None)
            elif self.kube.steady >= self._excused_until.get(service, self.kube.steady):
                self._lost[service] = 0
            if reached:
                self.lowest[service] = min(self.lowest.get(service, floor), count)
            if self.forgives_lasting:
                self._forgive(service, count, reached)
            tolerated = self._lost[service] + (service in self._replacing)
            if count + tolerated < reached:
                text = f"{service} has {count} healthy of {reached}, {tolerated} may be missing"
                self._below[service] = text
        self._was_below = {**self._below, **self._was_below}

    def _forgive(self, service: Ref, count: int, reached: int) -> None:
        """Excuse what was missing of a service for so long, once it loses one more."""
        last, since = self._short.get(service, (count, self.kube.at))
        if last != count:
            if self.kube.at - since >= _LASTING and count < last < reached:
                self._lost[service] = max(self._lost[service], reached - last)
            since = self.kube.at
        self._short[service] = count, min(since, self.kube.at)

    def look_at_numbers(self) -> None:
        """Compare what autoscalers of others wrote, and a cycle let stand, with the floors."""
        replicas = Counter[Ref]()
        for key in self.kube.deployments():
            replicas[self._service_of(key)] += self.kube.strategy(key).replicas
        floors = self.floors()
        for key, autoscaler in self.kube.autoscalers.items():
            if key not in self.kube.objects or not self.counts_written_numbers:
                continue
            service, number = self._service_of(key), self.kube.strategy(key).replicas
            reached = min(floors.get(service, 0), self._reached[service])
            if number == autoscaler.replicas and replicas[service] < reached:
                text = f"{service} has {replicas[service]} replicas, as an autoscaler wrote"
                self._was_below[service] = f"{text}, of {reached}"

    def end_tick(self, ticks: int = 1) -> bool:
        """Count the services that were below their floor at any time; it lasted so many ticks.

        Return whether a Deployment or a pod changed.
        """
        for text in self._was_below.values():
            self.ticks_below_floor += ticks
            self.findings.append(f"{self.kube.at:%H:%M:%S} {text}")
        self._was_below = dict(self._below)
        history, watched = self.kube.history, (PODS.plural, DEPLOYMENTS.plural)
        changed = any(key.plural in watched for _, key, _ in history[self._changes_seen :])
        self._changes_seen = len(history)
        if changed or self.last_change is None:
            self.last_change = self.kube.at
        return changed

    def _service_of(self, deployment: ObjectKey) -> Ref:
        labels = self.kube.objects[deployment]["spec"]["selector"]["matchLabels"]
        return Ref(deployment.namespace, labels.get("tessera.dev/service", ""))

    def _rolling_in_place(self) -> set[Ref]:
        """Return services with a rollout that was in place at any time.

        It lasts until all replicas of a Deployment are healthy with its template.
        """
        pods = defaultdict[str, list[Pod]](list)
        for key, pod in self.kube.pods():
            for owner in self.kube.objects[key]["metadata"].get("ownerReferences", ()):
                pods[owner.get("uid", "").rpartition("-")[0]].append(pod)
        services = set()
        for key in self.kube.deployments():
            uid = self.kube.objects[key]["metadata"]["uid"]
            newest, strategy = self.kube.template_hash(key), self.kube.strategy(key)
            old = [pod for pod in pods[uid] if pod.template != newest]
            ready = sum(pod.takes_requests for pod in pods[uid] if pod.template == newest)
            if old:
                self._rolling[uid] = self._rolling.get(uid, False) or strategy.surge == 0
            elif uid in self._rolling and ready >= strategy.replicas:
                del self._rolling[uid]
            if self._rolling.get(uid):
                services.add(self._service_of(key))
        return services

    def _changing_template(self) -> set[Ref]:
        """Return services with Deployments of several templates of one variant."""
        templates = Counter[tuple[Ref, str]]()
        owners = {_deployment_of(self.kube.objects[key]) for key, _ in self.kube.pods()}
        for key in self.kube.deployments():
            labels = self.kube.objects[key]["spec"]["selector"]["matchLabels"]
            if self.kube.strategy(key).replicas or key.name in owners:
                variant = labels.get("tessera.dev/variant", "")
                templates[self._service_of(key), variant] += 1
        return {service for (service, _), count in templates.items() if count > 1}

    def _moving_on_same_devices(self) -> set[Ref]:
        """Return services whose pods of several Deployments want the same devices.

        A pod that a quota refuses wants them too.
        """
        variants = defaultdict[tuple[Ref, tuple[object, ...]], set[str]](set)
        for key in self.kube.deployments():
            body = self.kube.objects[key]
            conditions = body.get("status", {}).get("conditions", ())
            if any(each["type"] == "ReplicaFailure" for each in conditions):
                template = body["spec"]["template"]
                limits = template["spec"]["containers"][0]["resources"]["limits"]
                selector = template["spec"]["nodeSelector"]
                resources = sorted(name for name in limits if name.startswith("nvidia.com/"))
                wanted = (*sorted(selector.items()), *resources)
                variant = template["metadata"]["labels"]["tessera.dev/variant"]
                variants[self._service_of(key), wanted].add(variant)
        for key, pod in self.kube.pods():
            if pod.service.name:
                selector = self.kube.objects[key]["spec"]["nodeSelector"]
                devices = (*sorted(selector.items()), *sorted(pod.devices))
                variants[pod.service, devices].add(pod.variant)
        return {service for (service, _), names in variants.items() if len(names) > 1}


def _deployment_of(pod: Body) -> str:
    """Return the name of the Deployment whose ReplicaSet owns a pod."""
    owners = pod["metadata"].get("ownerReferences", ())
    return next((str(each.get("name", "")).rpartition("-")[0] for each in owners), "")
