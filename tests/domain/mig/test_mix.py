"""Slices and GPUs of least cost: against every possibility, and against simpler planners."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mig_fleets import PLANNERS, fleet
from tessera.domain.hardware.gpu_layouts import layout_error
from tessera.domain.hardware.gpu_models import WHOLE_GPU, gpu_models
from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    meets_demand,
    replicas_needed,
)
from tessera.domain.mig.fleet import replicas_by_service
from tessera.domain.mig.gpu_building import build_gpus
from tessera.domain.mig.integer_program import IntegerProgram
from tessera.domain.mig.mix import cheapest_mix, feasible_mix, gpu_geometries
from tests.cases import full
from tests.mig_builders import A100, ONE, a_service
from tests.properties import examples

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", WHOLE_GPU)
H200 = gpu_models()["H200-141GB"]
# With prices, and speeds against the first.
BOARDS = {"A100-80GB": (179, 1.0), "H100-80GB": (299, 1.7), "A30-24GB": (61, 0.45)}
# Of the cost: less is not searched for.
PROVEN = 0.0005

speeds = st.dictionaries(
    st.sampled_from(PROFILES), st.sampled_from([1.0, 2.5, 3.0, 4.0, 7.5]), min_size=1
)
small = st.lists(
    st.builds(a_service, demand=st.sampled_from([0.0, 1.0, 4.0, 6.5, 9.0]), speeds=speeds)
    | st.builds(a_service, min_replicas=st.integers(1, 3), speeds=speeds),
    min_size=1,
    max_size=3,
).map(lambda found: [a_service(f"s{at}", like=one) for at, one in enumerate(found)])


def patterns(service: ServiceDemand, most: int) -> Iterator[Counter[InstanceType]]:
    """All instances that serve it, none of them needless."""
    kinds = sorted(service.throughput)
    for counts in product(range(most + 1), repeat=len(kinds)):
        instances = Counter(dict(zip(kinds, counts, strict=True)))
        if meets_demand(service, instances) and not any(
            meets_demand(service, instances - Counter([kind])) for kind in +instances
        ):
            yield +instances


def servable(services: Sequence[ServiceDemand], supply: Counter[InstanceType]) -> bool:
    if not services:
        return True
    return any(
        pattern <= supply and servable(services[1:], supply - pattern)
        for pattern in patterns(services[0], max(supply.values(), default=0))
    )


def fewest_gpus(services: Sequence[ServiceDemand], most: int) -> int | None:
    """By trying all combinations of geometries; None when so many GPUs are not enough."""
    if not any(service.required_replicas for service in services):
        return 0
    geometries = gpu_geometries(A100, PROFILES)
    for count in range(1, most + 1):
        for chosen in combinations_with_replacement(geometries, count):
            supply = Counter[InstanceType]()
            for geometry in chosen:
                supply.update(
                    {InstanceType(A100.name, profile): number for profile, number in geometry}
                )
            if servable(services, supply):
                return count
    return None


@settings(max_examples=examples(60), deadline=None)
@given(small)
def test_no_combination_of_geometries_needs_fewer_gpus(services: list[ServiceDemand]) -> None:
    mix = cheapest_mix(services, ONE)
    assert mix.bound <= mix.cost
    if mix.cost <= 3:
        assert fewest_gpus(services, 3) == mix.cost
    else:
        assert fewest_gpus(services, 2) is None


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0.02, 0.2, 1.0]))
def test_no_simpler_planner_needs_fewer_gpus(count: int, seed: int, scale: float) -> None:
    services = fleet(count, seed, [A100], scale)
    mix = cheapest_mix(services, ONE)
    assert {
        name: f(services, A100) for name, f in PLANNERS.items() if f(services, A100) < mix.cost
    } == {}


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_plans_are_legal_serve_everybody_and_do_not_depend_on_order(
    count: int, seed: int, random: object
) -> None:
    services = fleet(count, seed, [A100], 0.3)
    offers = [*ONE]
    mix = cheapest_mix(services, offers)
    gpus = build_gpus(mix, {A100.name: A100})
    assert [layout_error(A100, gpu.layout) for gpu in gpus] == [None] * len(gpus)
    assert len(gpus) == mix.cost
    replicas = replicas_by_service(gpus)
    assert all(meets_demand(service, replicas[service.name]) for service in services)
    random.shuffle(services)  # type: ignore[attr-defined] # hypothesis gives a Random
    assert build_gpus(cheapest_mix(services, offers), {A100.name: A100}) == gpus


def test_a_model_that_slices_slow_down_stays_on_whole_gpus() -> None:
    service = a_service(demand=100, speeds={"1g.10gb": 1, "3g.40gb": 10, WHOLE_GPU: 50})
    mix = cheapest_mix([service], ONE)
    assert mix.gpus == {(A100.name, ((WHOLE_GPU, 1),)): 2}


def test_a_slice_that_is_faster_than_a_larger_one_is_taken() -> None:
    service = a_service(demand=545, speeds={"3g.40gb": 545, "4g.40gb": 537})
    assert cheapest_mix([service], ONE).replicas == {
        "a": ((InstanceType(A100.name, "3g.40gb"), 1),)
    }


def test_services_share_a_gpu_whatever_their_slices() -> None:
    chat, search = a_service("chat", 4, {"4g.40gb": 4}), a_service("search", 3, {"3g.40gb": 3})
    assert cheapest_mix([chat, search], ONE).cost == 1


def test_services_that_fit_nowhere_are_named_and_the_others_are_served() -> None:
    chat, giant = a_service("chat", 1, {"1g.10gb": 1}), a_service("giant", 1, {})
    mix = cheapest_mix([chat, giant], ONE)
    assert (mix.unmet, mix.cost) == (("giant",), 1)


def test_min_replicas_are_kept_without_any_demand() -> None:
    mix = cheapest_mix([a_service(min_replicas=8, speeds={"1g.10gb": 1})], ONE)
    assert mix.cost == 2


def test_no_demand_needs_no_gpu() -> None:
    mix = cheapest_mix([a_service(demand=0, speeds={"1g.10gb": 1})], ONE)
    assert (mix.cost, mix.gap, mix.gpus) == (0, 0.0, {})


def test_the_cheaper_of_two_gpu_models_for_the_work_is_taken() -> None:
    service = ServiceDemand(
        name="a",
        demand=10,
        throughput={InstanceType(A100.name, WHOLE_GPU): 5, InstanceType(H200.name, WHOLE_GPU): 10},
    )
    dear = [GpuOffer(gpu_model=A100, price=2), GpuOffer(gpu_model=H200, price=5)]
    cheap = [GpuOffer(gpu_model=A100, price=2), GpuOffer(gpu_model=H200, price=3)]
    assert [cheapest_mix([service], offers).cost for offers in (dear, cheap)] == [4, 3]


def test_what_is_short_goes_to_the_more_services_and_the_rest_are_named() -> None:
    services = [a_service(name, 1, {WHOLE_GPU: 1}) for name in "abc"]
    mix = cheapest_mix(services, [GpuOffer(gpu_model=A100, price=1, max_gpus=2)])
    assert (mix.cost, len(mix.unmet), len(mix.replicas)) == (2, 1, 2)


@pytest.mark.parametrize("three", [30, 40])
def test_speeds_in_proportion_to_the_slice_are_planned_to_the_optimum_too(three: int) -> None:
    """All slices cost the same for the work, so that many solutions are equally good."""
    speeds = {"1g.10gb": 10, "2g.20gb": 20, "3g.40gb": three, "4g.40gb": 40, "7g.80gb": 2 * three}
    services = [
        a_service(f"s{at:03}", 7.3 * (at % 90 + 1), speeds, min_replicas=1) for at in range(300)
    ]
    mix = cheapest_mix(services, ONE)
    assert (mix.gap, len(mix.replicas)) == (0, 300)


def single_type_services(seed: int) -> list[ServiceDemand]:
    """Build services with a single instance type each, on three GPU models."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    services = []
    for index in range(rng.randint(2, 9)):
        base, least = rng.uniform(5, 60), rng.choice([5, 10, 20, 40])
        throughput = {
            InstanceType(name, profile.name): round(
                base * faster * profile.compute_slices ** rng.uniform(0.6, 1.1)
            )
            for name, (_, faster) in BOARDS.items()
            for profile in gpu_models()[name].profiles
            if not profile.has_media_engines and float(profile.name.split(".")[1][:-2]) >= least
        }
        demand, min_replicas = rng.uniform(5, 500), rng.randint(0, 3)
        services.append(
            ServiceDemand(
                name=f"s{index}",
                demand=demand,
                min_replicas=min_replicas,
                throughput=throughput,
                max_types=1,
            )
        )
    return services


def least_cost(services: Sequence[ServiceDemand], offers: Sequence[GpuOffer]) -> int:
    """By one programme with a choice for every service and kind, solved to the end."""
    program, kinds = (
        IntegerProgram(),
        sorted({kind for service in services for kind in service.throughput}),
    )
    for _ in kinds:
        program.add_row(0)
    for _ in services:
        program.add_row(1, 1)
    for offer in offers:
        name = offer.gpu_model.name
        profiles = tuple(kind.profile for kind in kinds if kind.gpu_model == name)
        for geometry in gpu_geometries(offer.gpu_model, profiles):
            taken = [
                (kinds.index(InstanceType(name, profile)), count) for profile, count in geometry
            ]
            program.add_column(offer.price, taken)
    for index, service in enumerate(services):
        for kind, speed in service.throughput.items():
            row = kinds.index(kind), -replicas_needed(service, speed)
            program.add_column(0, [row, (len(kinds) + index, 1)])
    solution = program.solve_integer(10**6, step=1)
    assert solution
    return round(solution.value)


@pytest.mark.parametrize("seed", [*range(3), *full(*range(3, 12))])
def test_services_of_one_kind_each_are_planned_to_the_proven_optimum(seed: int) -> None:
    services = single_type_services(seed)
    offers = [
        GpuOffer(gpu_model=gpu_models()[name], price=price) for name, (price, _) in BOARDS.items()
    ]
    optimum, best = cheapest_mix(services, offers), least_cost(services, offers)
    assert optimum.bound <= best <= optimum.cost
    assert optimum.gap <= PROVEN


@pytest.mark.parametrize("seed", [*range(2), *full(*range(2, 6))])
def test_some_mix_is_found_where_there_is_room_for_all_and_only_there(seed: int) -> None:
    services = single_type_services(seed)
    free = [
        GpuOffer(gpu_model=gpu_models()[name], price=price) for name, (price, _) in BOARDS.items()
    ]
    used = Counter[str]()
    for (board, _), count in cheapest_mix(services, free).gpus.items():
        used[board] += count
    enough = [replace(offer, max_gpus=used[offer.gpu_model.name]) for offer in free]
    mix = feasible_mix(services, enough)
    assert mix is not None
    assert (mix.unmet, len(mix.replicas)) == ((), len(services))
    dearest = max(used, key=lambda name: BOARDS[name][0])
    fewer = [
        replace(offer, max_gpus=used[offer.gpu_model.name] - (offer.gpu_model.name == dearest))
        for offer in free
    ]
    short = cheapest_mix(services, fewer).unmet
    assert (feasible_mix(services, fewer) is None) == bool(short)


def test_gpus_without_a_limit_may_cost_more_than_all_that_have_one() -> None:
    throughput = {InstanceType(H200.name, WHOLE_GPU): 1}
    dear = ServiceDemand(name="dear", demand=5, throughput=throughput, max_types=1)
    small = replace(a_service("small", 1, {"1g.10gb": 1}), max_types=1)
    mix = feasible_mix(
        [dear, small],
        [GpuOffer(gpu_model=A100, price=1, max_gpus=1), GpuOffer(gpu_model=H200, price=3)],
    )
    assert mix is not None
    assert (mix.cost, mix.unmet) == (16, ())


@pytest.mark.parametrize("seed", [0, *full(1, 2)])
def test_500_services_are_planned_to_the_optimum(seed: int) -> None:
    mix = cheapest_mix(fleet(500, seed, [A100]), ONE)
    assert mix.gap <= 0.005
    assert mix.cost > 900
