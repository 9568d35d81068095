"""The proposals of all services, in the order in which they choose hardware."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import NamedTuple

from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import reused
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.scaling.load import usable_readings
from tessera.domain.scaling.policies.by_name import POLICIES
from tessera.domain.scaling.state import ScalingHistory
from tessera.domain.service.current_objects import CurrentObjects, objects_by_service
from tessera.domain.service.proposal import AllocatedDevices, Proposal, allocate, propose


def propose_all(
    snapshot: Snapshot,
    scaling_history: Mapping[Ref, ScalingHistory],
    views: Sequence[PoolView],
    allocated: AllocatedDevices,
    forecast: GrantForecast,
) -> Mapping[Ref, Proposal]:
    """Propose for all services, in the order in which they choose hardware.

    `allocated` is increased by the devices of replicas that exist or would be granted.
    """
    objects_by_ref = objects_by_service(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.model_jobs
    )
    readings_by_pod = usable_readings(snapshot.readings, snapshot.at)
    proposals, gpus = {}, defaultdict[str, Decimal](Decimal)
    order = _in_choice_order(snapshot.services, objects_by_ref)
    for service in chain(order.running, _in_turns(order.new, gpus, forecast)):
        ref, objects = service.ref, objects_by_ref[service.ref]
        proposal = propose(
            ref,
            service,
            objects,
            views,
            tuple([readings_by_pod.get(pod.ref) for pod in objects.pods]),
            _policy_inputs(service, snapshot, are_usable=bool(readings_by_pod)),
            at=snapshot.at,
            memory=scaling_history.get(ref),
            snapshot=snapshot,
            allocated=allocated,
        )
        proposals[ref] = proposal
        gpus[forecast.tenant(ref.namespace)[0]] += allocate(allocated, proposal, forecast)
    return proposals


def _policy_inputs(
    service: ObservedService, snapshot: Snapshot, *, are_usable: bool
) -> tuple[object, ...]:
    """Return what the policy of a service reads beside the load of its replicas."""
    ref, spec = service.ref, service.spec
    if spec is None or spec.fixed_replicas is not None:
        return ()
    policy = POLICIES[spec.scaling.policy]
    return (are_usable, *policy.inputs(snapshot.readings, snapshot.demand_of(ref), ref))


class _ChoiceOrder(NamedTuple):
    running: Sequence[ObservedService]
    new: Sequence[ObservedService]
    """The classes of a tenant's services decide among them."""


@reused
def _in_choice_order(
    services: Sequence[ObservedService], objects_by_ref: Mapping[Ref, CurrentObjects]
) -> _ChoiceOrder:
    """Sort the services that run, and new ones, which choose hardware after them."""
    running = [service for service in services if objects_by_ref[service.ref].workloads]
    new = [service for service in services if not objects_by_ref[service.ref].workloads]
    return _ChoiceOrder(
        running=sorted(running, key=lambda service: service.ref),
        new=sorted(new, key=lambda service: (_class_rank(service), service.ref)),
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
