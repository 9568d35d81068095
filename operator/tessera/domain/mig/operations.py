"""The order in which a plan is carried out, so that no service falls below what it has to keep.

Starting and cutting come as soon as there is room; which instance stops next is searched, with the
fewest temporary instances. Where everybody waits for somebody else's place, one instance takes a
temporary one; where there is no room for that, a stop says that its service is short.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count

from tessera.domain.mig.demand import DEMAND_TOLERANCE, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layout_changes import PlacedReplica, SliceLocation
from tessera.domain.mig.layouts import SlicePlacement, fitting_placements, layout_error

_EXPANSIONS = 2_000
# More instances that may stop are not compared; the first one does.
_MAX_COMPARED_STOPS = 12
# Temporary instances that are better than one service that is short.
_SHORTFALL_COST = 1_000

# Moves by which another way may be longer, in a hurry, than one with a service that is short.
_HURRIED_SHORTFALL_COST = 3


class OperationKind(StrEnum):
    """What is done to one slice."""

    DESTROY = "destroy"
    CREATE = "create"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOperation:
    """One deed; the ones after it may rely on it."""

    kind: OperationKind
    location: SliceLocation
    service: str | None = None
    temporary: bool = False
    """The instance does not belong to the plan; it bridges a wait."""
    below_minimum: bool = False
    """The service has less than it should from here on until its next start."""


@dataclass(frozen=True, slots=True)
class _FleetState:
    slices: frozenset[SliceLocation]
    replicas: frozenset[PlacedReplica]


@dataclass(order=True, slots=True)
class _SearchNode:
    cost: int
    remaining: int
    order: int
    state: _FleetState = field(compare=False)
    operations: tuple[LayoutOperation, ...] = field(compare=False)


def order_operations(
    before: Sequence[FleetGpu],
    after: Sequence[FleetGpu],
    services: Sequence[ServiceDemand],
    gpu_models: Mapping[str, GpuModel],
) -> tuple[LayoutOperation, ...]:
    """All steps from one state to the other; equal states give none."""
    return _OperationSearch(before, after, services, gpu_models).search()


class _OperationSearch:
    def __init__(
        self,
        before: Sequence[FleetGpu],
        after: Sequence[FleetGpu],
        services: Sequence[ServiceDemand],
        gpu_models: Mapping[str, GpuModel],
    ) -> None:
        self._gpu_models = {gpu.name: gpu_models[gpu.gpu_model] for gpu in (*before, *after)}
        self._first, self._goal = _fleet_state(before), _fleet_state(after)
        self._services = {service.name: service for service in services}
        self._minimums = {
            name: self._minimum_of(service) for name, service in self._services.items()
        }

    def _minimum_of(self, service: ServiceDemand) -> tuple[float, int]:
        """What it keeps at every step: what it has and will have, but no more than it asks for."""
        capacity_before, capacity_after = (
            self._capacity_of(state, service.name) for state in (self._first, self._goal)
        )
        speed = min(capacity_before[0], capacity_after[0], service.demand) * (1 - DEMAND_TOLERANCE)
        return speed, min(capacity_before[1], capacity_after[1], service.required_replicas)

    def _capacity_of(self, state: _FleetState, name: str) -> tuple[float, int]:
        locations = [replica.location for replica in state.replicas if replica.service == name]
        return sum(self._throughput_at(name, location) for location in locations), len(locations)

    def _throughput_at(self, name: str, location: SliceLocation) -> float:
        instance_type = InstanceType(self._gpu_models[location.gpu].name, location.profile)
        return (
            self._services[name].throughput.get(instance_type, 0.0)
            if name in self._services
            else 0.0
        )

    def search(self) -> tuple[LayoutOperation, ...]:
        """Cheapest first; among equals the one with the least left to do."""
        order = count()
        frontier = [_SearchNode(0, 0, next(order), *self._apply_helpful(self._first, ()))]
        seen: set[_FleetState] = set()
        while frontier:
            best = heapq.heappop(frontier)
            if best.state.replicas == self._goal.replicas:
                return self._with_cleanup(best)
            if len(seen) > _EXPANSIONS:
                return self._with_cleanup(self._search_greedily(best))
            if best.state not in seen:
                seen.add(best.state)
                for node in self._successors(best, self._possible_stops(best.state), order):
                    heapq.heappush(frontier, node)
        raise AssertionError("a stop is always possible")

    def _search_greedily(self, best: _SearchNode) -> _SearchNode:
        """The way that seems nearest to its end is followed, not the cheapest one."""
        order = count(0, -1)
        frontier = [(0, best)]
        seen: set[_FleetState] = set()
        while frontier:
            _, node = heapq.heappop(frontier)
            if node.state.replicas == self._goal.replicas:
                return node
            if node.state in seen:
                continue
            seen.add(node.state)
            for successor in self._successors(
                node, self._possible_stops(node.state, every=True), order
            ):
                shortfalls, temporary = divmod(successor.cost, _SHORTFALL_COST)
                rank = successor.remaining + temporary + _HURRIED_SHORTFALL_COST * shortfalls
                heapq.heappush(frontier, (rank, successor))
        raise AssertionError("a stop is always possible")

    def _successors(
        self,
        best: _SearchNode,
        moves: Iterable[tuple[int, tuple[LayoutOperation, ...]]],
        order: Iterator[int],
    ) -> Iterator[_SearchNode]:
        for cost, operations in moves:
            state = best.state
            for operation in operations:
                state = _apply(state, operation)
            state, all_operations = self._apply_helpful(state, (*best.operations, *operations))
            remaining = len(state.replicas ^ self._goal.replicas)
            yield _SearchNode(best.cost + cost, remaining, next(order), state, all_operations)

    def _with_cleanup(self, best: _SearchNode) -> tuple[LayoutOperation, ...]:
        """Slices that were in nobody's way go last."""
        destroys = [
            LayoutOperation(kind=OperationKind.DESTROY, location=location)
            for location in sorted(best.state.slices - self._goal.slices)
        ]
        state = best.state
        for operation in destroys:
            state = _apply(state, operation)
        creates = [
            LayoutOperation(kind=OperationKind.CREATE, location=location)
            for location in sorted(self._goal.slices - state.slices)
        ]
        return (*best.operations, *destroys, *creates)

    def _apply_helpful(
        self, state: _FleetState, operations: tuple[LayoutOperation, ...]
    ) -> tuple[_FleetState, tuple[LayoutOperation, ...]]:
        """Everything done that only helps: starts, cuts, and idle slices out of their way."""
        done = list(operations)
        while operation := self._next_helpful(state):
            state = _apply(state, operation)
            done.append(operation)
        return state, tuple(done)

    def _next_helpful(self, state: _FleetState) -> LayoutOperation | None:
        taken = {replica.location for replica in state.replicas}
        starts = sorted(self._goal.replicas - state.replicas)
        for replica in starts:
            if replica.location in state.slices and replica.location not in taken:
                return LayoutOperation(
                    kind=OperationKind.START, location=replica.location, service=replica.service
                )
        for location in sorted({replica.location for replica in starts} - state.slices):
            neighbors = [
                existing for existing in sorted(state.slices) if existing.gpu == location.gpu
            ]
            if self._fits(location, neighbors):
                return LayoutOperation(kind=OperationKind.CREATE, location=location)
            removable = [
                neighbor
                for neighbor in neighbors
                if neighbor not in taken and neighbor not in self._goal.slices
            ]
            if removable and self._fits(
                location, [neighbor for neighbor in neighbors if neighbor not in removable]
            ):
                return LayoutOperation(kind=OperationKind.DESTROY, location=removable[0])
        return None

    def _fits(self, location: SliceLocation, neighbors: Sequence[SliceLocation]) -> bool:
        placements = sorted(
            SlicePlacement(neighbor.start, neighbor.profile) for neighbor in (*neighbors, location)
        )
        return layout_error(self._gpu_models[location.gpu], placements) is None

    def _possible_stops(
        self, state: _FleetState, *, every: bool = False
    ) -> Iterator[tuple[int, tuple[LayoutOperation, ...]]]:
        """Stops that hurt nobody, then temporary places, then the stops that hurt: these only
        where nobody else stops, unless every way is asked for."""
        stops = sorted(state.replicas - self._goal.replicas)
        harmless = [replica for replica in stops if self._is_expendable(state, replica)]
        narrow = len(harmless) > _MAX_COMPARED_STOPS and not every
        for replica in harmless[: 1 if narrow else None]:
            yield 0, (_stop_operation(replica),)
        waiting = [replica for replica in stops if replica not in harmless]
        for replica in waiting:
            for operations in self._bridges(state, replica):
                yield 1, operations
        for replica in waiting if every or not harmless else ():
            yield _SHORTFALL_COST, (_stop_operation(replica, short=True),)

    def _is_expendable(self, state: _FleetState, replica: PlacedReplica) -> bool:
        speed, number = self._capacity_of(state, replica.service)
        least, fewest = self._minimums.get(replica.service, (0.0, 0))
        return (
            speed - self._throughput_at(replica.service, replica.location) >= least
            and number > fewest
        )

    def _bridges(
        self, state: _FleetState, replica: PlacedReplica
    ) -> Iterator[tuple[LayoutOperation, ...]]:
        """A start in an idle slice, or the cut of a slice for it, that lets the instance stop."""
        service = self._services.get(replica.service)
        if service is None:
            return
        taken = {other.location for other in state.replicas}
        planned = {other.location for other in self._goal.replicas}
        for location in sorted(state.slices - taken - planned):
            if self._bridges_stop(state, replica, location):
                yield (_temporary_start(service, location),)
        for location in self._free_locations(state, service):
            if self._bridges_stop(state, replica, location) and location not in planned:
                yield (
                    LayoutOperation(kind=OperationKind.CREATE, location=location, temporary=True),
                    _temporary_start(service, location),
                )

    def _bridges_stop(
        self, state: _FleetState, replica: PlacedReplica, location: SliceLocation
    ) -> bool:
        speed, _ = self._capacity_of(state, replica.service)
        added = self._throughput_at(replica.service, location)
        least, _ = self._minimums[replica.service]
        return (
            added > 0
            and speed + added - self._throughput_at(replica.service, replica.location) >= least
        )

    def _free_locations(
        self, state: _FleetState, service: ServiceDemand
    ) -> Iterator[SliceLocation]:
        """Room on any GPU, small slices first."""
        candidates = []
        for name, gpu_model in sorted(self._gpu_models.items()):
            layout = tuple(
                sorted(
                    SlicePlacement(occupied.start, occupied.profile)
                    for occupied in state.slices
                    if occupied.gpu == name
                )
            )
            profiles = [
                instance_type.profile
                for instance_type in sorted(service.throughput)
                if instance_type.gpu_model == gpu_model.name
                and gpu_model.find_profile(instance_type.profile)
            ]
            if any(gpu_model.find_profile(placement.profile) is None for placement in layout):
                continue
            for placement in fitting_placements(gpu_model, layout, profiles):
                gi_profile = gpu_model.find_profile(placement.profile)
                size = gi_profile.memory_slices if gi_profile else 0
                candidates.append(
                    (not layout, size, SliceLocation(name, placement.start, placement.profile))
                )
        return (location for _, _, location in sorted(candidates))


def _temporary_start(service: ServiceDemand, location: SliceLocation) -> LayoutOperation:
    return LayoutOperation(
        kind=OperationKind.START, location=location, service=service.name, temporary=True
    )


def _stop_operation(replica: PlacedReplica, *, short: bool = False) -> LayoutOperation:
    return LayoutOperation(
        kind=OperationKind.STOP,
        location=replica.location,
        service=replica.service,
        below_minimum=short,
    )


def _fleet_state(gpus: Sequence[FleetGpu]) -> _FleetState:
    slices = {
        (mig_slice.service, SliceLocation(gpu.name, mig_slice.start, mig_slice.profile))
        for gpu in gpus
        for mig_slice in gpu.slices
    }
    return _FleetState(
        frozenset(location for _, location in slices),
        frozenset(
            PlacedReplica(service, location) for service, location in slices if service is not None
        ),
    )


def _apply(state: _FleetState, operation: LayoutOperation) -> _FleetState:
    match operation.kind:
        case OperationKind.DESTROY:
            return replace(state, slices=state.slices - {operation.location})
        case OperationKind.CREATE:
            return replace(state, slices=state.slices | {operation.location})
        case OperationKind.START:
            return replace(
                state,
                replicas=state.replicas
                | {PlacedReplica(operation.service or "", operation.location)},
            )
        case OperationKind.STOP:
            return replace(
                state,
                replicas=state.replicas
                - {PlacedReplica(operation.service or "", operation.location)},
            )


def count_operations(operations: Sequence[LayoutOperation]) -> Counter[str]:
    """How many of each deed, and of them temporary ones and short ones."""
    counts = Counter(str(operation.kind) for operation in operations)
    counts["temporary"] = sum(
        operation.temporary and operation.kind == OperationKind.START for operation in operations
    )
    counts["short"] = sum(operation.below_minimum for operation in operations)
    return counts
