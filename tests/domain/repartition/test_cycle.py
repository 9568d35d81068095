"""What a cycle reports of a pool whose plan is blocked from outside."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from tessera.api.mig import Assignment, MigPlan, MigStatus
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.config import Config
from tessera.domain.layout.solution import solve
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import InFlight, Snapshot
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.cycle import LayoutMemory
from tessera.domain.repartition.evictions import BlockedEviction
from tests.builders import (
    NO_MEMORY,
    NOW,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)
from tests.layout_builders import (
    a_mig_service,
    a_planned_pool,
    with_status,
)

HALVES = a_planned_pool(mode="Static", mig={"layout": {"3g.40gb": 2}})


def actions_of(snapshot: Snapshot, layouts: LayoutMemory = NO_MEMORY.layouts) -> PoolActions:
    return plan_of(snapshot, memory=PlanMemory(layouts=layouts)).repartitions.actions["a100"]


def later(snapshot: Snapshot, cycles: int) -> Snapshot:
    """Return the snapshot after cycles whose actions were written."""
    for _ in range(cycles):
        status = actions_of(snapshot).status
        assert status is not None
        snapshot = with_status(snapshot, status)
    return snapshot


def test_what_the_api_server_refuses_is_said_while_something_is_to_be_written() -> None:
    node = a_node(slices={"1g.10gb": 7})
    snapshot = later(a_snapshot(pools=(HALVES,), nodes=(node,)), 2)
    refused = LayoutMemory(write_errors=("nodes a100-0: forbidden", "nodes a100-1: forbidden"))
    verdict = actions_of(snapshot, refused).verdict
    assert verdict.reason is LayoutReady.APPLY_FAILED
    assert verdict.message == "nodes a100-0: forbidden; and 1 more"


def test_a_disruption_budget_that_forbids_all_evictions_is_named_with_the_replica() -> None:
    node = replace(a_node(slices={"1g.10gb": 7}), taints=frozenset({TAINT}))
    empty = a_pod(
        node="a100-0",
        devices={"nvidia.com/mig-1g.10gb": 1},
        ready_since=None,
        serving=False,
        draining_since=at(-3600),
    )
    service = replace(a_service(), allows_downtime=True)
    fleet = a_snapshot(
        service, pools=(HALVES,), nodes=(node,), pods=(empty,), workloads=(a_workload(1),)
    )
    snapshot = later(fleet, 2)
    blocked = LayoutMemory(
        blocked_evictions={empty.ref: BlockedEviction("needs 1 healthy pods and has 1", NOW)}
    )
    assert list(actions_of(snapshot).evictions) == [empty.ref]
    verdict = actions_of(snapshot, blocked).verdict
    assert verdict.reason is LayoutReady.DISRUPTION_BUDGET
    assert verdict.message == (
        "Pod/team-a/chat-0 cannot be evicted since 12:00: needs 1 healthy pods and "
        "has 1; its PodDisruptionBudget must allow 1 disruption"
    )


@pytest.mark.parametrize(
    ("minutes", "on_deadline", "deleted"),
    [(29, "Evict", False), (30, "Evict", True), (300, "Cancel", False)],
)
def test_a_replica_that_says_it_is_busy_is_only_deleted_at_the_deadline_of_its_pool(
    minutes: int, on_deadline: str, deleted: bool
) -> None:
    pod = a_pod(
        node="a100-0",
        devices={"nvidia.com/mig-1g.10gb": 1},
        ready_since=None,
        serving=False,
        draining_since=at(-60 * minutes),
    )
    spec = a_spec(placement={"mig": "Auto"}, drain={"timeout": "24h"})
    fleet = a_snapshot(
        replace(a_service(spec=spec), allows_downtime=True),
        pools=(
            a_planned_pool(
                mode="Static", mig={"layout": {"3g.40gb": 2}, "onDeadline": on_deadline}
            ),
        ),
        nodes=(replace(a_node(slices={"1g.10gb": 7}), taints=frozenset({TAINT})),),
        pods=(pod,),
        workloads=(a_workload(1),),
        in_flight={pod.ref: InFlight(NOW, 1)},
    )
    actions = actions_of(later(fleet, 2))
    assert actions.draining == {pod.ref}
    assert dict(actions.deletions) == ({pod.ref: pod.uid} if deleted else {})


def test_a_pool_whose_layout_is_managed_no_more_says_so_at_once() -> None:
    snapshot = later(a_snapshot(pools=(HALVES,), nodes=(a_node(slices={"3g.40gb": 2}),)), 2)
    status = snapshot.pools[0].status
    unmanaged = replace(a_planned_pool(mode="Static"), status=status)
    verdict = actions_of(replace(snapshot, pools=(unmanaged,))).verdict
    assert verdict.reason is LayoutReady.NOT_MANAGED


def test_a_node_of_another_product_is_left_alone_and_the_rest_is_planned() -> None:
    nodes = (
        a_node(name="a100-0", slices={"1g.10gb": 7}),
        a_node(name="h100-0", slices={"3g.40gb": 2}, product="NVIDIA-H100-80GB-HBM3"),
    )
    repartitions = plan_of(a_snapshot(pools=(a_planned_pool(),), nodes=nodes)).repartitions
    assert repartitions.actions["a100"].verdict.reason is not LayoutReady.NOT_DISCOVERED
    assert repartitions.layout_problem is not None
    assert {gpu.node for gpu in repartitions.layout_problem.gpus} == {"a100-0"}


def test_gpus_that_are_not_in_mig_mode_are_used_whole_and_the_fix_is_named() -> None:
    snapshot = a_snapshot(pools=(a_planned_pool(),), nodes=(a_node(whole=4),))
    verdict = actions_of(snapshot).verdict
    assert verdict.reason is LayoutReady.MIG_MODE_DISABLED
    assert "MIG mode is disabled on 4 GPUs" in verdict.message
    assert "nvidia-smi -mig 1" in verdict.message


def test_replicas_that_left_a_profile_by_plan_stay_up_when_no_backend_is_left() -> None:
    plan_ = MigPlan(
        name="one",
        at=NOW,
        gpus_before=2,
        gpus_after=1,
        per_hour_before=Decimal(4),
        per_hour_after=Decimal(2),
        lower_bound=Decimal(2),
        gap=Decimal(0),
        services=(Assignment(service="team-a/chat", profile="1g.10gb", replicas=2),),
    )
    previous = "a100-7g-80gb"
    pods = tuple(
        a_pod(name, variant=previous, node="a100-0", devices={"nvidia.com/mig-7g.80gb": 1})
        for name in ("chat-0", "chat-1")
    )
    fleet = a_snapshot(
        a_mig_service(),
        pools=(a_planned_pool(),),
        nodes=(a_node(name="a100-0", slices={"7g.80gb": 2}, partitioned=2),),
        pods=pods,
        workloads=(a_workload(2, variant=previous),),
    )
    nothing_enabled = Config(mig_backends=frozenset[str]())
    decision = plan_of(with_status(fleet, MigStatus(target=plan_)), nothing_enabled)
    (service_plan,) = decision.service_plans.values()
    verdict = decision.repartitions.actions["a100"].verdict
    assert verdict.reason is LayoutReady.BACKEND_UNAVAILABLE
    assert verdict.message.endswith("set the chart values mig.enabled and mig.managerNamespace")
    assert service_plan.choice is not None
    assert service_plan.choice.variant != previous
    assert (service_plan.previous_deployments, service_plan.removable_deployments) == ({}, ())


def adopt_beside(restless_replicas: Sequence[int], cycles: int) -> list[dict[str, int]]:
    """Return the assignments after each cycle; every problem is solved one cycle too late."""
    nodes = tuple(a_node(slices={"1g.10gb": 7}, name=f"a100-{index}") for index in range(2))
    snapshot = a_snapshot(pools=(a_planned_pool(),), nodes=nodes)
    solution, assigned = None, []
    for cycle in range(cycles):
        restless = a_mig_service("restless", replicas=restless_replicas[cycle % 2])
        services = [a_mig_service("chat"), restless]
        if cycle >= 4:
            services.append(a_mig_service("code"))
        snapshot = replace(snapshot, services=tuple(services), at=at(5 * cycle))
        memory = PlanMemory(layouts=LayoutMemory(solution=solution))
        repartitions = plan_of(snapshot, memory=memory).repartitions
        status = repartitions.actions["a100"].status
        snapshot = with_status(snapshot, status or MigStatus())
        assert repartitions.layout_problem is not None
        solution = solve(repartitions.layout_problem)
        plan_ = status.target if status else None
        assigned.append(
            {entry.service: entry.replicas for entry in plan_.services} if plan_ else {}
        )
    return assigned


def test_a_restless_service_keeps_no_plan_from_being_adopted() -> None:
    calm, restless = adopt_beside((1, 1), 8), adopt_beside((1, 2), 8)
    for name in ("team-a/chat", "team-a/code"):
        assert [name in plan_ for plan_ in restless] == [name in plan_ for plan_ in calm]
    assert "team-a/code" in calm[5]
