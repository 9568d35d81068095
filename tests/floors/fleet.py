"""Services on several pools under the whole operator, with what users and clouds do to them."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    INFERENCE_SERVICES,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.domain.observed.snapshot import PodReading, Readings
from tessera.resources.api_resources import (
    CLAIMS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    HORIZONTAL_POD_AUTOSCALERS,
    JOBS,
    NODES,
)
from tessera.resources.manifest import ObjectKey
from tests.builders import A100, H100, SMALL
from tests.floors.judge import Judge
from tests.floors.kube import BAD_IMAGE, Autoscaler, FloorKube, PodTimes, Quota
from tests.repartition.crashes import CrashInjector
from tests.repartition.kube import Body
from tests.repartition.simulation import KillableOperator

NAMESPACE = "team-a"
GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"
TICK = timedelta(seconds=5)
# While nothing happens, time goes faster.
_IDLE_TICKS = 6
_IDLE_AFTER = 12
PRICES = {"Reserved": "2.00", "OnDemand": "3.36"}


@dataclass(slots=True, kw_only=True)
class FloorFleet:
    """The cluster and the operator; a tick is 5 s, and longer while nothing changes."""

    kube: FloorKube
    judge: Judge
    late_controllers: float = 0.0
    """Share of the ticks in which the controllers take only one step, after the time has passed."""
    operator: KillableOperator | None = None
    waiting: dict[str, float] = field(default_factory=dict)
    """Requests that wait at each replica, by service."""
    quiet_ticks: int = 0
    restart_requested: bool = False

    @classmethod
    def begin(
        cls, seed: int = 0, times: PodTimes | None = None, *, late_controllers: float = 0.0
    ) -> Self:
        kube = FloorKube(seed, times)
        fleet = cls(kube=kube, judge=Judge(kube), late_controllers=late_controllers)
        kube.after_round = fleet.judge.look
        kube.foreign_losses = fleet.judge.excuse_foreign_write
        kube.node_losses = fleet.judge.excuse_node
        kube.pod_losses = fleet.judge.excuse_pod
        return fleet

    # Users and clouds

    def add_pool(
        self, name: str, tier: str = "Reserved", price: str | None = None, label: str | None = None
    ) -> None:
        """Add a pool of the nodes with this label, by default its own name."""
        spec = {
            "nodeSelector": {"pool": label or name},
            "tier": tier,
            "prices": [{"from": "2026-01-01", "perGPUHour": price or PRICES[tier]}],
        }
        self.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": name}, "spec": spec}, "kubectl")

    def rename_pool(self, old: str, new: str) -> None:
        spec = self.kube.objects[ObjectKey(ACCELERATOR_POOLS.plural, "", old)]["spec"]
        self.kube.put(ACCELERATOR_POOLS, {"metadata": {"name": new}, "spec": spec}, "kubectl")
        self.kube.discard(ObjectKey(ACCELERATOR_POOLS.plural, "", old))

    def add_node(
        self,
        label: str,
        *,
        whole: int = 0,
        slices: int = 0,
        product: str = A100,
        name: str = "",
        devices: Mapping[str, int] | None = None,
    ) -> None:
        """Add a node with whole GPUs, one GPU in slices 1g.10gb, or with these `devices`."""
        name = name or f"{label}-{len(self.kube.nodes())}"
        labels = {
            "pool": label,
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.count": str(whole or (devices or {}).get(GPU, 1)),
        }
        counts = devices or ({GPU: whole} if whole else {SLICE: slices})
        allocatable = {resource: str(count) for resource, count in counts.items()}
        status = {
            "allocatable": allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        body = {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": status}
        self.kube.put(NODES, body, "kubelet")

    def serve(self, name: str, floor: int, **spec: Any) -> None:
        """Create a service of a small model."""
        scaling = {"minReplicas": floor, "maxReplicas": max(floor, 8), **spec.pop("scaling", {})}
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"model": {"uri": SMALL}, "scaling": scaling, **spec},
        }
        self.kube.put(INFERENCE_SERVICES, body, "kubectl")

    def spec(self, name: str) -> dict[str, Any]:
        spec: dict[str, Any] = self.kube.objects[_service(name)]["spec"]
        return spec

    def edit(self, name: str, **fields: Any) -> None:
        """Write fields of the spec of a service; one of None goes."""
        spec = {**self.spec(name), **fields}
        present = {field: value for field, value in spec.items() if value is not None}
        body = {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": present}
        self.kube.put(INFERENCE_SERVICES, body, "kubectl")

    def edit_template(self, name: str, value: str) -> None:
        """Change the pod template of a service, harmlessly."""
        self.edit(name, podTemplate={"annotations": {"edit": value}}, engine=None)

    def break_template(self, name: str) -> None:
        """Give a service an image that cannot be pulled."""
        self.edit(name, engine={"image": BAD_IMAGE})

    def set_floor(self, name: str, floor: int) -> None:
        self.edit(name, scaling={**self.spec(name)["scaling"], "minReplicas": floor})

    def remove_service(self, name: str) -> None:
        self.kube.discard(_service(name))

    def set_budget(self, limits: list[dict[str, str]], gpus: str | None = None) -> None:
        spec = {
            "owner": "team-a@example.org",
            "tenant": {"namespaces": [NAMESPACE]},
            "limits": limits,
            **({"gpus": gpus} if gpus else {}),
        }
        self.kube.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": spec}, "kubectl")

    def remove_budget(self) -> None:
        self.kube.discard(ObjectKey(TENANT_BUDGETS.plural, "", "team-a"))

    def set_quota(self, hard: int, resource: str = GPU) -> None:
        self.kube.quotas[NAMESPACE] = Quota(name="gpus", resource=resource, hard=hard)

    def remove_quota(self) -> None:
        self.kube.quotas.pop(NAMESPACE, None)

    def autoscale(self, deployment: ObjectKey, replicas: int) -> None:
        """Let a HorizontalPodAutoscaler hold a Deployment at this number."""
        self.kube.autoscalers[deployment] = Autoscaler(replicas=replicas, next_at=self.kube.steady)
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment.name}
        body = {
            "metadata": {"name": deployment.name, "namespace": deployment.namespace},
            "spec": {"scaleTargetRef": target, "minReplicas": replicas, "maxReplicas": replicas},
        }
        self.kube.put(HORIZONTAL_POD_AUTOSCALERS, body, "kubectl")

    def end_autoscaler(self, deployment: ObjectKey) -> None:
        """Delete the HorizontalPodAutoscaler of a Deployment; what it wrote last stays its own."""
        self.kube.autoscalers.pop(deployment, None)
        plural = HORIZONTAL_POD_AUTOSCALERS.plural
        self.kube.discard(ObjectKey(plural, deployment.namespace, deployment.name))

    def serve_gated(self, name: str, floor: int, **spec: Any) -> None:
        """Create a service whose changes are tried on the gate `answers`."""
        if _gate() not in self.kube.objects:
            self.put_gate()
        self.serve(name, floor, rollout={"strategy": "Gated", "gateRef": "answers"}, **spec)

    def put_gate(self, **spec: Any) -> None:
        meta = {"name": "answers", "namespace": NAMESPACE}
        suite = {"configMap": {"name": "suite"}}
        self.kube.put(
            QUALITY_GATES, {"metadata": meta, "spec": {"suite": suite, **spec}}, "kubectl"
        )

    def remove_gate(self) -> None:
        self.kube.discard(_gate())

    def edit_version(self, name: str, value: int) -> None:
        """Change what a gate has to try: a flag of the engine that may change answers."""
        self.edit(name, engine={"extraArgs": [f"--seed={value}"]})

    def objects(self, kind: ApiResource) -> list[ObjectKey]:
        return sorted(key for key in self.kube.objects if key.plural == kind.plural)

    def gate_jobs(self) -> list[ObjectKey]:
        return self.objects(JOBS)

    def revisions(self) -> list[ObjectKey]:
        return self.objects(CONTROLLER_REVISIONS)

    def claims(self) -> list[ObjectKey]:
        return self.objects(CLAIMS)

    def erase_status(self, key: ObjectKey) -> None:
        """Lose the status of an object, as a restore from a backup does."""
        if "status" in self.kube.objects.get(key, {}):
            self.kube.remove(key, "status")

    def cordon(self, name: str, *, cordoned: bool = True) -> None:
        """Keep new pods away from a node; those that it has serve on."""
        self.kube.set(ObjectKey(NODES.plural, "", name), "spec", unschedulable=cordoned)

    def taint(self, name: str, *, tainted: bool = True) -> None:
        """Put a taint on a node that no pod tolerates, or take it away."""
        taints = [{"key": "example.org/repair", "effect": "NoSchedule"}] if tainted else []
        self.kube.set(ObjectKey(NODES.plural, "", name), "spec", taints=taints)

    def take_devices(
        self, label: str, count: int = 1, resource: str = GPU, priority: int = 0
    ) -> None:
        """Let pods of somebody else want devices of a pool; they wait while there are none."""
        for _ in range(count):
            self.kube.add_foreign_pod(label, resource, priority)

    def free_devices(self, label: str) -> None:
        """End the pods of somebody else on a pool."""
        for key, _ in list(self.kube.pods()):
            selector = self.kube.objects[key]["spec"]["nodeSelector"]
            if key.namespace == "people" and selector == {"pool": label}:
                self.kube.begin_deletion(key)

    def devices_in_use(self, resource: str) -> int:
        """Return the devices that pods of the namespace hold or want."""
        return self.kube.devices_in_use(NAMESPACE, resource)

    async def restart_operator(self) -> None:
        """End the process of the operator; the next tick starts one without memory."""
        self.restart_requested = False
        if self.operator is not None:
            await self.operator.stop()
            self.operator = None

    def set_node_ready(self, name: str, ready: bool) -> None:
        """Let the kubelet of a node fall silent, or be heard again."""
        lifecycle = self.kube.node_lifecycle
        (lifecycle.come_back if ready else lifecycle.leave)(name)

    def lose_node(self, name: str) -> None:
        self.judge.excuse_node(name)
        self.kube.lose_node(name)

    def start_operator(self) -> KillableOperator:
        injector = CrashInjector(state=lambda: ())
        return KillableOperator(self.kube, injector, node_agents=False, gateways=True)

    # Time

    async def tick(self) -> None:
        """Run a cycle and then the controllers; let time pass; let them see what became of it."""
        if self.restart_requested:
            await self.restart_operator()
        if self.operator is None:
            self.operator = self.start_operator()
        await self.operator.reconcile()
        self.judge.look()
        self.judge.look_at_numbers()
        is_late = self.kube.rng.random() < self.late_controllers
        if not is_late:
            await self.kube.step()
        ticks = _IDLE_TICKS if self.quiet_ticks >= _IDLE_AFTER else 1
        self.kube.at += ticks * TICK
        self.kube.run_kubelets()
        await self.kube.step(rounds=1 if is_late else None)
        self.operator.observations.readings = self._readings()
        is_busy = self.judge.end_tick(ticks) or self.kube.is_waiting
        self.quiet_ticks = 0 if is_busy else self.quiet_ticks + 1

    async def run(self, seconds: float) -> None:
        end, self.quiet_ticks = self.kube.steady + timedelta(seconds=seconds), 0
        while self.kube.steady < end:
            await self.tick()

    async def settle(self, seconds: float = 600) -> None:
        """Run until nothing changes for a minute, but no longer than this."""
        end, self.quiet_ticks = self.kube.steady + timedelta(seconds=seconds), 0
        while self.kube.steady < end and self.quiet_ticks < _IDLE_AFTER:
            await self.tick()

    async def close(self) -> None:
        await self.restart_operator()
        await asyncio.sleep(0)

    def _readings(self) -> Readings:
        pods = {}
        for _, pod in self.kube.pods():
            if pod.takes_requests and pod.service.name:
                waiting = self.waiting.get(pod.service.name, 0.0)
                running = 8.0 if waiting else 0.0
                pods[pod.ref] = PodReading(
                    waiting=waiting, running=running, activity=0.9 if waiting else 0.0
                )
        return Readings(at=self.kube.at, pods=pods)

    # Observations

    def _names(self, kind: ApiResource) -> list[str]:
        return sorted(key.name for key in self.kube.objects if key.plural == kind.plural)

    def services(self) -> list[str]:
        return self._names(INFERENCE_SERVICES)

    def pools(self) -> list[str]:
        return self._names(ACCELERATOR_POOLS)

    def has_budget(self) -> bool:
        return bool(self._names(TENANT_BUDGETS))

    def labels(self) -> list[str]:
        """Return the labels of nodes by which pools select them."""
        return sorted({self.kube.node(name).labels["pool"] for name in self.kube.nodes()})

    def taken_labels(self) -> list[str]:
        """Return the labels of pools with pods of somebody else."""
        return sorted(
            {
                self.kube.objects[key]["spec"]["nodeSelector"]["pool"]
                for key, _ in self.kube.pods()
                if key.namespace == "people"
            }
        )

    def resource(self, label: str) -> str:
        """Return what the nodes with this label offer."""
        nodes = [self.kube.node(name) for name in self.kube.nodes()]
        return next(iter(next(node for node in nodes if node.labels["pool"] == label).allocatable))

    def images(self, service: str) -> set[str]:
        """Return the images of the engines of a service."""
        pods = self.kube.service_pods(NAMESPACE, service)
        return {self.kube.objects[key]["spec"]["containers"][0]["image"] for key, _ in pods}

    def deployment(self, name: str) -> ObjectKey:
        return ObjectKey(DEPLOYMENTS.plural, NAMESPACE, name)

    def healthy(self, name: str) -> int:
        return self.judge.healthy()[Ref(NAMESPACE, name)]

    def counts(self, name: str) -> Mapping[str, int]:
        """Return the pods of a service that take requests, by Deployment."""
        pods = self.kube.service_pods(NAMESPACE, name)
        prefix = f"{name}-"
        return Counter(pod.variant.removeprefix(prefix) for _, pod in pods if pod.takes_requests)

    def deployments(self, name: str) -> list[ObjectKey]:
        return [key for key in self.kube.deployments() if key.name.startswith(f"{name}-")]

    def status(self, name: str) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.kube.objects[_service(name)].get("status", {})
        return status

    def conditions(self, name: str) -> Sequence[Mapping[str, str]]:
        return body_conditions(self.kube.objects[_service(name)])

    def condition(self, name: str, type: str) -> Mapping[str, str]:
        return next((each for each in self.conditions(name) if each["type"] == type), {})

    def budget_conditions(self) -> Sequence[Mapping[str, str]]:
        return [
            condition
            for key, body in self.kube.objects.items()
            if key.plural == TENANT_BUDGETS.plural
            for condition in body_conditions(body)
        ]

    def describe(self) -> list[str]:
        """Describe services and pods for the message of a failed test."""
        lines = []
        for service in self.services():
            lines += [
                f"{service}: {each['type']} {each['status']} {each['reason']}: {each['message']}"
                for each in self.conditions(service)
            ]
        for key in self.kube.deployments():
            lines.append(f"{key.name}: {self.kube.strategy(key)}")
        for key, pod in self.kube.pods():
            state = "ends" if pod.terminating else "ready" if pod.takes_requests else "not ready"
            lines.append(f"{key.name} {pod.template} on {pod.node}, {state}")
        return lines


def body_conditions(body: Body) -> Sequence[Mapping[str, str]]:
    conditions: Sequence[Mapping[str, str]] = body.get("status", {}).get("conditions", ())
    return conditions


def _gate() -> ObjectKey:
    return ObjectKey(QUALITY_GATES.plural, NAMESPACE, "answers")


def _service(name: str) -> ObjectKey:
    return ObjectKey(INFERENCE_SERVICES.plural, NAMESPACE, name)


def add_gpus(fleet: FloorFleet, label: str, whole: int, tier: str = "Reserved") -> None:
    """Add a pool of its own with one node of whole A100."""
    fleet.add_pool(label, tier)
    fleet.add_node(label, whole=whole)


def add_h100(fleet: FloorFleet, label: str, whole: int, price: str = "2.99") -> None:
    """Add a pool of its own with one node of H100 on demand."""
    fleet.add_pool(label, "OnDemand", price)
    fleet.add_node(label, whole=whole, product=H100)
