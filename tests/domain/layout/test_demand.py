"""From services to the layouts of pools."""

import random
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from tessera.api.mig import MigPlan, MigStatus
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import PlacementReason
from tessera.domain.hardware.gpu_layouts import layout_error
from tessera.domain.layout.adoption import PlanAdoption
from tessera.domain.layout.demand import layout_problem
from tessera.domain.layout.solution import MOVES_PER_SAVED_GPU, solve
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.layout_changes import replica_moves
from tessera.domain.mig.plan import plan_layouts
from tessera.domain.mig_backends.backend import Capabilities, LayoutsByGpu
from tessera.domain.mig_backends.format import parse_layout
from tessera.domain.observed.snapshot import Pod, Ref, Workload
from tessera.domain.placement.placement import slice_assignments
from tests.builders import LARGE, MEDIUM, NOW, a_pod, a_service, a_snapshot, a_spec, a_workload
from tests.layout_builders import (
    AGENT,
    GPU_MODEL,
    MANAGER,
    a_fleet,
    a_mig_gpu,
    a_mig_node,
    a_mig_service,
    a_planned_pool,
    adopt_plan,
    an_empty_node,
    kubernetes_node,
    layout_problem_of,
    proposals_of,
    views_of,
    with_status,
)

CHAT = Ref("team-a", "chat")


def planned_layouts(plan: MigPlan) -> LayoutsByGpu:
    [node] = [target for target in plan.nodes if target.node == "a100-0"]
    return {gpu.gpu: parse_layout(GPU_MODEL, gpu.slices) for gpu in node.gpus}


def layouts(got: PlanAdoption, node: str = "a100-0") -> dict[int, tuple[str, ...]]:
    assert got.status.target is not None
    node_target = next(target for target in got.status.target.nodes if target.node == node)
    return {gpu.gpu: gpu.slices for gpu in node_target.gpus}


def assignments(got: PlanAdoption) -> dict[str, tuple[str, int]]:
    plan = got.status.target or got.status.proposed
    assert plan is not None
    return {
        assignment.service: (assignment.profile, assignment.replicas)
        for assignment in plan.services
    }


def running(name: str, profile: str, count: int) -> tuple[tuple[Pod, ...], Workload]:
    """Pods and workload of a service on slices."""
    variant = f"a100-{profile.replace('.', '-')}"
    devices = {f"nvidia.com/mig-{profile}": 1}
    pods = tuple(
        a_pod(f"{name}-{index}", name, variant, node="a100-0", devices=devices)
        for index in range(count)
    )
    return pods, a_workload(count, name, variant)


def test_services_on_unpartitioned_gpus_get_slices_and_run_on_them_as_planned() -> None:
    grounds = [an_empty_node(2)]
    fleet = a_fleet(a_mig_service("chat"), a_mig_service("code", MEDIUM), mig_nodes=grounds)
    waiting = proposals_of(fleet)[CHAT].placement
    assert waiting.verdict.reason is PlacementReason.LAYOUT_PENDING
    adoption = adopt_plan(fleet, grounds)
    assert assignments(adoption) == {"team-a/chat": ("1g.10gb", 2), "team-a/code": ("3g.40gb", 2)}
    choice = proposals_of(with_status(fleet, adoption.status))[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-1g-10gb"
    assert slice_assignments(CHAT, with_status(fleet, adoption.status).pools) == (
        ("a100", "1g.10gb", 2),
    )


def test_a_plan_shows_its_arithmetic_and_its_cost() -> None:
    grounds = [an_empty_node(2)]
    plan = adopt_plan(a_fleet(a_mig_service("chat"), mig_nodes=grounds), grounds).status.target
    assert plan is not None
    assert (plan.gpus_before, plan.gpus_after, plan.per_hour_after) == (0, 1, Decimal(2))
    assert (plan.lower_bound, plan.gap, plan.at) == (Decimal(2), Decimal(0), NOW)
    assert plan.services[0].message == (
        "2057 tokens/s and at least 2 replicas: 2 x 1g.10gb of a100 at 1029 tokens/s; 2 x 1g.20gb "
        "would cost 0.79 USD per hour by slices, and save no GPU of the pool"
    )


def test_isolation_keeps_others_off_and_shows_its_price() -> None:
    grounds = [an_empty_node(3)]
    alone = a_mig_service("chat", placement={"isolation": "Gpu"})
    adoption = adopt_plan(a_fleet(alone, a_mig_service("code"), mig_nodes=grounds), grounds)
    assert assignments(adoption)["team-a/chat"] == ("7g.80gb", 2)
    plan = adoption.status.target
    assert plan is not None
    assert "costs 4.00 USD per hour, where 2 x 1g.10gb would cost 0.54 USD" in (
        plan.services[0].message
    )


@pytest.mark.parametrize("can", [AGENT, MANAGER, replace(MANAGER, knows_pods=False)])
def test_a_plan_that_is_reached_is_not_planned_again(can: Capabilities) -> None:
    nodes = [an_empty_node(3)]
    services = (a_mig_service("chat", replicas=3), a_mig_service("code", MEDIUM))
    first = adopt_plan(a_fleet(*services, mig_nodes=nodes), nodes, can)
    assert first.status.target is not None
    layouts_of_node = planned_layouts(first.status.target)
    reached_node = a_mig_node(
        *(
            a_mig_gpu(
                index, *(f"{placement.profile}@{placement.start}" for placement in placements)
            )
            for index, placements in layouts_of_node.items()
        )
    )
    fleet = with_status(a_fleet(*services, mig_nodes=[reached_node]), first.status)
    second = adopt_plan(fleet, [reached_node], can)
    assert second.status == first.status
    assert (
        solve(layout_problem_of(fleet, [reached_node], can)).pools["a100"].repartitioned_gpus == 0
    )


def test_equal_fleets_give_equal_problems_in_any_order() -> None:
    grounds = [an_empty_node(2, "a100-0"), an_empty_node(1, "a100-1")]
    services = [a_mig_service(name) for name in ("b", "a", "c")]
    problem = layout_problem_of(a_fleet(*services, mig_nodes=grounds), grounds)
    reordered = layout_problem_of(
        a_fleet(*reversed(services), mig_nodes=grounds), list(reversed(grounds))
    )
    assert problem == reordered
    assert solve(problem) == solve(reordered)


def test_slices_of_others_stay_as_they_are() -> None:
    pods, workload = running("old", "3g.40gb", 1)
    ground = a_mig_node(a_mig_gpu(0, "3g.40gb@0=team-a/old-0", "2g.20gb@4=kube-system/strange"))
    old = a_service("old", a_spec())
    fleet = a_fleet(
        old, a_mig_service("chat"), mig_nodes=[ground], pods=pods, workloads=(workload,)
    )
    assert layouts(adopt_plan(fleet, [ground])) == {0: ("3g.40gb@0", "2g.20gb@4", "1g.10gb@6")}
    unmet = adopt_plan(fleet, [ground])
    assert unmet.verdict is not None
    assert unmet.verdict.reason is LayoutReady.INSUFFICIENT_CAPACITY
    assert "team-a/chat 1029 of 2057 tokens/s" in unmet.verdict.message
    whole = adopt_plan(fleet, [ground], MANAGER)
    assert layouts(whole) == {0: ("3g.40gb", "2g.20gb")}


SLEEPING = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "60s"}}


def test_a_sleeping_service_keeps_the_slice_that_it_wakes_on() -> None:
    ground = a_mig_node(a_mig_gpu(0, "3g.40gb@0", "3g.40gb@4"))
    sage = a_service("sage", a_spec(MEDIUM, scaling=SLEEPING))
    chat = a_mig_service("chat", replicas=5)
    fleet = a_fleet(sage, chat, mig_nodes=[ground])
    proposals = dict(proposals_of(fleet))
    awake = proposals[sage.ref]
    proposals[sage.ref] = replace(awake, scale=replace(awake.scale, replicas=0))

    def profiles(can: Capabilities) -> list[str]:
        nodes = {"a100": [ground]}
        problem = layout_problem(views_of(fleet), nodes, {"a100": can}, proposals, fleet)
        plan = solve(problem).pools["a100"].plan
        return [placement.profile for placement in planned_layouts(plan)[0]]

    assert profiles(AGENT) == ["3g.40gb", *["1g.10gb"] * 3]
    # Such a backend partitions a GPU as a whole.
    assert profiles(MANAGER) == ["3g.40gb"] * 2
    proposals.pop(sage.ref)
    assert "3g.40gb" not in profiles(AGENT) + profiles(MANAGER)


def test_a_replica_that_restarts_finds_its_slice_again() -> None:
    ground = a_mig_node(a_mig_gpu(0, "3g.40gb@0=team-a/old-0", "3g.40gb@4"))
    pods, workload = running("old", "3g.40gb", 1)
    old = a_service("old", a_spec(MEDIUM, replicas=2))
    fleet = a_fleet(
        old, a_mig_service("chat"), mig_nodes=[ground], pods=pods, workloads=(workload,)
    )
    assert layouts(adopt_plan(fleet, [ground])) == {0: ("3g.40gb@0", "3g.40gb@4")}
    smaller = replace(old, spec=a_spec(MEDIUM, replicas=1))
    fewer = replace(fleet, services=(smaller, *fleet.services[1:]))
    assert layouts(adopt_plan(fewer, [ground])) == {0: ("3g.40gb@0", "1g.10gb@4", "1g.10gb@5")}


def test_without_an_agent_pods_are_taken_to_sit_on_slices_of_theirs() -> None:
    pods, workload = running("chat", "1g.10gb", 2)
    ground = a_mig_node(a_mig_gpu(0, "1g.10gb@0", "1g.10gb@1", "1g.10gb@2"), reports_pods=False)
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=[ground], pods=pods, workloads=(workload,))
    problem = layout_problem_of(fleet, [ground], replace(MANAGER, knows_pods=False))
    assert [fleet_slice.service for fleet_slice in problem.gpus[0].slices] == [
        "team-a/chat",
        "team-a/chat",
        None,
    ]


def test_a_node_that_is_away_keeps_its_layout_and_its_replicas_count() -> None:
    pods, workload = running("chat", "1g.10gb", 2)
    away = a_mig_node(
        a_mig_gpu(0, "1g.10gb@0=team-a/chat-0", "1g.10gb@1=team-a/chat-1", "1g.10gb@2"), ready=False
    )
    grounds = [away, an_empty_node(1, "a100-1")]
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=grounds, pods=pods, workloads=(workload,))
    adoption = adopt_plan(fleet, grounds)
    assert layouts(adoption) == {0: ("1g.10gb@0", "1g.10gb@1", "1g.10gb@2")}
    assert layouts(adoption, "a100-1") == {0: ()}
    without_pods = replace(fleet, pods=())
    unready = [
        a_mig_node(a_mig_gpu(0, "1g.10gb@0", "1g.10gb@1"), ready=False),
        an_empty_node(1, "a100-1"),
    ]
    assert layouts(adopt_plan(without_pods, unready), "a100-1") == {0: ("1g.10gb@0", "1g.10gb@1")}


def test_gpus_that_are_partitioned_as_a_whole_are_filled_for_the_services_on_them() -> None:
    grounds = [an_empty_node(2)]
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=grounds)
    assert layouts(adopt_plan(fleet, grounds, MANAGER)) == {0: ("1g.10gb",) * 7, 1: ()}


def test_a_proposal_waits_for_its_approval() -> None:
    grounds = [an_empty_node(1)]
    fleet = a_fleet(
        a_mig_service("chat"), pools=(a_planned_pool(mode="Propose"),), mig_nodes=grounds
    )
    first = adopt_plan(fleet, grounds)
    assert first.verdict is not None
    assert (first.status.target, first.verdict.reason) == (None, LayoutReady.AWAITING_APPROVAL)
    assert first.status.proposed is not None
    name = first.status.proposed.name
    assert f"tessera.dev/approve-layout={name}" in first.verdict.message
    waiting = with_status(fleet, first.status)
    assert adopt_plan(waiting, grounds).status == first.status
    pools = (replace(waiting.pools[0], approved_plan=name),)
    adoption = adopt_plan(replace(waiting, pools=pools), grounds)
    assert adoption.status.target is not None
    assert (adoption.status.target.name, adoption.status.proposed, adoption.verdict) == (
        name,
        None,
        None,
    )


def test_a_plan_that_waits_says_which_slices_it_deletes() -> None:
    ground = a_mig_node(a_mig_gpu(0, "3g.40gb@0", "3g.40gb@4"))
    pools = (a_planned_pool(mode="Propose"),)
    fleet = a_fleet(a_mig_service("chat", replicas=5), pools=pools, mig_nodes=[ground])
    verdict = adopt_plan(fleet, [ground]).verdict
    assert verdict is not None
    assert "repartitions 1 GPU, deletes 2x 3g.40gb and moves 0 replicas" in verdict.message


def test_while_gpus_are_partitioned_only_unmet_demand_changes_the_plan() -> None:
    grounds = [an_empty_node(2)]
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=grounds)
    first = adopt_plan(fleet, grounds).status
    unit = {"node": "a100-0", "gpus": (0,), "phase": "Draining", "since": NOW}
    status = MigStatus.model_validate({**first.model_dump(), "units": (unit,)})
    fewer = with_status(a_fleet(a_mig_service("chat", replicas=1), mig_nodes=grounds), status)
    assert adopt_plan(fewer, grounds).status.target == first.target
    stale = status.model_copy(update={"proposed": first.target})
    assert adopt_plan(with_status(fewer, stale), grounds).status.proposed is None
    with_more = with_status(
        a_fleet(a_mig_service("chat"), a_mig_service("new"), mig_nodes=grounds), status
    )
    assert adopt_plan(with_more, grounds).status.target != first.target


def test_solutions_that_all_save_are_adopted_though_each_differs_from_the_one_before() -> None:
    grounds = [an_empty_node(4)]

    def chats(replicas: int, status: MigStatus, minutes: int) -> MigStatus:
        fleet = a_fleet(a_mig_service("chat", replicas=replicas), mig_nodes=grounds)
        at = NOW + timedelta(minutes=minutes)
        return adopt_plan(with_status(fleet, status), grounds, at=at).status

    first = chats(28, MigStatus(), 0)
    status = first
    for minutes, replicas in enumerate((14, 21, 7, 14, 21)):
        status = chats(replicas, status, minutes)
        assert status.target == first.target
    assert chats(28, status, 5).proposed is None
    last = chats(7, status, 5)
    assert (last.target and last.target.gpus_after, last.proposed) == (1, None)


@pytest.mark.parametrize(
    ("layout", "reason", "words"),
    [
        ({"3g.40gb": 2}, None, ""),
        ({"3g.40gb": 3}, LayoutReady.INVALID_LAYOUT, "3 x 3g.40gb does not fit on 1 A100-80GB"),
        (
            {"3g.20gb": 1},
            LayoutReady.UNKNOWN_PROFILE,
            "A100-80GB has no profile 3g.20gb; it has 1g.10gb",
        ),
        ({}, LayoutReady.NOT_MANAGED, "stay as they are"),
    ],
)
def test_a_static_layout_is_given_to_every_gpu(
    layout: dict[str, int], reason: LayoutReady | None, words: str
) -> None:
    pool = a_planned_pool(mode="Static", mig={"layout": layout})
    grounds = [a_mig_node(a_mig_gpu(0, "3g.40gb@0", "3g.40gb@4"), a_mig_gpu(1, "1g.10gb@2"))]
    adoption = adopt_plan(a_fleet(pools=(pool,), mig_nodes=grounds), grounds)
    if reason is None:
        assert layouts(adoption) == {index: ("3g.40gb@0", "3g.40gb@4") for index in (0, 1)}
        again = with_status(a_fleet(pools=(pool,), mig_nodes=grounds), adoption.status)
        assert adopt_plan(again, grounds) == adoption
    else:
        assert adoption.verdict is not None
        assert (adoption.verdict.reason, adoption.status.target) == (reason, None)
        assert words in adoption.verdict.message


def test_plans_are_read_as_they_were_written() -> None:
    for capabilities in (AGENT, MANAGER):
        grounds = [an_empty_node(2)]
        fleet = a_fleet(a_mig_service("chat"), a_mig_service("code", MEDIUM), mig_nodes=grounds)
        plan = adopt_plan(fleet, grounds, capabilities).status.target
        assert plan is not None
        for layout in planned_layouts(plan).values():
            assert layout_error(GPU_MODEL, layout) is None
        written = [
            slice_name.partition("@")[0] for gpu in plan.nodes[0].gpus for slice_name in gpu.slices
        ]
        read = planned_layouts(plan)
        assert sorted(written) == sorted(
            placement.profile for layout in read.values() for placement in layout
        )


def test_what_fits_on_no_single_gpu_is_placed_without_a_plan() -> None:
    large = a_mig_service("chat", LARGE, slo={"ttftP95": "10s", "itlP95": "1s"})
    ground = replace(an_empty_node(1), whole_gpus=4)
    fleet = a_fleet(large, mig_nodes=[ground])
    assert layout_problem_of(fleet, [ground]).demands == ()
    choice = proposals_of(fleet)[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-4gpu"


def test_gpus_outside_mig_mode_are_taken_whole() -> None:
    ground = replace(an_empty_node(1), whole_gpus=2)
    alone = a_mig_service("chat", placement={"isolation": "Gpu"}, replicas=2)
    other = a_mig_service("code", MEDIUM)
    fleet = a_fleet(alone, other, mig_nodes=[ground])
    adoption = adopt_plan(fleet, [ground])
    assert assignments(adoption)["team-a/chat"][0] == "whole"
    assert assignments(adoption)["team-a/code"][0] == "3g.40gb"
    choice = proposals_of(with_status(fleet, adoption.status))[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-1gpu"


def random_walk(worth: float | None, steps: int = 100) -> tuple[int, int]:
    """Moves, and GPU-hours of an hour a step, while demands of six services go up and down."""
    rng = random.Random(7)  # noqa: S311 - a course, no secret
    grounds = [an_empty_node(8)]
    names = ["a", "b", "c", "d", "e", "f"]
    services = [
        a_mig_service(name, MEDIUM if index % 2 else None) for index, name in enumerate(names)
    ]
    problem = layout_problem_of(a_fleet(*services, mig_nodes=grounds), grounds)
    demands = [pool_demand.service for pool_demand in problem.demands]
    gpus, moves, hours = problem.gpus, 0, 0
    for _ in range(steps):
        index = rng.randrange(len(demands))
        least = min(demands[index].throughput.values())
        grown = max(least, demands[index].demand + rng.choice([-1, 1]) * least * rng.random())
        demands[index] = replace(demands[index], demand=grown)
        plan = plan_layouts(demands, problem.offers, gpus, moves_per_gpu=worth)
        moves += len(replica_moves(gpus, plan.gpus))
        hours += plan.gpus_in_use
        gpus = plan.gpus
    return moves, hours


@pytest.mark.long
def test_small_changes_of_demand_move_little() -> None:
    calm, hasty = random_walk(MOVES_PER_SAVED_GPU), random_walk(None)
    assert calm[0] < hasty[0] * 0.75
    assert calm[1] <= hasty[1] * 1.1


def test_before_there_is_a_plan_a_service_stays_where_it_is() -> None:
    pods, workload = running("chat", "2g.20gb", 2)
    ground = a_mig_node(
        a_mig_gpu(0, "2g.20gb@0=team-a/chat-0", "2g.20gb@2=team-a/chat-1", "1g.10gb@4")
    )
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=[ground], pods=pods, workloads=(workload,))
    choice = proposals_of(fleet)[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-2g-20gb"
    assert assignments(adopt_plan(fleet, [ground])) == {"team-a/chat": ("2g.20gb", 2)}


def test_slices_that_do_not_exist_yet_are_for_services_with_a_plan() -> None:
    ground = a_mig_node(a_mig_gpu(0, "7g.80gb@0"))
    fleet = a_fleet(a_service("chat"), mig_nodes=[ground])
    choice = proposals_of(fleet)[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-7g-80gb"
    assert layout_problem_of(fleet, [ground]).demands == ()


def test_a_service_that_shares_no_gpu_takes_no_small_existing_slice() -> None:
    ground = a_mig_node(a_mig_gpu(0, "1g.10gb@0"), a_mig_gpu(1, "7g.80gb@0"))
    alone = a_service("chat", a_spec(placement={"isolation": "Gpu"}))
    choice = proposals_of(a_fleet(alone, mig_nodes=[ground]))[CHAT].placement.choice
    assert choice is not None
    assert choice.variant == "a100-7g-80gb"


def test_demand_follows_the_replicas_that_are_wanted_and_where_they_run() -> None:
    pods, workload = running("chat", "2g.20gb", 2)
    ground = a_mig_node(a_mig_gpu(0, "2g.20gb@0=team-a/chat-0", "2g.20gb@2=team-a/chat-1"))
    fleet = a_fleet(
        a_mig_service("chat", replicas=5), mig_nodes=[ground], pods=pods, workloads=(workload,)
    )
    demand = layout_problem_of(fleet, [ground]).demands[0]
    assert demand.current == (InstanceType("a100", "2g.20gb"),)
    assert demand.service.demand == pytest.approx(5 * demand.service.throughput[demand.current[0]])


def test_pools_of_one_currency_are_planned_together_and_others_apart() -> None:
    pools = (
        a_planned_pool("a100", per_gpu_hour="2.00"),
        a_planned_pool("b100", per_gpu_hour="1.00"),
    )
    grounds = {name: [an_empty_node(1, f"{name}-0")] for name in ("a100", "b100")}
    fleet = a_snapshot(
        a_mig_service("chat"),
        pools=pools,
        nodes=tuple(kubernetes_node(pool_nodes[0], name) for name, pool_nodes in grounds.items()),
    )
    cans = {"a100": AGENT, "b100": AGENT}
    problem = layout_problem(views_of(fleet), grounds, cans, proposals_of(fleet), fleet)
    plans = solve(problem).pools
    assert [len(plans[name].plan.services) for name in ("a100", "b100")] == [0, 1]
    assert plans["b100"].plan.services[0].profile == "1g.10gb"
    assert (plans["a100"].repartitioned_gpus, plans["b100"].repartitioned_gpus) == (0, 1)


@pytest.mark.parametrize(
    ("can", "moves"), [(AGENT, 0), (MANAGER, 2), (replace(MANAGER, knows_pods=False), 2)]
)
def test_a_plan_counts_all_displaced_replicas(can: Capabilities, moves: int) -> None:
    pods, workload = running("chat", "1g.10gb", 2)
    ground = a_mig_node(a_mig_gpu(0, "1g.10gb@0=team-a/chat-0", "1g.10gb@1=team-a/chat-1"))
    chat = replace(a_mig_service("chat"), allows_downtime=True)
    services = (chat, a_mig_service("code", MEDIUM, replicas=1))
    fleet = a_fleet(*services, mig_nodes=[ground], pods=pods, workloads=(workload,))
    plan = adopt_plan(fleet, [ground], can).status.target
    assert plan is not None
    assert (plan.moves, plan.gpus_after) == (moves, 1)
    assert plan.services[1].profile in {"3g.40gb", "4g.40gb"}


def test_a_gpu_with_a_fault_is_left_alone() -> None:
    ground = a_mig_node(a_mig_gpu(0, fault="ResetRequired"), a_mig_gpu(1))
    fleet = a_fleet(a_mig_service("chat"), mig_nodes=[ground])
    assert layouts(adopt_plan(fleet, [ground])) == {0: (), 1: ("1g.10gb@0", "1g.10gb@1")}
