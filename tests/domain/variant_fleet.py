"""A cluster in memory that carries out what is decided for services with several variants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tessera.api.template_version import PodTemplateVersionStatus
from tessera.domain.config import Config
from tessera.domain.observed.snapshot import (
    InFlight,
    Node,
    ObservedService,
    Pod,
    Pool,
    Ref,
    Snapshot,
    Workload,
)
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.status.service import service_status
from tests.builders import NOW, a_template_workload, a_workload

CHAT = Ref("team-a", "chat")


@dataclass
class VariantFleet:
    """A service or more on nodes of several pools, with the controllers of Deployments and pods."""

    service: ObservedService
    pools: Sequence[Pool]
    nodes: list[Node]
    start: timedelta = timedelta(seconds=60)
    """From the binding of a pod until it is ready."""
    stop: timedelta = timedelta()
    """From the deletion of a pod until its device is free."""
    quota: int | None = None
    """How many pods there may be."""
    is_broken: Callable[[PodTemplateVersionStatus | None], bool] = lambda _: False
    """Whether replicas of a template never get ready."""
    config: Config = field(default_factory=lambda: Config(gateways=True))
    decide: Callable[[Config, Snapshot, PlanMemory], Plan] = plan
    pods: dict[Ref, Pod] = field(default_factory=dict)
    workloads: dict[Ref, Workload] = field(default_factory=dict)
    memory: PlanMemory = field(default_factory=PlanMemory)
    now: timedelta = timedelta()
    created: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields of its snapshots."""
    stopping: dict[Ref, datetime] = field(default_factory=dict)
    """When pods that terminate are gone."""
    lost: list[Pod] = field(default_factory=list)
    """Pods that took requests when they were deleted."""
    others: list[ObservedService] = field(default_factory=list)
    """Services beside it."""
    plans: Mapping[Ref, ServicePlan] = field(default_factory=dict)
    """What was decided last for each."""
    devices: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The resource of a replica of each variant, and how many of it."""

    def snapshot(self) -> Snapshot:
        at = NOW + self.now
        return Snapshot(
            at=at,
            services=(self.service, *self.others),
            pools=tuple(self.pools),
            nodes=tuple(self.nodes),
            pods=tuple(self.pods.values()),
            workloads=tuple(self.workloads.values()),
            in_flight={
                pod.ref: InFlight(at, 0)
                for pod in self.pods.values()
                if pod.draining_since is not None
            },
            **self.fields,
        )

    def cycle(self, seconds: float = 5) -> ServicePlan:
        """Plan, carry it out, and let time pass."""
        snapshot = self.snapshot()
        decision = self.decide(self.config, snapshot, self.memory)
        self.memory = self.memory.after(decision)
        self.plans = decision.service_plans
        self.service, *self.others = (
            replace(service, status=service_status(snapshot, self.plans[service.ref], None, None))
            for service in (self.service, *self.others)
        )
        for service_plan in self.plans.values():
            self._apply(service_plan)
        self.now += timedelta(seconds=seconds)
        self._run_controllers()
        return self.plans[self.service.ref]

    def run(self, seconds: float) -> ServicePlan:
        """Run cycles for so long; return the last plan."""
        end = self.now + timedelta(seconds=seconds)
        service_plan = self.cycle()
        while self.now < end:
            service_plan = self.cycle()
        return service_plan

    def counts(self, service: Ref = CHAT) -> Mapping[str, int]:
        """Return the pods of a service that take requests, by pool."""
        counts = dict.fromkeys([pool.name for pool in self.pools], 0)
        for pod in self.pods.values():
            serves = pod.takes_requests and pod.draining_since is None
            if pod.service == service and serves:
                counts[pool_of(pod)] = counts.get(pool_of(pod), 0) + 1
        return counts

    def _apply(self, service_plan: ServicePlan) -> None:
        service = service_plan.service.ref
        for variant in service_plan.variants:
            hardware = variant.choice.offer.hardware
            self.devices[variant.choice.variant] = hardware.resource, hardware.devices
            if variant.waits:
                continue
            workload = variant.workload or self._new_workload(service, variant)
            record = variant.template.record
            self.workloads[workload.ref] = replace(
                self.workloads.get(workload.ref, workload), record=record, replicas=variant.replicas
            )
        for ref, replicas in service_plan.previous_deployments.items():
            self.workloads[ref] = replace(self.workloads[ref], replicas=replicas)
        for ref in service_plan.removable_deployments:
            for pod in self._pods_of(self.workloads.pop(ref)):
                self._delete(pod)
        drain = service_plan.drain
        for ref, pod in self.pods.items():
            if pod.service != service:
                continue
            leaving = ref in drain.draining
            # A closed gate makes a pod unready; it is ready again once the gate opens.
            reopens = pod.containers_ready and pod.ready_since is None and not leaving
            ready = NOW + self.now if reopens and not pod.terminating else pod.ready_since
            self.pods[ref] = replace(
                pod,
                serving=not leaving,
                ready_since=None if leaving else ready,
                draining_since=(pod.draining_since or NOW + self.now) if leaving else None,
                deletion_cost=-1000 if ref in drain.drained else 0,
            )

    def _new_workload(self, service: Ref, variant: VariantPlan) -> Workload:
        created, name = NOW + self.now, variant.choice.variant
        if not variant.older:
            return a_workload(0, service.name, name, created=created)
        record = variant.template.record
        return a_template_workload(record, 0, service.name, variant=name, created=created)

    def _run_controllers(self) -> None:
        at = NOW + self.now
        for ref in [ref for ref, end in self.stopping.items() if end <= at]:
            del self.pods[ref], self.stopping[ref]
        for workload in list(self.workloads.values()):
            own = [pod for pod in self._pods_of(workload) if not pod.terminating]
            refused = None
            for _ in range(workload.replicas - len(own)):
                if self.quota is not None and len(self.pods) >= self.quota:
                    refused = "exceeded quota"
                    break
                self.created += 1
                ref = Ref("team-a", f"{workload.service.name}-{self.created}")
                self.pods[ref] = Pod(
                    ref=ref,
                    uid=f"uid-{self.created}",
                    service=workload.service,
                    variant=workload.variant,
                    template=workload.template_digest or "one",
                    template_digest=workload.template_digest,
                    created=at,
                    devices=dict([self.devices.get(workload.variant, ("nvidia.com/gpu", 1))]),
                    unschedulable="0/1 nodes are available",
                )
            self.workloads[workload.ref] = replace(workload, replica_failure=refused)
            order = sorted(
                own, key=lambda pod: (pod.node is not None, pod.deletion_cost, not pod.ready_since)
            )
            for pod in order[: max(0, len(own) - workload.replicas)]:
                self._delete(pod)
        for ref, pod in self.pods.items():
            if pod.node is None and (node := self._free_node(pod)) is not None:
                self.pods[ref] = replace(pod, node=node, bound=at, unschedulable=None)
            elif self._gets_ready(pod, at):
                self.pods[ref] = replace(pod, ready_since=at, containers_ready=True, serving=True)

    def _gets_ready(self, pod: Pod, at: datetime) -> bool:
        if (
            pod.bound is None
            or pod.ready_since is not None
            or pod.terminating
            or pod.draining_since
        ):
            return False
        record = next(
            (each.record for each in self.workloads.values() if pod in self._pods_of(each)), None
        )
        return at - pod.bound >= self.start and not self.is_broken(record)

    def _pods_of(self, workload: Workload) -> list[Pod]:
        owner = workload.service, workload.variant, workload.template_digest
        return [
            pod
            for pod in self.pods.values()
            if (pod.service, pod.variant, pod.template_digest) == owner
        ]

    def _delete(self, pod: Pod) -> None:
        if pod.takes_requests and pod.draining_since is None:
            self.lost.append(pod)
        if self.stop and pod.node is not None:
            self.stopping.setdefault(pod.ref, NOW + self.now + self.stop)
            self.pods[pod.ref] = replace(pod, terminating=True, ready_since=None)
        else:
            del self.pods[pod.ref]

    def _free_node(self, pod: Pod) -> str | None:
        [(resource, devices)] = pod.devices.items()
        for node in self.nodes:
            pods = [other for other in self.pods.values() if other.node == node.name]
            used = sum(other.devices.get(resource, 0) for other in pods)
            is_own = pod.unmanaged or node.labels["pool"] == pool_of(pod)
            has_room = node.allocatable.get(resource, 0) - used >= devices
            if is_own and node.schedulable and has_room:
                return node.name
        return None


def pool_of(pod: Pod) -> str:
    return pod.variant.split("-")[0]
