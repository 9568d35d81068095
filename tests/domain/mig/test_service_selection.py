"""Services of one kind, GPUs that are there and no more, slices in other hands."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.hardware.gpu_layouts import SlicePlacement, layout_error
from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    meets_demand,
    replicas_needed,
)
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.layout_changes import replica_moves
from tessera.domain.mig.mix import cheapest_mix, gpu_geometries
from tessera.domain.mig.pattern_pricing import cheapest_pattern
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service
from tests.properties import examples

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")

speeds = st.dictionaries(
    st.sampled_from(PROFILES), st.sampled_from([1.0, 2.5, 3.0, 4.0, 7.5]), min_size=1
)
alike = st.lists(
    st.builds(
        a_service,
        demand=st.sampled_from([0.5, 1.0, 4.0, 6.5, 9.0]),
        speeds=speeds,
        min_replicas=st.integers(0, 2),
    ),
    min_size=1,
    max_size=3,
).map(lambda found: [replace(one, name=f"s{at}", max_types=1) for at, one in enumerate(found)])


def limited(most: int, **fields: bool) -> list[GpuOffer]:
    return [GpuOffer(gpu_model=A100, price=1, max_gpus=most, **fields)]


def empty(count: int) -> list[FleetGpu]:
    return [a_gpu(f"gpu-{index}") for index in range(count)]


def fewest_gpus(services: list[ServiceDemand], most: int) -> int | None:
    """GPUs for any choice of one kind for each; None when so many are not enough."""
    best = None
    for kinds in product(*(sorted(service.throughput) for service in services)):
        supply = Counter[str]()
        for service, kind in zip(services, kinds, strict=True):
            supply[kind.profile] += replicas_needed(service, service.throughput[kind])
        count = next((n for n in range(1, most + 1) if is_possible(supply, n)), None)
        best = count if best is None or (count is not None and count < best) else best
    return best


def is_possible(supply: Counter[str], gpus: int) -> bool:
    """Tell whether so many GPUs can be partitioned into these slices."""
    if not +supply:
        return True
    if not gpus:
        return False
    return any(
        is_possible(rest, gpus - 1)
        for geometry in gpu_geometries(A100, PROFILES)
        if (rest := +(supply - Counter(dict(geometry)))) != +supply
    )


def a_single_type_service(
    name: str, demand: float, speeds: dict[str, float], floor: int = 0
) -> ServiceDemand:
    return replace(a_service(name, demand, speeds, floor), max_types=1)


@settings(max_examples=examples(60), deadline=None)
@given(alike)
def test_no_other_choice_of_kinds_needs_fewer_gpus(services: list[ServiceDemand]) -> None:
    mix = cheapest_mix(services, ONE)
    assert all(len(pattern) == 1 for pattern in mix.replicas.values())
    assert mix.bound <= mix.cost
    best = fewest_gpus(services, 3)
    assert mix.cost == best if best is not None else mix.cost > 3


@settings(max_examples=examples(60), deadline=None)
@given(alike, alike, st.sampled_from([0.5, 2.0, 6.0]), st.booleans())
def test_plans_of_one_type_are_legal_serve_everybody_and_are_not_repeated(
    before: list[ServiceDemand], wanted: list[ServiceDemand], worth: float, sibling_safe: bool
) -> None:
    offers = limited(30, sibling_safe=sibling_safe)
    existing = plan_layouts(before, offers, empty(30), moves_per_gpu=worth).gpus
    plan = plan_layouts(wanted, offers, existing, moves_per_gpu=worth)
    assert [layout_error(A100, gpu.layout) for gpu in plan.gpus] == [None] * 30
    assert plan.unmet == ()
    replicas = replicas_by_service(plan.gpus)
    for service in wanted:
        assert len(replicas[service.name]) == 1
        assert meets_demand(service, replicas[service.name])
    again = plan_layouts(reversed(wanted), offers, reversed(plan.gpus), moves_per_gpu=worth)
    assert again.gpus == plan.gpus


def test_a_service_keeps_its_kind_unless_another_saves_enough() -> None:
    chat = replace(a_service("chat", 4, {"1g.10gb": 1, "7g.80gb": 4}), max_types=1)
    existing = [a_gpu("one", "7g.80gb@0=chat"), a_gpu("two", "1g.10gb@0=code"), a_gpu("three")]
    code = replace(a_service("code", 1, {"1g.10gb": 1}), max_types=1)
    plans = [
        plan_layouts([chat, code], limited(3), existing, moves_per_gpu=worth)
        for worth in (0.5, 6.0)
    ]
    assert [plan.gpus_in_use for plan in plans] == [2, 1]
    kinds = [next(iter(replicas_by_service(plan.gpus)["chat"])).profile for plan in plans]
    assert kinds == ["7g.80gb", "1g.10gb"]


def test_what_saves_no_gpu_is_left_as_it_is() -> None:
    """Here an instance that is not needed any more, on a GPU that stays in use."""
    existing = plan_layouts(
        [
            a_single_type_service("chat", 0.5, {"2g.20gb": 1}),
            a_single_type_service("code", 6.5, {"1g.10gb": 2.5}),
        ],
        limited(30),
        empty(30),
    ).gpus
    wanted = [
        a_single_type_service("chat", 6.5, {"1g.10gb": 2.5}),
        a_single_type_service("code", 0.5, {"1g.10gb": 1}, 2),
    ]
    for sibling_safe in (True, False):
        offers = limited(30, sibling_safe=sibling_safe)
        plan = plan_layouts(wanted, offers, existing, moves_per_gpu=0.5)
        assert plan_layouts(wanted, offers, plan.gpus, moves_per_gpu=0.5).gpus == plan.gpus


def test_instances_on_two_kinds_end_on_one() -> None:
    chat = replace(a_service("chat", 3, {"1g.10gb": 1, "3g.40gb": 1}), max_types=1)
    existing = [a_gpu("one", "1g.10gb@0=chat", "1g.10gb@1=chat", "3g.40gb@4=chat")]
    plan = plan_layouts([chat], limited(1), existing, moves_per_gpu=6)
    assert replicas_by_service(plan.gpus)["chat"] == Counter(
        {InstanceType(A100.name, "1g.10gb"): 3}
    )


def test_nothing_is_created_beside_a_slice_in_use_where_the_whole_gpu_is_rebuilt() -> None:
    existing = (a_gpu("one", "3g.40gb@4=chat"), a_gpu("two"))
    chat, code = a_service("chat", 3, {"3g.40gb": 3}), a_service("code", 1, {"1g.10gb": 1})
    sibling_plan = plan_layouts([chat, code], limited(2), existing, moves_per_gpu=0.5)
    separate_plan = plan_layouts(
        [chat, code], limited(2, sibling_safe=False), existing, moves_per_gpu=0.5
    )
    assert (sibling_plan.gpus_in_use, separate_plan.gpus_in_use) == (1, 2)
    assert separate_plan.gpus[0] == existing[0]
    moved_plan = plan_layouts(
        [chat, code], limited(2, sibling_safe=False), existing, moves_per_gpu=6
    )
    assert (moved_plan.gpus_in_use, len(replica_moves(existing, moved_plan.gpus))) == (1, 1)


def test_slices_in_foreign_use_stay_and_no_service_gets_them() -> None:
    in_foreign_use = replace(
        a_gpu("one", "3g.40gb@0", "1g.10gb@4"), foreign_slices=(SlicePlacement(0, "3g.40gb"),)
    )
    wanted = a_service("chat", 3, {"3g.40gb": 1})
    plan = plan_layouts([wanted], limited(1), (in_foreign_use, a_gpu("two")), moves_per_gpu=6)
    assert [fleet_slice.service for fleet_slice in plan.gpus[0].slices] == [None, "chat"]
    assert (plan.gpus[0].slices[0].placement, plan.gpus[0].foreign_slices) == (
        SlicePlacement(0, "3g.40gb"),
        in_foreign_use.foreign_slices,
    )
    assert (plan.unmet, plan.cost) == ((), 1)


def test_what_is_paid_anyway_is_filled_first() -> None:
    in_foreign_use = replace(
        a_gpu("one", "3g.40gb@0"), foreign_slices=(SlicePlacement(0, "3g.40gb"),)
    )
    plan = plan_layouts(
        [a_service("chat", 1, {"3g.40gb": 1})], limited(1), (in_foreign_use, a_gpu("two"))
    )
    assert (plan.cost, plan.bound) == (0, 0)
    assert plan.gpus[1] == a_gpu("two")


def test_a_locked_gpu_keeps_its_layout_and_its_idle_slices_are_used() -> None:
    locked = replace(a_gpu("one", "2g.20gb@0", "1g.10gb@2=chat"), locked=True)
    wanted = a_service("chat", 3, {"1g.10gb": 1, "2g.20gb": 2})
    plan = plan_layouts([wanted], limited(0), (locked,), moves_per_gpu=6)
    assert plan.gpus == (replace(a_gpu("one", "2g.20gb@0=chat", "1g.10gb@2=chat"), locked=True),)


def test_a_node_that_has_to_be_emptied_is_left_alone_where_another_is_free() -> None:
    def on(node: str, gpu: FleetGpu) -> FleetGpu:
        return replace(gpu, node=node)

    existing = (
        on("a", a_gpu("a-0", "3g.40gb@0=chat", "3g.40gb@4=chat")),
        on("a", a_gpu("a-1")),
        on("b", a_gpu("b-0")),
    )
    wanted = [a_service("chat", 2, {"3g.40gb": 1}), a_service("code", 1, {"1g.10gb": 1})]
    offers = limited(3, sibling_safe=False, drains_node=True)
    plan = plan_layouts(wanted, offers, existing, moves_per_gpu=6)
    assert [gpu.name for gpu in plan.gpus if gpu.used] == ["a-0", "b-0"]
    assert replica_moves(existing, plan.gpus) == ()


@pytest.mark.parametrize("one_kind", [False, True])
def test_what_does_not_fit_is_served_as_far_as_possible_large_minimums_first(
    one_kind: bool,
) -> None:
    def asking(name: str, demand: float, min_replicas: int) -> ServiceDemand:
        return replace(
            a_service(name, demand, {"7g.80gb": 1}, min_replicas), max_types=1 if one_kind else None
        )

    services = [asking("a", 3, 1), asking("b", 3, 2), asking("c", 1, 1)]
    plan = plan_layouts(services, limited(5), empty(5), moves_per_gpu=6)
    counts = {name: kinds.total() for name, kinds in replicas_by_service(plan.gpus).items()}
    assert (counts, plan.unmet) == ({"a": 1, "b": 3, "c": 1}, ("a",))
    fewer = plan_layouts(services, limited(3), empty(3), moves_per_gpu=6)
    counts = {name: kinds.total() for name, kinds in replicas_by_service(fewer.gpus).items()}
    assert (counts["b"], fewer.unmet) == (2, ("a", "b", "c")[: len(fewer.unmet)])


def test_limits_hold_when_a_fleet_is_planned_again() -> None:
    existing = plan_layouts([a_service("a", 2, {WHOLE_GPU: 1})], limited(3)).gpus
    plan = plan_layouts([a_service("a", 5, {WHOLE_GPU: 1})], limited(3), existing, moves_per_gpu=6)
    assert (len(plan.gpus), plan.gpus_in_use, plan.unmet) == (3, 3, ("a",))


def test_unlimited_offers_serve_what_limited_ones_cannot() -> None:
    other = replace(A100, name="other")
    offers = [GpuOffer(gpu_model=A100, price=1, max_gpus=1), GpuOffer(gpu_model=other, price=50)]
    both = {InstanceType(A100.name, WHOLE_GPU): 1.0, InstanceType("other", WHOLE_GPU): 1.0}
    mix = cheapest_mix([ServiceDemand(name="a", demand=3, throughput=both, max_types=1)], offers)
    assert (mix.unmet, mix.cost) == ((), 150)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.builds(
        a_service,
        name=st.just("chat"),
        demand=st.sampled_from([0.0, 1.0, 6.5, 17.0]),
        speeds=speeds,
        min_replicas=st.integers(1, 4),
    ),
    st.lists(st.integers(1, 9), min_size=len(PROFILES), max_size=len(PROFILES)),
)
def test_two_types_cost_what_the_cheapest_mix_of_any_two_costs(
    service: ServiceDemand, prices: list[int]
) -> None:
    priced = {
        InstanceType(A100.name, profile): float(price)
        for profile, price in zip(PROFILES, prices, strict=True)
    }
    best = min(
        cheapest_pattern(restrict(service, pair), priced).cost
        for pair in combinations_with_replacement(service.throughput, 2)
    )
    pattern = cheapest_pattern(replace(service, max_types=2), priced)
    assert pattern.cost == pytest.approx(best)
    assert meets_demand(service, dict(pattern.pattern))


def restrict(service: ServiceDemand, kinds: Iterable[InstanceType]) -> ServiceDemand:
    return replace(service, throughput={kind: service.throughput[kind] for kind in kinds})


@pytest.mark.parametrize(
    ("demand", "profiles", "unmet"),
    [
        (3, {"1g.10gb", "2g.20gb"}, False),
        (5, {"2g.20gb", "3g.40gb"}, False),
        (6, {"2g.20gb", "3g.40gb"}, True),
    ],
)
def test_two_types_stay_as_long_as_they_serve_all(
    demand: float, profiles: set[str], unmet: bool
) -> None:
    gpu = replace(a_gpu("one", "2g.20gb@0=chat", "1g.10gb@2=chat", "3g.40gb@4"), locked=True)
    small, medium, large = (InstanceType(A100.name, profile) for profile in PROFILES[:3])
    chat = ServiceDemand(
        name="chat",
        demand=demand,
        throughput={small: 1, medium: 2, large: 3},
        max_types=2,
        may_mix=True,
        kept_types=(medium, small),
    )
    plan = plan_layouts([chat], limited(0), (gpu,), moves_per_gpu=6)
    used = {part.profile for planned in plan.gpus for part in planned.slices if part.service}
    assert (used, bool(plan.unmet)) == (profiles, unmet)
