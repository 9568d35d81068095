"""The proposals of all services, in the order in which they choose hardware."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.precision import CHECKPOINT
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.hardware.pools import HardwareOffer, PoolView, device_capacities
from tessera.domain.incremental import FOREVER, Until, reused, reused_per_object, reused_until
from tessera.domain.model.precision_files import with_one_precision
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Ref, Snapshot
from tessera.domain.placement.candidates import HardwareChoice, free_replicas
from tessera.domain.placement.free_hardware import fragments_of
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.rollout import devices as nodes_devices
from tessera.domain.scaling.load import ServiceReadings, service_readings, usable_readings
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.current_objects import CurrentObjects, objects_by_service
from tessera.domain.service.proposal import (
    Proposal,
    ProposalInputs,
    allocate,
    devices_of_waiting,
    min_replicas_of,
    propose,
)
from tessera.domain.service.variant_counts import Devices, Room
from tessera.domain.steps import Step

# How long free devices are kept for a pod of a floor. One that waits for longer may lack something
# else, which nothing says for sure, and nobody would get the devices for as long as it does.
AWAITED_TIME = timedelta(minutes=10)


def propose_all(
    snapshot: Snapshot,
    scaling_history: Mapping[Ref, ScalingHistory],
    views: Sequence[PoolView],
    allocated: Devices,
    forecast: GrantForecast,
    *,
    gateways: bool,
) -> tuple[Mapping[Ref, Proposal], Mapping[Ref, ServiceReadings]]:
    """Propose for all services, in the order in which they choose hardware, by what was read.

    `allocated` is increased by the devices of replicas that exist or would be granted. What
    services hold is counted from the start, and what pods of their floors wait for, so that none
    takes it before their turn; but for versions that are tried, which have what all others leave.
    """
    objects_by_ref = objects_by_service(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.model_jobs
    )
    usable = usable_readings(snapshot.readings, snapshot.at)
    readings = {
        ref: readings_of(snapshot.readings, usable, ref, objects.pods)
        for ref, objects in objects_by_ref.items()
    }
    proposals, gpus = dict[Ref, Proposal](), defaultdict[str, Decimal](Decimal)
    order = _in_choice_order(snapshot.services, objects_by_ref)
    pools_by_name = _pools_of_usable_nodes(views, snapshot.nodes)
    devices_by_ref = {
        ref: held_devices(ref, objects.pods, pools_by_name)
        for ref, objects in objects_by_ref.items()
    }
    awaited_by_ref = {
        service.ref: awaited_devices(
            service.ref, service, objects_by_ref[service.ref], pools_by_name, at=snapshot.at
        )
        for service in _with_waiting_pods(order.running, objects_by_ref)
    }
    for ref, devices in (*devices_by_ref.items(), *awaited_by_ref.items()):
        if ref == ref.base:
            allocated.update(devices)
    allocated.update(fragments_of(views, snapshot.pods))
    free = {view.pool.name: free_in_pool(view, allocated) for view in views}
    turns = chain(order.running, _in_turns(order.new, gpus, forecast), order.tried)
    for each in turns:
        service, ref, objects = each, each.ref, objects_by_ref[each.ref]
        if ref == ref.base:
            allocated.subtract(devices_by_ref[ref])
            if ref in awaited_by_ref:
                allocated.subtract(awaited_by_ref[ref])
        else:
            service = in_untried(ref, each, proposals[ref.base].placement.untried)
        proposal = propose(
            ref,
            ProposalInputs(
                service,
                objects,
                views,
                readings[ref],
                snapshot.demand_of(ref),
                gateways,
                free_for(service, objects, views, free, allocated),
            ),
            at=snapshot.at,
            memory=scaling_history.get(ref),
            room=Room(used=allocated, held=devices_by_ref[ref], pools=pools_by_name),
        )
        proposals[ref] = proposal
        tenant, _ = forecast.tenant(ref.namespace)
        gpus[tenant] += allocate(allocated, proposal, forecast, devices_by_ref[ref])
    return proposals, readings


@reused_per_object
def _in_untried(
    _ref: Ref, service: ObservedService, choice: HardwareChoice | None
) -> ObservedService:
    """Return the version in force as it is tried in another precision, if that would be chosen.

    Its replica runs where it is then the first of those that serve.
    """
    spec = service.spec
    if spec is None or spec.fixed_replicas != 0 or choice is None:
        return service
    spec = with_one_precision(spec, choice.fit.precision or CHECKPOINT)
    placement = spec.placement.model_copy(update={"pools": (choice.offer.pool,)})
    update = {"replicas": 1, "placement": placement}
    return replace(service, spec=spec.model_copy(update=update))


in_untried = Step(_in_untried, lambda _error, _ref, service, _choice: service)


@reused
def _pools_of_usable_nodes(views: Sequence[PoolView], nodes: Sequence[Node]) -> Mapping[str, str]:
    """Return the pool of each node whose devices are offered."""
    usable = {node.name for node in nodes if node.schedulable}
    return {node: view.pool.name for view in views for node in view.node_names & usable}


@reused_per_object
def _count_held(_ref: Ref, pods: Sequence[Pod], pools: Mapping[str, str]) -> Devices:
    """Return the devices that the pods of a service hold on usable nodes of pools."""
    return _devices_on_nodes(pods, pools)


def _devices_on_nodes(pods: Iterable[Pod], pools: Mapping[str, str]) -> Devices:
    devices = Devices()
    for pod in pods:
        pool = pools.get(pod.node) if pod.node is not None and pod.holds_devices else None
        if pool is not None:
            for resource, count in pod.devices.items():
                devices[pool, resource] += count
    return devices


held_devices = Step(_count_held, lambda *_: Devices())


@reused
def _with_waiting_pods(
    services: Sequence[ObservedService], objects_by_ref: Mapping[Ref, CurrentObjects]
) -> Sequence[ObservedService]:
    """Return the services of which a pod has no node."""
    return [
        service
        for service in services
        if any(pod.node is None for pod in objects_by_ref[service.ref].pods)
    ]


@reused_until
def _count_awaited(
    _ref: Ref,
    service: ObservedService,
    objects: CurrentObjects,
    pools: Mapping[str, str],
    *,
    at: datetime,
) -> Until[Devices]:
    """Return the devices for which pods wait that the floor of a service needs.

    Those of its pods that leave are for the waiting ones, so they do not count twice.
    """
    devices, until = Devices(), FOREVER
    bound = sum(pod.node is not None and not pod.terminating for pod in objects.pods)
    missing = min_replicas_of(service.spec) - bound if service.spec is not None else 0
    if missing > 0:
        waiting = [pod for pod in objects.pods if pod.node is None and not pod.terminating]
        for pod in sorted(waiting, key=lambda each: (each.created, each.ref))[:missing]:
            if at < (end := pod.created + AWAITED_TIME):
                devices.update(devices_of_waiting(pod, service.status))
                until = min(until, end)
    if devices:
        leaving = [pod for pod in objects.pods if pod.terminating]
        devices -= _devices_on_nodes(leaving, pools)
    return Until(devices, until)


awaited_devices = Step(_count_awaited, lambda *_, **__: Devices())


def is_awaited_by_others(snapshot: Snapshot, ref: Ref, offer: HardwareOffer) -> bool:
    """Return whether pods of other services' floors wait for all that is free of an offer.

    Messages ask for it, of a service whose own pods find no node.
    """
    pods_by_ref = defaultdict[Ref, list[Pod]](list)
    for pod in snapshot.pods:
        pods_by_ref[pod.service].append(pod)
    awaited = Devices()
    for service in snapshot.services:
        pods = pods_by_ref.get(service.ref, [])
        is_other = service.ref == service.ref.base != ref.base
        if is_other and any(pod.node is None for pod in pods):
            objects = CurrentObjects(pods=tuple(pods))
            awaited.update(awaited_devices(service.ref, service, objects, {}, at=snapshot.at))
    free = sum(nodes_devices.free_replicas(snapshot.nodes, snapshot.pods, offer).values())
    hardware = offer.hardware
    return awaited[offer.pool, hardware.resource] >= max(1, free) * hardware.devices


class _FreeDevices(NamedTuple):
    """Devices of one kind of a pool that are free, and how many of them a replica has at most."""

    free: int
    most_of_replica: int
    on_one_node: tuple[int, ...]
    """The free replicas of each larger number of them."""

    def level(self, replicas: int) -> tuple[int, ...]:
        """Return about how many are free for a service with at most so many replicas.

        The power of two is enough to learn of room, and changes rarely where many services run.
        What is free beyond twice of all that it could have changes nothing for it.
        """
        level = min(self.free, 2 * replicas * self.most_of_replica).bit_length()
        return level, *(min(free, 2 * replicas).bit_length() for free in self.on_one_node)


def _count_free(view: PoolView, used: Mapping[tuple[str, str], int]) -> tuple[_FreeDevices, ...]:
    """Return how many devices of each kind of a pool are free."""
    kinds = defaultdict[str, list[HardwareOffer]](list)
    for offer in view.offers:
        kinds[offer.hardware.resource].append(offer)
    return tuple(
        _FreeDevices(
            max(0, capacity - used.get((view.pool.name, resource), 0)),
            max(offer.hardware.devices for offer in kinds[resource]),
            tuple(
                max(0, free_replicas(offer, used))
                for offer in kinds[resource]
                if offer.hardware.devices > 1
            ),
        )
        for resource, capacity in device_capacities(view).items()
    )


free_in_pool = Step(_count_free, lambda *_: ())


def _read_free(
    service: ObservedService,
    objects: CurrentObjects,
    views: Sequence[PoolView],
    free: Mapping[str, tuple[_FreeDevices, ...]],
    used: Mapping[tuple[str, str], int],
) -> object:
    """Return the free devices of its pools to a service that may use several kinds, or may change
    its precision, and to a new one how many of its replicas each offer has room for."""
    spec = service.spec
    if spec is None:
        return None
    if objects.is_new:
        most = _most_replicas(spec)
        return tuple(
            [
                min(free_replicas(offer, used), most + offer.startable_replicas)
                for view in views
                for offer in view.offers
            ]
        )
    changes_precision, pools = bool(spec.precision.variants), spec.placement.pools or tuple(free)
    rooms = [free[pool] for pool in pools if pool in free]
    if len(rooms) == 1 and len(rooms[0]) == 1 and not changes_precision:
        return None
    most = _most_replicas(spec)
    return tuple([tuple([kind.level(most) for kind in kinds]) for kinds in rooms])


def _most_replicas(spec: InferenceServiceSpec) -> int:
    """Return how many replicas a service may have at any time."""
    scaling = spec.scaling
    bounds = [each.max_replicas or 0 for each in scaling.schedules]
    return max(spec.fixed_replicas or 0, scaling.max_replicas, *bounds)


free_for = Step(_read_free, lambda *_: None)


readings_of = Step(service_readings, lambda *_: ServiceReadings())


class _ChoiceOrder(NamedTuple):
    running: Sequence[ObservedService]
    new: Sequence[ObservedService]
    """The classes of a tenant's services decide among them."""
    tried: Sequence[ObservedService]
    """Versions that are tried, which serve no user."""


@reused
def _in_choice_order(
    services: Sequence[ObservedService], objects_by_ref: Mapping[Ref, CurrentObjects]
) -> _ChoiceOrder:
    """Sort the services that run, and new ones, which choose hardware after them."""
    tried = [service for service in services if service.ref != service.ref.base]
    serving = [service for service in services if service.ref == service.ref.base]
    running = [service for service in serving if objects_by_ref[service.ref].workloads]
    new = [service for service in serving if not objects_by_ref[service.ref].workloads]
    return _ChoiceOrder(
        running=sorted(running, key=lambda service: service.ref),
        new=sorted(new, key=lambda service: (_class_rank(service), service.ref)),
        tried=sorted(tried, key=lambda service: service.ref),
    )


def _class_rank(service: ObservedService) -> int:
    return CLASS_RANKS[service.spec.service_class] if service.spec is not None else 0


def _in_turns(
    services: Sequence[ObservedService], gpus: Mapping[str, Decimal], forecast: GrantForecast
) -> Iterator[ObservedService]:
    """Yield new services: next is always the tenant with the fewest GPUs for its weight.

    `gpus` of a tenant grow between the services, as these choose.
    """
    queues: dict[str, deque[ObservedService]] = defaultdict(deque)
    weights: dict[str, float] = {}
    for service in services:
        tenant, weights[tenant] = forecast.tenant(service.ref.namespace)
        queues[tenant].append(service)
    turns = [(float(gpus[tenant]) / weights[tenant], tenant) for tenant in queues]
    heapify(turns)
    while turns:
        _, tenant = turns[0]
        yield queues[tenant].popleft()
        if queues[tenant]:
            heapreplace(turns, (float(gpus[tenant]) / weights[tenant], tenant))
        else:
            heappop(turns)
