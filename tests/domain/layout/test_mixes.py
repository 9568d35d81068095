"""Services that may have slices of several profiles."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.mig import MigStatus
from tessera.domain.layout.adoption import adopt
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.layout.solution import solve
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.snapshot import Ref, Snapshot
from tests.builders import MEDIUM, NOW, SMALL, a_pod, a_snapshot, a_workload
from tests.layout_builders import (
    AGENT,
    MANAGER,
    a_fleet,
    a_mig_gpu,
    a_mig_node,
    a_mig_service,
    a_planned_pool,
    an_empty_node,
    kubernetes_node,
    layout_problem_of,
    proposals_of,
    views_of,
)
from tests.properties import examples

CHAT = Ref("team-a", "chat")


def a_full_gpu(replicas: int = 2, **precision: object) -> tuple[Snapshot, list[MigNode]]:
    """Build a GPU that cannot be emptied, with one slice of each profile on which chat fits."""
    node = a_mig_node(a_mig_gpu(0, "4g.40gb@0", "3g.40gb@4=team-a/chat-0"))
    devices = {"nvidia.com/mig-3g.40gb": 1}
    fleet = a_fleet(
        a_mig_service("chat", MEDIUM, replicas=replicas, **precision),
        mig_nodes=[node],
        pods=(a_pod("chat-0", "chat", "a100-3g-40gb", node="a100-0", devices=devices),),
        workloads=(a_workload(1, "chat", "a100-3g-40gb"),),
    )
    return fleet, [node]


def assigned(problem: LayoutProblem, pool: str = "a100") -> dict[tuple[str, str], int]:
    services = solve(problem).pools[pool].plan.services
    return {(each.service, each.profile): each.replicas for each in services}


def test_a_service_gets_slices_of_another_profile_where_one_profile_is_too_few() -> None:
    fleet, nodes = a_full_gpu()
    both = layout_problem_of(fleet, nodes, MANAGER, gateways=True)
    assert assigned(both) == {("team-a/chat", "3g.40gb"): 1, ("team-a/chat", "4g.40gb"): 1}
    layout = solve(both).pools["a100"]
    assert layout.shortfalls == ()
    assert [each.previous_profile for each in layout.plan.services] == ["3g.40gb", "3g.40gb"]
    assert (
        "1 x 4g.40gb of a100 at 542 tokens/s, beside 1 x 3g.40gb" in layout.plan.services[1].message
    )
    without = layout_problem_of(fleet, nodes, MANAGER)
    assert assigned(without) == {("team-a/chat", "3g.40gb"): 1}


def test_it_keeps_to_one_profile_where_that_serves_all() -> None:
    fleet, nodes = a_full_gpu(replicas=1)
    assert assigned(layout_problem_of(fleet, nodes, MANAGER, gateways=True)) == {
        ("team-a/chat", "3g.40gb"): 1
    }


def test_replicas_of_different_precision_do_not_serve_together() -> None:
    fleet, nodes = a_full_gpu(precision={"variants": [{"precision": "fp8"}]})
    assert len(assigned(layout_problem_of(fleet, nodes, MANAGER, gateways=True))) == 1


@settings(max_examples=examples(16), deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([SMALL, MEDIUM]), st.integers(1, 6)), min_size=1, max_size=4)
)
def test_plans_of_single_profiles_are_the_same_with_gateways(wanted: list[tuple[str, int]]) -> None:
    nodes = [an_empty_node(2)]
    services = [
        a_mig_service(f"s{at}", uri, replicas=replicas) for at, (uri, replicas) in enumerate(wanted)
    ]
    fleet = a_fleet(*services, mig_nodes=nodes)
    without, behind = (
        solve(layout_problem_of(fleet, nodes, gateways=gateways)).pools["a100"]
        for gateways in (False, True)
    )
    if not without.shortfalls:
        assert behind == without
    elif len(wanted) == 1:
        assert all(lack.provided >= without.shortfalls[0].provided for lack in behind.shortfalls)


def two_pools(replicas: int, *statuses: MigStatus) -> tuple[Snapshot, LayoutProblem]:
    """Build pools of one GPU each, whose statuses are given, and a service."""
    names = ("a100", "b100")
    nodes = {name: [an_empty_node(1, f"{name}-0")] for name in names}
    pools = [
        a_planned_pool("a100", per_gpu_hour="2.00"),
        a_planned_pool("b100", per_gpu_hour="1.00"),
    ]
    for at, status in enumerate(statuses):
        pools[at] = replace(pools[at], status=pools[at].status.model_copy(update={"mig": status}))
    fleet = a_snapshot(
        a_mig_service("chat", SMALL, replicas=replicas),
        pools=tuple(pools),
        nodes=tuple(kubernetes_node(ground, name) for name, (ground,) in nodes.items()),
    )
    problem = layout_problem(
        views_of(fleet),
        nodes,
        dict.fromkeys(names, AGENT),
        proposals_of(fleet, gateways=True),
        fleet,
        gateways=True,
    )
    return fleet, problem


def adopted(replicas: int, *statuses: MigStatus) -> list[MigStatus]:
    fleet, problem = two_pools(replicas, *statuses)
    solution = solve(problem)
    return [
        adopt(view, solution, problem, [an_empty_node(1, f"{view.pool.name}-0")], AGENT, NOW).status
        for view in views_of(fleet)
    ]


def test_a_service_is_planned_on_two_pools_where_one_is_too_small() -> None:
    before = adopted(9)
    counts = [
        [(each.profile, each.replicas) for each in status.target.services]
        for status in before
        if status.target
    ]
    assert counts == [[("1g.10gb", 2)], [("1g.10gb", 7)]]
    fleet, _ = two_pools(9, *before)
    proposal = proposals_of(fleet, gateways=True)[CHAT]
    assert {count.choice.offer.pool: count.replicas for count in proposal.counts} == {
        "a100": 2,
        "b100": 7,
    }
    assert adopted(9, *before) == before
    more = adopted(11, *before)
    assert [status.target.services[0].replicas for status in more if status.target] == [4, 7]
