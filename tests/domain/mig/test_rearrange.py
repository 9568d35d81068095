"""From one layout to the next: what may stay stays, against every possibility on small fleets."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mig_fleets import fleet
from tessera.domain.hardware.gpu_layouts import (
    WHOLE_GPU_LAYOUT,
    Layout,
    SlicePlacement,
    layout_error,
    maximal_geometries,
)
from tessera.domain.hardware.gpu_models import WHOLE_GPU, gpu_models
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, meets_demand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.geometries import maximal_fillings, possible_reshapes
from tessera.domain.mig.layout_changes import replica_moves
from tessera.domain.mig.mix import cheapest_mix, gpu_geometries
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service
from tests.mig_oracles import distinct_geometries, enumerate_layouts
from tests.properties import applies, examples

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


def scaled(services: Sequence[ServiceDemand], factors: Sequence[float]) -> list[ServiceDemand]:
    return [
        replace(service, demand=service.demand * factor)
        for service, factor in zip(services, factors, strict=False)
    ]


def with_ended_instances(gpus: Sequence[FleetGpu], pattern: int) -> tuple[FleetGpu, ...]:
    """Some instances ended, so that layouts have holes that no planner would leave."""
    return tuple(
        replace(
            gpu,
            slices=tuple(
                fleet_slice
                for index, fleet_slice in enumerate(gpu.slices)
                if (pattern >> (index + 3 * number)) % 3
            ),
        )
        for number, gpu in enumerate(gpus)
    )


def is_possible_without_moves(
    gpus: Sequence[FleetGpu], wanted: Sequence[ServiceDemand], budget: int
) -> bool:
    """Tell whether any choice of retained instances and new slices moves no replica."""
    used_slices = [
        (gpu_index, fleet_slice)
        for gpu_index, gpu in enumerate(gpus)
        for fleet_slice in gpu.slices
        if fleet_slice.service
    ]
    named = {service.name: service for service in wanted}
    for size in range(len(used_slices), -1, -1):
        for retained in combinations(used_slices, size):
            stopped = Counter(fleet_slice.service for _, fleet_slice in used_slices) - Counter(
                fleet_slice.service for _, fleet_slice in retained
            )
            retained_layouts = [
                tuple(
                    sorted(
                        fleet_slice.placement
                        for other_index, fleet_slice in retained
                        if other_index == gpu_index
                    )
                )
                for gpu_index in range(len(gpus))
            ]
            retained_types = Counter(
                (fleet_slice.service, InstanceType(A100.name, fleet_slice.profile))
                for _, fleet_slice in retained
            )
            left = [
                remainder
                for name, service in named.items()
                if (remainder := remaining(service, retained_types)) is not None
            ]
            if any(service.name in stopped for service in left):
                continue  # it would stop an instance and start another one
            if any(fleet_slice.service not in named for _, fleet_slice in retained):
                continue
            if any(can_serve(left, supply) for supply in supplies(retained_layouts, budget)):
                return True
    return False


def remaining(
    service: ServiceDemand, retained_types: Counter[tuple[str | None, InstanceType]]
) -> ServiceDemand | None:
    """What is left to serve; None for nothing."""
    own_types = {
        kind: count for (name, kind), count in retained_types.items() if name == service.name
    }
    if any(kind not in service.throughput for kind in own_types):
        own_types = {kind: count for kind, count in own_types.items() if kind in service.throughput}
    if meets_demand(service, own_types):
        return None
    served = sum(service.throughput[kind] * count for kind, count in own_types.items())
    return replace(service, demand=service.demand - served)


def supplies(stays: Sequence[Layout], budget: int) -> Iterator[Counter[InstanceType]]:
    """Yield the maximal slices beside the retained ones, with so many GPUs in all."""
    used = [placements for placements in stays if placements]
    fresh = budget - len(used)
    if fresh < 0:
        return
    beside = [
        [()] if placements == WHOLE_GPU_LAYOUT else maximal_fillings(A100, PROFILES, placements)
        for placements in used
    ]
    choices = [*beside, *([gpu_geometries(A100, tuple(sorted(PROFILES)))] * fresh)]
    for chosen in product(*choices):
        yield Counter(
            {
                InstanceType(A100.name, profile): count
                for profile, count in sum(
                    (Counter(dict(geometry)) for geometry in chosen), Counter()
                ).items()
            }
        )


def can_serve(wanted: Sequence[ServiceDemand], supply: Counter[InstanceType]) -> bool:
    if not wanted:
        return True
    service, *remainder = wanted
    kinds = [kind for kind in sorted(service.throughput) if supply[kind]]
    ranges = [range(supply[kind] + 1) for kind in kinds]
    for counts in product(*ranges):
        taken = Counter(dict(zip(kinds, counts, strict=True)))
        if meets_demand(service, taken) and can_serve(remainder, supply - taken):
            return True
    return False


@applies(60)
@settings(max_examples=examples(80), deadline=None)
@given(services, changed, st.integers(0, 3**12))
def test_no_replica_moves_where_that_is_possible_at_the_same_cost(
    demands: list[ServiceDemand], factors: list[float], pattern: int
) -> None:
    before = plan_layouts(demands, ONE).gpus[:4]
    existing = with_ended_instances(before, pattern)
    wanted = scaled(demands, factors)
    plan = plan_layouts(wanted, ONE, existing)
    best = cheapest_mix(wanted, ONE).cost
    assert plan.cost == best
    assume(sum(len(gpu.slices) for gpu in existing) <= 9 and best <= 4)
    active = [service for service in wanted if service.required_replicas]
    assert is_possible_without_moves(existing, active, best) == (
        not replica_moves(existing, plan.gpus)
    )


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 14), st.integers(0, 10_000), st.sampled_from([0.02, 0.3]), changed)
def test_a_new_plan_is_legal_serves_everybody_and_planned_again_changes_nothing(
    count: int, seed: int, scale: float, factors: list[float]
) -> None:
    demands = fleet(count, seed, [A100], scale)
    existing = plan_layouts(demands, ONE).gpus
    wanted = [*scaled(demands[:4], factors), *demands[4:]]
    plan = plan_layouts(wanted, ONE, existing)
    assert [layout_error(A100, gpu.layout) for gpu in plan.gpus] == [None] * len(plan.gpus)
    replicas = replicas_by_service(plan.gpus)
    assert all(meets_demand(service, replicas.get(service.name, {})) for service in wanted)
    assert plan.cost == cheapest_mix(wanted, ONE).cost
    assert plan_layouts(reversed(wanted), ONE, reversed(plan.gpus)).gpus == plan.gpus


def test_instances_that_serve_stay_although_a_new_fleet_would_look_otherwise() -> None:
    existing = (a_gpu("one", "3g.40gb@0=chat", "2g.20gb@4=search"),)
    chat, search = a_service("chat", 3, {"3g.40gb": 3}), a_service("search", 2, {"2g.20gb": 2})
    code = a_service("code", 1, {"1g.10gb": 1})
    plan = plan_layouts([chat, search, code], ONE, existing)
    assert plan.gpus == (a_gpu("one", "3g.40gb@0=chat", "2g.20gb@4=search", "1g.10gb@6=code"),)
    assert replica_moves(existing, plan.gpus) == ()


def test_a_move_that_saves_a_gpu_is_made_and_reported() -> None:
    existing = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two", "3g.40gb@4=search"))
    services = [a_service(name, 3, {"3g.40gb": 3}) for name in ("chat", "search")]
    plan = plan_layouts(services, ONE, existing)
    assert (plan.gpus_in_use, len(replica_moves(existing, plan.gpus))) == (1, 1)


@pytest.mark.parametrize(("worth", "used", "moved"), [(0.5, 2, 0), (1.5, 1, 1)])
def test_a_saving_has_to_earn_its_moves(worth: float, used: int, moved: int) -> None:
    existing = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two", "3g.40gb@4=search"))
    services = [a_service(name, 3, {"3g.40gb": 3}) for name in ("chat", "search")]
    plan = plan_layouts(services, ONE, existing, moves_per_gpu=worth)
    assert (plan.gpus_in_use, len(replica_moves(existing, plan.gpus)), plan.bound) == (
        used,
        moved,
        1,
    )
    assert plan_layouts(services, ONE, plan.gpus, moves_per_gpu=worth).gpus == plan.gpus


def test_an_idle_slice_is_used_before_a_new_one_is_created() -> None:
    existing = (a_gpu("one", "1g.10gb@3", "1g.10gb@6=chat"),)
    plan = plan_layouts([a_service("chat", 2, {"1g.10gb": 1})], ONE, existing)
    assert plan.gpus == (a_gpu("one", "1g.10gb@3=chat", "1g.10gb@6=chat"),)


def test_a_service_without_demand_stops_and_its_gpu_is_free() -> None:
    plan = plan_layouts([], ONE, (a_gpu("one", "3g.40gb@0=chat"),))
    assert plan.gpus == (a_gpu("one", "3g.40gb@0"),)


def test_added_gpus_get_names_that_are_free() -> None:
    existing = (a_gpu("gpu-0002", "whole@0=chat"),)
    plan = plan_layouts([a_service("chat", 3, {WHOLE_GPU: 1})], ONE, existing)
    assert [gpu.name for gpu in plan.gpus] == ["gpu-0001", "gpu-0002", "gpu-0003"]


def test_in_a_large_fleet_one_change_moves_little_and_costs_nearly_the_least() -> None:
    demands = fleet(60, 1, [A100], 0.6)
    existing = plan_layouts(demands, ONE).gpus
    assert len(existing) > 24
    wanted = [replace(demands[0], demand=demands[0].demand * 2), *demands[1:]]
    plan = plan_layouts(wanted, ONE, existing)
    replicas = replicas_by_service(plan.gpus)
    assert all(meets_demand(service, replicas[service.name]) for service in wanted)
    assert plan.gap <= 0.02
    assert len(replica_moves(existing, plan.gpus)) <= 12


def test_gpus_of_several_models_are_rearranged_together() -> None:
    h200 = gpu_models()["H200-141GB"]
    offers = [GpuOffer(gpu_model=A100, price=2), GpuOffer(gpu_model=h200, price=3)]
    wide = {InstanceType(A100.name, "3g.40gb"): 3.0, InstanceType(h200.name, "3g.71gb"): 6.0}
    chat = ServiceDemand(name="chat", demand=6, throughput=wide)
    existing = plan_layouts([chat], offers).gpus
    plan = plan_layouts([replace(chat, demand=18)], offers, existing)
    assert (replica_moves(existing, plan.gpus), plan.cost, plan.bound) == ((), 5, 5)


@pytest.mark.parametrize("name", sorted(gpu_models()))
def test_what_fits_beside_slices_is_what_the_enumeration_finds(name: str) -> None:
    model = gpu_models()[name]
    profiles = tuple(profile.name for profile in model.profiles if not profile.has_media_engines)[
        :6
    ]
    for existing in ((), (SlicePlacement(0, model.profiles[0].name),)):
        everything = enumerate_layouts(model, profiles, existing)
        beside = {
            tuple(placement for placement in candidate if placement not in existing)
            for candidate in everything
        }
        assert set(maximal_fillings(model, profiles, existing)) == set(
            maximal_geometries(distinct_geometries(beside))
        )


def test_media_engines_are_given_once_beside_slices_too() -> None:
    with_media = (SlicePlacement(0, "1g.10gb+me"),)
    assert all(
        "1g.10gb+me" not in dict(filling)
        for filling in maximal_fillings(A100, ("1g.10gb+me", "1g.10gb"), with_media)
    )


def test_a_gpu_is_reshaped_around_as_many_of_its_slices_as_can_stay() -> None:
    layout = tuple(SlicePlacement(start, "1g.10gb") for start in range(7))
    retained = [
        shape.retained for shape in possible_reshapes(A100, ("3g.40gb",), layout) if shape.added
    ]
    assert sorted(map(len, retained)) == [0, 3, 4]
