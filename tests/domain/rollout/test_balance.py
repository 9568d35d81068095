"""Readings of replicas -> whether they share the requests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tessera.api.meta import Condition
from tessera.api.reasons import LoadBalanced, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Pod, PodReading, Readings, Ref, Snapshot
from tessera.domain.rollout.balance import SETTLING_TIME, assess_balance
from tessera.domain.status.events import event_notes
from tessera.domain.status.service import service_status
from tests.builders import (
    NOW,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)

CHAT = Ref("team-a", "chat")
PODS = (a_pod("chat-0"), a_pod("chat-1"), a_pod("chat-2"))
MAX_NUM_SEQS = 30


def readings(*requests: tuple[float, float] | None) -> dict[Ref, PodReading]:
    """Running and waiting requests of each pod; None is a replica without a reading."""
    return {
        pod.ref: PodReading(running=counts[0], waiting=counts[1])
        for pod, counts in zip(PODS, requests, strict=False)
        if counts is not None
    }


def reported(reason: LoadBalanced, seconds: float = -600) -> InferenceServiceStatus:
    """A status that says so since that many seconds from now."""
    condition = Condition(
        type="LoadBalanced",
        status="True" if reason.is_true else "False",
        reason=reason,
        message="as written then",
        observed_generation=1,
        last_transition_time=at(seconds),
    )
    return InferenceServiceStatus(conditions=(condition,))


def assess(
    status: InferenceServiceStatus,
    pods: Sequence[Pod],
    of_pods: Mapping[Ref, PodReading],
    *,
    is_fleet_measured: bool = True,
) -> StatusVerdict[LoadBalanced]:
    return assess_balance(
        status, pods, of_pods, MAX_NUM_SEQS, NOW, is_fleet_measured=is_fleet_measured
    ).result


def judge(
    *requests: tuple[float, float] | None,
    status: InferenceServiceStatus | None = None,
    pods: tuple[Pod, ...] | None = None,
    is_fleet_measured: bool = True,
) -> LoadBalanced:
    pods = PODS[: len(requests)] if pods is None else pods
    status = status or InferenceServiceStatus()
    return assess(status, pods, readings(*requests), is_fleet_measured=is_fleet_measured).reason


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([(30, 30), (0, 0)], "Unbalanced"),  # as seen with 60 clients that keep their connection
        ([(30, 90), (0, 0)], "Unbalanced"),
        ([(15, 0), (0, 0)], "Unbalanced"),  # half of maxNumSeqs
        ([(14, 0), (0, 0)], "Balanced"),  # no queue is near
        ([(30, 0), (4, 0)], "Unbalanced"),  # 4 of a mean of 17
        ([(30, 0), (5, 0)], "Balanced"),
        ([(30, 10), (25, 0), (2, 0)], "Unbalanced"),
        ([(30, 10), (25, 0), (20, 0)], "Balanced"),
        ([(0, 0), (0, 0)], "Balanced"),
        ([(30, 90)], "Balanced"),  # nothing to share with
        ([(30, 90), None], "FailedGetMetrics"),
        ([None], "Balanced"),
    ],
)
def test_a_full_replica_beside_an_idle_one_is_unbalanced(
    requests: list[tuple[float, float] | None], reason: str
) -> None:
    assert judge(*requests) == reason


def test_the_message_has_the_share_the_pod_and_the_way_out() -> None:
    verdict = assess(InferenceServiceStatus(), PODS[:2], readings((30, 28), (2, 0)))
    assert verdict.message.startswith(
        "58 of 60 running and waiting requests are on Pod/chat-0, while 1 of 2 replicas hold hardly"
    )
    assert "through the gateway" in verdict.message


@pytest.mark.parametrize(
    "change",
    [{"ready_since": at(-59)}, {"serving": False}, {"terminating": True}, {"ready_since": None}],
)
def test_a_replica_that_is_new_or_leaves_is_not_idle(change: dict[str, object]) -> None:
    other = replace(PODS[1], **change)  # type: ignore[arg-type]
    assert judge((30, 30), (0, 0), pods=(PODS[0], other)) is LoadBalanced.BALANCED


def test_new_replicas_wait_for_readings_only_where_the_fleet_has_some() -> None:
    new = tuple(replace(pod, ready_since=at(-1)) for pod in PODS[:2])
    starting = (new[0], replace(new[1], ready_since=None))
    assert judge(pods=new) is judge(pods=starting) is LoadBalanced.BALANCED
    for pods in (new, starting):
        assert judge(pods=pods, is_fleet_measured=False) is LoadBalanced.FAILED_GET_METRICS
    assert judge(pods=new[:1], is_fleet_measured=False) is LoadBalanced.BALANCED


@pytest.mark.parametrize("pods", [(), (replace(PODS[0], ready_since=None),)])
def test_a_service_without_a_replica_says_so_and_only_as_long(pods: tuple[Pod, ...]) -> None:
    assert judge(pods=pods) is LoadBalanced.NO_REPLICA_READY
    balanced, none = (
        reported(reason, -5) for reason in (LoadBalanced.BALANCED, LoadBalanced.NO_REPLICA_READY)
    )
    assert judge(pods=pods, status=balanced) is LoadBalanced.NO_REPLICA_READY
    assert judge((0, 0), status=none) is LoadBalanced.BALANCED


def test_a_service_that_was_never_placed_says_nothing_of_its_balance() -> None:
    snapshot = a_snapshot(a_service(spec=None, problem="spec: unreadable"))
    condition = service_status(
        snapshot, plan_of(snapshot).service_plans[CHAT], None, None
    ).conditions[-1]
    assert (condition.status, condition.reason) == ("Unknown", "NoReplicaReady")


def test_an_unbalanced_service_is_balanced_again_at_other_thresholds() -> None:
    unbalanced = reported(LoadBalanced.UNBALANCED)
    assert judge((30, 0), (8, 0), status=unbalanced) is LoadBalanced.UNBALANCED
    assert judge((30, 0), (11, 0), status=unbalanced) is LoadBalanced.BALANCED
    assert judge((8, 0), (0, 0), status=unbalanced) is LoadBalanced.UNBALANCED
    assert judge((7, 0), (0, 0), status=unbalanced) is LoadBalanced.BALANCED


def test_a_verdict_stands_for_a_minute_and_keeps_its_message() -> None:
    recent = reported(LoadBalanced.BALANCED, 1 - SETTLING_TIME.total_seconds())
    verdict = assess(recent, PODS[:2], readings((30, 30), (0, 0)))
    assert (verdict.reason, verdict.message) == (LoadBalanced.BALANCED, "as written then")
    older = reported(LoadBalanced.UNBALANCED)
    verdict = assess(older, PODS[:2], readings((30, 99), (0, 0)))
    assert (verdict.reason, verdict.message) == (LoadBalanced.UNBALANCED, "as written then")


def a_fleet(*requests: tuple[float, float], status: InferenceServiceStatus) -> Snapshot:
    pods = PODS[: len(requests)]
    spec = a_spec(scaling={"minReplicas": 2, "maxReplicas": 2})
    return a_snapshot(
        a_service(spec=spec, status=status),
        pods=pods,
        workloads=(a_workload(len(pods)),),
        readings=Readings(at=NOW, pods=readings(*requests)),
    )


def test_a_service_says_that_it_is_unbalanced_and_explains_what_would_change_it() -> None:
    snapshot = a_fleet((200, 30), (0, 0), status=InferenceServiceStatus())
    plan = plan_of(snapshot)
    status = service_status(snapshot, plan.service_plans[CHAT], None, None)
    condition = next(each for each in status.conditions if each.type == "LoadBalanced")
    assert (condition.status, condition.reason) == ("False", "Unbalanced")
    notes = [note for note in event_notes(InferenceServiceStatus(), status) if note.is_warning]
    assert [note.reason for note in notes] == ["Unbalanced"]
    decision = next(each for each in explain(snapshot, plan, CHAT) if each.topic == "balance")
    assert decision.numbers == (("requests per replica", "0, 230"),)
    assert "above 50% of the mean" in decision.would_change[0]


def test_readings_that_change_do_not_rewrite_the_status() -> None:
    first = a_fleet((200, 30), (0, 0), status=InferenceServiceStatus())
    status = service_status(first, plan_of(first).service_plans[CHAT], None, None)
    later = replace(a_fleet((190, 50), (3, 0), status=status), at=at(20))
    again = service_status(later, plan_of(later).service_plans[CHAT], None, None)
    assert again.conditions[-1] == status.conditions[-1]


def test_a_service_that_is_set_aside_keeps_what_was_reported() -> None:
    status = reported(LoadBalanced.UNBALANCED)
    broken = replace(a_service(spec=None, problem="spec: unreadable"), status=status)
    snapshot = a_snapshot(broken, pods=PODS[:2])
    condition = service_status(
        snapshot, plan_of(snapshot).service_plans[CHAT], None, None
    ).conditions[-1]
    assert (condition.type, condition.reason) == ("LoadBalanced", "Unbalanced")
