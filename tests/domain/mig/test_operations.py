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
        found = [
            FleetGpu(
                name=name,
                gpu_model=A100.name,
                slices=tuple(
                    sorted(
                        (FleetSlice(start, profile, None) for profile, start in draw(layouts)),
                        key=lambda one: one.start,
                    )
                ),
            )
            for name in ("g", "h")
        ]
        states.append(found)
    room = min(sum(len(gpu.slices) for gpu in state) for state in states)
    names = "abcd"[: draw(st.integers(0, room))]
    before, after = (_seated(draw(st.permutations(range(4))), names, one) for one in states)
    return before, after


def _seated(order: Sequence[int], names: str, gpus: list[FleetGpu]) -> list[FleetGpu]:
    seats = [(at, one) for at, gpu in enumerate(gpus) for one in gpu.slices]
    chosen = [seats[index] for index in order if index < len(seats)][: len(names)]
    holders = {(at, one.start): name for (at, one), name in zip(chosen, names, strict=True)}
    return [
        FleetGpu(
            name=gpu.name,
            gpu_model=gpu.gpu_model,
            slices=tuple(one._replace(service=holders.get((at, one.start))) for one in gpu.slices),
        )
        for at, gpu in enumerate(gpus)
    ]


class Played:
    """A fleet to which steps are done, one by one, as hardware would allow them."""

    def __init__(self, gpus: Sequence[FleetGpu], services: Sequence[ServiceDemand]) -> None:
        self.sits: dict[SliceLocation, str | None] = {
            SliceLocation(gpu.name, one.start, one.profile): one.service
            for gpu in gpus
            for one in gpu.slices
        }
        self.services = {one.name: one for one in services}

    def do(self, step: LayoutOperation) -> None:
        match step.kind:
            case OperationKind.DESTROY:
                assert self.sits.pop(step.location) is None
            case OperationKind.CREATE:
                assert step.location not in self.sits
                self.sits[step.location] = None
                beside = [
                    SlicePlacement(one.start, one.profile)
                    for one in self.sits
                    if one.gpu == step.location.gpu
                ]
                assert layout_error(A100, beside) is None
            case OperationKind.START:
                assert self.sits[step.location] is None
                self.sits[step.location] = step.service
            case OperationKind.STOP:
                assert self.sits[step.location] == step.service
                self.sits[step.location] = None

    def instances(self, name: str) -> int:
        return sum(holder == name for holder in self.sits.values())

    def same(self, gpus: Sequence[FleetGpu]) -> bool:
        return self.sits == Played(gpus, ()).sits


def fewest_bridges(before: Sequence[FleetGpu], after: Sequence[FleetGpu], names: str) -> int | None:
    """By trying everything in any order, one deed at a time; None when somebody falls short."""
    start, goal = (frozenset(Played(gpus, ()).sits.items()) for gpus in (before, after))
    seated = frozenset((seat, holder) for seat, holder in goal if holder)
    turn = count()
    edge = [(0, next(turn), start)]
    seen = set()
    while edge:
        cost, _, state = heapq.heappop(edge)
        if frozenset((seat, holder) for seat, holder in state if holder) == seated:
            return cost
        if state in seen:
            continue
        seen.add(state)
        for more, following in _deeds(dict(state), seated, names):
            heapq.heappush(edge, (cost + more, next(turn), frozenset(following.items())))
    return None


def _deeds(
    sits: dict[SliceLocation, str | None],
    seated: frozenset[tuple[SliceLocation, str | None]],
    names: str,
) -> Iterator[tuple[int, dict[SliceLocation, str | None]]]:
    for seat, holder in sits.items():
        if holder is None:
            yield 0, {other: one for other, one in sits.items() if other != seat}
            for name in names:
                if (seat, name) in seated or list(sits.values()).count(name) == 1:
                    yield (seat, name) not in seated, sits | {seat: name}
        elif list(sits.values()).count(holder) > 1:
            yield 0, sits | {seat: None}
    for gpu in ("g", "h"):
        for profile, start in HALVES:
            seat = SliceLocation(gpu, start, profile)
            beside = [SlicePlacement(one.start, one.profile) for one in sits if one.gpu == gpu]
            if (
                seat not in sits
                and layout_error(A100, [*beside, SlicePlacement(start, profile)]) is None
            ):
                yield 0, sits | {seat: None}


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_no_order_needs_fewer_temporary_instances(
    found: tuple[list[FleetGpu], list[FleetGpu]],
) -> None:
    before, after = found
    names = "".join(sorted({one.service for gpu in before for one in gpu.slices if one.service}))
    services = [a_service(name, 1, SPEED, floor=1) for name in names]
    steps = order_operations(before, after, services, BOARDS)
    temporary, below_minimum = count_compromises(steps)
    best = fewest_bridges(before, after, names)
    assert (below_minimum > 0) == (best is None)
    if best is not None:
        assert temporary == best


@settings(max_examples=60, deadline=None)
@given(fleets())
def test_steps_are_possible_keep_everybody_and_end_where_they_should(
    found: tuple[list[FleetGpu], list[FleetGpu]],
) -> None:
    before, after = found
    names = sorted({one.service for gpu in before for one in gpu.slices if one.service})
    services = [a_service(name, 1, SPEED, floor=1) for name in names]
    played = Played(before, services)
    short: set[str] = set()
    for step in order_operations(before, after, services, BOARDS):
        played.do(step)
        short |= {step.service} if step.below_minimum and step.service else set()
        assert all(played.instances(name) >= 1 for name in names if name not in short)
    assert played.same(after)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.integers(0, 999), st.sampled_from([0.3, 2.0]))
def test_plans_are_carried_out_without_anybody_below_his_floor(
    number: int, seed: int, factor: float
) -> None:
    _assert_carried_out(number, seed, factor)


@pytest.mark.long
def test_a_search_that_is_cut_short_comes_to_an_end_too() -> None:
    _assert_carried_out(8, 973, 0.3)


def _assert_carried_out(number: int, seed: int, factor: float) -> None:
    services = fleet(number, seed, [A100], 0.2)
    before = plan_layouts(services, ONE).gpus
    wanted = [
        ServiceDemand(
            name=one.name,
            demand=one.demand * (factor if at % 2 else 1),
            min_replicas=one.min_replicas,
            throughput=one.throughput,
        )
        for at, one in enumerate(services)
    ]
    after = plan_layouts(wanted, ONE, before).gpus
    played = Played(before, wanted)
    short: set[str] = set()
    for step in order_operations(before, after, wanted, BOARDS):
        played.do(step)
        short |= {step.service} if step.below_minimum and step.service else set()
        for one in wanted:
            assert (
                one.name in short
                or played.instances(one.name) >= one.required_replicas
                or (played.instances(one.name) >= Played(before, ()).instances(one.name))
            )
    assert played.same(after)


def test_two_services_that_want_each_others_place_need_one_temporary_instance() -> None:
    before = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4=b"),)
    after = (a_gpu("g", "4g.40gb@0=b", "3g.40gb@4=a"), a_gpu("h"))
    services = [a_service(name, 1, SPEED, floor=1) for name in "ab"]
    steps = order_operations(before, after, services, BOARDS)
    assert count_compromises(steps) == (1, 0)


def test_without_any_room_the_shortest_stop_is_announced() -> None:
    before = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4=b"),)
    after = (a_gpu("g", "4g.40gb@0=b", "3g.40gb@4=a"),)
    services = [a_service(name, 1, SPEED, floor=1) for name in "ab"]
    steps = order_operations(before, after, services, BOARDS)
    assert count_compromises(steps) == (0, 1)


def test_equal_states_need_no_steps() -> None:
    there = (a_gpu("g", "4g.40gb@0=a", "3g.40gb@4"),)
    assert order_operations(there, there, [a_service("a", 1, SPEED)], BOARDS) == ()


def test_the_new_instance_starts_before_the_old_one_stops() -> None:
    before = (a_gpu("g", "3g.40gb@0=a"), a_gpu("h", "3g.40gb@4=b"))
    after = (a_gpu("g", "3g.40gb@0=a", "3g.40gb@4=b"), a_gpu("h"))
    services = [a_service(name, 1, SPEED, floor=1) for name in "ab"]
    deeds = [step.kind for step in order_operations(before, after, services, BOARDS)]
    assert deeds == [
        OperationKind.CREATE,
        OperationKind.START,
        OperationKind.STOP,
        OperationKind.DESTROY,
    ]


def test_stops_are_told_for_whom_they_are() -> None:
    seat = SliceLocation("g", 0, "3g.40gb")
    steps = order_operations((a_gpu("g", "3g.40gb@0=a"),), (a_gpu("g", "3g.40gb@0"),), [], BOARDS)
    assert steps == (LayoutOperation(kind=OperationKind.STOP, location=seat, service="a"),)
