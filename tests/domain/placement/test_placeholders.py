"""Placeholders: when a pool asks for a node by its GPUs, and how long that node is left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from tessera.api.accelerator_pool import ProvisioningStatus
from tessera.api.pool_reasons import NodesProvisioned
from tessera.api.reasons import PlacementReason
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Budget, Node, ObservedService, Pod, PodEvent, Pool, Ref
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.status.service import service_status
from tests.builders import (
    A100,
    H100,
    NO_MEMORY,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    at,
    plan_of,
)

CHAT = Ref("team-a", "chat")
AUTO: dict[str, Any] = {"mig": {"mode": "Auto", "backend": "Agent"}}
FIXED: dict[str, Any] = {"mig": {"mode": "Static", "layout": {"3g.40gb": 2}}}
SLICE = {"nvidia.com/mig-3g.40gb": 1}


def a_burst_pool(name: str = "burst", price: str = "2.00", **spec: Any) -> Pool:
    template = {"product": A100, "gpus": 1, "maxNodes": 2}
    pool = a_pool(name, price, tier="OnDemand", nodeTemplate=template, **spec)
    return replace(pool, created=at(-86_400))


class Burst:
    """Pools and one service, cycle by cycle; its status is that of the first cycle."""

    def __init__(self, *pools: Pool, mig: str = "Auto", budgets: tuple[Budget, ...] = ()) -> None:
        self.pools, self.budgets = pools, budgets
        service = a_service(spec=a_spec(placement={"mig": mig}))
        snapshot = a_snapshot(service, pools=pools, nodes=(), budgets=budgets)
        status = service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)
        self.service: ObservedService = replace(service, status=status)
        self.memory: PlanMemory = NO_MEMORY

    def views(
        self,
        seconds: float,
        nodes: Sequence[Node] = (),
        pods: Sequence[Pod] = (),
        events: Mapping[str, tuple[PodEvent, ...]] | None = None,
    ) -> Mapping[str, PoolView]:
        snapshot = a_snapshot(
            self.service,
            at=at(seconds),
            pools=self.pools,
            nodes=tuple(nodes),
            pods=tuple(pods),
            pod_events=events or {},
            budgets=self.budgets,
        )
        plan = plan_of(snapshot, memory=self.memory)
        self.memory = self.memory.after(plan)
        return {view.pool.name: view for view in plan.pools}

    def status(self, *arguments: Any, **fields: Any) -> ProvisioningStatus:
        status = self.views(*arguments, **fields)["burst"].provisioning
        assert status is not None
        return status


def a_waiting_pod(created: float = 0) -> Pod:
    return a_pod(
        variant="burst-3g-40gb",
        devices=SLICE,
        created=at(created),
        ready_since=None,
        containers_ready=False,
        unschedulable="0/1 nodes are available",
    )


def a_new_node(created: float, name: str = "burst-0", **fields: Any) -> Node:
    return replace(a_node("burst", whole=1, name=name), created=at(created), **fields)


def test_a_planned_pool_without_nodes_asks_for_one_for_a_service_that_waits_for_its_layout() -> (
    None
):
    burst = Burst(a_burst_pool(**AUTO))
    placed = next(each for each in burst.service.status.conditions if each.type == "Placed")
    assert placed.reason == PlacementReason.LAYOUT_PENDING
    view = burst.views(10)["burst"]
    assert view.provisioning is not None
    assert view.provisioning.placeholder_since == at(10)
    assert view.nodes_provisioned is not None
    assert view.nodes_provisioned.reason is NodesProvisioned.NODES_STARTING
    assert "a placeholder for 1 GPU" in view.nodes_provisioned.message
    assert burst.status(20).placeholder_since == at(10)


def test_a_placeholder_ends_when_its_node_is_ready_and_the_node_is_guarded() -> None:
    burst = Burst(a_burst_pool(**AUTO))
    burst.status(10)
    silent = a_new_node(200, allocatable={}, schedulable=False, kubelet_ready=False)
    assert burst.status(200, [silent]).placeholder_since == at(10)
    status = burst.status(210, [a_new_node(200)])
    assert status.placeholder_since is None
    assert (status.guarded_node, status.guarded_until) == ("burst-0", at(210 + 600))
    assert burst.status(809, [a_new_node(200)]).guarded_node == "burst-0"
    ended = burst.status(810, [a_new_node(200)])
    assert (ended.guarded_node, ended.guarded_until) == (None, None)
    assert ended.placeholder_since is None


@pytest.mark.parametrize("created", [-3600, 20])
def test_a_node_of_another_product_neither_ends_a_placeholder_nor_is_guarded(
    created: float,
) -> None:
    pool = a_burst_pool(**AUTO)
    known = pool.status.model_copy(update={"product": A100})
    burst = Burst(replace(pool, status=known))
    burst.status(10)
    liar = a_node("burst", whole=16, product=H100, name="liar")
    status = burst.status(30, [replace(liar, created=at(created))])
    assert (status.placeholder_since, status.guarded_node) == (at(10), None)
    with_both = [replace(liar, created=at(created)), a_new_node(200)]
    assert burst.status(210, with_both).guarded_node == "burst-0"


def test_the_first_pod_on_the_node_ends_its_guard() -> None:
    burst, node = Burst(a_burst_pool(**AUTO)), a_new_node(200)
    burst.status(10)
    assert burst.status(210, [node]).guarded_node == "burst-0"
    pod = replace(a_waiting_pod(), node="burst-0", bound=at(220), unschedulable=None)
    foreign = replace(pod, service=Ref("team-a", ""), variant="")
    assert burst.status(220, [node], [foreign]).guarded_node == "burst-0"
    assert burst.status(230, [node], [pod]).guarded_node is None


def test_a_node_that_is_deleted_is_guarded_no_more_and_another_one_is_asked_for() -> None:
    burst = Burst(a_burst_pool(**AUTO))
    burst.status(10)
    burst.status(210, [a_new_node(200)])
    status = burst.status(220)
    assert (status.guarded_node, status.placeholder_since) == (None, at(220))


def test_a_placeholder_whose_node_does_not_come_lets_the_pool_rest_and_another_one_ask() -> None:
    burst = Burst(a_burst_pool(**AUTO), a_burst_pool("dear", "9.00", **AUTO))
    assert placeholders_of(burst.views(10)) == {"burst": at(10), "dear": None}
    views = burst.views(310)
    assert views["burst"].nodes_provisioned is not None
    assert views["burst"].nodes_provisioned.reason is NodesProvisioned.NODE_START_TIMED_OUT
    assert placeholders_of(burst.views(320)) == {"burst": None, "dear": at(320)}


def placeholders_of(views: Mapping[str, PoolView]) -> Mapping[str, datetime | None]:
    return {
        name: view.provisioning.placeholder_since
        for name, view in views.items()
        if view.provisioning is not None
    }


def test_a_node_that_comes_after_a_failed_start_is_guarded_too() -> None:
    burst = Burst(a_burst_pool(**AUTO))
    burst.status(10)
    assert burst.status(310).failures == 1
    assert burst.status(910).placeholder_since == at(910)
    status = burst.status(1000, [a_new_node(950)])
    assert (status.failures, status.guarded_node) == (0, "burst-0")


def test_no_node_is_asked_for_while_a_planned_pool_has_one() -> None:
    burst = Burst(a_burst_pool(**AUTO))
    assert burst.status(10, [a_new_node(-100)]).placeholder_since is None


@pytest.mark.parametrize("known", [False, True])
def test_pods_for_fixed_slices_get_a_placeholder_unless_an_autoscaler_knows_the_slices(
    known: bool,
) -> None:
    burst, pod = Burst(a_burst_pool(**FIXED), mig="Existing"), a_waiting_pod()
    reason = "Nominated" if known else "FailedScheduling"
    events = {pod.uid: (PodEvent(reason, "Pod should schedule on: nodeclaim/burst-x"),)}
    assert burst.status(59, (), [pod], events).placeholder_since is None
    since = burst.status(60, (), [pod], events).placeholder_since
    assert since == (None if known else at(60))


def test_slices_that_are_still_to_be_created_start_no_further_node() -> None:
    pod = a_waiting_pod()
    for node in (
        a_new_node(100, allocatable={}),
        a_new_node(-1000, taints=frozenset({TAINT})),
    ):
        burst = Burst(a_burst_pool(**FIXED), mig="Existing")
        assert burst.status(200, [node], [pod]).placeholder_since is None


def test_whole_gpus_need_no_placeholder() -> None:
    burst = Burst(a_burst_pool(), mig="Existing")
    pod = replace(a_waiting_pod(), variant="burst-1gpu", devices={"nvidia.com/gpu": 1})
    assert burst.status(120, (), [pod]).placeholder_since is None


@pytest.mark.parametrize(
    ("amount", "reason", "since"),
    [
        ("0.00", PlacementReason.BUDGET_EXHAUSTED, None),
        ("0.01", PlacementReason.BUDGET_EXHAUSTED, None),
        ("5000", PlacementReason.LAYOUT_PENDING, at(10)),
    ],
)
def test_a_node_is_asked_for_only_where_the_budget_grants_a_replica(
    amount: str, reason: PlacementReason, since: datetime | None
) -> None:
    burst = Burst(a_burst_pool(**AUTO), budgets=(a_budget(amount=amount),))
    (placed,) = [each for each in burst.service.status.conditions if each.type == "Placed"]
    assert placed.reason == reason
    assert burst.status(10).placeholder_since == since
    tenant = burst.service.status.tenant
    assert tenant is not None
    assert (tenant.start_refusal is None) == (since is not None)
    if since is None:
        assert "TenantBudget/team-a" in placed.message
        assert "no node is started" in placed.message
        assert "aise spec.limits" in placed.message
