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


def failure_domains(gpus: Sequence[FleetGpu]) -> dict[str, tuple[int, int]]:
    """On how many GPUs and nodes each service stands."""
    names, nodes = defaultdict(set), defaultdict(set)
    for gpu in gpus:
        for fleet_slice in gpu.slices:
            names[fleet_slice.service].add(gpu.name)
            nodes[fleet_slice.service].add(gpu.node)
    return {str(name): (len(names[name]), len(nodes[name])) for name in names}


def test_instances_that_fit_on_one_gpu_are_spread_over_as_many_as_requested() -> None:
    chat = replace(a_service("chat", 3, {"1g.10gb": 1}), min_gpus=3)
    plan = plan_layouts([chat], ONE)
    assert (
        failure_domains(plan.gpus)["chat"][0],
        plan.gpus_in_use,
        plan.bound,
        plan.spread_violations,
    ) == (
        3,
        3,
        1,
        (),
    )


def test_services_move_before_a_gpu_is_added() -> None:
    services = [a_service(name, 2, {"3g.40gb": 1}) for name in ("a", "b")]
    gpus = (a_gpu("one", "3g.40gb@0=a", "3g.40gb@4=a"), a_gpu("two", "3g.40gb@0=b", "3g.40gb@4=b"))
    plan = plan_layouts([replace(service, min_gpus=2) for service in services], ONE, gpus)
    assert (
        plan.gpus_in_use,
        failure_domains(plan.gpus)["a"][0],
        failure_domains(plan.gpus)["b"][0],
    ) == (2, 2, 2)
    assert len(plan.changes.moves) == 2


def test_a_second_node_is_taken_when_one_would_do() -> None:
    chat = replace(a_service("chat", 2, {"1g.10gb": 1}), min_nodes=2)
    plan = plan_layouts([chat], PAIRS)
    assert (failure_domains(plan.gpus)["chat"], plan.gpus_in_use) == ((2, 2), 2)


def test_the_nodes_that_there_are_count() -> None:
    gpus = (
        replace(a_gpu("one", "3g.40gb@0=a", "3g.40gb@4=a"), node="left"),
        replace(a_gpu("two", "3g.40gb@0=b", "3g.40gb@4=b"), node="left"),
        replace(a_gpu("three", "3g.40gb@0=c", "3g.40gb@4=c"), node="right"),
    )
    services = [a_service(name, 2, {"3g.40gb": 1}) for name in "abc"]
    plan = plan_layouts([replace(services[0], min_nodes=2), *services[1:]], PAIRS, gpus)
    assert (failure_domains(plan.gpus)["a"], plan.gpus_in_use, len(plan.changes.moves)) == (
        (2, 2),
        3,
        2,
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 999),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=12, max_size=12),
)
def test_services_are_spread_as_requested_and_planned_again_nothing_changes(
    number: int, seed: int, spread: list[tuple[int, int]]
) -> None:
    services = [
        replace(service, min_gpus=gpus, min_nodes=nodes)
        for service, (gpus, nodes) in zip(fleet(number, seed, [A100], 0.2), spread, strict=False)
    ]
    plan = plan_layouts(services, PAIRS)
    assert [layout_error(A100, gpu.layout) for gpu in plan.gpus] == [None] * len(plan.gpus)
    replicas, domains = replicas_by_service(plan.gpus), failure_domains(plan.gpus)
    for service in services:
        assert meets_demand(service, replicas[service.name])
        assert domains[service.name][0] >= service.min_gpus
        assert domains[service.name][1] >= service.min_nodes or service.min_nodes == 1
    assert plan.spread_violations == ()
    assert plan_layouts(services, PAIRS, plan.gpus).changes.is_empty
