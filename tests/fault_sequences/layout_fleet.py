"""A fleet under repartition whose nodes, device plugins, agents and users can do wrong."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self, cast

from typing_extensions import override

from fakegpu.gpu_driver import Code
from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL
from tessera.domain.mig_backends.gpu_clients import MIG_MANAGER_LABEL
from tessera.domain.observed.snapshot import Pod
from tessera.ports import ClusterObject
from tessera.resources.api_resources import DEPLOYMENTS, DISRUPTION_BUDGETS, NODES, PODS
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tests.repartition.kube import Kube
from tests.repartition.machine import InvariantError, SimulatedNode
from tests.repartition.scenarios import RepartitionScenario
from tests.repartition.simulation import (
    DRAINED,
    PartitionBackend,
    RepartitionSimulation,
)
from world.mig_manager import MigManager

POOL = ObjectKey(ACCELERATOR_POOLS.plural, "", "a100")
# The calls of a driver whose GPUs fell off the bus.
_LOST_CALLS = (
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetGpuInstances",
    "nvmlDeviceCreateGpuInstance",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlGpuInstanceDestroy",
    "nvmlComputeInstanceDestroy",
)
_FOREVER = 10**9
# No service of a scenario asks for more than this, with all of its surge.
_MOST_REPLICAS = 30


class FaultyKube(Kube):
    """Records broken streams, and the replicas that a fault itself takes down."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.broken_streams: list[str] = []
        self.lost: Counter[Ref] = Counter()
        """Ready replicas that a fault itself took down, by service."""
        self._excused = False
        self._rolled = set[Ref]()
        """Services of which a rollout in place took a replica that is still lost."""

    @override
    def begin_deletion(self, key: ObjectKey) -> None:
        pod = self.pod(key)
        if self._excused and not pod.terminating:
            self.lost[pod.service] += pod.takes_requests
        super().begin_deletion(key)

    @override
    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete; that the replica of a stalled engine is replaced is excused."""
        if key in self.stalled and self._uid(key) == uid:
            self.lose(key)
        else:
            await super().delete(kind, key, uid=uid, grace_seconds=grace_seconds)

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        """Apply, after the controllers of Deployments did what they see at this moment.

        That a rollout without a free slice takes one replica is excused.
        """
        key = manifest.key
        if key.plural != PODS.plural:
            return await super().apply(manifest, subresource=subresource)
        self._deployments()
        gives_way = key in self.objects and self._gives_way(key)
        observed = await super().apply(manifest, subresource=subresource)
        if gives_way and not self.pod(key).takes_requests:
            self.lost[self.pod(key).service] += 1
        return observed

    def _gives_way(self, key: ObjectKey) -> bool:
        """Return whether a ready replica is the first to leave for one that finds no slice."""
        pod = self.pod(key)
        others = [
            other
            for _, other in self.pods()
            if (other.service, other.variant) == (pod.service, pod.variant)
            and other.template_digest != pod.template_digest
            and not other.terminating
        ]
        waits = any(other.node is None and other.created >= pod.created for other in others)
        return pod.takes_requests and not self.lost[pod.service] and waits

    @override
    async def evict(self, pod: Ref, uid: str) -> None:
        """Evict; a replica that still answers requests was not drained before."""
        key = ObjectKey(PODS.plural, pod.namespace, pod.name)
        if self._uid(key) == uid and not self.pod(key).terminating:
            before = self.pod(key)
            await super().evict(pod, uid)
            drained = (
                before.draining_since is not None and self.at - before.draining_since >= DRAINED
            )
            if before.containers_ready and not drained:
                self.broken_streams.append(f"{key.name} at {self.at:%H:%M:%S}")

    @override
    def _deployments(self) -> None:
        for key, body in self.objects.items():
            if key.plural == DEPLOYMENTS.plural and body["spec"]["replicas"] > _MOST_REPLICAS:
                raise InvariantError(f"{key.name} has {body['spec']['replicas']} replicas")
        super()._deployments()

    def lose(self, key: ObjectKey) -> None:
        """Delete a pod as a fault does: what it serves then is excused."""
        self._excused = True
        try:
            self.begin_deletion(key)
        finally:
            self._excused = False

    @override
    def end_for_rollout(self, key: ObjectKey, *, in_place: bool) -> None:
        """Delete it; that a rollout without a free slice takes one replica a service is excused.

        The next one is excused when the service has had its floor again.
        """
        pod = self.pod(key)
        if not self.lost[pod.service]:
            self._rolled.discard(pod.service)
        if in_place and pod.takes_requests and pod.service not in self._rolled:
            self._rolled.add(pod.service)
            self.lose(key)
        else:
            self.begin_deletion(key)

    def drain(self, node: str) -> None:
        """Evict what disruption budgets allow, as `kubectl drain` does."""
        for key, pod in list(self.pods()):
            if pod.node != node or pod.terminating:
                continue
            budgets = [name for name in self._budgets(key.namespace) if self._protects(name, key)]
            if len(budgets) < 2 and all(self._allows_disruption(name, pod) for name in budgets):
                self.lose(key)


@dataclass(slots=True, kw_only=True)
class FaultyNode(SimulatedNode):
    """A node whose parts can be away, slow, stale or without power."""

    powered: bool = True
    configured_by_hand: bool = False
    """Somebody asked mig-manager for another configuration, whatever uses the slices."""
    _manager_away: bool = False

    @override
    def __post_init__(self) -> None:
        SimulatedNode.__post_init__(self)
        self.manager = self.manager or MigManager()
        self.kube.set(self.key, "metadata", "labels", **{MIG_MANAGER_LABEL: "true"})

    @override
    async def step(self, seconds: float) -> None:
        if self.powered:
            await SimulatedNode.step(self, seconds)
        else:
            self._now += seconds

    @override
    async def run_agent(self) -> None:
        if self.powered:
            await SimulatedNode.run_agent(self)

    def lose_power(self) -> None:
        """Stop everything at once; its pods serve no more."""
        self.powered = False
        self.kube.condition(self.key, "Ready", "Unknown")
        for key, pod in list(self.kube.pods()):
            if pod.node == self.name:
                cast(FaultyKube, self.kube).lost[pod.service] += pod.takes_requests
                self.kube.ready(key, up=False)

    def boot(self) -> None:
        """Start again, without slices and pods; the device plugin is there before the agent."""
        for key, uuid in list(self.device_by_pod.items()):
            self.gpu_driver.detach(uuid, key.name)
        self.device_by_pod.clear()
        self._since.clear()
        for key, pod in list(self.kube.pods()):
            if pod.node == self.name:
                self.kube.discard(key)
        self.powered = True
        self._agent = None
        self.manager = MigManager()
        self.clear_unused_slices()
        self._devices = None
        self.kube.condition(self.key, "Ready", "True")
        self.start_plugin()

    def start_plugin(self) -> None:
        """Start the device plugin at once, where it may run: it sees the slices of this moment."""
        self._plugin_gone = None
        if self.labels[DEVICE_PLUGIN_LABEL] == "true":
            self._discover_devices()

    def clear_unused_slices(self) -> None:
        """Remove every slice that nobody uses, as a reset of its GPU does."""
        for gpu in self.gpu_driver.gpus:
            for instance in tuple(gpu.instances):
                if not instance.attached:
                    gpu.instances.remove(instance)
        self.gpu_driver.version += 1

    def lose_gpus(self) -> None:
        """Let the driver answer every call with GPU_IS_LOST."""
        for name in _LOST_CALLS:
            self.gpu_driver.fail(name, Code.GPU_IS_LOST, times=_FOREVER)

    def repair_gpus(self) -> None:
        self.gpu_driver._faults.clear()
        self._agent = None

    # The device plugin

    @override
    def _admit(self, key: ObjectKey, pod: Pod) -> None:
        """Give it a free device; one of a plugin that is stale cannot be started."""
        existing = self._profiles_by_uuid()
        listed, self._devices = (
            self._devices or {},
            {uuid: profile for uuid, profile in (self._devices or {}).items() if uuid in existing},
        )
        SimulatedNode._admit(self, key, pod)
        self._devices = listed

    # NVIDIA's mig-manager

    @override
    def _run_mig_manager(self) -> None:
        if self.labels.get(MIG_MANAGER_LABEL) != "true":
            self._manager_away = True
            return
        if self._manager_away:
            self.manager, self._manager_away = MigManager(), False
        SimulatedNode._run_mig_manager(self)


@dataclass(slots=True, kw_only=True)
class LayoutFleet(RepartitionSimulation):
    """The simulation of a repartition, with the handles that faults use."""

    specs: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Model and further fields of every service."""
    pool_spec: dict[str, Any] = field(default_factory=dict)
    """The spec of the pool when it was deleted."""
    _foreign_pods: int = 0

    @classmethod
    def begin(cls, backend: PartitionBackend, scenario: RepartitionScenario, seed: int) -> Self:
        return cls.of(backend, scenario.nodes, seed, kube_type=FaultyKube, node_type=FaultyNode)

    @property
    def faulty_kube(self) -> FaultyKube:
        return cast(FaultyKube, self.kube)

    def node(self, name: str) -> FaultyNode:
        return cast(FaultyNode, next(node for node in self.machines if node.name == name))

    def node_names(self) -> list[str]:
        return [node.name for node in self.machines]

    def nodes_in_work(self) -> list[str]:
        """Return the nodes of units, and all nodes while there is none."""
        return [unit.node for unit in self.mig.units] or self.node_names()

    def service_names(self) -> list[str]:
        return sorted(ref.name for ref in self.min_replicas)

    # Users

    @override
    def serve(
        self, name: str, uri: str, min_replicas: int, namespace: str = "team-a", **spec: Any
    ) -> None:
        self.specs[name] = uri, spec
        RepartitionSimulation.serve(self, name, uri, min_replicas, namespace, **spec)

    def set_floor(self, name: str, min_replicas: int) -> None:
        uri, spec = self.specs[name]
        self.serve(name, uri, min_replicas, **spec)

    def set_budget(self, amount: int) -> None:
        """Write the limit of the tenant, far above what it spends."""
        spec = {
            "owner": "team-a@example.org",
            "tenant": {"namespaces": ["team-a"]},
            "limits": [{"window": "Day", "amount": str(amount)}],
        }
        body = {"metadata": {"name": "team-a"}, "spec": spec}
        self.kube.put(TENANT_BUDGETS, body, "kubectl")

    def remove_service(self, name: str) -> None:
        """Delete a service; the garbage collector deletes what it owns."""
        key = ObjectKey(INFERENCE_SERVICES.plural, "team-a", name)
        del self.min_replicas[Ref("team-a", name)], self.specs[name]
        uid = self.kube.objects[key]["metadata"]["uid"]
        self.kube.discard(key)
        for child, body in list(self.kube.objects.items()):
            owners = body["metadata"].get("ownerReferences", ())
            if any(owner.get("uid") == uid for owner in owners):
                self.kube.discard(child)
        for pod_key, pod in list(self.kube.pods()):
            if pod.service == Ref("team-a", name):
                self.faulty_kube.lose(pod_key)

    def update_pool(self, **fields: Any) -> None:
        """Write the spec of the pool again, with these fields; a field of None goes."""
        if POOL not in self.kube.objects:
            return
        spec = {**self.kube.objects[POOL]["spec"], **fields}
        present = {name: value for name, value in spec.items() if value is not None}
        self.kube.put(
            ACCELERATOR_POOLS, {"metadata": {"name": POOL.name}, "spec": present}, "kubectl"
        )

    def update_mig(self, **fields: Any) -> None:
        self.update_pool(mig={**self.mig_spec, **fields})

    @property
    def mig_spec(self) -> dict[str, Any]:
        """Return spec.mig of the pool; empty without it, or without the pool."""
        spec: dict[str, Any] = self.kube.objects.get(POOL, {"spec": {}})["spec"]
        return dict(spec.get("mig", {}))

    def label(self, node: str, **labels: str | None) -> None:
        key = ObjectKey(NODES.plural, "", node)
        merged = {**self.kube.objects[key]["metadata"]["labels"], **labels}
        present = {name: value for name, value in merged.items() if value is not None}
        self.kube.set(key, "metadata", labels=present)

    def add_foreign_pod(self) -> None:
        """Somebody runs a notebook on any free slice; it waits while there is none."""
        offered = [
            (name, resource)
            for name in self.kube.nodes()
            for resource, count in self.kube.objects[ObjectKey(NODES.plural, "", name)]["status"][
                "allocatable"
            ].items()
            if resource.startswith("nvidia.com/mig-") and int(count)
        ]
        _, resource = self.kube.rng.choice(offered or [("", "nvidia.com/mig-1g.10gb")])
        self._foreign_pods += 1
        name = f"notebook-{self._foreign_pods}"
        meta = {
            "name": name,
            "namespace": "people",
            "labels": {},
            "creationTimestamp": self.kube.moment,
        }
        container = {"name": "notebook", "resources": {"limits": {resource: "1"}}}
        body = {"metadata": meta, "spec": {"nodeSelector": {}, "containers": [container]}}
        self.kube.put(PODS, body, "kubectl")

    def remove_foreign_pods(self) -> None:
        for key, pod in list(self.kube.pods()):
            if key.namespace == "people" and not pod.terminating:
                self.kube.begin_deletion(key)

    def add_foreign_budget(self) -> None:
        """A company's policy selects every engine, and allows every disruption."""
        body = {
            "metadata": {"name": "company", "namespace": "team-a"},
            "spec": {
                "maxUnavailable": "100%",
                "selector": {"matchLabels": {"app.kubernetes.io/component": "engine"}},
            },
        }
        self.kube.put(DISRUPTION_BUDGETS, body, "kyverno")

    def remove_foreign_budget(self) -> None:
        self.kube.discard(ObjectKey(DISRUPTION_BUDGETS.plural, "team-a", "company"))

    def stop_operator(self) -> None:
        """Keep the operator down in the next cycle; its memory is lost."""
        self._next_start = self.ticks + 2

    @override
    async def tick(self) -> int:
        if self.operator is not None and self.ticks + 1 < self._next_start:
            await self.operator.stop()
            self.operator = None
        return await RepartitionSimulation.tick(self)
