"""From one layout to the next: what may stay stays, against every possibility on small fleets."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mig_fleets import fleet
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.geometries import maximal_fillings, possible_reshapes
from tessera.domain.mig.gpu_models import WHOLE_GPU, gpu_models
from tessera.domain.mig.layouts import (
    WHOLE_GPU_LAYOUT,
    Layout,
    SlicePlacement,
    layout_error,
    maximal_geometries,
)
from tessera.domain.mig.mix import cheapest_mix, gpu_geometries
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service
from tests.mig_oracles import distinct_geometries, enumerate_layouts
from tests.properties import applies

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", WHOLE_GPU)
SPEEDS = {"1g.10gb": 1.0, "2g.20gb": 2.0, "3g.40gb": 3.0, "4g.40gb": 4.0, WHOLE_GPU: 8.0}

speeds = st.lists(st.sampled_from(PROFILES), min_size=1, max_size=3, unique=True).map(
    lambda profiles: {profile: SPEEDS[profile] for profile in profiles}
)
services = st.lists(
    st.builds(a_service, demand=st.sampled_from([1.0, 2.0, 3.0, 5.0, 7.0]), speeds=speeds),
    min_size=1,
    max_size=4,
).map(lambda found: [a_service(f"s{at}", like=one) for at, one in enumerate(found)])
# By how much the demand of each service grows.
changed = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0]), min_size=4, max_size=4)


def grown(found: Sequence[ServiceDemand], factors: Sequence[float]) -> list[ServiceDemand]:
    return [
        replace(one, demand=one.demand * factor)
        for one, factor in zip(found, factors, strict=False)
    ]


def worn(gpus: Sequence[FleetGpu], gone: int) -> tuple[FleetGpu, ...]:
    """Some instances ended, so that layouts have holes that no planner would leave."""
    return tuple(
        replace(
            gpu,
            slices=tuple(
                one for at, one in enumerate(gpu.slices) if (gone >> (at + 3 * number)) % 3
            ),
        )
        for number, gpu in enumerate(gpus)
    )


def without_a_move(gpus: Sequence[FleetGpu], wanted: Sequence[ServiceDemand], budget: int) -> bool:
    """Whether any choice of instances that stay, and of what is cut beside them, moves nobody."""
    seats = [(at, one) for at, gpu in enumerate(gpus) for one in gpu.slices if one.service]
    named = {service.name: service for service in wanted}
    for size in range(len(seats), -1, -1):
        for kept in combinations(seats, size):
            lost = Counter(one.service for _, one in seats) - Counter(
                one.service for _, one in kept
            )
            stays = [
                tuple(sorted(one.placement for where, one in kept if where == at))
                for at in range(len(gpus))
            ]
            held = Counter((one.service, InstanceType(A100.name, one.profile)) for _, one in kept)
            left = [
                rest
                for name, service in named.items()
                if (rest := remaining(service, held)) is not None
            ]
            if any(service.name in lost for service in left):
                continue  # it would stop an instance and start another one
            if any(one.service not in named for _, one in kept):
                continue
            if any(seated(left, supply) for supply in supplies(stays, budget)):
                return True
    return False


def remaining(
    service: ServiceDemand, held: Counter[tuple[str | None, InstanceType]]
) -> ServiceDemand | None:
    """What is left to serve; None for nothing."""
    mine = {kind: count for (name, kind), count in held.items() if name == service.name}
    if any(kind not in service.throughput for kind in mine):
        mine = {kind: count for kind, count in mine.items() if kind in service.throughput}
    if meets_demand(service, mine):
        return None
    served = sum(service.throughput[kind] * count for kind, count in mine.items())
    return replace(service, demand=service.demand - served)


def supplies(stays: Sequence[Layout], budget: int) -> Iterator[Counter[InstanceType]]:
    """The most that can be cut beside those who stay, with so many GPUs in all."""
    used = [spots for spots in stays if spots]
    fresh = budget - len(used)
    if fresh < 0:
        return
    beside = [
        [()] if spots == WHOLE_GPU_LAYOUT else maximal_fillings(A100, PROFILES, spots)
        for spots in used
    ]
    choices = [*beside, *([gpu_geometries(A100, tuple(sorted(PROFILES)))] * fresh)]
    for chosen in product(*choices):
        yield Counter(
            {
                InstanceType(A100.name, profile): count
                for profile, count in sum((Counter(dict(way)) for way in chosen), Counter()).items()
            }
        )


def seated(wanted: Sequence[ServiceDemand], supply: Counter[InstanceType]) -> bool:
    if not wanted:
        return True
    service, *rest = wanted
    kinds = [kind for kind in sorted(service.throughput) if supply[kind]]
    ranges = [range(supply[kind] + 1) for kind in kinds]
    for counts in product(*ranges):
        taken = Counter(dict(zip(kinds, counts, strict=True)))
        if meets_demand(service, taken) and seated(rest, supply - taken):
            return True
    return False


@applies(60)
@settings(max_examples=80, deadline=None)
@given(services, changed, st.integers(0, 3**12))
def test_nobody_moves_where_that_is_possible_at_the_same_cost(
    found: list[ServiceDemand], factors: list[float], gone: int
) -> None:
    before = plan_layouts(found, ONE).gpus[:4]
    there = worn(before, gone)
    wanted = grown(found, factors)
    got = plan_layouts(wanted, ONE, there)
    best = cheapest_mix(wanted, ONE).cost
    assert got.cost == best
    assume(sum(len(gpu.slices) for gpu in there) <= 9 and best <= 4)
    asked = [one for one in wanted if one.required_replicas]
    assert without_a_move(there, asked, best) == (not got.changes.moves)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(0, 10_000), st.sampled_from([0.02, 0.3]), changed)
def test_a_new_plan_is_legal_serves_everybody_and_planned_again_changes_nothing(
    count: int, seed: int, scale: float, factors: list[float]
) -> None:
    asked = fleet(count, seed, [A100], scale)
    there = plan_layouts(asked, ONE).gpus
    wanted = [*grown(asked[:4], factors), *asked[4:]]
    got = plan_layouts(wanted, ONE, there)
    assert [layout_error(A100, gpu.layout) for gpu in got.gpus] == [None] * len(got.gpus)
    sitting = replicas_by_service(got.gpus)
    assert all(meets_demand(one, sitting.get(one.name, {})) for one in wanted)
    assert got.cost == cheapest_mix(wanted, ONE).cost
    assert plan_layouts(reversed(wanted), ONE, reversed(got.gpus)).changes.is_empty


def test_instances_that_serve_stay_although_a_new_fleet_would_look_otherwise() -> None:
    there = (a_gpu("one", "3g.40gb@0=chat", "2g.20gb@4=search"),)
    chat, search = a_service("chat", 3, {"3g.40gb": 3}), a_service("search", 2, {"2g.20gb": 2})
    code = a_service("code", 1, {"1g.10gb": 1})
    got = plan_layouts([chat, search, code], ONE, there)
    assert got.gpus == (a_gpu("one", "3g.40gb@0=chat", "2g.20gb@4=search", "1g.10gb@6=code"),)
    assert (got.changes.moves, len(got.changes.starts)) == ((), 1)


def test_a_move_that_saves_a_gpu_is_made_and_told() -> None:
    there = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two", "3g.40gb@4=search"))
    services = [a_service(name, 3, {"3g.40gb": 3}) for name in ("chat", "search")]
    got = plan_layouts(services, ONE, there)
    assert (got.gpus_in_use, len(got.changes.moves)) == (1, 1)


@pytest.mark.parametrize(("worth", "used", "moves"), [(0.5, 2, 0), (1.5, 1, 1)])
def test_a_saving_has_to_earn_its_moves(worth: float, used: int, moves: int) -> None:
    there = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two", "3g.40gb@4=search"))
    services = [a_service(name, 3, {"3g.40gb": 3}) for name in ("chat", "search")]
    got = plan_layouts(services, ONE, there, moves_per_gpu=worth)
    assert (got.gpus_in_use, len(got.changes.moves), got.bound) == (used, moves, 1)
    assert plan_layouts(services, ONE, got.gpus, moves_per_gpu=worth).changes.is_empty


def test_an_idle_slice_is_used_before_one_is_cut() -> None:
    there = (a_gpu("one", "1g.10gb@3", "1g.10gb@6=chat"),)
    got = plan_layouts([a_service("chat", 2, {"1g.10gb": 1})], ONE, there)
    assert (got.gpus[0], got.changes.created) == (
        a_gpu("one", "1g.10gb@3=chat", "1g.10gb@6=chat"),
        (),
    )


def test_who_is_no_longer_wanted_stops_and_its_gpu_is_free() -> None:
    got = plan_layouts([], ONE, (a_gpu("one", "3g.40gb@0=chat"),))
    assert (got.gpus_in_use, len(got.changes.stops), got.changes.destroyed) == (0, 1, ())


def test_added_gpus_get_names_that_are_free() -> None:
    there = (a_gpu("gpu-0002", "whole@0=chat"),)
    got = plan_layouts([a_service("chat", 3, {WHOLE_GPU: 1})], ONE, there)
    assert [gpu.name for gpu in got.gpus] == ["gpu-0001", "gpu-0002", "gpu-0003"]


def test_in_a_large_fleet_one_change_moves_little_and_costs_nearly_the_least() -> None:
    asked = fleet(60, 1, [A100], 0.6)
    there = plan_layouts(asked, ONE).gpus
    assert len(there) > 24
    wanted = [replace(asked[0], demand=asked[0].demand * 2), *asked[1:]]
    got = plan_layouts(wanted, ONE, there)
    sitting = replicas_by_service(got.gpus)
    assert all(meets_demand(one, sitting[one.name]) for one in wanted)
    assert got.gap <= 0.02
    assert len(got.changes.moves) <= 12


def test_boards_of_several_kinds_are_rearranged_together() -> None:
    h200 = gpu_models()["H200-141GB"]
    offers = [GpuOffer(gpu_model=A100, price=2), GpuOffer(gpu_model=h200, price=3)]
    wide = {InstanceType(A100.name, "3g.40gb"): 3.0, InstanceType(h200.name, "3g.71gb"): 6.0}
    chat = ServiceDemand(name="chat", demand=6, throughput=wide)
    there = plan_layouts([chat], offers).gpus
    got = plan_layouts([replace(chat, demand=18)], offers, there)
    assert (got.changes.moves, got.cost, got.bound) == ((), 5, 5)


@pytest.mark.parametrize("name", sorted(gpu_models()))
def test_what_fits_beside_slices_is_what_the_enumeration_finds(name: str) -> None:
    board = gpu_models()[name]
    profiles = tuple(cut.name for cut in board.profiles if not cut.has_media_engines)[:6]
    for kept in ((), (SlicePlacement(0, board.profiles[0].name),)):
        everything = enumerate_layouts(board, profiles, kept)
        beside = {tuple(spot for spot in one if spot not in kept) for one in everything}
        assert set(maximal_fillings(board, profiles, kept)) == set(
            maximal_geometries(distinct_geometries(beside))
        )


def test_media_engines_are_given_once_beside_slices_too() -> None:
    with_media = (SlicePlacement(0, "1g.10gb+me"),)
    assert all(
        "1g.10gb+me" not in dict(one)
        for one in maximal_fillings(A100, ("1g.10gb+me", "1g.10gb"), with_media)
    )


def test_a_gpu_is_reshaped_around_as_many_of_its_slices_as_can_stay() -> None:
    layout = tuple(SlicePlacement(start, "1g.10gb") for start in range(7))
    kept = [
        shape.retained for shape in possible_reshapes(A100, ("3g.40gb",), layout) if shape.added
    ]
    assert sorted(map(len, kept)) == [0, 3, 4]
