"""Ready means that a real completion was answered."""

from typing import Any

import pytest

from tessera.api.reasons import Progressing, Ready, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.health.readiness import assess_readiness, must_probe
from tessera.domain.observed.snapshot import (
    ObservedService,
    Pod,
    ProbeResult,
    Readings,
    Ref,
    Snapshot,
)
from tessera.domain.status.conditions import conditions
from tests.builders import NOW, a_pod, a_service, a_snapshot, at, plan_of

CHAT = Ref("team-a", "chat")


def with_ready_condition(reason: Ready, seconds: float) -> ObservedService:
    """A service whose Ready condition was written at a moment."""
    ready_conditions = conditions({"Ready": StatusVerdict(reason, "")}, a_service(), at(seconds))
    return a_service(status=InferenceServiceStatus(conditions=ready_conditions))


def ready_reason(service: ObservedService, snapshot: Snapshot, *pods: Any, wanted: int = 1) -> str:
    return assess_readiness(snapshot, service, wanted, pods).reason


def with_answer(seconds: float, problem: str | None = None, **fields: Any) -> Snapshot:
    return a_snapshot(probe_results={CHAT: ProbeResult(at=at(seconds), problem=problem)}, **fields)


def test_a_service_is_ready_once_a_completion_was_answered() -> None:
    service = with_ready_condition(Ready.PROBE_PENDING, -10)
    assert ready_reason(service, a_snapshot(), a_pod()) == "ProbePending"
    assert ready_reason(service, with_answer(-1), a_pod()) == "CompletionSucceeded"


def test_an_answer_from_before_an_outage_does_not_count() -> None:
    service = with_ready_condition(Ready.NO_REPLICA_READY, -10)
    assert ready_reason(service, with_answer(-60), a_pod()) == "ProbePending"
    assert must_probe(with_answer(-60), service, [a_pod()])


@pytest.mark.parametrize(
    "pod", [a_pod(ready_since=None), a_pod(terminating=True)], ids=["not ready", "on its way out"]
)
def test_without_a_replica_nothing_is_ready_and_the_cause_is_named(pod: Pod) -> None:
    trouble = StatusVerdict(Progressing.ENGINE_FAILED, "chat-0: exit code 9: out of memory")
    verdict = assess_readiness(
        with_answer(-1), with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600), 2, [pod], trouble
    )
    assert verdict.reason == "NoReplicaReady"
    assert verdict.message == (
        "0 of 2 replicas ready; EngineFailed: chat-0: exit code 9: out of memory"
    )
    assert not must_probe(
        with_answer(-1), with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600), [pod]
    )


def test_a_failed_completion_is_reported_and_probed_again_soon() -> None:
    service = with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600)
    assert ready_reason(service, with_answer(-1, "500 boom"), a_pod()) == "CompletionFailed"
    assert not must_probe(with_answer(-1, "500 boom"), service, [a_pod()])
    assert must_probe(with_answer(-6, "500 boom"), service, [a_pod()])


def test_a_new_leader_keeps_ready_and_asks_once() -> None:
    service = with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600)
    assert ready_reason(service, a_snapshot(), a_pod()) == "CompletionSucceeded"
    assert must_probe(a_snapshot(), service, [a_pod()])


@pytest.mark.parametrize(
    ("age", "finished", "probed"), [(200, 0, False), (301, 0, True), (301, 7, False)]
)
def test_only_an_idle_service_is_probed_again(age: float, finished: float, probed: bool) -> None:
    snapshot = with_answer(-age, readings=Readings(at=NOW, finished={CHAT: finished}))
    assert (
        must_probe(snapshot, with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600), [a_pod()])
        is probed
    )


def test_replicas_of_a_service_that_is_not_placed_are_probed_too() -> None:
    plan = plan_of(a_snapshot(a_service(), pods=(a_pod(),), pools=(), nodes=()))
    assert plan.service_plans[CHAT].choice is None
    assert plan.services_to_probe == {CHAT}


def test_zero_wanted_replicas_are_a_reason_of_their_own() -> None:
    assert (
        ready_reason(with_ready_condition(Ready.COMPLETION_SUCCEEDED, -600), a_snapshot(), wanted=0)
        == "ScaledToZero"
    )
