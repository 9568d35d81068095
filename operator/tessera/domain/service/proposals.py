"""The proposals of all services, in the order in which they choose hardware."""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import NamedTuple

from tessera.api.reasons import Accepted
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.cache import LastCallCache
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import (
    Node,
    ObservedService,
    Pod,
    PodReading,
    Ref,
    Snapshot,
    Workload,
)
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.scaling import autoscale
from tessera.domain.scaling.autoscale import ScalingHistory
from tessera.domain.scaling.load import next_reading_due, usable_readings
from tessera.domain.service.model_files import with_known_shape
from tessera.domain.service.proposal import (
    AllocatedDevices,
    CurrentObjects,
    Proposal,
    UnsortedObjects,
    allocate,
    history_from_status,
    objects_by_service,
    propose,
)
from tessera.domain.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedProposal:
    service: ObservedService
    proposal: Proposal
    views: Sequence[PoolView]
    readings: tuple[PodReading | None, ...]
    valid_until: datetime | None
    """From then on the time alone may change it."""


class ProposalCache:
    """Proposals of earlier cycles by the identity of their inputs."""

    def __init__(self) -> None:
        self.with_known_shapes = LastCallCache(self._with_known_shapes)
        self.current_objects = LastCallCache(self._current_objects)
        self.in_choice_order = LastCallCache(_in_choice_order)
        self.entries: dict[Ref, _CachedProposal] = {}
        self._objects_by_ref: Mapping[Ref, tuple[UnsortedObjects, CurrentObjects]] = {}
        self._services: Mapping[Ref, tuple[ObservedService, ObservedService]] = {}

    def _with_known_shapes(
        self, services: tuple[ObservedService, ...]
    ) -> tuple[ObservedService, ...]:
        """Add known shapes; an unchanged service stays the same object."""
        previous = self._services
        self._services = {
            service.ref: previous[service.ref]
            if service.ref in previous and previous[service.ref][0] is service
            else (service, with_known_shape(service))
            for service in services
        }
        completed = tuple([self._services[service.ref][1] for service in services])
        same = all(new is service for new, service in zip(completed, services, strict=True))
        return services if same else completed

    def _current_objects(
        self,
        services: Sequence[ObservedService],
        pods: Sequence[Pod],
        workloads: Sequence[Workload],
        nodes: Sequence[Node],
        model_jobs: Sequence[ObservedModelJob],
    ) -> Mapping[Ref, CurrentObjects]:
        previous = self._objects_by_ref
        self._objects_by_ref = {
            ref: (
                previous[ref]
                if ref in previous and previous[ref][0] == unsorted
                else (unsorted, unsorted.in_order)
            )
            for ref, unsorted in objects_by_service(
                services, pods, workloads, nodes, model_jobs
            ).items()
        }
        return {ref: objects for ref, (_, objects) in self._objects_by_ref.items()}


def propose_all(
    snapshot: Snapshot,
    scaling_history: Mapping[Ref, ScalingHistory],
    views: Sequence[PoolView],
    allocated: AllocatedDevices,
    forecast: GrantForecast,
    cache: ProposalCache,
) -> Mapping[Ref, Proposal]:
    """Propose for all services, in the order in which they choose hardware.

    `allocated` is increased by the devices of replicas that exist or would be granted.
    """
    objects_by_ref = cache.current_objects(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.model_jobs
    )
    readings_by_pod = usable_readings(snapshot.readings, snapshot.at)
    proposals, entries = {}, {}
    order, gpus = (
        cache.in_choice_order(snapshot.services, objects_by_ref),
        defaultdict[str, float](float),
    )
    for service in chain(order.running, _in_turns(order.new, gpus, forecast)):
        ref, objects = service.ref, objects_by_ref[service.ref]
        readings = tuple([readings_by_pod.get(pod.ref) for pod in objects.pods])
        entry = cache.entries.get(ref)
        known_history = scaling_history.get(ref)
        if (
            entry is None
            or known_history is not entry.proposal.scale.history
            or not _is_valid(entry, snapshot.at, service, objects, views, readings)
        ):
            history = history_of(known_history, service)
            proposal = propose(snapshot, service, objects, views, allocated, history)
            valid_until = valid_until_of(snapshot, proposal)
            entry = _CachedProposal(
                service=service,
                proposal=proposal,
                views=views,
                readings=readings,
                valid_until=valid_until,
            )
        entries[ref] = entry
        proposals[ref] = entry.proposal
        gpus[forecast.tenant(ref.namespace)[0]] += allocate(allocated, entry.proposal, forecast)
    cache.entries = entries
    return proposals


def _is_valid(
    entry: _CachedProposal,
    at: datetime,
    service: ObservedService,
    objects: CurrentObjects,
    views: Sequence[PoolView],
    readings: tuple[PodReading | None, ...],
) -> bool:
    proposal = entry.proposal
    return (
        entry.service is service
        and proposal.objects is objects
        and entry.views is views
        and (entry.valid_until is None or at < entry.valid_until)
        and entry.readings == readings
    )


def _valid_until(snapshot: Snapshot, proposal: Proposal) -> datetime | None:
    """Return until when equal inputs give an equal proposal; now if other services matter."""
    choice, workloads = proposal.placement.choice, proposal.objects.workloads
    if proposal.accepted.reason is Accepted.PLANNER_ERROR:
        return snapshot.at
    if proposal.preparation is not None and proposal.preparation.pending:
        return snapshot.at
    if choice is None:
        return None
    moving = not workloads or workloads[0].variant != choice.variant
    if moving or not autoscale.is_steady(proposal.scale, snapshot.at):
        return snapshot.at
    return next_reading_due(proposal.objects.pods, snapshot.at)


valid_until_of = Step(_valid_until, lambda _error, snapshot, _proposal: snapshot.at)


def _scaling_history(
    known_history: ScalingHistory | None, service: ObservedService
) -> ScalingHistory:
    """Return the history that is known, else what the status has of it."""
    return known_history or history_from_status(service.status)


history_of = Step(_scaling_history, lambda _error, known, *_: known or ScalingHistory())


class _ChoiceOrder(NamedTuple):
    running: Sequence[ObservedService]
    new: Sequence[ObservedService]
    """The classes of a tenant's services decide among them."""


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
    services: Sequence[ObservedService], gpus: Mapping[str, float], forecast: GrantForecast
) -> Iterator[ObservedService]:
    """Yield new services: next is always the tenant with the fewest GPUs for its weight.

    `gpus` of a tenant grow between the services, as these choose.
    """
    queues: dict[str, deque[ObservedService]] = defaultdict(deque)
    weights: dict[str, float] = {}
    for service in services:
        tenant, weights[tenant] = forecast.tenant(service.ref.namespace)
        queues[tenant].append(service)
    turns = [(gpus[tenant] / weights[tenant], tenant) for tenant in queues]
    heapify(turns)
    while turns:
        _, tenant = turns[0]
        yield queues[tenant].popleft()
        if queues[tenant]:
            heapreplace(turns, (gpus[tenant] / weights[tenant], tenant))
        else:
            heappop(turns)
