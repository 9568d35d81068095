"""The plan for whole fleets: properties, placement, minimums."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.observed.snapshot import InFlight, Node, ObservedService, Snapshot
from tessera.domain.planning.plan import Plan
from tests.builders import (
    H100,
    LARGE,
    MEDIUM,
    NO_MEMORY,
    SMALL,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
    readings_of,
)
from tests.domain.random_fleets import nodes, services
from tests.properties import examples

FLEET = {
    "pools": (a_pool("a100", "1.60"), a_pool("h100", "2.50")),
    "nodes": (
        a_node("a100", {"3g.40gb": 1, "1g.10gb": 4}),
        a_node("h100", whole=2, product=H100),
    ),
}


@pytest.mark.parametrize(
    ("uri", "fields", "variant"),
    [
        (SMALL, {}, "a100-1g-10gb"),
        (MEDIUM, {}, "a100-3g-40gb"),
        (LARGE, {"precision": {"variants": [{"precision": "fp8"}]}}, "h100-2gpu-fp8"),
        (
            LARGE,
            {
                "precision": {"variants": [{"precision": "fp8"}]},
                "slo": {"itlP95": "50ms"},
                "context": {"maxModelLen": 2048},
            },
            "h100-1gpu-fp8",
        ),
        (
            LARGE,
            {
                "precision": {"variants": [{"precision": "fp8"}]},
                "slo": {"itlP95": "50ms"},
                "context": {"maxModelLen": 16384},
            },
            "h100-2gpu-fp8",
        ),
        (SMALL, {"placement": {"pools": ["h100"]}}, "h100-1gpu"),
    ],
)
def test_a_service_goes_onto_the_cheapest_hardware_that_fits(
    uri: str, fields: dict[str, object], variant: str
) -> None:
    min_replicas = {"scaling": {"minReplicas": 1}}
    service = a_service(spec=a_spec(uri, **min_replicas, **fields))
    choice = compute_service_plan(a_snapshot(service, **FLEET)).choice
    assert choice is not None
    assert choice.variant == variant


def test_a_running_service_stays_although_something_cheaper_appeared() -> None:
    service = a_service(spec=a_spec(MEDIUM, scaling={"minReplicas": 1}))
    cheap = (*FLEET["pools"], a_pool("bargain", "0.10"))
    nodes = (*FLEET["nodes"], a_node("bargain", {"3g.40gb": 2}))
    running = a_workload(1, variant="a100-3g-40gb")
    service_plan = compute_service_plan(
        a_snapshot(service, pools=cheap, nodes=nodes, workloads=(running,))
    )
    assert service_plan.choice is not None
    assert service_plan.choice.variant == "a100-3g-40gb"
    assert "bargain-3g-40gb at 0.05 USD is cheaper" in service_plan.placement.verdict.message


def test_a_service_moves_when_its_spec_does_not_fit_any_more() -> None:
    """What serves stays until its successor is ready."""
    service = a_service(
        spec=a_spec(MEDIUM, scaling={"minReplicas": 1}, context={"maxModelLen": 131072})
    )
    running = a_workload(1, variant="a100-2g-20gb")
    pod = a_pod("old", variant="a100-2g-20gb")
    service_plan = compute_service_plan(
        a_snapshot(service, **FLEET, workloads=(running,), pods=(pod,))
    )
    assert service_plan.choice is not None
    assert service_plan.choice.variant == "a100-3g-40gb"
    assert service_plan.removable_deployments == ()
    assert service_plan.previous_deployments == {}
    assert service_plan.drain.draining == ()


def test_a_previous_variant_drains_when_the_new_one_is_ready_and_goes_once_it_is_empty() -> None:
    service = a_service(spec=a_spec(MEDIUM, scaling={"minReplicas": 1}))
    workloads = (a_workload(1, variant="a100-3g-40gb"), a_workload(1, variant="zzz-old"))
    old = a_pod("old", variant="zzz-old")
    new = a_pod("new", variant="a100-3g-40gb")
    snapshot = a_snapshot(service, **FLEET, workloads=workloads, pods=(new, old))
    draining = compute_service_plan(snapshot)
    assert draining.drain.draining == (old.ref,)
    assert (draining.removable_deployments, draining.previous_deployments) == ((), {})
    drained = replace(
        snapshot,
        pods=(new, replace(old, draining_since=at(-90), serving=False, deletion_cost=-1000)),
        in_flight={old.ref: InFlight(at(-1), 0)},
    )
    empties = compute_service_plan(drained)
    assert empties.removable_deployments == ()
    assert empties.previous_deployments == {workloads[1].ref: 0}
    terminating = replace(old, terminating=True, ready_since=None)
    scaled = (workloads[0], replace(workloads[1], replicas=0))
    leaving = compute_service_plan(replace(snapshot, workloads=scaled, pods=(new, terminating)))
    assert leaving.removable_deployments == ()
    empty = compute_service_plan(replace(snapshot, workloads=scaled, pods=(new,)))
    assert [ref.name for ref in empty.removable_deployments] == ["chat-zzz-old"]


def test_new_services_choose_hardware_with_capacity_for_their_min_replicas() -> None:
    services = [a_service(name, a_spec(SMALL)) for name in ("one", "two", "three")]
    nodes = (a_node("a100", {"1g.10gb": 4, "3g.40gb": 1}), a_node("h100", whole=2, product=H100))
    decision = plan_of(a_snapshot(*services, pools=FLEET["pools"], nodes=nodes))
    variants = {
        ref.name: service_plan.choice.variant
        for ref, service_plan in decision.service_plans.items()
        if service_plan.choice
    }
    assert variants == {"one": "a100-1g-10gb", "three": "a100-1g-10gb", "two": "h100-1gpu"}


def test_interactive_services_never_run_on_spot() -> None:
    spot = a_pool("spot", "0.10", tier="Spot")
    nodes = (a_node("spot", {"1g.10gb": 7}), a_node("a100", {"1g.10gb": 7}))
    service_plan = compute_service_plan(
        a_snapshot(a_service(), pools=(spot, a_pool()), nodes=nodes)
    )
    assert service_plan.choice is not None
    assert service_plan.choice.offer.pool == "a100"


def test_an_absent_node_takes_no_hardware_from_the_services_on_it() -> None:
    running = {"workloads": (a_workload(2),), "pods": (a_pod("chat-0"), a_pod("chat-1"))}
    away = a_node(slices={"1g.10gb": 7}, ready=False)
    service_plan = compute_service_plan(a_snapshot(a_service(), nodes=(away,), **running))
    assert service_plan.choice is not None
    assert (service_plan.choice.variant, service_plan.scale.replicas) == ("a100-1g-10gb", 2)


def test_a_service_that_cannot_be_placed_any_more_is_left_as_it_is() -> None:
    running = {"workloads": (a_workload(3),), "pods": (a_pod(),)}
    service_plan = compute_service_plan(a_snapshot(a_service(), nodes=(), **running))
    assert (
        service_plan.choice,
        service_plan.drain.replicas,
        service_plan.placement.verdict.reason,
    ) == (None, 3, "NoHardware")


def test_a_service_whose_planning_raises_is_set_aside_and_the_rest_is_planned() -> None:
    broken = a_service("broken", a_spec(SMALL).model_copy(update={"context": None}))
    decision = plan_of(a_snapshot(broken, a_service("chat")))
    by_name = {ref.name: service_plan for ref, service_plan in decision.service_plans.items()}
    assert by_name["broken"].accepted.reason == "PlannerError"
    assert "AttributeError" in by_name["broken"].accepted.message
    assert by_name["chat"].choice is not None


def test_a_fixed_number_overrules_the_autoscaler() -> None:
    service = a_service(spec=a_spec(replicas=3))
    service_plan = compute_service_plan(a_snapshot(service))
    assert (service_plan.scale.replicas, service_plan.scale.reason) == (3, "SetByUser")


def test_a_deployment_scaled_by_hand_goes_back_to_the_decided_number() -> None:
    service = a_service()
    pods = tuple(a_pod(f"chat-{index}") for index in range(2))
    first = plan_of(a_snapshot(service, workloads=(a_workload(2),), pods=pods))
    by_hand = a_snapshot(
        service,
        workloads=(a_workload(6),),
        pods=pods,
        at=at(1),
    )
    again = plan_of(by_hand, memory=NO_MEMORY.after(first))
    assert again.service_plans[service.ref].drain.replicas == 2


def test_a_rollout_surges_only_where_there_is_room() -> None:
    service = a_service(spec=a_spec(SMALL))
    roomy = compute_service_plan(a_snapshot(service, nodes=(a_node(slices={"1g.10gb": 3}),)))
    full = compute_service_plan(a_snapshot(service, nodes=(a_node(slices={"1g.10gb": 2}),)))
    assert (roomy.variants[0].surge, full.variants[0].surge) == (True, False)


@given(observed_services=services, hardware=nodes, order=st.randoms(use_true_random=False))
@settings(max_examples=examples(50))
def test_the_order_of_input_does_not_matter(
    observed_services: list[ObservedService], hardware: tuple[Node, ...], order: Random
) -> None:
    pools = [a_pool("a100", "1.60"), a_pool("h100", "2.50")]
    straight = plan_of(a_snapshot(*observed_services, pools=tuple(pools), nodes=hardware))
    mixed_services, mixed_pools, mixed_nodes = list(observed_services), list(pools), list(hardware)
    for mixed in (mixed_services, mixed_pools, mixed_nodes):
        order.shuffle(mixed)
    assert straight == plan_of(
        a_snapshot(*mixed_services, pools=tuple(mixed_pools), nodes=tuple(mixed_nodes))
    )


@given(observed_services=services, hardware=nodes)
@settings(max_examples=examples(50))
def test_planning_again_on_the_planned_state_changes_nothing(
    observed_services: list[ObservedService], hardware: tuple[Node, ...]
) -> None:
    first = plan_of(a_snapshot(*observed_services, nodes=hardware))
    applied = _with_plan_applied(a_snapshot(*observed_services, nodes=hardware), first)
    again = plan_of(applied, memory=NO_MEMORY.after(first))
    for ref, service_plan in first.service_plans.items():
        repeated = again.service_plans[ref]
        assert (service_plan.choice, service_plan.scale.replicas) == (
            repeated.choice,
            repeated.scale.replicas,
        )
        assert repeated.drain.draining == ()


def _with_plan_applied(snapshot: Snapshot, decided: Plan) -> Snapshot:
    """Return the fleet after the plan was applied, without any load."""
    placed = [
        (service_plan, service_plan.choice)
        for service_plan in decided.service_plans.values()
        if service_plan.choice is not None
    ]
    pods = tuple(
        a_pod(
            f"{service_plan.service.ref.name}-{index}",
            service_plan.service.ref.name,
            choice.variant,
        )
        for service_plan, choice in placed
        for index in range(service_plan.scale.replicas)
    )
    workloads = tuple(
        a_workload(service_plan.scale.replicas, service_plan.service.ref.name, choice.variant)
        for service_plan, choice in placed
    )
    return a_snapshot(
        *snapshot.services,
        nodes=snapshot.nodes,
        pods=pods,
        workloads=workloads,
        readings=readings_of(pods),
    )


@given(observed_services=services, hardware=nodes)
@settings(max_examples=examples(50))
def test_where_a_rollout_may_surge_all_min_replicas_have_a_slice_and_one_is_left(
    observed_services: list[ObservedService], hardware: tuple[Node, ...]
) -> None:
    decision = plan_of(a_snapshot(*observed_services, nodes=hardware))
    used_slices: Counter[str] = Counter()
    surge_and_offer = {}
    for service_plan in decision.service_plans.values():
        if service_plan.choice is not None:
            used_slices[service_plan.choice.variant] += service_plan.scale.replicas
            surge_and_offer[service_plan.choice.variant] = (
                service_plan.variants[0].surge,
                service_plan.choice.offer.replicas,
            )
    for variant, (surge, offered) in surge_and_offer.items():
        whole = variant.endswith("gpu")  # whole GPUs are shared by several forms
        assert whole or surge is (used_slices[variant] < offered)
