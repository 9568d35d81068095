"""The order of steps: what holds at each of them, and the fewest temporary instances."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mig_fleets import fleet
from tessera.domain.mig.demand import ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.layout_changes import SliceLocation
from tessera.domain.mig.layouts import SlicePlacement, layout_error
from tessera.domain.mig.operations import (
    LayoutOperation,
    OperationKind,
    order_operations,
)
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service

BOARDS = {A100.name: A100}
HALVES = (("3g.40gb", 0), ("3g.40gb", 4), ("4g.40gb", 0))
SPEED = {"3g.40gb": 1.0, "4g.40gb": 1.0}

layouts = st.sampled_from(
    [(), (HALVES[0],), (HALVES[1],), (HALVES[2],), HALVES[:2], (HALVES[2], HALVES[1])]
)


def count_compromises(operations: Iterable[LayoutOperation]) -> tuple[int, int]:
    """Count temporary replicas, and stops that bring a service below its minimum."""
    starts = [operation for operation in operations if operation.kind is OperationKind.START]
    return (
        sum(operation.temporary for operation in starts),
        sum(operation.below_minimum for operation in operations),
    )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[FleetGpu], list[FleetGpu]]:
    """Two states of two GPUs with the same services, one instance of each."""
    states = []
    for _ in range(2):
        gpus = [
            FleetGpu(
                name=name,
                gpu_model=A100.name,
                slices=tuple(
                    sorted(
                        (FleetSlice(start, profile, None) for profile, start in draw(layouts)),
                        key=lambda fleet_slice: fleet_slice.start,
                    )
                ),
            )
            for name in ("g", "h")
        ]
        states.append(gpus)
    slice_count = min(sum(len(gpu.slices) for gpu in state) for state in states)
    names = "abcd"[: draw(st.integers(0, slice_count))]
    before, after = (
        _with_services(draw(st.permutations(range(4))), names, state) for state in states
    )
    return before, after


def _with_services(order: Sequence[int], names: str, gpus: list[FleetGpu]) -> list[FleetGpu]:
    slots = [(index, fleet_slice) for index, gpu in enumerate(gpus) for fleet_slice in gpu.slices]
    chosen = [slots[index] for index in order if index < len(slots)][: len(names)]
    holders = {
        (index, fleet_slice.start): name
        for (index, fleet_slice), name in zip(chosen, names, strict=True)
    }
    return [
        FleetGpu(
            name=gpu.name,
            gpu_model=gpu.gpu_model,
            slices=tuple(
                fleet_slice._replace(service=holders.get((index, fleet_slice.start)))
                for fleet_slice in gpu.slices
            ),
        )
        for index, gpu in enumerate(gpus)
    ]


class SimulatedLayout:
    """A fleet to which steps are done, one by one, as hardware would allow them."""

    def __init__(self, gpus: Sequence[FleetGpu], services: Sequence[ServiceDemand]) -> None:
        self.services_by_location: dict[SliceLocation, str | None] = {
            SliceLocation(gpu.name, fleet_slice.start, fleet_slice.profile): fleet_slice.service
            for gpu in gpus
            for fleet_slice in gpu.slices
        }
        self.services = {service.name: service for service in services}

    def apply(self, operation: LayoutOperation) -> None:
        match operation.kind:
            case OperationKind.DESTROY:
                assert self.services_by_location.pop(operation.location) is None
            case OperationKind.CREATE:
                assert operation.location not in self.services_by_location
                self.services_by_location[operation.location] = None
                beside = [
                    SlicePlacement(location.start, location.profile)
                    for location in self.services_by_location
                    if location.gpu == operation.location.gpu
                ]
                assert layout_error(A100, beside) is None
            case OperationKind.START:
                assert self.services_by_location[operation.location] is None
                self.services_by_location[operation.location] = operation.service
            case OperationKind.STOP:
                assert self.services_by_location[operation.location] == operation.service
                self.services_by_location[operation.location] = None

    def instances(self, name: str) -> int:
        return sum(holder == name for holder in self.services_by_location.values())

    def matches(self, gpus: Sequence[FleetGpu]) -> bool:
        return self.services_by_location == SimulatedLayout(gpus, ()).services_by_location


def fewest_temporary_replicas(
    before: Sequence[FleetGpu], after: Sequence[FleetGpu], names: str
) -> int | None:
    """Search all orders of single operations; None if a service goes below its minimum."""
    start, goal = (
        frozenset(SimulatedLayout(gpus, ()).services_by_location.items())
        for gpus in (before, after)
    )
    goal_replicas = frozenset((location, holder) for location, holder in goal if holder)
    sequence = count()
    frontier = [(0, next(sequence), start)]
    visited = set()
    while frontier:
        cost, _, state = heapq.heappop(frontier)
        if frozenset((location, holder) for location, holder in state if holder) == goal_replicas:
            return cost
        if state in visited:
            continue
        visited.add(state)
        for extra, following in _next_states(dict(state), goal_replicas, names):
            heapq.heappush(frontier, (cost + extra, next(sequence), frozenset(following.items())))
    return None


def _next_states(
    holders: dict[SliceLocation, str | None],
    goal_replicas: frozenset[tuple[SliceLocation, str | None]],
    names: str,
) -> Iterator[tuple[int, dict[SliceLocation, str | None]]]:
    for location, holder in holders.items():
        if holder is None:
            yield (
                0,
                {
                    other_location: service
                    for other_location, service in holders.items()
                    if other_location != location
                },
            )
            for name in names:
                if (location, name) in goal_replicas or list(holders.values()).count(name) == 1:
                    yield (location, name) not in goal_replicas, holders | {location: name}
        elif list(holders.values()).count(holder) > 1:
            yield 0, holders | {location: None}
    for gpu in ("g", "h"):
        for profile, start in HALVES:
            location = SliceLocation(gpu, start, profile)
            beside = [
                SlicePlacement(other_location.start, other_location.profile)
                for other_location in holders
                if other_location.gpu == gpu
            ]
            if (
                location not in holders
                and layout_error(A100, [*beside, SlicePlacement(start, profile)]) is None
            ):
                yield 0, holders | {location: None}


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_no_order_needs_fewer_temporary_instances(
    states: tuple[list[FleetGpu], list[FleetGpu]],
) -> None:
    before, after = states
    names = "".join(
        sorted(
            {
                fleet_slice.service
                for gpu in before
                for fleet_slice in gpu.slices
                if fleet_slice.service
            }
        )
    )
    services = [a_service(name, 1, SPEED, min_replicas=1) for name in names]
    steps = order_operations(before, after, services, BOARDS)
    temporary, below_minimum = count_compromises(steps)
    best = fewest_temporary_replicas(before, after, names)
    assert (below_minimum > 0) == (best is None)
    if best is not None:
        assert temporary == best


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_steps_are_possible_keep_everybody_and_end_where_they_should(
    states: tuple[list[FleetGpu], list[FleetGpu]],
) -> None:
    before, after = states
    names = sorted(
        {fleet_slice.service for gpu in before for fleet_slice in gpu.slices if fleet_slice.service}
    )
    services = [a_service(name, 1, SPEED, min_replicas=1) for name in names]
    simulated = SimulatedLayout(before, services)
    short: set[str] = set()
    for operation in order_operations(before, after, services, BOARDS):
        simulated.apply(operation)
        short |= {operation.service} if operation.below_minimum and operation.service else set()
        assert all(simulated.instances(name) >= 1 for name in names if name not in short)
    assert simulated.matches(after)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.integers(0, 999), st.sampled_from([0.3, 2.0]))
def test_plans_are_carried_out_with_every_service_at_its_minimum(
    number: int, seed: int, factor: float
) -> None:
    _assert_plan_is_feasible(number, seed, factor)


@pytest.mark.long
def test_a_search_that_is_stopped_early_ends_too() -> None:
    _assert_plan_is_feasible(8, 973, 0.3)


def _assert_plan_is_feasible(number: int, seed: int, factor: float) -> None:
    services = fleet(number, seed, [A100], 0.2)
    before = plan_layouts(services, ONE).gpus
    wanted = [
        ServiceDemand(
            name=service.name,
            demand=service.demand * (factor if index % 2 else 1),
            min_replicas=service.min_replicas,
            throughput=service.throughput,
        )
        for index, service in enumerate(services)
    ]
    after = plan_layouts(wanted, ONE, before).gpus
    simulated = SimulatedLayout(before, wanted)
    short: set[str] = set()
    for operation in order_operations(before, after, wanted, BOARDS):
        simulated.apply(operation)
        short |= {operation.service} if operation.below_minimum and operation.service else set()
        for service in wanted:
            assert (
                service.name in short
                or simulated.instances(service.name) >= service.required_replicas
                or (
                    simulated.instances(service.name)
                    >= SimulatedLayout(before, ()).instances(service.name)
                )
            )
    assert simulated.matches(after)


def test_two_services_that_want_each_others_place_need_one_temporary_instance() -> None:
    before = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4=b"),)
    after = (a_gpu("g", "4g.40gb@0=b", "3g.40gb@4=a"), a_gpu("h"))
    services = [a_service(name, 1, SPEED, min_replicas=1) for name in "ab"]
    steps = order_operations(before, after, services, BOARDS)
    assert count_compromises(steps) == (1, 0)


def test_without_any_room_the_shortest_stop_is_announced() -> None:
    before = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4=b"),)
    after = (a_gpu("g", "4g.40gb@0=b", "3g.40gb@4=a"),)
    services = [a_service(name, 1, SPEED, min_replicas=1) for name in "ab"]
    steps = order_operations(before, after, services, BOARDS)
    assert count_compromises(steps) == (0, 1)


def test_equal_states_need_no_steps() -> None:
    gpus = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4"),)
    assert order_operations(gpus, gpus, [a_service("a", 1, SPEED)], BOARDS) == ()


def test_the_new_instance_starts_before_the_old_one_stops() -> None:
    before = (a_gpu("g", "3g.40gb@0=a"), a_gpu("h", "3g.40gb@4=b"))
    after = (a_gpu("g", "3g.40gb@0=a", "3g.40gb@4=b"), a_gpu("h"))
    services = [a_service(name, 1, SPEED, min_replicas=1) for name in "ab"]
    deeds = [step.kind for step in order_operations(before, after, services, BOARDS)]
    assert deeds == [
        OperationKind.CREATE,
        OperationKind.START,
        OperationKind.STOP,
        OperationKind.DESTROY,
    ]


def test_stops_name_the_service_they_are_for() -> None:
    location = SliceLocation("g", 0, "3g.40gb")
    steps = order_operations((a_gpu("g", "3g.40gb@0=a"),), (a_gpu("g", "3g.40gb@0"),), [], BOARDS)
    assert steps == (LayoutOperation(kind=OperationKind.STOP, location=location, service="a"),)
