"""A fleet in a rollout, without a cluster: what `plan()` takes while some services change.

Controllers run for a share of the services before each cycle, and only these change: their
Deployments get their numbers, and their replicas start, drain and end. The last pool has room for
one more replica of each service, the others have none.
"""

import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.domain.incremental import Incremental
from tessera.domain.names import deployment_name
from tessera.domain.observed.snapshot import (
    InFlight,
    ObservedService,
    Pod,
    PodReading,
    Readings,
    Snapshot,
    Workload,
)
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.drain import DRAINED_DELETION_COST
from tessera.domain.status.service import service_status
from tessera.resources.deployment import deployment_identity
from tests.builders import DEFAULT_CONFIG, NOW, SMALL, a_node, a_pool

PERIOD = timedelta(seconds=5)
NAMESPACES = 40
_SLICE, _DEVICE = "1g.10gb", "nvidia.com/mig-1g.10gb"
_READY: dict[str, Any] = {"containers_ready": True, "serving": True}
_READING = PodReading(waiting=0.0, running=1.0, activity=0.5)


@dataclass(slots=True)
class _Served:
    """A service, and its objects in the cluster."""

    service: ObservedService
    index: int
    workloads: dict[str, Workload] = field(default_factory=dict)
    """Its Deployments, by name."""
    pods: dict[str, list[Pod]] = field(default_factory=dict)
    """The replicas of each Deployment."""


class MovingFleet:
    """Services with a replica in each pool, and what the last plan decided for them."""

    def __init__(self, services: int, pools: Sequence[str]) -> None:
        self._rooms = dict.fromkeys(pools, 1) | {pools[-1]: 2}
        """How many replicas a node has room for, by pool; each service has its own nodes."""
        self._served, self._serial = dict[Ref, _Served](), itertools.count()
        for index in range(services):
            ref = Ref(f"team-{index % NAMESPACES}", f"chat-{index:04d}")
            service = ObservedService(
                ref=ref, uid=f"uid-{index}", generation=1, spec=_spec(len(pools), 0)
            )
            self._served[ref] = served = _Served(service, index)
            for pool in pools:
                name = deployment_name(ref.name, f"{pool}-1g-10gb")
                pod = self._pod(served, f"{pool}-1g-10gb", "", f"{pool}-{index}", NOW)
                served.pods[name] = [replace(pod, **_READY, ready_since=NOW)]
        self._turns = itertools.cycle(self._served.values())
        self._incremental, self._memory = Incremental(), PlanMemory()
        self.decision = Plan()
        self._snapshot = Snapshot(
            at=NOW,
            pools=tuple(a_pool(name, f"{2 + rank}.00") for rank, name in enumerate(pools)),
            nodes=tuple(
                a_node(name, {_SLICE: room}, name=f"{name}-{index}")
                for name, room in self._rooms.items()
                for index in range(services)
            ),
        )

    def settle(self) -> None:
        """Start all replicas."""
        for _ in range(4):
            self.run_cycle()
            self.follow(len(self._served))
        self.run_cycle()
        gc.collect()
        gc.freeze()  # as the operator does with what outlives a collection

    def edit(self, seed: int) -> None:
        """Give all services another pod template."""
        for served in self._served.values():
            service = served.service
            spec = _spec(len(self._rooms), seed)
            served.service = replace(service, spec=spec, generation=service.generation + 1)

    def run_cycle(self) -> float:
        """Plan the fleet as it is now; return the milliseconds of CPU that it took."""
        at = self._snapshot.at + PERIOD
        pods = tuple(
            pod for each in self._served.values() for own in each.pods.values() for pod in own
        )
        self._snapshot = replace(
            self._snapshot,
            at=at,
            services=tuple(each.service for each in self._served.values()),
            workloads=tuple(
                workload for each in self._served.values() for workload in each.workloads.values()
            ),
            pods=pods,
            in_flight={pod.ref: InFlight(at, 0) for pod in pods if pod.draining_since is not None},
            readings=Readings(at=at, pods=dict.fromkeys((pod.ref for pod in pods), _READING)),
        )
        begun = time.process_time()
        self.decision = self._incremental.run(plan, DEFAULT_CONFIG, self._snapshot, self._memory)
        self._memory = self._memory.after(self.decision)
        return (time.process_time() - begun) * 1e3

    @property
    def moving(self) -> int:
        """Return how many services have replicas of two templates, or are short of some."""
        return sum(each.is_moving for each in self.decision.service_plans.values())

    def follow(self, count: int) -> None:
        """Write all statuses, and let the cluster carry out the plans of the next services."""
        moved = list(itertools.islice(self._turns, count))
        for served in moved:
            service_plan = self.decision.service_plans[served.service.ref]
            self._write(served, service_plan)
            for name, workload in served.workloads.items():
                served.pods[name] = list(self._replicas(served, service_plan, workload))
        for served in self._served.values():
            service_plan = self.decision.service_plans[served.service.ref]
            status = service_status(self._snapshot, service_plan, None, None)
            if status != served.service.status:
                served.service = replace(served.service, status=status)

    def _write(self, served: _Served, service_plan: ServicePlan) -> None:
        namespace = served.service.ref.namespace
        for ref in service_plan.removable_deployments:
            served.workloads.pop(ref.name), served.pods.pop(ref.name)
        counts = {ref.name: count for ref, count in service_plan.previous_deployments.items()}
        for variant in service_plan.variants:
            name, digest = deployment_identity(service_plan, variant)
            if variant.waits:
                continue
            counts[name] = variant.replicas
            if name not in served.workloads:
                served.workloads[name] = Workload(
                    ref=Ref(namespace, name),
                    service=served.service.ref,
                    variant=variant.choice.variant,
                    template_digest=digest,
                    record=variant.template.record,
                    created=self._snapshot.at,
                    replicas=0,
                    rollout_complete=True,
                )
                served.pods.setdefault(name, [])
        # A Deployment that is deleted has no count.
        for name in counts.keys() & served.workloads.keys():
            count = counts[name]
            if served.workloads[name].replicas != count:
                served.workloads[name] = replace(served.workloads[name], replicas=count)

    def _replicas(
        self, served: _Served, service_plan: ServicePlan, workload: Workload
    ) -> Iterator[Pod]:
        """Yield the replicas of a Deployment after a turn of the scheduler and the engines."""
        pods = sorted(served.pods[workload.ref.name], key=lambda pod: pod.deletion_cost)
        pods = pods[max(0, len(pods) - workload.replicas) :]
        yield from (self._next_state(pod, service_plan) for pod in pods)
        yield from (self._start(served, workload) for _ in range(workload.replicas - len(pods)))

    def _next_state(self, pod: Pod, service_plan: ServicePlan) -> Pod:
        at, drain = self._snapshot.at, service_plan.drain
        if pod.ref in drain.draining:
            cost = DRAINED_DELETION_COST if pod.ref in drain.drained else 0
            since = pod.draining_since or at
            return replace(
                pod, serving=False, draining_since=since, ready_since=None, deletion_cost=cost
            )
        if pod.node is not None and pod.ready_since is None:
            return replace(pod, **_READY, ready_since=at)
        return pod

    def _start(self, served: _Served, workload: Workload) -> Pod:
        pool = workload.variant.split("-")[0]
        node = f"{pool}-{served.index}"
        others = [pod for own in served.pods.values() for pod in own if pod.node == node]
        return self._pod(
            served,
            workload.variant,
            workload.template_digest,
            node if len(others) < self._rooms[pool] else None,
            self._snapshot.at,
        )

    def _pod(
        self, served: _Served, variant: str, digest: str, node: str | None, at: datetime
    ) -> Pod:
        ref = served.service.ref
        name = f"{ref.name}-{next(self._serial)}"
        return Pod(
            ref=Ref(ref.namespace, name),
            uid=f"uid-{name}",
            service=ref,
            variant=variant,
            template=digest or "first",
            template_digest=digest,
            created=at,
            devices={_DEVICE: 1},
            node=node,
            bound=at if node is not None else None,
            address="127.0.0.1",
            unschedulable=None if node is not None else "0/9 nodes are available",
            node_selector=(("pool", variant.split("-", maxsplit=1)[0]),),
        )


def _spec(replicas: int, seed: int) -> InferenceServiceSpec:
    return InferenceServiceSpec.model_validate(
        {
            "model": {"uri": SMALL},
            "replicas": replicas,
            "engine": {"extraArgs": [f"--seed={seed}"]},
        }
    )
