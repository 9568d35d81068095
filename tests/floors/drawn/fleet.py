"""Draws fleets by a seed: pools of GPUs, slices and both, services with and without a gate."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from typing_extensions import override

from tessera.api.reasons import Accepted
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.builders import A100, H100
from tests.floors.fleet import GPU, NAMESPACE, SLICE, FloorFleet, body_conditions
from tests.floors.kube import FloorKube, PodTimes
from tests.repartition.crashes import CrashInjector
from tests.repartition.simulation import KillableOperator

TWO_SLICES = "nvidia.com/mig-2g.20gb"
# Tier, price of a GPU, product, and the devices of a node by resource: from and to.
_POOLS: Mapping[str, tuple[str, str, str, Mapping[str, tuple[int, int]]]] = {
    "a100": ("Reserved", "2.00", A100, {GPU: (1, 4)}),
    "a100-mig": ("Reserved", "1.68", A100, {SLICE: (2, 5)}),
    "a100-mixed": ("Reserved", "1.90", A100, {SLICE: (1, 2), TWO_SLICES: (1, 2)}),
    "a100-od": ("OnDemand", "3.36", A100, {GPU: (1, 3)}),
    "a100-od-mig": ("OnDemand", "3.36", A100, {SLICE: (2, 4)}),
    "h100-od": ("OnDemand", "2.99", H100, {GPU: (1, 2)}),
}


class JudgedOperator(KillableOperator):
    """An operator whose defects are found instead of raised."""

    def __init__(self, kube: FloorKube, find: Callable[[str], None]) -> None:
        injector = CrashInjector(state=lambda: ())
        super().__init__(kube, injector, node_agents=False, gateways=True)
        self._find = find

    @override
    async def reconcile(self) -> int:
        await self._observe()
        before = self._applier.writes
        outcome = await self._reconciler.reconcile()
        await self._applier.queue.drain()
        defects = [*outcome.defects, *self._applier.queue.defects.take()]
        for ref, service_plan in outcome.plan.service_plans.items():
            if service_plan.withheld:
                self._find(f"{ref.name}: a plan took healthy replicas within a floor")
            if service_plan.accepted.reason == Accepted.PLANNER_ERROR:
                self._find(f"{ref.name}: PlannerError: {service_plan.accepted.message}")
        for defect in defects:
            self._find(f"a write raised {type(defect).__name__}: {defect}")
        await self._hear_answers()
        return self._applier.writes - before


@dataclass(slots=True, kw_only=True)
class DrawnFleet(FloorFleet):
    """A fleet that remembers what a sequence did to it, so that all of it can end."""

    defects: list[str] = field(default_factory=list)
    """What the operator did that it never should, each once."""
    closed_at: dict[str, int] = field(default_factory=dict)
    """Pods of each service when the limit of the tenant's money was closed."""
    edits: int = 0
    pause: int = 0
    """Ticks in which time goes faster."""

    @override
    def start_operator(self) -> KillableOperator:
        return JudgedOperator(self.kube, self._find)

    def _find(self, text: str) -> None:
        if text not in self.defects:
            self.defects.append(text)

    def pool_conditions(self) -> Mapping[str, Mapping[str, str]]:
        """Return the status of each condition, by pool."""
        return {
            key.name: {each["type"]: each["status"] for each in body_conditions(body)}
            for key, body in self.kube.objects.items()
            if key.plural == ACCELERATOR_POOLS.plural
        }

    def next_edit(self) -> int:
        self.edits += 1
        return self.edits

    def change(self, service: str, **fields: Any) -> None:
        """Write fields of a spec, if the service is still there."""
        if service in self.services():
            self.edit(service, **fields)

    def change_engine(self, service: str, **fields: Any) -> None:
        """Write fields of `spec.engine`; one of None goes."""
        if service in self.services():
            engine = {**self.spec(service).get("engine", {}), **fields}
            engine = {name: value for name, value in engine.items() if value is not None}
            self.edit(service, engine=engine or None)

    def free(self, allowed: tuple[str, ...] = ()) -> Counter[str]:
        """Return the free devices that pods may have, by resource, in pools of these names."""
        labels = {label for name, label in self.pool_labels() if not allowed or name in allowed}
        free = Counter[str]()
        for name in self.kube.nodes():
            node = self.kube.node(name)
            if node.schedulable and not node.barring_taints and node.labels["pool"] in labels:
                free.update(self.kube.free_devices(name))
        return +free

    def changed_since(self, moment: datetime) -> Iterator[ObjectKey]:
        """Yield the objects that changed since a moment, each as often as it did."""
        version = self.kube.version_at(moment)
        for at, key, _ in reversed(self.kube.history):
            if at <= version:
                return
            yield key

    def pool_labels(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each pool with the label of its nodes."""
        for key, body in sorted(self.kube.objects.items()):
            if key.plural == "acceleratorpools":
                yield key.name, body["spec"]["nodeSelector"]["pool"]

    def replicas(self) -> Counter[str]:
        """Return the pods of each service that do not end."""
        return Counter(
            pod.service.name
            for _, pod in self.kube.pods()
            if pod.service.name and not pod.terminating
        )


def drawn_fleet(seed: int) -> DrawnFleet:
    """Return the fleet of a seed, whose floors have room and whose other devices are scarce."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    times = PodTimes(start=rng.choice(((10, 30), (10, 60), (60, 100))))
    fleet = DrawnFleet.begin(seed, times)
    fleet.judge.counts_written_numbers, fleet.judge.forgives_lasting = False, True
    names = rng.sample(sorted(_POOLS), rng.choice((1, 1, 2, 2, 3)))
    free = sum(_add_pool(fleet, name, rng) for name in names)
    for service in ("chat", "sage", "mail")[: rng.choice((1, 1, 2, 2, 3))]:
        floor = rng.randint(1, max(1, min(4, free)))
        if not free:
            break
        free -= floor
        serve = fleet.serve_gated if rng.random() < 0.4 else fleet.serve
        placement = {"pools": [rng.choice(names)]} if rng.random() < 0.15 else None
        scaling = {"maxReplicas": rng.choice((floor, floor + 4))}
        serve(service, floor, scaling=scaling, **({"placement": placement} if placement else {}))
    spare = rng.choice((0, 0, 0, 1, 1, 2))
    for name in rng.sample(names, len(names)):
        for _ in range(_devices(fleet, name)):
            if free > spare:
                fleet.take_devices(name, 1, fleet.resource(name), priority=9)
                free -= 1
    if rng.random() < 0.2:
        fleet.set_budget([{"window": "Month", "amount": "100000"}])
    return fleet


def _add_pool(fleet: DrawnFleet, name: str, rng: random.Random) -> int:
    """Add a pool with one or two nodes, and return the number of its devices."""
    tier, price, product, ranges = _POOLS[name]
    fleet.add_pool(name, tier, price)
    devices = {resource: rng.randint(*ends) for resource, ends in ranges.items()}
    nodes = rng.choice((1, 2))
    for index in range(nodes):
        share = {each: count // nodes + (index < count % nodes) for each, count in devices.items()}
        if any(share.values()):
            fleet.add_node(name, product=product, devices=share)
    return sum(devices.values())


def _devices(fleet: DrawnFleet, label: str) -> int:
    nodes = (fleet.kube.node(name) for name in fleet.kube.nodes())
    return sum(sum(each.allocatable.values()) for each in nodes if each.labels["pool"] == label)


def owned_pods(fleet: DrawnFleet) -> list[str]:
    """Return the names of the engines' pods that run."""
    return [
        key.name
        for key, pod in fleet.kube.pods()
        if key.plural == PODS.plural
        and key.namespace == NAMESPACE
        and pod.service.name
        and pod.node is not None
        and not pod.terminating
    ]
