"""Nodes that pods wait for: the time of a start, when a pool backs off, what the condition says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tessera.api.accelerator_pool import AcceleratorPoolStatus, ProvisioningStatus
from tessera.api.meta import find_condition
from tessera.api.pool_reasons import NodesProvisioned
from tessera.api.reasons import PlacementReason
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.config import Config
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Node, Pod, PodEvent, Pool, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.status.pool import pool_status
from tessera.domain.status.service import service_status
from tests.builders import (
    A100,
    H100,
    NO_MEMORY,
    NOW,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)
from tests.domain.variant_fleet import CHAT, VariantFleet, pool_of

START = 300
WHOLE = {"nvidia.com/gpu": 1}
LACKING = "2 nodes without enough free nvidia.com/gpu"


def a_burst_pool(name: str = "burst", **fields: Any) -> Pool:
    template = {"product": A100, "gpus": 8, "maxNodes": 4, "expectedStart": f"{START}s", **fields}
    pool = a_pool(name, tier="OnDemand", nodeTemplate=template)
    return replace(pool, created=at(-86_400))


def a_served(pool: str = "burst") -> InferenceServiceStatus:
    """The status of a service that was placed on whole GPUs of a pool."""
    service = a_service(spec=a_spec(placement={"pools": [pool]}))
    plan = plan_of(a_snapshot(service, pools=(a_burst_pool(pool),), nodes=()))
    return service_status(a_snapshot(service), plan.service_plans[CHAT], None, None)


def a_waiting_pod(name: str = "chat-0", created: float = 0, **fields: Any) -> Pod:
    return a_pod(
        name,
        variant="burst-1gpu",
        devices=WHOLE,
        created=at(created),
        ready_since=None,
        containers_ready=False,
        unschedulable=LACKING,
        **fields,
    )


def a_started_pod(node: str, bound: float, name: str = "chat-9", created: float = 0) -> Pod:
    return a_pod(
        name,
        variant="burst-1gpu",
        devices=WHOLE,
        created=at(created),
        node=node,
        bound=at(bound),
        started=at(bound + 1),
    )


class Burst:
    """A pool whose only service waits, cycle by cycle."""

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool or a_burst_pool()
        self.service = a_service(
            spec=a_spec(placement={"pools": ["burst"]}), status=a_served("burst")
        )
        self.memory: PlanMemory = NO_MEMORY

    def snapshot(
        self,
        seconds: float,
        pods: Sequence[Pod] = (),
        nodes: Sequence[Node] = (),
        events: Mapping[str, tuple[PodEvent, ...]] | None = None,
    ) -> Snapshot:
        return a_snapshot(
            self.service,
            at=at(seconds),
            pools=(self.pool,),
            nodes=tuple(nodes),
            pods=tuple(pods),
            workloads=(a_workload(2, variant="burst-1gpu"),),
            pod_events=events or {},
        )

    def plan(self, seconds: float, *arguments: Any, **fields: Any) -> Plan:
        plan = plan_of(self.snapshot(seconds, *arguments, **fields), memory=self.memory)
        self.memory = self.memory.after(plan)
        return plan

    def view(self, seconds: float, *arguments: Any, **fields: Any) -> PoolView:
        (view,) = self.plan(seconds, *arguments, **fields).pools
        return view


def reason_of(view: PoolView) -> NodesProvisioned:
    assert view.nodes_provisioned is not None
    return view.nodes_provisioned.reason


def provisioning_of(view: PoolView) -> ProvisioningStatus:
    assert view.provisioning is not None
    return view.provisioning


def failures_of(view: PoolView) -> int:
    return provisioning_of(view).failures


def a_new_node(created: float, name: str = "burst-0", whole: int = 8, **fields: Any) -> Node:
    return replace(a_node("burst", whole=whole, name=name, **fields), created=at(created))


def test_a_pool_without_a_template_has_no_condition() -> None:
    view = plan_of(a_snapshot(pools=(a_pool(),))).pools[0]
    assert view.nodes_provisioned is None
    assert view.provisioning is None
    assert find_condition(pool_status(view, None, NOW).conditions, "NodesProvisioned") is None


def test_a_pool_rests_when_no_node_comes_in_time_and_offers_existing_nodes_alone() -> None:
    burst, pods = Burst(), [a_waiting_pod()]
    early = burst.view(START - 1, pods)
    assert reason_of(early) is NodesProvisioned.NODES_STARTING
    assert early.startable is not None
    late = burst.view(START, pods)
    assert reason_of(late) is NodesProvisioned.NODE_START_TIMED_OUT
    assert late.startable is None
    assert {(offer.replicas, offer.startable_replicas) for offer in late.offers} == {(0, 0)}
    assert not any(offer.exists for offer in late.offers)
    assert provisioning_of(late).resting_until == at(START + 600)
    again = burst.view(START + 600, pods)
    assert reason_of(again) is NodesProvisioned.NODES_STARTING
    assert again.startable is not None


def test_the_rest_doubles_up_to_four_hours_while_no_node_comes() -> None:
    burst, pods, backoffs = Burst(), [a_waiting_pod()], []
    seconds = 0.0
    for _ in range(7):
        seconds += START
        status = provisioning_of(burst.view(seconds, pods))
        assert status.resting_until is not None
        backoffs.append((status.resting_until - at(seconds)) / timedelta(minutes=1))
        seconds += 60 * backoffs[-1]
    assert backoffs == [10, 20, 40, 80, 160, 240, 240]


def test_an_old_failure_lengthens_no_rest() -> None:
    burst = Burst()
    assert failures_of(burst.view(START, [a_waiting_pod()])) == 1
    later = START + 600 + 4 * 3600
    assert failures_of(burst.view(later + START, [a_waiting_pod(created=later)])) == 1


def test_a_node_that_comes_late_ends_the_rest_and_lengthens_what_a_start_is_given() -> None:
    burst = Burst()
    assert burst.view(START, [a_waiting_pod()]).startable is None
    node = a_new_node(350)
    view = burst.view(425, [a_started_pod(node.name, bound=420)], [node])
    assert (failures_of(view), provisioning_of(view).resting_until) == (0, None)
    assert view.startable is not None
    assert view.startable.expected_start == timedelta(seconds=420)
    assert reason_of(view) is NodesProvisioned.NODES_AVAILABLE
    # The next pod is given that long.
    pod = a_waiting_pod("chat-1", created=1000)
    assert reason_of(burst.view(1419, [pod], [node])) is NodesProvisioned.NODES_STARTING
    assert reason_of(burst.view(1420, [pod], [node])) is NodesProvisioned.NODE_START_TIMED_OUT


def test_a_start_is_learned_from_nodes_younger_than_the_pod_alone_and_at_most_twice_as_long() -> (
    None
):
    burst = Burst()
    nodes = [a_new_node(-10, "old"), a_new_node(5000, "new")]
    pods = [a_started_pod("old", 3000, "chat-1"), a_started_pod("new", 5100, "chat-2")]
    status = provisioning_of(burst.view(6000, pods, nodes))
    assert [(start.node, start.seconds) for start in status.recent_starts] == [("new", 2 * START)]
    assert status.expected_start == timedelta(seconds=2 * START)


def test_a_fast_start_shortens_nothing_and_eight_are_remembered() -> None:
    burst = Burst()
    nodes = [a_new_node(100 * index + 1, f"n-{index:02}") for index in range(12)]
    pods = [
        a_started_pod(node.name, 100 * index + 60, f"chat-{index}", 100 * index)
        for index, node in enumerate(nodes)
    ]
    for _ in range(2):
        status = provisioning_of(burst.view(5000, pods, nodes))
        assert [start.node for start in status.recent_starts] == [f"n-{i:02}" for i in range(4, 12)]
        assert status.expected_start == timedelta(seconds=START)


def test_each_node_that_comes_gives_the_next_one_the_whole_time() -> None:
    burst = Burst()
    pods = [a_started_pod("burst-0", 250, created=0), a_waiting_pod("chat-1")]
    nodes = [a_new_node(200)]
    assert reason_of(burst.view(START + 10, pods, nodes)) is NodesProvisioned.NODES_STARTING
    assert reason_of(burst.view(200 + START, pods, nodes)) is (
        NodesProvisioned.NODE_START_TIMED_OUT
    )


def test_pods_that_wait_for_something_else_are_no_failed_start() -> None:
    burst = Burst()
    volume = a_waiting_pod()
    volume = replace(volume, unschedulable="pod has unbound immediate PersistentVolumeClaims")
    full = [a_new_node(-1000, f"burst-{index}") for index in range(4)]
    for pods, nodes in (([volume], []), ([a_waiting_pod()], full)):
        view = burst.view(2 * START, pods, nodes)
        assert (reason_of(view), failures_of(view)) == (NodesProvisioned.NODES_AVAILABLE, 0)


def test_another_leader_goes_on_from_the_status() -> None:
    burst, pods = Burst(), [a_waiting_pod()]
    view = burst.view(START, pods)
    status = pool_status(view, None, at(START))
    parsed = AcceleratorPoolStatus.model_validate_json(status.model_dump_json(by_alias=True))
    burst.pool, burst.memory = replace(burst.pool, status=parsed), NO_MEMORY
    assert burst.view(START + 599, ()).startable is None
    assert burst.view(START + 600, ()).startable is not None


def test_a_pool_created_anew_does_not_rest() -> None:
    burst, pods = Burst(), [a_waiting_pod()]
    assert burst.view(START, pods).startable is None
    burst.pool = replace(burst.pool, uid="another")
    assert burst.view(START + 1, ()).startable is not None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (
            PodEvent(
                "InsufficientCapacityError",
                "NodeClaim burst-x7k2q event: creating instance, insufficient capacity, with fleet "
                "error(s), InsufficientInstanceCapacity: We currently do not have sufficient "
                "p5.48xlarge capacity in the Availability Zone you requested",
            ),
            NodesProvisioned.INSUFFICIENT_CAPACITY,
        ),
        (
            PodEvent(
                "FailedScaleUp",
                "Node scale up in zones us-central1-a associated with this pod failed: GCE out of "
                "resources. Pod is at risk of not being scheduled.",
            ),
            NodesProvisioned.INSUFFICIENT_CAPACITY,
        ),
        (
            PodEvent(
                "FailedScaleUp",
                "Node scale up in zones us-central1-a associated with this pod failed: GCE quota "
                "exceeded. Pod is at risk of not being scheduled.",
            ),
            NodesProvisioned.QUOTA_EXCEEDED,
        ),
        (
            PodEvent(
                "LaunchFailed",
                "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU "
                "limit of 0 allows",
            ),
            NodesProvisioned.QUOTA_EXCEEDED,
        ),
        (
            PodEvent(
                "FailedScheduling",
                'Failed to schedule pod, all available instance types exceed limits for nodepool: "'
                'burst"',
            ),
            NodesProvisioned.QUOTA_EXCEEDED,
        ),
        (
            PodEvent(
                "NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached"
            ),
            NodesProvisioned.QUOTA_EXCEEDED,
        ),
        (
            PodEvent("NotTriggerScaleUp", "pod didn't trigger scale-up: 3 Insufficient cpu"),
            NodesProvisioned.NODE_START_TIMED_OUT,
        ),
    ],
)
def test_the_words_of_cloud_and_autoscaler_decide_the_reason(
    event: PodEvent, reason: NodesProvisioned
) -> None:
    scheduler = PodEvent("FailedScheduling", "0/3 nodes are available: 3 insufficient capacity.")
    burst, pod = Burst(), a_waiting_pod()
    events = {pod.uid: (scheduler, event)}
    view = burst.view(60, [pod], events=events)
    assert reason_of(view) is (
        NodesProvisioned.NODES_STARTING
        if reason is NodesProvisioned.NODE_START_TIMED_OUT
        else reason
    )
    assert view.startable is not None, "words alone are no failure"
    assert reason_of(burst.view(START, [pod], events=events)) is reason
    # The replicas have moved on; the pool still says why it backs off.
    backing_off = burst.view(START + 60, ())
    assert backing_off.nodes_provisioned is not None
    assert backing_off.nodes_provisioned.reason is reason
    assert event.message[-40:] in backing_off.nodes_provisioned.message
    assert "NodeClaim" not in backing_off.nodes_provisioned.message


def test_events_are_asked_for_of_two_pods_that_wait_longer_than_others() -> None:
    pods = [a_waiting_pod(f"chat-{index}", created=index) for index in range(4)]
    assert Burst().view(20, pods).pods_to_explain == ()
    names = [pod.ref.name for pod in Burst().view(100, pods).pods_to_explain]
    assert names == ["chat-0", "chat-1"]


def test_a_ready_node_without_a_gpu_lacks_its_driver_once_the_start_is_over() -> None:
    burst, node = Burst(), a_new_node(100, whole=0)
    assert reason_of(burst.view(100 + START - 1, (), [node])) is NodesProvisioned.NODES_AVAILABLE
    late = burst.view(100 + START, [a_waiting_pod()], [node])
    assert reason_of(late) is NodesProvisioned.DRIVER_MISSING
    assert "Node/burst-0 is Ready without a GPU" in str(late.nodes_provisioned)
    partitioned = replace(node, taints=frozenset({TAINT}))
    assert reason_of(Burst().view(3600, (), [partitioned])) is NodesProvisioned.NODES_AVAILABLE


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (a_new_node(100, product=H100), f"Node/burst-0 is {H100} instead of {A100}"),
        (a_new_node(100, whole=4), "Node/burst-0 has nvidia.com/gpu.count 4, not 8"),
        (a_new_node(100, labels={"zone": "b"}), "Node/burst-0 lacks the label zone"),
    ],
)
def test_nodes_other_than_the_template_are_named(node: Node, words: str) -> None:
    burst = Burst(a_burst_pool(labels={"zone": "a"}))
    as_said = a_new_node(100, "burst-1", labels={"zone": "a"})
    older = replace(node, name="burst-2", created=at(-90_000))
    view = burst.view(200, (), [as_said, older])
    assert reason_of(view) is NodesProvisioned.NODES_AVAILABLE
    view = burst.view(200, (), [as_said, older, node])
    assert reason_of(view) is NodesProvisioned.NODES_DIFFER
    assert words in str(view.nodes_provisioned)


def test_slices_other_than_those_of_the_template_are_named() -> None:
    burst = Burst(a_burst_pool(gpus=1, migLayout={"3g.40gb": 2}))
    renamed = replace(a_node("burst", {"3g.39gb": 2}), created=at(1))
    assert reason_of(burst.view(200, (), [renamed])) is NodesProvisioned.NODES_AVAILABLE
    other = replace(a_node("burst", {"1g.10gb": 7}), created=at(1))
    assert reason_of(burst.view(200, (), [other])) is NodesProvisioned.NODES_DIFFER


def test_an_image_that_is_pulled_for_minutes_is_said_and_another_delay_is_not() -> None:
    node = a_new_node(10)
    pod = replace(
        a_started_pod(node.name, 60), started=None, ready_since=None, containers_ready=False
    )
    burst = Burst()
    assert reason_of(burst.view(359, [pod], [node])) is NodesProvisioned.NODES_AVAILABLE
    view = burst.view(360, [pod], [node])
    assert reason_of(view) is NodesProvisioned.IMAGE_PULL_SLOW
    assert view.pods_to_explain == (pod,)
    events = {pod.uid: (PodEvent("FailedMount", "Unable to attach or mount volumes"),)}
    mounting = burst.view(361, [pod], [node], events)
    assert reason_of(mounting) is NodesProvisioned.NODES_AVAILABLE
    assert reason_of(burst.view(362, [replace(pod, started=at(361))], [node])) is (
        NodesProvisioned.NODES_AVAILABLE
    )


def test_a_service_on_a_pool_that_rests_stays_and_says_until_when_no_node_counts() -> None:
    burst, pods = Burst(), [a_waiting_pod()]
    plan = burst.plan(START, pods)
    service_plan = plan.service_plans[CHAT]
    assert service_plan.choice is not None
    assert service_plan.choice.variant == "burst-1gpu"
    status = service_status(burst.snapshot(START, pods), service_plan, None, None)
    placed = find_condition(status.conditions, "Placed")
    assert placed is not None
    assert placed.reason == PlacementReason.UNSCHEDULABLE
    assert "none counts until 2026-11-20T12:15:00Z" in placed.message


def test_a_service_goes_to_another_pool_while_one_rests_and_back_once_a_node_came() -> None:
    cheap, dear = a_burst_pool("cheap"), a_burst_pool("dear")
    assert dear.spec is not None
    price = dear.spec.prices[0].model_copy(update={"per_gpu_hour": Decimal(9)})
    dear = replace(dear, spec=dear.spec.model_copy(update={"prices": (price,)}))
    spec = a_spec(placement={"pools": ["cheap", "dear"]}, scaling={"minReplicas": 2})
    fleet = VariantFleet(a_service(spec=spec), [cheap, dear], [], start=timedelta(seconds=30))
    fleet.run(START)
    assert {pool_of(pod) for pod in fleet.pods.values()} == {"cheap"}
    fleet.run(30)
    assert {pool_of(pod) for pod in fleet.pods.values()} == {"dear"}
    view = fleet.memory.pools[0]
    assert reason_of(view) is NodesProvisioned.NODE_START_TIMED_OUT
    fleet.nodes.append(a_new_node_of("dear", fleet))
    fleet.run(60)
    assert fleet.counts() == {"cheap": 0, "dear": 2}
    fleet.nodes.append(a_new_node_of("cheap", fleet))
    fleet.run(1800)
    assert fleet.counts() == {"cheap": 2, "dear": 0}
    assert not fleet.lost


@pytest.mark.parametrize("nodes", [0, 1])
def test_of_unequal_speed_without_the_gateway_all_replicas_leave_a_pool_without_nodes_that_rests(
    nodes: int,
) -> None:
    """With one on a node all stay, since those of another speed may not serve beside it."""
    fast = a_pool("fast", "9")
    existing = [a_node("fast", whole=8, product=H100), a_node("cheap", whole=1)]
    spec = a_spec(placement={"pools": ["cheap", "fast"]}, scaling={"minReplicas": 2})
    fleet = VariantFleet(
        a_service(spec=spec),
        [a_burst_pool("cheap"), fast],
        existing[: 1 + nodes],
        start=timedelta(seconds=30),
        config=Config(),
    )
    fleet.run(START)
    assert {pool_of(pod) for pod in fleet.pods.values()} == {"cheap"}
    fleet.run(120)
    assert fleet.memory.pools[0].provisioning is not None
    assert fleet.memory.pools[0].provisioning.failures == 1
    assert fleet.counts() == ({"cheap": 1, "fast": 0} if nodes else {"cheap": 0, "fast": 2})
    fleet.run(1200)
    assert fleet.counts() == ({"cheap": 1, "fast": 0} if nodes else {"cheap": 0, "fast": 2})


def test_replicas_do_not_return_to_a_pool_that_rests_by_an_earlier_status() -> None:
    spec = a_spec(placement={"pools": ["cheap", "fast"]}, scaling={"minReplicas": 2})
    fleet = VariantFleet(
        a_service(spec=spec),
        [a_burst_pool("cheap"), a_pool("fast", "9")],
        [a_node("fast", whole=8, product=H100)],
        start=timedelta(seconds=30),
        config=Config(),
    )
    fleet.run(START)
    earlier = fleet.service.status
    fleet.run(15)
    assert {pool_of(pod) for pod in fleet.pods.values() if pod.node} == {"fast"}
    fleet.service = replace(fleet.service, status=earlier)
    service_plan = fleet.cycle()
    assert service_plan.choice is not None
    assert service_plan.choice.offer.pool == "fast"


def a_new_node_of(pool: str, fleet: VariantFleet) -> Node:
    return replace(a_node(pool, whole=8), created=NOW + fleet.now)
