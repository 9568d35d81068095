"""A number set by `kubectl scale` holds beside `spec.scaling` until it is given back."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.health.readiness import must_probe
from tessera.domain.observed.snapshot import ProbeResult, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.domain.service.proposal import guaranteed_replicas
from tessera.domain.status.service import service_status
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
    readings_of,
)

CHAT = Ref("team-a", "chat")
PODS = tuple(a_pod(f"chat-{index}") for index in range(5))


def a_fleet(waiting: float, seconds: float, replicas: int | None, **scaling: Any) -> Snapshot:
    return a_snapshot(
        a_service(spec=a_spec(replicas=replicas, scaling={"minReplicas": 1, **scaling})),
        at=at(seconds),
        pods=PODS,
        workloads=(a_workload(5),),
        readings=readings_of(PODS, at=at(seconds), waiting=waiting),
    )


def play(
    seconds: range,
    replicas: int | None,
    memory: PlanMemory | None = None,
    waiting: float = 0.0,
    **scaling: Any,
) -> list[Plan]:
    plans = []
    memory = memory or PlanMemory()
    for second in seconds:
        fleet = a_fleet(waiting, second, replicas, **scaling)
        plans.append(plan_of(fleet, memory=memory))
        memory = replace(memory, scaling_history=plans[-1].scaling_history)
    return plans


def replicas_of(plans: list[Plan]) -> list[int]:
    return [plan.service_plans[CHAT].scale.replicas for plan in plans]


@pytest.mark.parametrize("policy", ["QueueAndActivity", "Capacity"])
@pytest.mark.parametrize("waiting", [0.0, 1000.0])
def test_no_load_and_no_bound_changes_a_number_set_by_hand(policy: str, waiting: float) -> None:
    plans = play(range(0, 900, 30), 5, waiting=waiting, policy=policy, maxReplicas=4)
    assert set(replicas_of(plans)) == {5}
    scale = plans[-1].service_plans[CHAT].scale
    assert (scale.reason, scale.message) == (
        "SetByUser",
        "spec.replicas is 5, so spec.scaling rests; to give the number back to it, remove "
        "spec.replicas",
    )


@pytest.mark.parametrize("policy", ["QueueAndActivity", "Capacity"])
def test_given_back_the_number_is_kept_until_a_new_window_ends(policy: str) -> None:
    quiet = play(range(0, 240, 30), None, policy=policy)
    memory = PlanMemory(scaling_history=quiet[-1].scaling_history)
    assert replicas_of(quiet)[-1] == 5
    fixed = play(range(240, 600, 30), 5, memory, policy=policy)
    memory = PlanMemory(scaling_history=fixed[-1].scaling_history)
    after = replicas_of(play(range(600, 1300, 30), None, memory, policy=policy))
    assert after[:10] == [5] * 10
    assert after[-1] < 5


def test_a_pause_starts_from_the_number_that_is_given_back() -> None:
    fixed = play(range(0, 60, 30), 4)
    memory = PlanMemory(scaling_history=fixed[-1].scaling_history)
    assert replicas_of(play(range(60, 120, 30), None, memory, paused={"by": "anna"})) == [4, 4]


def test_a_service_stopped_by_hand_starts_again_with_its_minimum() -> None:
    stopped = play(range(0, 60, 30), 0, waiting=9.0)
    assert replicas_of(stopped) == [0, 0]
    memory = PlanMemory(scaling_history=stopped[-1].scaling_history)
    (scale,) = (
        plan.service_plans[CHAT].scale
        for plan in play(range(60, 90, 30), None, memory, minReplicas=2)
    )
    assert (scale.replicas, scale.reason) == (2, "BoundsChanged")


@pytest.mark.parametrize(
    ("replicas", "spec", "guaranteed"),
    [
        (5, {"scaling": {"minReplicas": 2}}, 2),
        (1, {"scaling": {"minReplicas": 2}}, 1),
        (5, {"scaling": {"minReplicas": 0, "idle": {"after": "10m"}}}, 0),
        (5, {}, 1),
    ],
)
def test_a_number_set_by_hand_keeps_the_guarantee_of_the_bounds(
    replicas: int, spec: dict[str, Any], guaranteed: int
) -> None:
    assert guaranteed_replicas(a_spec(replicas=replicas, **spec)) == guaranteed


@pytest.mark.parametrize(("replicas", "probed"), [(2, True), (None, False)])
def test_a_service_that_may_sleep_is_probed_while_its_number_is_fixed(
    replicas: int | None, *, probed: bool
) -> None:
    scaling = {"minReplicas": 0, "idle": {"after": "10m"}}
    service = a_service(spec=a_spec(replicas=replicas, scaling=scaling))
    snapshot = a_snapshot(
        service, at=at(3600), pods=PODS, probe_results={CHAT: ProbeResult(at=at(0), problem=None)}
    )
    assert must_probe(snapshot, service, PODS) is probed


def test_the_status_says_at_once_that_the_bounds_rest() -> None:
    alone = a_snapshot(a_service(spec=a_spec(replicas=5)), workloads=(a_workload(5),))
    status = status_of(alone)
    assert status.scaling is not None
    assert status.scaling.message == "spec.replicas is 5"
    beside = a_service(spec=a_spec(replicas=5, scaling={}), status=status)
    scaling = status_of(replace(alone, services=(beside,))).scaling
    assert scaling is not None
    assert "spec.scaling rests" in scaling.message
    assert scaling.recent_changes == status.scaling.recent_changes


def status_of(fleet: Snapshot) -> InferenceServiceStatus:
    return service_status(fleet, plan_of(fleet).service_plans[CHAT], None, None)


def test_explain_says_which_bounds_rest_and_what_ends_it() -> None:
    fleet = a_fleet(0.0, 0, 5)
    (scaling,) = (each for each in explain(fleet, plan_of(fleet), CHAT) if each.topic == "scaling")
    assert scaling.numbers == (
        ("replicas", "5 desired by spec.replicas"),
        ("bounds", "1 to 8, which rest while spec.replicas is set"),
    )
    assert "without spec.replicas, spec.scaling decides" in scaling.would_change[0]
