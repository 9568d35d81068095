"""Replicas that would get nothing are not added."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tessera.api.reasons import ScalingReason
from tessera.domain.observed.snapshot import Pod, PodReading, Readings, Ref, Snapshot
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.scaling.state import ScaleDecision
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)

SLICE = {"nvidia.com/mig-1g.10gb": 1}
CHAT = Ref("team-a", "chat")
PENDING = a_pod(
    "chat-pending",
    unschedulable="0/1 nodes are available",
    ready_since=None,
    containers_ready=False,
)


def running(count: int) -> tuple[Pod, ...]:
    return tuple(a_pod(f"chat-{index}", node="a100-0", devices=SLICE) for index in range(count))


def observed(
    seconds: float, pods: Sequence[Pod], *waiting: float, running: float = 20.0, **fields: Any
) -> Snapshot:
    """Build a service with so many waiting requests on each of its pods, or on every one.

    A replica is planned for 15 requests.
    """
    spec = a_spec(
        scaling={
            "policy": "QueueAndActivity",
            "minReplicas": 1,
            "maxReplicas": 6,
            "scaleUp": {"stabilizationWindow": "0s", "pods": 9},
            "scaleDown": {"stabilizationWindow": "0s"},
        },
        **fields,
    )
    serving = [pod for pod in pods if pod.ready_since is not None]
    counts = waiting if len(waiting) > 1 else waiting * len(serving)
    readings = {
        pod.ref: PodReading(waiting=count, running=running if count else 0.0, activity=0.9)
        for pod, count in zip(serving, counts, strict=True)
    }
    return a_snapshot(
        a_service(spec=spec),
        at=at(seconds),
        pods=tuple(pods),
        workloads=(a_workload(replicas=len(pods)),),
        readings=Readings(at=at(seconds), pods=readings),
    )


def play(snapshots: Iterable[Snapshot]) -> list[ScaleDecision]:
    """Return the decision of each snapshot; each plan remembers the one before."""
    memory, decisions = PlanMemory(), []
    for snapshot in snapshots:
        plan = plan_of(snapshot, memory=memory)
        memory = PlanMemory(scaling_history=plan.scaling_history)
        decisions.append(plan.service_plans[CHAT].scale)
    return decisions


def refused_then(*later: Snapshot) -> list[ScaleDecision]:
    """Play a third replica that finds no node and is withdrawn as the queue ends, and the rest."""
    placed = running(2)
    start = [
        observed(0, placed, 4.0),
        observed(10, (*placed, PENDING), 6.0),
        observed(80, placed, 1.0, running=12.0),
    ]
    decisions = play([*start, *later])
    assert [decision.replicas for decision in decisions[:3]] == [3, 3, 2]
    return decisions[3:]


def test_a_replica_that_found_no_node_is_tried_again_after_5_minutes() -> None:
    placed = running(2)
    again = [observed(second, placed, 4.0) for second in (90, 200, 309, 311)]
    *waited, tried = refused_then(*again)
    assert {(decision.replicas, decision.reason) for decision in waited} == {
        (2, ScalingReason.UNSCHEDULABLE)
    }
    assert waited[0].message.endswith(
        "2 replicas; at 12:00:10 UTC the scheduler found no node for more than 2, so none is "
        "added until 12:05:10 UTC"
    )
    assert (tried.replicas, tried.reason) == (3, ScalingReason.QUEUE_ABOVE_TARGET)


def test_the_message_about_a_pending_replica_stays_while_more_are_wanted() -> None:
    pods = (*running(2), PENDING)
    first = [observed(0, running(2), 4.0), observed(10, pods, 6.0)]
    *_, before, after = play([*first, observed(15, pods, 60.0), observed(20, pods, 60.0)])
    assert (before.replicas, before.reason) == (3, ScalingReason.UNSCHEDULABLE)
    assert before.message == (
        "3 replicas; the scheduler finds no node for 1 of them, so none is added"
    )
    assert after.message == before.message


def test_a_pending_replica_stays_while_it_is_needed() -> None:
    """An autoscaler of nodes adds a node for what is pending."""
    pods = (*running(2), PENDING)
    decisions = play([observed(0, running(2), 4.0)] + [observed(s, pods, 6.0) for s in (10, 400)])
    assert [decision.replicas for decision in decisions] == [3, 3, 3]


def test_what_had_a_node_is_added_at_once() -> None:
    (fewer, again) = refused_then(observed(90, running(2), 0.0), observed(100, running(1), 9.0))
    assert (fewer.replicas, again.replicas) == (1, 2)
    assert again.reason is ScalingReason.QUEUE_ABOVE_TARGET


def test_a_replica_that_got_a_node_ends_the_wait() -> None:
    placed = running(3)
    (decision,) = refused_then(observed(90, placed, 6.0))
    assert decision.replicas > 3


def test_what_gpus_may_be_partitioned_for_is_not_held() -> None:
    """With `placement.mig: Auto` the number is the demand that a layout is planned for."""
    snapshots = [
        observed(0, running(2), 4.0, placement={"mig": "Auto"}),
        observed(10, (*running(2), PENDING), 30.0, placement={"mig": "Auto"}),
    ]
    assert [decision.replicas for decision in play(snapshots)] == [3, 6]


def test_no_replica_is_added_beside_idle_ones() -> None:
    """A Service assigns connections: what keeps one never reaches a new replica."""
    pods = running(3)
    (decision,) = play([observed(0, pods, 0.0, 0.0, 40.0)])
    assert (decision.replicas, decision.reason) == (3, ScalingReason.UNBALANCED)
    assert "2 of 3 replicas hold hardly any requests after 30s" in decision.message


def test_a_replica_is_added_beside_ones_that_share_the_requests() -> None:
    (decision,) = play([observed(0, running(3), 20.0, 12.0, 18.0)])
    assert (decision.replicas, decision.reason) == (6, ScalingReason.QUEUE_ABOVE_TARGET)


def test_new_replicas_are_no_idle_ones() -> None:
    pods = [replace(pod, ready_since=at(-20)) for pod in running(2)]
    full = a_pod("chat-9", node="a100-0", devices=SLICE)
    (decision,) = play([observed(0, (full, *pods), 40.0, 0.0, 0.0)])
    assert decision.replicas == 6
