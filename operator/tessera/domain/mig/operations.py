"""The order of a plan's operations, so that no service falls below its minimum capacity.

Starts and creations happen as soon as they fit. A best-first search decides which replica stops
next, with the fewest temporary replicas. Where replicas wait for each other's slices, one starts on
a temporary slice; where none fits, a stop is marked as bringing its service below its minimum.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count

from tessera.domain.mig.demand import DEMAND_TOLERANCE, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layout_changes import PlacedReplica, SliceLocation
from tessera.domain.mig.layouts import SlicePlacement, fitting_placements, layout_error

# Expanded states, after which the search becomes greedy.
_EXPANSIONS = 2_000
# Harmless stops that are compared; of more, only the first is followed.
_MAX_COMPARED_STOPS = 12
# Temporary replicas that are better than one service below its minimum.
_SHORTFALL_COST = 1_000

# The same in the greedy search, in operations by which a plan may be longer.
_GREEDY_SHORTFALL_COST = 3


class OperationKind(StrEnum):
    """What happens to a slice, or to the replica on it."""

    DESTROY = "destroy"
    CREATE = "create"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOperation:
    """One operation; later ones may rely on it."""

    kind: OperationKind
    location: SliceLocation
    service: str | None = None
    temporary: bool = False
    """Whether the replica is not part of the plan but replaces another while it moves."""
    below_minimum: bool = False
    """Whether the service is below its minimum from here until its next start."""


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
    """Return all operations that lead from one state to the other; none for equal states."""
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
        """Return the throughput and replicas that the service keeps after every operation.

        These are the smaller of its current and its planned ones, and no more than it requires.
        """
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
        """Return the operations of the cheapest order, or of a greedy one in a large search."""
        order = count()
        state, operations = self._apply_helpful(self._first, ())
        frontier = [
            _SearchNode(cost=0, remaining=0, order=next(order), state=state, operations=operations)
        ]
        expanded: set[_FleetState] = set()
        while frontier:
            best = heapq.heappop(frontier)
            if best.state.replicas == self._goal.replicas:
                return self._with_cleanup(best)
            if len(expanded) > _EXPANSIONS:
                return self._with_cleanup(self._search_greedily(best))
            if best.state not in expanded:
                expanded.add(best.state)
                for node in self._successors(best, self._possible_stops(best.state), order):
                    heapq.heappush(frontier, node)
        raise AssertionError("a stop is always possible")

    def _search_greedily(self, best: _SearchNode) -> _SearchNode:
        """Return a final node, expanding the node with the fewest remaining operations."""
        # Among equal nodes the newest goes first.
        order = count(0, -1)
        frontier = [(0, best)]
        expanded: set[_FleetState] = set()
        while frontier:
            _, node = heapq.heappop(frontier)
            state = node.state
            if state.replicas == self._goal.replicas:
                return node
            if state in expanded:
                continue
            expanded.add(state)
            for successor in self._successors(node, self._possible_stops(state, every=True), order):
                shortfalls, temporary = divmod(successor.cost, _SHORTFALL_COST)
                rank = successor.remaining + temporary + _GREEDY_SHORTFALL_COST * shortfalls
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
        """Return the node's operations, followed by those on slices that blocked no replica."""
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
        """Apply all operations that harm no service: starts, and the slices that they need."""
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
            neighbors = [other for other in sorted(state.slices) if other.gpu == location.gpu]
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
        """Yield harmless stops, then temporary starts, then stops below a minimum, with their cost.

        The last only where no stop is harmless, unless `every` is true.
        """
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
            yield _SHORTFALL_COST, (_stop_operation(replica, below_minimum=True),)

    def _is_expendable(self, state: _FleetState, replica: PlacedReplica) -> bool:
        throughput, replicas = self._capacity_of(state, replica.service)
        min_throughput, min_replicas = self._minimums.get(replica.service, (0.0, 0))
        lost = self._throughput_at(replica.service, replica.location)
        return throughput - lost >= min_throughput and replicas > min_replicas

    def _bridges(
        self, state: _FleetState, replica: PlacedReplica
    ) -> Iterator[tuple[LayoutOperation, ...]]:
        """Yield temporary starts, on idle or new slices, that allow the replica to stop."""
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
        throughput, _ = self._capacity_of(state, replica.service)
        min_throughput, _ = self._minimums[replica.service]
        added = self._throughput_at(replica.service, location)
        lost = self._throughput_at(replica.service, replica.location)
        return added > 0 and throughput + added - lost >= min_throughput

    def _free_locations(
        self, state: _FleetState, service: ServiceDemand
    ) -> Iterator[SliceLocation]:
        """Return where the service fits beside existing slices, used GPUs and small ones first."""
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
            # A whole GPU, or a profile that the tables lack, leaves nothing to place.
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


def _stop_operation(replica: PlacedReplica, *, below_minimum: bool = False) -> LayoutOperation:
    return LayoutOperation(
        kind=OperationKind.STOP,
        location=replica.location,
        service=replica.service,
        below_minimum=below_minimum,
    )


def _fleet_state(gpus: Sequence[FleetGpu]) -> _FleetState:
    slices = {
        (mig_slice.service, SliceLocation(gpu.name, mig_slice.start, mig_slice.profile))
        for gpu in gpus
        for mig_slice in gpu.slices
    }
    replicas = frozenset(
        PlacedReplica(service, location) for service, location in slices if service is not None
    )
    return _FleetState(frozenset(location for _, location in slices), replicas)


def _apply(state: _FleetState, operation: LayoutOperation) -> _FleetState:
    location = operation.location
    match operation.kind:
        case OperationKind.DESTROY:
            return replace(state, slices=state.slices - {location})
        case OperationKind.CREATE:
            return replace(state, slices=state.slices | {location})
        case OperationKind.START:
            replicas = state.replicas | {PlacedReplica(operation.service or "", location)}
            return replace(state, replicas=replicas)
        case OperationKind.STOP:
            return replace(
                state, replicas=state.replicas - {PlacedReplica(operation.service or "", location)}
            )
