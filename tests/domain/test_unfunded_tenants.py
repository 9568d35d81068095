"""A tenant without money changes no slice, no placement and no price of another."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.layout.solution import solve
from tessera.domain.observed.snapshot import Node, ObservedService, Ref, Snapshot
from tests.builders import (
    MEDIUM,
    SMALL,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
    readings_of,
)
from tests.domain.random_fleets import nodes, services
from tests.layout_builders import a_mig_service, a_planned_pool, an_empty_node, kubernetes_node
from tests.properties import examples

BROKE = a_budget("evil", amount="0.00")
unfunded: st.SearchStrategy[dict[str, dict[str, Any]]] = st.dictionaries(
    # Names before and behind those of the others.
    st.sampled_from(["aaa", "zzz", "zzzz"]),
    st.builds(
        dict,
        uri=st.sampled_from([SMALL, MEDIUM]),
        min_replicas=st.integers(1, 1000),
        service_class=st.sampled_from(["Interactive", "Batch"]),
    ),
    min_size=1,
)


def of_evil(name: str, **placement: Any) -> ObservedService:
    wish = placement.pop("wish")
    spec = a_spec(
        wish["uri"],
        scaling={"minReplicas": wish["min_replicas"], "maxReplicas": 1000},
        **{"class": wish["service_class"]},
        placement=placement,
    )
    return a_service(name, spec, ref=Ref("evil", name), uid=f"uid-evil-{name}")


def with_evil(snapshot: Snapshot, *evil: ObservedService) -> Snapshot:
    return replace(
        snapshot,
        services=(*snapshot.services, *evil),
        budgets=(*snapshot.budgets, BROKE),
    )


@pytest.mark.parametrize("budget", [(), (a_budget(amount="3.00", window="Hour"),)])
@given(observed_services=services, hardware=nodes, wishes=unfunded)
@settings(max_examples=examples(50), deadline=None)
def test_an_unfunded_tenant_changes_no_placement_and_no_price(
    budget: tuple[Any, ...],
    observed_services: list[ObservedService],
    hardware: tuple[Node, ...],
    wishes: dict[str, dict[str, Any]],
) -> None:
    pools = (a_pool("a100", "1.60"), a_pool("h100", "9.00"))
    alone = a_snapshot(*observed_services, pools=pools, nodes=hardware, budgets=budget)
    evil = [of_evil(name, wish=wish) for name, wish in wishes.items()]
    with_him = plan_of(with_evil(alone, *evil))
    assert {
        ref: service_plan
        for ref, service_plan in with_him.service_plans.items()
        if ref.namespace != "evil"
    } == plan_of(alone).service_plans


@given(
    wanted=st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1),
    gpus=st.integers(1, 3),
    wishes=unfunded,
)
@settings(max_examples=examples(30), deadline=None)
def test_an_unfunded_tenant_changes_no_slice(
    wanted: dict[str, int], gpus: int, wishes: dict[str, dict[str, Any]]
) -> None:
    alone = a_snapshot(
        *(a_mig_service(name, replicas=count) for name, count in wanted.items()),
        pools=(a_planned_pool(),),
        nodes=(kubernetes_node(an_empty_node(gpus)),),
    )
    evil = [of_evil(name, wish=wish, mig="Auto") for name, wish in wishes.items()]
    problem = plan_of(alone).repartitions.layout_problem
    assert problem is not None
    assert problem.demands
    assert plan_of(with_evil(alone, *evil)).repartitions.layout_problem == problem


def test_a_busy_neighbor_keeps_its_slices_beside_thousands_of_unpaid_replicas() -> None:
    """The planner's recipe of finding A3."""
    chat = a_mig_service("chat", scaling={"policy": "QueueAndActivity", "minReplicas": 1})
    pods = tuple(
        a_pod(f"chat-{index}", node="a100-0", devices={"nvidia.com/mig-1g.10gb": 1})
        for index in range(6)
    )
    fleet = a_snapshot(
        chat,
        pools=(a_planned_pool(),),
        nodes=tuple(a_node(slices={"1g.10gb": 7}, name=f"a100-{index}") for index in range(2)),
        pods=pods,
        workloads=(a_workload(6),),
        readings=readings_of(pods, running=200.0),
    )
    wish = {"uri": SMALL, "min_replicas": 1000, "service_class": "Interactive"}
    crowd = with_evil(fleet, of_evil("aaa", wish=wish, mig="Auto"))
    problem = plan_of(crowd).repartitions.layout_problem
    assert problem is not None
    assigned = {
        assignment.service: assignment.replicas
        for assignment in solve(problem).pools["a100"].plan.services
    }
    assert assigned == {"team-a/chat": 6}


def test_a_funded_newcomer_gets_what_is_free_and_no_running_replica() -> None:
    pods = tuple(
        a_pod(f"chat-{index}", node="a100-0", devices={"nvidia.com/mig-1g.10gb": 1})
        for index in range(6)
    )
    wish = {"uri": SMALL, "min_replicas": 1000, "service_class": "Interactive"}
    fleet = a_snapshot(
        a_mig_service("chat", scaling={"policy": "QueueAndActivity", "minReplicas": 1}),
        of_evil("aaa", wish=wish, mig="Auto"),
        pools=(a_planned_pool(),),
        nodes=tuple(a_node(slices={"1g.10gb": 7}, name=f"a100-{index}") for index in range(2)),
        budgets=(a_budget("evil", amount="1000000000"),),
        pods=pods,
        workloads=(a_workload(6),),
        readings=readings_of(pods, running=200.0),
    )
    problem = plan_of(fleet).repartitions.layout_problem
    assert problem is not None
    assigned = {
        assignment.service: assignment.replicas
        for assignment in solve(problem).pools["a100"].plan.services
    }
    assert assigned == {"evil/aaa": 8, "team-a/chat": 6}
