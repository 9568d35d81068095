"""Instances of a service on different GPUs and nodes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mig_fleets import fleet
from tessera.domain.mig.demand import GpuOffer, meets_demand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.layouts import layout_error
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, ONE, a_gpu, a_service

PAIRS = (GpuOffer(gpu_model=A100, price=1, gpus_per_node=2),)


def areas(gpus: Sequence[FleetGpu]) -> dict[str, tuple[int, int]]:
    """On how many GPUs and nodes each service stands."""
    names, nodes = defaultdict(set), defaultdict(set)
    for gpu in gpus:
        for one in gpu.slices:
            names[one.service].add(gpu.name)
            nodes[one.service].add(gpu.node)
    return {str(name): (len(names[name]), len(nodes[name])) for name in names}


def test_instances_that_one_gpu_could_hold_stand_on_as_many_as_asked_for() -> None:
    chat = replace(a_service("chat", 3, {"1g.10gb": 1}), min_gpus=3)
    got = plan_layouts([chat], ONE)
    assert (areas(got.gpus)["chat"][0], got.gpus_in_use, got.bound, got.spread_violations) == (
        3,
        3,
        1,
        (),
    )


def test_services_change_seats_before_a_gpu_is_added() -> None:
    services = [a_service(name, 2, {"3g.40gb": 1}) for name in ("a", "b")]
    there = (a_gpu("one", "3g.40gb@0=a", "3g.40gb@4=a"), a_gpu("two", "3g.40gb@0=b", "3g.40gb@4=b"))
    got = plan_layouts([replace(one, min_gpus=2) for one in services], ONE, there)
    assert (got.gpus_in_use, areas(got.gpus)["a"][0], areas(got.gpus)["b"][0]) == (2, 2, 2)
    assert len(got.changes.moves) == 2


def test_a_second_node_is_taken_when_one_would_do() -> None:
    chat = replace(a_service("chat", 2, {"1g.10gb": 1}), min_nodes=2)
    got = plan_layouts([chat], PAIRS)
    assert (areas(got.gpus)["chat"], got.gpus_in_use) == ((2, 2), 2)


def test_the_nodes_that_there_are_count() -> None:
    there = (
        replace(a_gpu("one", "3g.40gb@0=a", "3g.40gb@4=a"), node="left"),
        replace(a_gpu("two", "3g.40gb@0=b", "3g.40gb@4=b"), node="left"),
        replace(a_gpu("three", "3g.40gb@0=c", "3g.40gb@4=c"), node="right"),
    )
    services = [a_service(name, 2, {"3g.40gb": 1}) for name in "abc"]
    got = plan_layouts([replace(services[0], min_nodes=2), *services[1:]], PAIRS, there)
    assert (areas(got.gpus)["a"], got.gpus_in_use, len(got.changes.moves)) == ((2, 2), 3, 2)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 999),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=12, max_size=12),
)
def test_whoever_asks_is_spread_and_planned_again_nothing_changes(
    number: int, seed: int, asked: list[tuple[int, int]]
) -> None:
    services = [
        replace(one, min_gpus=gpus, min_nodes=nodes)
        for one, (gpus, nodes) in zip(fleet(number, seed, [A100], 0.2), asked, strict=False)
    ]
    got = plan_layouts(services, PAIRS)
    assert [layout_error(A100, gpu.layout) for gpu in got.gpus] == [None] * len(got.gpus)
    sitting, found = replicas_by_service(got.gpus), areas(got.gpus)
    for one in services:
        assert meets_demand(one, sitting[one.name])
        assert found[one.name][0] >= one.min_gpus
        assert found[one.name][1] >= one.min_nodes or one.min_nodes == 1
    assert got.spread_violations == ()
    assert plan_layouts(services, PAIRS, got.gpus).changes.is_empty
